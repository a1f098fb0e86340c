-- Convenience, not control: a step's gres never passes job_submit.lua, and under
-- ConstrainDevices a step without shards may not open its GPU. Whatever this file does, the
-- controller decides by job_submit.lua; so an error here only means that nothing is added.

-- Whether the command starts a step inside a job that has its slices already.
local function is_step(options)
  return options["type"] == "srun" and os.getenv("SLURM_JOB_ID") ~= nil
end

local function pre_submit(options)
  local text = options["gres"]
  if not text or not mentions(text) then return end
  local read = read_gres(text)
  if not read or #read.items == 0 or #read.shards > 0 then return end
  local shards = price(read.items, is_step(options))
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
