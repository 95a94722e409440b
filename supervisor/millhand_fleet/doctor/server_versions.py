"""Servers that break what a fleet needs, by their versions. A distribution's patches do not show in the number."""

import re

import msgspec

from millhand_fleet.doctor.finding import Level

Version = tuple[int, ...]
NO_END: Version = (10_000,)


class Flaw(msgspec.Struct, frozen=True):
    """A range of versions [since, fixed_in) and what is wrong with them."""

    server: str  # Redis | Valkey
    since: Version
    fixed_in: Version
    level: Level
    what: str
    remedy: str


FLAWS = (
    # redis/redis#10968 (crash report of 7.0.3), CVE-2022-31144 and CVE-2022-35951: release notes of 7.0.4 and 7.0.5
    Flaw(
        "Redis", (7, 0, 0), (7, 0, 5), Level.ERROR,
        "taking over pending entries that were trimmed can crash it, or worse (CVE-2022-31144, CVE-2022-35951)",
        "upgrade to 7.0.15 or newer",
    ),
    # redis/redis#14276: release notes of 8.2.1, redis/redis#14283
    Flaw(
        "Redis", (8, 2, 0), (8, 2, 1), Level.ERROR,
        "XADD and XTRIM can crash it after it has loaded an RDB file (redis#14276)",
        "upgrade to 8.2.3 or newer",
    ),
    # redis/redis#14382, redis/redis#14491: release notes of 8.2.3
    Flaw(
        "Redis", (8, 2, 0), (8, 2, 3), Level.WARNING,
        "XACKDEL with several ids overflows its stack (CVE-2025-62507); millhand does not use it, others may",
        "upgrade to 8.2.3 or newer",
    ),
    # redis/redis#15808 of 2026-09: the check of redis/redis#15124 refuses at loading what XTRIM MINID leaves after an
    # XDEL of a node's last entry; fixed by redis/redis#15815, in no release that we know the number of
    Flaw(
        "Redis", (8, 8, 0), NO_END, Level.NOTE,
        "some builds write files that they refuse to load, if XDEL and XTRIM MINID meet in a stream (redis#15808)",
        "delete nothing from the input by XDEL; upgrade to a build with redis#15815",
    ),
    # Release notes of 7.2.11, 7.4.6, 8.0.4, 8.2.2 (docker-library/official-images#20011) and of Valkey 8.1.4
    *(
        Flaw(
            "Redis", since, fixed_in, Level.NOTE,
            "whoever may run Lua may take it over (CVE-2025-49844), unless your distribution has patched it",
            f"let only trusted users in, and upgrade to {'.'.join(map(str, fixed_in))} or newer",
        )
        for since, fixed_in in (((7, 2), (7, 2, 11)), ((7, 4), (7, 4, 6)), ((8, 0), (8, 0, 4)), ((8, 2), (8, 2, 2)))
    ),
    Flaw(
        "Valkey", (8, 1), (8, 1, 4), Level.NOTE,
        "whoever may run Lua may take it over (CVE-2025-49844), unless your distribution has patched it",
        "let only trusted users in, and upgrade to 8.1.4 or newer",
    ),
    # Release notes of Valkey 9.1.1
    Flaw(
        "Valkey", (9, 1, 0), (9, 1, 1), Level.NOTE,
        "over TLS a client that is let in may take it over with CLIENT KILL (CVE-2026-56684)",
        "upgrade to 9.1.1 or newer",
    ),
)  # fmt: skip


def parsed(version: str) -> Version:
    """Return a version's numbers, as far as it has any."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0])[:3])


def flaws_of(server: str, version: str) -> list[Flaw]:
    """Return what is known to be wrong with a server."""
    numbers = parsed(version)
    return [flaw for flaw in FLAWS if flaw.server == server and flaw.since <= numbers < flaw.fixed_in]
