"""The small figure of a merge's model card: how far each layer moved, as a strip of cells, drawn by hand as SVG.

No drawing library: the file is hashed in the lock, so its bytes must be the same everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from triune.output.gate import TensorNorms

NAME = "merge.svg"
CELL, GAP, LABELS, LEGEND = 16, 2, 110, 34
"""Pixels: a cell's height, between cells, for the names, for the line below."""
WIDTH = 640
SHADES = ("#eff3ff", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
INK = "#767676"
"""Grey that is read on white and on black."""


Changes = list[tuple[str, dict[int, float]]]
"""Each model's name, and layer -> norm of its change over the base's norm."""


def changes_by_layer(norms: Iterable[TensorNorms], experts: Sequence[str]) -> Changes:
    """The change of each layer by each expert, and last by the merge; tensors outside of layers are left out, and those
    with a norm that overflowed.

    Norms of tensors add up as the sides of a right angle; where the base's is not known, changes are left as they are.
    """
    layers: dict[int, list[TensorNorms]] = {}
    for n in norms:
        known = all(map(math.isfinite, (n.merged, n.base, n.merged_delta, *n.deltas)))
        if known and (number := re.search(r"\.(\d+)\.", n.name)):
            layers.setdefault(int(number[1]), []).append(n)
    found: Changes = [(name, {}) for name in (*experts, "merged")]
    for layer, members in sorted(layers.items()):
        base = math.hypot(*(n.base for n in members)) or 1.0
        for e in range(len(experts)):
            found[e][1][layer] = math.hypot(*(n.deltas[e] for n in members if e < len(n.deltas))) / base
        found[-1][1][layer] = math.hypot(*(n.merged_delta for n in members)) / base
    return found


def has_base(norms: Iterable[TensorNorms]) -> bool:
    """Whether norms of the base are known: a merge of adapters into an adapter reads no base."""
    return any(n.base for n in norms)


def draw(norms: Sequence[TensorNorms], experts: Sequence[str]) -> str:
    """The strip as SVG: a row for each model, a column for each layer, darker where it changed more.

    Returns an empty text where there is nothing to compare: fewer than two layers, or no change.
    """
    changes = changes_by_layer(norms, experts)
    layers = list(changes[-1][1])
    most = max((v for _, each in changes for v in each.values()), default=0.0)
    if len(layers) < 2 or not most:
        return ""
    step = (WIDTH - LABELS) / len(layers)
    height = len(changes) * (CELL + GAP) + LEGEND
    form = ".2%" if has_base(norms) else ".3g"
    title = f"Norm of each layer's change. Darkest: {most:{form}}{' of the base' if has_base(norms) else ''}."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{title}</title>",
    ]
    for row, (name, values) in enumerate(changes):
        top = row * (CELL + GAP)
        parts.append(f'<text x="0" y="{top + CELL - 4}">{escape(_short(name))}</text>')
        for column, layer in enumerate(layers):
            shade = SHADES[min(len(SHADES) - 1, math.floor(len(SHADES) * values[layer] / most))]
            place = f'x="{LABELS + column * step:.1f}" y="{top}" width="{step - 1:.1f}" height="{CELL}"'
            parts.append(f'<rect {place} fill="{shade}"><title>layer {layer}: {values[layer]:{form}}</title></rect>')
    below = len(changes) * (CELL + GAP) + 14
    parts.append(f'<text x="{LABELS}" y="{below}">layer {layers[0]}</text>')
    parts.append(f'<text x="{WIDTH}" y="{below}" text-anchor="end">layer {layers[-1]}</text>')
    parts.append(f'<text x="{(LABELS + WIDTH) // 2}" y="{below}" text-anchor="middle">{title}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
