"""A merge from plan to finished folder: continue or start, stream, put the other files beside the weights, check, lock."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from triune import __version__
from triune.checkpoint.index import read_json
from triune.checkpoint.remote import is_url
from triune.checkpoint.source import Source
from triune.checkpoint.writer import DEFAULT_SHARD, ShardWriter, shard_index
from triune.engine.budget import default_limit, device_limits
from triune.engine.cache import Cache, own_folder
from triune.engine.cores import available_cores, pick_devices
from triune.engine.executors import Executor, ExecutorFailed
from triune.engine.executors.local import LocalExecutor
from triune.engine.job import Done, Job, device_memory_of
from triune.engine.journal import LOCK, Journal, is_finished
from triune.engine.lock import file_digest, lock_file
from triune.engine.plan import Plan, check_disk, make_plan
from triune.engine.run import run_job, run_scan
from triune.engine.sinks import PartSink, ShardSink, Sink
from triune.errors import UserError
from triune.methods._spec import Scan, WholeModelScan
from triune.output import strip
from triune.output.adapter import assemble
from triune.output.atomic import write_text
from triune.output.beside import write_beside
from triune.output.card import write_card, write_recipe
from triune.output.gate import Check, TensorNorms, check_model, check_norms
from triune.progress import Advanced, Finished, Listener, Started, silent
from triune.recipes import Recipe


@dataclass(frozen=True)
class MergeResult:
    """What a merge did."""

    out: Path
    plan: Plan
    checks: tuple[Check, ...]
    """The gate's findings; empty if it was switched off."""
    resumed: int = 0
    """Tensors that an earlier run had finished."""
    ranks: Mapping[str, int] | None = None
    """Rank of each merged delta, where the merge ran in factors."""
    from_cache: int = 0
    """Tensors whose decompositions were found in the cache."""
    already_done: bool = False
    """The folder held this very merge; nothing was done."""

    def __repr__(self) -> str:
        """One line: without this, a notebook would print every job of the plan."""
        told = ("passed" if self.passed else "failed") if self.checks else "not checked"
        size = f"{len(self.plan.jobs)} tensors"
        return f"MergeResult(out={str(self.out)!r}, {self.plan.description!r}, {size}, {told})"

    @property
    def passed(self) -> bool:
        return all(c.passed is not False for c in self.checks)


def merge(
    recipe: Recipe,
    out: Path | str,
    *,
    threads: int | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    max_device_memory: int | None = None,
    shard_bytes: int = DEFAULT_SHARD,
    gate: bool = True,
    listener: Listener = silent,
    executor: Executor | None = None,
    cache: Path | str | None = None,
) -> MergeResult:
    """Merge models into a folder.

    An interrupted merge continues when it is called again with the same recipe and folder, and ends in the same bytes.

    Args:
        recipe: from :func:`triune.load_recipe`, :func:`triune.parse_recipe` or :func:`triune.recipe_from_flags`.
        out: a folder that does not exist yet, is empty, or holds an unfinished merge of this recipe.
        threads: lanes that read, compute and write; all cores by default. Never changes a byte of the result.
        device: cpu, cuda (every GPU), cuda:N, several with commas, or auto. What a GPU cannot hold runs on the CPU.
        max_memory: bytes of working memory; half of what is free by default.
        max_device_memory: bytes of each GPU; four fifths of what is free there by default. A tensor that needs more is
            merged on the CPU.
        shard_bytes: largest size of an output file.
        gate: check the merged model afterwards; see :attr:`MergeResult.checks`.
        listener: is told about progress.
        executor: who runs the jobs, instead of threads on this machine.
        cache: a folder for the decompositions of TSVM and R-TSVM. A merge that differs from an earlier one in nothing but
            ``weight`` and ``scaling`` takes them from there, and comes out the same to the byte.

    Raises:
        UserError: the recipe or a model is wrong. Nothing is left in ``out``.
        Interrupted: after Ctrl-C. What is finished is kept.
    """
    out = Path(out)
    folder = own_folder(cache, out) if cache is not None else None
    limit = max_memory or default_limit()
    job_limit = executor.limit if executor else limit
    devices = device_limits(pick_devices(device), max_device_memory, limit)
    plan = make_plan(recipe, memory_limit=job_limit, shard_bytes=shard_bytes, devices=devices)
    if any(not is_url(file) and not Path(file).exists() for file in plan.files()):
        for model in (*plan.experts, *([plan.base] if plan.base else [])):
            model.ref.fetch()
        plan = make_plan(recipe, memory_limit=job_limit, shard_bytes=shard_bytes, devices=devices)
    if is_finished(plan, out):
        shutil.rmtree(out / ".triune", ignore_errors=True)  # killed after the lock, before the last step
        _check_finished(plan, out)
        checks = [Check(c["check"], c["passed"], c["value"], c["sentence"]) for c in read_json(out / LOCK)["gate"]]
        return MergeResult(out, plan, tuple(checks), already_done=True)
    check_disk(plan, out)
    device = next((d for d in devices if d != "cpu"), "cpu")
    kept = Cache(folder, plan.files()) if folder else None
    executor = executor or LocalExecutor(threads or available_cores(), limit, devices, device_memory_of)
    try:
        with Journal(out, plan.fingerprint, plan.description) as journal:
            try:
                with ShardWriter(journal.folder, plan.shards, out) as writer:
                    sink = PartSink(journal.folder) if plan.lora else ShardSink(writer)
                    resumed = _forget_damaged(plan, journal, writer)
                    _stream(plan, journal, executor, sink, listener, kept)
                    writer.finish()
                if plan.lora:
                    _assemble(plan, journal, out)
            except UserError:
                journal.discard()  # an input is wrong: there is nothing to continue
                raise
            except ExecutorFailed as error:
                if not journal.finished:
                    journal.discard()
                raise UserError(f"{error} Then run the same command again: what is finished is kept.") from None
            return _finish(plan, journal, out, limit, device, gate, resumed, listener)
    except OSError as error:
        raise UserError(
            f"Reading or writing failed: {error}. What is finished is kept: remove the cause, such as a full disk, and "
            "run the same command again."
        ) from None


def _check_finished(plan: Plan, out: Path) -> None:
    """A finished folder is not called done if something of it is gone."""
    sizes = {s.name: s.nbytes for s in plan.shards}
    digests = read_json(out / LOCK)["files"]
    for name in (*sizes, *digests):
        path = out / name
        intact = path.is_file() and (
            path.stat().st_size == sizes[name] if name in sizes else file_digest(path) == digests[name]
        )
        if not intact:
            raise UserError(
                f"{out} holds this merge, but its {name} is {'changed' if path.exists() else 'missing'}. "
                f"`triune verify {out}` tells more; to merge again, name another folder or remove this one."
            )


def _stream(
    plan: Plan, journal: Journal, executor: Executor, sink: Sink, listener: Listener, cache: Cache | None
) -> None:
    todo = [j for j in plan.jobs if j.output.name not in journal.finished]
    total = sum(j.traffic for j in plan.jobs)
    stats = scan_model(plan, executor, listener) if todo else None
    listener(Started("merge", total, total - sum(j.traffic for j in todo)))

    def done(job: Job, result: Done) -> None:
        journal.add(result)
        listener(Advanced(job.traffic, job.output.name))

    executor.run(todo, partial(run_job, sink=sink, stats=stats, lora=plan.lora, cache=cache), done)
    assert set(journal.finished) == {j.output.name for j in plan.jobs}, "every planned tensor is written"
    listener(Finished("merge"))


def scan_model(plan: Plan, executor: Executor, listener: Listener) -> Any:
    """The passes of a statistic of the whole model, if the method has one."""
    jobs = [j for j in plan.jobs if j.route == "blocks"]
    if not jobs or plan.method.scan is None:
        return None
    first = jobs[0]
    scan = plan.method.scan(len(first.experts), first.output.entries, **first.bound)
    if not isinstance(scan, WholeModelScan):
        return None
    # A tensor that no adapter changes is a part of the model all the same: deltas of zero, for which nothing is read.
    nothing = (Source(),) * len(first.experts)
    unchanged = [j for j in plan.jobs if j.route == "copy" and j.output.is_float]
    jobs += [
        replace(
            j, route="blocks", method=first.method, bound=first.bound, base=None, experts=nothing, nbytes=first.nbytes
        )
        for j in unchanged
    ]
    for turn in range(scan.passes):
        listener(Started(f"scan {turn + 1} of {scan.passes}", sum(j.traffic for j in jobs)))

        def done(job: Job, part: Scan, scan: WholeModelScan = scan) -> None:
            scan.add(part)
            listener(Advanced(job.traffic, job.output.name))

        executor.run(jobs, partial(_scan_part, scan=scan, turn=turn), done)
        scan.close(turn)
        listener(Finished("scan"))
    return scan.result()


def _scan_part(job: Job, lane: Any, *, scan: WholeModelScan, turn: int) -> Scan:
    return run_scan(job, lane, scan.part(), turn)


def _forget_damaged(plan: Plan, journal: Journal, writer: ShardWriter) -> int:
    """Trust nothing that the journal says is in place: after a power cut its bytes may not be."""
    for job in plan.jobs:
        entry = journal.finished.get(job.output.name)
        if entry is None:
            continue
        if plan.lora:
            part = _part(journal, job)
            intact = part.exists() and hashlib.sha256(part.read_bytes()).hexdigest() == entry.digest
        else:
            intact = writer.digest(job.output) == entry.digest
        if not intact:
            journal.forget(job.output.name)
    return len(journal.finished)


def _part(journal: Journal, job: Job) -> Path:
    return journal.folder / f"part-{job.index:05d}.safetensors"


def _assemble(plan: Plan, journal: Journal, out: Path) -> None:
    adapters = [m.adapter for m in plan.experts if m.adapter]
    assemble(
        [_part(journal, j) for j in plan.jobs],
        out,
        base_name=next((a.base_name for a in adapters if a.base_name), plan.template.ref.text),
        dtype=plan.dtype,
        template=read_json(adapters[0].folder / "adapter_config.json"),
        targets={name: target for a in adapters for name, target in a.targets.items()},
    )


def _finish(
    plan: Plan, journal: Journal, out: Path, limit: int, device: str, gate: bool, resumed: int, listener: Listener
) -> MergeResult:
    """Everything after the weights. Each file is whole or absent, and a rerun writes the same ones again."""
    results = [journal.finished[j.output.name] for j in plan.jobs]
    template = plan.template
    for left in out.rglob(".*.part"):  # of a run that was killed while it wrote a file
        left.unlink()
    if not plan.lora:
        if text := shard_index(plan.shards):
            write_text(out / "model.safetensors.index.json", text)
        write_beside(plan.beside, out)
    write_recipe(out, plan.recipe.text)
    norms = [TensorNorms(d.tensor, d.merged, d.base, d.deltas, d.merged_delta) for d in results]
    if figure := strip.draw(norms, [m.name for m in plan.experts]):
        write_text(out / strip.NAME, figure)
    checks: Sequence[Check] = ()
    if gate:
        listener(Started("gate", 0))
        checks = check_norms(norms)
        if all(c.passed is not False for c in checks):
            checks = [*checks, *check_model(out, template.checkpoint.folder, memory_limit=limit, device=device)]
        listener(Finished("gate"))
    write_card(
        out,
        method_title=plan.method.title,
        method_summary=plan.method.summary,
        method_name=plan.method.name,
        paper=plan.method.paper,
        base=template.parent,
        experts=[m.parent for m in plan.experts],
        recipe_text=plan.recipe.text,
        merged_by=f"triune {__version__}",
        semantics=plan.semantics,
        seed=plan.recipe.seed,
        gate_lines=[c.sentence for c in checks] or ["The gate was switched off."],
        output=plan.recipe.output,
        figure=figure and strip.NAME,
    )
    # The lock comes last: a folder that has one is finished.
    write_text(out / LOCK, lock_file(plan, out, results, checks))
    journal.finish()
    ranks = {d.tensor: d.rank for d in results if d.rank is not None} or None
    return MergeResult(out, plan, tuple(checks), resumed, ranks, sum(d.cached for d in results))
