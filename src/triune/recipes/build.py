"""From a document to a checked recipe: its keys by pydantic, its parameters by the method that they belong to.

Every refusal names the place, the value, the rule and the next step.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from triune import methods
from triune.errors import ParameterError, RecipeError, did_you_mean
from triune.recipes.schema import (
    REFUSED,
    TOP_LEVEL,
    Expert,
    FilterEntry,
    ModelEntry,
    Recipe,
    RecipeFile,
    TokenizerEntry,
)
from triune.recipes.yaml import Document, Keys, spell

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import BaseModel

    from triune.methods._spec import Method, Parameter

_RULES = {
    "string_type": "must be text",
    "int_type": "must be a whole number, 0 or more",
    "greater_than_equal": "must be a whole number, 0 or more",
    "list_type": "must be a list with one `- model: org/name` for each model",
    "too_short": "must list at least one model",
    "model_type": "must hold keys and values",
    "dict_type": "must hold keys and values",
    "string_pattern_mismatch": "must consist of letters, digits, _ and -",
}
_MISSING = {
    "models": "models is missing. List the models to merge, each as `- model: org/name`.",
    "merge_method": "merge_method is missing. Write `merge_method: ties`, for example; `triune methods` lists all.",
    "model": "{under} names no model. Write `model: org/name`.",
    "source": "{under} names no source. Write `source: union`, for example.",
    "value": "{under} has no value. Write `value: 0.5`, for example.",
}


def build(doc: Document, text: str, folder: Path | None) -> Recipe:
    """The recipe that a document asks for, or a :class:`RecipeError`."""
    tree = as_mapping(doc)
    for keys, why in REFUSED.items():
        holder = tree if len(keys) == 1 else tree.get(str(keys[0]))
        if isinstance(holder, dict) and holder.get(str(keys[-1])) is not None:
            raise RecipeError(f"{doc.line(keys)}: {spell(keys)!r} is not supported: {why}")
    # mergekit writes keys without a value; they say nothing.
    tree = {k: v for k, v in tree.items() if v is not None}
    if isinstance(tree.get("tokenizer"), dict):
        tree["tokenizer"] = {k: v for k, v in tree["tokenizer"].items() if v is not None}
    try:
        file = RecipeFile.model_validate({k: v for k, v in tree.items() if (k,) not in REFUSED})
    except ValidationError as error:
        _refuse(doc, error)
    method = find(doc, file.merge_method)
    parameters = _settings(doc, method, ("parameters",), file.parameters, per_expert=False)
    experts = _experts(doc, method, file, parameters)
    if method.takes == "deltas" and file.base_model is None:
        why = f"{method.name} merges differences from it ({doc.line(('merge_method',))}, merge_method)"
        step = "Add --base MODEL" if doc.origin == "command line" else "Write `base_model: org/name`"
        raise RecipeError(f"base_model is missing: {why}. {step}.")
    if len(experts) < method.minimum:
        besides = " besides base_model" if len(experts) < len(file.models) else ""
        count = "1 expert" if method.minimum == 1 else f"{method.minimum} experts"
        rule = f"{method.name} needs at least {count}{besides}, got {len(experts)}"
        raise RecipeError(f"{rule} ({doc.line(('models',))}, models). Add a model.")
    if file.semantics and (knob := next((p for p in method.parameters if p.name == "semantics"), None)):
        _check(doc, knob, file.semantics, ("semantics",))
    return Recipe(
        method=method.name,
        experts=experts,
        base=file.base_model,
        parameters=parameters,
        dtype=file.dtype,
        out_dtype=file.out_dtype,
        tokenizer_source=_tokenizer_source(doc, file),
        chat_template=file.chat_template,
        semantics=file.semantics,
        seed=file.seed,
        output=file.output,
        text=text,
        origin=doc.origin,
        folder=folder,
    )


def _experts(doc: Document, method: Method, file: RecipeFile, shared: Mapping[str, Any]) -> tuple[Expert, ...]:
    experts: dict[str, Expert] = {}
    labels: dict[str, Keys] = {}
    for i, model in enumerate(file.models):
        at: Keys = ("models", i)
        if model.name in labels:
            rule = f"name {model.name!r} stands twice ({doc.place((*at, 'name'))})"
            raise RecipeError(f"{rule}, first in {doc.line(labels[model.name])}. Change one.")
        if model.name:
            labels[model.name] = (*at, "name")
        own = _settings(doc, method, (*at, "parameters"), model.parameters, per_expert=True)
        if method.takes == "deltas" and model.model == file.base_model:
            continue  # mergekit lists it too; its difference from itself is nothing
        for p in method.parameters:
            if p.required and p.name not in shared and p.name not in own:
                raise RecipeError(missing(method, p, f"{doc.place(at)}, parameters"))
        name, count = model.name or model.model, 1
        while name in experts:
            count += 1
            name = f"{model.name or model.model}#{count}"
        experts[name] = Expert(model.model, name, own, f"{doc.line(at)}, {spell(at)}")
    return tuple(experts.values())


def _tokenizer_source(doc: Document, file: RecipeFile) -> str | None:
    if file.tokenizer and file.tokenizer_source:
        raise RecipeError(f"{doc.line(('tokenizer',))}: tokenizer and tokenizer_source say the same. Keep one.")
    keys: Keys = ("tokenizer", "source") if file.tokenizer else ("tokenizer_source",)
    source = file.tokenizer.source if file.tokenizer else file.tokenizer_source
    labels = {m.name: m.model for m in file.models if m.name}
    references = [m.model for m in file.models] + [file.base_model] * (file.base_model is not None)
    if source is None or source in ("base", "union", *references):
        return source
    if source not in labels:
        rule = f"must be base, union or one of the models, got {source!r}"
        hint = did_you_mean(source, ["base", "union", *filter(None, references), *labels])
        raise RecipeError(f"{spell(keys)} {rule} ({doc.line(keys)}).{hint}")
    return labels[source]


def _settings(
    doc: Document, method: Method, at: Keys, given: Mapping[str, Any] | None, *, per_expert: bool
) -> dict[str, Any]:
    """The parameters that stand at one place, under their canonical names, every value checked."""
    found: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for key, setting in (given or {}).items():
        keys = (*at, key)
        if key == "int8_mask" and method.from_mergekit:
            continue  # it saved memory in mergekit and never changed a result
        name = canonical(method, key)
        if key in TOP_LEVEL or name is None:
            hint = did_you_mean(key, [p.name for p in method.parameters]) or knows(method)
            hint = " It belongs at the top level." if key in TOP_LEVEL else hint
            raise RecipeError(f"{doc.line(keys)}: unknown key {key!r} under {spell(at)}.{hint}")
        p = method.parameter(name)
        if name in typed:
            raise RecipeError(
                f"{doc.line(keys)}: {key!r} and {typed[name]!r} under {spell(at)} mean the same. Keep one."
            )
        if per_expert and not p.per_model:
            rule = f"{key} is one value for all experts ({doc.place(keys)})"
            raise RecipeError(f"{rule}. Move it under parameters: at the top level.")
        typed[name] = key
        value = _setting(doc, p, setting, keys)
        if value != ():  # an empty list says nothing
            found[name] = value
    return found


def _setting(doc: Document, p: Parameter, value: Any, keys: Keys, *, filtered: bool = False) -> Any:
    """One setting with every leaf checked: a scalar, a gradient, or filters."""
    if not isinstance(value, dict | list):
        return _check(doc, p, value, keys)
    steps: list[tuple[Keys, Any]] = [(keys, value)]
    if isinstance(value, list):
        steps = [((*keys, i), v) for i, v in enumerate(value)]
    if any(isinstance(v, dict | list) for _, v in steps):
        if filtered or not all(isinstance(v, dict) for _, v in steps):
            one = "number" if p.kind in (int, float) else "value"
            rule = f"must be one {one} or a list of {one}s" + ", or of {filter: ..., value: ...}" * (not filtered)
            raise RecipeError(f"{p.name} {rule}, got {_short(value)} ({doc.place(keys)}).")
        return tuple(_filter(doc, p, entry, at) for at, entry in steps)
    if p.kind is int and len(steps) > 1:
        raise RecipeError(f"{p.name} must be one whole number for all layers, got {_short(value)} ({doc.place(keys)}).")
    return tuple(_check(doc, p, v, at) for at, v in steps)


def _filter(doc: Document, p: Parameter, entry: Any, keys: Keys) -> dict[str, Any]:
    try:
        checked = FilterEntry.model_validate(entry)
    except ValidationError as error:
        _refuse(doc, error, keys)
    return {"filter": checked.filter, "value": _setting(doc, p, checked.value, (*keys, "value"), filtered=True)}


def _check(doc: Document, p: Parameter, value: Any, keys: Keys) -> Any:
    """:meth:`Parameter.check`, with the place added to what it says."""
    place = doc.place(keys)
    if value is None:
        raise RecipeError(f"{p.name} has no value ({place}). Write one, or remove the line.")
    if isinstance(value, str) and p.kind in (int, float):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-5 as text
    try:
        return p.check(value)
    except (ParameterError, OverflowError) as error:
        said = str(error) if isinstance(error, ParameterError) else f"{p.name} must be a number, got {value!r}."
        got = next((g for g in (f"got {value!r}.", f"got {value}.") if g in said), said)
        raise RecipeError(said.replace(got, f"{got.removesuffix('.')} ({place}).", 1)) from None


# ---- the method, and what it knows


def find(doc: Document, name: Any) -> Method:
    """The recipe's method, or a refusal with its place."""
    if name is None:
        raise RecipeError(f"{doc.line(())}: {_MISSING['merge_method']}")
    try:
        return methods.find(str(name))
    except RecipeError as error:
        placed = f"{str(name)!r} ({doc.line(('merge_method',))})."
        raise RecipeError(str(error).replace(f"{str(name)!r}.", placed, 1)) from None


def canonical(method: Method, key: str) -> str | None:
    """The parameter's own name for a name in use, or None where the method has no such parameter."""
    try:
        return method.parameter(key).name
    except ParameterError:
        return None


def knows(method: Method) -> str:
    names = ", ".join(p.name for p in method.parameters if p.name not in TOP_LEVEL)
    return f" {method.name} has {names}." if names else f" {method.name} has no parameters."


def missing(method: Method, p: Parameter, place: str) -> str:
    each = "to every expert under its parameters:, or " if p.per_model else ""
    return f"{method.name} needs {p.name} ({place}). Give it {each}to all under parameters: at the top level."


# ---- messages


def as_mapping(doc: Document) -> dict[str, Any]:
    if isinstance(doc.tree, dict):
        return doc.tree
    what = "is empty" if doc.tree is None else "holds no keys and values"
    raise RecipeError(f"{doc.origin}: the recipe {what}. It needs at least models: and merge_method:.")


def _refuse(doc: Document, error: ValidationError, at: Keys = ()) -> NoReturn:
    """All that pydantic found, each as a sentence with its place."""
    raise RecipeError("\n".join(_sentence(doc, e, at) for e in error.errors())) from None


def _sentence(doc: Document, error: Any, at: Keys) -> str:
    keys: Keys = (*at, *error["loc"])
    *above, last = keys
    under, kind, got = spell(above), error["type"], error["input"]
    if kind == "extra_forbidden":
        levels: dict[int, type[BaseModel]] = {1: RecipeFile, 2: TokenizerEntry, 3: ModelEntry}
        known = (FilterEntry if at else levels[len(keys)]).model_fields
        hint = did_you_mean(str(last), known) or f" Known are {', '.join(known)}."
        if "parameters" in known and _is_parameter(doc.tree.get("merge_method"), str(last)):
            hint = " It belongs under parameters:."
        return f"{doc.line(keys)}: unknown key {last!r}{f' under {under}' if under else ''}.{hint}"
    if kind == "missing":
        return f"{doc.line(tuple(above))}: {_MISSING[str(last)].format(under=under)}"
    rule, hint = _RULES.get(kind, error["msg"]), ""
    if kind == "value_error":
        rule = str(error["ctx"]["error"])
    elif kind == "literal_error":
        choices = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        rule = f"must be one of {', '.join(choices)}"
        hint = " float32 is the widest." if got == "float64" else did_you_mean(str(got), choices)
    elif kind == "string_type" and isinstance(got, int | float | date):
        hint = " Put it in quotes."
    elif kind == "model_type" and above == ["models"]:
        hint = " Write `- model: org/name`."
    return f"{spell(keys)} {rule}, got {_short(got)} ({doc.line(keys)}).{hint}"


def _is_parameter(method: Any, key: str) -> bool:
    try:
        spec = methods.find(str(method))
    except RecipeError:
        return False
    return (key == "int8_mask" and spec.from_mergekit) or (key not in TOP_LEVEL and canonical(spec, key) is not None)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
