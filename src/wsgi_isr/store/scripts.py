"""What has to be one step on a Redis or Valkey server, in the language of its scripts.

The order of renders and invalidations is in two keys, which are lost together or not at all:

``clock``   a hash: lineage, the last number given, how many pages were stored, the floor below
            which labels were forgotten, and how many entries ``labels`` has to have
``labels``  a sorted set: the number of the last invalidation of each label, once as ``s`` and the
            label (any), once as ``h`` and the label (hard)

Neither has a time to live, so that ``volatile-*`` policies spare them. Under ``allkeys-*`` either
may be evicted; the count of entries shows that, and a new lineage begins.

A server that was restarted may have lost its last seconds or minutes, and so may a replica that
takes over; both have another ``run_id``. Numbers then go on far above those that may have been
given before, and the first process that had seen a later number than the server came back with
begins a new lineage: nobody knows what was invalidated in between.
"""

from __future__ import annotations

import hashlib
import typing as t
from collections.abc import Sequence

from .clients import told_apart

#: Entries are compared by their length and this many bytes: checksum and nearly always the head.
HEAD = 4096

# KEYS: clock, labels. ARGV: channel, a token for a new lineage, then what the caller knows:
# lineage, the last number he has seen, the server's run.
_OPENING = """
local clock, labels = KEYS[1], KEYS[2]
local channel, token, lineage, seen, run = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local function begin(now)
    redis.call('DEL', clock, labels)
    redis.call('HSET', clock, 'lineage', token, 'run', now, 'before', '', 'resumed', 0,
        'sequence', 0, 'stores', 0, 'floor', 0, 'hard', 0, 'entries', 0)
    redis.pcall('PUBLISH', channel, 'i')
end

-- A user who may not ask has an error here, and does without.
local info = redis.pcall('INFO', 'server')
local now = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local state = redis.call('HMGET', clock, 'lineage', 'entries', 'run', 'before', 'resumed',
    'sequence')
if not (state[1] and state[6]) or tonumber(state[2]) ~= redis.call('ZCARD', labels) then
    begin(now)
else
    if state[3] ~= now then
        -- On a replica that takes no writes this fails, and what it says has to do.
        local noted = redis.pcall('HSET', clock, 'run', now, 'before', state[3],
            'resumed', state[6])
        if type(noted) == 'number' then
            redis.call('HINCRBY', clock, 'sequence', 4294967296)
            state = redis.call('HMGET', clock, 'lineage', 'entries', 'run', 'before', 'resumed',
                'sequence')
        end
    end
    if state[1] == lineage then
        local missed = run ~= state[3] and (run ~= state[4] or seen > tonumber(state[5]))
        if missed or seen > tonumber(state[6]) then begin(now) end
    end
end
"""

# What has changed since the caller last asked; all there is, if that was in another lineage.
_CHANGES = """
state = redis.call('HMGET', clock, 'lineage', 'run', 'sequence', 'stores', 'floor', 'hard')
local from = state[1] == lineage and string.format('(%.0f', seen) or '-inf'
state[7] = redis.call('ZRANGEBYSCORE', labels, from, '+inf', 'WITHSCORES')
return state
"""

SYNC = _OPENING + _CHANGES

#: The number that was taken is the ``sequence`` of the answer.
NUMBER = _OPENING + "redis.call('HINCRBY', clock, 'sequence', 1)" + _CHANGES

# More ARGV: entries at the most, 1 for a hard invalidation, then the labels.
INVALIDATE = (
    _OPENING
    + """
local number = redis.call('HINCRBY', clock, 'sequence', 1)
for index = 8, #ARGV do
    redis.call('ZADD', labels, number, 's' .. ARGV[index])
    if ARGV[7] == '1' then redis.call('ZADD', labels, number, 'h' .. ARGV[index]) end
end
if redis.call('ZCARD', labels) > tonumber(ARGV[6]) then
    -- What is forgotten counts as invalidated, never as valid.
    local last = math.floor(tonumber(ARGV[6]) / 2)
    local oldest = redis.call('ZRANGE', labels, 0, last, 'WITHSCORES')
    redis.call('HSET', clock, 'floor', oldest[#oldest])
    for index = 1, #oldest, 2 do
        if string.sub(oldest[index], 1, 1) == 'h' then
            redis.call('HSET', clock, 'hard', oldest[index + 1])
        end
    end
    redis.call('ZREMRANGEBYRANK', labels, 0, last)
end
redis.call('HSET', clock, 'entries', redis.call('ZCARD', labels))
redis.pcall('PUBLISH', channel, string.format('i%.0f', number))
"""
    + _CHANGES
)

# A page in place of the very bytes that the caller has judged. Not WATCH and MULTI, which take
# two round trips more and a connection of their own.
# KEYS: page, clock, pages of its path. ARGV: channel, who and the page's name, lineage, length and
# first bytes of what is there, what shall be there, seconds to keep it, half of the page's name.
# -1: the lineage is another one. 0: other bytes.
SWAP = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
if redis.call('HGET', KEYS[2], 'lineage') ~= ARGV[3] then return -1 end
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[4])
    or redis.call('GETRANGE', KEYS[1], 0, #ARGV[5] - 1) ~= ARGV[5] then return 0 end
redis.call('SET', KEYS[1], ARGV[6], 'EX', ARGV[7])
redis.pcall('ZADD', KEYS[3], 0, ARGV[8])
redis.pcall('EXPIRE', KEYS[3], ARGV[7])
local stored = redis.call('HINCRBY', KEYS[2], 'stores', 1)
redis.pcall('PUBLISH', ARGV[1], string.format('s%.0f %s', stored, ARGV[2]))
return stored
"""

# KEYS: page, clock, pages of its path. ARGV: channel, who and the page's name, half of that.
REMOVE = """
redis.call('DEL', KEYS[1])
redis.pcall('ZREM', KEYS[3], ARGV[3])
local stored = redis.call('HINCRBY', KEYS[2], 'stores', 1)
redis.pcall('PUBLISH', ARGV[1], string.format('s%.0f %s', stored, ARGV[2]))
return stored
"""

# The pages of a path that are still there: the server may have evicted some. They are in a sorted
# set, by the second half of their names: a small one of members up to 64 bytes takes least memory.
# KEYS: pages of the path. ARGV: what their keys begin with.
SIBLINGS = """
local found = {}
local names = redis.pcall('ZRANGE', KEYS[1], 0, -1)
if names.err then return found end
for _, name in ipairs(names) do
    if redis.call('EXISTS', ARGV[1] .. name) == 1 then
        table.insert(found, name)
    else
        redis.pcall('ZREM', KEYS[1], name)
    end
end
return found
"""

# KEYS: lease. ARGV: token, milliseconds, 1 for a demanded render. The token of who has it, or nil.
ACQUIRE = """
local held = redis.call('GET', KEYS[1])
-- A lease of ours lapses; whatever does not is none.
if held and redis.call('PTTL', KEYS[1]) > 0
    and (ARGV[3] == '0' or string.sub(held, -1) == '1') then
    return string.match(held, '^[^|]*')
end
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. ARGV[3], 'PX', ARGV[2])
return false
"""

# KEYS: lease. ARGV: what it holds if it is still the caller's, milliseconds.
EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: lease, outcome. ARGV: what the lease holds if it is still the caller's, then if there is
# an outcome for those who waited: its bytes, milliseconds.
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
return redis.call('DEL', KEYS[1])
"""

# KEYS: builds. ARGV: a build, how many are remembered. All of them, in their order.
BUILDS = """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
    redis.call('ZADD', KEYS[1], (last[2] or 0) + 1, ARGV[1])
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""


class Runner:
    """Runs scripts on a server.

    :param client: of redis-py or valkey-py.
    """

    def __init__(self, client: t.Any) -> None:
        self._client = client
        #: Digests of the scripts that the server has got.
        self._digests: dict[str, str] = {}

    def __call__(self, script: str, keys: Sequence[str], *args: object) -> t.Any:
        # Not by register_script, which takes three round trips where the server has not got it.
        digest = self._digests.get(script)
        with told_apart():
            if digest is not None:
                try:
                    return self._client.evalsha(digest, len(keys), *keys, *args)
                except Exception as error:
                    if type(error).__name__ != "NoScriptError":
                        raise
            answer = self._client.eval(script, len(keys), *keys, *args)
        self._digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        return answer
