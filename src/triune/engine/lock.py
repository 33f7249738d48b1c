"""``triune.lock.json``: what exactly went into a merge and what came out, so that anyone can check it later."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triune import __version__
from triune.engine.job import Done
from triune.engine.models import Model
from triune.engine.plan import Plan
from triune.output.card import licences_of
from triune.output.gate import Check


def lock_file(plan: Plan, out: Path, results: Sequence[Done], checks: Sequence[Check]) -> str:
    """The text of the lock file. It holds no time and no absolute path."""
    models = [*([(-1, plan.base)] if plan.base else []), *enumerate(plan.experts)]
    shards = {s.name for s in plan.shards}
    files = (p for p in out.rglob("*") if p.is_file() and p.name not in shards and ".triune" not in p.parts)
    beside = sorted(p.relative_to(out).as_posix() for p in files)
    start = plan.recipe.folder or Path()
    copied = {j.output.name for j in plan.jobs if j.route == "copy"}
    on_cpu = [d.tensor for d in results if d.device == "cpu" and d.tensor not in copied]
    on_gpu = any(d.device != "cpu" for d in results)
    content: dict[str, Any] = {
        "triune": __version__,
        "fingerprint": plan.fingerprint,
        "python": platform.python_version(),
        "torch": version("torch"),
        "method": plan.method.name,
        "semantics": plan.semantics,
        "seed": plan.recipe.seed,
        "output": plan.recipe.output,
        "dtype": plan.dtype,
        "device": "cuda" if on_gpu else "cpu",
        **({"on_cpu": on_cpu} if on_gpu and on_cpu else {}),
        "shard_bytes": plan.shard_bytes,
        "recipe_folder": os.path.relpath(start.resolve(), out.resolve()),
        "working_folder": os.path.relpath(Path().resolve(), out.resolve()),
        "models": [_model(index, model, results) for index, model in models],
        "files": {name: file_digest(out / name) for name in beside},
        "tensors": {d.tensor: d.digest for d in results},
        "norms": {d.tensor: _norms(d) for d in results if any(d.deltas) and _finite(d)},
        "ranks": {d.tensor: d.rank for d in results if d.rank is not None},
        "gate": [{"check": c.name, "passed": c.passed, "value": c.value, "sentence": c.sentence} for c in checks],
    }
    return json.dumps(content, indent=1) + "\n"


def _model(index: int, model: Model, results: Sequence[Done]) -> dict[str, Any]:
    read = hashlib.sha256()
    for done in results:
        if index in done.inputs:
            read.update(f"{done.tensor} {done.inputs[index]}\n".encode())
    entry: dict[str, Any] = {"reference": model.ref.text, "name": model.name}
    entry["licence"] = ", ".join(dict.fromkeys(found.name for found in licences_of(model.parent)))
    if model.ref.hub:
        entry["repository"], entry["commit"] = model.ref.hub
    if any(index in d.inputs for d in results):
        entry["tensors_sha256"] = read.hexdigest()
    if model.adapter:
        entry["adapter_sha256"] = file_digest(model.adapter.folder / "adapter_model.safetensors")
        entry["adapter_config_sha256"] = file_digest(model.adapter.folder / "adapter_config.json")
    return entry


def _finite(done: Done) -> bool:
    """A norm overflows float32 where entries are above 1e19, and JSON has no infinity."""
    return all(map(math.isfinite, (done.merged, done.base, done.merged_delta, *done.deltas)))


def _norms(done: Done) -> dict[str, Any]:
    """Frobenius norms of a tensor and of its changes, to six digits: what a report draws."""

    def short(norm: float) -> float:
        return float(f"{norm:.6g}")

    return {"base": short(done.base), "deltas": [*map(short, done.deltas)], "merged_delta": short(done.merged_delta)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
