"""Exact thresholds from histograms of bits, against numpy's stable sort."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.methods import find
from triune.methods._ops import keep_at_random
from triune.methods._sampled_cuts import SampledCuts
from triune.methods._scan import ALL, NONE, Cut, GlobalTrimScan, MagnitudeCuts, RescaleScan, magnitude_bits, trim
from triune.methods._spec import View

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.1754944e-38, 0.1, -0.1, 0.10000001, 1.0, -1.0, 1.0000001, 3e38, -3e38]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False))
VECTORS = st.lists(FLOATS, min_size=1, max_size=60)
CUTS = st.lists(st.integers(1, 59), unique=True, max_size=6)


def blocks(deltas: torch.Tensor, cuts: list[int]) -> list[tuple[torch.Tensor, View]]:
    ends = [0, *sorted(c for c in cuts if c < deltas.shape[1]), deltas.shape[1]]
    return [(deltas[:, a:b], View(start=a)) for a, b in pairwise(ends)]


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` largest magnitudes, equal ones by index."""
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    return mask


def shown(pieces: list[tuple[torch.Tensor, View]], one_of: int) -> list[tuple[torch.Tensor, View]]:
    """The pieces, or every so manyth entry of them all."""
    if one_of == 1:
        return pieces
    whole = torch.cat([piece for piece, _ in pieces], dim=1)
    return [(whole[:, i : i + 1], View(start=i)) for i in range(0, whole.shape[1], one_of)]


def find_cuts(scan: MagnitudeCuts, pieces: list[tuple[torch.Tensor, View]]) -> list[list[Cut]]:
    turn = 0
    while turn < scan.passes:
        for piece, view in shown(pieces, scan.one_of(turn)):
            scan.see(turn, piece, view)
        scan.close(turn)
        turn += 1
    return scan.result()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(VECTORS, CUTS, st.data())
def test_exactly_the_largest_and_lowest_index_first(values: list[float], cuts: list[int], data: st.DataObject) -> None:
    deltas = torch.tensor([values, values[::-1]], dtype=torch.float32)
    counts = [[data.draw(st.integers(0, len(values) + 2)) for _ in range(2)] for _ in range(2)]
    pieces = blocks(deltas, cuts)
    found = find_cuts(MagnitudeCuts(counts), pieces)
    for t in range(2):
        for j, count in enumerate(counts[t]):
            kept = torch.cat([found[t][j].keep(p[t], v.start) for p, v in pieces])
            assert kept.tolist() == (deltas[t].numpy() * largest(deltas[t].numpy(), count)).tolist()


@pytest.mark.parametrize("levels", [1, 2, 50, 10**9])
def test_many_entries_with_many_ties(levels: int) -> None:
    """20,000 entries of 1, 2, 50 or any number of magnitudes, and a fifth of them zero."""
    rng = np.random.default_rng(levels)
    values = (rng.integers(1, levels + 1, 20_000) * rng.choice([-1, 0, 1], 20_000, p=[0.4, 0.2, 0.4])).astype(
        np.float32
    )
    deltas = torch.from_numpy(values)[None]
    pieces = blocks(deltas, [1, 777, 5000, 19_999])
    for count in (1, 4000, 15_999, 16_001, 19_999, 20_000):
        ((cut,),) = find_cuts(MagnitudeCuts([[count]]), pieces)
        kept = torch.cat([cut.keep(p[0], v.start) for p, v in pieces])
        assert (kept.numpy() == values * largest(values, count)).all(), count


def test_a_third_pass_only_where_many_ties_stand_across_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    distinct, tied = torch.arange(1.0, 9.0)[None], torch.ones(1, 8)
    for few, values, passes in ((8, tied, 2), (7, distinct, 2), (7, tied, 3)):
        monkeypatch.setattr("triune.methods._scan.FEW", few)
        scan = MagnitudeCuts([[3]])
        find_cuts(scan, [(values, View())])
        assert scan.passes == passes


@settings(derandomize=True, deadline=None, max_examples=60)
@given(VECTORS, CUTS, st.data())
def test_gathering_finds_what_counting_finds(values: list[float], cuts: list[int], data: st.DataObject) -> None:
    """Few entries are gathered and ordered, many are counted by their lower bits: the cut is the same."""
    pieces = blocks(torch.tensor([values], dtype=torch.float32), cuts)
    counts = [[data.draw(st.integers(0, len(values) + 2))]]
    gathered = find_cuts(MagnitudeCuts(counts), pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triune.methods._scan.FEW", -1)
        assert find_cuts(MagnitudeCuts(counts), pieces) == gathered


@settings(derandomize=True, deadline=None, max_examples=100)
@given(VECTORS, CUTS, st.data())
def test_a_sample_only_tells_where_to_look(values: list[float], cuts: list[int], data: st.DataObject) -> None:
    """However small the sample and the room for entries in the window, the cut is exact."""
    deltas = torch.tensor([values, values[::-1]], dtype=torch.float32)
    counts = [[data.draw(st.integers(0, len(values) + 2)) for _ in range(2)] for _ in range(2)]
    pieces = blocks(deltas, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triune.methods._sampled_cuts.SAMPLE", data.draw(st.sampled_from([1, 4, 16, 100])))
        patch.setattr("triune.methods._sampled_cuts.THINNEST", data.draw(st.sampled_from([2, 8])))
        patch.setattr("triune.methods._sampled_cuts.KEPT", data.draw(st.sampled_from([0, 5, 100])))
        found = find_cuts(SampledCuts(counts, len(values)), pieces)
    for t in range(2):
        for j, count in enumerate(counts[t]):
            kept = torch.cat([found[t][j].keep(p[t], v.start) for p, v in pieces])
            assert kept.tolist() == (deltas[t].numpy() * largest(deltas[t].numpy(), count)).tolist()


@pytest.mark.parametrize(
    ("levels", "kept"),
    [
        pytest.param(10**9, 50_000, id="distinct: the window lists what it holds"),
        pytest.param(100, 1000, id="tied: it lists each magnitude once"),
    ],
)
def test_one_pass_after_the_sample(levels: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 entries, 2,000 of them sampled: four standard errors are 0.036 of them where a fifth is kept, so the window
    holds more than 14,000."""
    monkeypatch.setattr("triune.methods._sampled_cuts.SAMPLE", 2000)
    monkeypatch.setattr("triune.methods._sampled_cuts.KEPT", kept)
    values = np.random.default_rng(levels).integers(1, levels + 1, 200_000).astype(np.float32)
    pieces = blocks(torch.from_numpy(values)[None], [50_000, 120_001])
    for count in (40_000, 1999, 100_000):
        scan = SampledCuts([[count]], len(values))
        ((cut,),) = find_cuts(scan, pieces)
        assert scan.passes == 2
        left = torch.cat([cut.keep(p[0], v.start) for p, v in pieces])
        assert (left.numpy() == values * largest(values, count)).all(), count


def test_no_pass_is_wasted_on_a_window_that_would_list_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, but only 1,000 may be listed: the sample, two histograms, and then the cut is known."""
    monkeypatch.setattr("triune.methods._sampled_cuts.SAMPLE", 2000)
    monkeypatch.setattr("triune.methods._sampled_cuts.KEPT", 1000)
    monkeypatch.setattr("triune.methods._sampled_cuts.RUN", 1000)
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    scan = SampledCuts([[40_000]], len(values))
    ((cut,),) = find_cuts(scan, blocks(torch.from_numpy(values)[None], [120_001]))
    assert scan.passes == 3
    assert (cut.keep(torch.from_numpy(values), 0).numpy() == values * largest(values, 40_000)).all()


def test_a_tensor_that_does_not_start_at_zero() -> None:
    """Four of eight equal entries, the ones with the lowest indices."""
    kept = find("ties")(torch.ones(1, 8), weight=1.0, density=0.5, view=View(start=100))
    assert kept.tolist() == [1.0] * 4 + [0.0] * 4


def test_sums_beyond_float32() -> None:
    """The row's sum is 4e38, which float32 does not have; the factor of a mask that drops nothing is one."""
    assert (
        find("dare_linear")(torch.tensor([[2e38, 2e38, 1.0]]), weight=1.0, density=1.0).tolist()
        == torch.tensor([2e38, 2e38, 1.0]).tolist()
    )


def test_a_sample_that_misleads_costs_passes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hundredth entry, which is what the sample sees, is small: the window lies below the cut."""
    monkeypatch.setattr("triune.methods._sampled_cuts.SAMPLE", 100)
    monkeypatch.setattr("triune.methods._sampled_cuts.KEPT", 1000)
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values[::100] *= 1e-3
    pieces = blocks(torch.from_numpy(values)[None], [4000])
    scan = SampledCuts([[2000]], len(values))
    ((cut,),) = find_cuts(scan, pieces)
    assert scan.passes == 4
    kept = torch.cat([cut.keep(p[0], v.start) for p, v in pieces])
    assert (kept.numpy() == values * largest(values, 2000)).all()


def test_nothing_is_read_where_every_count_is_clear() -> None:
    assert find_cuts(SampledCuts([[0, 7], [9, 7]], 7), []) == [[NONE, ALL], [ALL, ALL]]


def test_cuts_at_the_ends() -> None:
    delta = torch.tensor([0.0, 1.0, -2.0])
    assert ALL.keep(delta, 0).tolist() == [0.0, 1.0, -2.0]
    assert NONE.keep(delta, 0).tolist() == [0.0] * 3
    assert find_cuts(MagnitudeCuts([[0, 3, 99]]), [(torch.ones(1, 3), View())])[0][0] == NONE


def test_a_cut_by_hand() -> None:
    """Magnitudes 1, 2, 2, 2: above 2 none, and of those equal to 2 the ones below index 3."""
    delta = torch.tensor([1.0, 2.0, -2.0, 2.0])
    cut = Cut(int(magnitude_bits(delta)[1]), 3)
    assert cut.keep(delta, 0).tolist() == [0.0, 2.0, -2.0, 0.0]
    assert cut.keep(delta[2:], 2).tolist() == [-2.0, 0.0]
    assert cut.keep(delta[3:], 3).tolist() == [0.0]
    same = Cut(cut.bits, 1, more=2)  # the first two of them from index 1 on
    assert same.keep(delta, 0).tolist() == [0.0, 2.0, -2.0, 0.0]
    assert same.keep(delta[1:], 1).tolist() == [2.0, -2.0, 0.0]


def official(values: np.ndarray, density: float) -> np.ndarray:
    """TIES's official trim of one flattened model: what reaches the (D - floor(D K))-th smallest magnitude."""
    magnitudes = np.abs(values)
    place = len(values) - int(len(values) * density)
    return magnitudes >= (np.sort(magnitudes)[place - 1] if place else 0.0)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(VECTORS, CUTS, st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]), st.permutations(range(7)))
def test_the_global_trim_is_the_official_one(
    values: list[float], cuts: list[int], density: float, order: list[int]
) -> None:
    """Gathered in parts, which are added in any order."""
    scaled = [v / 4 for v in values]  # so that the votes' sums stay finite
    deltas = torch.tensor([scaled, scaled[::-1]], dtype=torch.float32)
    pieces, scan = [p for p, _ in blocks(deltas, cuts)], GlobalTrimScan([density, 1.0], [1.0, 0.5])
    for turn in range(scan.passes):
        parts = [scan.part() for _ in pieces]
        for part, piece in zip(parts, pieces, strict=True):
            part.see(turn, piece, View())
        for i in order:
            if i < len(parts):
                scan.add(parts[i])
        scan.close(turn)
    found = scan.result()
    first = official(deltas[0].numpy(), density)
    survivors = trim(deltas, found.cuts)
    assert (survivors[0] == deltas[0] * torch.from_numpy(first)).all()
    assert torch.equal(survivors[1], deltas[1])
    votes = int((survivors[0] + 0.5 * survivors[1]).sign().sum())
    assert found.majority == (1.0 if votes > 0 else -1.0)


def test_the_global_trim_sees_several_tensors_as_one() -> None:
    rng = np.random.default_rng(3)
    tensors = [rng.normal(size=(1, n)).astype(np.float32) * s for n, s in ((500, 1.0), (1, 0.5), (3000, 0.1))]
    scan = GlobalTrimScan([0.3], [1.0])
    for turn in range(scan.passes):
        for tensor in tensors:
            scan.see(turn, torch.from_numpy(tensor), View())
        scan.close(turn)
    kept = np.concatenate([trim(torch.from_numpy(t), scan.result().cuts)[0].numpy() != 0 for t in tensors])
    assert (kept == official(np.concatenate([t[0] for t in tensors]), 0.3)).all()
    assert kept.sum() == int(3501 * 0.3) + 1


def test_rescale_by_hand() -> None:
    """Half of (1, -3, 2, 2) dropped: (1 + 3 + 2 + 2) / (3 + 2) = 1.6. All or nothing, or next to nothing: 1."""
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0])
    scan = RescaleScan(3, 4, lambda deltas, view: mask[view.start : view.start + deltas.shape[1]].expand(deltas.shape))
    deltas = torch.tensor([[1.0, -3.0, 2.0, 2.0], [1.0, 0.0, 1.0, 0.0], [1e-8, 1e-8, 1e-8, 1e-8]])
    for piece, view in blocks(deltas, [1, 3]):
        scan.see(0, piece, view)
    assert scan.result().factors == pytest.approx([1.6, 1.0, 1.0])


def test_a_mask_is_remembered_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, a bit an entry; where it is not kept the method draws it again, and merges the same."""
    view, deltas = View("w", shape=(3, 5)), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    parameters = {"weight": 1.0, "density": 0.5}
    remembered = find("dare_linear")(deltas, view=view, **parameters)
    scan = RescaleScan(2, 15, lambda d, v: keep_at_random(d, [0.5, 0.5], v))
    scan.see(0, deltas, view)
    found = scan.result().mask(deltas, 0)
    assert found is not None
    assert torch.equal(found, keep_at_random(deltas, [0.5, 0.5], view))
    assert scan.result().mask(deltas, 1) is None
    monkeypatch.setattr("triune.methods._scan.REMEMBERED", 1)
    forgetful = RescaleScan(2, 15, lambda d, v: keep_at_random(d, [0.5, 0.5], v))
    forgetful.see(0, deltas, view)
    assert forgetful.result().mask(deltas, 0) is None
    assert torch.equal(find("dare_linear")(deltas, view=view, **parameters), remembered)
