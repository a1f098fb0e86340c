-- cli_filter.lua, written by `slurm-mig generate` 0.1.0. Do not edit.

-- Whether words of static MIG are translated; GPU types that are whole GPUs;
-- spellings of GPU models; the site's words; what a GPU is where; partitions.
local BRIDGE = true
local STATIC = { ["h100"] = true, ["a30"] = true }
local MODELS = { ["h100"] = { ["h100"] = true }, ["h10080gb"] = { ["h100"] = true }, ["h10080gbhbm3"] = { ["h100"] = true }, ["h10080gbsxm"] = { ["h100"] = true }, ["h800"] = { ["h100"] = true }, ["a30"] = { ["a30"] = true }, ["a3024gb"] = { ["a30"] = true } }
local SITE_WORDS = {  }
local DEFAULTS = {
}
local PARTITIONS = {  }
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
-- Whether nodes publish what fits, and jobs wait for it.
local PUBLISH = false
local KNOWN = "1g.10gb, 1g.10gb+me, 1g.20gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb, 1g.6gb, 1g.6gb+me, 2g.12gb, 2g.12gb+me, 4g.24gb"

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

-- From a job, its tasks and its sockets to a node -------------------------------

-- Fields of a job, the option that fills each, and what a count in it is for.
local PLACES = {
  { field = "tres_per_node", option = "--gres", of = "node" },
  { field = "tres_per_job", option = "--gpus", of = "job" },
  { field = "tres_per_task", option = "--gpus-per-task", of = "task" },
  { field = "tres_per_socket", option = "--gpus-per-socket", of = "socket" },
}

-- The line that a user may type for slices on each node.
local function line_for(items, count)
  local words = {}
  for _, item in ipairs(items) do
    table.insert(words, "mig:" .. item.name .. ":" .. (count or item.count))
  end
  return "--gres=" .. table.concat(words, ",")
end

-- Each item times a number, or divided by one that divides all; nil where it does not.
local function times(items, factor, divisor)
  local found = {}
  for _, item in ipairs(items) do
    local count = item.count * factor
    if count % divisor ~= 0 then return nil end
    table.insert(found, { name = item.name, types = item.types, count = math.floor(count / divisor) })
  end
  return found
end

-- How many nodes a request for the whole job runs on, where it leaves that open: the fewest.
local function fewest_nodes(items, shape)
  local least = shape.least or 1
  for nodes = least, math.min(shape.most or least, least + MANY) do
    if times(items, 1, nodes) then return nodes end
  end
end

-- Slices on each node of a request per task, and how many nodes and tasks on each that takes.
local function of_tasks(items, shape)
  local nodes = shape.fixed
  local tasks = shape.tasks or (nodes and shape.each and nodes * shape.each)
  if not tasks then
    return nil, "slices for each task need the number of tasks; add -n <tasks>, or write "
      .. line_for(items, "<count>")
  end
  nodes = nodes or (shape.each and math.ceil(tasks / shape.each)) or shape.least or 1
  if tasks % nodes ~= 0 then
    return nil, tasks .. " tasks on " .. nodes .. " nodes are not as many on each; change -n or -N, "
      .. "or write " .. line_for(items, "<count for each node>")
  end
  local each_node = math.floor(tasks / nodes)
  return times(items, each_node, 1), { nodes = nodes, tasks = each_node }
end

-- Slices on each node of a request for the job.
local function of_job(items, shape)
  local nodes = shape.fixed or fewest_nodes(items, shape)
  local found = nodes and times(items, 1, nodes)
  if not found then
    return nil, "so many slices cannot be shared out evenly over "
      .. (nodes or (shape.least or 1) .. " to " .. (shape.most or shape.least)) .. " nodes; write "
      .. line_for(items, "<count for each node>")
  end
  return found, { nodes = nodes }
end

local function same(items, others)
  if #items ~= #others then return false end
  local counts = {}
  for _, item in ipairs(items) do counts[item.name] = item.count end
  for _, item in ipairs(others) do
    if counts[item.name] ~= item.count then return false end
  end
  return true
end

-- Slices on each node from what is asked for by node, job, task and socket. `shape` has what
-- the request says of nodes (least, most, fixed where both are one), tasks, tasks on each
-- node and sockets. Returns the items and what has to be fixed so that Slurm counts as we do;
-- nil and a reason where it cannot be known.
local function on_each_node(asked, shape)
  local given = {}
  for _, place in ipairs(PLACES) do
    if #asked[place.of] > 0 then table.insert(given, place) end
  end
  -- Slurm's own client counts the tasks of `--gpus=4 --gpus-per-task=1`.
  if #given == 2 and #asked.job > 0 and #asked.task > 0 and shape.tasks
    and same(times(asked.task, shape.tasks, 1), asked.job) then
    return of_tasks(asked.task, shape)
  end
  if #given > 1 then
    return nil, given[1].option .. " and " .. given[2].option .. " both ask for slices; keep one, "
      .. "such as " .. line_for(asked[given[1].of])
  end
  if #asked.job > 0 then return of_job(asked.job, shape) end
  if #asked.task > 0 then return of_tasks(asked.task, shape) end
  if #asked.socket > 0 then
    if shape.sockets then return times(asked.socket, shape.sockets, 1), {} end
    return nil, "slices for each socket need the number of sockets; add --sockets-per-node=<n>, or "
      .. "write " .. line_for(asked.socket, "<count>")
  end
  return asked.node, {}
end

local function total(items)
  local sum = 0
  for _, item in ipairs(items) do sum = sum + item.count end
  return sum
end

-- A number for each slice, of which a site may say that a slice has its share of it: in whole
-- units, rounded up.
local function for_slices(number, items, by_share)
  local sum = 0
  for _, item in ipairs(items) do
    local gres = GRES[item.name]
    sum = sum + number * item.count * (by_share and gres.weight / (gres.capacity * gres.per) or 1)
  end
  return math.ceil(sum - 1e-9)
end

-- Whether a text of --gpu-bind asks for tasks that have GPUs of their own; otherwise, and without
-- a count for each task, every task of a job in the words of GPUs sees all of them, and scripts
-- share them out themselves.
local function binds(text)
  text = tostring(text or "")
  for _, word in ipairs({ "single", "per_task", "map_gpu", "mask_gpu" }) do
    if string.find(text, word, 1, true) then return true end
  end
  return false
end

-- Convenience, not control: a step's request never passes job_submit.lua, clients refuse some
-- words before it sees them, and under ConstrainDevices a step without shards may not open its
-- GPU. Whatever this file does, the controller decides by job_submit.lua; so an error here only
-- means that nothing is added.

-- Options in which GPUs can be asked for, what a count in each is for, and the variable by which
-- a job hands it on to its steps.
local OPTIONS = {
  { name = "gres", of = "node" },
  { name = "gpus", of = "job", variable = "SLURM_GPUS" },
  { name = "gpus-per-node", of = "node", variable = "SLURM_GPUS_PER_NODE" },
  { name = "gpus-per-task", of = "task", variable = "SLURM_GPUS_PER_TASK" },
  { name = "tres-per-task", of = "task", variable = "SLURM_TRES_PER_TASK" },
  { name = "gpus-per-socket", of = "socket", variable = "SLURM_GPUS_PER_SOCKET" },
}

-- A number of an option; some releases have 0, -2 or a word for one that is not given.
local function number_of(options, name)
  local number = tonumber(options[name])
  return number and number > 0 and number < 65000 and number or nil
end

local function text_of(options, name)
  local text = options[name]
  if type(text) == "string" and text ~= "" and text ~= "unset" and text ~= "invalid-context" then
    return text
  end
end

-- An option cannot be taken back, only be made empty; and one that nobody gave stays as it is,
-- for srun warns of empty ones.
local function clear(options, name)
  if text_of(options, name) then options[name] = "" end
end

-- Nodes as the client has them, "2", "1-4" or "1-0" where they are open, and tasks.
local function shape_of(options)
  local least, most = string.match(tostring(options["nodes"] or ""), "^(%d+)%-?(%d*)$")
  least, most = tonumber(least), tonumber(most) or tonumber(least)
  local tasks = number_of(options, "ntasks")
  if tasks == 1 and least and least > 1 then
    -- Not given: then srun starts one on each node.
    tasks = least
  elseif tasks and least and tasks < least then
    -- srun takes as many nodes as there are tasks.
    least, most = tasks, math.min(tasks, most)
  end
  return {
    least = least,
    most = most ~= 0 and most or nil,
    fixed = least == most and least or nil,
    tasks = tasks,
    each = number_of(options, "ntasks-per-node"),
    sockets = number_of(options, "sockets-per-node"),
  }
end

-- What a command prints; Slurm's own ones, where this machine has them.
local function told_by(command)
  local worked, pipe = pcall(io.popen, command .. " 2>/dev/null")
  if not worked or not pipe then return "" end
  local text = pipe:read("*a") or ""
  pipe:close()
  return text
end

-- Partitions, features and reservation of a request. Which partition is the default one is
-- asked for only where it matters.
local function place_of(options)
  local partition = text_of(options, "partition")
  if not partition and #DEFAULTS > 0 then
    partition = string.match(told_by("sinfo -h -o %P"), "([^%s]+)%*")
  end
  return where_of(partition, text_of(options, "constraint"), text_of(options, "reservation"))
end

-- One option, read; nil where it says nothing, nil and a reason where it cannot be read.
local function read_option(options, option, where)
  local text = text_of(options, option.name)
  if not text then return nil end
  if string.find(option.name, "gpus", 1, true) then
    text = "gpu:" .. string.gsub(text, ",", ",gpu:")
  end
  return read_gres(text, where)
end

local function repeats(options, option)
  return option.variable and os.getenv(option.variable) == text_of(options, option.name)
end

-- The options of GPUs, read. In a job what only repeats its own variables (`inherited`) counts
-- where nothing else is asked for; outside of one variables are as good as options.
local function read_options(options, where, inherited)
  local asked = { node = {}, job = {}, task = {}, socket = {}, whole = {}, shards = {}, others = {} }
  for _, option in ipairs(OPTIONS) do
    local read, problem = nil, nil
    if not where.step or (inherited or false) == (repeats(options, option) or false) then
      read, problem = read_option(options, option, where)
    end
    if problem then return nil, problem end
    if read then
      for _, item in ipairs(read.items) do table.insert(asked[option.of], item) end
      for _, token in ipairs(read.whole) do table.insert(asked.whole, token) end
      for _, token in ipairs(read.shards) do table.insert(asked.shards, token) end
      asked.others[option.name] = read.others
      asked.named = asked.named or read.named
      asked.mixed = asked.mixed or (read.foreign and read.gpus)
      asked.translated = asked.translated or read.translated
      if option.name == "gres" then asked.prefix = read.prefix end
    end
  end
  return asked
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

-- Hand a variable to the tasks, unless they are to have none.
local function export(options, variable)
  local text = text_of(options, "export") or "ALL"
  if text ~= "NONE" and text ~= "NIL" then options["export"] = text .. "," .. variable end
end

-- What srun cannot be made to forget ----------------------------------------------

-- Options that no filter can take back, with the least that getopt needs to know each. Slurm
-- refuses the first where there is no GPU. Before 23.11, with the others its tasks crash or may not
-- open the GPU of their shards. So srun is started again, without them.
local FOR_EACH_GPU = {
  ["cpus-per-gpu"] = "cpus-per-g", ["ntasks-per-gpu"] = "ntasks-per-g",
  ["mem-per-gpu"] = "mem-per-g", ["gpu-freq"] = "gpu-f",
}
local BINDING = { ["gpus-per-task"] = "gpus-per-t", ["gpu-bind"] = "gpu-b" }

local function variable_of(name)
  return "SLURM_" .. string.upper((string.gsub(name, "%-", "_")))
end

-- Whether a word of the command line is one of these options, and whether its value is the next.
local function is_option(word, names)
  local option, joined = string.match(word, "^%-%-([%a%-]+)(=?)")
  for name, least in pairs(names) do
    if option and #option >= #least and string.sub(name, 1, #option) == option then
      return true, joined == ""
    end
  end
end

-- The name and words of this command, srun's own without these options but with `more`, and the
-- program's as they are; nil where we cannot tell them apart.
local function own_words(options, names, more)
  local file = io.open("/proc/self/cmdline", "rb")
  local words, program = {}, options["argv"] or {}
  for word in string.gmatch(file and file:read("*a") or "", "([^%z]*)%z") do table.insert(words, word) end
  if file then file:close() end
  if #program == 0 or not string.find(words[1] or "", "srun[^/]*$") then return nil end
  local last, own, skip = #words - #program, {}, false
  -- In place of the program's name srun may have its path; the arguments are as they were.
  for place = 2, #program do
    if words[last + place] ~= program[place] then return nil end
  end
  for place = 2, last do
    -- A command of several components.
    if words[place] == ":" then return nil end
    local named, next_is_value = is_option(words[place], names)
    if not named and not skip then table.insert(own, words[place]) end
    skip = named and next_is_value
  end
  local ending = own[#own] == "--" and table.remove(own)
  for _, word in ipairs(more) do table.insert(own, word) end
  if ending then table.insert(own, ending) end
  for place = last + 1, #words do table.insert(own, words[place]) end
  return words[1], own
end

-- The exit code that os.execute tells: until Lua 5.1 as wait() has it, then in two words.
local function exit_code(told, kind, code)
  if type(told) ~= "number" then return kind == "signal" and 128 + code or code end
  local signal = told % 128
  return signal == 0 and math.floor(told / 256) or 128 + signal
end

-- srun blocks SIGTERM before it comes to us, so that one for us alone would wait until the other
-- srun ends: a watcher hands it on. One that kills us ends the other by the kernel's hand.
local START = [[
srun=$$ outer=$PPID
while sleep 1 && [ -e /proc/$outer ]; do
  while read -r key pending; do
    case $key:$pending in ShdPnd::*[4-7c-f]???) kill $srun && exit ;; esac
  done </proc/$outer/status
done </dev/null >/dev/null 2>&1 &
with=
setpriv --pdeathsig TERM true 2>/dev/null && with='setpriv --pdeathsig TERM'
exec $with ]]

-- Run this srun again without these options, with `more` words and an environment as env(1) is
-- told of it, and end as that does.
-- Returns only where that cannot be.
local function again(options, names, more, environment)
  local name, own = own_words(options, names, more)
  if not name then return end
  local words = { "env" }
  for option in pairs(names) do
    table.insert(words, "-u")
    table.insert(words, variable_of(option))
  end
  for _, list in ipairs({ environment, { name }, own }) do
    for _, word in ipairs(list) do
      table.insert(words, "'" .. string.gsub(word, "'", "'\\''") .. "'")
    end
  end
  os.exit(exit_code(os.execute(START .. table.concat(words, " "))))
end

-- How tasks are bound -----------------------------------------------------------------

-- What TaskProlog has to know of how many slices each task of a step has for itself. A step that
-- says how tasks are bound to GPUs is asked first: whatever is there for each task, with `none` or
-- `closest` all see all.
local function binding(options, each_task)
  local bind, said = text_of(options, "gpu-bind"), os.getenv("SLURM_MIG_BIND") or ""
  local asked = said == "asked"
  -- As Slurm has it, a variable does not take back what is asked for each task.
  if bind and not binds(bind) and os.getenv("SLURM_GPU_BIND") ~= bind then
    -- Its word for that; what the job asked for each task or GPU holds no longer.
    return said == ""
      and { "SLURM_MIG_BIND=asked", "SLURM_MIG_PER_TASK=0", "SLURM_MIG_TASKS_PER_SLICE=0" } or {}
  end
  -- One is what it does by itself, but in a job in the words of GPUs.
  if asked and bind and binds(bind) and each_task == 0 then each_task = 1 end
  return each_task >= (asked and 1 or 2) and { "SLURM_MIG_PER_TASK=" .. each_task } or {}
end

-- Hand that to the tasks. Slurm's own binding is of GPUs, of which there are none: the word that
-- has least effect takes its place, but before 23.11 there must be none. `more`: what is asked for
-- in place of slices for each task.
local function bind(options, each_task, more)
  local variables, bound = binding(options, each_task), each_task > 0 or text_of(options, "gpu-bind")
  local major, minor
  if bound then major, minor = string.match(told_by("srun --version"), "(%d+)%.(%d+)") end
  if major and tonumber(major) * 100 + tonumber(minor) < 2311 then
    local environment = {}
    for _, option in ipairs(OPTIONS) do
      -- What is asked for here takes the place of what the job hands on.
      if option.variable and more.all then table.insert(environment, "-u" .. option.variable) end
    end
    for _, variable in ipairs(variables) do table.insert(environment, variable) end
    if each_task > 0 and #variables == 0 then
      table.insert(environment, "SLURM_MIG_PER_TASK=" .. each_task)
    end
    again(options, BINDING, more, environment)
  end
  for _, variable in ipairs(variables) do export(options, variable) end
  if bound then options["gpu-bind"] = "closest" end
end

-- A request for slices of each task in words of the command line: for each node.
local function in_words(items, shards, asked, part, fix)
  if #asked.task == 0 then return {} end
  -- Beside `--gpus` it says how many tasks there are.
  if #asked.job > 0 then return { "--ntasks=" .. math.floor(total(asked.job) / total(asked.task)) } end
  local words = { "--gres=" .. written(items, shards, asked.others["gres"] or {}, ""), all = true }
  if fix.nodes and (fix.only or not part) then table.insert(words, "--nodes=" .. fix.nodes) end
  if fix.tasks and fix.nodes > 1 then table.insert(words, "--ntasks-per-node=" .. fix.tasks) end
  return words
end

-- Write a request for slices in the one form that jobs and steps have in common.
local function write(options, asked, items, part, fix)
  local shards = payment(items, part)
  if not shards then return end
  bind(options, total(asked.task), in_words(items, shards, asked, part, fix))
  -- Whole GPUs that slices are paid with: beside --gpus-per-node, even an empty one, srun 26.05
  -- takes none in --gres.
  local gpus = text_of(options, "gpus-per-node") and string.match(shards, "^gpu:(.+)$")
  options["gres"] = written(items, not gpus and shards, asked.others["gres"] or {}, asked.prefix or "")
  for _, option in ipairs(OPTIONS) do
    if gpus and option.name == "gpus-per-node" then
      options[option.name] = gpus
    elseif option.name ~= "gres" then
      local others = asked.others[option.name]
      if others and #others > 0 then
        options[option.name] = table.concat(others, ",")
      else
        clear(options, option.name)
      end
    end
  end
  if fix.nodes and (fix.only or not part) then options["nodes"] = tostring(fix.nodes) end
  if fix.tasks and fix.nodes > 1 then options["ntasks-per-node"] = tostring(fix.tasks) end
end

-- The shape of a request; --gpus=4 --gpus-per-task=1 says that it has four tasks.
local function counted_tasks(options, asked)
  local shape = shape_of(options)
  if #asked.job > 0 and #asked.task > 0 then
    shape.tasks = total(asked.job) / total(asked.task)
    options["ntasks"] = tostring(math.floor(shape.tasks))
  end
  return shape
end

local function refuse(text)
  slurm.log_error("slurm-mig: %s", text)
  return slurm.ERROR
end

-- Words and variables that say for `items` what a command says by stubborn options; nil where it
-- has none. `all`: a step of everything that its job has, where the job's own numbers hold already.
local function without_gpus(options, items, asked, shape, fix, all)
  local function said(name, number)
    return number and not (all and os.getenv(variable_of(name)) == tostring(options[name]))
  end
  local cpus, each = number_of(options, "cpus-per-gpu"), number_of(options, "ntasks-per-gpu")
  local memory, freq = text_of(options, "mem-per-gpu"), text_of(options, "gpu-freq")
  if not (cpus or each or memory or freq) then return nil end
  local nodes, count, tasks = fix.nodes or shape.least or 1, total(items), shape.tasks or 1
  local words, variables = {}, {}
  if each then table.insert(variables, "SLURM_MIG_TASKS_PER_SLICE=" .. each) end
  if said("ntasks-per-gpu", each) and not asked.named then
    -- Of tasks alone follows how many GPUs they have.
    count = math.ceil(tasks / each)
    table.insert(words, "--gpus=" .. count)
  elseif each and tasks < each * count * nodes then
    tasks = each * count * nodes
    table.insert(words, "--ntasks=" .. tasks)
  end
  if said("cpus-per-gpu", cpus) then
    table.insert(words, "--cpus-per-task=" .. math.ceil(cpus * count * nodes / tasks))
  end
  local amount, unit = string.match(memory or "", "^(%d+)(%a?)$")
  if said("mem-per-gpu", amount) then table.insert(words, "--mem=" .. math.floor(amount * count) .. unit) end
  return words, variables
end

-- Nil for a command without stubborn options. With them it does not return, or refuses.
local function restarted(options, ...)
  local words, variables = without_gpus(options, ...)
  if not words then return nil end
  again(options, FOR_EACH_GPU, words, variables)
  return refuse("srun cannot use options for each GPU here; write "
    .. table.concat(words, " ") .. " in their place")
end

-- srun outside of a job: its request becomes a job and then a step, by the same words.
local function srun_job(options)
  local where = place_of(options)
  local asked = read_options(options, where)
  if not asked or #asked.shards > 0 or #asked.whole > 0 then return end
  local shape = counted_tasks(options, asked)
  local implied = not asked.named and number_of(options, "ntasks-per-gpu") and untyped(1, where)
  if implied then asked.node = { { name = implied.name, types = implied.types, count = 1 } } end
  local items, fix = on_each_node(asked, shape)
  if not items or #items == 0 then return end
  local ended = restarted(options, items, asked, shape, fix)
  if ended then return ended end
  local shared = asked.translated and not binds(options["gpu-bind"]) and #asked.task == 0
  write(options, asked, items, nil, fix)
  if shared and (os.getenv("SLURM_MIG_BIND") or "") == "" then
    export(options, "SLURM_MIG_BIND=asked")
  end
end

-- sbatch and salloc: the controller translates all that reaches it.
local function job(options)
  local text = text_of(options, "gres")
  local read = text and read_gres(text, where_of())
  if not read or not read.foreign or #read.shards > 0 or #read.whole > 0 then return end
  local per_gpu = number_of(options, "cpus-per-gpu") or number_of(options, "ntasks-per-gpu")
    or text_of(options, "mem-per-gpu") or text_of(options, "gpu-freq")
  if per_gpu and BRIDGE then
    -- The client wants to see a GPU beside these.
    local tokens = read.others
    for _, item in ipairs(read.items) do
      table.insert(tokens, string.format("%sgpu:%s:%d", read.prefix, item.name, item.count))
    end
    options["gres"] = table.concat(tokens, ",")
    return
  end
  local shards = payment(read.items)
  if shards then options["gres"] = written(read.items, shards, read.others, read.prefix) end
end

-- Names of gres that the surrounding job has, with their counts on a node, in its order. Inside
-- a task TaskProlog has said it; in the shell of salloc, and for another's job, Slurm is asked.
local function held(options)
  local id = text_of(options, "jobid") or os.getenv("SLURM_JOB_ID")
  local found = {}
  local function add(name, count)
    if found[name] then
      found[name] = found[name] + count
    else
      found[name] = count
      table.insert(found, name)
    end
  end
  if os.getenv("SLURM_MIG_JOB") == tostring(id) then
    local unknown = false
    for word in string.gmatch(os.getenv("SLURM_MIG_PROFILES") or "", "[^,]+") do
      local names = BY_PROFILE[word] or {}
      unknown = unknown or #names ~= 1
      if #names == 1 then add(names[1], 1) end
    end
    if not unknown then return found end
  elseif os.getenv("SLURMD_NODENAME") and tostring(id) == os.getenv("SLURM_JOB_ID") then
    return found
  end
  found = {}
  if not string.find(tostring(id), "^%d+$") then return found end
  local text = told_by("squeue -h -j " .. id .. " -O tres-per-node:1000")
  for name, count in string.gmatch(text, "mig:([^:=,%s]+)[:=](%d+)") do
    if GRES[name] then add(name, tonumber(count)) end
  end
  return found
end

-- Slices of the job that stand for what a step asks for: those it named, or for GPUs without a
-- type any, in the job's order.
local function of_job_held(items, has)
  local found, taken = {}, {}
  local function take(name, count)
    if not taken[name] then table.insert(found, { name = name, count = 0 }) end
    taken[name] = (taken[name] or 0) + count
  end
  for _, item in ipairs(items) do
    local wanted, name = item.count, item.name
    for place, other in ipairs(has) do
      if name == ANY then
        local free = math.max(has[other] - (taken[other] or 0), 0)
        local count = place == #has and wanted or math.min(wanted, free)
        if count > 0 then take(other, count) end
        wanted = wanted - count
      elseif not has[name] and GRES[other].profile == GRES[name].profile then
        name = other
      end
    end
    if name ~= ANY then take(name, wanted) end
  end
  for _, item in ipairs(found) do item.count = taken[item.name] end
  return found
end

-- All slices of the job.
local function everything(has)
  local items = {}
  for _, name in ipairs(has) do table.insert(items, { name = name, count = has[name] }) end
  return items
end

-- Whether a step says anything of GPUs at all; most do not, and nothing is asked for those.
local function says_something(options)
  for _, option in ipairs(OPTIONS) do
    if text_of(options, option.name) then return true end
  end
  return number_of(options, "cpus-per-gpu") or number_of(options, "ntasks-per-gpu")
    or text_of(options, "mem-per-gpu") or text_of(options, "gpu-bind") or text_of(options, "gpu-freq")
end

local function step(options)
  if not says_something(options) then return end
  local where = where_of()
  where.step = true
  local asked, problem = read_options(options, where)
  -- Whoever names slices and GPUs, too, has counted them.
  if asked and asked.mixed then return end
  -- Nobody has to be asked about a step that names slices by the names that its job has.
  local plain = asked and #asked.node > 0 and not asked.translated
  local has = plain and {} or held(options)
  if #has == 0 and not plain then return end
  if asked and not asked.named then
    -- All of the job's; what it asked for each task holds for its steps, too.
    asked = read_options(options, where, true)
    if asked then asked.node, asked.job, asked.socket = {}, {}, {} end
  end
  if not asked then return problem and refuse(problem) end
  if #asked.shards > 0 then return end
  local shape = counted_tasks(options, asked)
  local items, fix = on_each_node(asked, shape)
  if not items and number_of(options, "ntasks") == 1 and shape.least then
    -- Of one task it cannot be told whether the user said so. One needs one node.
    local one = { least = 1, most = 1, fixed = 1, tasks = 1, each = shape.each }
    items, fix = on_each_node(asked, one)
    if items then fix.only = true end
  end
  if not items then return refuse(fix) end
  if not plain then items = of_job_held(items, has) end
  local all = #items == 0
  local ended = restarted(options, all and everything(has) or items, asked, shape, fix, all)
  if ended then return ended end
  if #items > 0 then return write(options, asked, items, true, fix) end
  for _, option in ipairs(OPTIONS) do
    if repeats(options, option) then clear(options, option.name) end
  end
  bind(options, 0, {})
end

-- Whether the command starts a step inside a job that has its slices already.
local function is_step(options)
  return options["type"] == "srun"
    and (os.getenv("SLURM_JOB_ID") ~= nil or text_of(options, "jobid") ~= nil)
end

local function pre_submit(options)
  if is_step(options) then return step(options) end
  if options["type"] == "srun" then return srun_job(options) end
  return job(options)
end

function slurm_cli_setup_defaults(options, early_pass)
  return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, pack_offset)
  local worked, result = pcall(pre_submit, options)
  return worked and result or slurm.SUCCESS
end

function slurm_cli_post_submit(offset, job_id, step_id)
  return slurm.SUCCESS
end

return slurm.SUCCESS
