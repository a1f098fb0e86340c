-- job_submit.lua, written by `slurm-mig generate` 0.1.0. Do not edit.

-- What a job may have of several GPUs of a node, by GPU type: `gpus` of them at most;
-- media engines of one (`total`), and of each profile by its id.
local SEVERAL = {
  ["h100"] = { gpus = 8, total = { 7, 7, 1 }, engines = { [19] = { 1, 1, 0 }, [20] = { 1, 1, 1 }, [15] = { 1, 1, 0 }, [14] = { 2, 2, 0 }, [9] = { 3, 3, 0 }, [5] = { 4, 4, 0 }, [0] = { 7, 7, 1 } } },
  ["a30"] = { gpus = 2, total = { 4, 1, 1 }, engines = { [14] = { 1, 0, 0 }, [21] = { 1, 1, 1 }, [5] = { 2, 0, 0 }, [6] = { 2, 1, 1 }, [0] = { 4, 1, 1 } } },
}
-- Weights and capacities in shards; `most` instances on one GPU, `per` on one GPU
-- instance; words for them, some of one GPU type only; names that no model keeps; GPU
-- types that are never given whole.
local GRES = {
  ["1g.10gb"] = { profile = "1g.10gb", id = 19, weight = 4, capacity = 31, most = 7, per = 1, types = { ["h100"] = true } },
  ["1g.10gb+me"] = { profile = "1g.10gb+me", id = 20, weight = 4, capacity = 31, most = 1, per = 1, types = { ["h100"] = true } },
  ["1g.20gb"] = { profile = "1g.20gb", id = 15, weight = 7, capacity = 31, most = 4, per = 1, types = { ["h100"] = true } },
  ["2g.20gb"] = { profile = "2g.20gb", id = 14, weight = 8, capacity = 31, most = 3, per = 1, types = { ["h100"] = true } },
  ["3g.40gb"] = { profile = "3g.40gb", id = 9, weight = 14, capacity = 31, most = 2, per = 1, types = { ["h100"] = true } },
  ["4g.40gb"] = { profile = "4g.40gb", id = 5, weight = 16, capacity = 31, most = 1, per = 1, types = { ["h100"] = true } },
  ["7g.80gb"] = { profile = "7g.80gb", id = 0, weight = 31, capacity = 31, most = 1, per = 1, types = { ["h100"] = true } },
  ["1g.6gb"] = { profile = "1g.6gb", id = 14, weight = 1, capacity = 4, most = 4, per = 1, types = { ["a30"] = true } },
  ["1g.6gb+me"] = { profile = "1g.6gb+me", id = 21, weight = 1, capacity = 4, most = 1, per = 1, types = { ["a30"] = true } },
  ["2g.12gb"] = { profile = "2g.12gb", id = 5, weight = 2, capacity = 4, most = 2, per = 1, types = { ["a30"] = true } },
  ["2g.12gb+me"] = { profile = "2g.12gb+me", id = 6, weight = 2, capacity = 4, most = 1, per = 1, types = { ["a30"] = true } },
  ["4g.24gb"] = { profile = "4g.24gb", id = 0, weight = 4, capacity = 4, most = 1, per = 1, types = { ["a30"] = true } },
}
local WORDS = {
  ["h100_1g.10gb"] = { name = "1g.10gb" },
  ["h100_1g.10gb+me"] = { name = "1g.10gb+me" },
  ["h100_1g.20gb"] = { name = "1g.20gb" },
  ["h100_2g.20gb"] = { name = "2g.20gb" },
  ["h100_3g.40gb"] = { name = "3g.40gb" },
  ["h100_4g.40gb"] = { name = "4g.40gb" },
  ["h100_7g.80gb"] = { name = "7g.80gb" },
  ["a30_1g.6gb"] = { name = "1g.6gb" },
  ["a30_1g.6gb+me"] = { name = "1g.6gb+me" },
  ["a30_2g.12gb"] = { name = "2g.12gb" },
  ["a30_2g.12gb+me"] = { name = "2g.12gb+me" },
  ["a30_4g.24gb"] = { name = "4g.24gb" },
}
local UNCLEAR = {  }
local BY_MEMORY = { { gb = 6, name = "1g.6gb" }, { gb = 10, name = "1g.10gb" }, { gb = 12, name = "2g.12gb" }, { gb = 20, name = "1g.20gb" }, { gb = 20, name = "2g.20gb" }, { gb = 24, name = "4g.24gb" }, { gb = 40, name = "3g.40gb" }, { gb = 40, name = "4g.40gb" }, { gb = 80, name = "7g.80gb" } }
local SLICES_ONLY = {  }
local KNOWN = "1g.10gb, 1g.10gb+me, 1g.20gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb, 1g.6gb, 1g.6gb+me, 2g.12gb, 2g.12gb+me, 4g.24gb"

-- Reading gres texts -------------------------------------------------------

-- Slurm takes texts of any length; no request of ours is longer, and slurmctld has to wait
-- while we read.
local LONGEST = 1024

-- True when a text names the gres mig or shard anywhere, however it is written.
local function mentions(text)
  local lower = string.lower(text)
  return string.find(lower, "%f[%w]mig%f[%W]") ~= nil
    or string.find(lower, "%f[%w]shard%f[%W]") ~= nil
end

-- The gres name that a user's word means, and the GPU type where it has to be that one: a profile,
-- model and profile, a site's alias, or memory ("20gb": the smallest profile that has it). Returns
-- nil and a reason for the user.
local function resolve(word)
  if GRES[word] then return word end
  if WORDS[word] then return WORDS[word].name, WORDS[word].only end
  if UNCLEAR[word] then
    return nil, "'" .. word .. "' differs between GPU models; write " .. UNCLEAR[word]
  end
  local wanted = string.match(word, "^([1-9]%d?%d?%d?)gb$")
  if not wanted then return nil, "unknown MIG profile '" .. word .. "'; known: " .. KNOWN end
  for _, row in ipairs(BY_MEMORY) do
    if row.gb >= tonumber(wanted) then return row.name end
  end
  return nil, "no MIG profile has " .. word .. "; known: " .. KNOWN
end

-- Cut a gres text ("gres:mig:3g.40gb:1,gres:gpu:2"; client tools leave the prefix out) into
-- its tokens. Returns nil and a reason for the user when a mig or shard token is not one that
-- Slurm and we read alike: Slurm knows more spellings (=, k, M) than counting allows.
local function read_gres(text)
  if #text > LONGEST then return nil, "a gres text of " .. #text .. " characters is too long" end
  local read = { items = {}, others = {}, shards = {}, prefix = "" }
  for token in string.gmatch(text, "[^,]+") do
    local prefix, body = string.match(token, "^(gres[:/])(.*)$")
    if not prefix then prefix, body = "", token end
    local name, rest = string.match(body, "^([^:=]+)(.*)$")
    if name == "mig" then
      local word, count = string.match(rest, "^:([^:=]+):([1-9]%d?)$")
      if not word then word, count = string.match(rest, "^:([^:=]+)$"), 1 end
      -- A number alone would be Slurm's count of instances of no profile.
      if not word or not string.find(word, "%a") then
        return nil, "cannot read '" .. body .. "'; write mig:<profile>:<count>, count 1 to 99, "
          .. "profiles: " .. KNOWN
      end
      local profile, only = resolve(word)
      if not profile then return nil, only end
      read.prefix = prefix
      table.insert(read.items, { name = profile, only = only, count = tonumber(count) })
    elseif name == "shard" then
      table.insert(read.shards, body)
    elseif mentions(token) then
      return nil, "cannot read '" .. body .. "'; write --gres=mig:<profile>:<count>"
    else
      table.insert(read.others, token)
    end
  end
  return read
end

-- Shards of `count` instances. Compute instances that are smaller than their GPU instance
-- share it, `per` of them; a step gets what its part of them is worth.
local function worth(gres, count, part)
  local whole = gres.weight * math.floor((count + gres.per - 1) / gres.per)
  if not part or gres.per == 1 then return whole end
  return math.max(1, math.floor(gres.weight * count / gres.per))
end

-- GPU types that are in both sets; all of the second where there is no first.
local function common_types(before, now)
  local both = {}
  for name in pairs(now) do
    if not before or before[name] then both[name] = true end
  end
  return both
end

-- The GPU type of a shard token ("shard:h100:14"), or nil.
local function type_of_shards(token)
  return token and string.match(token, "^shard:([^:=]+):%d+$")
end

-- Shards that the items cost, as one gres token without prefix ("shard:h100:14"); `part`: for
-- a step inside a job; `kind`: of this GPU type where that is possible. Returns nil and a reason
-- for the user when no GPU could hold them.
local function price(items, part, kind)
  local sum, types, capacity, seen = 0, nil, 0, {}
  for _, item in ipairs(items) do
    local gres = GRES[item.name]
    if seen[item.name] then
      return nil, "profile " .. item.name .. " is named twice; add the counts up"
    end
    seen[item.name] = true
    if item.count > gres.most then
      return nil, item.count .. " x " .. item.name .. ": one GPU holds at most " .. gres.most
    end
    types = common_types(types, item.only and { [item.only] = true } or gres.types)
    if next(types) == nil then
      return nil, "profiles of different GPU models in one job: " .. item.name
    end
    capacity = gres.capacity
    sum = sum + worth(gres, item.count, part)
  end
  if sum > capacity then
    return nil, "these slices do not fit on one GPU together; a job's slices come from one GPU "
      .. "per node, so ask for fewer or for more nodes"
  end
  -- Where several types have all of it any may serve: none of them shares a node with others.
  local one = types[kind or ""] and kind or next(types)
  if one == kind or next(types, one) == nil then return string.format("shard:%s:%d", one, sum) end
  return string.format("shard:%d", sum)
end

-- A gres text again: what was asked, under the names that Slurm counts, and its shards.
local function written(read, shards)
  local tokens = {}
  for _, item in ipairs(read.items) do
    table.insert(tokens, string.format("%smig:%s:%d", read.prefix, item.name, item.count))
  end
  table.insert(tokens, read.prefix .. shards)
  for _, token in ipairs(read.others) do
    -- GPUs that slices are paid with may be there already.
    if token ~= read.prefix .. shards then table.insert(tokens, token) end
  end
  return table.concat(tokens, ",")
end

-- Slices that one GPU does not hold ------------------------------------------------

-- They come from whole GPUs: Slurm gives nobody else anything of those, and the Prolog carves
-- on each its part. slurmctld waits while we look for the fewest GPUs, so the search ends after
-- so many steps; what it then has may be one GPU more than needed.
local STEPS = 3000

-- The profiles of a request as what a GPU has of each, largest first, with the GPU instances
-- that are to be made of it.
local function packing_rows(items, kind)
  local rows = {}
  for place, item in ipairs(items) do
    local gres = GRES[item.name]
    table.insert(rows, {
      place = place,
      name = item.name,
      weight = gres.weight,
      most = math.max(1, math.floor(gres.most / gres.per)),
      left = math.floor((item.count + gres.per - 1) / gres.per),
      engines = kind.engines[gres.id] or {},
    })
  end
  table.sort(rows, function(one, other)
    if one.weight ~= other.weight then return one.weight > other.weight end
    return one.name < other.name
  end)
  return rows
end

-- How many more instances of a row a GPU has room for, by shards, engines and the driver's count.
local function room_for(row, shards, engines)
  local most = math.min(row.left, row.most, math.floor(shards / row.weight))
  for kind, free in ipairs(engines) do
    local each = row.engines[kind] or 0
    if each > 0 then most = math.min(most, math.floor(free / each)) end
  end
  return most
end

-- Every way to fill one GPU to which nothing of what is left can be added, and which leaves no
-- more than `spare` shards; the first leaves least. Each has something of the largest that is
-- left, for some GPU must. `search` counts the steps down.
local function fillings(rows, capacity, engines, spare, search)
  local found, chosen, free = {}, {}, {}
  for kind, count in ipairs(engines) do free[kind] = count end
  local function take(row, count)
    for kind in ipairs(free) do
      free[kind] = free[kind] - count * (row.engines[kind] or 0)
    end
  end
  local function full(shards)
    for place, row in ipairs(rows) do
      local more = room_for(row, shards, free) > 0
      if more and chosen[place] < math.min(row.left, row.most) then return false end
    end
    return true
  end
  local function fill(place, shards, any)
    if search then
      search.steps = search.steps - 1
      if search.steps < 0 then return end
    end
    if place > #rows then
      if shards <= spare and full(shards) then
        local counts = { waste = shards, number = #found }
        for number, count in ipairs(chosen) do counts[number] = count end
        table.insert(found, counts)
      end
      return
    end
    local row = rows[place]
    local least = (not any and row.left > 0) and 1 or 0
    for count = room_for(row, shards, free), least, -1 do
      chosen[place] = count
      take(row, count)
      fill(place + 1, shards - count * row.weight, any or count > 0)
      take(row, -count)
    end
  end
  fill(1, capacity, false)
  table.sort(found, function(one, other)
    if one.waste ~= other.waste then return one.waste < other.waste end
    return one.number < other.number
  end)
  return found
end

-- Fewer GPUs than this cannot hold what is left; and how many shards that is.
local function fewest(rows, capacity, engines)
  local least, shards, larger, used = 0, 0, 0, {}
  for _, row in ipairs(rows) do
    shards, larger = shards + row.left * row.weight, larger + row.left
    least = math.max(least, math.ceil(larger / math.floor(capacity / row.weight)))
    least = math.max(least, math.ceil(row.left / row.most))
    for kind in ipairs(engines) do
      used[kind] = (used[kind] or 0) + row.left * (row.engines[kind] or 0)
    end
  end
  for kind, count in ipairs(engines) do
    if used[kind] > 0 then least = math.max(least, math.ceil(used[kind] / count)) end
  end
  return math.max(least, math.ceil(shards / capacity)), shards
end

-- Fill `gpus` GPUs with all that is left. Returns the fillings, or nil. `search` has what was
-- tried in vain; without it the first way of filling each GPU is taken.
local function filled(rows, capacity, engines, gpus, search)
  local need, shards = fewest(rows, capacity, engines)
  if need == 0 then return {} end
  local words = { gpus }
  for place, row in ipairs(rows) do words[place + 1] = row.left end
  local key = table.concat(words, ",")
  if need > gpus or (search and (search[key] or search.steps < 0)) then return nil end
  local spare = search and gpus * capacity - shards or capacity
  for number, filling in ipairs(fillings(rows, capacity, engines, spare, search)) do
    if number > 1 and not search then break end
    for place, row in ipairs(rows) do row.left = row.left - filling[place] end
    local rest = filled(rows, capacity, engines, gpus - 1, search)
    for place, row in ipairs(rows) do row.left = row.left + filling[place] end
    if rest then
      table.insert(rest, 1, filling)
      return rest
    end
  end
  if search then search[key] = true end
  return nil
end

-- A GPU's part of the items, in their order. `counts` by place has what is still to be given:
-- the last GPU instance may hold fewer compute instances than the others.
local function part_of(items, rows, filling, counts)
  local part = {}
  for place, row in ipairs(rows) do
    if filling[place] > 0 then
      local gres = GRES[row.name]
      local count = math.min(filling[place] * gres.per, counts[row.place])
      counts[row.place] = counts[row.place] - count
      part[row.place] = { name = row.name, count = count }
    end
  end
  local found = {}
  for place in ipairs(items) do table.insert(found, part[place]) end
  return found
end

-- The items on as few GPUs of a type as hold them: a list of parts, or nil where a node has
-- fewer.
local function packed(items, kind)
  local rows, capacity = packing_rows(items, kind), GRES[items[1].name].capacity
  local found
  local search = { steps = STEPS }
  for gpus = fewest(rows, capacity, kind.total), kind.gpus do
    found = filled(rows, capacity, kind.total, gpus, search)
    if found then break end
  end
  -- The search was given up: one GPU after the other, then.
  found = found or filled(rows, capacity, kind.total, kind.gpus)
  if not found then return nil end
  local counts, parts = {}, {}
  for place, item in ipairs(items) do counts[place] = item.count end
  for _, filling in ipairs(found) do table.insert(parts, part_of(items, rows, filling, counts)) end
  return parts
end

-- GPU types that have all profiles of a request, by name; nil where a profile stands twice.
local function types_of(items)
  local types, seen = nil, {}
  for _, item in ipairs(items) do
    if seen[item.name] then return nil end
    seen[item.name] = true
    types = common_types(types, item.only and { [item.only] = true } or GRES[item.name].types)
  end
  local names = {}
  for name in pairs(types) do table.insert(names, name) end
  table.sort(names)
  return names
end

-- Whether one GPU holds the items, whichever of their types it is: shards do not count engines.
local function one_holds(items)
  for _, name in ipairs(types_of(items)) do
    local kind = SEVERAL[name]
    local rows = packing_rows(items, kind)
    if fewest(rows, GRES[items[1].name].capacity, kind.total) > 1 then return false end
  end
  return true
end

-- What a user may write instead, where as many GPUs as that are not to be had on one node.
local function in_its_place(items, gpus)
  if #items > 1 then return "ask for fewer, or for more nodes" end
  local item = items[1]
  local most = GRES[item.name].most * gpus
  return string.format(
    "write -N%d --gres=mig:%s:%d", math.ceil(item.count / most), item.name,
    math.ceil(item.count / math.ceil(item.count / most))
  )
end

-- A request that one GPU does not hold, as whole GPUs. Returns their gres token without prefix
-- ("gpu:h100:4") and the parts; or nil and a reason for the user, which is `problem` where the
-- number of GPUs is not what is wrong. `wanted`: of this GPU type where that is possible.
local function several(items, problem, wanted)
  local best, parts, why, most
  for _, name in ipairs(types_of(items) or {}) do
    local kind = SEVERAL[name]
    if kind.refused then
      why = why or kind.refused
    else
      most = math.max(most or 1, kind.gpus)
      local found = packed(items, kind)
      -- Of several types that could serve the one with most GPUs on a node, then by name.
      local better = not best or name == wanted
        or (best ~= wanted and kind.gpus > SEVERAL[best].gpus)
      if found and better then best, parts = name, found end
    end
  end
  if best then return string.format("gpu:%s:%d", best, #parts), parts end
  if most then
    return nil, string.format(
      "these slices do not fit on the %d GPU%s that a job may have on one node; %s", most,
      most == 1 and "" or "s", in_its_place(items, most)
    )
  end
  if why then return nil, "these slices do not fit on one GPU, and " .. why .. "; "
    .. in_its_place(items, 1) end
  return nil, problem
end

-- The GPU type that a request's shards or whole GPUs name, or nil.
local function type_named(read)
  if read.shards[1] then return type_of_shards(read.shards[1]) end
  for _, token in ipairs(read.others) do
    local kind = string.match(token, "gpu:([^:=]+):%d+$")
    if kind then return kind end
  end
end

-- What a request costs: its shards, or the GPUs that it needs all of, as a gres token without
-- prefix; and with GPUs the part of each. Returns nil and a reason where neither holds it.
-- `kind`: of this GPU type where that is possible.
local function cost(items, kind)
  local shards, problem = price(items, false, kind)
  if shards and one_holds(items) then return shards, nil end
  return several(items, problem, kind)
end

-- The request's stamp -------------------------------------------------------

local STAMP = "slurm%-mig=%S*"

-- A text without any stamp. Repeated, so that taking one out cannot put another together.
local function without_stamp(text)
  local before
  repeat
    before = text
    text = string.gsub(text, STAMP, " ")
  until text == before
  -- By index: a pattern for trailing blanks would look at each run of blanks again and again.
  local first, last = string.find(text, "%S"), #text
  while last > 0 and string.find(string.sub(text, last, last), "%s") do last = last - 1 end
  return first and string.sub(text, first, last) or ""
end

local function with_stamp(text, stamp)
  local own = without_stamp(text or "")
  if own == "" then return stamp end
  return own .. " " .. stamp
end

local function make_stamp(items)
  local words = { "slurm-mig=1" }
  for _, item in ipairs(items) do
    local gres = GRES[item.name]
    table.insert(
      words, string.format("%s/%s/%d:%d", gres.profile, gres.id, gres.weight, item.count)
    )
  end
  return table.concat(words, ",")
end

-- The stamp of slices on several GPUs: what stands in one GPU's, for each of them.
local function stamp_of_several(parts)
  local words = {}
  for _, part in ipairs(parts) do
    table.insert(words, (string.gsub(make_stamp(part), "^[^,]*,", "")))
  end
  return "slurm-mig=2," .. table.concat(words, ";")
end

-- Where a stamp may stand. Slurm hands both to the Prolog; ours is written into the comment, for
-- under SchedulerParameters=extra_constraints `extra` is read as a rule about nodes. Jobs from
-- before an upgrade have theirs in `extra`.
local STAMPED = { "comment", "extra" }

-- Take stamps out of what the user wrote: job_submit.lua alone may write one.
local function strip_fields(job)
  for _, field in ipairs(STAMPED) do
    local text = job[field]
    if text and string.find(text, STAMP) then job[field] = without_stamp(text) end
  end
end

-- Rules ------------------------------------------------------------------------

-- Everywhere a request for GPUs or slices can stand.
local TRES_FIELDS = { "tres_per_node", "tres_per_job", "tres_per_task", "tres_per_socket" }

-- Places where a count is for the whole job, a task or a socket. Only the controller could say
-- what that means per node, and some releases accept it and allocate nothing.
local ELSEWHERE = {
  tres_per_job = "--gpus",
  tres_per_task = "--tres-per-task or --gpus-per-task",
  tres_per_socket = "--gpus-per-socket",
}

-- Partitions that hand out whole nodes (OverSubscribe=EXCLUSIVE, max_share 0) among those the
-- job may run in: a MIG job there waits for ever, as it does with --exclusive.
local function whole_node_partition(job, partitions)
  for name, partition in pairs(partitions or {}) do
    local chosen = job.partition
    if chosen then
      chosen = string.find("," .. chosen .. ",", "," .. name .. ",", 1, true)
    else
      chosen = partition.flag_default == 1
    end
    if chosen and partition.max_share == 0 then return name end
  end
end

-- A whole GPU of a type that the site keeps for slices, or nil.
local function kept_for_slices(job)
  for _, field in ipairs(TRES_FIELDS) do
    for token in string.gmatch(job[field] or "", "[^,]+") do
      local kind = string.match(token, "^gres[:/]gpu:([^:=]+)") or string.match(token, "^gpu:([^:=]+)")
      if kind and SLICES_ONLY[kind] then return kind end
      if SLICES_ONLY["*"] and string.find(token, "%f[%w]gpu%f[%W]") then return "*" end
    end
  end
end

-- Whether a job asks for GPUs as they are, in any field. A field that is there need not name one
-- (clients from 23.11 on write `cpu=4` into tres_per_task for -c 4), and none of them is none.
-- `paid` are those that slices are paid with: cli_filter.lua has written them, too.
local function wants_whole(job, paid)
  for _, field in ipairs(TRES_FIELDS) do
    for token in string.gmatch(job[field] or "", "[^,]+") do
      local body = string.match(token, "^gres[:/](.*)$") or token
      if body == paid and field == "tres_per_node" then
        paid = nil
      elseif string.find(body, "^gpu%f[:=%z]") and not string.find(body, "[:=]0+$") then
        return true
      end
    end
  end
  return false
end

-- Returns nil when the request is none of ours, else true, or false and a reason.
local function apply(job, partitions)
  local kept = kept_for_slices(job)
  if kept then
    return false, (kept == "*" and "GPUs" or kept .. " GPUs")
      .. " are given out in slices only; write --gres=mig:<profile>:<count>, profiles: " .. KNOWN
  end
  for field, option in pairs(ELSEWHERE) do
    if job[field] and mentions(job[field]) then
      return false, "mig cannot be asked for with " .. option .. "; write --gres=mig:<profile>:<count>"
    end
  end
  local text = job.tres_per_node
  if not text or not mentions(text) then return nil end
  local read, problem = read_gres(text)
  if not read then return false, problem end
  if #read.items == 0 then
    return false, "shards are counted by slurm-mig; write --gres=mig:<profile>:<count>"
  end
  -- cli_filter.lua has written the name that is counted in place of a word for one GPU type: what
  -- is left of that word is the type of its shards or GPUs.
  local shards, parts = cost(read.items, type_named(read))
  if not shards then return false, parts end
  if wants_whole(job, parts and shards) then
    return false, parts and "whole GPUs are counted by slurm-mig; ask for the slices alone"
      or "whole GPUs and MIG slices in one job are not possible"
  end
  if #read.shards > 1 or (read.shards[1] and read.shards[1] ~= shards) then
    return false, "shards are counted by slurm-mig; leave '" .. read.shards[1] .. "' out"
  end
  if job.shared == 0 then
    return false, "--exclusive with MIG slices would wait for ever; leave it out or ask for a GPU"
  end
  local whole = whole_node_partition(job, partitions)
  if whole then
    return false, "partition " .. whole .. " gives out whole nodes, a MIG job there would wait for "
      .. "ever; choose another one"
  end
  job.tres_per_node = written(read, shards)
  job.comment = with_stamp(job.comment, parts and stamp_of_several(parts) or make_stamp(read.items))
  return true
end

local function refuse(reason)
  slurm.log_user("slurm-mig: " .. string.gsub(reason, "%%", "%%%%"))
  return slurm.ERROR
end

-- What a batch job inherits from the step it was submitted from says nothing of itself, and
-- slurmd leaves it in place. TaskProlog must not take a batch script for a step, nor a first
-- run for a restart.
local INHERITED = {
  "SLURM_RESTART_COUNT", "SLURM_STEP_ID", "SLURM_STEP_GPUS", "SLURM_STEP_TASKS_PER_NODE",
}

local function forget_inherited(job)
  local environment = job.environment
  if not environment then return end
  for _, name in ipairs(INHERITED) do
    if (environment[name] or "") ~= "" then environment[name] = "" end
  end
end

-- Whether a job asks for GPUs in any form, or for slices.
local function wants_gpu(job)
  for _, field in ipairs(TRES_FIELDS) do
    local text = job[field]
    if text and (mentions(text) or string.find(text, "gpu", 1, true)) then return true end
  end
  return false
end

local function submit(job, partitions)
  strip_fields(job)
  local fine, reason = apply(job, partitions)
  if fine == false then return refuse(reason) end
  -- Interactive jobs have neither script nor environment here.
  if wants_gpu(job) and job.script then
    local worked, problem = pcall(forget_inherited, job)
    -- The job is right without it; only that it was submitted from inside a step may confuse it.
    if not worked then
      slurm.log_error("slurm-mig: inherited variables of a job stay: %s", tostring(problem))
    end
  end
  return slurm.SUCCESS
end

-- A change of a job that has slices, or would get them, would leave its shards or its stamp
-- behind; 22.05 even merges the old list into the new one. So: cancel and submit again.
local function modify(job, record, partitions)
  local held = record.tres_per_node
  local ours = held ~= nil and mentions(held)
  for _, field in ipairs(TRES_FIELDS) do
    local text = job[field]
    if text and text ~= record[field] and (ours or mentions(text)) then
      return refuse("the gres of a MIG job cannot be changed; cancel it and submit again")
    end
  end
  if ours and job.shared == 0 then
    return refuse("a MIG job cannot become --exclusive")
  end
  if ours and job.partition and whole_node_partition(job, partitions) then
    return refuse("partition " .. job.partition .. " gives out whole nodes, not MIG slices")
  end
  if kept_for_slices(job) then return refuse("GPUs of that type are given out in slices only") end
  strip_fields(job)
  if ours then
    for _, field in ipairs(STAMPED) do
      local stamp = string.match(record[field] or "", STAMP)
      if stamp and job[field] then job[field] = with_stamp(job[field], stamp) end
    end
  end
  return slurm.SUCCESS
end

-- Entry points -------------------------------------------------------------------

-- Whether an error may be passed over: only for jobs that have nothing to do with us.
local function unconcerned(job)
  local function concerns(field)
    local read, text = pcall(function() return job[field] end)
    return read and type(text) == "string" and (mentions(text) or string.find(text, STAMP))
  end
  for _, field in ipairs(TRES_FIELDS) do
    if concerns(field) then return false end
  end
  return not concerns("comment") and not concerns("extra")
end

-- Before 26.05 a Lua error lets the job through unmodified: catch it, and fail closed.
local function guarded(what, job, body)
  local worked, result = pcall(body)
  if worked then return result end
  slurm.log_error("slurm-mig: %s: %s", what, tostring(result))
  if unconcerned(job) then return slurm.SUCCESS end
  return refuse("internal error in job_submit.lua; please tell your administrators")
end

function slurm_job_submit(job_desc, part_list, submit_uid)
  return guarded("submit", job_desc, function() return submit(job_desc, part_list) end)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return guarded("modify", job_desc, function() return modify(job_desc, job_rec, part_list) end)
end

return slurm.SUCCESS
