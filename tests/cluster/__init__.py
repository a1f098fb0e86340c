"""Tests on a real, private Slurm."""
