-- Convenience, not control: a step's gres never passes job_submit.lua, and under
-- ConstrainDevices a step without shards may not open its GPU. Whatever this file does, the
-- controller decides by job_submit.lua; so an error here only means that nothing is added.

-- Whether the command starts a step inside a job that has its slices already.
local function is_step(options)
  return options["type"] == "srun" and os.getenv("SLURM_JOB_ID") ~= nil
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

local function pre_submit(options)
  local text = options["gres"]
  if not text or not mentions(text) then return end
  local read = read_gres(text)
  if not read or #read.items == 0 or #read.shards > 0 then return end
  for _, token in ipairs(read.others) do
    -- Whoever names GPUs, too, has counted them.
    if string.find(token, "^gpu[:=]") or string.find(token, "^gres[:/]gpu[:=]") then return end
  end
  local shards = payment(read.items, is_step(options))
  if shards then options["gres"] = written(read, shards) end
end

function slurm_cli_setup_defaults(options, early_pass)
  return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, pack_offset)
  pcall(pre_submit, options)
  return slurm.SUCCESS
end

function slurm_cli_post_submit(offset, job_id, step_id)
  return slurm.SUCCESS
end

return slurm.SUCCESS
