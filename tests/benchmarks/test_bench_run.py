"""Measuring processes, taking turns, and the table. No test looks at how long anything took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.floor import pass_through
from benchmarks.models import SIZES, make_models
from benchmarks.process import Cost, measure
from benchmarks.report import aims, report
from benchmarks.results import HEADER, Measured, Run, load, row, save, table
from benchmarks.run import run_case

from benchmarks import tools

GB = 10**9


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_models(folder / "models" / "tiny", SIZES["tiny"])
    return folder


def test_cost_of_a_process(tmp_path: Path) -> None:
    """200 MB that are written to count, and what this test's own process holds (torch, some 200 MB) does not."""
    small = measure([sys.executable, "-I", "-S", "-c", "print('said')"], tmp_path / "small.log")
    large = measure([sys.executable, "-I", "-S", "-c", "b'x' * 200_000_000"], tmp_path / "large.log")
    assert small.code == large.code == 0
    assert small.peak < 50_000_000
    assert 200_000_000 <= large.peak < 250_000_000
    assert (tmp_path / "small.log").read_text().splitlines()[-1] == "said"


@pytest.mark.parametrize(("code", "script"), [(3, "raise SystemExit(3)"), (-9, "import os; os.kill(os.getpid(), 9)")])
def test_how_it_ended(tmp_path: Path, code: int, script: str) -> None:
    assert measure([sys.executable, "-c", script], tmp_path / "log").code == code


def test_the_environment_is_ours_and_more(tmp_path: Path) -> None:
    script = "import os; print(os.environ['OURS'], 'PATH' in os.environ)"
    measure([sys.executable, "-c", script], tmp_path / "log", {"OURS": "yes"})
    assert (tmp_path / "log").read_text().splitlines()[-1] == "yes True"


def test_the_floor_keeps_the_base(tmp_path: Path) -> None:
    for name, size in (("base", 10_000_000), ("expert", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(os.urandom(size))
    pass_through(tmp_path / "base", [tmp_path / "expert"], tmp_path / "out")
    kept, base = (tmp_path / n / "model.safetensors" for n in ("out", "base"))
    assert kept.read_bytes() == base.read_bytes()


def test_tools_take_turns_and_a_missing_one_is_told(work: Path) -> None:
    told: list[str] = []
    measured = run_case(CASES["ties"], "tiny", work, repeats=2, tell=told.append)
    assert [(r.tool, r.turn) for r in measured.runs] == [("triune", 0), ("floor", 0), ("floor", 1), ("triune", 1)]
    assert [r.cost.code for r in measured.runs] == [0] * 4
    assert measured.absent == {"mergekit": "mergekit==0.1.5 is not installed (--install makes an environment for it)"}
    assert told[0] == f"ties: mergekit left out, {measured.absent['mergekit']}"
    assert "not run" in table([measured])


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name.replace(" ", "-"))
def test_triune_takes_every_recipe(case: Case, work: Path, tmp_path: Path) -> None:
    import triune

    for tool in set(case.tools) & {"triune", "triune-lora"}:
        recipe = case.recipe(work / "models" / "tiny", adapters=tool == "triune-lora")
        triune.merge(triune.parse_recipe(recipe), tmp_path / tool, gate=False, threads=1)
        weights = "adapter_model.safetensors" if tool == "triune-lora" else "model.safetensors"
        assert (tmp_path / tool / weights).exists()


def test_patience_ends_the_repeats_of_a_tool(work: Path) -> None:
    case = Case("floor alone", "ties", ("floor",))
    assert len(run_case(case, "tiny", work, repeats=3, patience=0).runs) == 1
    assert len(run_case(case, "tiny", work, repeats=3).runs) == 3


def test_a_failure_is_told_and_kept(work: Path) -> None:
    told: list[str] = []
    wrong = Case("wrong", "ties", ("triune",), {"weight": 1.0, "density": 7.0})
    measured = run_case(wrong, "tiny", work, repeats=1, tell=told.append)
    assert measured.runs[0].cost.code == 2
    assert "failed with exit code 2" in told[0]
    assert measured.wall("triune") is None
    assert "density must lie in [0, 1], got 7" in (work / "out" / "wrong-triune.log").read_text()


def test_an_environment_is_made_once_or_its_failure_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(folder: Path, requirement: str) -> None:
        if requirement.startswith("fusion-bench"):
            raise subprocess.CalledProcessError(1, "pip")
        folder.mkdir()
        made.append(requirement)

    monkeypatch.setattr(tools, "make_environment", make)
    told = {"fusion_bench": "fusion-bench==0.2.33 could not be installed (exit code 1)"}
    for _ in range(2):
        assert tools.missing(["triune", "mergekit", "fusion_bench"], tmp_path, install=True) == told
    assert made == ["mergekit==0.1.5"]


def runs(tool: str, *walls: float, peak: float) -> list[Run]:
    return [Run(tool, i, Cost(0, wall, 2 * wall, int(peak * GB)), 0.5) for i, wall in enumerate(walls)]


@pytest.fixture
def measured() -> Measured:
    """triune's median is 4 s and 0.5 GB, mergekit's one run took 30 s and 5 GB, the floor's median is 2 s."""
    found = Measured("tiny", "ties", {"CPU": "some", "disk": "ext4, 1 GB free of 2 GB"}, "2026-01-31")
    found.runs = [*runs("triune", 6, 3, 4, peak=0.5), *runs("mergekit", 30, peak=5), *runs("floor", 2, 1, 2, peak=0.1)]
    found.runs.append(Run("mergekit", 1, Cost(1, 0.1, 0.1, 5), 0.5))  # failed: counts for nothing
    return found


def test_a_row_by_hand(measured: Measured) -> None:
    assert dict(zip(HEADER[:-1], row(measured), strict=False)) == {
        "case": "ties",
        "against": "mergekit",
        "triune s": "4 [3, 6] n=3",
        "peer s": "30",
        "floor s": "2 [1, 2] n=3",
        "peer / triune": "7.5x",
        "triune / floor": "2x",
        "triune CPU s": "8",
        "peer CPU s": "60",
        "triune GB": "0.5",
        "peer GB": "5",
    }
    assert row(measured)[-1] == "10x"


def test_results_come_back_as_they_were(measured: Measured, tmp_path: Path) -> None:
    save(tmp_path, measured)
    assert load(tmp_path) == [measured]


def test_the_report_names_machine_load_and_what_did_not_run(measured: Measured) -> None:
    measured.absent = {"mergekit": "no network"}
    text = report([measured])
    assert "## tiny" in text
    assert "CPU some; ext4; 2026-01-31" in text
    assert "load average before the runs 0.5 to 0.5" in text
    assert "ties: mergekit did not run: no network" in text


def test_the_published_report_is_that_of_the_published_results() -> None:
    assert (tools.HERE / "RESULTS.md").read_text() == report(load(tools.HERE / "results"))


def test_each_aim_stands_beside_what_was_measured(measured: Measured) -> None:
    """30 / 4 = 7.5 misses 8; 4 / 2 = 2 meets 2. Without the other program there is nothing to say."""
    lines = aims([measured]).splitlines()
    assert lines[2] == "| ties | 8x as fast as mergekit | 7.5x | **missed** |"
    assert lines[3] == "| ties | within 2x of the floor | 2x | met |"
    measured.runs = runs("triune", 1, peak=1)
    assert aims([measured]).splitlines()[2] == "| ties | 8x as fast as mergekit | not measured | |"


def test_columns_line_up(measured: Measured) -> None:
    lines = table([measured]).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


def test_from_the_command_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["linear", "--size", "tiny", "--repeats", "1", "--work", str(work), "--report", str(tmp_path / "RESULTS.md")])
    printed = capsys.readouterr().out
    assert "linear: triune" in printed
    assert "linear: mergekit left out" in printed
    assert printed.splitlines()[-1] in (tmp_path / "RESULTS.md").read_text()
    assert [m.case for m in load(work / "results")] == ["linear"]


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tiess"])
    assert "there is no case tiess; there are linear, task_arithmetic, ties" in capsys.readouterr().err
