"""Tests of slurm_mig/hooks."""
