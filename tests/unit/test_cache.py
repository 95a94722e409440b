"""What makes two questions the same."""

from typing import Any

import msgspec
import pytest

from millhand.cache import ANSWER_BYTES_MAX, QuestionHash
from millhand.config import Config, Model
from millhand.model.answer import Answer
from millhand.tasks.builtin import ENTITIES_MAX, ENTITY_CHARS_MAX, TRANSLATION_CHARS_MAX, builtin_tasks
from millhand.tasks.task import Prompt, Questions

TASKS = builtin_tasks("English")
PROMPT = Questions([TASKS["sentiment"]]).prompt("a fine day")
MODEL = Config().model


def question_of(prompt: Prompt, model: Model, model_digest: str) -> str:
    return QuestionHash(prompt, model, model_digest).of(prompt.user)


def test_an_equal_question_has_the_same_hash() -> None:
    again = Questions([builtin_tasks("English")["sentiment"]]).prompt("a fine day")
    assert question_of(PROMPT, MODEL, "d1") == question_of(again, Model(), "d1")


@pytest.mark.parametrize(
    "prompt",
    [
        Questions([TASKS["sentiment"]]).prompt("a fine day "),
        Questions([TASKS["spam"]]).prompt("a fine day"),
        Questions([TASKS["sentiment"], TASKS["spam"]]).prompt("a fine day"),
        msgspec.structs.replace(PROMPT, schema={**PROMPT.schema, "required": []}),
        msgspec.structs.replace(PROMPT, system=PROMPT.system[:-1], user=PROMPT.system[-1] + PROMPT.user),
    ],
    ids=["text", "task", "one task more", "schema", "text moved into the instructions"],
)
def test_another_prompt_is_another_question(prompt: Any) -> None:
    assert question_of(prompt, MODEL, "d1") != question_of(PROMPT, MODEL, "d1")


@pytest.mark.parametrize(
    "changed",
    [{"name": "other:1b"}, {"temperature": 0.1}, {"seed": 8}, {"num_ctx": 4096}, {"num_predict": 256}],
    ids=lambda changed: next(iter(changed)),
)
def test_another_model_or_option_that_changes_the_answer_is_another_question(changed: dict[str, Any]) -> None:
    assert question_of(PROMPT, msgspec.structs.replace(MODEL, **changed), "d1") != question_of(PROMPT, MODEL, "d1")


def test_other_weights_are_another_question() -> None:
    assert question_of(PROMPT, MODEL, "d2") != question_of(PROMPT, MODEL, "d1")


def test_what_the_model_is_asked_can_pass_for_no_part_of_what_it_is_told() -> None:
    """A text that begins like the end of the instructions makes another question than these instructions do."""
    begun = msgspec.structs.replace(PROMPT, system="ab", user="c")
    assert question_of(begun, MODEL, "d1") != question_of(
        msgspec.structs.replace(begun, system="a", user="bc"), MODEL, "d1"
    )
    other = msgspec.structs.replace(begun, schema={}, user='"]')
    assert question_of(begun, MODEL, "d1") != question_of(other, MODEL, "d1")


def test_one_hash_serves_many_texts() -> None:
    """Each is as if it were the only one."""
    hash_of = QuestionHash(PROMPT, MODEL, "d1").of
    assert hash_of("a") == hash_of("a") != hash_of("b")
    assert hash_of(PROMPT.user) == question_of(PROMPT, MODEL, "d1")


@pytest.mark.parametrize(
    "changed",
    [{"url": "http://127.0.0.1:1"}, {"timeout_s": 1.0}, {"concurrency": 1}, {"keep_alive": "30m"}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_does_not_change_the_answer_makes_no_other_question(changed: dict[str, Any]) -> None:
    assert question_of(PROMPT, msgspec.structs.replace(MODEL, **changed), "d1") == question_of(PROMPT, MODEL, "d1")


def test_the_longest_answer_in_letters_of_two_bytes_of_all_built_in_tasks_is_kept() -> None:
    entity = {"text": "ü" * ENTITY_CHARS_MAX, "type": "organization"}
    content = msgspec.json.encode(
        {
            "sentiment": {"label": "negative", "confidence": 100},
            "spam": {"label": "not_spam", "confidence": 100},
            "entities": {"found": [entity] * ENTITIES_MAX},
            "translation": {"source_language": "English", "text": "ü" * TRANSLATION_CHARS_MAX},
        }
    ).decode()
    Questions(list(TASKS.values())).parse(content)

    assert len(msgspec.json.encode(Answer(content, 2000, 500, 12.5))) <= ANSWER_BYTES_MAX
