"""Secrets that stand in files of their own."""

import stat
from pathlib import Path

from millhand.errors import Unusable

SECRET_BYTES_MAX = 4096


def secret_in(file_name: str, key: str) -> str:
    """Return the one line that a file holds. `key` names the setting in messages, which never quote the file.

    Raises Unusable where it cannot be read, holds something else, or can be read by everybody.
    """
    file = Path(file_name).expanduser()
    place = f"{key}: {file}"
    try:
        if is_public(file):
            raise Unusable(f"{place} can be read by everybody on this host: chmod o-r {file}")
        with file.open("rb") as opened:
            content = opened.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise Unusable(f"{place} cannot be read: {error.strerror}") from error
    try:
        (secret,) = content.decode().splitlines()
    except ValueError:  # not one line, or no UTF-8
        secret = ""
    if not secret or len(content) > SECRET_BYTES_MAX or not secret.isprintable():
        raise Unusable(
            f"{place} must hold the secret and nothing else, in one line of at most {SECRET_BYTES_MAX} bytes"
        )
    return secret


def is_public(file: Path) -> bool:
    """Whether every user of this host may read it. Raises OSError."""
    return bool(file.stat().st_mode & stat.S_IROTH)
