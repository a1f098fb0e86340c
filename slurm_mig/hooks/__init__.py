"""Per job: Prolog and Epilog, from Slurm's variables to an exit code.

`main` is what every installed hook calls, also those that an earlier version installed.
"""

from __future__ import annotations


def main() -> None:
    """Run the hook that the command line names; imported late, for refusals import this package."""
    from slurm_mig.hooks.run import main as run

    run()
