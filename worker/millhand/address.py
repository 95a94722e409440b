"""How one is let in at Redis and at the model: what the configuration and the files that it names say of that.

The address of Redis holds the password. It goes from here to `stream.connect` and nowhere else; `told` may be told.
"""

import ssl
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from millhand.config import EMBEDDED, Model, Redis
from millhand.errors import Unusable
from millhand.secret import is_public, secret_in

HIDDEN = "***"
TLS = "rediss"


def redis_address(redis: Redis) -> str:
    """Return redis.url with the password and the TLS files in it, as `connect` takes it.

    Raises Unusable where a file cannot be used, or the password's can be read by everybody. The embedded server's
    address is as it is: it listens on loopback and has no password.
    """
    if redis.url == EMBEDDED:
        return redis.url
    try:
        parts = urlsplit(redis.url)
    except ValueError:  # whose words may hold a part of the password
        raise Unusable("redis.url is no address of a Redis") from None
    login, at, place = parts.netloc.rpartition("@")
    password = secret_in(redis.password_file, "redis.password_file") if redis.password_file else redis.password
    if password:
        login, at = f"{login.partition(':')[0]}:{quote(password, safe='')}", "@"
    query = urlencode(_tls_options(redis)) if parts.scheme == TLS else parts.query
    return f"{parts.scheme}://{login}{at}{place}{parts.path}{'?' if query else ''}{query}"


def model_authorization(model: Model) -> dict[str, str]:
    """Return the header by which a protected model server lets us in, if there is a token for it. Raises Unusable."""
    if not model.token_file or model.url == EMBEDDED:
        return {}
    return {"Authorization": f"Bearer {secret_in(model.token_file, 'model.token_file')}"}


def told(url: str) -> str:
    """Return an address as it may be shown: without user name, password and options."""
    scheme, separator, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{f'{HIDDEN}@' if at else ''}{place.partition('?')[0]}"


@cache
def tls_context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """Return how to speak TLS: only with a server whose certificate names its host and comes from this CA.

    Without one, from a CA that the system trusts. Raises OSError.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file:
        context.load_cert_chain(cert_file, key_file, password="")  # "": nobody is asked for one
    return context


def refusal_of_tls(error: BaseException | None) -> str | None:
    """Return what must be changed so that a TLS connection comes about, if that is why there is none."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {error.verify_message}; see redis.tls_ca_file and redis.url"
        if isinstance(error, ssl.SSLError) and (remedy := _REMEDIES.get(getattr(error, "reason", ""))):
            return f"no TLS connection comes about: {remedy}"
        error = error.__cause__ or error.__context__
    return None


_OWN_CERTIFICATE = (
    "the server wants a certificate of ours that it knows; see redis.tls_cert_file and redis.tls_key_file"
)
_REMEDIES = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS on this port; see redis.url",
    "RECORD_LAYER_FAILURE": "the server does not speak TLS on this port; see redis.url",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _OWN_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": _OWN_CERTIFICATE,
    "SSLV3_ALERT_BAD_CERTIFICATE": _OWN_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _OWN_CERTIFICATE,
}


def _tls_options(redis: Redis) -> dict[str, str]:
    """Return redis-py's options for the files, after looking into each."""
    ca_file, cert_file, key_file = (
        str(Path(file).expanduser()) if file else None
        for file in (redis.tls_ca_file, redis.tls_cert_file, redis.tls_key_file)
    )
    for key, files in (
        (f"redis.tls_ca_file: {ca_file}", (ca_file, None, None)),
        (f"redis.tls_cert_file, redis.tls_key_file: {cert_file}, {key_file}", (ca_file, cert_file, key_file)),
    ):
        try:
            tls_context(*files)
        except ssl.SSLError as error:
            raise Unusable(
                f"{key} will not do: {error.reason or error}; it must be PEM, and the key without a password"
            ) from error
        except OSError as error:
            raise Unusable(f"{key} cannot be read: {error.strerror}") from error
    if key_file and is_public(Path(key_file)):
        raise Unusable(f"redis.tls_key_file: {key_file} can be read by everybody on this host: chmod o-r {key_file}")
    options = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
    return {name: file for name, file in options.items() if file}
