"""Tests of slurm_mig/cli."""
