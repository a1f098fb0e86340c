"""Tests of slurm_mig/fleet."""
