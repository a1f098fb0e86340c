-- cli_filter.lua, written by `slurm-mig generate` 0.1.0. Do not edit.

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

-- Convenience, not control: a step's gres never passes job_submit.lua, and under
-- ConstrainDevices a step without shards may not open its GPU. Whatever this file does, the
-- controller decides by job_submit.lua; so an error here only means that nothing is added.

-- Whether the command starts a step inside a job that has its slices already.
local function is_step(options)
  return options["type"] == "srun" and os.getenv("SLURM_JOB_ID") ~= nil
end

-- What a step of a job with slices on several GPUs has to ask for beside its slices: GPUs, so
-- many that whichever Slurm chooses have them. TaskProlog tells what is on each of the job's.
local function gpus_of_step(items)
  local gpus = 1
  for _, item in ipairs(items) do
    local counts = {}
    for part in string.gmatch(os.getenv("SLURM_MIG_PARTS") or "", "[^;]+") do
      local count = 0
      for profile, number in string.gmatch(part, "([^:,]+):(%d+)") do
        if profile == GRES[item.name].profile then count = tonumber(number) end
      end
      table.insert(counts, count)
    end
    table.sort(counts)
    local least, sum = 0, 0
    while sum < item.count and least < #counts do
      least = least + 1
      sum = sum + counts[least]
    end
    gpus = math.max(gpus, least)
  end
  return "gpu:" .. gpus
end

-- The gres that pays for the items: shards, or GPUs where one does not hold them.
local function payment(items, step)
  if not step then return (cost(items)) end
  if os.getenv("SLURM_MIG_PARTS") then return gpus_of_step(items) end
  return price(items, true)
end

local function pre_submit(options)
  local text = options["gres"]
  if not text or not mentions(text) then return end
  local read = read_gres(text)
  if not read or #read.items == 0 or #read.shards > 0 then return end
  for _, token in ipairs(read.others) do
    -- Whoever names GPUs, too, has counted them.
    if string.find(token, "^gpu[:=]") or string.find(token, "^gres[:/]gpu[:=]") then return end
  end
  local shards = payment(read.items, is_step(options))
  if shards then options["gres"] = written(read, shards) end
end

function slurm_cli_setup_defaults(options, early_pass)
  return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, pack_offset)
  pcall(pre_submit, options)
  return slurm.SUCCESS
end

function slurm_cli_post_submit(offset, job_id, step_id)
  return slurm.SUCCESS
end

return slurm.SUCCESS
