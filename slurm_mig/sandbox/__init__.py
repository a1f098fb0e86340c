"""A private Slurm on loopback with simulated GPUs, for the demo, for tests, for trying.

Real daemons with their own ports, munge socket and directory; nothing of the
machine's own Slurm is touched, and everything ends with the program.
"""

from slurm_mig.sandbox.cluster import Cluster, SandboxNode, scratch

__all__ = ["Cluster", "SandboxNode", "scratch"]
