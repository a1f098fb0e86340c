"""Tests of slurm_mig/sandbox."""
