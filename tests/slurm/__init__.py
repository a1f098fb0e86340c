"""Tests of slurm_mig/slurm; real daemons are in tests/cluster."""
