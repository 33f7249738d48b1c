"""What the page works on: the models in memory, a point between them, and the merge at that point."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from triune._lazy import torch
from triune.checkpoint.reader import torch_dtype
from triune.engine.budget import default_limit, human
from triune.engine.cache import FREE
from triune.engine.cores import available_cores
from triune.engine.executors.local import LocalExecutor
from triune.engine.inputs import Lane
from triune.engine.job import Job
from triune.engine.merge import MergeResult, merge, scan_model
from triune.engine.models import Model, skippable
from triune.engine.plan import Plan, make_plan
from triune.engine.run import run_job
from triune.errors import CheckpointError, ParameterError, RecipeError, UserError
from triune.methods import Method, find
from triune.methods._lowrank import LowRank
from triune.output.atomic import write_text
from triune.progress import Advanced, Finished, Listener, Started, silent
from triune.recipes import Recipe, recipe_from_flags
from triune.recipes.schema import LABEL
from triune.studio.point import Point, RefusedParameter, simplex, strength_of
from triune.studio.versions import Resident, Version

BASE, MERGED = "base", "merge"
"""What the base and the point's model are called among the versions."""
MOST = 12
"""Experts that one page shows side by side."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEPT = ("seed", "dtype", "out_dtype", "chat_template")
"""Top-level keys of a recipe that the studio takes along as they are."""


@dataclass(frozen=True)
class Merge:
    """The model at a point."""

    recipe: Recipe
    version: Version
    seconds: float
    exact: int
    """Tensors that were merged as low-rank factors."""
    dense: int
    """Tensors that were merged entry by entry, or decomposed."""


class Studio:
    """A base, its experts and the merge at the last point, all in memory.

    Args:
        recipe: names base, experts and where to start.
        out: the folder for what is kept; made when something is.
        listener: is told about loading.

    Raises:
        UserError: the models do not fit together, do not fit into memory, or the recipe has more than one number where the
            page has one.
    """

    def __init__(self, recipe: Recipe, out: Path, listener: Listener = silent) -> None:
        if recipe.base is None:
            raise RecipeError("The studio needs the base that the experts were trained from. Add --base MODEL.")
        if not 2 <= len(recipe.experts) <= MOST:
            raise RecipeError(f"The studio mixes 2 to {MOST} experts, got {len(recipe.experts)}. Name others with -e.")
        if blocked := [place for place in (out, *out.absolute().parents) if place.exists() and not place.is_dir()]:
            raise UserError(f"--out {out}: {blocked[0]} is no folder. Name another --out.")
        if taken := [e.name for e in recipe.experts if e.name in (BASE, MERGED)]:
            raise RecipeError(f"The page has a model called {taken[0]} already. Give the expert another name.")
        self.out = out
        self.base = _absolute(recipe.base, recipe.folder)
        self.references = [_absolute(e.reference, recipe.folder) for e in recipe.experts]
        self.names = [e.name for e in recipe.experts]
        self.labels = [_label(n, r) for n, r in zip(self.names, self.references, strict=True)]
        """What the experts are called in what is kept."""
        self.kept = _kept(recipe)
        listener(Started("load", 0))
        plan = make_plan(recipe)
        assert plan.base is not None
        for model in (plan.base, *plan.experts):
            model.ref.fetch()
        self.adapters = all(m.adapter is not None and m.on_base and not m.adapter.replaced for m in plan.experts)
        _check_memory(plan)
        self._load(plan.base)
        self.versions = [Version(BASE), *(self._expert(m) for m in plan.experts)]
        self.start = self._start(recipe)
        self._merge: tuple[str, Merge] | None = None
        self._low: dict[str, list[LowRank | None]] = {}
        self._parts: tuple[Any, dict[str, Any]] = (None, {})
        listener(Finished("load"))

    def _load(self, base: Model) -> None:
        from transformers import AutoTokenizer

        from triune.checkpoint.quiet import quiet
        from triune.scorers.logprobs import load_weights
        from triune.scorers.memory import memory_advice

        with memory_advice(f"Out of memory while {base.ref.text} was loaded", "Take a smaller model."):
            model = load_weights(base.ref, torch.float32).eval()
        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(base.checkpoint.folder)
        if self.tokenizer.vocab_size == 0:
            raise CheckpointError(f"{base.ref.text} has no tokenizer. Put its tokenizer.json into the folder.")
        self.resident = Resident(model)
        self.limit: int | None = getattr(model.config, "max_position_embeddings", None)

    def _expert(self, model: Model) -> Version:
        from safetensors import safe_open

        from triune.checkpoint.reader import Files, Reader

        deltas: dict[str, LowRank] = {}
        tensors: dict[str, torch.Tensor] = {}
        with Files() as files:
            reader = Reader(files)
            for name in model.checkpoint.tensors:
                source = model.source(name)
                if source is None or skippable(name):
                    continue
                if source.factors:
                    deltas[name] = reader.low_rank(source.factors)
                if source.dense:
                    with safe_open(source.dense.file, framework="pt") as file:
                        value = file.get_tensor(source.dense.name).float()
                    if not torch.equal(value, self.resident.parameters[self.resident.parameter(name)].data):
                        tensors[name] = value
        return Version(model.name, deltas, tensors)

    def _start(self, recipe: Recipe) -> Point:
        """The recipe's own point, as far as it says one; a method that is quick to move with where it was not chosen."""
        method, count = find(recipe.method), len(self.names)
        given = [e.parameters.get("weight", recipe.parameters.get("weight")) for e in recipe.experts]
        parameters = {k: v for k, v in recipe.parameters.items() if k != "weight"}
        for name, value in {
            **parameters,
            **{f"weight of {n}": w for n, w in zip(self.names, given, strict=True)},
        }.items():
            if isinstance(value, tuple | list | dict):
                raise RecipeError(
                    f"{name} changes along the layers, and the studio has one number for all. Write one number."
                )
        for expert in recipe.experts:
            if other := [k for k in expert.parameters if k != "weight"]:
                raise RecipeError(
                    f"{expert.name} has a {other[0]} of its own, and the studio has one number for all experts. "
                    f"Give {other[0]} once, at the top."
                )
        if recipe.semantics:
            parameters["semantics"] = recipe.semantics
        usual = strength_of(method, parameters, count)
        weights = [1.0 if w is None else float(w) for w in given]
        if min(weights) < 0 or sum(weights) <= 0:
            return Point(method.name, simplex([1.0] * count), usual or 1.0, parameters)
        strength = 1.0 if usual is None else sum(weights) if any(w is not None for w in given) else usual
        return Point(method.name, simplex(weights), strength, parameters)

    # ---- the point

    def point(self, asked: Mapping[str, Any]) -> Point:
        """A point as the page sends it, checked by the method's own rules.

        Raises:
            UserError: an unknown method or parameter, or a value outside its range; the method's sentence.
        """
        if unknown := set(asked) - {"method", "shares", "strength", "parameters"}:
            raise ParameterError(f"A point has method, shares, strength and parameters, not {sorted(unknown)[0]!r}.")
        method = find(str(asked.get("method")))
        shares, given = asked.get("shares"), asked.get("parameters") or {}
        if not isinstance(shares, list) or len(shares) != len(self.names):
            raise ParameterError(f"shares must hold one number for each of {len(self.names)} experts.")
        if not isinstance(given, dict) or "weight" in given:
            raise ParameterError("parameters must be an object, without weight: the point says the weights.")
        usual = strength_of(method, given, len(self.names))
        strength = asked.get("strength", usual)
        if usual is None:
            strength = 1.0
        elif not isinstance(strength, int | float) or isinstance(strength, bool) or not math.isfinite(strength):
            raise ParameterError(f"strength must be a number, got {strength!r}.")
        seed = given.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise RefusedParameter("seed", f"seed must be a whole number, 0 or more, got {seed!r}.")
        point = Point(method.name, simplex(shares), float(strength), dict(given))
        values = {k: v for k, v in given.items() if k != "seed"}
        for name, value in values.items():
            known = method.parameter(name)
            if isinstance(value, list):
                continue
            try:
                known.check(value)
            except ParameterError as error:
                raise RefusedParameter(name, str(error)) from None
        method.bind(values | self._weights(method, point), len(self.names))
        return point

    def _weights(self, method: Method, point: Point) -> dict[str, Any]:
        return {"weight": list(point.weights)} if any(p.name == "weight" for p in method.parameters) else {}

    def settings(self, point: Point) -> list[str]:
        """The point as ``--set`` texts: the weights, and what differs from the method's defaults."""
        method = find(point.method)
        usual = {p.name: p.default for p in method.parameters}
        weights = self._weights(method, point).get("weight", ())
        found = [f"weight.{label}={w:g}" for label, w in zip(self.labels, weights, strict=False)]
        for name, value in point.parameters.items():
            if name == "seed":
                continue
            known = method.parameter(name)
            checked = known.check(value)
            if checked != usual[known.name]:
                found.append(f"{known.name}={checked if known.kind is str else json.dumps(checked)}")
        seed = point.parameters.get("seed", self.kept.get("seed", 0))
        kept = {k: v for k, v in self.kept.items() if k != "seed"} | ({"seed": seed} if seed else {})
        return [*found, *(f"{k}={v}" for k, v in kept.items())]

    def recipe(self, point: Point) -> Recipe:
        """The recipe that ``triune merge`` makes the same model of."""
        return recipe_from_flags(
            base=self.base, experts=self._experts(), method=point.method, settings=self.settings(point)
        )

    def command(self, point: Point, out: str) -> str:
        """The same as a command line, to copy."""
        words = ["triune", "merge", "--base", self.base]
        for expert in self._experts():
            words += ["-e", expert]
        words += ["-m", point.method]
        for setting in self.settings(point):
            words += ["--set", setting]
        return shlex.join([*words, out])

    def _experts(self) -> list[str]:
        """As ``-e`` texts."""
        return [r if label == r else f"{label}={r}" for label, r in zip(self.labels, self.references, strict=True)]

    # ---- the merge

    def merged(self, point: Point, listener: Listener = silent) -> Merge:
        """The model at a point, in memory. The last one is kept; a listener that raises stops the work.

        Cost: methods that merge factors take well under a second for SmolLM2; the others read the base again, which takes
        seconds, and hold every changed tensor in float32.
        """
        recipe = self.recipe(point)
        if self._merge and self._merge[0] == recipe.text:
            return self._merge[1]
        start = monotonic()
        plan = make_plan(recipe)
        jobs = [j for j in plan.jobs if j.route != "copy" and not skippable(j.output.name)]
        thin = [j for j in jobs if _in_factors(j)]
        dense = [j for j in jobs if not _in_factors(j)]
        self._forget_parts(thin)
        self._merge = None  # two dense merges at once may be too many
        executor = LocalExecutor(available_cores(), default_limit())
        deltas: dict[str, LowRank] = {}
        tensors: dict[str, torch.Tensor] = {}
        stats = scan_model(plan, executor, listener) if dense else None
        memory = _Memory()
        listener(Started("merge", sum(j.traffic for j in (*thin, *dense))))

        def found(job: Job, result: LowRank) -> None:
            deltas[job.output.name] = result
            listener(Advanced(job.traffic, job.output.name))

        def written(job: Job, _: Any) -> None:
            tensors[job.output.name] = memory.tensor(job)
            listener(Advanced(job.traffic, job.output.name))

        executor.run(thin, self._factors, found)
        if dense:
            executor.run(dense, partial(run_job, sink=memory, stats=stats), written)
        listener(Finished("merge"))
        made = Merge(recipe, Version(MERGED, deltas, tensors), monotonic() - start, len(thin), len(dense))
        self._merge = recipe.text, made
        return made

    def _factors(self, job: Job, lane: Lane) -> LowRank:
        name = job.output.name
        if name not in self._low:
            self._low[name] = [lane.reader.low_rank(s.factors) if s.factors else None for s in job.experts]
        assert job.spec.factors is not None
        low, spec = self._low[name], job.spec
        if spec.parts is None or spec.grain_at(job.bound, job.view) != "tensor":
            assert spec.factors is not None
            merged = spec.factors(low, view=job.view, **job.bound)
        else:
            if name not in self._parts[1]:
                self._parts[1][name] = spec.parts(low, view=job.view, **job.bound)
            merged = self._parts[1][name].merged(job.bound["weight"], job.bound["scaling"], keep=True)
        assert isinstance(merged, LowRank)
        return merged

    def _forget_parts(self, jobs: Sequence[Job]) -> None:
        """Decompositions count for one method and one set of the parameters that they depend on."""
        key = [(j.method, sorted((k, v) for k, v in j.bound.items() if k not in FREE)) for j in jobs[:1]]
        if self._parts[0] != key:
            self._parts = (key, {})

    # ---- what is kept

    def save(self, point: Point, name: str) -> Path:
        """Write the point's recipe into the folder.

        Raises:
            UserError: no fit name, or something of that name is there already.
        """
        path = self._place(name, ".yaml")
        text = f"# made by triune studio\n{self.recipe(point).text}"
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        return path

    def write(self, point: Point, name: str, listener: Listener) -> MergeResult:
        """Merge to disk, as ``triune merge`` does. A merge that was stopped leaves nothing."""
        out = self._place(name, "")
        try:
            return merge(self.recipe(point), out, listener=listener)
        except Stopped:
            shutil.rmtree(out, ignore_errors=True)
            raise

    def _place(self, name: str, ending: str) -> Path:
        if not NAME.fullmatch(name):
            raise UserError(
                f"A name has up to 64 letters, digits, '.', '_' and '-', and no folder in it; got {name!r}."
            )
        path = self.out / (name if name.endswith(ending) else name + ending)
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} is there already. Choose another name.")
        return path


class _Memory:
    """Takes what a job would write to disk."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytearray] = {}

    def write(self, info: Any, at: int, data: memoryview) -> None:
        self.bytes.setdefault(info.name, bytearray(info.nbytes))[at : at + len(data)] = data

    def write_factors(self, job: Job, delta: LowRank) -> str:
        raise AssertionError("factors are merged without a sink")

    def tensor(self, job: Job) -> torch.Tensor:
        info = job.output
        flat = torch.frombuffer(self.bytes.pop(info.name), dtype=torch_dtype(info.dtype))
        return flat.reshape(info.shape).float()


def _in_factors(job: Job) -> bool:
    if any(s.dense is not None or s.rows is not None for s in job.experts):
        return False
    return len(job.view.shape) == 2 and job.spec.refuses_factors(job.bound) is None


def _absolute(text: str, folder: Path | None) -> str:
    """A reference that means the same wherever the recipe is read."""
    for start in (folder, Path()):
        if start is not None and (start / Path(text).expanduser()).is_dir():
            return str((start / Path(text).expanduser()).resolve())
    if "+" in text:
        model, _, adapter = text.rpartition("+")
        return f"{_absolute(model, folder)}+{_absolute(adapter, folder)}"
    return text


def _label(name: str, reference: str) -> str:
    """An expert's name where it can stand before ``=``, or is the reference itself; a folder that was typed without a label
    is called after what was typed.

    >>> _label("runs/honest", "/home/me/runs/honest"), _label("org/model", "org/model")
    ('runs-honest', 'org/model')
    """
    if re.fullmatch(LABEL, name) or (name == reference and "=" not in name):
        return name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _kept(recipe: Recipe) -> dict[str, Any]:
    if recipe.tokenizer_source is not None:
        raise RecipeError(
            "tokenizer_source moves the rows of the embeddings, so the base in memory would not fit. "
            "Merge to disk first, or leave it out."
        )
    if recipe.output != "full":
        raise RecipeError(
            f"output={recipe.output}: the studio keeps whole models. Leave it out, and give it to `triune merge` "
            "with the recipe that you save here."
        )
    return {k: v for k in KEPT if (v := getattr(recipe, k))}


def _check_memory(plan: Plan) -> None:
    """The base in float32, each full model besides, and one merge."""
    assert plan.base is not None
    size = 4 * sum(t.entries for t in plan.base.checkpoint.tensors.values())
    full = 1 + sum(not m.on_base for m in plan.experts) + 1
    limit = 2 * default_limit()  # the limit is half of what is free
    if size * full > limit:
        raise UserError(
            f"The studio keeps all models in memory: {full} times {human(size)} in float32, and {human(limit)} is free. "
            "Take adapters instead of full models, or a smaller base."
        )


Stop = Callable[[], bool]


def listening(listener: Listener, stop: Stop) -> Listener:
    """The listener, ending the work at its next event when ``stop`` says so."""

    def hear(event: Any) -> None:
        if stop():
            raise Stopped
        listener(event)

    return hear


class Stopped(Exception):
    """Nobody waits for the result any more."""
