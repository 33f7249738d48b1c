"""Steps that several methods share, named as the papers name them. Stacks hold the experts first: ``[experts, ...]``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from triune._lazy import torch
from triune.errors import ParameterError
from triune.methods._spec import View


def per_model(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One number for each expert, shaped to multiply a stack."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.dim() - 1))


# --- sign election ------------------------------------------------------------------------------------------------


def elect_and_fuse(weighted: torch.Tensor, weight: torch.Tensor, normalize: bool) -> torch.Tensor:
    """mergekit's consensus: elect a sign for each entry by weighted mass, then add up the deltas that agree with it.

    A sum of exactly 0 elects +. With ``normalize`` the sum is divided by the weights that took part.
    """
    elected = weighted.sum(0).ge_(0).mul_(2).sub_(1)
    return _agreeing(weighted, weight, elected, normalize)


def elect_and_average(weighted: torch.Tensor, weight: torch.Tensor, majority: float) -> torch.Tensor:
    """TIES's own consensus (Algorithm 1): as above, but where the sum is 0 the whole model's majority decides."""
    elected = weighted.sum(0).sign()
    elected = torch.where(elected == 0, majority, elected)
    return _agreeing(weighted, weight, elected, normalize=True)


def _agreeing(weighted: torch.Tensor, weight: torch.Tensor, elected: torch.Tensor, normalize: bool) -> torch.Tensor:
    agrees = weighted.sign().eq_(elected)  # 0 or 1 in floats: torch is slow to make bools and to multiply by them
    total = (weighted * agrees).sum(0)
    if not normalize:
        return total
    share = (weight * agrees).sum(0)
    return total / share.add_(share.clone().eq_(0))


def fuse(weighted: torch.Tensor, weight: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Add up the weighted deltas; with ``normalize`` divide by the sum of the weights, unless that is zero."""
    total = weighted.sum(0)
    share = weight.sum()
    return total / share if normalize and abs(share) >= 1e-8 else total


# --- random masks -------------------------------------------------------------------------------------------------


def uniform(view: View, expert: int, entries: int, device: torch.device) -> torch.Tensor:
    """Random numbers in [0, 1) for a run of entries, ``[entries]`` float32 in steps of 2^-24.

    Each depends on nothing but (seed, expert, tensor, flat index), by the SplitMix64 generator (Steele et al. 2014) used as
    a hash of the index: the same on every device, in every order, for every cut into blocks. One output of 64 bits serves
    two entries, of an even and the next odd index: the upper 24 bits of its lower and of its upper half.

    Example:
        >>> whole = uniform(View("w", seed=1), 0, 6, torch.device("cpu"))
        >>> tail = uniform(View("w", seed=1, start=4), 0, 2, torch.device("cpu"))
        >>> torch.equal(whole[4:], tail)
        True
    """
    name = f"{view.seed}\0{view.expert(expert)}\0{view.tensor}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
    first, last = view.start // 2, (view.start + entries + 1) // 2
    hashed = (_hash_on_cpu if device.type == "cpu" else _hash_on_device)(key, first, last - first, device)
    return hashed[view.start % 2 :][:entries].mul_(2.0**-24)


def _hash_on_cpu(key: int, start: int, count: int, _: torch.device) -> torch.Tensor:
    """Both halves' upper 24 bits of a run of SplitMix64's outputs, ``[2 * count]``. NumPy has the unsigned shifts that torch
    lacks, and twice its speed in pieces that fit into the cache."""
    import numpy as np

    out = np.empty(2 * count, dtype=np.float32)
    steps = np.arange(min(PIECE, count), dtype=np.uint64) * np.uint64(_GOLDEN)
    values, shifted = np.empty_like(steps), np.empty_like(steps)
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        x, y = values[: last - first], shifted[: last - first]
        np.add(steps[: last - first], np.uint64((key + (start + first + 1) * _GOLDEN) % 2**64), out=x)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            np.right_shift(x, np.uint64(shift), out=y)
            np.bitwise_xor(x, y, out=x)
            np.multiply(x, np.uint64(factor), out=x)
        np.right_shift(x, np.uint64(31), out=y)
        np.bitwise_xor(x, y, out=x)
        np.right_shift(x.view("<u4"), np.uint32(8), out=y.view("<u4"))
        out[2 * first : 2 * last] = y.view("<i4")  # processors convert signed integers faster
    return torch.from_numpy(out)


def _hash_on_device(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """The same in torch."""
    x = torch.arange(start + 1, start + 1 + count, dtype=torch.int64, device=device)
    x.mul_(_signed(_GOLDEN)).add_(_signed(key))
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        x.bitwise_xor_((x >> shift) & ((1 << (64 - shift)) - 1)).mul_(_signed(factor))
    return ((x.view(torch.int32) >> 8) & 0xFFFFFF).to(torch.float32)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PIECE = 1 << 15
"""Outputs that are drawn at a time: two times 256 KiB."""


def keep_at_random(deltas: torch.Tensor, keep: Sequence[float | torch.Tensor], view: View) -> torch.Tensor:
    """Mask ``[experts, ...]`` of 0 and 1: entries of expert t survive with probability ``keep[t]``, a number or one each."""
    shape = deltas.shape[1:]
    draws = (uniform(view, t, deltas[t].numel(), deltas.device).reshape(shape) for t in range(len(deltas)))
    return torch.stack([draw.lt_(p) for draw, p in zip(draws, keep, strict=True)])


# --- ranks by magnitude -------------------------------------------------------------------------------------------


def row_ranks(delta: torch.Tensor, descending: bool) -> torch.Tensor:
    """Rank of each entry's magnitude within its row (last dimension), from 0; equal ones rank by position."""
    return _by_rank(delta, torch.arange(delta.shape[-1] if delta.dim() else 1, device=delta.device), descending)


def _by_rank(delta: torch.Tensor, of_rank: torch.Tensor, descending: bool) -> torch.Tensor:
    """What stands in a list at each entry's rank."""
    rows = delta.abs().float().reshape(-1, len(of_rank))
    bits = rows.view(torch.int32)  # order as the magnitudes do
    order = _stable_order(0x7FFFFFFF - bits if descending else bits)
    found = torch.empty(order.shape, dtype=of_rank.dtype, device=of_rank.device)
    return found.scatter_(1, order, of_rank.expand_as(order)).reshape(delta.shape)


def _stable_order(keys: torch.Tensor) -> torch.Tensor:
    """Indices that put each row in ascending order, equal ones by position. ``keys`` are int32, not negative."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1, stable=True).indices
    import numpy as np

    def order(halves: torch.Tensor) -> torch.Tensor:  # NumPy has a radix sort for 16 bits
        return torch.from_numpy(np.argsort(halves.numpy().astype(np.uint16), axis=1, kind="stable"))

    low = order(keys & 0xFFFF)
    return low.gather(1, order((keys >> 16).gather(1, low)))


def magprune_probabilities(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """DELLA's keep probability of each entry: from density - epsilon for the smallest of its row to density + epsilon."""
    last = (delta.shape[-1] if delta.dim() else 1) - 1
    if not 0 < density < 1 or last == 0:
        return torch.full_like(delta, density)
    of_rank = (
        torch.arange(last + 1, dtype=delta.dtype, device=delta.device).mul_(2 * epsilon / last).add_(density - epsilon)
    )
    return _by_rank(delta, of_rank, descending=False)


# --- rules that several methods share -----------------------------------------------------------------------------


def check_density(bound: Mapping[str, Any]) -> None:
    """A density of 0 empties an expert: mergekit's recipes may ask for it, the papers' methods have no such case."""
    if bound.get("semantics") == "paper" and 0.0 in bound["density"]:
        raise ParameterError("density must lie in (0, 1] with semantics: paper, got 0.0. Leave the expert out instead.")


def check_window(bound: Mapping[str, Any]) -> None:
    """DELLA's probabilities must be probabilities."""
    check_density(bound)
    for density, epsilon in zip(bound["density"], bound["epsilon"], strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            room = min(density, 1 - density)
            raise ParameterError(
                f"density - epsilon and density + epsilon must lie in (0, 1), got density {density} and epsilon {epsilon}. "
                f"Choose an epsilon below {room:g}."
            )
