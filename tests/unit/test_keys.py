"""The names in Redis."""

import msgspec

from millhand.config import Config, Fleet, Redis
from millhand.keys import Keys


def test_every_key_of_a_fleet_carries_its_hash_tag() -> None:
    keys = msgspec.to_builtins(Keys.of(Config(fleet=Fleet(name="mill"))))
    assert all(key.startswith("{mill}:") for name, key in keys.items() if name != "group")


def test_no_two_keys_of_a_fleet_are_the_same() -> None:
    keys = msgspec.to_builtins(Keys.of(Config()))
    assert len(set(keys.values())) == len(keys)


def test_the_streams_and_the_group_can_be_named() -> None:
    redis = Redis(input_stream="in", output_stream="out", dead_letter_stream="dead", group="us")
    keys = Keys.of(Config(redis=redis))
    assert (keys.input, keys.output, keys.dead_letter, keys.group) == ("in", "out", "dead", "us")
    assert keys.parked == "{events}:parked"
