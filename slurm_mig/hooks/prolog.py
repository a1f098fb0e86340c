"""The Prolog: a job is served with what it asked for, or refused."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from slurm_mig.errors import BadRequest, JobFault, NodeFault, NoRoom, NoSpace, SlurmFault, Unknown
from slurm_mig.mig import request as requests
from slurm_mig.transaction import carve
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.hooks.job import Job
    from slurm_mig.hooks.log_line import LogLine
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.request import Request, Several
    from slurm_mig.node.node import Node
    from slurm_mig.transaction.workbench import Workbench


def prolog(node: Node, job: Job, line: LogLine) -> None:
    """Carve what the job asks for, or refuse the job. NodeFault means drain."""
    gpus: Sequence[Gpu] = ()
    wanted = "whole GPU"
    try:
        if not node.manages():
            return _unmanaged(node, job, line)
        # Read before anything can be refused: a refusal names the GPU, too.
        gpus = node.gpus_at(job.gpus)
        bench = node.bench()
        request = _request(node, job, gpus, line)
        if request is not None:
            wanted = str(request)
            node.files.fit = getattr(request, "counted", "")
            line.add(request=wanted)
        if request is None or (isinstance(request, requests.Several) and not request.fill(gpus)):
            job = _with_all_gpus(node, job, gpus, line)
            gpus = node.gpus_at(job.gpus)
        try:
            _serve_in_time(node, job, gpus, request, bench, line)
        except NoRoom:
            if not _collected(node, gpus, bench, line):
                raise
            _serve(node, job, gpus, request, bench, line)
    except JobFault as fault:
        _refuse(node, job, gpus, wanted, fault, line)


def _serve_in_time(
    node: Node,
    job: Job,
    gpus: Sequence[Gpu],
    request: Request | Several | None,
    bench: Workbench,
    line: LogLine,
) -> None:
    """Serve the job, once that has gone for which an Epilog would have kept the node."""
    while True:
        try:
            return _serve(node, job, gpus, request, bench, line)
        except NoRoom:
            managed = [gpu for gpu in gpus if node.managed(gpu)]
            if not any(_cleared(bench, gpu) for gpu in managed):
                raise


def _cleared(bench: Workbench, gpu: Gpu) -> bool:
    from slurm_mig.transaction.insist import clear_young

    return clear_young(bench, gpu)


def _serve(
    node: Node,
    job: Job,
    gpus: Sequence[Gpu],
    request: Request | Several | None,
    bench: Workbench,
    line: LogLine,
) -> None:
    if request is None:
        _whole_gpus(node, job, gpus, bench, line)
    elif isinstance(request, requests.Several):
        _several(node, job, gpus, request, bench, line)
    else:
        _slices(node, job, gpus, request, bench, line)


def _collected(node: Node, gpus: Sequence[Gpu], bench: Workbench, line: LogLine) -> bool:
    """Whether what stood in the way belonged to jobs that are gone, and is gone now.

    Slurm counts nothing for a job it has lost; so it sent this one. Only a job that
    would be refused, and thus asks slurmctld anyway, pays for the question.
    """
    from slurm_mig.transaction import collect

    managed = [gpu for gpu in gpus if node.managed(gpu)]
    if not any(node.ledger.open_on(gpu.uuid) for gpu in managed):
        return False
    try:
        done = [record for gpu in managed for record in collect.collect(bench, gpu, node.live_jobs)]
    except SlurmFault as fault:
        line.add(collect=fault.cause)
        return False
    if done:
        line.add(collected=",".join(str(record.owner.job_id) for record in done))
    return any(not record.open for record in done)


def _request(node: Node, job: Job, gpus: Sequence[Gpu], line: LogLine) -> Request | Several | None:
    """The stamp's request; without a stamp on a managed GPU, what slurmctld says."""
    request = job.stamped()
    if request is not None or not any(node.managed(gpu) for gpu in gpus):
        return request
    line.add(stamp="none")
    try:
        facts = node.slurm.job(job.job_id)
    except SlurmFault as fault:
        raise _no_answer(job, "what the job asked for", fault) from fault
    if facts is None:
        raise Unknown("Slurm does not know the job", job=job.job_id)
    if requests.holds_both(facts.tres_per_node):
        raise BadRequest(
            "the job has whole GPUs for slices, but nothing says which GPU is for which",
            remedy="submit it again; job_submit.lua stamps it on the job",
            job=job.job_id,
        )
    request = requests.from_gres(facts.tres_per_node)
    if request is None and _shards_alone(facts.tres_per_node):
        raise BadRequest(
            "the job has shards of a GPU, but no slice",
            remedy="ask for slices: --gres=mig:<profile>:<count>",
            job=job.job_id,
        )
    return request


def _shards_alone(text: str) -> bool:
    """Whether a job would be given a whole GPU for what counts as a part of one."""
    return requests.holds_shards(text) and not requests.holds_gpu(text)


def _no_answer(job: Job, what: str, fault: SlurmFault) -> Unknown:
    """A slurmctld that restarts is not this node's fault, nor may the job run on a guess."""
    cause = f"Slurm does not say {what}: {fault.cause}"
    return Unknown(cause, remedy="submit it again", job=job.job_id)


def _with_all_gpus(node: Node, job: Job, gpus: Sequence[Gpu], line: LogLine) -> Job:
    """The job with every GPU it has: since 24.11 Slurm's variables may name only some.

    Of a job with GPUs of several types they name those of the last type.
    """
    if len(gpus) == len(node.order):
        return job
    if len({gpu.name for gpu in node.gpus_by_index().values()}) == 1:
        return job
    try:
        told = node.slurm.gpus(job.job_id, node.name)
    except SlurmFault as fault:
        raise _no_answer(job, "which GPUs the job has", fault) from fault
    if told is None or set(told) <= set(job.gpus):
        return job
    line.add(named=",".join(map(str, job.gpus)))
    return replace(job, gpus=tuple(sorted({*told, *job.gpus})))


def _slices(
    node: Node, job: Job, gpus: Sequence[Gpu], request: Request, bench: Workbench, line: LogLine
) -> None:
    gpu = _only_gpu(node, job, gpus)
    if gpu.uuid in node.retired:
        from slurm_mig.transaction.carve import offered_though_retired

        raise offered_though_retired(node.retired[gpu.uuid])
    if not node.managed(gpu):
        raise NodeFault(
            f"Slurm offers slices of {gpu}, which is not managed here",
            remedy="compare `managed` in the [gpus] table of the config with gres.conf",
        )
    record = carve.allocate(bench, job.owner, request, gpu)
    _tell_accounting(node, job, record.uuids, line)
    line.add(gpu=gpu.minor, made=",".join(map(str, record.instances)), uuids=",".join(record.uuids))
    line.say("INFO", "carved")


def _tell_accounting(node: Node, job: Job, uuids: Sequence[str], line: LogLine) -> None:
    if node.config.admin_comment and uuids:
        from slurm_mig.hooks.admin_comment import tell_accounting

        tell_accounting(node, job, uuids, line)


def _several(
    node: Node, job: Job, gpus: Sequence[Gpu], wanted: Several, bench: Workbench, line: LogLine
) -> None:
    from slurm_mig.transaction.several import carve_each

    apart = {gpu.uuid for gpu in gpus if gpu.uuid in node.retired or not node.managed(gpu)}
    places = list(zip(job.gpus, gpus, strict=True))
    records = carve_each(bench, job.owner, wanted, places, apart)
    uuids = [uuid for record in records for uuid in record.uuids]
    _tell_accounting(node, job, uuids, line)
    made = [f"{record.gpu_minor}:{','.join(map(str, record.instances))}" for record in records]
    line.add(gpus=",".join(str(gpu.minor) for gpu in gpus), made=";".join(made))
    line.add(uuids=",".join(uuids))
    line.say("INFO", f"carved on {len(records)} GPUs")


def _only_gpu(node: Node, job: Job, gpus: Sequence[Gpu]) -> Gpu:
    if not gpus:
        raise _no_gpu(node, job)
    if len(gpus) > 1:
        raise NodeFault(
            f"Slurm spread one job's shards over GPUs {','.join(map(str, job.gpus))}",
            remedy="take MULTIPLE_SHARING_GRES_PJ out of SelectTypeParameters",
            job=job.job_id,
        )
    return gpus[0]


def _no_gpu(node: Node, job: Job) -> JobFault:
    """Why Slurm names no GPU: the job has no shards, or has them of no GPU.

    The latter comes after a restart of slurmctld 22.05 (docs/slurm.md): the job is not
    to blame, and a later start is good.
    """
    try:
        facts = node.slurm.job(job.job_id)
    except SlurmFault as fault:
        return _no_answer(job, "which GPU the job has", fault)
    if facts is not None and requests.holds_shards(facts.tres_per_node):
        return Unknown(
            "Slurm chose no GPU for the job's shards, as happens after a restart of slurmctld",
            remedy="it is started again by itself",
            job=job.job_id,
        )
    return BadRequest(
        "the job has MIG slices but no shards, so Slurm chose no GPU for it",
        remedy="submit it again; job_submit.lua adds the shards",
        job=job.job_id,
    )


def _whole_gpus(node: Node, job: Job, gpus: Sequence[Gpu], bench: Workbench, line: LogLine) -> None:
    """All GPUs of the job, or none: what was given before a refusal is taken back."""
    from slurm_mig.transaction import handover, release, whole_gpu

    config = node.config
    given: list[tuple[int, Gpu, Allocation | None]] = []
    try:
        for index, gpu in zip(job.gpus, gpus, strict=True):
            record = None
            if node.managed(gpu):
                policy = config.whole_policy_of(gpu.name)
                record = whole_gpu.give_whole(
                    bench, job.owner, gpu, policy, reset=config.whole_reset
                )
            given.append((index, gpu, record))
        told = [(index, gpu.uuid, record) for index, gpu, record in given]
        handover.give_gpus(bench, job.owner, told)
    except JobFault:
        records = [record for _, _, record in given if record is not None]
        release.release_all(bench, records, "another GPU of the job was refused")
        raise
    # A whole GPU may be its largest instance.
    uuids = [uuid for _, _, record in given if record is not None for uuid in record.uuids]
    _tell_accounting(node, job, uuids, line)
    line.add(gpus=",".join(str(gpu.minor) for gpu in gpus))
    made = [f"{gpu.minor}: {record.made if record else 'not managed'}" for _, gpu, record in given]
    line.say("INFO", "; ".join(made))


def _unmanaged(node: Node, job: Job, line: LogLine) -> None:
    """Nothing to do, but where GPUs were managed once, TaskProlog still looks for a file."""
    if job.stamped() is not None:
        raise NodeFault(
            "Slurm offers slices of this node, of which no GPU is managed here",
            remedy="compare `managed` in the [gpus] table of the config, and what was retired "
            "(`slurm-mig status`), with gres.conf",
            job=job.job_id,
        )
    if node.files.in_use():
        from slurm_mig.state import task_file

        node.files.mark(job.owner)
        node.files.publish(job.owner, task_file.whole_lines((), node.tasks))
    line.say("INFO", "no GPU of this node is managed")


def _refuse(
    node: Node, job: Job, gpus: Sequence[Gpu], wanted: str, fault: JobFault, line: LogLine
) -> None:
    from slurm_mig.hooks.refusal import Refusal, come_back_later, earlier, refuse
    from slurm_mig.state import task_file

    node.forget_tables()
    records: list[Allocation] = []
    if gpus:
        node.bench().refuse(job.owner, wanted, gpus[0], fault)
        records = node.ledger.of_job(job.job_id)
    leases = node.files.leases(job.owner)
    # Before Slurm is asked: should that fail, the TaskProlog still has the reason.
    with suppress(NoSpace):
        # Without it no Epilog comes for the file that follows, should this hook die here.
        node.files.mark(job.owner, leases=leases)
        node.files.refuse(job.owner, task_file.refusal_lines(str(fault)))
    refused = earlier(records, job.owner, job.comment)
    refusal = Refusal(job.job_id, refused, job.comment, job.owner.het_leader)
    outcome = refuse(refusal, fault, node.slurm, node.config)
    retry = f"{outcome.retry} {refused}" if outcome.retry else ""
    if retry and isinstance(fault, NoRoom):
        _wait_for_room(node, job, outcome.retry, line)
    try:
        node.files.mark(job.owner, retry=retry, leases=leases)
    except NoSpace:
        # The Epilog will not know: unless somebody else puts the job off, it comes back at once.
        if retry:
            come_back_later(node, job.job_id, line, *retry.split())
    line.add(outcome=outcome.text)
    line.say("WARNING", f"refused: {fault}")


def _wait_for_room(node: Node, job: Job, reference: str, line: LogLine) -> None:
    """Let what makes room on this node bring the job forward; a job of several nodes has others."""
    import time

    from slurm_mig.state.waiting import Waiting

    request = job.stamped()
    if not isinstance(request, requests.Request) or not job.alone:
        return
    try:
        node.waiting.put(Waiting(job.job_id, reference, request.stamp(), time.time()))
    except (NodeFault, NoSpace, OSError) as fault:
        # It waits its full time then.
        line.say("WARNING", f"not brought forward: {fault}")
