-- job_submit.lua, written by `slurm-mig generate` 0.1.0. Do not edit.

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
  for _, token in ipairs(read.others) do table.insert(tokens, token) end
  return table.concat(tokens, ",")
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
      words, string.format("%s/%d/%d:%d", gres.profile, gres.id, gres.weight, item.count)
    )
  end
  return table.concat(words, ",")
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
local function wants_whole(job)
  for _, field in ipairs(TRES_FIELDS) do
    for token in string.gmatch(job[field] or "", "[^,]+") do
      local body = string.match(token, "^gres[:/](.*)$") or token
      if string.find(body, "^gpu%f[:=%z]") and not string.find(body, "[:=]0+$") then return true end
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
  if wants_whole(job) then
    return false, "whole GPUs and MIG slices in one job are not possible"
  end
  local shards
  -- cli_filter.lua has written the name that is counted in place of a word for one GPU type: what
  -- is left of that word are the shards of its type.
  shards, problem = price(read.items, false, type_of_shards(read.shards[1]))
  if not shards then return false, problem end
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
  job.comment = with_stamp(job.comment, make_stamp(read.items))
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
