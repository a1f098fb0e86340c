-- Convenience, not control: a step's gres never passes job_submit.lua, and under
-- ConstrainDevices a step without shards may not open its GPU. Whatever this file does, the
-- controller decides by job_submit.lua; so an error here only means that nothing is added.

local function pre_submit(options)
  local text = options["gres"]
  if not text or not mentions(text) then return end
  local read = read_gres(text)
  if not read or #read.items == 0 or #read.shards > 0 then return end
  local shards = price(read.items)
  if shards then options["gres"] = text .. "," .. read.prefix .. shards end
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
