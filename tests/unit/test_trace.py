"""The trace of an event, in every record about it."""

import pytest

from millhand.trace import traceparent_of
from millhand.verdict import Delivery

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_record_about_an_event_names_its_trace() -> None:
    delivery = Delivery("1-0", {b"data": b"{}", b"traceparent": GOOD}, "me", 2, attempts=1)
    assert delivery.labels() == {"id": "1-0", "owner": "me", "count": 2, "attempt": 2, "traceparent": GOOD.decode()}
    assert delivery.labels(4)["attempt"] == 4


def test_a_record_about_an_event_without_one_does_not() -> None:
    assert "traceparent" not in Delivery("1-0", {b"data": b"{}"}, "me", 1).labels()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"00-ab",
        GOOD.upper(),
        b"ff" + GOOD[2:],
        GOOD + b"\n",
        GOOD + b"-what-the-future-may-bring",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
        b"\xff" * 55,
        b'"}\n{"event": "forged"}',
    ],
)
def test_what_is_no_traceparent_is_foreign_text_and_stays_out_of_the_log(bad: bytes) -> None:
    assert traceparent_of({b"traceparent": bad}) is None
