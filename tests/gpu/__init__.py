"""Tests of slurm_mig/gpu."""
