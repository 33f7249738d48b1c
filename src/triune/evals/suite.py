"""What may stand in the config of ``triune bench``, and the models that it means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from triune.checkpoint.ref import ModelRef, resolve_reference
from triune.config import Listed, Strict
from triune.errors import UserError
from triune.evals.benchmark import DIMENSIONS, HS
from triune.evals.models import Candidate, check_names, find, merged
from triune.evals.run import DEFAULT
from triune.methods import find as find_method
from triune.recipes import Recipe, parse_recipe, recipe_from_flags
from triune.recipes.schema import LABEL
from triune.recipes.yaml import read_yaml, write_yaml

BASE = "base"
SPECIALTIES = {name: name for name in (*HS, *DIMENSIONS)}
SPECIALTIES |= {"helpfulness": "helpful", "honesty": "honest", "harmlessness": "harmless"}
"""What a specialist's name or dimension says about what it was trained for."""


class Tune(Strict):
    """How the settings of a method with a grid are chosen."""

    tasks: str | Listed[str] | None = Field(None, description="Groups and benchmarks; the suite's if not given.")
    limit: int | None = Field(None, ge=1, description="Rows of each benchmark's tune half; all of it if not given.")
    metric: Literal["overall", "balance"] = Field("overall", description="The mean of the three Hs, or the lowest.")


class Specialist(Strict):
    """A model that the methods merge."""

    model: str = Field(description="A folder, an adapter, a hub id, demo:NAME.")
    specialty: str | None = Field(None, description="An H or a dimension; what its name says if not given.")


class Entry(Strict):
    """A model, a recipe, or a method over the suite's specialists."""

    model: str | None = Field(None, description="A folder, an adapter, a hub id, demo:NAME.")
    recipe: str | Mapping[str, Any] | None = Field(None, description="A merge: a file, or what would stand in it.")
    method: str | None = Field(None, description="`triune methods` lists them.")
    kind: Literal["base", "specialist", "merge", "mixture", "other"] | None = Field(
        None, description="What it is compared as; other for a model, merge for all else."
    )
    specialty: str | None = Field(None, description="Of a specialist: an H or a dimension.")
    parameters: Mapping[str, Any] = Field({}, description="Of the method; weight.helpful is that of one specialist.")
    grid: Mapping[str, Listed[Any]] = Field(
        {}, description="Parameters to choose on the tune half: each with its values."
    )
    output: Literal["full", "lora"] = Field("full", description="Merge into a whole model, or into an adapter.")

    @field_validator("method")
    @classmethod
    def _known(cls, method: str | None) -> str | None:
        return method and find_method(method).name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [k for k in ("model", "recipe", "method") if getattr(self, k) is not None]
        if len(given) != 1:
            said = f"has {' and '.join(given)}" if given else "says nothing about its model"
            raise ValueError(f"it {said}. Give exactly one of model, recipe and method.")
        if self.method is None and (self.parameters or self.grid or self.output != "full"):
            raise ValueError("parameters, grid and output belong to a method. Remove them, or name the method.")
        if empty := [key for key, values in self.grid.items() if not values]:
            raise ValueError(f"grid, {empty[0]}: there is no value to try. Give some, or remove it.")
        if both := sorted(self.grid.keys() & self.parameters.keys()):
            raise ValueError(f"{both[0]} stands in parameters and in grid. Keep one.")
        return self


class Suite(Strict):
    """A whole `triune bench` config."""

    base_model: str | None = Field(None, description="Measured as the base, and what the specialists are merged on.")
    specialists: Mapping[str, Specialist] = Field({}, description="Name -> model; measured, and what methods merge.")
    models: Mapping[str, Entry] = Field({}, description="Name -> what else is measured, in this order.")
    align: str | None = Field(
        None, description="The folder of a finished `triune align`: its models are measured, too."
    )
    tasks: str | Listed[str] = Field(DEFAULT, description="Groups and benchmarks.")
    data: str | None = Field(None, description="A folder of rows, or hub; TRIUNE_DATA if not given.")
    limit: int | None = Field(None, ge=1, description="Rows of each benchmark; all if not given.")
    allow_code: bool = Field(False, description="Run code that a model wrote, in a sandbox.")
    seed: int = Field(0, ge=0, description="Of merges with random masks, and of intervals.")
    tune: Tune = Tune()

    @field_validator("specialists", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """``{helpful: demo:helpful}`` is short for ``{helpful: {model: demo:helpful}}``."""
        if not isinstance(value, Mapping):
            return value
        return {name: {"model": entry} if isinstance(entry, str) else entry for name, entry in value.items()}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in (*self.specialists, *self.models):
            if not re.fullmatch(LABEL, name) or name == BASE:
                raise ValueError(f"a model cannot be called {name!r}: use letters, digits, - and _, but not {BASE}.")
        if both := sorted(self.specialists.keys() & self.models.keys()):
            raise ValueError(f"{both[0]} stands in specialists and in models. Give one of them another name.")
        if not (self.base_model or self.align):
            raise ValueError("there is no base_model, and no align run that has one. Name it.")
        if not self.align and not self.specialists and (m := [n for n, e in self.models.items() if e.method]):
            raise ValueError(f"models, {m[0]}: there are no specialists to merge. List them under specialists.")
        return self


@dataclass(frozen=True)
class Contestant:
    """One line of the leaderboard."""

    name: str
    points: tuple[Candidate, ...]
    """The settings to choose from; just one where there is nothing to choose."""

    def point(self, name: str) -> Candidate:
        """The one of this name; the first if there is none any more."""
        return next((p for p in self.points if p.model.name == name), self.points[0])


@dataclass(frozen=True)
class _Known:
    """What methods merge."""

    base: ModelRef
    experts: Mapping[str, str]
    """Name -> reference."""
    folder: Path | None
    """Where relative references start."""


def contestants(suite: Suite, folder: Path | None = None) -> list[Contestant]:
    """The models of a suite, in its order, all checked as far as headers go.

    Args:
        folder: where relative paths start, besides the working directory.

    Raises:
        UserError: a model, a recipe or the align run is not there or not what it should be.
    """
    aligned = list(_aligned(_path(suite.align, folder))) if suite.align else []
    there = _path(suite.align, folder) if suite.align else None
    text = suite.base_model or aligned[0]["reference"]
    start = folder if suite.base_model else there
    ref = resolve_reference(text, start)
    if ref.folder is None or ref.adapter is not None:
        raise UserError(f"base_model: {text} is an adapter. Name the full model that it was trained on.")
    found = [find(text, name=BASE, kind="base", folder=start)]
    for name, s in suite.specialists.items():
        specialty = SPECIALTIES.get(name, "") if s.specialty is None else s.specialty
        found.append(find(s.model, name=name, kind="specialist", specialty=specialty, base=ref, folder=folder))
    for record in aligned[1:]:
        who = {key: record[key] for key in ("name", "kind", "specialty")}
        found.append(find(record["reference"], **who, base=ref, folder=there))
    known = _Known(ref, {n: s.model for n, s in suite.specialists.items()}, folder)
    if not known.experts:
        known = replace(known, experts={r["name"]: r["reference"] for r in aligned if r["merged"]}, folder=there)
    lines = [Contestant(c.model.name, (c,)) for c in found]
    lines += [Contestant(n, tuple(_points(n, e, suite, known, folder))) for n, e in suite.models.items()]
    check_names((p for line in lines for p in line.points), "Rename one in the suite.")
    return lines


def _points(name: str, entry: Entry, suite: Suite, known: _Known, folder: Path | None) -> Iterator[Candidate]:
    kind = entry.kind or ("other" if entry.model else "merge")
    try:
        if entry.model:
            yield find(
                entry.model, name=name, kind=kind, specialty=entry.specialty or "", base=known.base, folder=folder
            )
        elif isinstance(entry.recipe, str):
            path = _path(entry.recipe, folder)
            yield replace(found := find(str(path), name=name), model=replace(found.model, kind=kind))
        elif entry.recipe is not None:
            recipe = parse_recipe(write_yaml(dict(entry.recipe)), origin=f"models.{name}.recipe", folder=folder)
            yield merged(recipe, name=name, kind=kind)
        for values in product(*entry.grid.values()) if entry.method else ():
            point = dict(zip(entry.grid, values, strict=True))
            shown = ",".join(f"{key}={_plain(value)}" for key, value in point.items())
            called = f"{name}[{shown}]" if shown else name
            recipe = _recipe(entry, {**entry.parameters, **point}, suite.seed, known)
            yield merged(recipe, name=called, kind=kind, reference=called)
    except UserError as error:
        raise UserError(f"models, {name}: {str(error).replace('--set ', '')}") from None


def _recipe(entry: Entry, parameters: Mapping[str, Any], seed: int, known: _Known) -> Recipe:
    assert entry.method is not None
    settings = {"seed": seed, "output": entry.output, **parameters}
    anywhere = known.base.hub or known.base.text.startswith("demo:")
    recipe = recipe_from_flags(
        base=known.base.text if anywhere else str(known.base.folder),
        experts=[f"{label}={reference}" for label, reference in known.experts.items()],
        method=entry.method,
        settings=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )
    return replace(recipe, folder=known.folder)


def _plain(value: Any) -> str:
    """
    >>> _plain(0.5), _plain(True), _plain([0.2, 0.8])
    ('0.5', 'true', '[0.2,0.8]')
    """
    return json.dumps(value, separators=(",", ":")).strip('"')


def _path(text: str, folder: Path | None) -> Path:
    return folder / text if folder and (folder / text).exists() else Path(text)


def _aligned(folder: Path) -> Iterator[dict[str, Any]]:
    """The models of a finished ``triune align`` run, the base first."""
    if not (folder / "done").exists():
        what = (
            "is not finished: run the same `triune align` again"
            if (folder / "config.yaml").exists()
            else "is no such run"
        )
        raise UserError(f"align: {folder} {what}.")
    config = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml")).tree
    dimensions: dict[str, str] = config["specialists"]
    for record in json.loads((folder / "models.json").read_text(encoding="utf-8")):
        own = record["kind"] == "specialist"
        dimension = dimensions[record["name"].rpartition("/")[2]] if own else ""
        yield {
            **record,
            "kind": "other" if record["kind"] == "sequential" else record["kind"],
            "specialty": SPECIALTIES.get(dimension, ""),
            "merged": own and "/" not in record["name"],  # the others were trained from a merged model
        }
