"""The users of `conf/users.acl`, with passwords of a test's own."""

import re
from hashlib import sha256
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
USERS = CONF / "users.acl"
CONFIGURATION = CONF / "redis.conf"
_PLACE = re.compile(r"^(user (\w+) on) #sha256-of-the-\w+-password ", re.MULTILINE)


def password_of(user: str) -> str:
    """Return a user's password in the tests."""
    return f"password of {user}"


def with_passwords(text: str) -> str:
    """Return the file's text with the tests' passwords in their places, and nothing else changed."""
    return _PLACE.sub(lambda line: f"{line[1]} #{sha256(password_of(line[2]).encode()).hexdigest()} ", text)


def write_users(folder: Path) -> dict[str, str]:
    """Write the file for a server; return the directive that names it."""
    file = folder / "users.acl"
    file.write_text(with_passwords(USERS.read_text(encoding="utf-8")), encoding="utf-8")
    return {"aclfile": str(file)}


def address_of(user: str, url: str) -> str:
    """Return a server's address with a user's name in it; the password goes its own way."""
    return url.replace("redis://", f"redis://{user}@")
