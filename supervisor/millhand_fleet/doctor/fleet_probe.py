"""Asks the desk of the running fleet, on both of its faces."""

from typing import Any

import msgspec

from millhand import __version__
from millhand.config import CONTROL_SOCKET
from millhand_fleet.doctor.documents import NoDocument, document
from millhand_fleet.doctor.facts import FleetFacts
from millhand_fleet.doctor.setup import Setup, listens

ANSWER_S = 3.0


async def ask_fleet(setup: Setup) -> FleetFacts:
    """Return what the fleet says of itself; a desk that does not answer is a fact too."""
    config = setup.config
    facts = FleetFacts(
        name=config.fleet.name,
        state_dir=str(config.state_dir),
        is_running=setup.is_running,
        is_private=setup.is_private,
        port=config.desk.port,
        version=__version__,
    )
    if not setup.is_running:
        return msgspec.structs.replace(facts, port_taken=bool(config.desk.port) and listens(config.desk.port))
    url = str(setup.endpoints.get("desk_url", ""))
    status, error = await _asked("http://desk", setup, by_socket=True)
    _, desk_error = await _asked(url, setup, by_socket=False) if url else (None, "its address is not known yet")
    return msgspec.structs.replace(facts, status=status, error=error, desk_url=url, desk_error=desk_error)


def children_of(facts: FleetFacts) -> list[int]:
    """Return the processes that the desk tells of."""
    rows = (facts.status or {}).get("children") or ()
    return [row["pid"] for row in rows if isinstance(row.get("pid"), int)]


async def _asked(url: str, setup: Setup, *, by_socket: bool) -> tuple[dict[str, Any] | None, str]:
    socket = setup.config.state_dir / CONTROL_SOCKET if by_socket else None
    try:
        return await document(url, "/status", timeout_s=ANSWER_S, socket=socket), ""
    except NoDocument as error:
        return None, str(error)
