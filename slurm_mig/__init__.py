"""MIG slices made to measure for Slurm jobs."""

__version__ = "0.1.0"
