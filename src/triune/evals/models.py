"""Which model is meant: a reference, a recipe or the name at an endpoint, found and told apart before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from triune import __version__
from triune.checkpoint.identity import identity
from triune.checkpoint.index import open_checkpoint, read_json
from triune.checkpoint.lora import check_base, open_adapter
from triune.checkpoint.ref import ModelRef, resolve_reference
from triune.engine.journal import LOCK
from triune.engine.plan import make_plan
from triune.errors import UserError
from triune.evals.benchmark import HS
from triune.evals.result import Model
from triune.recipes import Recipe, load_recipe

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Weights:
    """Where a model is: a full one, and perhaps an adapter on it."""

    folder: Path
    adapter: Path | None = None

    @property
    def fingerprint(self) -> str:
        """The same for a copy, on whatever machine."""
        if self.adapter is None:
            return identity(self.folder)
        return _digest([identity(self.folder), identity(self.adapter)])

    @property
    def has_chat_template(self) -> bool:
        settings = self.folder / "tokenizer_config.json"
        files = any((self.folder / f"chat_template.{ending}").exists() for ending in ("jinja", "json"))
        return files or (settings.exists() and bool(read_json(settings).get("chat_template")))


@dataclass(frozen=True)
class Candidate:
    """A model to be measured."""

    model: Model
    reference: str
    """As the user wrote it."""
    weights: Weights | None = None
    """None where they are made from the recipe first, and at an endpoint."""
    recipe: Recipe | None = None

    @property
    def folder(self) -> str:
        """What its folder in a run is called.

        >>> Candidate(Model("ties[density=0.5] of a/b", "merge", "f"), "").folder
        'ties[density=0.5]-of-a-b'
        """
        return re.sub(r"[^\w.+=,\[\]-]+", "-", self.model.name).lstrip(".") or "model"


def find(
    text: str,
    *,
    name: str = "",
    kind: str = "other",
    specialty: str = "",
    base: ModelRef | None = None,
    folder: Path | None = None,
) -> Candidate:
    """The model that a reference names, its weights on this machine, or a merge that a recipe file describes.

    Args:
        name: to show; the last part of the reference if not given.
        base: what a bare adapter belongs on; what it says itself if not given.
        folder: where relative paths start, besides the working directory.

    Raises:
        UserError: there is no such model, or the adapter does not fit its base.
    """
    if text.endswith(RECIPES):
        path = folder / text if folder and (folder / text).exists() else Path(text)
        return merged(load_recipe(path), name=name or path.stem, reference=text)
    ref = resolve_reference(text, folder)
    if ref.folder is None:
        assert ref.adapter is not None
        on = base or _base_of(ref)
        assert on.folder is not None
        found = Weights(on.folder, ref.adapter)
    else:
        on, found = ref, Weights(ref.folder, ref.adapter)
    on.fetch()
    checkpoint = open_checkpoint(found.folder, on.text)
    if found.adapter is not None:
        adapter = open_adapter(found.adapter, text, checkpoint)
        if ref.folder is None:
            check_base(adapter, checkpoint, on.text)
    return Candidate(Model(name or _short(text), kind, found.fingerprint, specialty), text, found)


def merged(recipe: Recipe, *, name: str, reference: str = "", kind: str = "merge") -> Candidate:
    """The model that a recipe will make, checked as far as headers go.

    Its fingerprint is of all that decides the merge, so that a finished measurement is known again without the weights.
    """
    plan = make_plan(recipe)
    models = [*([plan.base] if plan.base else []), *plan.experts]
    for model in models:
        model.ref.fetch()
    facts = {
        "triune": __version__,
        "method": recipe.method,
        "parameters": dict(recipe.parameters),
        "models": [Weights(m.checkpoint.folder, m.adapter.folder if m.adapter else None).fingerprint for m in models],
        "experts": [[e.name, dict(e.parameters)] for e in recipe.experts],
        "tokens": [recipe.tokenizer_source, recipe.chat_template],
        "dtypes": [recipe.dtype, recipe.out_dtype, recipe.output],
        "how": [recipe.semantics, recipe.seed],
    }
    return Candidate(Model(name, kind, _digest(facts)), reference or recipe.origin, recipe=recipe)


def served(text: str, url: str, *, name: str = "") -> Candidate:
    """A model behind an endpoint: all that is known of it is what it is called there."""
    return Candidate(Model(name or text, "other", f"{text} at {url}"), text)


def with_kinds(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Say of each what it is, as far as that can be known: ``demo:NAME`` by its name, the folder of a finished merge, and
    what another of the models is an adapter on or a merge from. Fingerprints stay, and what was measured with them.
    """
    found = list(candidates)
    bases = {c.weights.folder.resolve() for c in found if c.weights and c.weights.adapter}
    for recipe in filter(None, (c.recipe for c in found)):
        if recipe.base is not None and (folder := resolve_reference(recipe.base, recipe.folder).folder):
            bases.add(folder.resolve())
    return [replace(c, model=replace(c.model, **_kind(c, bases))) if c.weights else c for c in found]


def _kind(candidate: Candidate, bases: Collection[Path]) -> dict[str, str]:
    weights, last = candidate.weights, candidate.reference.rpartition("+")[2]
    demo = last.removeprefix("demo:") if last.startswith("demo:") else ""
    assert weights is not None
    if demo in HS:
        return {"kind": "specialist", "specialty": demo}
    if demo.startswith("mix-"):
        return {"kind": "mixture"}
    if ((weights.adapter or weights.folder) / LOCK).exists():
        return {"kind": "merge"}
    if demo == "base" or (weights.adapter is None and weights.folder.resolve() in bases):
        return {"kind": "base"}
    return {}


def check_names(candidates: Iterable[Candidate], advice: str) -> None:
    """Refuse two models that would share a folder."""
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        other = seen.setdefault(candidate.folder.lower(), candidate)
        if other is not candidate:
            both = f"{other.reference} and {candidate.reference}"
            raise UserError(f"{both} would share the name {candidate.folder} in the run. {advice}")


def _base_of(adapter: ModelRef) -> ModelRef:
    """The full model that a bare adapter was trained on, by its own word."""
    assert adapter.adapter is not None
    if adapter.text.startswith("demo:"):
        return resolve_reference("demo:base")
    recorded = read_json(adapter.adapter / "adapter_config.json").get("base_model_name_or_path")
    try:
        ref = resolve_reference(recorded or "", adapter.adapter)
    except UserError:
        ref = None
    if ref is None or ref.folder is None:
        says = f"says that its base is {recorded}, which cannot be found" if recorded else "does not name its base"
        raise UserError(f"{adapter.text} is an adapter and {says}. Write BASE+{adapter.text}.")
    return ref


def _short(text: str) -> str:
    """
    >>> _short("runs/static/merged/ties/"), _short("org/name@main"), _short("demo:base+runs/train/honest")
    ('ties', 'name@main', 'honest')
    """
    return text.rpartition("+")[2].rstrip("/").rpartition("/")[2] or text


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
