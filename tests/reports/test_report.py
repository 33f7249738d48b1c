"""Reports of every kind of input: what is in the page, what is refused, and that nothing in it can run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

import toy_records
import triune
from toy_records import HOSTILE
from triune.errors import UserError
from triune.evals import store
from triune.evals.leaderboard import leaderboard
from triune.evals.result import Model, Result
from triune.reports.colours import KINDS, of_experts
from triune.reports.figures.figure import Figure, Table
from triune.reports.inputs import read
from triune.reports.sections import sections_of, told_of

if TYPE_CHECKING:
    from conftest import Models, Run

pytest.importorskip("altair", reason="reports need: pip install 'triune[report]'")
MEGABYTES = 5_000_000


class Page(HTMLParser):
    """The elements of a page, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def everything(make_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One input of each kind."""
    root = tmp_path_factory.mktemp("everything")
    return toy_records.write_everything(make_toy(root / "models", layers=3), root)


@pytest.fixture(scope="module")
def page(everything: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all of them."""
    return triune.report(everything, tmp_path_factory.mktemp("page") / "report.html")


# --- the page ----------------------------------------------------------------------------------------------------


def test_every_kind_of_input_has_its_figures(page: Path) -> None:
    found = {f["id"] for f in Page(page.read_text()).all("figure")}
    assert found == {
        "merge-1-norms",
        "diagnosis-1-layers",
        "diagnosis-1-projections",
        "diagnosis-1-spectra",
        "diagnosis-1-outliers",
        "diagnosis-1-pairs-conflict",
        "diagnosis-1-pairs-conflict-layers",
        "diagnosis-1-pairs-effects",
        "results-1-scores",
        "results-1-radar",
        "results-1-ternary",
        "results-1-pareto",
        "results-1-differences",
        "ablation-1-differences",
        "ablation-1-settings",
        "ablation-2-settings",
        "training-1-curves",
        "training-1-accuracy",
        "experiment-1-accuracy",
        "experiment-1-steps",
        "experiment-1-forgetting",
    }


def test_every_panel_has_its_drawing_and_every_figure_its_words(page: Path) -> None:
    shown = Page(page.read_text())
    places = [d["data-spec"] for d in shown.all("div") if "data-spec" in d]
    specs = json.loads(shown.scripts[0])["specs"]
    assert set(places) == set(specs)
    for spec in specs.values():
        assert len(spec["description"]) > 40


def test_it_is_one_small_file_that_loads_nothing(page: Path) -> None:
    text = page.read_text()
    assert len(text.encode()) < MEGABYTES
    shown = Page(text)
    for tag in ("img", "iframe", "object", "embed", "base", "form"):
        assert shown.all(tag) == []
    assert [link["href"] for link in shown.all("link")] == ["data:,"]
    assert all("src" not in script for script in shown.all("script"))
    assert not re.search(r"@import|url\(", text.split("<style>")[1].split("</style>")[0])
    (policy,) = [m["content"] for m in shown.all("meta") if m.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_what_models_and_users_wrote_is_text(page: Path) -> None:
    text = page.read_text()
    shown = Page(text)
    assert HOSTILE not in text
    assert len(shown.scripts) == 3  # the data, Vega, ours
    assert shown.text.count("alert(1)") >= 5  # a model's name, a prompt, answers, a recipe: all to be read
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert "<" not in shown.scripts[0]


def test_numbers_are_those_of_the_leaderboard(page: Path) -> None:
    board = leaderboard(toy_records.results(), reference="base")
    shown = Page(page.read_text()).text
    for line in board.lines:
        for name in ("3H", "helpful", "honest", "harmless"):
            found = line.cells[name].found
            value = f"{100 * found.value:.1f}"
            assert re.search(rf"≈?{value}[▲▼]? \[{100 * found.low:.1f}, {100 * found.high:.1f}\]", shown), (
                line.label,
                name,
            )


def test_proxies_and_slices_are_said_beside_the_figures(page: Path) -> None:
    shown = Page(page.read_text()).text
    said = "Among the numbers are slices, of 10 rows and ≈ proxies (XSTest unsafe)"
    assert shown.count(said) == 2  # once for the run, once for the ablation
    assert shown.count("With slices and ≈ proxies.") == 6  # every figure of these numbers
    assert "Slices, not to be compared with published scores" in shown


def test_long_answers_say_that_they_are_cut(page: Path) -> None:
    assert "x" * 700 + " […]" in page.read_text()
    assert "x" * 701 not in page.read_text()


def test_it_is_the_same_each_time(everything: list[Path], tmp_path: Path) -> None:
    first, second = (triune.report(everything[4:], tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert first == second


# --- inputs, whole or not -----------------------------------------------------------------------------------------


def test_a_training_that_diverged_has_a_gap(everything: list[Path], tmp_path: Path) -> None:
    shutil.copytree(next(p for p in everything if p.name == "train"), tmp_path / "train")
    lines = '{"step": 1, "loss": 0.7}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n'
    (tmp_path / "train" / "mix" / "training.jsonl").write_text(lines)
    shown = Page(triune.report([tmp_path / "train"], tmp_path / "r.html").read_text())
    drawn = json.loads(shown.scripts[0])["specs"]["training-1-curves-0"]["layer"][0]["data"]["values"]
    assert [r["value"] for r in drawn if r["model"] == "mix"] == [0.7, None, None]
    assert "0.7 → inf" in shown.text


def test_models_that_get_nothing_right_have_a_radar(tmp_path: Path) -> None:
    found = [toy_records._one(b, m, 0, "report") for b in toy_records.ROWS for m in toy_records.MODELS]
    store.add(tmp_path / "zero.db", found)
    shown = Page(triune.report([tmp_path / "zero.db"], tmp_path / "r.html").read_text())
    assert "results-1-radar" in {f["id"] for f in shown.all("figure")}


def test_an_expert_that_is_the_base_has_no_empty_figure(models: Models, tmp_path: Path) -> None:
    same = shutil.copytree(models.root / "base", tmp_path / "same")
    recipe = triune.recipe_from_flags(base=str(models.root / "base"), experts=[str(same)])
    triune.diagnose(recipe, tmp_path / "d.jsonl", effects=[])
    (section, *_) = sections_of(read([tmp_path / "d.jsonl"]))
    assert all(b.panels for b in section.blocks if isinstance(b, Figure))
    assert triune.report([tmp_path / "d.jsonl"], tmp_path / "images", style="png").is_dir()


def test_experts_keep_their_colours_without_a_base(models: Models, tmp_path: Path) -> None:
    experts = [f"{name}={models.root / name}" for name in models.names]
    recipe = triune.recipe_from_flags(base=None, experts=experts, method="linear")
    triune.merge(recipe, tmp_path / "out", gate=False)
    (section,) = sections_of(read([tmp_path / "out"]))
    (figure,) = (b for b in section.blocks if isinstance(b, Figure))
    assert figure.legend == of_experts(models.names) | {"merged": KINDS["merge"]}


def test_a_merged_folder_alone(everything: list[Path], tmp_path: Path) -> None:
    shown = Page(triune.report([everything[0]], tmp_path / "r.html").read_text())
    assert shown.all("figure") == [next(f for f in shown.all("figure") if f["id"] == "merge-1-norms")]
    for words in ("task_arithmetic", "not stated", "merge_method:", "SHA-256"):
        assert words in shown.text


def test_the_norms_are_those_of_the_weights(everything: list[Path], models: Models) -> None:
    lock = json.loads((everything[0] / "triune.lock.json").read_text())
    base = {m["name"]: m for m in lock["models"]}
    assert all(m["licence"] == "not stated" for m in base.values())
    name = "model.layers.1.mlp.up_proj.weight"
    assert set(lock["norms"][name]) == {"base", "deltas", "merged_delta"}
    assert len(lock["norms"][name]["deltas"]) == 3


def test_a_diagnosis_that_is_not_finished(everything: list[Path], tmp_path: Path) -> None:
    """Its last line is cut off, as when it is read while it is written."""
    partial = tmp_path / "diagnosis.jsonl.partial"
    partial.write_text(everything[1].read_text()[:-200])
    found = read([partial])
    whole = found.diagnoses[0][1].header.tensors
    assert len(found.diagnoses[0][1].tensors) == whole - 1
    (note,) = found.notes
    assert f"{partial.name}: the diagnosis is not finished; {whole - 1} of {whole} tensors are." in note
    assert read([tmp_path / "diagnosis.jsonl"]).notes == [note]  # by the name that it will have, too
    partial.write_text("")
    with pytest.raises(UserError, match="run the same `triune diagnose` again"):
        read([tmp_path / "diagnosis.jsonl"])


@pytest.mark.parametrize("kind", ["merge", "run", "train", "align"])
def test_what_has_just_begun(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    files = {
        "merge": {
            ".triune/plan.json": '{"description": "ties of 3"}',
            ".triune/journal.jsonl": '{"tensor": "a"}\n{"ten',
        },
        "run": {"m/model.json": '{"name": "m"}', "m/samples/gsm8k.jsonl": '{"id": "1", "prompt": "p", "ans'},
        "train": {"work/lock": ""},
        "align": {"lock.json": "{}", "config.yaml": "", "journal.jsonl": '{"stage": "a", "accuracy": {}}\n{"sta'},
    }[kind]
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shown = Page(triune.report([folder], tmp_path / "r.html").read_text()).text
    assert {
        "merge": "1 tensors are written so far",
        "run": "no benchmark is finished",
        "train": "no model of this training",
    }.get(kind, "1 of its stages are") in shown


def test_a_damaged_journal_of_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"schema": "triune-answers/1", "prompts": 3, "models": []}')
    with pytest.raises(UserError, match="damaged file of answers"):
        read([path])


@pytest.mark.parametrize("what", ["text", "folder", "database"])
def test_what_is_unknown_is_refused(what: str, tmp_path: Path, triune: Run) -> None:
    path = tmp_path / what
    if what == "folder":
        (path / "deeper").mkdir(parents=True)
        (path / "notes.txt").write_text("x")
    elif what == "text":
        path.write_text("hello")
    else:
        import sqlite3

        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE t (x)")
        other.close()
    told = triune("report", path, "-o", tmp_path / "out.html")
    assert told.code == 2
    assert str(path) in told.err
    assert (
        "no results store of triune" if what == "database" else "a merged folder (triune.lock.json), a diagnosis"
    ) in told.err
    assert not (tmp_path / "out.html").exists()


def test_nothing_given() -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        triune.report([], "r.html")


def test_missing_inputs_formats_and_models_are_named(everything: list[Path], tmp_path: Path, triune: Run) -> None:
    run, out = everything[2], tmp_path / "out.html"
    cases = {
        "There is no": ("report", tmp_path / "gone", "-o", out),
        "There is no format 'pdf'": ("report", run, "-o", tmp_path / "out.pdf"),
        "--reference nobody": ("report", run, "-o", out, "--reference", "nobody"),
        "there are of report, tune": ("report", run, "-o", out, "--split", "all"),
        "cannot be written": ("report", run, "-o", run / store_name() / "r.html"),
    }
    for words, arguments in cases.items():
        told = triune(*arguments)
        assert (told.code, words in told.err) == (2, True), told.err


def store_name() -> str:
    from triune.evals.store import NAME

    return NAME


def test_without_altair_one_sentence_says_what_to_install(
    everything: list[Path], tmp_path: Path, triune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triune.reports.report.EXTRA", ("no_such_package",))
    told = triune("report", everything[0], "-o", tmp_path / "r.html")
    assert told.code == 2
    assert 'pip install "triune[report]"' in told.err


def test_the_demo_does_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from triune.cli.demo import _report

    monkeypatch.setattr("triune.reports.report.EXTRA", ("no_such_package",))
    recipe = triune.recipe_from_flags(base="demo:base", experts=["demo:honest"])
    assert _report(recipe, tmp_path / "out", tmp_path / "records", None) is None
    assert 'pip install "triune[report]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- other formats ------------------------------------------------------------------------------------------------


def test_markdown_with_images(everything: list[Path], tmp_path: Path, triune: Run) -> None:
    out = tmp_path / "my paper (1).md"  # in a link neither space nor bracket may stand
    told = triune("report", everything[0], everything[4], everything[5], "-o", out)
    assert told.code == 0, told.err
    assert told.out.strip() == str(out)
    text = out.read_text()
    linked = [unquote(link) for link in re.findall(r"!\[.*?\]\(([^ ()]+)\)", text)]
    assert len(linked) == text.count("![") > 0
    assert "my paper (1)-figures/merge-1-norms.png" in linked
    assert all((tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in linked)
    assert "\\<script>" in text
    outside = re.sub(r"```yaml.*?```", "", text, flags=re.DOTALL).partition("<!-- triune report")[0]
    assert not re.search(r"(?<!\\)<(?!br>|ins>|/ins>)", outside)


def test_a_format_alone_names_its_file(
    everything: list[Path], tmp_path: Path, triune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, name in (
        ((), "report.html"),
        (("--format", "md"), "report.md"),
        (("--format", "png"), "report-figures"),
    ):
        told = triune("report", everything[4], *arguments)
        assert (told.code, told.out.strip()) == (0, name), told.err
        assert Path(name).exists()


def test_images_alone(everything: list[Path], tmp_path: Path) -> None:
    out = triune.report([everything[6]], tmp_path / "figures")
    names = sorted(p.stem for p in out.iterdir())
    assert names == ["experiment-1-accuracy", "experiment-1-forgetting", "experiment-1-steps"]
    for path in out.iterdir():
        width = int.from_bytes(path.read_bytes()[16:20])
        assert 400 < width <= 2600, path  # pixels, two for each of the page's


# --- what is not overwritten --------------------------------------------------------------------------------------


def test_neither_an_input_nor_a_folder_of_triune_takes_images(everything: list[Path], triune: Run) -> None:
    merged, run = everything[0], everything[2]
    before = sorted(p.name for p in merged.iterdir())
    for given, out, words in (
        (merged, merged, "is an input of this report"),
        (run, merged, "holds a triune.lock.json"),
        (merged, run, f"holds a {store_name()}"),
    ):
        told = triune("report", given, "-o", out)
        assert (told.code, words in told.err) == (2, True), told.err
    assert sorted(p.name for p in merged.iterdir()) == before


@pytest.mark.parametrize("ending", ["html", "md"])
def test_only_a_report_is_written_over(everything: list[Path], tmp_path: Path, triune: Run, ending: str) -> None:
    out = tmp_path / f"r.{ending}"
    for _ in range(2):
        assert triune("report", everything[4], "-o", out).code == 0
    out.write_text("<html><p>Mine, which names triune report")
    told = triune("report", everything[4], "-o", out)
    assert (told.code, "no report of triune" in told.err) == (2, True), told.err
    assert out.read_text().endswith("names triune report")


# --- what is said of results --------------------------------------------------------------------------------------


def _results(*models: tuple[str, int, Sequence[str]], split: str = "all") -> list[Result]:
    """Of each model its name, how many rows of ten it gets right, and on which benchmarks."""
    return [
        toy_records._one(b, Model(name, "other", f"f-{name}"), ones, split)
        for name, ones, benchmarks in models
        for b in benchmarks
    ]


def _told(folder: Path, results: list[Result], **how: Any) -> tuple[str, str]:
    """What the figures of scores and of the balance say."""
    store.add(folder / "r.db", results)
    blocks = [b for s in sections_of(read([folder / "r.db"]), **how) for b in s.blocks]
    by_key = {b.key: b.see for b in blocks if isinstance(b, Figure)}
    return by_key["results-1-scores"], by_key["results-1-radar"]


ALL = tuple(toy_records.ROWS)


def test_a_model_without_a_score_is_not_compared(tmp_path: Path) -> None:
    scores, balance = _told(tmp_path, _results(("a", 5, ALL), ("b", 5, ALL[:1])))
    assert "overlap" not in scores
    assert "lowest" not in balance


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ((5,), "The interval of the 1 other model overlaps that of the first."),
        ((0,), "The interval of the 1 other model does not overlap that of the first."),
        ((9, 9), "The intervals of all 2 others overlap that of the first."),
        ((0, 0), "The intervals of none of the 2 others overlap that of the first."),
        ((9, 0), "The interval of 1 of the 2 others overlaps that of the first."),
        ((9, 9, 0), "The intervals of 2 of the 3 others overlap that of the first."),
    ],
)
def test_how_many_intervals_overlap_that_of_the_first(others: tuple[int, ...], words: str, tmp_path: Path) -> None:
    first = 5 if others == (5,) else 10
    models = [(f"m{i}", ones, ALL) for i, ones in enumerate(others)]
    scores, _ = _told(tmp_path, _results(("first", first, ALL), *models, ("none", 9, ALL[:1])))
    assert words in scores


def test_an_unfinished_run_says_how_far_each_model_is(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(json.dumps({"name": name, "fingerprint": f"f-{name}"}))
    tried = _results(("d", 5, ALL[:1]), split="tune")
    store.add(tmp_path / store_name(), [*_results(("a", 5, ALL), ("b", 5, ALL[:1])), *tried])
    for given in (tmp_path, tmp_path / store_name()):
        told = [note.partition(": ")[2] for note in read([given]).notes]
        assert told == ["b: 1 of 3 benchmarks are measured.", "c: 0 of 3 benchmarks are measured."]
    shown = triune.report([tmp_path], tmp_path / "r.html").read_text()
    assert "b: 1 of 3 benchmarks" in shown.partition('class="unfinished"')[2].partition("</ul>")[0]


def test_all_rows_count_where_no_setting_was_chosen(tmp_path: Path) -> None:
    """A run of eval holds all rows and both halves; a run of bench only halves."""
    plain = [r for split in ("tune", "report", "all") for r in _results(("a", 5, ALL), ("r[x=1]", 5, ALL), split=split)]
    assert told_of(plain) == "all"
    assert told_of([*plain, *_results(("b", 5, ALL), split="report")]) == "report"  # b has no other
    assert told_of([*plain, *_results(("r[x=2]", 5, ALL), split="tune")]) == "report"  # two settings: one was chosen
    assert told_of(toy_records.results()) == "report"
    assert told_of(_results(("a", 5, ALL), split="tune")) == "tune"


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (None, "Split all: every row that was measured."),
        ("report", "Split report: half of the rows; --split all counts all."),
        ("tune", "Split tune: half of the rows; --split all counts all."),
    ],
)
def test_it_says_which_rows_count(tmp_path: Path, split: str | None, words: str) -> None:
    store.add(tmp_path / "r.db", [r for s in ("tune", "report", "all") for r in _results(("a", 5, ALL), split=s)])
    shown = Page(triune.report([tmp_path / "r.db"], tmp_path / "r.html", split=split).read_text()).text
    assert words in shown


def test_settings_that_were_tried_are_no_ablation(everything: list[Path]) -> None:
    assert [s.title for s in sections_of(read([everything[2]])) if s.key == "ablations"] == ["Settings that were tried"]
    assert "Ablations" in [s.title for s in sections_of(read([everything[3]]))]


# --- what is said of merges and diagnoses -------------------------------------------------------------------------


def test_a_merge_that_was_not_checked_says_so(page: Path) -> None:
    assert "not checked: merged with --no-gate" in Page(page.read_text()).text


def test_weights_that_were_not_read_are_named_so(everything: list[Path], tmp_path: Path) -> None:
    """The base of a merge of adapters into an adapter."""
    lock = json.loads((everything[0] / "triune.lock.json").read_text())
    for model in lock["models"]:
        if model["name"] == "base":
            del model["tensors_sha256"]
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "triune.lock.json").write_text(json.dumps(lock))
    (section,) = sections_of(read([tmp_path / "merged"]))
    (parents,) = [b for b in section.blocks if isinstance(b, Table) and b.caption == "Parents"]
    assert [row[-1] == "not read" for row in parents.rows] == [m["name"] == "base" for m in lock["models"]]


def test_small_ranks_stand_at_whole_numbers(page: Path) -> None:
    specs = json.loads(Page(page.read_text()).scripts[0])["specs"]
    axis = next(s for k, s in specs.items() if k.startswith("diagnosis-1-spectra"))["layer"][0]["encoding"]["x"]
    ends = axis["scale"]["domain"]
    values = axis["axis"]["values"]
    assert all(isinstance(v, int) and ends[0] <= v <= ends[1] for v in values)
    assert values[:3] == [1, 2, 3] or ends[1] > 11.5


def test_a_diagnosis_without_effects_speaks_of_no_ranks(models: Models, tmp_path: Path) -> None:
    experts = [f"{name}={models.root / name}" for name in models.names]
    recipe = triune.recipe_from_flags(base=str(models.root / "base"), experts=experts)
    triune.diagnose(recipe, tmp_path / "d.jsonl", effects=[])
    text = triune.report([tmp_path / "d.jsonl"], tmp_path / "r.html").read_text()
    assert "diagnosis-1-spectra" in {f["id"] for f in Page(text).all("figure")}
    for words in ("Over the whole model", "R-TSVM cuts after", "rank kept by", "marks on the floor"):
        assert words not in text


def test_the_middle_of_conflict_is_the_colour_that_the_text_names(page: Path) -> None:
    shown = Page(page.read_text())
    specs = json.loads(shown.scripts[0])["specs"]
    for key in ("diagnosis-1-pairs-conflict-0", "diagnosis-1-pairs-conflict-layers-0"):
        text = json.dumps(specs[key])
        assert '"range": ["#542788", "#c8c8c8", "#b35806"]' in text
    assert "grey is chance" in shown.text


def test_advice_has_a_heading_and_no_path(page: Path) -> None:
    text = page.read_text()
    assert "<h3>Advice</h3>" in text
    assert "lab-log.md" not in text


def test_it_says_what_it_is_made_of(page: Path, everything: list[Path]) -> None:
    shown = Page(page.read_text())
    assert "merged, diagnosis.jsonl and 5 more" in shown.text
    assert (
        "Made of merged, diagnosis.jsonl, run, ablation.db, answers.json, train, experiment. "
        "Newest result: 2025-01-31." in shown.text
    )


def test_a_report_of_nothing_but_a_moved_folder(everything: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(everything[2], tmp_path / "elsewhere")
    assert "How good it is: elsewhere" in Page(triune.report([moved], tmp_path / "r.html").read_text()).text
