-- Whatever has to be one step on a Redis or Valkey server. The first argument names the step.
--
-- All keys of a site begin with one hash tag, so that in a cluster they are on one node. Those of
-- the order have no time to live, so that `volatile-*` policies spare them:
--
--   clock     hash: lineage, the last number, that of the last invalidation, ..., and `counts`
--   order     sorted set: labels by the number of their last invalidation
--   hard      sorted set: labels by the number of the last one that expired pages
--   patterns  sorted set: labels of `order` that are patterns; processes match them
--   pages     sorted set: each page as "nNAME\0PATH" and as "pPATH\0NAME"
--   page:*    hash: a page, with the numbers of invalidations that were applied to it
--
-- Where the server evicted one of them, `counts` differs, and a new lineage begins.
--
-- A server that was restarted may have lost its last writes, and so may a replica that takes over;
-- both have another `run_id`. Numbers then go on far above those that may have been given before,
-- and the first process that has seen a later number than the server begins a new lineage.

local clock, root = KEYS[1], string.sub(KEYS[1], 1, -6)
local token, lineage, seen, run = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local channel, me = ARGV[6], ARGV[7]
local order, hard, patterns = root .. 'order', root .. 'hard', root .. 'patterns'
local pages = root .. 'pages'
local FIELDS = {'labels', 'sequence', 'lineage', 'build', 'path', 'gone', 'stale', 'expired'}
local NUMBERS = {'sequence', 'changed', 'patterned', 'floor', 'fold', 'stores', 'resumed'}
local LAYOUT = '2'
local state
local steps = {}

local function text(number) return string.format('%.0f', number) end

local function announce(message) redis.pcall('PUBLISH', channel, message) end

local function milliseconds()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whatever is not of its type under our name makes way.
local function ours(name, kind)
    local key = root .. name
    local there = redis.call('TYPE', key).ok
    if there ~= kind and there ~= 'none' then redis.call('DEL', key) end
    return key
end

-- The state of the order.

local function count(key)
    local found = redis.pcall('ZCARD', key)
    return type(found) == 'number' and found or 'x'
end

local function counts()
    return table.concat({count(order), count(hard), count(patterns), count(pages)}, ':')
end

local function seal() redis.call('HSET', clock, 'counts', counts()) end

local function read()
    local got = redis.pcall('HGETALL', clock)
    state = {lineage = '', run = '', before = '', cursor = ''}
    for place = 1, #got, 2 do state[got[place]] = got[place + 1] end
    state.sound = state.layout == LAYOUT and string.match(state.lineage, '^%x+$')
    for _, name in ipairs(NUMBERS) do
        state[name] = tonumber(state[name])
        state.sound = state[name] and state.sound
        state[name] = state[name] or 0
    end
    if not state.sound then state.lineage = '' end
end

-- A full server or a replica refuses; pages then count as stale.
local function begin(now)
    redis.pcall('UNLINK', clock, order, hard, patterns)
    if count(pages) == 'x' then redis.pcall('UNLINK', pages) end
    for _, name in ipairs(NUMBERS) do redis.pcall('HSET', clock, name, 0) end
    redis.pcall('HSET', clock, 'lineage', token, 'run', now, 'layout', LAYOUT, 'counts', counts())
    announce('i')
    read()
    if state.counts ~= counts() then state.lineage = '' end
end

-- `ask`: for the server's run, which takes longer than all else here.
local function open(ask)
    read()
    local now = state.run
    if ask then
        -- A user who may not ask has an error here, and does without.
        local info = redis.pcall('INFO', 'server')
        now = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
    end
    if not state.sound or state.counts ~= counts() then return begin(now) end
    if state.run ~= now then
        local noted = redis.pcall('HSET', clock, 'run', now, 'before', state.run,
            'resumed', text(state.sequence))
        if type(noted) == 'number' then
            redis.call('HINCRBY', clock, 'sequence', 4294967296)
            read()
        end
    end
    if state.lineage == lineage then
        local missed = run ~= state.run and (run ~= state.before or seen > state.resumed)
        if missed or seen > state.sequence then begin(now) end
    end
end

local function answer(result)
    return {result or false, state.lineage, state.run, text(state.sequence), text(state.changed),
        text(state.patterned), text(state.stores), state.fold}
end

-- The numbers of the last invalidation of a page's labels, and of the last hard one.
local function last_of(page)
    if page[3] == state.lineage and (tonumber(page[2]) or 0) >= state.changed then return {0, 0} end
    local last, found = {0, 0}, {}
    if page[3] == state.lineage then last = {tonumber(page[7]) or 0, tonumber(page[8]) or 0} end
    for label in string.gmatch(page[1], '[^\n]+') do found[#found + 1] = label end
    for first = 1, #found, 500 do
        for place, key in ipairs({order, hard}) do
            local some = {unpack(found, first, math.min(first + 499, #found))}
            for _, number in ipairs(redis.call('ZMSCORE', key, unpack(some))) do
                last[place] = math.max(last[place], number or 0)
            end
        end
    end
    return {text(last[1]), text(last[2])}
end

-- Pages.

local function page_at(name, ...)
    local got = redis.pcall('HMGET', root .. 'page:' .. name, ...)
    return got.err and {} or got
end

local function members_of(name, path)
    return 'n' .. name .. '\0' .. path, 'p' .. path .. '\0' .. name
end

-- Rows of some pages of the index, and where to go on; those that were evicted leave it.
local function walk(from, to, limit, fields, row)
    local members = redis.call('ZRANGEBYLEX', pages, from, to, 'LIMIT', 0, limit)
    local rows, gone = {}, {}
    for _, member in ipairs(members) do
        local name, path = string.match(member, '^n([^%z]*)%z(.*)$')
        if not name then path, name = string.match(member, '^p(.*)%z([^%z]*)$') end
        name, path = name or '', path or ''
        local page = page_at(name, unpack(fields))
        local sound = true
        for place = 1, #fields do sound = sound and page[place] end
        if sound then rows[#rows + 1] = row and row(name, page) else
            gone[#gone + 1], gone[#gone + 2], gone[#gone + 3] = member, members_of(name, path)
        end
    end
    if #gone > 0 and type(redis.pcall('ZREM', pages, unpack(gone))) == 'number' then seal() end
    return {#members == tonumber(limit) and '(' .. members[#members] or '', rows}
end

local function drop(name)
    local path = page_at(name, 'path')[1]
    if path then redis.call('ZREM', pages, members_of(name, path)) end
    return redis.call('UNLINK', root .. 'page:' .. name)
end

local function note_stored(name)
    state.stores = redis.call('HINCRBY', clock, 'stores', 1)
    seal()
    announce('s' .. text(state.stores) .. ' ' .. me .. ' ' .. name)
end

function steps.get(name)
    open(false)
    local page = page_at(name, 'head', 'body', unpack(FIELDS))
    for place = 1, 10 do if not page[place] then return answer() end end
    local fields = {unpack(page, 3)}
    return answer({fields, last_of(fields), page[1], page[2]})
end

function steps.put(name, its_labels, sequence, its_lineage, build, path, gone, head, body, seconds)
    open(false)
    local key = root .. 'page:' .. name
    local there = redis.pcall('HMGET', key, 'lineage', 'sequence')
    if there.err then
        redis.call('UNLINK', key)
        there = {}
    end
    local mine, theirs = its_lineage == state.lineage, there[1] == state.lineage
    if theirs and not mine or there[1] == its_lineage
        and (tonumber(there[2]) or 0) > tonumber(sequence) then return answer() end
    local stale = mine and tonumber(sequence) < state.floor and text(state.floor) or 0
    local by_name, by_path = members_of(name, path)
    redis.call('ZADD', pages, 0, by_name, 0, by_path)
    redis.call('HSET', key, 'labels', its_labels, 'sequence', sequence, 'lineage', its_lineage,
        'build', build, 'path', path, 'gone', gone, 'stale', stale, 'expired', 0,
        'used', milliseconds(), 'head', head, 'body', body)
    redis.call('EXPIRE', key, seconds)
    -- The index is not evicted: each stored page has a few others checked.
    local from = redis.call('HGET', clock, 'swept') or ''
    redis.call('HSET', clock, 'swept', walk(from == '' and '-' or from, '+', 3, {'path'})[1])
    note_stored(name)
    return answer(last_of({its_labels, sequence, its_lineage, build, path, gone, stale, 0}))
end

function steps.delete(...)
    open(false)
    local removed = 0
    for _, name in ipairs({...}) do removed = removed + drop(name) end
    note_stored(select('#', ...) == 1 and ... or '*')
    return answer(removed)
end

-- Remove every page, whether it is in the index or not, a few keys at a time.
function steps.clear(cursor)
    open(false)
    local found = redis.call('SCAN', cursor, 'MATCH', root .. 'page:*', 'COUNT', 50)
    local removed = 0
    for _, key in ipairs(found[2]) do removed = removed + drop(string.sub(key, #root + 6)) end
    if found[1] == '0' and type(redis.call('UNLINK', pages)) == 'number' then seal() end
    note_stored('*')
    return answer({found[1], removed})
end

-- With the time of last use, and the bytes. The server's own idea of use counts listing.
function steps.list(from, to, limit)
    open(false)
    return answer(walk(from, to, limit, {'head', 'used', unpack(FIELDS)}, function(name, page)
        local fields = {unpack(page, 3)}
        local size = #page[1] + redis.call('HSTRLEN', root .. 'page:' .. name, 'body')
        return {name, fields, last_of(fields), page[1], tonumber(page[2]) or 0, size}
    end))
end

function steps.used(...)
    local now = milliseconds()
    for _, name in ipairs({...}) do
        local key = root .. 'page:' .. name
        if redis.pcall('HEXISTS', key, 'used') == 1 then redis.call('HSET', key, 'used', now) end
    end
end

-- The order.

function steps.number()
    open(true)
    state.sequence = redis.call('HINCRBY', clock, 'sequence', 1)
    return answer()
end

function steps.invalidate(expire, max_labels, max_patterns, ...)
    open(true)
    local number = redis.call('HINCRBY', clock, 'sequence', 1)
    state.sequence, state.changed, number = number, number, text(number)
    redis.call('HSET', clock, 'changed', number)
    for _, label in ipairs({...}) do
        redis.call('ZADD', order, number, label)
        if expire == '1' then redis.call('ZADD', hard, number, label) end
        if string.sub(label, 1, 8) == 'pattern:' then
            redis.call('ZADD', patterns, number, label)
            redis.call('HSET', clock, 'patterned', number)
        end
    end
    -- Where there are too many, the older half is applied to the pages that have them, in small
    -- steps, and forgotten. A page that is put later with a number from before counts as stale.
    for key, most in pairs({[order] = tonumber(max_labels), [patterns] = tonumber(max_patterns)}) do
        local rank = redis.call('ZCARD', key) - math.floor(most / 2)
        if state.fold == 0 and rank > most / 2 then
            state.fold = tonumber(redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')[2])
            state.floor = math.max(state.floor, state.fold)
            redis.call('HSET', clock, 'fold', text(state.fold), 'floor', text(state.floor),
                'cursor', '[n')
        end
    end
    seal()
    announce('i' .. number)
    return answer()
end

-- Some pages that old labels were not applied to yet, or none where labels were forgotten.
function steps.fold(limit)
    open(false)
    if state.fold == 0 then return answer() end
    if state.cursor ~= '' then
        local listed = steps.list(state.cursor, '(o', limit)
        listed[1] = {state.cursor, unpack(listed[1])}
        return listed
    end
    local old = redis.call('ZRANGEBYSCORE', order, '-inf', text(state.fold), 'LIMIT', 0, 4 * limit)
    for _, key in ipairs(#old > 0 and {order, hard, patterns} or {}) do
        redis.call('ZREM', key, unpack(old))
    end
    if #old < 4 * limit then
        state.fold = 0
        redis.call('HSET', clock, 'fold', 0)
    end
    seal()
    return answer()
end

-- What was made of those pages, unless another process was here first.
function steps.folded(from, to, ...)
    open(false)
    if state.fold == 0 or state.cursor ~= from then return answer() end
    local given = {...}
    for place = 1, #given, 4 do
        local name, sequence, any, hard = unpack(given, place, place + 3)
        local there = page_at(name, 'sequence', 'lineage')
        if there[1] == sequence and there[2] == state.lineage then
            redis.call('HSET', root .. 'page:' .. name, 'stale', any, 'expired', hard)
        end
    end
    redis.call('HSET', clock, 'cursor', to)
    return answer()
end

-- Labels of the order, or of the patterns, that were invalidated after a number.
local function since(key, number, most)
    local found = redis.call('ZRANGEBYSCORE', key, '(' .. number, '+inf', 'LIMIT', 0, most)
    for place, label in ipairs(found) do
        found[place] = {label, redis.call('ZSCORE', order, label) or 0,
            redis.call('ZSCORE', hard, label) or 0}
    end
    return found
end

function steps.changes(its_lineage, number, most)
    open(true)
    if its_lineage ~= state.lineage or tonumber(number) < state.floor then return answer() end
    local found = since(order, number, most + 1)
    return answer(#found <= tonumber(most) and found)
end

function steps.patterns(its_lineage, number)
    open(false)
    return answer(since(patterns, its_lineage == state.lineage and number or 0, -1))
end

-- Renders.

function steps.lease(name, its_token, term, demanded)
    local key = root .. 'lease:' .. name
    local there = redis.pcall('GET', key)
    -- A lease of ours lapses; whatever does not is none.
    local other = type(there) == 'string' and string.match(there, '^[^|]*')
    -- A client that tries again finds its own.
    if other and other ~= its_token and redis.call('PTTL', key) > 0
        and (demanded == '0' or string.sub(there, -1) == '1') then
        return other
    end
    redis.call('SET', key, its_token .. '|' .. demanded, 'PX', term)
    return false
end

local function has_lease(name, its_token)
    local there = redis.pcall('GET', root .. 'lease:' .. name)
    return type(there) == 'string' and string.match(there, '^[^|]*') == its_token
end

function steps.extend(name, its_token, term)
    return has_lease(name, its_token) and redis.call('PEXPIRE', root .. 'lease:' .. name, term) or 0
end

function steps.release(name, its_token, term, outcome)
    if has_lease(name, its_token) then redis.call('DEL', root .. 'lease:' .. name) end
    if outcome then redis.call('SET', root .. 'outcome:' .. its_token, outcome, 'PX', term) end
end

function steps.set_failure(name, most, left)
    local failures, failed = ours('failures', 'hash'), ours('failed', 'zset')
    redis.call('HDEL', failures, name)
    redis.call('ZREM', failed, name)
    if not left then return end
    redis.call('HSET', failures, name, left)
    redis.call('ZADD', failed, milliseconds(), name)
    local over = redis.call('ZCARD', failed) - most
    if over > 0 then
        redis.call('HDEL', failures, unpack(redis.call('ZRANGE', failed, 0, over - 1)))
        redis.call('ZREMRANGEBYRANK', failed, 0, over - 1)
    end
end

-- Wanted pages: a hash of them, and a queue by the time from which each may be taken.

local function wanted(build)
    return ours('wanted:' .. build, 'hash'), ours('queue:' .. build, 'zset')
end

function steps.want(build, name, data, most)
    if redis.call('EXISTS', root .. 'serving:' .. build) == 0 then return 0 end
    local all, queue = wanted(build)
    if not redis.call('ZSCORE', queue, name) and redis.call('ZCARD', queue) < tonumber(most) then
        redis.call('HSET', all, name, data)
        redis.call('ZADD', queue, milliseconds(), name)
    end
    return 1
end

function steps.take(build, term, serving)
    redis.call('SET', root .. 'serving:' .. build, 1, 'PX', serving)
    local all, queue = wanted(build)
    local now = milliseconds()
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now)) do
        local data = redis.call('HGET', all, name)
        if not data then
            redis.call('ZREM', queue, name)
        elseif redis.call('EXISTS', root .. 'lease:' .. name) == 0 then
            redis.call('ZADD', queue, now + term, name)
            return {name, data}
        end
    end
    return false
end

function steps.done(build, name)
    local all, queue = wanted(build)
    redis.call('HDEL', all, name)
    redis.call('ZREM', queue, name)
end

-- What exists, and what was counted.

function steps.builds(build, most)
    local key = ours('builds', 'zset')
    if not redis.call('ZSCORE', key, build) then
        local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
        redis.call('ZADD', key, (last[2] or 0) + 1, build)
        redis.call('ZREMRANGEBYRANK', key, 0, -1 - most)
    end
    local rank = redis.call('ZREVRANK', key, build)
    return redis.call('ZREVRANGE', key, rank + 1, -1)
end

function steps.add(last, ...)
    local key, given = ours('totals', 'hash'), {...}
    for place = 1, #given, 2 do
        local done = redis.pcall('HINCRBYFLOAT', key, given[place], given[place + 1])
        if type(done) == 'table' and done.err then
            redis.call('HSET', key, given[place], given[place + 1])
        end
    end
    local minute = root .. 'minute:' .. math.floor(milliseconds() / 60000)
    if last == '1' and redis.call('EXISTS', minute) == 0 then
        redis.call('COPY', key, minute)
        redis.call('EXPIRE', minute, 7200)
    end
end

function steps.minutes(most)
    local now, found = math.floor(milliseconds() / 60000), {}
    for minute = now - most + 1, now do
        local totals = redis.pcall('HGETALL', root .. 'minute:' .. minute)
        if #totals > 0 then found[#found + 1] = {minute, totals} end
    end
    return found
end

function steps.report(term, left)
    local now, times = milliseconds(), ours('processes', 'zset')
    redis.call('SET', root .. 'process:' .. me, left or '', 'PX', term)
    redis.call('ZADD', times, left and now or 0, me)
    redis.call('ZREMRANGEBYSCORE', times, '-inf', now - term)
end

function steps.processes()
    local found = redis.call('ZRANGE', ours('processes', 'zset'), 0, -1)
    for place, id in ipairs(found) do found[place] = redis.pcall('GET', root .. 'process:' .. id) end
    return found
end

function steps.time() return redis.call('TIME') end

function steps.memory()
    local info = redis.pcall('INFO', 'memory')
    return type(info) == 'string' and info or ''
end

return steps[ARGV[1]](unpack(ARGV, 8))
