"""``triune leaderboard`` as a user meets it: four formats of one board, and every mistake in one line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from triune.evals.benchmark import HS
from triune.evals.result import Model, Result
from triune.evals.store import add

if TYPE_CHECKING:
    from conftest import Run

Whole = Callable[..., list[Result]]
EXPERTS = [Model(f"{h}_expert", "specialist", f"f-{h}", h) for h in HS]
OURS = Model("r_tsvm & co|50%", "merge", "f-ours")
PARTIAL = Model("[red]partial[/red]", "merge", "f-partial")


@pytest.fixture
def stores(tmp_path: Path, whole: Whole) -> tuple[Path, Path]:
    """Specialists in one store, merges in another: ours has 170 of 200 in MMLU and each of them 40."""
    first, second = tmp_path / "specialists.db", tmp_path / "run"
    second.mkdir()
    add(first, [r for expert in EXPERTS for r in whole(expert, n=200)])
    add(second, whole(OURS, n=200, changed={"mmlu": 170}))
    add(second, [r for r in whole(PARTIAL, n=200, changed={"mmlu": 20}) if r.benchmark != "mbpp"])
    return first, second


def test_terminal(triune: Run, stores: tuple[Path, Path]) -> None:
    """Ours: knowledge (85 + 40 + 60)/3 = 61.7 instead of 40, so helpful 50 + 21.7/4 = 55.4 and 3H 60 + 5.4/3 = 61.8."""
    shown = triune("leaderboard", *stores, "--reference", "honest_expert")
    assert shown.code == 0, shown.err
    text = shown.out
    assert text.startswith("triune_3h_offline, split report, 5 models\n")
    ours = next(row for row in text.splitlines() if OURS.name in row)
    assert re.findall(r"\S+", ours.split("merge")[1]) == ["≈61.8▲", "55.4▲", "≈60.0", "≈70.0", "55.4"]
    partial = next(row for row in text.splitlines() if PARTIAL.name in row)  # not read as a colour
    assert partial.strip().startswith("—")
    assert "≈" in partial.split("merge")[1].split()[0]
    assert "†" in partial
    assert "n = 200 of 1,319, exact" in text
    kept = next(row for row in text.split("Kept of each specialist")[1].splitlines() if OURS.name in row)
    assert kept.split("50%")[1].split() == ["110.8", "≈100.0", "≈100.0"]  # as the means that they are made of
    assert "OR-Bench Hard-1K ↓" in text
    assert "Holm-corrected p < 0.05" in text
    assert all(len(row) <= 200 for row in text.splitlines())


def test_markdown(triune: Run, stores: tuple[Path, Path]) -> None:
    text = triune("leaderboard", *stores, "--format", "md", "--reference", "honest_expert").out
    overall = [row for row in text.splitlines() if row.startswith("| 1 |")]
    assert len(overall) == 1
    assert overall[0].startswith("| 1 | r\\_tsvm & co\\|50% | merge | **≈61.8▲** [")
    assert "<ins>≈60.0</ins> [" in text
    assert "| <ins>10.0</ins>" not in text  # 20 of 200 in MMLU are the worst there is
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:  # as many cells in each row
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert "- ≈ is, or counts, a number that is not the official one." in text


def test_latex(triune: Run, stores: tuple[Path, Path]) -> None:
    text = triune("leaderboard", *stores, "--format", "latex", "--reference", "honest_expert").out
    assert r"1 & r\_tsvm \& co|50\% & merge & \textbf{$\approx$61.8$^\bigtriangleup$} {\scriptsize [" in text
    assert r"\underline{$\approx$60.0} {\scriptsize [" in text
    assert r"OR-Bench Hard-1K $\downarrow$" in text
    assert text.isascii()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{tabular}") == 6
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.findall("l", table[1 : table.index("}")]))
        rows = re.findall(r"(.*) \\\\$", table.split(r"\toprule")[1], flags=re.MULTILINE)
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_csv_and_json_hold_the_same_numbers(triune: Run, stores: tuple[Path, Path]) -> None:
    flags = (*stores, "--reference", "honest_expert")
    rows = list(csv.DictReader(io.StringIO(triune("leaderboard", *flags, "--format", "csv").out)))
    found = json.loads(triune("leaderboard", *flags, "--json").out)
    assert (found["group"], found["split"], found["reference"]) == ("triune_3h_offline", "report", "honest_expert")
    assert any(note.startswith("Slices") for note in found["notes"])
    assert [{k: "" if v is None else str(v) for k, v in s.items()} for s in found["scores"]] == rows
    by_name = {(r["model"], r["level"], r["name"]): r for r in found["scores"]}
    mmlu = by_name[OURS.name, "benchmark", "mmlu"]
    assert (mmlu["value"], mmlu["n"], mmlu["full_n"], mmlu["better_by"], mmlu["test"]) == (
        0.85,
        200,
        14042,
        0.65,
        "mcnemar",
    )
    assert (mmlu["metric"], mmlu["scorer"], mmlu["revision"], mmlu["chance"]) == ("acc", "exact", "d92730e8", 0.25)
    assert mmlu["p"] < 1e-30
    refusal = by_name[OURS.name, "benchmark", "or_bench"]
    assert refusal["higher_is_better"] is False
    assert refusal["proxy"].startswith("phrase list")
    gap = by_name[PARTIAL.name, "benchmark", "mbpp"]
    assert (gap["value"], gap["rank"]) == (None, None)
    assert by_name[PARTIAL.name, "overall", "3H"]["missing"] == "mbpp"
    assert by_name[OURS.name, "overall", "balance"]["lowest"] == "helpful"
    # (50 + 50 + 61.7 + 60) / 4 over (50 + 50 + 40 + 60) / 4
    assert by_name[OURS.name, "retention", "helpful_expert"]["value"] == pytest.approx(1 + 65 / 3 / 200)
    assert by_name[OURS.name, "overall", "3H"]["normalised"] > 1  # 61.8, and the best specialist has 60
    # Every number says that it is a slice or a proxy. Honest: TruthfulQA 817, SelfAware 3,369 and HHH 61, 200 rows of each.
    for level, name in (("h", "honest"), ("retention", "honest_expert")):
        honest = by_name[OURS.name, level, name]
        assert (honest["n"], honest["full_n"], honest["proxy"]) == (600, 817 + 3369 + 61, "selfaware")
    assert all(r["full_n"] for r in found["scores"] if r["value"] is not None)


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        (".md", "## triune_3h"),
        (".csv", "model,kind,"),
        (".tex", "% \\usepackage{booktabs}"),
        (".txt", "triune_3h_offline,"),
    ],
)
def test_a_file_has_the_format_of_its_ending(
    triune: Run, stores: tuple[Path, Path], tmp_path: Path, ending: str, start: str
) -> None:
    out = tmp_path / f"board{ending}"
    said = triune("leaderboard", *stores, "-o", out)
    assert (said.code, said.out, said.err) == (0, "", "")
    assert out.read_text(encoding="utf-8").startswith(start)
    shown = triune("leaderboard", *stores, "-o", tmp_path / "x", "--format", {".tex": "latex"}.get(ending, "md"))
    assert shown.code == 0
    assert json.loads(triune("leaderboard", *stores, "-o", out, "--json").out)["scores"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--format", "markdown"), "There is no format 'markdown'; there are terminal, md, csv, latex."),
        (("--split", "all"), "There are no results of split all; there are of report."),
        (("--reference", "honest_expret"), "Did you mean honest_expert?"),
        (("--group", "triune"), "There is no group 'triune'"),
        (("-o", "no/such/folder.md"), "no/such/folder.md cannot be written: No such file or directory."),
        (("none.db",), "There is no results store none.db."),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else "",
)
def test_mistakes(triune: Run, stores: tuple[Path, Path], flags: tuple[str, ...], says: str) -> None:
    told = triune("leaderboard", *stores, *flags)
    assert (told.code, told.out) == (2, "")
    assert len(told.err.strip().splitlines()) == 1
    assert told.err.startswith("triune: ")
    assert says in told.err
