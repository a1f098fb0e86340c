"""Tests: one folder per room of the package, helpers in kit, real Slurm in cluster."""
