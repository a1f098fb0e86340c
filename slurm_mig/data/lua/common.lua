-- Reading gres texts -------------------------------------------------------

-- Slurm takes texts of any length; no request of ours is longer, and slurmctld has to wait
-- while we read.
local LONGEST = 1024

-- The name of a gres that is ours, however it is written, or nil. What only has the word in its
-- name (mig_24gb, my-mig) is another's.
local function our_gres(name)
  local word, mark = string.match(string.lower(name), "^%W*(%w+)(.?)")
  if (word == "mig" or word == "shard") and not string.find(mark, "[%w_%-%.]") then return word end
end

-- A set in the order of its words, for people.
local function listed(set, between)
  local words = {}
  for word in pairs(set) do table.insert(words, word) end
  table.sort(words)
  return table.concat(words, between or ", ")
end

-- Members of both sets; all of the second where there is no first.
local function common_types(before, now)
  local both = {}
  for name in pairs(now) do
    if not before or before[name] then both[name] = true end
  end
  return both
end

-- Words for slices ------------------------------------------------------------

-- Profile as in the stamp -> names of the gres; slices and attribute -> the same with their
-- memory, for a driver may call one profile 3g.39gb and another driver 3g.40gb.
local BY_PROFILE, FAMILIES = {}, {}
for name, gres in pairs(GRES) do
  BY_PROFILE[gres.profile] = BY_PROFILE[gres.profile] or {}
  table.insert(BY_PROFILE[gres.profile], name)
  local head, memory, tail = string.match(gres.profile, "^(.*%d+g%.)(%d+)gb(.*)$")
  FAMILIES[head .. tail] = FAMILIES[head .. tail] or {}
  table.insert(FAMILIES[head .. tail], { name = name, memory = tonumber(memory) })
end

-- How people, Slurm and Kubernetes write what NVIDIA writes with a plus.
local ATTRIBUTES = {
  [""] = "", ["+me"] = "+me", [".me"] = "+me", ["_me"] = "+me", ["-me"] = "-me",
  ["+gfx"] = "+gfx", [".gfx"] = "+gfx", ["_gfx"] = "+gfx", ["-gfx"] = "+gfx",
  ["+me.all"] = "+me.all", [".me.all"] = "+me.all", ["_me_all"] = "+me.all", ["-me-all"] = "+me.all",
}

-- A word that has a profile in it: the GPU model before it (letters and digits alone), the
-- head and tail of the profile's name, and its memory. Returns nil for any other word.
local function parts_of(word)
  -- No name of a GPU is longer; so what follows need not be linear.
  if #word > 100 then return nil end
  local lower = string.lower(word)
  local from, to, slices, memory = string.find(lower, "(%d+)g[%._%-]?(%d+)gb")
  local attribute = from and ATTRIBUTES[string.sub(lower, to + 1)]
  if not attribute then return nil end
  local head = string.sub(lower, 1, from - 1)
  local compute = string.match(head, "%f[%w](%d+)c[%._%-]?$")
  if compute then head = string.gsub(head, "%d+c[%._%-]?$", "") end
  local model = string.gsub(head, "[^%w]", "")
  model = string.gsub(string.gsub(model, "^mig", ""), "^nvidia", "")
  model = string.gsub(string.gsub(model, "^mig", ""), "mig$", "")
  return {
    model = model,
    head = (compute and compute .. "c." or "") .. slices .. "g.",
    memory = tonumber(memory),
    tail = attribute,
  }
end

-- Names of gres among `names` that GPUs of these types have; all where no type is asked for.
local function of_types(names, types)
  local found = {}
  for _, name in ipairs(names) do
    local both = common_types(types, GRES[name].types)
    if next(both) then found[name] = both end
  end
  return found
end

-- Names of the profiles that another driver calls so. Drivers round memory differently;
-- neighbours differ by half.
local function alike(parts)
  local names = {}
  for _, item in ipairs(FAMILIES[parts.head .. parts.tail] or {}) do
    local larger = math.max(item.memory, parts.memory)
    if 8 * math.abs(item.memory - parts.memory) <= larger then table.insert(names, item.name) end
  end
  return names
end

-- How far two words are apart, in letters to change; no more than `most` is worth knowing.
local function distance(one, other, most)
  if math.abs(#one - #other) > most then return most + 1 end
  local row = {}
  for j = 0, #other do row[j] = j end
  for i = 1, #one do
    local corner = row[0]
    row[0] = i
    for j = 1, #other do
      local change = corner + (string.byte(one, i) == string.byte(other, j) and 0 or 1)
      corner = row[j]
      row[j] = math.min(change, row[j] + 1, row[j - 1] + 1)
    end
  end
  return row[#other]
end

-- The known word that is nearest to one that is not, as the end of a sentence.
local function meant(word)
  local lower, best, least = string.lower(string.sub(word, 1, 41)), nil, 3
  if #lower > 40 then return "" end
  for _, set in ipairs({ GRES, WORDS, SITE_WORDS }) do
    for known in pairs(set) do
      local far = distance(lower, known, least)
      if far < least or (far == least and best and known < best) then best, least = known, far end
    end
  end
  return best and ", did you mean " .. best or ""
end

-- What there is for a job: the profiles of its partitions where the site says which, else all.
local function known_in(where)
  local words = {}
  for _, partition in ipairs(where and where.partitions or {}) do
    if not PARTITIONS[partition] then return "known: " .. KNOWN end
    words[PARTITIONS[partition].known] = true
  end
  if not next(words) then return "known: " .. KNOWN end
  return "in partition " .. table.concat(where.partitions, ",") .. ": " .. listed(words)
end

local function unknown(word, where)
  return "unknown MIG profile '" .. string.sub(word, 1, 80) .. "'" .. meant(word) .. "; "
    .. known_in(where)
end

-- Where several gres are meant: those that the job's partitions have, if the site says so.
local function in_partitions(found, where)
  local types = nil
  for _, partition in ipairs(where and where.partitions or {}) do
    if not PARTITIONS[partition] then return found end
    types = types or {}
    for name in pairs(PARTITIONS[partition].types) do types[name] = true end
  end
  local names = {}
  for name in pairs(found) do table.insert(names, name) end
  return types and of_types(names, types) or found
end

-- The slice that a word with a profile in it means; nil for a word without, nil and a reason
-- for the user where it means none, or more than one.
local function by_profile(word, where)
  local parts = parts_of(word)
  if not parts then return nil end
  local types = nil
  if parts.model ~= "" then
    types = MODELS[parts.model]
    if not types then
      return nil, "unknown GPU model in '" .. word .. "'" .. meant(word) .. "; " .. known_in(where)
    end
  end
  local name = parts.head .. parts.memory .. "gb" .. parts.tail
  local found = of_types(BY_PROFILE[name] or {}, types)
  if not next(found) then found = of_types(alike(parts), types) end
  if next(found, (next(found))) then found = in_partitions(found, where) end
  -- A plain name stands for the models that agree, and for none else.
  if not types and found[name] then found = { [name] = found[name] } end
  local one, of = next(found)
  if not one then
    return nil, unknown(word, where)
  end
  if next(found, one) then
    return nil, "'" .. word .. "' is a profile of several GPU models; write one of "
      .. "--gres=mig:" .. listed(found, ":1, --gres=mig:") .. ":1"
  end
  return { name = one, types = types and of }
end

-- A slice by its row in a table of words: the gres, and the GPU type where it has to be that one.
local function slice_of(row)
  return { name = row.name, types = row.only and { [row.only] = true } }
end

-- The slice that stands for a word of the site's, or nil.
local function by_word(word)
  local known = SITE_WORDS[string.lower(word)]
  return known and slice_of(known)
end

-- The slice that a user's word behind `mig:` means: a gres, a word of the site's, memory
-- ("20gb": the smallest profile that has it), or a profile as others write it.
local function resolve(word, where)
  if GRES[word] then return { name = word } end
  if WORDS[word] then return slice_of(WORDS[word]) end
  if UNCLEAR[word] then
    return nil, "'" .. word .. "' differs between GPU models; write " .. UNCLEAR[word]
  end
  local slice, problem = by_word(word)
  if slice then return slice end
  local wanted = string.match(word, "^([1-9]%d?%d?%d?)gb$")
  if wanted then
    for _, row in ipairs(BY_MEMORY) do
      if row.gb >= tonumber(wanted) then return { name = row.name } end
    end
    return nil, "no MIG profile has " .. word .. "; " .. known_in(where)
  end
  slice, problem = by_profile(word, where)
  if slice or problem then return slice, problem end
  return nil, unknown(word, where)
end

-- Where a job may run ---------------------------------------------------------

-- More places than this nobody means, nor longer lists of them.
local MANY = 100
local LONGEST_LIST = 8 * LONGEST

local function each(text, separator)
  local words = {}
  for word in string.gmatch(text or "", "[^" .. separator .. "%s]+") do table.insert(words, word) end
  return words
end

-- Features that nodes must have, for each alternative ("mig&ib", "[a|b]", "mig*2").
local function alternatives(features)
  local found, parts = {}, each(features, "|")
  if #parts > MANY then return parts end
  for _, part in ipairs(parts) do
    local set = {}
    for _, word in ipairs(each(part, "&,%[%]%(%)")) do set[string.match(word, "^[^%*]*")] = true end
    table.insert(found, set)
  end
  return #found > 0 and found or { {} }
end

-- Partition, features and reservation, in every combination that the job leaves open.
local function where_of(partition, features, reservation)
  if #(partition or "") + #(features or "") + #(reservation or "") > LONGEST_LIST then
    return { partitions = {}, contexts = {}, many = true }
  end
  local where = { partitions = each(partition, ","), contexts = {} }
  local reservations = each(reservation, ",")
  local partitions = #where.partitions > 0 and where.partitions or { "" }
  if #reservations == 0 then reservations = { "" } end
  local sets = alternatives(features)
  where.many = #partitions * #sets * #reservations > MANY
  if where.many then return where end
  for _, name in ipairs(partitions) do
    for _, set in ipairs(sets) do
      for _, reserved in ipairs(reservations) do
        table.insert(where.contexts, { partition = name, features = set, reservation = reserved })
      end
    end
  end
  return where
end

-- Requests ----------------------------------------------------------------------

-- Type and count behind a gres' name: "", ":2", "=2", ":type", ":type:2", ":type=2". The count
-- is nil where Slurm may read another number than we do (k and M are multipliers).
local function type_and_count(rest)
  if rest == "" then return nil, 1 end
  local count = string.match(rest, "^[:=](%d+)$")
  if count then return nil, #count < 6 and tonumber(count) or nil end
  local kind = string.match(rest, "^:([^:=]+)$")
  -- Slurm takes "+1", " 1" and "1k" for counts, not for types.
  if kind and string.find(kind, "^%s*[+-]?%d+%a?%s*$") then return nil, nil end
  if kind then return kind, 1 end
  kind, count = string.match(rest, "^:([^:=]+)[:=](%d+)$")
  if kind then return kind, #count < 6 and tonumber(count) or nil end
  return string.match(rest, "^:([^:=]+)"), nil
end

local function unreadable(body, where)
  return "cannot read '" .. string.sub(body, 1, 80)
    .. "'; write --gres=mig:<profile>:<count>, count 1 to 99, " .. known_in(where)
end

-- One token that is `mig`: its slice, or nil and a reason.
local function read_mig(body, rest, where)
  local word, count = string.match(rest, "^:([^:=]+)[:=]([1-9]%d?)$")
  if not word then word, count = string.match(rest, "^:([^:=]+)$"), 1 end
  -- A number alone would be Slurm's count of instances of no profile.
  if not word or not string.find(word, "%a") then return nil, unreadable(body, where) end
  local slice, problem = resolve(word, where)
  if not slice then return nil, problem end
  slice.count = tonumber(count)
  return slice
end

-- A row of the site's defaults is for a job that is in one of its partitions, has one of its
-- features and is in one of its reservations; what a row does not name does not matter.
local function fits(row, context)
  if row.partitions and not row.partitions[context.partition] then return false end
  if row.reservations and not row.reservations[context.reservation] then return false end
  if not row.features then return true end
  for feature in pairs(context.features) do
    if row.features[feature] then return true end
  end
  return false
end

local function said(row, key)
  local value = row and row[key]
  return type(value) == "table" and value.name .. ":" .. (value.only or "") or value
end

-- What the site says of a GPU in each place where the job may run: a slice, or CPUs or memory.
-- Returns the row that says it, nil where none does, or nil and true where the places differ.
local function default_for(where, key)
  if #DEFAULTS == 0 then return nil end
  if where.many then return nil, true end
  local found = nil
  for place, context in ipairs(where.contexts) do
    local here = false
    for _, row in ipairs(DEFAULTS) do
      if row[key] ~= nil and fits(row, context) then
        here = row
        break
      end
    end
    if place == 1 then
      found = here
    elseif said(found, key) ~= said(here, key) or said(found, "share") ~= said(here, "share") then
      return nil, true
    end
  end
  return found or nil
end

-- A slice of any profile: what a step of a job with slices means by a GPU without a type.
local ANY = "<profile>"

-- A GPU without a type: the slice that the site gives for one, nil where it is a whole GPU.
local function untyped(count, where)
  if where.step then return { name = ANY } end
  local row, differ = default_for(where, "slice")
  if differ then
    return nil, "a GPU is not the same in all partitions, features and reservations of this job; "
      .. "say which slice: --gres=mig:<profile>:" .. (count or 1) .. ", " .. known_in(where)
  end
  return row and slice_of(row.slice)
end

-- One token that is `gpu`: nil for a whole GPU, a slice, false for none at all; nil and a reason.
local function read_gpu(body, rest, where)
  local kind, count = type_and_count(rest)
  if count == 0 then return false end
  if not BRIDGE or (kind and STATIC[kind]) then return nil end
  local slice, problem
  if not kind then
    slice, problem = untyped(count, where)
  else
    slice = by_word("gpu:" .. kind) or by_word(kind)
    if not slice then slice, problem = by_profile(kind, where) end
    -- Neither a slice nor a type of the site's, but meant for a profile.
    if not slice and not problem and string.find(kind, "%d[gG][%._%-]%d") then
      problem = unknown(kind, where)
    end
    -- The name that many sites give to slices of any size says nothing of it.
    if not slice and not problem and string.lower(kind) == "mig" then
      problem = unreadable(body, where)
    end
  end
  if not slice then return nil, problem end
  if not count or count > 999 then return nil, unreadable(body, where) end
  slice.count, slice.translated = count, true
  return slice
end

-- Cut a tres text ("gres:mig:3g.40gb:1,gres:gpu:2"; client tools leave the prefix out) into its
-- tokens. `where` is what the job says of its partitions, features and reservations. Returns
-- nil and a reason for the user when a token is one that Slurm and we might read differently.
local function read_gres(text, where)
  if #text > LONGEST then return nil, "a gres text of " .. #text .. " characters is too long" end
  local read = { items = {}, others = {}, shards = {}, whole = {}, prefix = "", foreign = false }
  for token in string.gmatch(text, "[^,]+") do
    local prefix, body = string.match(token, "^(gres[:/])(.*)$")
    if not prefix then prefix, body = "", token end
    local name, rest = string.match(body, "^([^:=]+)(.*)$")
    local slice, problem
    read.named = read.named or name == "gpu" or name == "mig" or name == "none"
    if body == "" then
      -- Nothing stands before, between or behind commas; Slurm passes over that, too.
    elseif name == "mig" then
      slice, problem = read_mig(body, rest, where)
    elseif name == "shard" then
      table.insert(read.shards, body)
    elseif PUBLISH and name == "fit" then
      problem = "what fits is counted by slurm-mig; leave '" .. string.sub(body, 1, 80) .. "' out"
    elseif name == "gpu" then
      slice, problem = read_gpu(body, rest, where)
      read.gpus = read.gpus or slice ~= false
      if slice == nil and not problem then table.insert(read.whole, token) end
    elseif not name or name == "gres" or string.find(name, "gres/", 1, true) or our_gres(name)
      or our_gres(string.match(name, "[^/]*$")) then
      problem = "cannot read '" .. string.sub(body, 1, 80) .. "'; write --gres=mig:<profile>:<count>"
    else
      local kind, count = type_and_count(rest)
      slice = BRIDGE and (by_word(name .. ":" .. (kind or "")) or by_word(name))
      if slice and not count then problem = unreadable(body, where) end
      if slice then slice.count, slice.translated = count, true end
      if not slice then table.insert(read.others, token) end
    end
    if problem then return nil, problem end
    if slice then
      read.prefix = prefix
      if slice.count > 0 then table.insert(read.items, slice) end
      read.translated = read.translated or slice.translated
      read.foreign = read.foreign or name ~= "gpu"
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
    types = common_types(types, item.types or gres.types)
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

-- A gres text again: what was asked, under the names that Slurm counts, and its shards, if they
-- are to stand there.
local function written(items, shards, others, prefix)
  local tokens = {}
  for _, item in ipairs(items) do
    table.insert(tokens, string.format("%smig:%s:%d", prefix, item.name, item.count))
  end
  if shards then table.insert(tokens, prefix .. shards) end
  for _, token in ipairs(others) do table.insert(tokens, token) end
  return table.concat(tokens, ",")
end
