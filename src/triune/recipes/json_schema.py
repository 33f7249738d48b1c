"""The recipe format as JSON Schema, for editors: ``python -m triune.recipes.json_schema > docs/recipe.schema.json``.

Built from the models that check a recipe and from the methods' parameters, so it cannot fall behind them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from triune import methods
from triune.methods._spec import PARAMETER_ALIASES
from triune.recipes.build import canonical
from triune.recipes.schema import TOP_LEVEL, FilterEntry, RecipeFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triune.methods._spec import Method, Parameter


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of a recipe. Errors that need several keys at once are left to triune."""
    schema = RecipeFile.model_json_schema()
    names = [*methods.METHODS, *methods.ALIASES]
    schema["properties"]["merge_method"]["enum"] = names
    rules = []
    for method in map(methods.find, methods.METHODS):
        called = [name for name in names if methods.ALIASES.get(name, name) == method.name]
        shared = _parameters(schema["$defs"], method, method.parameters)
        own = _parameters(schema["$defs"], method, [p for p in method.parameters if p.per_model])
        models = {"items": {"properties": {"parameters": own}}}
        then: dict[str, Any] = {"properties": {"parameters": shared, "models": models}}
        if method.takes == "deltas":
            then["required"] = ["base_model"]
        rules.append({"if": {"properties": {"merge_method": {"enum": called}}}, "then": then})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "allOf": rules}


def _parameters(defs: dict[str, Any], method: Method, known: Iterable[Parameter]) -> dict[str, Any]:
    settings = {p.name: _setting(defs, p) for p in known if p.name not in TOP_LEVEL}
    settings |= {key: settings[name] for key in PARAMETER_ALIASES if (name := canonical(method, key)) in settings}
    if method.from_mergekit:
        settings["int8_mask"] = {"description": "Known from mergekit's recipes; changes nothing.", "type": "boolean"}
    return {"type": ["object", "null"], "additionalProperties": False, "properties": settings}


def _setting(defs: dict[str, Any], p: Parameter) -> dict[str, Any]:
    """A scalar, a gradient, or filters. Parameters of one type and range share a definition."""
    scalar: dict[str, Any] = {"type": {float: "number", int: "integer", bool: "boolean", str: "string"}[p.kind]}
    label = f"{scalar['type']}"
    if p.choices:
        scalar["enum"] = list(p.choices)
        label += "_" + "_".join(p.choices)
    if p.interval:
        low, high = (end.strip() for end in p.interval.text[1:-1].split(","))
        above = "minimum" if p.interval.text[0] == "[" else "exclusiveMinimum"
        below = "maximum" if p.interval.text[-1] == "]" else "exclusiveMaximum"
        bounds = {key: float(end) for key, end in ((above, low), (below, high)) if "inf" not in end}
        scalar |= bounds
        label += "".join(f"_{key}_{bound:g}" for key, bound in bounds.items())
    gradient: dict[str, Any] = {"type": "array", "items": scalar}
    entry = FilterEntry.model_json_schema()
    entry["properties"]["value"] |= {"anyOf": [scalar, gradient]}
    defs[label] = {"anyOf": [scalar, gradient, entry, {"type": "array", "items": entry}]}
    return {"$ref": f"#/$defs/{label}"} | ({} if p.required else {"default": p.default})


if __name__ == "__main__":
    print(json.dumps(recipe_json_schema(), indent=2))
