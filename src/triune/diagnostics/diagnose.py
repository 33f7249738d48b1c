"""Diagnose a recipe's models, streaming, on the engine that merges them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from triune import __version__
from triune.diagnostics.records import SCHEMA, Diagnosis, Header, Tensor, line_of, read_diagnosis, tensor_of
from triune.diagnostics.tensor import diagnose_tensor, memory_of
from triune.engine.budget import default_limit, human
from triune.engine.cores import available_cores
from triune.engine.executors.local import LocalExecutor
from triune.engine.inputs import Lane
from triune.engine.job import Job
from triune.engine.plan import Plan, make_plan
from triune.errors import RecipeError, UserError
from triune.methods import METHODS, find
from triune.output.atomic import write_text
from triune.progress import Advanced, Finished, Listener, Started, silent
from triune.recipes import Recipe, count_layers, resolve

TYPICAL = {"weight": 1.0, "density": 0.5, "epsilon": 0.1, "gamma": 0.01}
"""For methods other than the recipe's. Methods that drop entries drop none at their default density, 1."""


def diagnose(
    recipe: Recipe,
    out: Path | str | None = None,
    *,
    effects: Sequence[str] | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    listener: Listener = silent,
) -> Diagnosis:
    """Measure what the experts of a recipe changed, and what merging would make of it. No model is loaded.

    Args:
        recipe: its models are looked at; its method and settings count among the effects.
        out: a file for the records, JSON Lines. An interrupted diagnosis continues from ``OUT.partial``.
        effects: methods whose effect is measured; all that work on deltas by default, none for an empty list.
        threads: lanes; all cores by default. Does not change the result.
        max_memory: bytes of working memory; half of what is free by default.
        listener: is told about progress.

    Raises:
        UserError: the recipe or a model is wrong, or a tensor needs more memory than allowed.
        Interrupted: after Ctrl-C. What is finished is kept if there is an ``out``.

    Cost: one pass over all weights, for each matrix the decompositions of TSVM and of R-TSVM.
    """
    limit = max_memory or default_limit()
    plan = make_plan(_neutral(recipe))
    if plan.base is None:
        raise RecipeError("There is no base, so no expert has a delta to diagnose. Add base_model (--base).")
    for model in (plan.base, *plan.experts):
        model.ref.fetch()
    jobs = [replace(j, nbytes=memory_of(j)) for j in plan.jobs if j.route != "copy"]
    worst = max(jobs, key=lambda j: j.nbytes, default=None)
    if worst is None:
        raise UserError("No expert differs from the base in any tensor, so there is nothing to diagnose.")
    if worst.nbytes > limit:
        raise UserError(
            f"--max-memory {human(limit)}: diagnosing {worst.output.name} {list(worst.output.shape)} takes "
            f"{human(worst.nbytes)} at once. Allow at least that much."
        )
    chosen = _effects(recipe, effects)
    header = Header(
        base=plan.base.ref.text,
        experts=tuple(m.name for m in plan.experts),
        references=tuple(m.ref.text for m in plan.experts),
        effects=tuple(chosen),
        fingerprint=_fingerprint(plan, recipe, chosen),
        tensors=len(jobs),
        version=__version__,
    )
    layers = count_layers([j.output.name for j in plan.jobs])
    journal = _Journal(Path(out) if out is not None else None, header)
    with journal:
        todo = [j for j in jobs if j.index not in journal.found]
        total = sum(j.traffic for j in jobs)
        listener(Started("diagnose", total, total - sum(j.traffic for j in todo)))

        def work(job: Job, lane: Lane) -> Tensor:
            return diagnose_tensor(job, lane, effects=_bound(recipe, chosen, job, layers))

        def done(job: Job, record: Tensor) -> None:
            journal.add(record)
            listener(Advanced(job.traffic, job.output.name))

        LocalExecutor(threads or available_cores(), limit).run(todo, work, done)
        listener(Finished("diagnose"))
        return journal.finish()


def _neutral(recipe: Recipe) -> Recipe:
    """The same models under TSVM, whose plan says what is decomposed."""
    experts = tuple(replace(e, parameters={}) for e in recipe.experts)
    return replace(recipe, method="tsvm", parameters={}, experts=experts, output="full")


def _effects(recipe: Recipe, wanted: Iterable[str] | None) -> list[str]:
    """The recipe's method first, if it works on deltas."""
    names = [find(n).name for n in METHODS] if wanted is None else [find(n).name for n in wanted]
    usable = [n for n in names if find(n).takes == "deltas" and len(recipe.experts) >= max(2, find(n).minimum)]
    own = find(recipe.method).name
    return sorted(dict.fromkeys(usable), key=lambda n: n != own)


def _bound(recipe: Recipe, chosen: Iterable[str], job: Job, layers: int) -> dict[str, Mapping[str, Any]]:
    """Settings of each method at one tensor: the recipe's for its own, typical ones for the others."""
    own = find(recipe.method).name
    bound: dict[str, Mapping[str, Any]] = {}
    for name in chosen:
        method = find(name)
        values: Mapping[str, Any]
        if name == own:
            values = resolve(recipe, method, job.output.name, num_layers=layers)
        else:
            values = {p.name: TYPICAL[p.name] for p in method.parameters if p.name in TYPICAL}
        bound[name] = method.bind(values, len(recipe.experts))
    return bound


def _fingerprint(plan: Plan, recipe: Recipe, chosen: Sequence[str]) -> str:
    text = json.dumps([SCHEMA, plan.fingerprint, recipe.text, list(chosen)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Journal:
    """Records as they come, in ``OUT.partial``; at the end the whole file, in the model's order."""

    def __init__(self, out: Path | None, header: Header) -> None:
        self.out, self.header = out, header
        self.found: dict[int, Tensor] = {}
        self.partial = out.with_name(f"{out.name}.partial") if out else None
        self.stream: Any = None

    def __enter__(self) -> _Journal:
        if self.out is None or self.partial is None:
            return self
        if self.out.is_dir():
            raise UserError(f"{self.out} is a folder. Name a file, such as {self.out / 'diagnosis.jsonl'}.")
        if self.out.exists() and read_diagnosis(self.out).header.fingerprint != self.header.fingerprint:
            raise UserError(f"{self.out} holds another diagnosis. Name another file, or remove this one.")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._take_up(self.partial if self.partial.exists() else self.out)
            self.stream = self.partial.open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}. Name another place.") from None
        self.stream.write(line_of(self.header))
        for record in self.found.values():
            self.stream.write(line_of(record))
        self.stream.flush()
        return self

    def _take_up(self, path: Path) -> None:
        """What an earlier run has finished; a last line that was cut off is done again."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        try:
            if json.loads(lines[0])["fingerprint"] != self.header.fingerprint:
                return
            for line in lines[1:]:
                record = tensor_of(json.loads(line))
                self.found[record.index] = record
        except (IndexError, KeyError, TypeError, ValueError):
            return

    def add(self, record: Tensor) -> None:
        self.found[record.index] = record
        if self.stream:
            self.stream.write(line_of(record))
            self.stream.flush()

    def finish(self) -> Diagnosis:
        found = Diagnosis(self.header, tuple(self.found[i] for i in sorted(self.found)))
        if self.out and self.partial:
            write_text(self.out, "".join([line_of(found.header), *map(line_of, found.tensors)]))
            self.partial.unlink()
        return found

    def __exit__(self, *_: object) -> None:
        if self.stream:
            self.stream.close()
