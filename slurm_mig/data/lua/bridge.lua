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
