"""From a recipe and the headers of its models to a list of jobs. Whatever is wrong is refused here, before any weight is
read, and everything is accounted for: bytes, memory, disk, route of each tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triune import __version__
from triune.checkpoint.index import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS, TensorInfo
from triune.checkpoint.remote import is_url
from triune.checkpoint.remote import version as file_version
from triune.checkpoint.source import Source
from triune.checkpoint.writer import DEFAULT_SHARD, Shard, lay_out
from triune.engine.budget import fits, human
from triune.engine.job import Job, Route, device_memory_of, memory_of
from triune.engine.models import DTYPES, Model, check_shape, common_dtype, open_base, open_expert, some, tensor_names
from triune.errors import CheckpointError, RecipeError, UserError
from triune.methods import Method, find
from triune.methods._spec import View, WholeModelScan
from triune.output.beside import Beside, plan_beside
from triune.recipes import Recipe, count_layers, resolve


@dataclass(frozen=True)
class Plan:
    """All that a merge will do."""

    recipe: Recipe
    method: Method
    base: Model | None
    experts: tuple[Model, ...]
    shards: tuple[Shard, ...]
    jobs: tuple[Job, ...]
    beside: Beside
    dtype: str
    """Of the floating-point output: bfloat16, float16, float32, or mixed as in the base."""
    shard_bytes: int = DEFAULT_SHARD
    devices: Mapping[str, int] = field(default_factory=dict)
    """What is computed on, and how many bytes of each; no byte of the output is planned by it."""

    def __repr__(self) -> str:
        return f"Plan({self.description!r}, {len(self.jobs)} tensors)"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the merge."""
        return (
            *self.beside.report,
            *self.beside.warnings,
            *_odd_settings(self.recipe, [j.output.name for j in self.jobs]),
            *_too_large(self.jobs, self.devices),
        )

    @property
    def lora(self) -> bool:
        return self.recipe.output == "lora"

    @property
    def template(self) -> Model:
        """The model whose tensors, configuration and tokenizer the output takes after."""
        return self.base or self.experts[0]

    @property
    def semantics(self) -> str | None:
        """mergekit or paper; None for a method that has one reading only."""
        return next((str(j.bound["semantics"]) for j in self.jobs if "semantics" in j.bound), None)

    @property
    def read_bytes(self) -> int:
        return sum(j.read_bytes for j in self.jobs)

    @property
    def write_bytes(self) -> int:
        """Of a full model; an adapter's size is known only when its ranks are."""
        return sum(t.nbytes for s in self.shards for t in s.tensors)

    def peak_bytes(self, threads: int) -> int:
        """Predicted peak of working memory, beyond what the program and its libraries take."""
        return sum(sorted((j.nbytes for j in self.jobs), reverse=True)[:threads])

    @property
    def routes(self) -> Mapping[Route, int]:
        return Counter(j.route for j in self.jobs)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with anything that could change a byte of the output: recipe, inputs, layout, version."""
        digest = hashlib.sha256(f"{made_with()}\n{self.recipe.output} {self.shard_bytes}\n".encode())
        for job in self.jobs:
            bound = sorted(job.bound.items())
            digest.update(repr((job.output, job.route, job.method, bound, job.view, job.base, job.experts)).encode())
        for file in sorted(self.files()):
            digest.update(f"{file} {stamp(file)}\n".encode())
        beside = self.beside
        digest.update(json.dumps([beside.config, dict(beside.texts)], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def files(self) -> set[str]:
        """Every weight file that will be read."""
        return {t.file for j in self.jobs for s in (j.base, *j.experts) if s for t in s.tensors}

    @property
    def description(self) -> str:
        """One line for people."""
        names = ", ".join(m.name for m in self.experts)
        return f"{self.method.name} of {names}" + (f" on {self.base.ref.text}" if self.base else "")


def stamp(file: str) -> object:
    """What tells whether a weight file has changed, without reading it."""
    if is_url(file):
        return file_version(file)
    stat = Path(file).stat() if Path(file).exists() else None
    return stat and (stat.st_size, stat.st_mtime_ns)


BYTES = 4
"""Raised when the same recipe comes to give other bytes, so that no merge is continued by another way of computing it."""


def made_with() -> str:
    """The software that could change a byte of the output."""
    return f"triune {__version__}, bytes {BYTES}, torch {version('torch')}"


def make_plan(
    recipe: Recipe,
    *,
    memory_limit: int | None = None,
    shard_bytes: int = DEFAULT_SHARD,
    devices: Mapping[str, int] | None = None,
) -> Plan:
    """Check everything and lay the work out.

    Args:
        recipe: what the user asked for.
        memory_limit: bytes; a tensor that needs more is refused by name.
        shard_bytes: largest size of an output file.
        devices: bytes that may be taken of each device, for a note on what goes to the CPU.

    Raises:
        UserError: anything in the recipe or the models that would stop the merge later.
    """
    method = find(recipe.method)
    base = open_base(recipe)
    experts = tuple(open_expert(recipe, i, base) for i in range(len(recipe.experts)))
    template = base or experts[0]
    dtype = recipe.out_dtype or recipe.dtype
    names = tensor_names(template, experts)
    parents = [m.parent for m in experts]
    beside = plan_beside(
        template.parent,
        parents if base else parents[1:],
        tokenizer_source=recipe.tokenizer_source,
        chat_template=recipe.chat_template,
        dtype=dtype or common_dtype(template),
    )
    jobs = [j for j in _jobs(recipe, method, base, experts, names, beside, dtype) if j is not None]
    if recipe.output == "lora":
        jobs = _only_factors(method, jobs, experts)
        shards: tuple[Shard, ...] = ()
    else:
        shards = tuple(lay_out([(j.output.name, j.output.dtype, j.output.shape) for j in jobs], shard_bytes))
        placed = {t.name: t for s in shards for t in s.tensors}
        jobs = [replace(j, output=placed[j.output.name]) for j in jobs]
        assert len(placed) == len(jobs), "every tensor has one job and one place"
    jobs = [replace(j, nbytes=memory_of(j)) for j in jobs]
    _check_whole_model_scan(method, jobs)
    if memory_limit is not None:
        _check_memory(jobs, memory_limit)
    return Plan(
        recipe,
        method,
        base,
        experts,
        shards,
        tuple(jobs),
        beside,
        dtype or common_dtype(template),
        shard_bytes,
        devices or {},
    )


# --- jobs ---------------------------------------------------------------------------------------------------------


def _jobs(
    recipe: Recipe,
    method: Method,
    base: Model | None,
    experts: Sequence[Model],
    names: Iterable[str],
    beside: Beside,
    dtype: str | None,
) -> Iterable[Job | None]:
    template = base or experts[0]
    names = list(names)
    layers = count_layers(names)
    vocabulary = beside.vocabulary
    rows_of = (
        [tuple(r) if r is not None else None for r in vocabulary.rows] if vocabulary else [None] * (len(experts) + 1)
    )
    if base is None and vocabulary:
        rows_of = [None, *rows_of]  # the first expert is the template
    for index, name in enumerate(names):
        info = template.checkpoint.tensors[name]
        sources = [m.source(name) for m in experts]
        origin = Source(info) if base else None
        shape = info.shape
        if not info.is_float:
            yield _copy_of(index, info, origin or Source(info), recipe)
            continue
        resized = vocabulary is not None and name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS))
        if resized and vocabulary:
            shape = (vocabulary.size, *shape[1:])
            origin = origin and replace(origin, rows=_identity(rows_of[0], info, vocabulary.size))
        placed = []
        for t, (model, source) in enumerate(zip(experts, sources, strict=True)):
            if source is None:  # a constant, see _skippable
                source = Source() if base else Source(info)
            if resized and vocabulary:
                if source.factors is not None:
                    raise CheckpointError(
                        f"{model.ref.text} adapts {name}, whose rows are moved by tokenizer_source. Merge the adapter "
                        "into its base with PEFT's merge_and_unload first."
                    )
                if source.dense is not None:
                    rows = _identity(rows_of[t + 1], source.dense, vocabulary.size)
                    source = replace(source, rows=rows)
            elif source.dense is not None:
                check_shape(name, source.dense, shape, model, template)
            placed.append(source)
        output = TensorInfo(name, DTYPES[dtype] if dtype else info.dtype, shape, "", 0)
        view = View(name, tuple(e.name for e in recipe.experts), recipe.seed, 0, shape)
        bound = method.bind(resolve(recipe, method, name, num_layers=layers), len(recipe.experts))
        route = _route(recipe, method, bound, view, placed)
        if route == "dense" and any(s.rows is not None for s in (origin, *placed) if s):
            raise RecipeError(
                f"{method.name} cannot decompose {name} while tokenizer_source moves its rows. Set embeddings: mean."
            )
        yield Job(index, output, route, method.name, bound, view, origin, tuple(placed))


def _identity(rows: tuple[int, ...] | None, info: TensorInfo, size: int) -> tuple[int, ...] | None:
    """A row map, also where a model without one has another number of rows than the output."""
    if rows is not None or info.shape[0] == size:
        return rows
    return tuple(r if r < info.shape[0] else -1 for r in range(size))


def _copy_of(index: int, info: TensorInfo, origin: Source, recipe: Recipe) -> Job | None:
    if recipe.output == "lora":
        return None
    return Job(index, info, "copy", "task_arithmetic", {}, View(info.name, shape=info.shape), origin, ())


def _route(recipe: Recipe, method: Method, bound: Mapping[str, Any], view: View, sources: Sequence[Source]) -> Route:
    if method.takes == "deltas" and all(s.is_base for s in sources):
        return "copy"
    low_rank = all(s.dense is None for s in sources) and method.refuses_factors(bound) is None and len(view.shape) == 2
    space = bound.get("space", "full")
    if space != "full" and not all(s.is_base for s in sources):
        if not low_rank:
            raise RecipeError(
                f"space: {space} needs every expert to be an adapter on the base, but for {view.tensor} one has a full "
                "tensor. Use space: full."
            )
        if space == "lora_factors":
            return "factors"
    if recipe.output == "lora":
        return "factors" if low_rank else "dense"
    if method.grain_at(bound, view) != "tensor":
        return "blocks"
    return "factors" if low_rank else "dense"


def _only_factors(method: Method, jobs: Sequence[Job], experts: Sequence[Model]) -> list[Job]:
    """For output: lora, the jobs with something to write; refused unless each stays in factors."""
    for model in experts:
        if model.adapter is None:
            raise RecipeError(
                f"output: lora needs every expert to be an adapter on the base, but {model.ref.text} is a full model. "
                "Use output: full."
            )
        if model.adapter.replaced or not model.on_base:
            what = f"replaces {some(list(model.adapter.replaced))}" if model.adapter.replaced else "has another base"
            raise RecipeError(f"output: lora: {model.ref.text} {what}, which no adapter on the base expresses.")
    changed = [j for j in jobs if any(not s.is_base for s in j.experts)]
    for job in changed:
        if reason := method.refuses_factors(job.bound):
            raise RecipeError(f"output: lora: {reason}, or use output: full.")
    return [replace(j, route="factors") for j in changed]


def _odd_settings(recipe: Recipe, names: Sequence[str]) -> Iterable[str]:
    """Settings that are allowed, as in mergekit, and yet are probably not what was meant."""
    for parameters in (recipe.parameters, *(e.parameters for e in recipe.experts)):
        for key, setting in parameters.items():
            for entry in setting if isinstance(setting, list | tuple) else [setting]:
                word = entry.get("filter") if isinstance(entry, dict) else None
                if word and word != "*" and not any(word in name for name in names):
                    yield f"{key}: the filter {word!r} matches no tensor."
    for key, setting in recipe.parameters.items():
        plain = isinstance(setting, list | tuple) and len(setting) == len(recipe.experts) > 1
        if plain and all(isinstance(v, int | float) and not isinstance(v, bool) for v in setting):
            numbers = ", ".join(f"{v:g}" for v in setting)
            yield f"{key}: [{numbers}] runs over the layers, first to last. For one value an expert, set it for each expert."


def _too_large(jobs: Sequence[Job], devices: Mapping[str, int]) -> Iterable[str]:
    """What no GPU has room for, where only GPUs are named."""
    count = sum(not fits(devices, device_memory_of(j)) for j in jobs) if devices else 0
    if count:
        which = (
            "1 tensor is merged on the CPU: it needs"
            if count == 1
            else f"{count} tensors are merged on the CPU: they need"
        )
        yield f"{which} more than --max-device-memory ({human(max(devices.values()))})."


# --- limits -------------------------------------------------------------------------------------------------------


def _check_whole_model_scan(method: Method, jobs: Sequence[Job]) -> None:
    merging = [j for j in jobs if j.route == "blocks"]
    if not merging or method.scan is None:
        return
    scan = method.scan(len(merging[0].experts), merging[0].output.entries, **merging[0].bound)
    if not isinstance(scan, WholeModelScan):
        return
    other = next((j for j in merging if j.bound != merging[0].bound), None)
    if other is not None:
        raise RecipeError(
            f"{method.name} with semantics: paper has one threshold for the whole model, so its parameters cannot change "
            f"from tensor to tensor, as they do at {other.output.name}. Use plain numbers, or semantics: mergekit."
        )


def _check_memory(jobs: Sequence[Job], limit: int) -> None:
    worst = max(jobs, key=lambda j: j.nbytes, default=None)
    if worst is not None and worst.nbytes > limit:
        raise UserError(
            f"--max-memory {human(limit)}: merging {worst.output.name} {list(worst.output.shape)} by {worst.method} takes "
            f"{human(worst.nbytes)} at once. Allow at least that much"
            + ("." if worst.route == "blocks" else ", or choose a method that works in blocks.")
        )


def check_disk(plan: Plan, out: Path) -> None:
    """Refuse a merge that the disk cannot hold.

    Raises:
        UserError: less free than the output takes.
    """
    folder = Path(os.path.realpath(out))  # which takes a link to itself, too
    while not folder.exists():
        folder = folder.parent
    needed = sum(s.nbytes for s in plan.shards) + 2**26
    # What an interrupted run has written already, in the making or in place, needs no room again.
    begun = [p for s in plan.shards for p in (out / ".triune" / s.name, out / s.name) if p.exists()]
    free = shutil.disk_usage(folder).free
    if free + sum(file.stat().st_blocks * 512 for file in begun) < needed:
        raise UserError(f"The output takes {human(needed)}, but {folder} has {human(free)} free. Name another folder.")
