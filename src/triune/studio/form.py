"""What the page's form shows of each method: a new method appears by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.methods import METHODS, Method, find
from triune.methods._spec import Parameter
from triune.studio.point import strength_of


def describe(method: Method, experts: int) -> dict[str, Any]:
    """A method for the page: what its form shows."""
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "paper": method.paper,
        "weighted": any(p.name == "weight" for p in method.parameters),
        "takes": method.takes,
        "strength": strength_of(method, {"normalize": False}, experts),
        "parameters": [_describe(p) for p in method.parameters if p.name != "weight"],
    }


def _describe(p: Parameter) -> dict[str, Any]:
    return {
        "name": p.name,
        "kind": p.kind.__name__,
        "default": None if p.required else p.default,
        "per_model": p.per_model,
        "interval": p.interval.text if p.interval else None,
        "choices": list(p.choices),
    }


def methods(experts: int) -> Iterator[dict[str, Any]]:
    """All methods that so many experts are enough for."""
    for name in METHODS:
        method = find(name)
        if method.minimum <= experts:
            yield describe(method, experts)
