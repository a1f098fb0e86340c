"""What is asked of Slurm, and how its answers are read."""
