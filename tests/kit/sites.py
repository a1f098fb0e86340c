"""Files of sites with GPUs, in the manners that public ones have; restated, and shortened.

Each is what a site has before slurm-mig: the tests add what `generate` writes and a node of ours.
Value: the text, and the codes of what is really amiss for slices on such a site.
"""

from __future__ import annotations

from typing import Final

#: Codes that any site deserves which has not been told of slurm-mig's times.
TIMES: Final = frozenset({"SM121", "SM122", "SM124"})

SITES: Final[dict[str, tuple[str, set[str]]]] = {
    "continued lines, defaults for all partitions": (
        """\
ClusterName=teaching
SlurmctldHost=head
ProctrackType=proctrack/cgroup
TaskPlugin=task/affinity,task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=associations,limits,qos,safe
NodeName=DEFAULT \\
 TmpDisk=4096 \\
 State=UNKNOWN
NodeName=c[01-04] \\
 CPUs=16 \\
 RealMemory=64000
PartitionName=DEFAULT \\
 TRESBillingWeights="CPU=1.0,Mem=.25G,gres/gpu=3.0" \\
 OverSubscribe=NO \\
 DefMemPerCPU=2048 \\
 DefMemPerGPU=24576
PartitionName=normal Nodes=ALL Default=YES QOS=normal AllowQOS=normal
""",
        {"SM109", "SM143", "SM144"},
    ),
    "keys and values in any case": (
        """\
clustername=Cloud
SLURMCTLDHOST=ctl-0
ProctrackType=proctrack/cgroup
TASKPLUGIN=task/cgroup,task/affinity
selecttype=select/cons_tres
SelectTypeParameters=CR_CORE_MEMORY,LL_SHARED_GRES
DefMemPerNode=UNLIMITED
TopologyPlugin=topology/flat
NODENAME=w-[0-3] GRES=gpu:gb300:4 cpus=72
partitionname=ALL nodes=ALL default=yes state=UP
""",
        set(),
    ),
    "an old recipe": (
        """\
ClusterName=linux
ControlMachine=sms
SlurmUser=slurm
FastSchedule=1
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
SelectType=select/cons_res
SelectTypeParameters=CR_Core_Memory
#AccountingStorageHost=
JobCompType=jobcomp/none
NodeName=c[01-04] Sockets=2 CoresPerSocket=28 ThreadsPerCore=2 RealMemory=480000 state=UNKNOWN
PartitionName=xeon Nodes=c[01-04] Priority=10000 default=YES MaxTime=24:00:00 State=UP
PartitionName=gpu Nodes=n1 Priority=4000 Default=NO MaxTime=24:00:00 State=UP
""",
        {"SM107", "SM109", "SM402", "SM403"},
    ),
    "prices by model, preemption by QOS": (
        """\
ClusterName=shared
SlurmctldHost=ctl1(10.0.0.1)
SlurmctldHost=ctl2(10.0.0.2)
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_CORE_DEFAULT_DIST_BLOCK,LL_SHARED_GRES
PriorityFlags=MAX_TRES,NO_FAIR_TREE
PreemptType=preempt/qos
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
PriorityWeightTRES=CPU=1000,Mem=2000,GRES/gpu=3000
NodeName=gpu[01-16] Gres=gpu:a100:4 CPUs=64 RealMemory=512000
PartitionName=gpu Nodes=gpu[01-16],n1 TRESBillingWeights="CPU=1,GRES/gpu:a100=10,GRES/gpu:v100=4"
PartitionName=old Nodes=gpu[01-16] TRESBillingWeights="CPU=0.25,GRES/gpu:a100=2.5"
""",
        {"SM144"},
    ),
    "static MIG on other nodes": (
        """\
ClusterName=mixed
SlurmctldHost=head
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,LL_SHARED_GRES
NodeName=m1 NodeHostname=rack2-n07 Gres=gpu:nvidia_a100_2g.20gb:9,gpu:nvidia_a100_7g.80gb:1 CPUs=64
NodeName=m[2-3] NodeHostname=rack2-n[08-09] Gres=gpu:1g.5gb:14,gpu:a100_3g.20gb:4,lscratch:9 CPUs=64
PartitionName=ug-gpu-small Nodes=m[1-3] JobDefaults=DefCpuPerGPU=3,DefMemPerGPU=31744
PartitionName=gpu_a100_mig Nodes=m[1-3],n1
""",
        set(),
    ),
    "defaults in JobDefaults": (
        """\
ClusterName=narrow
SlurmctldHost=head
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,LL_SHARED_GRES
JobDefaults=DefCpuPerGPU=12
PartitionName=gpubase_bygpu_b1 Nodes=ALL JobDefaults=DefMemPerGPU=127000
""",
        {"SM143"},
    ),
    "accounts without a database": (
        """\
ClusterName = cluster
SlurmctldHost = nvidia-mgmt
AccountingStorageType = accounting_storage/none
JobAcctGatherType = jobacct_gather/none
ProctrackType = proctrack/linuxproc
TaskPlugin = task/none
SelectType = select/cons_tres
SelectTypeParameters = CR_Core_Memory
SlurmdParameters = config_overrides
SchedulerParameters = extra_constraints,bf_continue
NodeName = dgx[01-02] CPUs = 256 Gres = gpu:8 State = UNKNOWN
PartitionName = batch Nodes = ALL Default = YES
""",
        {"SM109", "SM402", "SM403"},
    ),
    "a template that nobody filled in": (
        """\
ClusterName=<%= $cluster_name %>
SlurmctldHost={{HOSTNAME}}
ProctrackType={{PROCTRACK}}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_Socket
NodeName={{HOSTNAME}} Gres=gpu:{{GPU_TYPE}}:{{NUM_GPUS}} CPUs={{NUM_CPUS}} State=UNKNOWN
PartitionName=main Nodes={{HOSTNAME}} Default=YES
""",
        {"SM109", "SM119", "SM402", "SM403"},
    ),
    "another Lua script, several hooks": (
        """\
ClusterName=services
SlurmctldHost=head
SlurmUser=slurm
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,LL_SHARED_GRES
JobAcctGatherType=jobacct_gather/cgroup
AcctGatherEnergyType=acct_gather_energy/gpu
PrologFlags=X11
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu,gres/gpu:1g.10gb,billing
NodeName=login CPUs=4
PartitionName=debug Nodes=n1 Default=YES MaxTime=30 OverSubscribe=FORCE:2 DisableRootJobs=YES
PartitionName=gpu-guest Nodes=n1 PreemptMode=CANCEL PriorityTier=1 AllowGroups=guests Hidden=YES
""",
        {"SM111"},
    ),
    "blanks, comments and line ends": (
        (
            "ClusterName=edit\t# the old name\r\nSlurmctldHost=head   \r\n"
            "  ProctrackType=proctrack/cgroup\r\n\tTaskPlugin=task/cgroup\r\n\r\n#\r\n"
            "SelectType=select/cons_tres\r\nSelectTypeParameters=CR_CPU_Memory,LL_SHARED_GRES\r\n"
            "PartitionName=a\\#b Nodes=n1 # Nodes=ALL\r\n"
        ),
        set(),
    ),
}
