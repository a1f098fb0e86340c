-- Reading gres texts -------------------------------------------------------

-- True when a text names the gres mig or shard anywhere, however it is written.
local function mentions(text)
  local lower = string.lower(text)
  return string.find(lower, "%f[%w]mig%f[%W]") ~= nil
    or string.find(lower, "%f[%w]shard%f[%W]") ~= nil
end

-- Cut a gres text ("gres:mig:3g.40gb:1,gres:gpu:2"; client tools leave the prefix out) into
-- its tokens. Returns nil and a reason for the user when a mig or shard token is not one that
-- Slurm and we read alike: Slurm knows more spellings (=, k, M) than counting allows.
local function read_gres(text)
  local read = { items = {}, others = {}, shards = {}, gpu = false, prefix = "" }
  for token in string.gmatch(text, "[^,]+") do
    local prefix, body = string.match(token, "^(gres[:/])(.*)$")
    if not prefix then prefix, body = "", token end
    local name, rest = string.match(body, "^([^:=]+)(.*)$")
    if name == "mig" then
      local profile, count = string.match(rest, "^:([^:=]+):([1-9]%d?)$")
      if not profile then profile, count = string.match(rest, "^:([^:=%d][^:=]*)$"), 1 end
      if not profile then profile, count = string.match(rest, "^:(%d[^:=]*%a[^:=]*)$"), 1 end
      if not profile then
        return nil, "cannot read '" .. body .. "'; write mig:<profile>:<count>, count 1 to 99, "
          .. "profiles: " .. KNOWN
      end
      read.prefix = prefix
      table.insert(read.items, { name = profile, count = tonumber(count) })
    elseif name == "shard" then
      table.insert(read.shards, body)
    elseif mentions(token) then
      return nil, "cannot read '" .. body .. "'; write --gres=mig:<profile>:<count>"
    else
      if name == "gpu" then read.gpu = true end
      table.insert(read.others, token)
    end
  end
  return read
end

-- Shards that the items cost, as one gres token without prefix ("shard:h100:14").
-- Returns nil and a reason for the user when no GPU could hold them together.
local function price(items)
  local sum, pool, seen = 0, nil, {}
  for _, item in ipairs(items) do
    local gres = GRES[item.name]
    if not gres then
      return nil, "unknown MIG profile '" .. item.name .. "'; known: " .. KNOWN
    end
    if seen[item.name] then
      return nil, "profile " .. item.name .. " is named twice; add the counts up"
    end
    seen[item.name] = true
    if item.count > gres.most then
      return nil, item.count .. " x " .. item.name .. ": one GPU holds at most " .. gres.most
    end
    if pool and (pool.shard ~= gres.shard or pool.capacity ~= gres.capacity) then
      return nil, "profiles of different GPU models in one job: " .. item.name
    end
    pool = gres
    sum = sum + item.count * gres.weight
  end
  if sum > pool.capacity then
    return nil, "these slices do not fit on one GPU together; a job's slices come from one GPU "
      .. "per node, so ask for fewer or for more nodes"
  end
  return string.format("%s:%d", pool.shard, sum)
end
