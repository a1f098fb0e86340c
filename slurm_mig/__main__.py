"""`python -m slurm_mig`."""

from slurm_mig.cli import main

main()
