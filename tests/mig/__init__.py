"""Tests of slurm_mig/mig."""
