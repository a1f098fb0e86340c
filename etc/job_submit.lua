-- job_submit.lua, written by `slurm-mig generate` 0.1.0. Do not edit.

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

-- The request's stamp -------------------------------------------------------

local STAMP = "slurm%-mig=%S*"

-- A text without any stamp: what the user wrote, to the letter. Ours stands behind it and one
-- blank. White space or the end follows each, so taking one out puts no other together.
local function without_stamp(text) return (string.gsub(text, "%s?" .. STAMP, "")) end

local function with_stamp(text, stamp)
  local own = without_stamp(text or "")
  if own == "" then return stamp end
  return own .. " " .. stamp
end

-- `fit`: the type of `fit` that the job holds, if any.
local function make_stamp(items, fit)
  local words = { "slurm-mig=1" }
  for _, item in ipairs(items) do
    local gres = GRES[item.name]
    table.insert(
      words, string.format("%s/%s/%d:%d", gres.profile, gres.id, gres.weight, item.count)
    )
  end
  if fit then table.insert(words, "fit/" .. fit) end
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

-- Numbers and limits --------------------------------------------------------------

-- A number that the user gave, or nil: Slurm writes NO_VAL, of 16, 32 or 64 bits, for none.
local function given(number, none)
  if type(number) == "number" and number > 0 and number < none - 3 then return number end
end
local NONE16, NONE32, NONE64 = 65536, 4294967296, 1.8e19

-- What a job says of its nodes and tasks.
local function shape_of(job)
  local least, most = given(job.min_nodes, NONE32), given(job.max_nodes, NONE32)
  return {
    least = least,
    most = most,
    fixed = least == most and least or nil,
    tasks = given(job.num_tasks, NONE32),
    each = given(job.ntasks_per_node, NONE16),
    sockets = given(job.sockets_per_node, NONE16),
  }
end

-- Partitions, features and reservations of a job; `before` has what a change leaves as it is.
local function place_of(job, partitions, before)
  before = before or {}
  local partition = job.partition or before.partition
  if not partition or partition == "" then
    for name, facts in pairs(partitions or {}) do
      if facts.flag_default == 1 then partition = name end
    end
  end
  return where_of(
    partition, job.features or before.features, job.reservation or before.reservation
  )
end

-- Partitions that hand out whole nodes (OverSubscribe=EXCLUSIVE, max_share 0) among those the
-- job may run in: a MIG job there waits for ever, as it does with --exclusive.
local function whole_node_partition(where, partitions)
  for _, name in ipairs(where.partitions) do
    local facts = (partitions or {})[name]
    if facts and facts.max_share == 0 then return name end
  end
end

-- A GPU that is asked for as a whole though the site keeps its type for slices, or nil.
local function kept_for_slices(asked)
  for _, token in ipairs(asked.whole) do
    local kind = string.match(token, "gpu:([^:=]+)")
    if kind and SLICES_ONLY[kind] then return kind .. " GPUs" end
    if SLICES_ONLY["*"] then return "GPUs" end
  end
end

-- What a job asks for --------------------------------------------------------------

-- --ntasks-per-gpu with a number of tasks and no GPU asks for as many GPUs as that takes.
local function implied(asked, job, where)
  local tasks, each_gpu = given(job.num_tasks, NONE32), given(job.ntasks_per_tres, NONE16)
  if asked.any or not tasks or not each_gpu then return asked end
  asked.any = true
  local count = math.ceil(tasks / each_gpu)
  local slice, problem = untyped(count, where)
  if problem then return nil, problem end
  if not (BRIDGE and slice) then
    table.insert(asked.whole, "gpu")
    asked.implied = count * each_gpu == tasks and count or nil
  else
    slice.count = count
    asked.job = { slice }
  end
  return asked
end

-- Every field of a job, read. Returns nil and a reason for the user when one cannot be.
local function read_job(job, where)
  local asked = { whole = {}, shards = {}, others = {}, any = false }
  for _, place in ipairs(PLACES) do
    local text = job[place.field] or ""
    local read, problem = { items = {}, shards = {}, whole = {}, others = {} }, nil
    if text ~= "" then read, problem = read_gres(text, where) end
    if not read then return nil, problem end
    if place.of ~= "node" and #read.shards > 0 then
      return nil, "shards are counted by slurm-mig; write --gres=mig:<profile>:<count>"
    end
    asked[place.of] = read.items
    asked.others[place.field] = read.others
    asked.prefix = asked.prefix or (#read.items > 0 and read.prefix) or nil
    asked.any = asked.any or #read.items + #read.whole > 0
    asked.translated = asked.translated or read.translated
    for _, token in ipairs(read.shards) do table.insert(asked.shards, token) end
    for _, token in ipairs(read.whole) do table.insert(asked.whole, token) end
    if place.of == "node" then asked.whole_on_node = read.whole end
  end
  return implied(asked, job, where)
end

local function slices_in(asked)
  return #asked.node + #asked.job + #asked.task + #asked.socket
end

-- What cannot be, though each word of it can: a reason for the user, or nil. `parts`: the slices
-- are paid with whole GPUs, which cli_filter.lua may have written, too.
local function forbidden(job, asked, shards, parts, where, partitions)
  local paid = parts and #asked.whole == 1 and #asked.whole_on_node == 1
    and string.gsub(asked.whole[1], "^gres[:/]", "") == shards
  if #asked.whole > 0 and not paid then
    return parts and "whole GPUs are counted by slurm-mig; ask for the slices alone"
      or "whole GPUs and MIG slices in one job are not possible"
  end
  if #asked.shards > 1 or (asked.shards[1] and asked.shards[1] ~= shards) then
    return "shards are counted by slurm-mig; leave '" .. asked.shards[1] .. "' out"
  end
  if job.shared == 0 then
    return "--exclusive with MIG slices would wait for ever; leave it out or ask for a GPU"
  end
  local whole = whole_node_partition(where, partitions)
  if whole then
    return "partition " .. whole .. " gives out whole nodes, a MIG job there would wait for "
      .. "ever; choose another one"
  end
end

-- What belongs to a GPU -------------------------------------------------------------

-- A number for each GPU, as the user wrote it ("gres:gpu:2"), or as the site says; for all
-- slices of a node. Nil where nobody says one; nil and a reason where the places differ.
local function for_gpus(text, items, where, key, option)
  local number = tonumber(string.match(text or "", "(%d+)$"))
  if number then return for_slices(number, items) end
  local row, differ = default_for(where, key)
  if differ then
    return nil, "what belongs to a GPU is not the same in all partitions, features and "
      .. "reservations of this job; add " .. option
  end
  return row and for_slices(row[key], items, row.share)
end

-- CPUs, memory and tasks for each slice, in words that need no GPU. Slurm has the rest of
-- DefCpuPerGPU's rule: who says -c or --mem needs no default.
local function give_belongings(job, items, where, nodes)
  local count = total(items)
  local each_gpu = given(job.ntasks_per_tres, NONE16)
  if each_gpu then
    job.ntasks_per_tres = 65534
    job.ntasks_per_node = each_gpu * count
    if not given(job.num_tasks, NONE32) then job.num_tasks = each_gpu * count * nodes end
    job.min_cpus = math.max(
      given(job.min_cpus, NONE32) or 1, job.num_tasks * (given(job.cpus_per_task, NONE16) or 1)
    )
  end
  local cpus, problem
  if job.cpus_per_tres or not given(job.cpus_per_task, NONE16) then
    cpus, problem = for_gpus(job.cpus_per_tres, items, where, "cpus", "-c <CPUs>")
    if problem then return problem end
  end
  if cpus then
    if job.cpus_per_tres then job.cpus_per_tres = "" end
    local tasks = given(job.num_tasks, NONE32)
    if tasks then
      -- Beside a number of tasks Slurm allocates no more than these need.
      local for_task = math.ceil(cpus * nodes / tasks)
      job.cpus_per_task = math.max(given(job.cpus_per_task, NONE16) or 1, for_task)
      cpus = job.cpus_per_task * math.ceil(tasks / nodes)
    end
    job.pn_min_cpus = cpus
    job.min_cpus = math.max(given(job.min_cpus, NONE32) or 1, cpus * nodes)
  end
  local memory
  if job.mem_per_tres or not job.pn_min_memory or job.pn_min_memory >= NONE64 then
    memory, problem = for_gpus(job.mem_per_tres, items, where, "memory", "--mem=<MB>")
    if problem then return problem end
  end
  if memory then
    if job.mem_per_tres then job.mem_per_tres = "" end
    job.pn_min_memory = memory
  end
end

-- Where there is no word of the user's to copy it from: releases that write `gres/` know this flag.
local function own_prefix()
  return slurm.GRES_ALLOW_TASK_SHARING and "gres/" or "gres:"
end

-- What fits ---------------------------------------------------------------------------

-- True on every node, for each of them has `mig` in its Extra. To Slurm a job with any expression
-- may run later, so it waits where it would be held or refused (docs/publishing.md).
local ALWAYS = "mig=1"

local function with_always(text)
  if not text or text == "" or text == ALWAYS then return ALWAYS end
  if string.find(text, "&" .. ALWAYS, 1, true) then return text end
  return "(" .. text .. ")&" .. ALWAYS
end

-- The `fit` types that the items are counted by, the job's own one first. A request of several
-- profiles has no count of its own; one that takes all of a GPU needs none: its shards are exact.
-- As a start it counts: with it Slurm takes other GPUs for those that come in the same pass.
local function fits_of(items, shards)
  local first = items[1]
  local gres = GRES[first.name]
  local all = tonumber(string.match(shards, "%d+$")) >= gres.capacity
  if all or #items > 1 then return { "start" } end
  local base = string.gsub(first.name, "%d+c%.", "")
  local many = math.ceil(first.count / gres.per)
  return { many == 1 and base or base .. "x" .. many, "start" }
end

-- Whether this release refuses or holds a job whose `fit` no node has now: before 23.11 one that
-- is pinned to nodes, reserved or not, or wants several: one anchor does not keep it waiting.
local function may_be_held(job)
  local several = (given(job.min_nodes, NONE32) or 1) > 1
  local pinned = (job.req_nodes or "") .. (job.reservation or "") ~= ""
  return own_prefix() == "gres:" and (several or pinned)
end

-- Count the job by what fits; returns how, for its stamp.
local function count_fit(job, items, shards)
  if not PUBLISH or may_be_held(job) then return nil end
  local fits, prefix = fits_of(items, shards), string.match(job.tres_per_node, "^gres[:/]") or ""
  for _, kind in ipairs(fits) do
    job.tres_per_node = job.tres_per_node .. "," .. prefix .. "fit:" .. kind .. ":1"
  end
  if own_prefix() == "gres/" then job.extra = with_always(job.extra) end
  return fits[1]
end

-- The request, rewritten ---------------------------------------------------------------

-- Put what was asked for where Slurm counts it: on each node.
local function rewrite(job, asked, items, shards, fix)
  local prefix = asked.prefix or own_prefix()
  for _, place in ipairs(PLACES) do
    if #asked[place.of] > 0 and place.of ~= "node" then
      job[place.field] = table.concat(asked.others[place.field], ",")
    end
  end
  job.tres_per_node = written(items, shards, asked.others.tres_per_node, prefix)
  if fix.nodes then job.min_nodes, job.max_nodes = fix.nodes, fix.nodes end
  if fix.tasks and fix.nodes > 1 then
    job.ntasks_per_node = fix.tasks
    job.num_tasks = fix.tasks * fix.nodes
  end
  if job.tres_freq then job.tres_freq = "" end
  -- Slurm binds tasks to GPUs, of which there are none; TaskProlog binds them to slices. Before
  -- 23.11 tasks that are bound in another way crash, and the field cannot be cleared.
  if #asked.task > 0 or job.tres_bind then
    local later = prefix == "gres/" or string.find(job.tres_bind or "", "gres/", 1, true)
    job.tres_bind = (later and "gres/" or "") .. "gpu:closest"
  end
end

-- Whether each task of a job sees all its slices, as it would see GPUs: it was asked for in their
-- words, and nothing in it for each task.
local function for_all_tasks(job, asked)
  return asked.translated and #asked.task == 0 and not binds(job.tres_bind)
    and not given(job.ntasks_per_tres, NONE16)
end

-- Returns nil when the request is none of ours, else true, or false and a reason. The second
-- value of a request of ours is whether each task sees all of it.
local function apply(job, partitions)
  local where = place_of(job, partitions)
  local asked, problem = read_job(job, where)
  if not asked then return false, problem end
  local kept = slices_in(asked) == 0 and kept_for_slices(asked)
  if kept then
    return false, kept .. " are given out in slices only; write --gres=mig:<profile>:<count>, "
      .. known_in(where)
  end
  if slices_in(asked) == 0 then
    -- Written out: a later change of the partition is not told of what a job only implies.
    if asked.implied and #DEFAULTS > 0 then
      job.tres_per_job = own_prefix() .. "gpu:" .. asked.implied
    end
    if #asked.shards == 0 then return nil end
    return false, "shards are counted by slurm-mig; write --gres=mig:<profile>:<count>"
  end
  local shape = shape_of(job)
  local items, fix = on_each_node(asked, shape)
  if not items then return false, fix end
  -- cli_filter.lua has written the name that is counted in place of a word for one GPU type: what
  -- is left of that word is the type of its shards or GPUs.
  local shards, parts = cost(items, type_named(asked))
  if not shards then return false, parts end
  local shared = for_all_tasks(job, asked)
  problem = forbidden(job, asked, shards, parts, where, partitions)
    or give_belongings(job, items, where, fix.nodes or shape.least or 1)
  if problem then return false, problem end
  rewrite(job, asked, items, shards, fix)
  local fit = not parts and count_fit(job, items, shards) or nil
  job.comment = with_stamp(job.comment, parts and stamp_of_several(parts) or make_stamp(items, fit))
  return true, shared
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

-- The word by which TaskProlog binds tasks only where that was asked for. Only we write it: a job
-- that is submitted from inside another one must not inherit it.
local function say_binding(job, shared)
  local environment = job.environment
  if not environment then return end
  local said = environment.SLURM_MIG_BIND or ""
  if said == "" and shared then environment.SLURM_MIG_BIND = "asked" end
  if said == "asked" and not shared then environment.SLURM_MIG_BIND = "" end
end

-- Whether a job asks for GPUs in any form, or for slices.
local function wants_gpu(job)
  for _, place in ipairs(PLACES) do
    local text = job[place.field] or ""
    if string.find(text, "gpu", 1, true) or string.find(text, "mig", 1, true) then return true end
  end
  return false
end

local function submit(job, partitions)
  strip_fields(job)
  local fine, reason = apply(job, partitions)
  if fine == false then return refuse(reason) end
  -- Interactive jobs have neither script nor environment here.
  if wants_gpu(job) and job.script then
    local worked, problem = pcall(function()
      forget_inherited(job)
      say_binding(job, fine and reason)
    end)
    -- The job is right without it; only that it was submitted from inside a step may confuse it.
    if not worked then
      slurm.log_error("slurm-mig: inherited variables of a job stay: %s", tostring(problem))
    end
  end
  return slurm.SUCCESS
end

-- Changes ---------------------------------------------------------------------------

-- Whether a job has slices or shards.
local function holds_slices(text)
  for token in string.gmatch(text or "", "[^,]+") do
    local body = string.match(token, "^gres[:/](.*)$") or token
    if our_gres(string.match(body, "^[^:=]*")) then return true end
  end
  return false
end

-- Whether fields ask for slices, or for what nobody can read, in a place.
local function asks_for_slices(fields, where)
  local asked = read_job(fields, where)
  return not asked or slices_in(asked) + #asked.shards > 0, asked
end

-- A change of a job that has slices, or would get them, would leave its shards or its stamp
-- behind; 22.05 even merges the old list into the new one. So: cancel and submit again.
local function modify(job, record, partitions)
  local ours, changed = holds_slices(record.tres_per_node), {}
  for _, place in ipairs(PLACES) do
    local text = job[place.field]
    if text and text ~= record[place.field] then
      if ours then changed.any = true end
      changed[place.field] = text
    end
  end
  local where = place_of(job, partitions, record)
  local slices, asked = asks_for_slices(changed, where)
  if changed.any or slices then
    return refuse("the gres of a MIG job cannot be changed; cancel it and submit again")
  end
  if ours and job.shared == 0 then
    return refuse("a MIG job cannot become --exclusive")
  end
  if ours and job.partition and whole_node_partition(where, partitions) then
    return refuse("partition " .. job.partition .. " gives out whole nodes, not MIG slices")
  end
  if kept_for_slices(asked) then
    return refuse("GPUs of that type are given out in slices only")
  end
  local moved = job.partition or job.features or job.reservation
  if moved and not ours and asks_for_slices(record, where) then
    return refuse("a GPU is a slice there, and this job has whole ones; cancel it and submit again")
  end
  strip_fields(job)
  if ours then
    for _, field in ipairs(STAMPED) do
      local stamp = string.match(record[field] or "", STAMP)
      if stamp and job[field] then job[field] = with_stamp(job[field], stamp) end
    end
    local counted = string.find(record.tres_per_node or "", "[:/]fit:")
    if counted and job.extra and own_prefix() == "gres/" then job.extra = with_always(job.extra) end
  end
  return slurm.SUCCESS
end

-- Entry points -------------------------------------------------------------------

-- Whether an error may be passed over: only for jobs that have nothing to do with us.
local function unconcerned(job)
  local function says(field, ...)
    local read, text = pcall(function() return job[field] end)
    if not read or type(text) ~= "string" then return false end
    for _, word in ipairs({ ... }) do
      if string.find(string.lower(text), word) then return true end
    end
    return false
  end
  for _, place in ipairs(PLACES) do
    if says(place.field, "mig", "shard", #DEFAULTS > 0 and "gpu" or nil) then return false end
  end
  return not says("comment", STAMP) and not says("extra", STAMP)
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
