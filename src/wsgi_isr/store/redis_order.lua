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
        cursor = got[4] or '', counts = got[5], sound = string.match(got[1] or '', '^%x+$')}
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
