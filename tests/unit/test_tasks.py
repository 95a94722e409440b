"""The question put to the model, and what counts as its answer."""

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.config import Config, Enrich, TaskField, TaskTable
from millhand.errors import BadAnswer, ConfigError
from millhand.tasks.builtin import ENTITIES_MAX, ENTITY_CHARS_MAX, TRANSLATION_CHARS_MAX, builtin_tasks
from millhand.tasks.catalogue import chosen_tasks, task_from_table
from millhand.tasks.task import Questions, Task, enrichment_hash

QUIET = settings(deadline=None, database=None, max_examples=25)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=10,
)
SENTIMENT = {"label": "mixed", "confidence": 80}


def questions(*names: str, **enrich: Any) -> Questions:
    return Questions(chosen_tasks(Config(enrich=Enrich(tasks=names or ("sentiment",), **enrich))))


def own_task(**fields: TaskField) -> Questions:
    return Questions([task_from_table("own", TaskTable(prompt="look closely", fields=fields))])


def refused(asked: Questions, content: str) -> str:
    with pytest.raises(BadAnswer) as caught:
        asked.parse(content)
    assert (caught.value.reason, caught.value.content) == ("invalid_answer", content)
    return caught.value.detail


# -- the question ------------------------------------------------------------------------------------------------------


@QUIET
@given(st.text())
def test_the_text_stands_in_the_users_message_alone(text: str) -> None:
    """Whatever the text says, the instructions are the same."""
    asked = questions()
    prompt = asked.prompt(text)
    assert prompt.user == text
    assert (prompt.system, prompt.schema) == (asked.prompt("").system, asked.schema)


def test_the_instructions_hold_every_task_and_the_schema() -> None:
    asked = questions("sentiment", "spam")
    system = asked.prompt("").system
    assert '- "sentiment": ' in system
    assert '- "spam": ' in system
    assert msgspec.json.encode(asked.schema).decode() in system


def test_braces_in_a_prompt_are_taken_as_they_stand() -> None:
    task = Task("own", "answer {schema} or {0}", builtin_tasks("English")["spam"].result)
    assert "answer {schema} or {0}" in Questions([task]).prompt("").system


def test_the_translation_goes_where_the_configuration_says() -> None:
    assert "in Plattdeutsch" in questions("translation", translate_to="Plattdeutsch").prompt("").system


def members_of(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set(node) | {name for value in node.values() for name in members_of(value)}
    return {name for value in node for name in members_of(value)} if isinstance(node, list) else set()


def test_the_schema_stands_on_its_own() -> None:
    schema = questions("sentiment", "spam", "entities", "translation").schema
    assert not members_of(schema) & {"$ref", "$defs", "title", "description"}
    assert list(schema["properties"]) == schema["required"] == ["sentiment", "spam", "entities", "translation"]
    assert schema["additionalProperties"] is False
    entity = schema["properties"]["entities"]["properties"]["found"]["items"]
    assert list(entity["properties"]) == ["text", "type"]


def test_fields_named_like_words_of_json_schema_stay_in_the_schema() -> None:
    names = ("title", "description", "properties", "required", "type", "enum")
    asked = own_task(**{name: TaskField(type="boolean") for name in names})
    assert asked.schema["properties"]["own"]["properties"] == {name: {"type": "boolean"} for name in names}
    answer = {"own": dict.fromkeys(names, True)}
    assert asked.parse(json.dumps(answer)) == answer


def test_the_prompt_hash_is_the_same_for_the_same_question() -> None:
    assert questions("sentiment").prompt_hash == questions("sentiment").prompt_hash


def test_the_prompt_hash_changes_with_the_question() -> None:
    fields = {"urgent": TaskField(type="boolean")}
    asked = [
        questions("sentiment"),
        questions("sentiment", "spam"),
        questions("spam", "sentiment"),
        questions("translation"),
        questions("translation", translate_to="French"),
        Questions([task_from_table("own", TaskTable(prompt="look closely", fields=fields))]),
        Questions([task_from_table("own", TaskTable(prompt="look again", fields=fields))]),
        own_task(urgent=TaskField(type="integer")),
    ]
    assert len({one.prompt_hash for one in asked}) == len(asked)


# -- the answer --------------------------------------------------------------------------------------------------------


def test_a_valid_answer_becomes_results_by_task() -> None:
    assert questions().parse('{"sentiment": {"label": "mixed", "confidence": 80}}') == {"sentiment": SENTIMENT}


def test_blanks_around_an_answer_do_no_harm() -> None:
    assert questions().parse('\n {"sentiment": {"label": "mixed", "confidence": 80}}\n ') == {"sentiment": SENTIMENT}


def test_several_tasks_are_answered_together() -> None:
    answer = {
        "entities": {"found": [{"text": "Kraków", "type": "place"}]},
        "sentiment": SENTIMENT,
        "translation": {"source_language": "Polish", "text": "Hello"},
        "spam": {"label": "not_spam", "confidence": 0},
    }
    assert questions("sentiment", "spam", "entities", "translation").parse(json.dumps(answer)) == answer


def test_an_answer_to_one_of_two_tasks_is_refused() -> None:
    assert "missing required field `spam`" in refused(
        questions("sentiment", "spam"), json.dumps({"sentiment": SENTIMENT})
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="nothing"),
        pytest.param("I would say mixed.", id="prose"),
        pytest.param('```json\n{"sentiment": {"label": "mixed", "confidence": 80}}\n```', id="fenced"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 80}', id="cut off"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 80}} done', id="trailing garbage"),
        pytest.param('[{"sentiment": {"label": "mixed", "confidence": 80}}]', id="in a list"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="missing task"),
        pytest.param('{"sentiment": null}', id="null task"),
        pytest.param('{"sentiment": {"label": "mixed"}}', id="missing field"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 80, "why": ""}}', id="unknown field"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 80}, "spam": 1}', id="unknown task"),
        pytest.param('{"sentiment": {"label": "Mixed", "confidence": 80}}', id="wrong enum"),
        pytest.param('{"sentiment": {"label": null, "confidence": 80}}', id="null enum"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 101}}', id="above the range"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": -1}}', id="below the range"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": 0.8}}', id="a fraction"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": "80"}}', id="a number as text"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": true}}', id="a boolean as number"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": NaN}}', id="NaN"),
        pytest.param('{"sentiment": {"label": "mixed", "confidence": ' + "9" * 5000 + "}}", id="5000 digits"),
        pytest.param('{"sentiment": {"label": "mi\x00xed", "confidence": 80}}', id="NUL"),
        pytest.param('{"sentiment": {"label": "\\ud800 mixed", "confidence": 80}}', id="lone surrogate"),
        pytest.param("[" * 1_000_000, id="a million deep"),
        pytest.param('{"sentiment": ' * 1_000_000, id="a million objects deep"),
        pytest.param('{"sentiment": {"label": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}}", id="a deep label"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_of_no_use(content: str) -> None:
    refused(questions(), content)


def test_a_deep_answer_where_anything_may_stand_is_of_no_use() -> None:
    """A plug-in's result may hold any JSON, so nesting ends at the decoder's own limit."""
    anything = msgspec.defstruct("Anything", [("value", Any)], frozen=True)
    asked = Questions([Task("own", "p", anything)])
    assert asked.parse('{"own": {"value": [[1]]}}') == {"own": {"value": [[1]]}}
    refused(asked, '{"own": {"value": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}}")


def test_a_refused_answer_tells_where_it_is_wrong_and_how_long_it_was() -> None:
    content = '{"sentiment": {"label": "mixed", "confidence": 101}}'
    assert refused(questions(), content).endswith(f"`$.sentiment.confidence`; the answer has {len(content)} characters")


@pytest.mark.parametrize(
    "found",
    [
        [{"text": "a" * (ENTITY_CHARS_MAX + 1), "type": "place"}],
        [{"text": "", "type": "place"}],
        [{"text": "a", "type": "planet"}],
        [{"text": "a", "type": "place", "start": 0}],
        [{"text": "a", "type": "place"}] * (ENTITIES_MAX + 1),
    ],
)
def test_entities_beyond_their_bounds_are_refused(found: list[dict[str, Any]]) -> None:
    refused(questions("entities"), json.dumps({"entities": {"found": found}}))


def test_entities_at_their_bounds_are_taken() -> None:
    found = [{"text": "a" * ENTITY_CHARS_MAX, "type": "place"}] * ENTITIES_MAX
    assert questions("entities").parse(json.dumps({"entities": {"found": found}}))["entities"]["found"] == found


def test_a_text_beyond_its_bound_is_refused_and_one_at_it_is_taken() -> None:
    def answer(length: int) -> str:
        return json.dumps({"translation": {"source_language": "Polish", "text": "ł" * length}})

    asked = questions("translation")
    assert asked.parse(answer(TRANSLATION_CHARS_MAX))
    refused(asked, answer(TRANSLATION_CHARS_MAX + 1))


# -- tasks of one's own ------------------------------------------------------------------------------------------------

FIELDS: list[tuple[TaskField, list[Any], list[Any]]] = [
    (TaskField(type="boolean"), [True, False], [None, 0, 1, "true"]),
    (TaskField(type="enum", values=("a", "b")), ["a", "b"], ["", "A", "c", 1, None, ["a"]]),
    (TaskField(type="integer"), [-(10**12), 0, 7], [7.5, "7", True, None]),
    (TaskField(type="integer", min=-1, max=5), [-1, 0, 5], [-2, 6]),
    (TaskField(type="integer", min=0.5, max=2.5), [1, 2], [0, 3]),
    (TaskField(type="integer", min=-1.5, max=-0.5), [-1], [-2, 0]),
    (TaskField(type="number"), [-2.5, 0, 7, 1e300], ["7", True, None]),
    (TaskField(type="number", min=0, max=1), [0, 0.5, 1], [-0.001, 1.001]),
    (TaskField(type="string", length_max=3), ["", "abc", "łłł"], ["abcd", 1, None]),
    (TaskField(type="list", items_max=2, length_max=3), [[], ["abc"], ["a", "b"]], [["a"] * 3, ["abcd"], [1], "abc"]),
]


@pytest.mark.parametrize(("field", "good"), [(field, value) for field, good, _ in FIELDS for value in good])
def test_a_field_takes_what_its_type_and_bounds_allow(field: TaskField, good: Any) -> None:
    assert own_task(found=field).parse(json.dumps({"own": {"found": good}})) == {"own": {"found": good}}


@pytest.mark.parametrize(("field", "bad"), [(field, value) for field, _, bad in FIELDS for value in bad])
def test_a_field_refuses_what_its_type_and_bounds_forbid(field: TaskField, bad: Any) -> None:
    refused(own_task(found=field), json.dumps({"own": {"found": bad}}))


@pytest.mark.parametrize("name", ["class", "self", "none", "answer", "result", "entity"])
def test_a_task_or_field_may_have_a_name_that_python_uses_too(name: str) -> None:
    own = task_from_table(name, TaskTable(prompt="p", fields={name: TaskField(type="boolean")}))
    asked = Questions([own, builtin_tasks("English")["entities"]])
    assert asked.parse(json.dumps({name: {name: True}, "entities": {"found": []}}))[name] == {name: True}


def test_a_task_of_ones_own_may_replace_one_that_comes_along() -> None:
    table = TaskTable(prompt="p", fields={"mood": TaskField(type="boolean")})
    asked = Questions(chosen_tasks(Config(task={"sentiment": table})))
    assert asked.parse('{"sentiment": {"mood": true}}') == {"sentiment": {"mood": True}}


# -- choosing ----------------------------------------------------------------------------------------------------------


def refused_choice(*names: str, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        chosen_tasks(Config(enrich=Enrich(tasks=names), **config))
    (problem,) = caught.value.problems
    return problem


def test_tasks_come_in_the_order_they_are_named() -> None:
    tasks = chosen_tasks(Config(enrich=Enrich(tasks=("spam", "sentiment"))))
    assert [task.name for task in tasks] == ["spam", "sentiment"]


def test_an_unknown_task_is_refused_with_a_guess() -> None:
    assert refused_choice("sentimant").endswith("there is no task 'sentimant'; did you mean sentiment?")


def test_an_unknown_task_like_no_other_is_refused_with_all_that_there_are() -> None:
    assert refused_choice("zzz").endswith("there are entities, sentiment, spam, translation")


def test_a_refused_task_tells_where_it_was_named() -> None:
    assert refused_choice("zzz").startswith("enrich.tasks (default): ")
    assert refused_choice("zzz", origins={"enrich.tasks": "MILLHAND_ENRICH_TASKS"}).startswith(
        "enrich.tasks (MILLHAND_ENRICH_TASKS): "
    )


def test_a_task_named_twice_is_refused() -> None:
    assert refused_choice("spam", "sentiment", "spam").endswith("names a task twice")


def test_a_task_called_meta_is_refused() -> None:
    """That member of the enrichment says how it came about."""
    table = TaskTable(prompt="p", fields={"ok": TaskField(type="boolean")})
    assert "cannot be called 'meta'" in refused_choice("meta", task={"meta": table})


# -- the enrichment's hash ---------------------------------------------------------------------------------------------


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        members = [(name, shuffled(member, order)) for name, member in value.items()]
        order.shuffle(members)
        return dict(members)
    return [shuffled(member, order) for member in value] if isinstance(value, list) else value


@QUIET
@given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order_of_members(results: dict[str, Any], order: random.Random) -> None:
    assert enrichment_hash(shuffled(results, order)) == enrichment_hash(results)


@QUIET
@given(st.dictionaries(st.text(), JSON, max_size=3), st.text(), st.lists(JSON, min_size=2, max_size=2))
def test_the_hash_depends_on_every_value(results: dict[str, Any], name: str, values: list[Any]) -> None:
    one, other = ({**results, name: value} for value in values)
    assert (enrichment_hash(one) == enrichment_hash(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


def test_the_hash_of_an_answer_stays_the_same_over_releases() -> None:
    """Whoever compares enrichments compares them with old ones."""
    assert enrichment_hash({"sentiment": SENTIMENT}) == "d406a3becb8615ae45823c897cf7501f"
