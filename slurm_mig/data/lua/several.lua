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
    types = common_types(types, item.types or GRES[item.name].types)
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
local function type_named(asked)
  if asked.shards[1] then return type_of_shards(asked.shards[1]) end
  for _, token in ipairs(asked.whole) do
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
