"""Tests of slurm_mig/transaction."""
