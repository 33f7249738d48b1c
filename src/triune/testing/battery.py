"""Properties that every merge method has, checked on one of them: ours, or a plugin's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from triune.methods._lowrank import LowRank
from triune.methods._spec import Method, View, WholeModelScan

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (1, 1), (5, 1), (1, 6), (6, 8), (9, 4), (3, 2, 4), (2, 2, 2, 3))
NAMES = ("helpful", "honest", "harmless")


def check_method(
    method: Method,
    *settings: Mapping[str, Any],
    neutral: Mapping[str, Any] | None = None,
    random: bool = False,
    rounding: float = 1e-5,
) -> None:
    """Raise an :class:`AssertionError` that names the property which the method lacks.

    Checked: one expert at the neutral setting comes back unchanged; any shape, constant tensors and half-precision values
    pass, and the input is left alone; zeros give exactly zero; the order of the experts does not matter; the same seed
    gives the same bytes; blocks give what the whole gives; low-rank deltas give what matrices give.

    Args:
        method: what to check.
        settings: parameters to check it with, each a mapping; the defaults if there are none. A required ``weight`` that
            a setting leaves out is (1/6, 2/6, 3/6): there are three experts, or more if the method needs more.
        neutral: parameters, besides the defaults, at which a single expert comes back unchanged.
        random: whether it draws at random with these settings. Then another seed must change the result, else it must not.
        rounding: largest error, relative to the largest entry, that is rounding.

    Example:
        >>> from triune.methods import find
        >>> check_method(find("ties"), {"density": 0.3}, {"density": 0.3, "semantics": "paper"})
        >>> check_method(find("dare_linear"), {"density": 0.3})
        Traceback (most recent call last):
        ...
        AssertionError: dare_linear with {'density': 0.3}: the seed changes the result, but random is False
    """
    for parameter in method.parameters:
        if not parameter.required:
            parameter.check(parameter.default)
    check_unchanged(method, neutral or {}, rounding)
    for setting in settings or ({},):
        check_inputs(method, setting)
        check_zero(method, setting)
        check_order(method, setting, rounding)
        check_seed(method, setting, random)
        check_blocks(method, setting, rounding)
        check_factors(method, setting, rounding)


def check_unchanged(method: Method, neutral: Mapping[str, Any], rounding: float) -> None:
    """One expert comes back, repeated if the method needs several."""
    count = method.minimum
    for shape in SHAPES:
        one = _noise((1, *shape), seed=1)
        stack = one.expand(count, *shape).clone()
        merged = method(stack, view=_view(count), **_filled(method, neutral, count, [1 / count] * count))
        _near(merged, one[0], rounding, f"{method.name} changes a single expert of shape {list(shape)}")


def check_zero(method: Method, setting: Mapping[str, Any]) -> None:
    """All zero gives all zero, exactly."""
    what = f"{method.name} with {dict(setting)}"
    count = _experts(method)
    for shape in SHAPES:
        merged = method(torch.zeros(count, *shape), view=_view(count), **_filled(method, setting, count))
        assert bool((merged == 0).all()), f"{what}: zeros of shape {list(shape)} do not merge to zeros"


def check_order(method: Method, setting: Mapping[str, Any], rounding: float) -> None:
    """Experts may come in any order, with their parameters and names."""
    what = f"{method.name} with {dict(setting)}"
    count = _experts(method)
    view, deltas, values = _view(count), _noise((count, 6, 8), seed=2), _filled(method, setting, count)
    merged = method(deltas, view=view, **values)
    per_expert = {p.name for p in method.parameters if p.per_model}
    for order in ([*range(1, count), 0], [*reversed(range(count))]):
        moved = {
            name: [value[i] for i in order] if name in per_expert and isinstance(value, list | tuple) else value
            for name, value in values.items()
        }
        names = tuple(view.experts[i] for i in order)
        again = method(deltas[order], view=replace(view, experts=names), **moved)
        _near(again, merged, rounding, f"{what}: the order of the experts changes the result")


def check_inputs(method: Method, setting: Mapping[str, Any]) -> None:
    """Any shape and any finite values give finite numbers of that shape, and the input is left as it was."""
    what = f"{method.name} with {dict(setting)}"
    count = _experts(method)
    values = _filled(method, setting, count)
    for label, deltas in _kinds(count):
        kept = deltas.clone()
        merged = method(deltas, view=_view(count), **values)
        assert torch.equal(deltas, kept), f"{what}: {label}: the input was changed"
        assert merged.shape == deltas.shape[1:], f"{what}: {label}: the shape is {list(merged.shape)}"
        assert merged.dtype == torch.float32, f"{what}: {label}: the result is {merged.dtype}"
        assert bool(merged.isfinite().all()), f"{what}: {label}: the result holds NaN or infinity"


def check_seed(method: Method, setting: Mapping[str, Any], random: bool) -> None:
    """The same seed gives the same bytes; another seed, tensor or expert other masks, if there are any."""
    what = f"{method.name} with {dict(setting)}"
    count = _experts(method)
    deltas, view, values = _noise((count, 12, 16), seed=3), _view(count), _filled(method, setting, count)
    merged = method(deltas, view=view, **values)
    assert torch.equal(merged, method(deltas, view=view, **values)), f"{what}: the same seed gives other bytes"
    others = {
        "seed": replace(view, seed=view.seed + 1),
        "tensor's name": replace(view, tensor="model.layers.1.mlp.up_proj.weight"),
        "experts' names": replace(view, experts=tuple(f"other {name}" for name in view.experts)),
    }
    for source, other in others.items():
        same = torch.equal(merged, method(deltas, view=other, **values))
        assert same or random, f"{what}: the {source} changes the result, but random is False"
        assert not (same and random), f"{what}: the {source} does not change the result, but random is True"


def check_blocks(method: Method, setting: Mapping[str, Any], rounding: float) -> None:
    """Merged block by block, as the engine does, a tensor comes out as it does when merged at once."""
    what = f"{method.name} with {dict(setting)}"
    count = _experts(method)
    for shape in ((24,), (6, 8), (3, 2, 4)):
        # Values in steps, so that magnitudes tie across blocks.
        deltas = (_noise((count, *shape), seed=4) * 8).round() / 8
        view, values = _view(count), _filled(method, setting, count)
        if method.grain_at(method.bind(values, count), replace(view, shape=shape)) == "tensor":
            continue
        whole = method(deltas, view=view, **values)
        for cuts in ([], [1], [5, 6], [*range(1, 24)]):
            pieces = merge_in_blocks(method, deltas, cuts, view=view, **values)
            message = f"{what}: blocks cut at {cuts} give another result for shape {list(shape)}"
            assert torch.equal(pieces != 0, whole != 0), f"{message}: other entries are zero"
            _near(pieces, whole, rounding, message)


def check_factors(method: Method, setting: Mapping[str, Any], rounding: float) -> None:
    """Low-rank deltas merged as factors give what they give as matrices."""
    count = _experts(method)
    values = method.bind(_filled(method, setting, count), count)
    if method.refuses_factors(values) is not None:
        return
    assert method.factors is not None
    view = replace(_view(count), shape=(16, 20))
    pairs: list[LowRank | None] = [LowRank(_noise((16, 2), 5 + i), _noise((2, 20), 50 + i)) for i in range(count)]
    for factors in (pairs, [None, *pairs[1:]], [None] * count):
        dense = torch.stack([torch.zeros(16, 20) if f is None else f.dense() for f in factors])
        merged = method.factors(factors, view=view, **values)
        assert isinstance(merged, LowRank), f"{method.name}: factors merge to {type(merged).__name__}"
        expected = method.function(dense, view=view, **_measured(method, [(dense, view)], dense[0].numel(), values))
        what = f"{method.name} with {dict(setting)}: factors and matrices merge to different results"
        _near(merged.dense(), expected, 10 * rounding, what)


def merge_in_blocks(
    method: Method, deltas: torch.Tensor, cuts: Sequence[int], *, view: View | None = None, **values: Any
) -> torch.Tensor:
    """Merge a stack in pieces, statistics included, as the engine streams a checkpoint.

    Args:
        method: one whose grain is not the whole tensor.
        deltas: ``[experts, ...]`` float32.
        cuts: where pieces end: flat indices, for the grain ``row`` numbers of rows. Those out of range are ignored.
        view: of the whole tensor.
        values: parameters, as in a recipe.

    Example:
        >>> from triune.methods import find
        >>> merge_in_blocks(find("ties"), torch.tensor([[4.0, -1.0, 3.0, 0.5]]), [1, 3], weight=1.0, density=0.5)
        tensor([4., 0., 3., 0.])
    """
    shape = tuple(deltas.shape[1:])
    view = replace(view or View(), shape=shape)
    bound = method.bind(values, len(deltas))
    grain = method.grain_at(bound, view)
    assert grain != "tensor", f"{method.name} needs whole tensors here"
    width = (shape[-1] if shape else 1) if grain == "row" else 1
    flat = deltas.reshape(len(deltas), -1, width)
    ends = sorted({c for c in cuts if 0 < c < flat.shape[1]})
    pieces = []
    for first, last in zip([0, *ends], [*ends, flat.shape[1]], strict=True):
        piece = flat[:, first:last].clone()
        piece = piece if grain == "row" else piece.flatten(1)
        pieces.append((piece, replace(view, start=first * width)))
    keywords = _measured(method, pieces, deltas[0].numel(), bound)
    return torch.cat([method.function(p, view=v, **keywords).flatten() for p, v in pieces]).reshape(shape)


def _measured(
    method: Method, pieces: Sequence[tuple[torch.Tensor, View]], entries: int, bound: Mapping[str, Any]
) -> dict[str, Any]:
    """The bound parameters, with the statistics of all pieces where the method has some."""
    scan = method.scan(len(pieces[0][0]), entries, **bound) if method.scan else None
    if scan is None:
        return dict(bound)
    turn = 0
    while turn < scan.passes:
        if isinstance(scan, WholeModelScan):  # gathered in parts, in any order
            parts = [scan.part() for _ in pieces]
            for part, (piece, view) in zip(parts, pieces, strict=True):
                part.see(turn, piece, view)
            for part in reversed(parts):
                scan.add(part)
        else:
            for piece, view in pieces:
                scan.see(turn, piece, view)
        scan.close(turn)
        turn += 1
    return {**bound, "stats": scan.result()}


def _experts(method: Method) -> int:
    return max(3, method.minimum)


def _view(count: int) -> View:
    names = (*NAMES, *(f"expert {i}" for i in range(len(NAMES), count)))[:count]
    return View("model.layers.0.mlp.up_proj.weight", names, seed=7)


def _filled(
    method: Method, setting: Mapping[str, Any], count: int, weight: Sequence[float] | None = None
) -> dict[str, Any]:
    """The setting, with weights that add up to 1 where the method asks for some and the setting has none."""
    asked = any(p.name == "weight" and p.required for p in method.parameters)
    total = count * (count + 1) / 2
    default = {"weight": list(weight or [(i + 1) / total for i in range(count)])} if asked else {}
    return {**default, **setting}


def _noise(shape: Sequence[int], seed: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _kinds(count: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Stacks of deltas that have tripped merge methods up."""
    for shape in SHAPES:
        yield f"shape {list(shape)}", _noise((count, *shape), seed=6)
    for dtype in (torch.bfloat16, torch.float16):
        base, noise = _noise((6, 8), seed=8), _noise((count, 6, 8), seed=9)
        tuned = (base + 0.01 * noise).to(dtype).float()
        yield f"{dtype} values, so many equal magnitudes", tuned - base.to(dtype).float()
    yield "equal entries", torch.full((count, 6, 8), 0.25)
    yield "equal and opposite experts", torch.stack([_noise((6, 8), seed=10) * (-1) ** i for i in range(count)])
    yield (
        "one expert that changed nothing",
        _noise((count, 6, 8), seed=11) * (torch.arange(count) > 0).reshape(-1, 1, 1),
    )
    yield "tiny entries", _noise((count, 6, 8), seed=12) * 1e-30
    yield "huge entries", _noise((count, 6, 8), seed=13) * 1e15


def _near(found: torch.Tensor, expected: torch.Tensor, rounding: float, message: str) -> None:
    assert found.shape == expected.shape, f"{message}: shape {list(found.shape)} instead of {list(expected.shape)}"
    error = float((found - expected).abs().max()) if found.numel() else 0.0
    scale = float(expected.abs().max()) if found.numel() else 0.0
    assert error <= rounding * scale, f"{message}: off by {error:g}, where the largest entry is {scale:g}"
