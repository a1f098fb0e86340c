"""Tests of the one command that proves a GPU."""
