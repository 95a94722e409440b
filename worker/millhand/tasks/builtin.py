"""The tasks that come with millhand. Bounds keep the smallest model's answer short enough to end."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from millhand.tasks.task import Result, Task

Percent = Annotated[int, Meta(ge=0, le=100)]

ENTITIES_MAX = 8
ENTITY_CHARS_MAX = 60
TRANSLATION_CHARS_MAX = 1000


class Sentiment(Result, frozen=True):
    """How the writer feels about what the text is about."""

    label: Literal["positive", "neutral", "negative", "mixed"]
    confidence: Percent


class Spam(Result, frozen=True):
    """Whether the text is unwanted advertising or fraud."""

    label: Literal["spam", "not_spam"]
    confidence: Percent


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name in the text and what kind of thing it names."""

    text: Annotated[str, Meta(min_length=1, max_length=ENTITY_CHARS_MAX)]
    type: Literal["person", "organization", "place", "product", "date", "money", "other"]


class Entities(Result, frozen=True):
    """What the text names."""

    found: Annotated[list[Entity], Meta(max_length=ENTITIES_MAX)]


class Translation(Result, frozen=True):
    """The text in another language, and the language it was written in."""

    source_language: Annotated[str, Meta(min_length=2, max_length=20)]
    text: Annotated[str, Meta(min_length=1, max_length=TRANSLATION_CHARS_MAX)]


def builtin_tasks(translate_to: str) -> dict[str, Task]:
    """Return the built-in tasks by name. `translate_to` is a language as one says it, e.g. "English"."""
    tasks = (
        Task(
            "sentiment",
            "the writer's feeling: label positive, neutral, negative or mixed; confidence 0 to 100.",
            Sentiment,
        ),
        Task(
            "spam",
            "label spam if the text is unwanted advertising, a scam or fraud, else not_spam; confidence 0 to 100.",
            Spam,
        ),
        Task(
            "entities",
            f"found: at most {ENTITIES_MAX} names in the text, each as written there, with its type; [] if none.",
            Entities,
        ),
        Task(
            "translation",
            f"source_language: the text's language in English; text: the whole text in {translate_to}.",
            Translation,
        ),
    )
    return {task.name: task for task in tasks}
