"""Pages that wait on a Redis or Valkey server to be rendered by processes that do nothing else.

Two sorted sets per line: what waits, by the time at which it was put there, and what is being
done, by the time at which somebody else may do it. All times are the server's, in microseconds.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Sequence

from .announcements import Channel
from .coordination import ABANDONED
from .coordination import CLAIM
from .coordination import MAX_JOBS

#: Seconds after which a line to which nothing was added is forgotten.
FORGOTTEN = 3600

# KEYS: line, jobs being done. Whatever else is under their names makes way.
_OPENING = """
for number = 1, 2 do
    local kind = redis.call('TYPE', KEYS[number]).ok
    if kind ~= 'none' and kind ~= 'zset' then redis.call('DEL', KEYS[number]) end
end
local time = redis.pcall('TIME')
-- Of a user who may not ask: there are no jobs.
if time.err then return 0 end
local now = time[1] * 1000000 + time[2]
"""

# KEYS: further, who serves. ARGV: job, how many there may be, seconds until the line is
# forgotten, channel. 0 if nobody serves.
_PUT = f"""
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
{_OPENING}
if redis.call('ZSCORE', KEYS[1], ARGV[1]) or redis.call('ZSCORE', KEYS[2], ARGV[1])
    or redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 1 end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.pcall('PUBLISH', ARGV[4], '')
return 1
"""

# ARGV: seconds for which it is the caller's, seconds until the line is forgotten. A job, or nil.
_TAKE = f"""
{_OPENING}
local job = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)[1]
    or redis.call('ZPOPMIN', KEYS[1])[1]
if not job then return false end
redis.call('ZADD', KEYS[2], now + ARGV[1] * 1000000, job)
redis.call('EXPIRE', KEYS[2], ARGV[2])
return job
"""

# ARGV: seconds for which it is the caller's from now on, job.
_KEEP = f"""
{_OPENING}
return redis.call('ZADD', KEYS[2], 'XX', now + ARGV[1] * 1000000, ARGV[2])
"""

# ARGV: job.
_DONE = f"""
{_OPENING}
return redis.call('ZREM', KEYS[2], ARGV[1])
"""


class RedisJob:
    """A job that this process does, as long as it says so."""

    def __init__(self, data: bytes, call: Callable[..., t.Any]) -> None:
        self.data = data
        self._call = call

    def keep(self) -> None:
        self._call(_KEEP, CLAIM, self.data)

    def done(self) -> None:
        self._call(_DONE, self.data)


class RedisJobs:
    """Lines of jobs on a server.

    :param call: runs a script there.
    :param prefix: of keys.
    :param database: channels know none.
    """

    def __init__(
        self, client: t.Any, call: Callable[..., t.Any], prefix: str, database: object
    ) -> None:
        self._client = client
        self._run = call
        self._prefix = prefix
        self._database = database
        self._channels: dict[str, Channel] = {}

    def _call(self, script: str, line: str, *args: object) -> t.Any:
        return self._run(script, self._keys(line), *args)

    def _keys(self, line: str) -> Sequence[str]:
        return [f"{self._prefix}{line}{part}" for part in ("", ":doing", ":served")]

    def _channel(self, line: str) -> str:
        return f"{self._prefix}{line}:{self._database}"

    def put(self, line: str, data: bytes) -> bool:
        return bool(self._call(_PUT, line, data, MAX_JOBS, FORGOTTEN, self._channel(line)))

    def take(self, line: str) -> RedisJob | None:
        data = self._call(_TAKE, line, CLAIM, FORGOTTEN)
        if not isinstance(data, bytes):
            return None
        return RedisJob(data, lambda script, *args: self._call(script, line, *args))

    def wait(self, line: str, seconds: float) -> None:
        channel = self._channels.get(line)
        if channel is None:
            channel = self._channels[line] = Channel(self._client, self._channel(line))
        channel.open()
        channel.next(seconds)

    def serve(self, line: str) -> None:
        self._client.set(self._keys(line)[2], b"1", ex=ABANDONED)
