"""What an error of Redis means for a command: may it succeed later, or is the value refused for good?"""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_OF_THE_VALUE = frozenset({"ERR", "WRONGTYPE"})
"""The codes of Redis for a command that it will refuse each time. redis-py leaves ``ERR`` out of the text."""


def is_temporary(error: RedisError) -> bool:
    """Whether the same command may succeed once the server is well again.

    True for a server that does not answer, and for each state in which it refuses commands of all jobs: out
    of memory, its disk is full, it loads or is a replica, it runs a long script, the password is wrong. False
    if the server, or the client library, refuses this very value.
    """
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return True
    if isinstance(error, DataError):
        return False
    if type(error) is not ResponseError:
        # OOM, READONLY, NOPERM, CLUSTERDOWN, …: redis-py has a class for each of these states.
        return True
    # MISCONF, BUSY, NOREPLICAS, …: a code in capitals, without a class. Other texts are those of ERR.
    code = str(error).partition(" ")[0]
    return code.isalpha() and code.isupper() and code not in _OF_THE_VALUE
