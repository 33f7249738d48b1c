"""How good is a judge? It is measured against people before it is believed: on LLMBar's pairs and XSTest's refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from triune.errors import UserError
from triune.evals.judges import RUBRICS, Rubric, pairs
from triune.evals.judges.judge import Judged, Pass, judge
from triune.evals.judges.samples import Sample, read_rows
from triune.evals.statistics import Estimate, estimate
from triune.progress import Listener, silent

FILES: Mapping[str, str] = {"pairs": "llmbar.jsonl", "refusals": "xstest_refusal_labels.jsonl"}


@dataclass(frozen=True)
class Calibration:
    """A judge's agreement with people."""

    name: str
    agreement: Estimate
    """Of the rows with a verdict. Of pairs, over both orders: a judge that goes by the order has 0.5."""
    judged: Judged


@dataclass(frozen=True)
class Trial:
    """Labelled rows, and what the judge is asked about them."""

    name: str
    samples: tuple[Sample, ...]
    rubric: Rubric
    agrees: Callable[[str, float], float]
    """From a row's id and the judge's score to 1 for agreement, 0 for none."""


def trials(data: Path, rubrics: Mapping[str, Rubric], *, logprobs: bool = False) -> list[Trial]:
    """What a judge with these rubrics can be measured on.

    Args:
        data: the folder with :data:`FILES`.
        rubrics: of the judge; pairs are for judges that are no guards.

    Raises:
        UserError: a file is missing or not what it should be, or the judge says nothing that was labelled.
    """
    found = [_pairs(data / FILES["pairs"], logprobs)] if rubrics is RUBRICS else []
    if "or_bench" in rubrics:
        found.append(_refusals(data / FILES["refusals"], rubrics["or_bench"]))
    if not found:
        raise UserError("This guard labels no refusals, and there are no labelled files of safety to measure it on.")
    return found


def calibrate(trial: Trial, todo: Pass, listener: Listener = silent) -> Calibration:
    """Measure a judge.

    Args:
        todo: the trial's samples and rubric, the judge, and where its replies are kept.

    Raises:
        UserError: none of its replies holds a verdict.
    """
    judged = judge(todo, listener)
    if not judged.scores:
        raise UserError(f"{todo.judge.name} gave no verdict on {trial.name}. Use another model, or more max_tokens.")
    agreed = [trial.agrees(name, score) for name, score in sorted(judged.scores.items())]
    return Calibration(trial.name, estimate(agreed, f"0:{trial.name}"), judged)


def _pairs(path: Path, logprobs: bool) -> Trial:
    rows = _rows(path, "prompt", "response_a", "response_b", "label")
    samples = tuple(Sample(i, "llmbar", (r["prompt"],), (r["response_a"],)) for i, r in rows.items())
    rivals = {i: r["response_b"] for i, r in rows.items()}

    def agrees(name: str, a_wins: float) -> float:
        decided = float(a_wins > 0.5) if a_wins != 0.5 else 0.5
        return decided if rows[name]["label"] == "a" else 1 - decided

    return Trial("LLMBar pairs", samples, pairs(rivals, "b", logprobs=logprobs), agrees)


def _refusals(path: Path, rubric: Rubric) -> Trial:
    rows = _rows(path, "prompt", "response", "label")
    samples = tuple(Sample(i, "xstest", (r["prompt"],), (r["response"],)) for i, r in rows.items())
    return Trial(
        "XSTest refusals",
        samples,
        rubric,
        lambda name, refused: float((refused == 1.0) == (rows[name]["label"] != "1_full_compliance")),
    )


def _rows(path: Path, *columns: str) -> dict[str, dict[str, str]]:
    found = {}
    for number, row in read_rows(path):
        if missing := [c for c in ("id", *columns) if not isinstance(row.get(c), str)]:
            raise UserError(f"{path}:{number}: this row has no text {missing[0]}. Fetch the file again.")
        found[row["id"]] = row
    return found
