"""TLS to Redis, against the system's server: the wheels' servers are built without it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop
from tests.certificates import Authority, Pair, require_openssl, tls_options
from tests.rig import HOST, RedisServer, config_for, free_port, system_redis

from millhand.address import redis_address
from millhand.errors import Unusable
from millhand.stream import connect, require_streams


class Tls(NamedTuple):
    """A server that speaks TLS to whoever has a certificate of its authority, and one of each kind of file."""

    server: RedisServer
    port: int
    authority: Authority
    client: Pair
    stranger: Authority


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    require_openssl()
    folder = tmp_path_factory.mktemp("certificates")
    authority, port = Authority(folder), free_port()
    options = tls_options(port, authority, authority.sign("server"), clients="yes")
    with RedisServer(options, binary=system_redis()) as server:
        yield Tls(server, port, authority, authority.sign("client", "DNS:client"), Authority(folder, "stranger"))


@pytest.fixture
def address(tls: Tls) -> Callable[..., str]:
    """Return the address of the server with the right files, but for what is given."""

    def make(**other: Any) -> str:
        keys = {
            "redis.url": f"rediss://{HOST}:{tls.port}/0",
            "redis.tls_ca_file": str(tls.authority.certificate),
            "redis.tls_cert_file": str(tls.client.certificate),
            "redis.tls_key_file": str(tls.client.key),
            **{f"redis.{key}": value for key, value in other.items()},
        }
        return redis_address(config_for("embedded", flags=keys).redis)

    return make


async def met(address: str) -> str:
    client = connect(address)
    try:
        return await require_streams(client)
    finally:
        await client.aclose()


async def test_the_right_certificates_let_both_sides_in(address: Callable[..., str]) -> None:
    assert (await met(address())).startswith("Redis 7")


async def test_a_server_of_another_authority_is_not_spoken_to(tls: Tls, address: Callable[..., str]) -> None:
    with pytest.raises(Unusable, match=r"certificate is not accepted: .*redis\.tls_ca_file"):
        await met(address(tls_ca_file=str(tls.stranger.certificate)))


async def test_without_a_ca_only_those_of_the_system_are_believed(address: Callable[..., str]) -> None:
    with pytest.raises(Unusable, match=r"certificate is not accepted: .*redis\.tls_ca_file"):
        await met(address(tls_ca_file=""))


async def test_a_certificate_for_another_host_is_not_accepted(tls: Tls, address: Callable[..., str]) -> None:
    with pytest.raises(Unusable, match=r"certificate is not accepted: Hostname mismatch.*localhost.*redis\.url"):
        await met(address(url=f"rediss://localhost:{tls.port}/0"))


def test_a_server_that_wants_a_certificate_of_ours_is_told_by_the_key_that_is_missing(
    address: Callable[..., str],
) -> None:
    """In the loop of the fleet's processes, which reads what the server says before the reset that follows at once."""
    with pytest.raises(Unusable, match=r"wants a certificate of ours.*redis\.tls_cert_file"):
        uvloop.run(met(address(tls_cert_file="", tls_key_file="")))


def test_files_that_will_not_do_are_refused_before_anything_is_started(
    tls: Tls, address: Callable[..., str], tmp_path: Path
) -> None:
    """Each message names the key and the file."""
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(Unusable, match=r"redis\.tls_ca_file: .*nonsense\.pem will not do"):
        address(tls_ca_file=str(nonsense))
    with pytest.raises(Unusable, match=r"redis\.tls_ca_file: .*away\.pem cannot be read: No such file"):
        address(tls_ca_file=str(tmp_path / "away.pem"))
    with pytest.raises(Unusable, match=r"redis\.tls_cert_file, redis\.tls_key_file: .* will not do"):
        address(tls_key_file=str(tls.authority.sign("other").key))
    public = tmp_path / "public.key"
    public.write_bytes(tls.client.key.read_bytes())
    public.chmod(0o644)
    with pytest.raises(Unusable, match=r"redis\.tls_key_file: .*public\.key can be read by everybody.*chmod o-r"):
        address(tls_key_file=str(public))
