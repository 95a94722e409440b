"""Dead letters, and what was done with them, as lines of text that no event can make a terminal misbehave with."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator

from millhand_fleet.ctl.selecting import UNITS_S
from millhand_fleet.ctl.visible import visible
from millhand_fleet.deadletters import DeadLetter, Requeued

PART_BYTES_MAX = 200  # of the detail, and of the event, in a row
WHY_NOT = {
    Requeued.REFUSED: "requeued {redrives} times before; a higher --redrives-max, or --force, allows it",
    Requeued.EMPTY: "there is no event to requeue: it had been deleted from the input",
    Requeued.TOO_WIDE: "its {fields} fields are more than one script can write",
    Requeued.FOREIGN: "the fleet has not written this entry",
}


def head(*, with_source: bool) -> str:
    """Return what stands above the rows."""
    source = f"{'src':17}  " if with_source else ""
    return f"{'id':17}  {'age':>4}  {'reason':15}  {'a/d/r':6}  {source}detail | event"


def row(letter: DeadLetter, now_ms: int, *, with_source: bool) -> str:
    """Return a dead letter in one line, with the beginnings of its detail and of its event."""
    source = f"{letter.src:17}  " if with_source else ""
    tries = f"{letter.attempts}/{letter.deliveries}/{letter.redrives}"
    event = dict(letter.fields).get(b"data", letter.fields[0][1] if letter.fields else b"")
    text = f"{visible(letter.detail[:PART_BYTES_MAX])} | {visible(event[:PART_BYTES_MAX])}"
    age, reason = _age(now_ms - letter.buried_ms), visible(letter.reason.encode())
    return f"{letter.id:17}  {age:>4}  {reason:15}  {tries:6}  {source}{text}"


def details(letter: DeadLetter) -> Iterator[str]:
    """Yield everything about a dead letter, line by line."""
    for name in ("id", "reason", "src", "attempts", "deliveries", "redrives", "consumer", "failed_at"):
        yield f"{name:11} {visible(str(getattr(letter, name)).encode())}"
    yield f"{'detail':11} {visible(letter.detail)}"
    yield f"{'errors':11} {len(letter.errors)}"
    yield from (f"  {visible(error.encode(errors='backslashreplace'))}" for error in letter.errors)
    yield f"{'fields':11} {len(letter.fields)}"
    yield from (f"  {visible(name)}: {visible(value)}" for name, value in letter.fields)


def json_line(letter: DeadLetter) -> str:
    """Return everything about a dead letter as a JSON object in ASCII. Bytes that are no UTF-8 are {"base64": ...}."""
    fields = [[_text_or_base64(part) for part in pair] for pair in letter.fields]
    whole = {name: getattr(letter, name) for name in letter.__struct_fields__}
    return json.dumps({**whole, "detail": _text_or_base64(letter.detail), "fields": fields})


def by_reason(reasons: Counter[str]) -> str:
    """Return how many dead letters there are, and how many for which reason."""
    parts = ", ".join(f"{visible(reason.encode())} {count}" for reason, count in reasons.most_common())
    return f"{reasons.total()} ({parts})" if parts else "0"


def refusal(letter: DeadLetter, answer: Requeued) -> str | None:
    """Return why a dead letter was not requeued, if that is for its own sake."""
    why = WHY_NOT.get(answer)
    return why and f"{letter.id}: refused: " + why.format(redrives=letter.redrives, fields=len(letter.fields))


def refused(tally: Counter[Requeued]) -> int:
    """Return how many were refused for their own sake."""
    return sum(tally[answer] for answer in WHY_NOT)


def requeued(tally: Counter[Requeued]) -> str:
    """Return what was done, in numbers."""
    return ", ".join(f"{word}: {count}" for word, count in requeued_counts(tally).items())


def requeued_counts(tally: Counter[Requeued]) -> dict[str, int]:
    """Return the same as numbers by their words."""
    return {"requeued": tally[Requeued.OK], "refused": refused(tally), "gone": tally[Requeued.GONE]}


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


def _age(age_ms: int) -> str:
    age_s = max(0, age_ms) // 1000
    unit = next((unit for unit, seconds in reversed(UNITS_S.items()) if age_s >= 2 * seconds), "s")
    return f"{age_s // UNITS_S[unit]}{unit}"
