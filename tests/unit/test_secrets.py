"""Secrets in the configuration: one place for each, and none of them told."""

import re
from pathlib import Path

import pytest

from millhand.errors import ConfigError
from millhand.layers import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "millhand.toml"
    file.touch(mode=0o600)
    return file


def only_problem(file: Path, text: str) -> str:
    file.write_text(f"[redis]\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ('url = "redis://me:pw1@h"\npassword = "pw2"', "redis.password", "there is a password in redis.url"),
        ('url = "redis://me:pw1@h"\npassword_file = "x"', "redis.password_file", "there is a password in redis.url"),
        ('url = "redis://h"\npassword = "pw1"\npassword_file = "x"', "redis.password_file", "keep one of them"),
        ('url = "redis://h"\ntls_ca_file = "x"', "redis.tls_ca_file", "write rediss://"),
        ('url = "rediss://h"\ntls_cert_file = "x"', "redis.tls_cert_file", "belong together"),
        ("password = 12345678", "redis.password", "its value will not do"),
        ('url = ["redis://me:pw1@h"]', "redis.url", "its value will not do"),
    ],
)
def test_secrets_that_cannot_be_meant_are_refused_and_not_told(file: Path, text: str, key: str, reason: str) -> None:
    problem = only_problem(file, text)
    assert problem.startswith(f"{key} ({file}): ")
    assert reason in problem
    assert not re.search(r"pw\d|12345678", problem)


def test_a_password_in_a_file_that_everybody_may_read_is_refused(file: Path) -> None:
    file.chmod(0o644)
    problem = only_problem(file, 'url = "redis://h"\npassword = "pw1"')
    assert problem == f"redis.password ({file}): can be read by everybody on this host: chmod o-r {file}"
    file.chmod(0o640)
    assert load(file, {}).redis.password == "pw1"  # noqa: S105 - a test's


def test_an_embedded_redis_has_neither_password_nor_tls() -> None:
    config = load(None, {"MILLHAND_REDIS_PASSWORD": "pw1", "MILLHAND_REDIS_TLS_CA_FILE": "x"})
    after = config.with_urls(redis="redis://127.0.0.1:1/0", model="http://127.0.0.1:2")
    assert (after.redis.password, after.redis.tls_ca_file) == ("", "")
