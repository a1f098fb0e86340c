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
