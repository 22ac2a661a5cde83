-- The steps themselves, behind what stands in redis_order.lua.

-- Pages.

local function page_at(name, ...)
    local got = redis.pcall('HMGET', root .. 'page:' .. name, ...)
    return got.err and {} or got
end

-- Call `visit` with the fields of some pages of the index; those that were evicted leave it.
local function walk(from, to, limit, fields, visit)
    local members = redis.call('ZRANGEBYLEX', pages, from, to, 'LIMIT', 0, limit)
    local gone = {}
    for _, member in ipairs(members) do
        local name = string.match(member, '([^%z]*)$')
        local page = page_at(name, unpack(fields))
        local sound = true
        for place = 1, #fields do sound = sound and page[place] end
        if sound then visit(name, page) else gone[#gone + 1] = member end
    end
    if #gone > 0 and type(redis.pcall('ZREM', pages, unpack(gone))) == 'number' then seal() end
    return #members == tonumber(limit) and '(' .. members[#members] or ''
end

local function drop(name)
    local path = page_at(name, 'path')[1]
    if path then redis.call('ZREM', pages, path .. '\0' .. name) end
    return redis.call('UNLINK', root .. 'page:' .. name)
end

local function note_stored(name)
    state.stores = redis.call('HINCRBY', clock, 'stores', 1)
    seal()
    announce('s' .. text(state.stores) .. ' ' .. me .. ' ' .. name)
end

function steps.get(name)
    open(false)
    local fields = {unpack(FIELDS)}
    fields[9], fields[10] = 'head', 'body'
    local page = page_at(name, unpack(fields))
    for place = 1, 10 do if not page[place] then return answer() end end
    page[11] = judge(page)
    return answer(page)
end

function steps.put(name, its_labels, sequence, its_lineage, build, path, gone, head, body, year)
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
    redis.call('ZADD', pages, 0, path .. '\0' .. name)
    redis.call('HSET', key, 'labels', its_labels, 'sequence', sequence, 'lineage', its_lineage,
        'build', build, 'path', path, 'gone', gone, 'stale', stale, 'expired', 0,
        'used', milliseconds(), 'head', head, 'body', body)
    redis.call('EXPIRE', key, year)
    -- The index is not evicted: each stored page has a few others checked.
    local from = redis.call('HGET', clock, 'swept') or ''
    from = walk(from == '' and '-' or from, '+', 3, {'path'}, function() end)
    redis.call('HSET', clock, 'swept', from)
    note_stored(name)
    return answer(judge({its_labels, sequence, its_lineage, build, path, gone, stale, 0}))
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

function steps.list(from, to, limit, build)
    open(false)
    local fields, rows = {unpack(FIELDS)}, {}
    fields[9] = 'head'
    local cursor = walk(from, to, limit, fields, function(name, page)
        if build == '*' or page[4] == string.sub(build, 2) then
            page[10] = judge(page)
            rows[#rows + 1] = {name, page}
        end
    end)
    return answer({cursor, rows})
end

-- When they were last used, and bytes, of some pages. The server's own idea of use counts listing.
function steps.measure(from, limit)
    open(false)
    local rows = {}
    local cursor = walk(from, '+', limit, {'build', 'gone', 'used'}, function(name, page)
        local key = root .. 'page:' .. name
        local size = redis.call('HSTRLEN', key, 'head') + redis.call('HSTRLEN', key, 'body')
        rows[#rows + 1] = {name, page[1], page[2], tonumber(page[3]) or 0, size}
    end)
    return answer({cursor, rows})
end

function steps.used(...)
    local now = milliseconds()
    for _, name in ipairs({...}) do
        local key = root .. 'page:' .. name
        if redis.pcall('HEXISTS', key, 'used') == 1 then redis.call('HSET', key, 'used', now) end
    end
end

function steps.sizes() return count('ZCARD', pages) end

-- The order.

function steps.number()
    open(true)
    state.sequence = redis.call('HINCRBY', clock, 'sequence', 1)
    return answer()
end

-- Old labels are applied to the pages that have them, then forgotten: `fold` does it in small
-- steps. A page that is put meanwhile or later, with a number from before, counts as stale.
local function begin_fold(floor)
    state.fold, state.floor = floor, math.max(state.floor, floor)
    redis.call('HSET', clock, 'fold', text(floor), 'floor', text(state.floor), 'cursor', '-')
end

function steps.invalidate(expire, max_labels, max_history, max_alike, ...)
    open(true)
    local number = redis.call('HINCRBY', clock, 'sequence', 1)
    local alike = false
    state.sequence, state.changed = number, number
    number = text(number)
    for _, label in ipairs({...}) do
        local before = redis.call('HGET', labels, label)
        local hard = expire == '1' and number or string.match(before or '', ' (%d+)$') or '0'
        redis.call('HSET', labels, label, number .. ' ' .. hard)
        redis.call('ZADD', order, number, label)
        redis.call('ZADD', history, number, number .. ' ' .. expire .. label)
        local pattern = pattern_of(label)
        if pattern then
            local key = address(pattern)
            redis.call('ZADD', patterns, 0, key .. label)
            redis.call('HSET', clock, 'patterned', number)
            local high = '(' .. string.sub(key, 1, -2) .. '\1'
            local others = redis.call('ZLEXCOUNT', patterns, '[' .. key, high)
            alike = alike or others > tonumber(max_alike)
        end
    end
    redis.call('HSET', clock, 'changed', number)
    local over = redis.call('ZCARD', history) - max_history
    if over > 0 then
        local last = redis.call('ZRANGE', history, over - 1, over - 1, 'WITHSCORES')[2]
        redis.call('HSET', clock, 'forgotten', text(last))
        redis.call('ZREMRANGEBYRANK', history, 0, over - 1)
    end
    local entries = redis.call('ZCARD', order)
    if state.fold == 0 and entries > tonumber(max_labels) then
        local rank = entries - math.floor(max_labels / 2)
        begin_fold(tonumber(redis.call('ZRANGE', order, rank, rank, 'WITHSCORES')[2]))
    elseif state.fold == 0 and alike then
        begin_fold(state.changed)
    end
    seal()
    announce('i' .. number)
    return answer()
end

function steps.fold(limit)
    open(false)
    if state.fold == 0 then return answer() end
    if state.cursor ~= '' then
        local cursor = walk(state.cursor, '+', limit, FIELDS, function(name, page)
            local any, hard, sequence = last_of(page)
            if sequence >= 0 and any > sequence then
                redis.call('HSET', root .. 'page:' .. name, 'stale', text(any),
                    'expired', text(hard))
            end
        end)
        redis.call('HSET', clock, 'cursor', cursor)
        return answer()
    end
    local old = redis.call('ZRANGEBYSCORE', order, '-inf', text(state.fold), 'LIMIT', 0, 4 * limit)
    for _, label in ipairs(old) do
        redis.call('HDEL', labels, label)
        redis.call('ZREM', order, label)
        local pattern = pattern_of(label)
        if pattern then redis.call('ZREM', patterns, address(pattern) .. label) end
    end
    if #old < 4 * limit then
        state.fold = 0
        redis.call('HSET', clock, 'fold', 0)
    end
    seal()
    return answer()
end

function steps.changes(its_lineage, since)
    open(true)
    local complete = its_lineage == state.lineage and tonumber(since) >= state.forgotten
    local found = complete and redis.call('ZRANGEBYSCORE', history, '(' .. since, '+inf')
    return answer(found)
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

function steps.extend(name, content, term)
    local key = root .. 'lease:' .. name
    if redis.pcall('GET', key) ~= content then return 0 end
    return redis.call('PEXPIRE', key, term)
end

function steps.release(name, content, its_token, term, outcome)
    local key = root .. 'lease:' .. name
    if redis.pcall('GET', key) == content then redis.call('DEL', key) end
    if outcome then redis.call('SET', root .. 'outcome:' .. its_token, outcome, 'PX', term) end
end

function steps.outcome(its_token)
    local left = redis.pcall('GET', root .. 'outcome:' .. its_token)
    return type(left) == 'string' and left
end

function steps.failure(name)
    local left = redis.pcall('HGET', root .. 'failures', name)
    return type(left) == 'string' and left
end

function steps.set_failure(name, left, most)
    local failures, failed = ours('failures', 'hash'), ours('failed', 'zset')
    if not left then
        redis.call('HDEL', failures, name)
        redis.call('ZREM', failed, name)
        return
    end
    redis.call('HSET', failures, name, left)
    redis.call('ZADD', failed, milliseconds(), name)
    local over = redis.call('ZCARD', failed) - most
    if over > 0 then
        redis.call('HDEL', failures, unpack(redis.call('ZRANGE', failed, 0, over - 1)))
        redis.call('ZREMRANGEBYRANK', failed, 0, over - 1)
    end
end

function steps.failures(cursor)
    return redis.call('HSCAN', ours('failures', 'hash'), cursor, 'COUNT', 200)
end

-- Wanted pages.

local function wanted(build)
    return ours('wanted:' .. build, 'hash'), ours('queue:' .. build, 'zset'),
        ours('claims:' .. build, 'hash')
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
    local all, queue, claims = wanted(build)
    local now = milliseconds()
    for _, name in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
        local data = redis.call('HGET', all, name)
        if not data then
            redis.call('ZREM', queue, name)
        elseif (tonumber(redis.call('HGET', claims, name) or 0) or 0) <= now
            and redis.call('EXISTS', root .. 'lease:' .. name) == 0 then
            redis.call('HSET', claims, name, now + term)
            return {name, data}
        end
    end
    return false
end

function steps.done(build, name)
    local all, queue, claims = wanted(build)
    redis.call('HDEL', all, name)
    redis.call('ZREM', queue, name)
    redis.call('HDEL', claims, name)
end

-- What exists, and what was counted.

function steps.list_path(path) redis.call('SADD', ours('paths', 'set'), path) end

function steps.has_path(path) return redis.pcall('SISMEMBER', root .. 'paths', path) == 1 and 1 or 0 end

function steps.builds(build, most)
    local key = ours('builds', 'zset')
    if not redis.call('ZSCORE', key, build) then
        local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
        redis.call('ZADD', key, (last[2] or 0) + 1, build)
        redis.call('ZREMRANGEBYRANK', key, 0, -1 - most)
    end
    local all, before = redis.call('ZRANGE', key, 0, -1), {}
    for _, one in ipairs(all) do
        if one == build then break end
        table.insert(before, 1, one)
    end
    return before
end

function steps.add(...)
    local key, given = ours('totals', 'hash'), {...}
    for place = 1, #given, 2 do
        local done = redis.pcall('HINCRBYFLOAT', key, given[place], given[place + 1])
        if type(done) == 'table' and done.err then
            redis.call('HSET', key, given[place], given[place + 1])
        end
    end
end

function steps.totals() return redis.call('HGETALL', ours('totals', 'hash')) end

function steps.report(term, left)
    local reports, times, now = ours('reports', 'hash'), ours('processes', 'zset'), milliseconds()
    if left then
        redis.call('HSET', reports, me, left)
        redis.call('ZADD', times, now, me)
    end
    local old = redis.call('ZRANGEBYSCORE', times, '-inf', now - term, 'LIMIT', 0, 1000)
    if not left then old[#old + 1] = me end
    for _, process in ipairs(old) do
        redis.call('HDEL', reports, process)
        redis.call('ZREM', times, process)
    end
end

function steps.processes(term)
    local found = {}
    local recent = redis.call('ZRANGEBYSCORE', ours('processes', 'zset'), milliseconds() - term, '+inf')
    for _, process in ipairs(recent) do
        found[#found + 1] = redis.call('HGET', ours('reports', 'hash'), process)
    end
    return found
end

function steps.time() return redis.call('TIME') end

function steps.memory()
    local info = redis.pcall('INFO', 'memory')
    return type(info) == 'string' and info or ''
end

function steps.probe() redis.call('SET', root .. 'probe', 1, 'PX', 1000) end

return steps[ARGV[1]](unpack(args))
