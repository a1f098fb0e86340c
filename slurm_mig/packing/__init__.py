"""Where slices go: slot policies, what Slurm may start now, and both tried on a site's own jobs."""
