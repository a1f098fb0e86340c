"""Records of every kind, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from slurm_mig.mig.allocation import TRANSITIONS, Allocation, Instance, Owner

INSTANCES = st.builds(
    Instance,
    profile=st.just("3g.40gb"),
    profile_id=st.integers(0, 99),
    start=st.integers(0, 11),
    size=st.integers(1, 12),
    gi_id=st.none() | st.integers(0, 14),
    ci_id=st.none() | st.integers(0, 7),
    uuid=st.none() | st.uuids().map(lambda value: f"MIG-{value}"),
)
OWNERS = st.builds(
    Owner,
    job_id=st.none() | st.integers(1, 2**31),
    restart=st.integers(0, 99),
    sluid=st.text(max_size=5),
    uid=st.integers(0, 2**31),
    user=st.text(max_size=5),
)
ALLOCATIONS = st.builds(
    Allocation,
    owner=OWNERS,
    node=st.just("n1"),
    gpu_uuid=st.just("GPU-x"),
    gpu_minor=st.integers(0, 31),
    gpu_name=st.just("NVIDIA H100"),
    boot_id=st.just("b"),
    request=st.just("3g.40gb:1"),
    phase=st.sampled_from(sorted(TRANSITIONS)),
    instances=st.lists(INSTANCES, max_size=3).map(tuple),
    created=st.floats(0, 1e10),
    ended=st.none() | st.floats(0, 1e10),
)
