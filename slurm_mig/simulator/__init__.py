"""Simulated NVIDIA hardware: a stand-in for libnvidia-ml.so.1 and what is around it.

A directory holds one machine: GPUs of the catalogue with their MIG state, shared
by all processes under file locks; the capability tree and device nodes below
`proc/` and `dev/`; a boot id. `library.Library` takes the place of the object
that pynvml gets from `CDLL("libnvidia-ml.so.1")`, so all of pynvml's marshalling
runs for real. It refuses what hardware refuses; what nobody has observed of the
hardware is answered as not available, never invented.
"""

from slurm_mig.simulator.machine import GpuSpec, Machine, create

__all__ = ["GpuSpec", "Machine", "create"]
