"""The generator of random masks: what it depends on, and whether it looks random."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from triune.methods._ops import keep_at_random, magprune_probabilities, uniform
from triune.methods._spec import View

CPU = torch.device("cpu")
VIEW = View("model.layers.0.mlp.up_proj.weight", ("helpful", "honest"), seed=1)
MILLION = 1_000_000


def splitmix(view: View, expert: str, index: int) -> float:
    """SplitMix64 (Steele, Lea and Flood 2014) from a state that is the key, at output number ``index // 2``; the upper 24
    bits of its lower half for even indices, of its upper half for odd ones."""
    text = f"{view.seed}\0{expert}\0{view.tensor}".encode()
    state = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") + (index // 2 + 1) * 0x9E3779B97F4A7C15
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return (z >> (40 if index % 2 else 8)) % 2**24 / 2**24


def draws(view: View = VIEW, expert: int = 0, entries: int = MILLION) -> torch.Tensor:
    return uniform(view, expert, entries, CPU)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's; of independent numbers it is about normal with standard deviation 1 / sqrt(n)."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63])
@pytest.mark.parametrize("start", [0, 5, 2**31 - 3, 2**40])
def test_it_is_splitmix64(seed: int, start: int) -> None:
    """Also beyond 2^32 entries, and past the sign bit of int64."""
    view = replace(VIEW, seed=seed, start=start)
    for t, name in enumerate(view.experts):
        assert uniform(view, t, 40, CPU).tolist() == [splitmix(view, name, start + i) for i in range(40)]


def test_splitmix64_by_its_published_outputs() -> None:
    """State 1234567, first outputs 6457827717110365317 and 3203168211198807973 (the reference implementation's)."""
    outputs = []
    for i in (1, 2):
        z = (1234567 + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    assert outputs == [6457827717110365317, 3203168211198807973]


def test_nameless_experts_are_told_apart_by_number() -> None:
    view = View("w")
    assert uniform(view, 1, 4, CPU).tolist() == [splitmix(view, "1", i) for i in range(4)]


def test_everything_in_the_key_matters() -> None:
    ours = draws(entries=100)
    others = {
        "seed": draws(replace(VIEW, seed=2), entries=100),
        "expert": draws(VIEW, 1, entries=100),
        "tensor": draws(replace(VIEW, tensor="model.layers.1.mlp.up_proj.weight"), entries=100),
        "where fields end": draws(View("x", ("11",), 1), entries=100),
    }
    for name, theirs in others.items():
        assert not torch.equal(ours, theirs), name
    assert not torch.equal(draws(View("x", ("1",), 11), entries=100), others["where fields end"])
    assert torch.equal(ours, draws(replace(VIEW, shape=(10, 10)), entries=100))  # a view of the same place


def test_uniformity() -> None:
    """Chi-square over 256 bins, 255 degrees of freedom: mean 255, standard deviation 22.6; the mean of n draws is 1/2 up to
    1 / sqrt(12 n), the variance 1/12 up to 1 / sqrt(180 n).
    """
    for view in (VIEW, replace(VIEW, seed=2), View("", (), 0)):
        u = draws(view)
        assert 0 <= float(u.min()) < float(u.max()) < 1
        counts = torch.bincount((u * 256).long(), minlength=256).double()
        chi = float(((counts - MILLION / 256) ** 2 / (MILLION / 256)).sum())
        assert abs(chi - 255) < 5 * 22.6
        assert abs(float(u.mean(dtype=torch.float64)) - 0.5) < 5 / (12 * MILLION) ** 0.5
        assert abs(float(u.double().var()) - 1 / 12) < 5 / (180 * MILLION) ** 0.5


def test_the_lowest_bits_are_random_too() -> None:
    bits = (draws() * 2**24).long()
    for place in range(24):
        ones = int((bits >> place & 1).sum())
        assert abs(ones - MILLION / 2) < 5 * (MILLION / 4) ** 0.5, place


def test_independence() -> None:
    """Of neighbours at several distances, of experts, seeds and tensors whose names differ by a character."""
    u = draws()
    bound = 5 / (MILLION - 4096) ** 0.5
    for lag in (1, 2, 3, 64, 4096):
        assert abs(correlation(u[:-lag], u[lag:])) < bound, lag
    for other in (draws(VIEW, 1), draws(replace(VIEW, seed=2)), draws(replace(VIEW, tensor=VIEW.tensor[:-1]))):
        assert abs(correlation(u, other)) < bound
    pairs = torch.bincount((u[:-1] * 16).long() * 16 + (u[1:] * 16).long(), minlength=256).double()
    chi = float(((pairs - MILLION / 256) ** 2 / (MILLION / 256)).sum())
    assert abs(chi - 255) < 5 * 22.6


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.99])
def test_the_kept_fraction(keep: float) -> None:
    mask = keep_at_random(torch.ones(2, 1000, 500), [keep, keep], VIEW)
    for each in mask:
        assert abs(int(each.sum()) - 500_000 * keep) < 5 * (500_000 * keep * (1 - keep)) ** 0.5
    assert abs(correlation(mask[0].flatten(), mask[1].flatten())) < 5 / 500_000**0.5


def test_nothing_and_everything_is_kept() -> None:
    mask = keep_at_random(torch.ones(2, 100_000), [0.0, 1.0], VIEW)
    assert not mask[0].any()
    assert mask[1].all()


def test_a_mask_is_the_draws_below_the_probability() -> None:
    deltas = torch.ones(2, 5, 8)
    mask = keep_at_random(deltas, [0.3, 0.6], replace(VIEW, start=16))
    for t, keep in enumerate((0.3, 0.6)):
        expected = [splitmix(VIEW, VIEW.experts[t], 16 + i) < keep for i in range(40)]
        assert mask[t].flatten().tolist() == expected


def test_dare_keeps_every_entry_equally_often() -> None:
    """500 seeds, 30 entries: each is kept 0.4 * 500 times, up to five standard deviations."""
    counts = sum(keep_at_random(torch.ones(1, 30), [0.4], replace(VIEW, seed=s)).double() for s in range(500))
    assert isinstance(counts, torch.Tensor)
    assert float((counts - 200).abs().max()) < 5 * (500 * 0.4 * 0.6) ** 0.5


def test_della_keeps_by_rank_in_the_row() -> None:
    """density 0.5, epsilon 0.4, rows of 9: the rank-r entry is kept with probability 0.1 + 0.1 r; over 500 seeds and the
    two rows, up to five standard deviations. Survivors over their probability are unbiased.
    """
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2, 9, generator=generator)
    q = magprune_probabilities(delta, 0.5, 0.4)
    ranks = delta.abs().argsort(dim=1).argsort(dim=1)
    torch.testing.assert_close(q, 0.1 + 0.1 * ranks)
    counts = torch.zeros(2, 9, dtype=torch.float64)
    for seed in range(500):
        counts += keep_at_random(delta[None], [q], replace(VIEW, seed=seed))[0]
    spread = (500 * q * (1 - q)).sqrt()
    assert bool(((counts - 500 * q).abs() < 5 * spread).all())
    mean = counts / 500 * delta / q
    assert bool(((mean - delta).abs() < 5 * delta.abs() * ((1 - q) / q / 500).sqrt()).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_numbers() -> None:
    for start in (0, 2**40):
        view = replace(VIEW, start=start)
        assert torch.equal(uniform(view, 0, MILLION, torch.device("cuda")).cpu(), uniform(view, 0, MILLION, CPU))
