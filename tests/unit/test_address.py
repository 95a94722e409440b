"""How one is let in at Redis: passwords, TLS files, and what is never told."""

import ssl
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio.connection import parse_url

from millhand.address import redis_address, refusal_of_tls, told
from millhand.config import Redis
from millhand.errors import Unusable
from millhand.remedy import remedy_for

PASSWORD = "p@ss/w:rd %?#é"  # noqa: S105 - one that needs every escape


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n", encoding="utf-8")
    file.chmod(0o600)
    return file


def refused(redis: Redis) -> str:
    with pytest.raises(Unusable) as caught:
        redis_address(redis)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("redis://h:1/2", None),
        ("redis://millhand@h:1/2", "millhand"),
        ("redis://millhand:@h:1/2", "millhand"),
        ("unix:///run/redis.sock", None),
        ("unix://millhand@/run/redis.sock?db=2", "millhand"),
    ],
)
def test_a_password_of_its_own_key_or_file_joins_the_user_in_the_address(
    url: str, user: str | None, file: Path
) -> None:
    for redis in (Redis(url=url, password=PASSWORD), Redis(url=url, password_file=str(file))):
        parts = parse_url(redis_address(redis))
        assert parts["password"] == PASSWORD
        assert parts.get("username") == user
        assert parts.get("host", parts.get("path")) in {"h", "/run/redis.sock"}


def test_an_address_without_a_password_stays_as_it_is() -> None:
    for url in ("redis://h:1/2", "redis://me:pw@h:1/2", "unix:///run/redis.sock?db=1", "embedded"):
        assert redis_address(Redis(url=url)) == url


def test_the_embedded_server_has_no_password(file: Path) -> None:
    assert redis_address(Redis(url="embedded", password_file=str(file))) == "embedded"


def test_a_password_file_that_everybody_may_read_is_refused(file: Path) -> None:
    file.chmod(0o604)
    text = refused(Redis(url="redis://h", password_file=str(file)))
    assert f"redis.password_file: {file} can be read by everybody on this host: chmod o-r {file}" in text
    file.chmod(0o640)
    redis_address(Redis(url="redis://h", password_file=str(file)))


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"\xff\n", b"x" * 5000])
def test_a_password_file_holds_one_line_and_nothing_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    text = refused(Redis(url="redis://h", password_file=str(file)))
    assert "must hold the secret" in text
    assert "one" not in text.removeprefix(f"redis.password_file: {file}").replace("one line", "")


def test_a_password_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    text = refused(Redis(url="redis://h", password_file=str(tmp_path / "away")))
    assert text.endswith("away cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://me:se@cret@h:1/0", "redis://***@h:1/0"),
        ("rediss://me:pw@h:1/0?ssl_ca_certs=/ca", "rediss://***@h:1/0"),
        ("unix://me:pw@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
        ("embedded", "embedded"),
    ],
)
def test_what_is_told_of_an_address_holds_no_secret(url: str, shown: str) -> None:
    assert told(url) == shown


def test_an_error_of_tls_is_found_however_deep_it_is_buried() -> None:
    buried = exceptions.ConnectionError("Error 1")
    buried.__cause__ = OSError(1, "x")
    buried.__cause__.__context__ = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    buried.__cause__.__context__.reason = "WRONG_VERSION_NUMBER"
    assert "does not speak TLS on this port" in (refusal_of_tls(buried) or "")
    assert refusal_of_tls(exceptions.ConnectionError("refused")) is None
    assert refusal_of_tls(ssl.SSLEOFError(8, "EOF occurred")) is None, "a server that goes away comes back"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.NoPermissionError("this user has no permissions to run the 'xadd' command"), "conf/users.acl"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loads its data"),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file"), "cannot write to its disk"),
        (exceptions.OutOfMemoryError("command not allowed"), "maxmemory"),
        (exceptions.TimeoutError("Timeout connecting to server"), "rediss://"),
        (exceptions.ConnectionError("Error 111 connecting"), "start it"),
        (ConnectionResetError(104, "reset"), "redis.url"),
        (exceptions.ResponseError("ERR something new"), "redis.url"),
    ],
)
def test_every_refusal_of_redis_has_a_remedy(error: BaseException, words: str) -> None:
    assert words in remedy_for(error)
