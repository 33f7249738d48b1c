"""Is this folder what its lock file says?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triune.checkpoint.index import open_checkpoint, read_json
from triune.checkpoint.reader import Files, Reader
from triune.engine.budget import default_limit, device_limits
from triune.engine.cores import available_cores, pick_device
from triune.engine.executors.local import LocalExecutor
from triune.engine.job import Done, Job, device_memory_of
from triune.engine.journal import LOCK
from triune.engine.lock import file_digest
from triune.engine.merge import scan_model
from triune.engine.plan import Plan, make_plan
from triune.engine.run import run_job
from triune.engine.sinks import NullSink
from triune.errors import UserError
from triune.progress import Listener, silent
from triune.recipes import parse_recipe

ROUNDING = (
    "A GPU merged it: another kind of GPU or driver, or the CPU where the GPU has no room now, may round differently."
)


@dataclass(frozen=True)
class Verification:
    """What was compared and what differs."""

    files: int
    tensors: int
    recomputed: int
    problems: tuple[str, ...]
    note: str = ""
    """Why nothing was recomputed, if so."""


def verify(
    out: Path | str, *, sample: int | None = 8, threads: int | None = None, listener: Listener = silent
) -> Verification:
    """Compare a merged folder with its lock file, and recompute tensors from the inputs.

    Args:
        out: the folder of a merge.
        sample: how many tensors to recompute, spread evenly over the model; None for all of them.

    Raises:
        UserError: the folder has no lock file.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"There is no folder {out}.")
    if (out / ".triune").exists() and not (out / LOCK).exists():
        raise UserError(f"The merge into {out} is not finished. Run its command again; it continues where it stopped.")
    if not (out / LOCK).exists():
        raise UserError(f"{out} has no {LOCK}, so there is nothing to compare it with. Only finished merges have one.")
    lock = read_json(out / LOCK)
    wanted = {"files": dict, "tensors": dict, "output": str, "shard_bytes": int, "recipe_folder": str}
    on_cpu = lock.get("on_cpu", [])
    if not all(isinstance(lock.get(key), kind) for key, kind in wanted.items()) or not isinstance(on_cpu, list):
        raise UserError(f"{out / LOCK} is damaged, so there is nothing to compare the folder with. Merge it again.")
    problems = []
    for name, digest in lock["files"].items():
        if not (out / name).exists():
            problems.append(f"{name} is missing.")
        elif file_digest(out / name) != digest:
            problems.append(f"{name} has changed since the merge.")
    tensors = 0 if lock["output"] == "lora" else _check_tensors(out, lock["tensors"], problems.append)
    recomputed, note = 0, ""
    try:
        plan, device = _plan_again(out, lock), pick_device(lock.get("device", "cpu"))
        results = _recompute(plan, sample, threads or available_cores(), device, on_cpu, listener)
        for result in sorted(results, key=lambda r: r.tensor):
            if lock["tensors"].get(result.tensor) != result.digest:
                rounding = "" if device == "cpu" or result.tensor in on_cpu else f" {ROUNDING}"
                problems.append(f"{result.tensor}: recomputing it from the inputs gives other bytes.{rounding}")
        recomputed = len(results)
    except (UserError, OSError) as error:
        note = f"Nothing was recomputed from the inputs: {error}"
    return Verification(len(lock["files"]), tensors, recomputed, tuple(problems), note)


def _plan_again(out: Path, lock: Mapping[str, Any]) -> Plan:
    """The plan of the merge, from its recipe; relative paths start at the recipe's folder or where the merge was run."""
    file = out / "mergekit_config.yml"
    text = file.read_text(encoding="utf-8")
    try:
        recipe = parse_recipe(text, origin=str(file), folder=out / lock["recipe_folder"])
        return make_plan(recipe, shard_bytes=lock["shard_bytes"])
    except UserError:
        if "working_folder" not in lock:
            raise
        recipe = parse_recipe(text, origin=str(file), folder=out / str(lock["working_folder"]))
        return make_plan(recipe, shard_bytes=lock["shard_bytes"])


def _recompute(
    plan: Plan, sample: int | None, threads: int, device: str, on_cpu: Collection[str], listener: Listener
) -> list[Done]:
    """Run some of the jobs again where they ran, for their digests alone."""
    limit = default_limit()
    executor = LocalExecutor(threads, limit, device_limits([device], None, limit), device_memory_of)
    most = len(plan.jobs) if sample is None else sample
    jobs = list(plan.jobs)[:: max(1, len(plan.jobs) // max(most, 1))][:most]
    results: list[Done] = []
    work = partial(run_job, sink=NullSink(), stats=scan_model(plan, executor, listener), lora=plan.lora)

    def done(job: Job, result: Done) -> None:
        results.append(result)

    executor.run([j for j in jobs if j.output.name not in on_cpu], work, done)
    LocalExecutor(threads, limit).run([j for j in jobs if j.output.name in on_cpu], work, done)
    return results


def _check_tensors(out: Path, digests: dict[str, str], report: Callable[[str], None]) -> int:
    """Hash every tensor of the folder."""
    try:
        tensors = open_checkpoint(out, str(out)).tensors
    except UserError as error:
        report(str(error))
        return 0
    if set(tensors) != set(digests):
        report("The model holds other tensors than the merge wrote.")
    with Files() as files:
        reader = Reader(files)
        for name, info in tensors.items():
            digest = hashlib.sha256()
            for at in range(0, info.nbytes, 1 << 22):
                digest.update(reader.raw(info, at, min(1 << 22, info.nbytes - at)))
            if digests.get(name) != digest.hexdigest():
                report(f"{name}: its bytes have changed since the merge.")
    return len(tensors)
