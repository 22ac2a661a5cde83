-- Whatever has to be one step on a Redis or Valkey server. The first argument names the step.
--
-- All keys of a site begin with one hash tag, so that in a cluster they are on one node. Those of
-- the order have no time to live, so that `volatile-*` policies spare them:
--
--   clock     hash: lineage, the last number, that of the last invalidation, ..., and `counts`
--   labels    hash: "NUMBER NUMBER" of the last invalidation of a label, and of the last hard one
--   order     sorted set: labels by the number of their last invalidation
--   patterns  sorted set of "SHAPE\0KEY\0LABEL": see `address`
--   history   sorted set: the last invalidations by their numbers
--   pages     sorted set of "PATH\0NAME": which pages there are
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
local args = {unpack(ARGV, 8)}
local labels, order, patterns = root .. 'labels', root .. 'order', root .. 'patterns'
local history, pages = root .. 'history', root .. 'pages'
local FIELDS = {'labels', 'sequence', 'lineage', 'build', 'path', 'gone', 'stale', 'expired'}
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

local function count(command, key)
    local found = redis.pcall(command, key)
    return type(found) == 'number' and found or 'x'
end

local function counts()
    return table.concat({count('HLEN', labels), count('ZCARD', order), count('ZCARD', patterns),
        count('ZCARD', history), count('ZCARD', pages)}, ':')
end

local function seal() redis.call('HSET', clock, 'counts', counts()) end

local function read()
    local got = redis.pcall('HMGET', clock, 'lineage', 'run', 'before', 'cursor', 'counts',
        'sequence', 'changed', 'patterned', 'floor', 'fold', 'stores', 'resumed', 'forgotten')
    if got.err then got = {} end
    state = {lineage = got[1] or '', run = got[2] or '', before = got[3] or '',
        cursor = got[4] or '', counts = got[5], sound = got[1] and true}
    for place, name in ipairs({'sequence', 'changed', 'patterned', 'floor', 'fold', 'stores',
        'resumed', 'forgotten'}) do
        state[name] = tonumber(got[place + 5] or nil)
        if not state[name] then state.sound, state.lineage, state[name] = false, '', 0 end
    end
end

-- A full server or a replica refuses; pages then count as stale.
local function begin(now)
    redis.pcall('UNLINK', clock, labels, order, patterns, history)
    if count('ZCARD', pages) == 'x' then redis.pcall('UNLINK', pages) end
    redis.pcall('HSET', clock, 'lineage', token, 'run', now, 'before', '', 'cursor', '',
        'counts', counts(), 'sequence', 0, 'changed', 0, 'patterned', 0, 'floor', 0, 'fold', 0,
        'stores', 0, 'resumed', 0, 'forgotten', 0)
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
    return {state.lineage, state.run, text(state.sequence), text(state.changed),
        text(state.stores), state.fold, result or false}
end

-- Patterns.

local function decode(segment)
    return (string.gsub(segment, '%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

local function split(path)
    local segments = {}
    for segment in string.gmatch(path, '/([^/]*)') do segments[#segments + 1] = segment end
    return segments
end

local function pattern_of(label)
    local pattern = string.match(label, '^pattern:(.*)$')
    return pattern and (string.gsub(pattern, '%%2[Ff]', '/'))
end

local function join(shape, parts)
    return shape .. '\0' .. string.gsub(table.concat(parts, '/'), '%z', '?') .. '\0'
end

-- By what a pattern is found: the shape of its segments before the first ** and after the last,
-- and what is literal in them. `=` is a literal segment, `2.3` one with 2 literal bytes before its
-- first * and 3 after its last.
local function address(pattern)
    local shapes, parts, here = {{}}, {}, {}
    for _, segment in ipairs(split(pattern)) do
        if segment == '**' then
            -- What stood between two ** is not literal at any place.
            if #shapes == 1 then parts, shapes = here, {shapes[1], {}} else shapes[2] = {} end
            here = {}
        else
            local first, rest = string.match(segment, '^([^*]*)%*(.*)$')
            local shape = shapes[#shapes]
            if first then
                local last = decode(string.match(rest, '([^*]*)$'))
                first = decode(first)
                shape[#shape + 1], here[#here + 1] = #first .. '.' .. #last, first .. '*' .. last
            else
                shape[#shape + 1], here[#here + 1] = '=', decode(segment)
            end
        end
    end
    for _, part in ipairs(here) do parts[#parts + 1] = part end
    return join(table.concat(shapes[1], ',') .. '>' .. table.concat(shapes[2] or {}, ','), parts)
end

-- What a path has in the places of a shape.
local function in_shape(shape, segments)
    local head, tail = string.match(shape, '^(.*)>(.*)$')
    local parts, place = {}, 0
    local function take(kind)
        place = place + 1
        local segment = segments[place] or ''
        local first, last = string.match(kind, '^(%d+)%.(%d+)$')
        if first then
            segment = string.sub(segment, 1, first) .. '*'
                .. (last == '0' and '' or string.sub(segment, -last))
        end
        parts[#parts + 1] = segment
    end
    for kind in string.gmatch(head, '[^,]+') do take(kind) end
    local _, commas = string.gsub(tail, '[^,]+', '')
    place = math.max(0, #segments - commas)
    for kind in string.gmatch(tail, '[^,]+') do take(kind) end
    return join(shape, parts)
end

-- Where a segment of a pattern ends that begins at a slash of a path.
local function segment_end(segment, path, at)
    if string.byte(path, at) ~= 47 then return nil end
    at = at + 1
    if segment == '*' then return string.match(path, '^[^/]+()', at) end
    local stop = string.find(path, '/', at, true) or #path + 1
    local here = string.sub(path, at, stop - 1)
    local parts = {}
    for part in string.gmatch(string.gsub(segment, '%*+', '*') .. '*', '([^*]*)%*') do
        parts[#parts + 1] = decode(part)
    end
    if #parts == 1 then return here == parts[1] and stop or nil end
    local from = #parts[1] + 1
    if string.sub(here, 1, #parts[1]) ~= parts[1] then return nil end
    for place = 2, #parts - 1 do
        local _, found = string.find(here, parts[place], from, true)
        if not found then return nil end
        from = found + 1
    end
    local last = parts[#parts]
    if #here - #last + 1 < from or string.sub(here, #here - #last + 1) ~= last then return nil end
    return stop
end

-- The first place that fits is as good as any later one, so nothing is tried twice.
local function matches(pattern, path)
    local runs = {{}}
    for _, segment in ipairs(split(pattern)) do
        if segment == '**' then runs[#runs + 1] = {} else table.insert(runs[#runs], segment) end
    end
    local function follow(segments, at)
        for _, segment in ipairs(segments) do
            at = at and segment_end(segment, path, at)
        end
        return at
    end
    local at = follow(runs[1], 1)
    if #runs == 1 or not at then return at == #path + 1 end
    for place = 2, #runs do
        local start, is_last, stop = at, place == #runs, nil
        if #runs[place] == 0 then stop = is_last and #path + 1 or at end
        while start and not stop do
            stop = follow(runs[place], start)
            if is_last and stop ~= #path + 1 then stop = nil end
            start = string.find(path, '/', start + 1, true)
        end
        if not stop then return false end
        at = stop
    end
    return at == #path + 1
end

local function matching(path, found)
    local segments, cursor = split(path), '-'
    while true do
        local member = redis.call('ZRANGEBYLEX', patterns, cursor, '+', 'LIMIT', 0, 1)[1]
        if not member then return end
        local shape = string.match(member, '^[^%z]*')
        local key = in_shape(shape, segments)
        local low, high = '[' .. key, '(' .. string.sub(key, 1, -2) .. '\1'
        for _, alike in ipairs(redis.call('ZRANGEBYLEX', patterns, low, high)) do
            local label = string.sub(alike, #key + 1)
            if matches(pattern_of(label), path) then found[#found + 1] = label end
        end
        cursor = '(' .. shape .. '\1'
    end
end

-- Pages.

local function page_at(name, ...)
    local got = redis.pcall('HMGET', root .. 'page:' .. name, ...)
    return got.err and {} or got
end

-- The numbers of the last invalidation of a page and of the last hard one, and its own.
local function last_of(page)
    local sequence = tonumber(page[2]) or 0
    if page[3] ~= state.lineage then sequence = -1 end
    if sequence >= state.changed then return 0, 0, sequence end
    local any, hard = tonumber(page[7]) or 0, tonumber(page[8]) or 0
    if sequence < 0 then any, hard = 0, 0 end
    local path, found = page[5] == '' and '/' or page[5], {}
    for label in string.gmatch(page[1], '[^\n]+') do found[#found + 1] = label end
    if sequence < state.patterned then matching(path, found) end
    for first = 1, #found, 500 do
        local last = math.min(first + 499, #found)
        for _, numbers in ipairs(redis.call('HMGET', labels, unpack(found, first, last))) do
            local one, other = string.match(numbers or '', '^(%d+) (%d+)$')
            any, hard = math.max(any, one or 0), math.max(hard, other or 0)
        end
    end
    return any, hard, sequence
end

local function judge(page)
    local any, hard, sequence = last_of(page)
    if hard > math.max(sequence, 0) then return 2 end
    return (any > sequence or sequence < 0) and 1 or 0
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
        'build', build, 'path', path, 'gone', gone, 'stale', stale, 'expired', 0, 'head', head,
        'body', body)
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
    local found = redis.call('SCAN', cursor, 'MATCH', root .. 'page:*', 'COUNT', 300)
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

-- Seconds since its last use, and bytes, of some pages.
function steps.measure(from, limit)
    open(false)
    local rows = {}
    local cursor = walk(from, '+', limit, {'build', 'gone'}, function(name, page)
        local key = root .. 'page:' .. name
        local idle = redis.pcall('OBJECT', 'IDLETIME', key)
        if type(idle) ~= 'number' then
            idle = redis.pcall('OBJECT', 'FREQ', key)
            idle = type(idle) == 'number' and -idle or 0
        end
        local size = redis.call('HSTRLEN', key, 'head') + redis.call('HSTRLEN', key, 'body')
        rows[#rows + 1] = {name, page[1], page[2], idle, size}
    end)
    return answer({cursor, rows})
end

function steps.used(...)
    for _, name in ipairs({...}) do redis.call('TOUCH', root .. 'page:' .. name) end
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
    if type(there) == 'string' and redis.call('PTTL', key) > 0
        and (demanded == '0' or string.sub(there, -1) == '1') then
        return string.match(there, '^[^|]*')
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
