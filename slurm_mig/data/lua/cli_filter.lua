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
