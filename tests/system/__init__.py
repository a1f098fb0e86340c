"""Tests of slurm_mig/system."""
