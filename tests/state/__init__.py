"""Tests of slurm_mig/state."""
