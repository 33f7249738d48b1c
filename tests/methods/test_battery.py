"""The battery of ``triune.testing`` over every registered method, and over broken ones, which it must catch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.methods import METHODS, find
from triune.methods._spec import View, Weight, merge_method
from triune.testing import check_method, merge_in_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

PAPER: dict[str, Any] = {"semantics": "paper"}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"weight": [1, -0.25, 2]}, {"normalize": False}],
    "rewarded_soup": [{}, {"weight": [0, 0.5, 0.5]}, {"space": "lora_delta"}],
    "model_stock": [{}, {"filter_wise": True}, PAPER, {**PAPER, "filter_wise": True}],
    "task_arithmetic": [{}, {"lambda": 0.3, "normalize": True}, {"weight": [1, -1, 0]}],
    "ties": [
        {"density": 0.4},
        {"density": [0.1, 0.5, 0.9], "normalize": False, "weight": [1, -1, 2]},
        {"density": 0.4, **PAPER},
    ],
    "dare_linear": [{"density": 0.4}, {"density": [0.2, 0.5, 1.0], "rescale": False}, {"density": 0.4, **PAPER}],
    "dare_ties": [{"density": 0.4, "normalize": True}, {"density": 0.4, "trim_density": 0.5, **PAPER}],
    "della_linear": [
        {"density": 0.4},
        {"density": [0.4, 0.5, 0.6], "epsilon": [0, 0.1, 0.3]},
        {"density": 0.4, **PAPER},
    ],
    "della": [{"density": 0.4}, {"density": 0.5, "epsilon": 0.4, "normalize": False}, {"density": 0.4, **PAPER}],
    "breadcrumbs": [{}, {"density": 0.4, "gamma": 0.1}, {"density": [0.2, 0.5, 1.0], "gamma": 0.2, **PAPER}],
    "breadcrumbs_ties": [{"density": 0.4, "gamma": [0, 0.1, 0.6]}, {"density": 0.4, "gamma": 0.1, **PAPER}],
    "tsvm": [{}, {"weight": [1, 0.5, 2], "vector_rule": "sum"}],
    "r_tsvm": [{}, {"outlier_scope": "channel", "rank_strength": 0.0}],
}
NEUTRAL: dict[str, dict[str, Any]] = {"r_tsvm": {"outlier_strength": 0.0, "rank_strength": 0.0}}
RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
EXACT = {
    **{name: SETTINGS[name] for name in ("linear", "rewarded_soup", "task_arithmetic", "ties")},
    **{name: SETTINGS[name] for name in ("breadcrumbs", "breadcrumbs_ties")},
    **{name: [s for s in SETTINGS[name] if "semantics" in s or "rescale" in s] for name in RANDOM},
}
"""Methods whose statistics hold no sums, only selections, and so are the same to the last bit for any cut."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Stacks of some dozen entries merge faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_method_is_here() -> None:
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_battery(name: str) -> None:
    check_method(find(name), *SETTINGS[name], neutral=NEUTRAL.get(name), random=name in RANDOM)


PAPERS = [n for n in METHODS if any(p.name == "semantics" for p in find(n).parameters)]


@pytest.mark.parametrize("name", PAPERS)
def test_one_expert_comes_back_by_the_papers_semantics_too(name: str) -> None:
    trim = {"trim_density": 1.0} if name == "dare_ties" else {}
    check_method(find(name), {}, neutral={**PAPER, **trim})


@pytest.mark.parametrize("name", EXACT)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(data=st.data())
def test_any_cut_into_blocks_gives_the_same_bits(name: str, data: st.DataObject) -> None:
    """Entries are drawn from few values, so that magnitudes tie across blocks; among them denormals and both zeros."""
    values = [0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5, 0.5000001, 1.0, -1.0, 3.0]
    rows, columns = data.draw(st.integers(1, 5), "rows"), data.draw(st.integers(1, 6), "columns")
    entries = data.draw(st.lists(st.sampled_from(values), min_size=3 * rows * columns, max_size=3 * rows * columns))
    deltas = torch.tensor(entries).reshape(3, rows, columns)
    cuts = data.draw(st.lists(st.integers(1, rows * columns), unique=True), "cuts")
    weight = [1 / 6, 2 / 6, 3 / 6]
    view = View("w", ("a", "b", "c"), seed=5)
    for setting in EXACT[name]:
        keywords = {"weight": weight, **setting}
        whole = find(name)(deltas, view=view, **keywords)
        pieces = merge_in_blocks(find(name), deltas, cuts, view=view, **keywords)
        assert torch.equal(pieces.view(torch.int32), whole.view(torch.int32)), setting


# ---- it finds what is wrong


def broken(expression: str) -> Any:
    """A method that merges by an expression of d (the stack), w (the weights) and view."""

    @merge_method(title="Broken", paper="", grain="entry")
    def method(deltas: torch.Tensor, *, weight: Weight, view: View) -> torch.Tensor:
        """Merge wrongly."""
        w = torch.tensor(weight).reshape(-1, *[1] * (deltas.dim() - 1))
        return eval(expression, {"d": deltas, "w": w, "view": view, "torch": torch})  # type: ignore[no-any-return]

    return method


BROKEN = {
    "(w * d).sum(0) * 1.01": "method changes a single expert of shape []: off by",
    "(w * d).sum(0) + (1e-30 if len(d) > 1 else 0)": "zeros of shape [] do not merge to zeros",
    "d[0]": "the order of the experts changes the result",
    "(w * d).sum(0) * (1 + len(view.experts[-1]) * (len(d) > 1))": "the order of the experts changes the result",
    "(w * d.mul_(2)).sum(0) / 2": "the input was changed",
    "(w * d).sum(0).double()": "the result is torch.float64",
    "(w * d).sum(0) if len(d) == 1 else (w * d).sum(0).sqrt() ** 2": "the result holds NaN or infinity",
    "(w * d).sum(0).flatten()": "method changes a single expert of shape []: shape [1] instead of []",
    "(w * d).sum(0) * (1 + (len(d) > 1) * view.seed)": "the seed changes the result, but random is False",
    "(w * d).sum(0) if len(d) == 1 else (w * d).sum(0) - (w * d).sum(0).mean()": "blocks cut at [1] give another result",
}


@pytest.mark.parametrize("expression", BROKEN)
def test_a_broken_method_is_caught(expression: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_method(broken(expression))
    assert BROKEN[expression] in str(error.value)


def test_a_sound_method_passes_and_a_seed_that_does_nothing_is_caught() -> None:
    check_method(broken("(w * d).sum(0)"))
    with pytest.raises(AssertionError, match="the seed does not change the result, but random is True"):
        check_method(broken("(w * d).sum(0)"), random=True)
