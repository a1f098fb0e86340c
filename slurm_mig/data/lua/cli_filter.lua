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
local function export(options, name, value)
  local text = text_of(options, "export") or "ALL"
  if text ~= "NONE" and text ~= "NIL" then options["export"] = text .. "," .. name .. "=" .. value end
end

-- In a job in the words of GPUs, all of which its tasks see: a step that binds has each its own.
local function say_binding(options)
  if os.getenv("SLURM_MIG_BIND") == "asked" and binds(options["gpu-bind"]) then
    export(options, "SLURM_MIG_PER_TASK", 1)
  end
end

-- Write a request for slices in the one form that jobs and steps have in common.
local function write(options, asked, items, part, fix)
  local shards = payment(items, part)
  if not shards then return end
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
  say_binding(options)
  -- Before 23.11 every task of a step crashes that has another binding.
  if #asked.task > 0 or text_of(options, "gpu-bind") then options["gpu-bind"] = "closest" end
  if fix.nodes and (fix.only or not part) then options["nodes"] = tostring(fix.nodes) end
  if fix.tasks and fix.nodes > 1 then options["ntasks-per-node"] = tostring(fix.tasks) end
  -- TaskProlog hands out that many to each task; one is what it does by itself, but in a job in
  -- the words of GPUs.
  local least = os.getenv("SLURM_MIG_BIND") == "asked" and 1 or 2
  local each_task = total(asked.task)
  if each_task >= least then export(options, "SLURM_MIG_PER_TASK", each_task) end
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

-- What srun cannot be made to forget: options that Slurm refuses where there is no GPU, and the
-- option that stands for each.
local STUBBORN = { ["cpus-per-gpu"] = "-c ", ["ntasks-per-gpu"] = "-n ", ["mem-per-gpu"] = "--mem=" }

-- A number with its unit ("8G"), or nil where the option is not given.
local function amount_of(options, name)
  if name ~= "mem-per-gpu" then return number_of(options, name), "" end
  local number, unit = string.match(text_of(options, name) or "", "^(%d+)([kKmMgGtT]?)")
  return tonumber(number), unit
end

local function stubborn(options, items, part)
  local count = total(items)
  if text_of(options, "gpu-freq") then
    return "srun cannot use --gpu-freq with slices, whose GPU is not theirs alone; leave it out"
  end
  for name, option in pairs(STUBBORN) do
    local number, unit = amount_of(options, name)
    if number then
      local variable = "SLURM_" .. string.upper(string.gsub(name, "%-", "_"))
      local instead = option .. number * count .. unit
      return "srun cannot use --" .. name .. " with slices; write " .. instead .. " in its place"
        .. (part and os.getenv(variable) and ", or unset " .. variable .. " first" or "")
    end
  end
end

-- srun outside of a job: its request becomes a job and then a step, by the same words.
local function srun_job(options)
  local where = place_of(options)
  local asked = read_options(options, where)
  if not asked or #asked.shards > 0 or #asked.whole > 0 then return end
  local tasks, each_gpu = number_of(options, "ntasks"), number_of(options, "ntasks-per-gpu")
  local implied = not asked.named and each_gpu and tasks and untyped(1, where)
  if implied then
    implied.count = math.ceil(tasks / each_gpu)
    return refuse("srun cannot use --ntasks-per-gpu with slices; write -n " .. tasks .. " "
      .. line_for({ implied }) .. " in its place")
  end
  local items, fix = on_each_node(asked, counted_tasks(options, asked))
  if not items or #items == 0 then return end
  local problem = stubborn(options, items, false)
  if problem then return refuse(problem) end
  local shared = asked.translated and not binds(options["gpu-bind"]) and #asked.task == 0
  write(options, asked, items, nil, fix)
  if shared and (os.getenv("SLURM_MIG_BIND") or "") == "" then
    export(options, "SLURM_MIG_BIND", "asked")
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

-- Whether a step says anything of GPUs at all; most do not, and nothing is asked for those.
local function says_something(options)
  for _, option in ipairs(OPTIONS) do
    if text_of(options, option.name) then return true end
  end
  return number_of(options, "cpus-per-gpu") or number_of(options, "ntasks-per-gpu")
    or text_of(options, "mem-per-gpu") or text_of(options, "gpu-bind")
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
  problem = stubborn(options, #items > 0 and items or of_job_held({ { name = ANY, count = 1 } }, has), true)
  if problem then return refuse(problem) end
  if #items > 0 then return write(options, asked, items, true, fix) end
  for _, option in ipairs(OPTIONS) do
    if repeats(options, option) then clear(options, option.name) end
  end
  say_binding(options)
  if text_of(options, "gpu-bind") then options["gpu-bind"] = "closest" end
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
