-- Whatever has to be one step on a Redis or Valkey server. The first argument names the step.
--
-- All keys of a site are on one node of a cluster. These have no time to live, so that `volatile-*`
-- policies spare them:
--
--   clock     hash: lineage, the last number, that of the last invalidation, ...
--   order     sorted set: labels by the number of their last invalidation, as "sLABEL" for one
--             that made pages stale, as "hLABEL" for one that expired them
--   patterns  the same of patterns, which processes match
--   pages     sorted set, the index: each page as "nNAME" and as "pPATH\0NAME"
--
-- Where the server evicted one of the first three, a new lineage begins. Where it evicted the
-- index, pages are missing: their keys have its name in them.
--
-- A server that was restarted may have lost its last writes, and so may a replica that takes over;
-- both have another `run_id`. Numbers then go on far above those that may have been given before,
-- and the first process that has seen a later number than the server begins a new lineage.

local clock, root = KEYS[1], string.sub(KEYS[1], 1, -6)
-- A new name, what the process has seen of the order, and the number up to which it has patterns.
local token, lineage, run = ARGV[2], ARGV[3], ARGV[4]
local seen, matched = tonumber(ARGV[5]), tonumber(ARGV[6])
local order, patterns, pages = root .. 'order', root .. 'patterns', root .. 'pages'
-- A member of `order` and `patterns`, which are never empty.
local LAYOUT = '!3'
local ordered, steps, state, index = {}, {}

local function text(number) return string.format('%.0f', number) end

-- Milliseconds since 1970.
function steps.time()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Run a command; what is of another type under our name makes way.
local function call(command, key, ...)
    local done = redis.pcall(command, key, ...)
    if type(done) ~= 'table' or not done.err then return done end
    if string.find(done.err, 'WRONGTYPE') then redis.call('UNLINK', key) end
    return redis.call(command, key, ...)
end

function steps.call(command, name, ...) return call(command, root .. name, ...) end

-- What the server says of itself; nothing where this user may not ask.
function steps.info(section)
    local info = redis.pcall('INFO', section)
    return type(info) == 'string' and info or ''
end

-- The state of the order.

local function read()
    state = {lineage = '', run = '', before = '', cursor = ''}
    local got = call('HGETALL', clock)
    for place = 1, #got, 2 do state[got[place]] = got[place + 1] end
    local sound = string.match(state.lineage, '^%x+$') and call('ZSCORE', order, LAYOUT)
        and call('ZSCORE', patterns, LAYOUT)
    for _, name in ipairs({'sequence', 'changed', 'floor', 'stores', 'resumed'}) do
        local digits = string.match(state[name] or '0', '^%d+$') or ''
        state[name], sound = tonumber(digits) or 0, sound and digits ~= '' and #digits < 16
    end
    if not sound then state.lineage = '' end
    if not string.match(state.cursor, '^%d+ [%[(]') then state.cursor = '' end
end

-- A full server or a replica refuses; pages then count as stale.
local function begin(now)
    redis.pcall('UNLINK', clock, order, patterns)
    for _, key in ipairs({order, patterns}) do redis.pcall('ZADD', key, 0, LAYOUT) end
    redis.pcall('HSET', clock, 'lineage', token, 'run', now)
    read()
end

-- `ask`: for the server's run, which takes longer than all else here.
local function open(ask)
    read()
    local now = ask and (string.match(steps.info('server'), 'run_id:(%x+)') or '') or state.run
    if state.lineage == '' then return begin(now) end
    if state.run ~= now then
        local noted = redis.pcall('HSET', clock, 'run', now, 'before', state.run,
            'resumed', state.sequence)
        if type(noted) == 'number' then
            redis.call('HINCRBY', clock, 'sequence', 4294967296)
            read()
        end
    end
    local missed = run ~= state.run and (run ~= state.before or seen > state.resumed)
    if state.lineage == lineage and (missed or seen > state.sequence) then begin(now) end
end

-- Labels and the numbers of their last invalidations after a number, at most so many.
local function since(key, number, most)
    return call('ZRANGEBYSCORE', key, '(' .. text(number), state.sequence, 'WITHSCORES', 'LIMIT',
        0, most)
end

-- A result with the order as it is now, and the patterns that the process does not have.
local function answer(result)
    return {result or false, state.lineage, state.run, state.sequence, state.changed, state.stores,
        state.cursor, since(patterns, state.lineage == lineage and matched or 0, -1)}
end

-- Steps that depend on the order: their result goes out with the order as it then is.

function ordered.look() end
function ordered.number() state.sequence = redis.call('HINCRBY', clock, 'sequence', 1) end

function ordered.changes(its_lineage, number, most)
    number = tonumber(number)
    if its_lineage ~= state.lineage or number < state.floor then return end
    return {since(order, number, most), since(patterns, number, most)}
end

function ordered.invalidate(expire, max_labels, max_patterns, ...)
    local number = redis.call('HINCRBY', clock, 'sequence', 1)
    redis.call('HSET', clock, 'changed', number)
    state.sequence, state.changed = number, number
    for _, label in ipairs({...}) do
        local key = string.sub(label, 1, 8) == 'pattern:' and patterns or order
        redis.call('ZADD', key, number, (expire == '1' and 'h' or 's') .. label)
    end
    -- Where there are too many, the older half is applied to the pages that have them, in small
    -- steps, and forgotten. A page that is put later with a number from before counts as stale.
    for key, most in pairs({[order] = tonumber(max_labels), [patterns] = tonumber(max_patterns)}) do
        local count = redis.call('ZCARD', key)
        if state.cursor == '' and count > most then
            local rank = count - math.floor(most / 2)
            state.floor = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')[2]
            state.cursor = state.floor .. ' [n'
            redis.call('HSET', clock, 'floor', state.floor, 'cursor', state.cursor)
        end
    end
end

-- Pages.

-- What was stored with a page, a line each: number, lineage, path, build, whether gone, labels.
local function meta_of(lines)
    local meta = {}
    for line in string.gmatch(lines or '', '([^\n]*)\n') do meta[#meta + 1] = line end
    meta.sequence, meta.lineage, meta.path = tonumber(meta[1]), meta[2], meta[3]
    return meta.sequence and #meta > 4 and #meta < 3000 and meta
end

-- The numbers of the last invalidation of a page's labels, and of the last hard one.
local function last_of(meta, stale, expired)
    local any, hard, keys = 0, 0, {LAYOUT, LAYOUT}
    if meta.lineage == state.lineage then
        if meta.sequence >= state.changed then return {0, 0} end
        any, hard = tonumber(stale) or 0, tonumber(expired) or 0
    end
    for place = 6, #meta do
        keys[#keys + 1], keys[#keys + 2] = 's' .. meta[place], 'h' .. meta[place]
    end
    for place, number in ipairs(call('ZMSCORE', order, unpack(keys))) do
        any = math.max(any, number or 0)
        if place % 2 == 0 then hard = math.max(hard, number or 0) end
    end
    return {any, hard}
end

local function key_of(name)
    index = index or string.match(call('ZRANGE', pages, 0, 0)[1] or '', '^!(%x+)$')
    if not index then
        index = token
        redis.pcall('UNLINK', pages)
        redis.pcall('ZADD', pages, 0, '!' .. index)
    end
    return root .. 'page:' .. index .. ':' .. name
end

local function name_of(member)
    return string.match(member, '^n(.*)$') or string.match(member, '%z(.*)$')
end

-- A page: its last invalidations, its last use and one more field; nothing where it is missing or
-- damaged.
local function page_at(name, field)
    local got = call('HMGET', key_of(name), 'meta', 'stale', 'expired', 'head', 'used', field)
    local meta = meta_of(got[1])
    if meta and got[4] and got[6] then
        return {got[1], last_of(meta, got[2], got[3]), got[4], tonumber(got[5]) or 0, got[6]}
    end
end

function ordered.get(name) return page_at(name, 'body') end

function ordered.put(name, lines, head, body, seconds)
    local key, mine = key_of(name), meta_of(lines)
    local there, ours = meta_of(call('HGET', key, 'meta')) or {}, mine.lineage == state.lineage
    if there.lineage == state.lineage and not ours
        or there.lineage == mine.lineage and there.sequence > mine.sequence then
        return
    end
    local stale = ours and mine.sequence < state.floor and state.floor or 0
    redis.call('ZADD', pages, 0, 'n' .. name, 0, 'p' .. mine.path .. '\0' .. name)
    redis.call('HSET', key, 'meta', lines, 'stale', stale, 'expired', 0, 'used', steps.time(),
        'head', head, 'body', body)
    redis.call('EXPIRE', key, seconds)
    -- The index is not evicted: each stored page has a few others checked.
    for _, member in ipairs(redis.call('ZRANDMEMBER', pages, 6)) do
        local other = name_of(member)
        if other and call('EXISTS', key_of(other)) == 0 then redis.call('ZREM', pages, member) end
    end
    state.stores = redis.call('HINCRBY', clock, 'stores', 1)
    return last_of(mine, stale, 0)
end

function ordered.delete(...)
    local removed = 0
    for _, name in ipairs({...}) do
        local meta = meta_of(call('HGET', key_of(name), 'meta'))
        if meta then redis.call('ZREM', pages, 'n' .. name, 'p' .. meta.path .. '\0' .. name) end
        removed = removed + redis.call('UNLINK', key_of(name))
    end
    state.stores = redis.call('HINCRBY', clock, 'stores', 1)
    return removed
end

-- Where to go on, and some pages with the time of their last use, and their bytes. The server's own
-- idea of use counts listing. What is no page any more leaves the index.
function ordered.list(from, to, limit)
    local members, rows = call('ZRANGEBYLEX', pages, from, to, 'LIMIT', 0, limit), {}
    for _, member in ipairs(members) do
        local name = name_of(member) or ''
        local page = page_at(name, 'used')
        if page then
            local size = #page[3] + redis.call('HSTRLEN', key_of(name), 'body')
            rows[#rows + 1] = {name, page[1], page[2], page[3], page[4], size}
        else
            redis.pcall('UNLINK', key_of(name))
            redis.pcall('ZREM', pages, member)
        end
    end
    return {#members == tonumber(limit) and '(' .. members[#members] or '', rows}
end

-- What old labels made of the pages of a list, unless another process was here first. The cursor
-- has the number of the last of these labels, too: no list from before it counts.
function ordered.fold(from, to, ...)
    if state.cursor ~= from then return end
    local given = {...}
    for place = 1, #given, 4 do
        local name, meta, any, hard = unpack(given, place, place + 3)
        local key = key_of(name)
        if call('HGET', key, 'meta') == meta then
            redis.call('HSET', key, 'stale', any, 'expired', hard)
        end
    end
    for _, key in ipairs(to == '' and {order, patterns} or {}) do
        -- A few at a time, too: all pages are behind us.
        local old = redis.call('ZRANGEBYSCORE', key, '(0', state.floor, 'LIMIT', 0, 500)
        if #old > 0 then
            redis.call('ZREM', key, unpack(old))
            to = '(o'
        end
    end
    state.cursor = to ~= '' and text(state.floor) .. ' ' .. to or ''
    redis.call('HSET', clock, 'cursor', state.cursor)
end

function steps.used(...)
    for _, name in ipairs({...}) do
        local key = key_of(name)
        if call('HEXISTS', key, 'used') == 1 then call('HSET', key, 'used', steps.time()) end
    end
end

-- Renders.

-- The key of the lease of a page, who has it, and whether their render was demanded.
local function lease_of(name)
    local key = root .. 'lease:' .. name
    return key, string.match(call('GET', key) or '', '^([^|]*)|(.)$')
end

function steps.lease(name, mine, term, demanded)
    local key, theirs, is_demanded = lease_of(name)
    -- A lease of ours lapses; what does not is none. A client that tries again finds its own.
    if theirs and theirs ~= mine and redis.call('PTTL', key) > 0
        and (demanded == '0' or is_demanded == '1') then
        return theirs
    end
    redis.call('SET', key, mine .. '|' .. demanded, 'PX', term)
    return false
end

function steps.extend(name, mine, term)
    local key, theirs = lease_of(name)
    return theirs == mine and redis.call('PEXPIRE', key, term) or 0
end

function steps.release(name, mine, term, outcome)
    local key, theirs = lease_of(name)
    if theirs == mine then redis.call('DEL', key) end
    if outcome then redis.call('SET', root .. 'outcome:' .. mine, outcome, 'PX', term) end
end

-- Tables: a hash of values by name, and a sorted set of the names by time.
local function set(kind, name, value, time)
    call('HSET', root .. kind, name, value)
    call('ZADD', root .. kind .. ':times', time, name)
end

function steps.unset(kind, ...)
    call('HDEL', root .. kind, ...)
    call('ZREM', root .. kind .. ':times', ...)
end

function steps.set(kind, most, name, value)
    set(kind, name, value, steps.time())
    local oldest = redis.call('ZRANGE', root .. kind .. ':times', 0, -1 - most)
    if #oldest > 0 then steps.unset(kind, unpack(oldest)) end
end

-- Values that were set in the last so many milliseconds.
function steps.recent(kind, term)
    local from = '(' .. text(steps.time() - term)
    local names = call('ZRANGEBYSCORE', root .. kind .. ':times', from, '+inf')
    return #names > 0 and call('HMGET', root .. kind, unpack(names)) or {}
end

-- A wanted page has the time from which it may be taken.
function steps.want(build, name, data, most)
    local times = root .. 'wanted:' .. build .. ':times'
    if call('EXISTS', root .. 'serving:' .. build) == 0 then return 0 end
    if call('ZCARD', times) < tonumber(most) and not redis.call('ZSCORE', times, name) then
        set('wanted:' .. build, name, data, steps.time())
    end
    return 1
end

function steps.take(build, term, serving)
    local wanted, now = 'wanted:' .. build, steps.time()
    redis.call('SET', root .. 'serving:' .. build, 1, 'PX', serving)
    for _, name in ipairs(call('ZRANGEBYSCORE', root .. wanted .. ':times', '-inf', now)) do
        local data = call('HGET', root .. wanted, name)
        if not data then
            steps.unset(wanted, name)
        elseif call('EXISTS', root .. 'lease:' .. name) == 0 then
            set(wanted, name, data, now + term)
            return {name, data}
        end
    end
    return false
end

function steps.builds(build, most)
    local builds = root .. 'builds'
    if not call('LPOS', builds, build) then
        redis.call('LPUSH', builds, build)
        redis.call('LTRIM', builds, 0, most - 1)
    end
    return redis.call('LRANGE', builds, redis.call('LPOS', builds, build) + 1, -1)
end

function steps.add(...)
    local totals, given = root .. 'totals', {...}
    for place = 1, #given, 2 do
        local name, number = given[place], given[place + 1]
        if not pcall(call, 'HINCRBYFLOAT', totals, name, number) then
            call('HSET', totals, name, number)
        end
    end
    local minute = root .. 'minute:' .. math.floor(steps.time() / 60000)
    if redis.call('COPY', totals, minute) == 1 then redis.call('EXPIRE', minute, 7200) end
end

function steps.minutes(most)
    local now, found = math.floor(steps.time() / 60000), {}
    for minute = now - most + 1, now do
        local totals = call('HGETALL', root .. 'minute:' .. minute)
        if #totals > 0 then found[#found + 1] = {minute, totals} end
    end
    return found
end

local step = ARGV[1]
if steps[step] then return steps[step](unpack(ARGV, 7)) end
open(step == 'number' or step == 'changes' or step == 'invalidate')
return answer(ordered[step](unpack(ARGV, 7)))
