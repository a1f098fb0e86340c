"""What holds for a cluster: its models and names, prices, and the files Slurm reads."""
