"""What a person may do where Redis does not do as asked."""

from redis import exceptions

from millhand.address import refusal_of_tls

_BY_CLASS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.NoPermissionError, "grant it to the user in redis.url; conf/users.acl has what the fleet needs"),
    (exceptions.AuthenticationError, "see the user in redis.url, and redis.password"),
    (exceptions.OutOfMemoryError, "raise maxmemory, or make room: what is enriched and read may be trimmed"),
    (exceptions.ReadOnlyError, "see redis.url: it leads to a replica"),
    (exceptions.BusyLoadingError, "nothing: it loads its data, and will be ready by itself"),
    (exceptions.MaxConnectionsError, "raise maxclients"),
    (exceptions.TimeoutError, "see whether it is paused, busy or cut off; one without TLS does not answer rediss://"),
    (exceptions.ConnectionError, "start it, or set redis.url; one with TLS wants rediss://"),
)
_BY_WORD = {
    "MISCONF": "see its own log: it cannot write to its disk",
    "NOGROUP": "nothing: the janitor puts the group back",
    "UNBLOCKED": "nothing: the janitor puts the group back",
    "NOREPLICAS": "start its replicas: min-replicas-to-write asks for them",
    "WRONGTYPE": "rename or delete what stands there: a key of the fleet holds something else",
    "BUSY": "wait until its script ends, or SCRIPT KILL it",
    "CLUSTERDOWN": "see its cluster",
}
_ELSE = "see redis.url, and the log of Redis"


def remedy_for(error: BaseException) -> str:
    """Return what to do, in one clause."""
    if refusal := refusal_of_tls(error):
        return refusal
    if word := _BY_WORD.get(str(error).partition(" ")[0]):
        return word
    return next((remedy for kind, remedy in _BY_CLASS if isinstance(error, kind)), _ELSE)
