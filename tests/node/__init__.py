"""Tests of slurm_mig/node."""
