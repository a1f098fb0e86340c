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
