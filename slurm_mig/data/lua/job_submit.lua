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
