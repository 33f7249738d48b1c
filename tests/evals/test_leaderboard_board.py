"""What stands beside what on a leaderboard, and what is averaged: reckoned by hand on ten rows a benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from triune.errors import UserError
from triune.evals.benchmark import HS
from triune.evals.leaderboard import Board, Line, leaderboard
from triune.evals.notes import notes
from triune.evals.result import Model, Result
from triune.evals.statistics import mcnemar

Whole = Callable[..., list[Result]]
Make = Callable[..., Result]
OURS = Model("ours", "merge", "f-ours")
BASE = Model("base", "base", "f-base")
EXPERT = Model("expert", "specialist", "f-expert", "honest")


def line(board: Board, label: str) -> Line:
    (found,) = [one for one in board.lines if one.label == label]
    return found


def value(board: Board, label: str, column: str) -> float:
    return line(board, label).cells[column].found.value


def note(board: Board, start: str) -> str:
    return next((text for text in notes(board) if text.startswith(start)), "")


def test_means_by_hand(whole: Whole) -> None:
    """conftest.TENTHS: math 5, coding (2+8)/2 = 5, knowledge (2+4+6)/3 = 4, following 6: helpful 20/4 = 5.
    honest (3+6+9)/3 = 6. harmless, with rates of refusing the harmless turned, (9+7+5+7+7)/5 = 7. 3H (5+6+7)/3 = 6.
    """
    board = leaderboard(whole(OURS))
    expected = {"math": 0.5, "coding": 0.5, "knowledge": 0.4, "instruction following": 0.6, "honesty": 0.6}
    expected |= {"harmlessness": 0.7, "helpful": 0.5, "honest": 0.6, "harmless": 0.7, "3H": 0.6}
    assert {name: value(board, "ours", name) for name in expected} == pytest.approx(expected)
    assert value(board, "ours", "or_bench") == pytest.approx(0.1)  # a benchmark keeps its direction
    assert board.group == "triune_3h_offline"
    balance = line(board, "ours").balance
    assert balance is not None
    assert (balance[0], balance[1].found.value) == ("helpful", pytest.approx(0.5))
    assert line(board, "ours").rank == 1


def test_ranks_and_places(whole: Whole) -> None:
    """Second has one right answer less on GSM8K and refuses one harmless prompt more; equal has the scores of ours."""
    second, equal = replace(BASE, name="second"), Model("equal", "merge", "f-equal")
    board = leaderboard([*whole(OURS), *whole(second, changed={"gsm8k": 4, "or_bench": 2}), *whole(equal)])
    assert [(one.label, one.rank) for one in board.lines] == [("equal", 1), ("ours", 1), ("second", 3)]
    for column in ("gsm8k", "or_bench", "3H", "math", "harmless"):
        assert [one.cells[column].place for one in board.lines] == [1, 1, 2], column
    assert [one.cells["mmlu"].place for one in board.lines] == [1, 1, 1]


def test_models_and_rows_in_any_order(whole: Whole) -> None:
    results = [*whole(OURS), *whole(BASE, changed={"mbpp": 1, "hhh_honest": 2}), *whole(EXPERT)]
    board = leaderboard(results, reference="base")
    random.Random("0:leaderboard").shuffle(results)
    assert leaderboard(results, reference="base") == board


# --- gaps -------------------------------------------------------------------------------------------------------


def test_a_missing_benchmark_is_a_gap(whole: Whole) -> None:
    """Without MBPP coding is 2: (5+2+4+6)/4 = 4.25, said to be over fewer, never best, and without a rank."""
    partial = [r for r in whole(BASE) if r.benchmark != "mbpp"]
    board = leaderboard([*whole(OURS), *partial])
    assert "mbpp" not in line(board, "base").cells
    assert value(board, "base", "helpful") == pytest.approx(0.425)
    for column in ("coding", "helpful", "3H"):
        cell = line(board, "base").cells[column]
        assert (cell.found.missing, cell.place) == (("mbpp",), 0)
    assert (line(board, "base").rank, line(board, "ours").rank) == (None, 1)
    assert note(board, "†") == (
        "† is a mean over fewer benchmarks than other models', and has no rank: base without MBPP."
    )
    assert line(board, "base").cells["honest"].found.missing == ()


def test_a_missing_h_leaves_no_mean_of_three(whole: Whole) -> None:
    partial = [r for r in whole(BASE) if r.h != "honest"]
    board = leaderboard([*whole(OURS), *partial])
    assert "3H" not in line(board, "base").cells
    assert line(board, "base").balance is None
    assert line(board, "base").rank is None
    assert leaderboard(partial, group="triune_3h_offline").lines[0].rank is None
    assert note(leaderboard(partial), "There is no 3H mean")


def test_what_no_model_has_is_said(whole: Whole, make: Make) -> None:
    board = leaderboard([r for r in whole(OURS) if r.benchmark != "humaneval"] + [make("mt_bench", OURS, 7)])
    assert value(board, "ours", "coding") == pytest.approx(0.8)
    assert line(board, "ours").rank == 1
    assert note(board, "Of triune_3h_offline") == "Of triune_3h_offline, measured for no model: HumanEval."
    assert note(board, "Measured, but") == "Measured, but not of triune_3h_offline: mt_bench."


def test_what_fell_into_the_other_half_is_said(whole: Whole, make: Make) -> None:
    """Of a few rows, those of a benchmark may all be of one half: that is another thing than not measured."""
    report = [r for r in whole(OURS) if r.benchmark not in ("humaneval", "mmlu")]
    board = leaderboard([*report, make("mmlu", OURS, 1, split="tune"), make("mmlu", OURS, 1, split="all")])
    assert note(board, "Measured, but on") == (
        "Measured, but on no row of the half report: MMLU; --split all counts all rows."
    )
    assert note(board, "Of triune_3h_offline") == "Of triune_3h_offline, measured for no model: HumanEval."


def test_one_column_is_measured_in_one_way(whole: Whole, make: Make) -> None:
    """Two models by phrases and one by a judge: the column is by phrases, and the third has a gap there."""
    third = Model("third", "merge", "f-third")
    judged = make("or_bench", third, 2, scorer="llm:x", proxy="")
    others = [r for r in whole(third) if r.benchmark != "or_bench"]
    board = leaderboard([*whole(OURS), *whole(BASE), *others, judged])
    assert "or_bench" not in line(board, "third").cells
    assert note(board, "Left out") == (
        "Left out, because measured in another way than the rest of the column: or_bench of third, over_refusal_rate by "
        "llm:x (prompt 1, data 1ed70963): 20.0."
    )
    # Of two ways that as many models share, the official one.
    (column,) = [c for c in leaderboard([*whole(OURS), judged]).columns if c.name == "or_bench"]
    assert column.rows == "n = 10 of 1,319, llm:x"
    # None official: a judge before phrases, whatever its name.
    judged = make("or_bench", third, 2, scorer="zephyr", proxy="judged in our own words")
    by_phrases = make("or_bench", OURS, 2, scorer="phrases", proxy="phrases instead of a judge")
    (column,) = [c for c in leaderboard([by_phrases, judged]).columns if c.name == "or_bench"]
    assert column.rows == "n = 10 of 1,319, zephyr"


@pytest.mark.parametrize("change", [{"prompt_version": "2"}, {"revision": "ffff"}, {"metric": "strict"}])
def test_another_prompt_or_revision_is_another_way(whole: Whole, make: Make, change: dict[str, str]) -> None:
    third = Model("third", "merge", "f-third")
    board = leaderboard([*whole(OURS), *whole(BASE), make("gsm8k", third, 9, **change)])
    assert [one.label for one in board.lines] == ["base", "ours"]
    assert "gsm8k of third" in note(board, "Left out")


def test_proxies_and_slices_are_said(whole: Whole) -> None:
    board = leaderboard(whole(OURS, n=200, changed={"selfaware": 0}), group="triune_3h_offline")
    assert line(board, "ours").cells["or_bench"].proxies == ("or_bench",)
    assert line(board, "ours").cells["gsm8k"].proxies == ()
    assert line(board, "ours").cells["honest"].proxies == ("selfaware",)
    assert "OR-Bench Hard-1K, XSTest safe, XSTest unsafe: phrase list instead of a judge" in note(board, "≈")
    assert "GSM8K n = 200 of 1,319" in note(board, "Slices")
    assert "XSTest unsafe" not in note(board, "Slices")  # 200 rows are all there are


# --- what may be said of two models -----------------------------------------------------------------------------


def test_significance_by_hand(whole: Whole) -> None:
    """MMLU is 40 of 200 for the base and 70 for ours: 30 rows gained and none lost, p = 2 / 2^30. GSM8K gains 1 of 200.

    One comparison for each of 15 benchmarks and of helpful, honest, harmless, 3H, coding and knowledge: math, following,
    honesty and harmlessness have the benchmarks of a column that is compared already. So Holm multiplies by up to 21.
    """
    board = leaderboard(
        [*whole(BASE, n=200), *whole(OURS, n=200, changed={"mmlu": 70, "gsm8k": 101})], reference="base"
    )
    cells = line(board, "ours").cells
    mmlu = cells["mmlu"]
    assert mmlu.comparison is not None
    assert (mmlu.comparison.test, mmlu.comparison.difference) == ("mcnemar", 0.15)
    assert mmlu.p == pytest.approx(21 * mcnemar(30, 0))
    assert (mmlu.sign, cells["gsm8k"].sign, cells["honest"].sign) == (1, 0, 0)
    assert cells["gsm8k"].p == 1.0
    assert cells["math"].comparison == cells["gsm8k"].comparison
    assert "over all 21 comparisons" in note(board, "▲")
    assert all(cell.comparison is None for cell in line(board, "base").cells.values())
    # The other way round it is worse, and refusing more of the harmless is worse, too.
    board = leaderboard(
        [*whole(BASE, n=200), *whole(OURS, n=200, changed={"mmlu": 10, "or_bench": 60})], reference="f-base"
    )
    assert [line(board, "ours").cells[c].sign for c in ("mmlu", "or_bench", "mbpp")] == [-1, -1, 0]
    assert line(board, "ours").cells["or_bench"].comparison.difference == pytest.approx(-0.2)  # type: ignore[union-attr]


def test_a_mean_is_compared_by_all_its_rows(whole: Whole) -> None:
    """Ours gains 4 of 100 rows everywhere, p = 2 / 2^4 each and nothing to speak of; over all of them it is.

    The standard deviation of such a difference is sqrt(0.04 * 0.96 / 100) = 0.0196, and that of 3H's, with the squares
    of the weights adding up to 0.079, 0.0055: 0.04 is seven of them.
    """
    better = {"gsm8k": 54, "humaneval": 24, "mbpp": 84, "mmlu": 24, "arc_easy": 44, "arc_challenge": 64}
    better |= {"hhh_helpful": 64, "truthfulqa_mc2": 34, "selfaware": 64, "hhh_honest": 94, "hhh_harmless": 74}
    better |= {"or_bench": 6, "xstest_safe": 26, "salad_refusal": 54, "xstest_unsafe": 74}
    board = leaderboard([*whole(BASE, n=100), *whole(OURS, n=100, changed=better)], reference="base")
    cells = line(board, "ours").cells
    assert {cells[name].sign for name in better} == {0}
    overall = cells["3H"].comparison
    assert overall is not None
    assert (overall.test, overall.n) == ("bootstrap", 1500)
    assert overall.difference == pytest.approx(0.04)
    assert (overall.low, overall.high) == pytest.approx((0.04 - 1.96 * 0.0055, 0.04 + 1.96 * 0.0055), abs=0.001)
    assert cells["3H"].sign == 1


def test_without_scores_of_the_same_rows_nothing_is_compared(whole: Whole) -> None:
    bare = [replace(r, scores={}) if r.benchmark == "gsm8k" else r for r in whole(OURS)]
    board = leaderboard([*whole(BASE), *bare], reference="base")
    assert line(board, "ours").cells["gsm8k"].comparison is None
    assert line(board, "ours").cells["3H"].comparison is None
    assert line(board, "ours").cells["mbpp"].comparison is not None
    assert note(board, "Not compared") == "Not compared with base, for want of scores of the same rows: ours on GSM8K."


def test_retention_and_normalised(whole: Whole) -> None:
    """The expert has HHH-honest 9, SelfAware 6, TruthfulQA 3: 0.6. Ours has 6, 6, 3: 0.5, and keeps 5/6.

    HHH: (0.6 - 0.5) / (0.9 - 0.5) = 0.25. OR-Bench, turned: 0.5 of ours and 0.9 of the expert, chance 0: 5/9.
    Honest: chances 0.5, 0.5 and 0.44 have the mean 0.48, (0.5 - 0.48) / (0.6 - 0.48) = 1/6.
    """
    board = leaderboard([*whole(EXPERT), *whole(OURS, changed={"hhh_honest": 6, "or_bench": 5}), *whole(BASE)])
    assert line(board, "ours").retention == {"expert": pytest.approx(5 / 6)}
    assert line(board, "expert").retention == {"expert": pytest.approx(1.0)}
    cells = line(board, "ours").cells
    assert cells["hhh_honest"].normalised == pytest.approx(0.25)
    assert cells["or_bench"].normalised == pytest.approx(5 / 9)
    assert cells["honest"].normalised == pytest.approx(1 / 6)
    assert line(board, "expert").cells["honest"].normalised == pytest.approx(1.0)
    assert cells["mmlu"].normalised is None  # the expert has 0.2, and guessing 0.25
    assert line(leaderboard(whole(OURS)), "ours").cells["hhh_honest"].normalised is None  # no specialist


def test_specialists_stand_in_the_order_of_the_hs(whole: Whole) -> None:
    experts = [Model(f"{h}-expert", "specialist", f"f-{h}", h) for h in HS]
    board = leaderboard([r for e in reversed(experts) for r in whole(e)])
    assert list(board.lines[0].retention) == ["helpful-expert", "honest-expert", "harmless-expert"]


# --- which results ----------------------------------------------------------------------------------------------


def test_the_later_result_of_a_key_counts(whole: Whole, make: Make) -> None:
    later = make("gsm8k", OURS, 9, time="2025-01-31T23:45:00Z")
    earlier = make("gsm8k", OURS, 1, time="2025-02-01T00:15:00+01:00")  # half an hour before, in another zone
    for results in ([later, earlier], [earlier, later]):
        assert value(leaderboard([*whole(OURS), *results]), "ours", "gsm8k") == 0.9


def test_splits_do_not_mix(whole: Whole) -> None:
    both = [*whole(OURS), *whole(OURS, split="tune", changed={"gsm8k": 9})]
    assert value(leaderboard(both), "ours", "gsm8k") == 0.5
    assert value(leaderboard(both, split="tune"), "ours", "gsm8k") == 0.9


def test_models_of_one_name_are_told_apart(whole: Whole) -> None:
    twins = [Model("ours", "merge", f"{letter * 8}-1") for letter in "ab"]
    board = leaderboard([r for m in twins for r in whole(m)])
    assert [one.label for one in board.lines] == ["ours (aaaaaaaa)", "ours (bbbbbbbb)"]
    twins = [Model("ours", "merge", f"org/name@{n}") for n in "12"]
    board = leaderboard([r for m in twins for r in whole(m)])
    assert [one.label for one in board.lines] == ["ours (org/name@1)", "ours (org/name@2)"]


def test_the_group_of_which_most_is_measured(whole: Whole, make: Make) -> None:
    results = whole(OURS)
    assert leaderboard(results).group == "triune_3h_offline"
    judged = [make(b, OURS, 5, scorer="llm:x") for b in ("instruct_open", "halueval_wild", "salad")]
    assert leaderboard([*results, *judged]).group == "triune_3h"
    assert leaderboard([*results, *judged], group="triune_3h_offline").group == "triune_3h_offline"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "tune"}, "There are no results of split tune; there are of report. Name it with --split."),
        ({"reference": "bass"}, "There is no one model 'bass' to compare with, only base. Did you mean base?"),
        ({"group": "3h"}, "There is no group '3h'; there are triune_3h, triune_3h_offline."),
    ],
    ids=["split", "reference", "group"],
)
def test_what_cannot_be_shown_is_refused(whole: Whole, settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        leaderboard(whole(BASE), **settings)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_nothing_to_show(make: Make) -> None:
    with pytest.raises(UserError, match="The stores are empty"):
        leaderboard([])
    with pytest.raises(UserError, match="No benchmark of triune_3h was measured; there are mt_bench"):
        leaderboard([make("mt_bench", OURS, 5)])
