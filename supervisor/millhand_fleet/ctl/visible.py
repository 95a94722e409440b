"""Foreign text as a terminal may be given it."""


def visible(value: bytes) -> str:
    """Return bytes as text of one line: what is no UTF-8, or not printable, is escaped with backslashes."""
    text = value.decode(errors="backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
