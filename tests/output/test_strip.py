"""The figure of a model card, reckoned by hand."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from triune.output.gate import TensorNorms
from triune.output.strip import SHADES, changes_by_layer, draw

NORMS = [
    # Layer 0: base hypot(3, 4) = 5, one's change hypot(0.3, 0.4) = 0.5, the merge's hypot(0.6, 0.8) = 1.
    TensorNorms("model.layers.0.q.weight", 3.0, 3.0, (0.3, 0.0), 0.6),
    TensorNorms("model.layers.0.k.weight", 4.0, 4.0, (0.4, 0.0), 0.8),
    TensorNorms("model.layers.1.q.weight", 2.0, 2.0, (0.1, 0.4), 0.2),
    TensorNorms("model.norm.weight", 1.0, 1.0, (0.9, 0.9), 0.9),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_changes_by_hand() -> None:
    found = changes_by_layer(NORMS, ["one", "merged"])  # an expert may have any name
    assert [name for name, _ in found] == ["one", "merged", "merged"]
    # 0.5 / 5 and 0.1 / 2; 0 and 0.4 / 2; 1 / 5 and 0.2 / 2
    expected = [{0: 0.1, 1: 0.05}, {0: 0.0, 1: 0.2}, {0: 0.2, 1: 0.1}]
    for (_, each), wanted in zip(found, expected, strict=True):
        assert each == pytest.approx(wanted)


def test_darker_is_more() -> None:
    picture = ElementTree.fromstring(draw(NORMS, ["one", "two"]))
    cells = [(c.get("fill"), c[0].text) for c in picture.iter(f"{SVG}rect")]
    # Of eight shades: 0.1, 0.05, 0, 0.2, 0.2, 0.1 over the largest, 0.2, are halves, a quarter, nothing, and all.
    assert [SHADES.index(str(fill)) for fill, _ in cells] == [4, 2, 0, 7, 7, 4]
    assert cells[0][1] == "layer 0: 10.00%"
    assert picture[0].text == "Norm of each layer's change. Darkest: 20.00% of the base."


def test_without_a_base_the_norms_themselves() -> None:
    norms = [replace(n, base=0.0) for n in NORMS]
    picture = ElementTree.fromstring(draw(norms, ["one", "two"]))
    assert picture[0].text == "Norm of each layer's change. Darkest: 1."  # hypot(0.6, 0.8)


def test_a_norm_that_overflowed_is_left_out() -> None:
    huge = TensorNorms("model.layers.1.k.weight", 1.0, 1.0, (math.inf, 0.0), 1.0)
    assert changes_by_layer([*NORMS, huge], ["one"]) == changes_by_layer(NORMS, ["one"])
    assert draw([*NORMS, huge], ["one"]) == draw(NORMS, ["one"])


def test_names_cannot_break_it() -> None:
    picture = ElementTree.fromstring(draw(NORMS, ["<b>&", "x" * 40]))
    assert [t.text for t in picture.iter(f"{SVG}text")][:2] == ["<b>&", "x" * 15 + "…"]


@pytest.mark.parametrize(
    "norms", [[], NORMS[:2], [TensorNorms("layers.0.q", 1, 1, (), 0), TensorNorms("layers.1.q", 1, 1, (), 0)]]
)
def test_nothing_to_compare_is_no_figure(norms: list[TensorNorms]) -> None:
    assert draw(norms, ["one"]) == ""
