"""``triune eval`` as a user meets it: what is measured, what is written, and what is not done twice."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import triune as library
from triune.evals import outcomes, scoring, store
from triune.evals.backends import Transformers
from triune.evals.benchmark import BENCHMARKS
from triune.evals.harness import Task, hushed
from triune.evals.models import Candidate, Weights, with_kinds
from triune.evals.result import Model
from triune.evals.rows import MINI, half_of, selected
from triune.evals.run import How
from triune.evals.run import Run as Measuring
from triune.evals.samples import Answers
from triune.evals.tasks import TASKS
from triune.progress import Event, Noted, Started
from triune.testing.chat import toy_chat

if TYPE_CHECKING:
    from conftest import Chats, Models, Outcome, Run

pytestmark = pytest.mark.usefixtures("built_in")

QUICK = "arc_easy,selfaware,xstest_safe"
"""Likelihoods, an accuracy by phrases, and a rate of which less is better."""


@pytest.fixture
def run(triune: Run, tmp_path: Path) -> Callable[..., Outcome]:
    """Measure in one folder; quick benchmarks unless told otherwise."""

    def call(*models: str | Path, tasks: str = QUICK, flags: tuple[str | Path, ...] = ()) -> Outcome:
        return triune("eval", *models, "--tasks", tasks, "-o", tmp_path / "run", *flags)

    return call


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, no model may be loaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Transformers, "opened", refuse)


def samples(folder: Path, benchmark: str) -> list[dict[str, Any]]:
    text = (folder / "samples" / f"{benchmark}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def record(folder: Path, benchmark: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "samples" / f"{benchmark}.json").read_text(encoding="utf-8"))
    return found


def numbers(run: Path, split: str = "all") -> dict[tuple[str, str], float]:
    return {(r.model.name, r.benchmark): r.value for r in store.read(run) if r.split == split}


# --- what comes out ---------------------------------------------------------------------------------------------


def test_one_model(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    told = run(chats.base, flags=("--limit", "5"))
    assert told.code == 0, told.err
    assert "A smoke test: without --data there are only a few rows of triune's own." in told.err
    assert "SMOKE TEST on built-in rows" in told.out
    assert "5 of 2,376" in told.out  # a slice says so
    assert "ARC-Easy ↑" in told.out
    assert "XSTest safe ↓" in told.out
    assert f"Compare models: triune leaderboard {tmp_path / 'run'} --split all\n" in told.out
    folder = tmp_path / "run" / "base"
    who = json.loads((folder / "model.json").read_text())
    assert (who["name"], who["kind"], who["reference"], who["recipe"]) == ("base", "other", str(chats.base), None)
    for name, file in {"arc_easy": "arc_easy", "selfaware": "selfaware", "xstest_safe": "xstest"}.items():
        where = {"label": "safe"} if file == "xstest" else None
        wanted = [row["id"] for row in selected(file, where=where)][:5]
        found = samples(folder, name)
        assert [s["id"] for s in found] == wanted
        results = {r.split: r for r in store.read(tmp_path / "run") if r.benchmark == name}
        whole = results["all"]
        assert whole.scores == {s["id"]: s["scores"][BENCHMARKS[name].metric] for s in found}
        assert whole.n == len(wanted)
        for half in ("tune", "report"):
            ids = {i for i in wanted if half_of(i) == half}
            assert set(results[half].scores if half in results else ()) == ids
        assert whole.proxy.startswith("smoke test on triune's own rows")
        assert whole.revision == "built-in smoke test"
        assert whole.settings["limit"] == 5
        assert whole.settings["dtype"] == "float32"
        assert set(whole.settings["versions"]) == {"triune", "lm_eval", "transformers", "torch"}
    assert whole.scorer == "phrases"
    assert "misses some refusals" in whole.proxy  # its own proxy is still said


def test_a_sample_has_all_that_a_judge_or_a_reader_needs(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path
) -> None:
    run(chats.base, tasks="arc_easy,selfaware", flags=("--limit", "2"))
    folder = tmp_path / "run" / "base"
    row = selected("selfaware")[0]
    talk = samples(folder, "selfaware")[0]
    assert talk["prompt"] == [{"role": "user", "content": row["question"]}]
    assert talk["sent"] == f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    assert talk["finish"] in ("stop", "length")
    assert isinstance(talk["answer"], str)
    assert set(talk["scores"]) == {"acc", "degenerate"}
    row = selected("arc_easy")[0]
    choice = samples(folder, "arc_easy")[0]
    assert choice["prompt"] == f"Question: {row['question']}\nAnswer:"
    assert "sent" not in choice
    assert [c["text"] for c in choice["choices"]] == [f" {c}" for c in row["choices"]]
    assert all(c["log_likelihood"] < 0 for c in choice["choices"])
    assert choice["reference"] == row["answer"]
    first = record(folder, "selfaware")["first_prompt"].split()
    assert first[:2] == ["3", "90"]  # <|im_start|>, u: no BOS that the template does not write


@pytest.mark.slow
def test_numbers_are_those_of_lm_eval(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    """Its own model class, one row at a time, our task folder: what ``lm-eval run --include_path`` does."""
    tasks = "arc_easy,mmlu,gsm8k,truthfulqa_mc2,hhh_honest,or_bench"
    run(chats.base, tasks=tasks, flags=("--limit", "4"))
    with hushed():
        plain = simple_evaluate(
            "hf",
            model_args={"pretrained": str(chats.base), "dtype": "float32", "device": "cpu"},
            tasks=[f"triune_{t}" for t in tasks.split(",")],
            limit=4,
            apply_chat_template=True,
            task_manager=TaskManager(include_path=TASKS, include_defaults=False),
        )
    ours = json.loads((tmp_path / "run" / "base" / "results.json").read_text())
    for key in ("versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[key] == plain[key]
    for task, theirs in plain["results"].items():
        assert ours["results"][task] == pytest.approx(theirs, abs=1e-4), task
        mine = samples(tmp_path / "run" / "base", task.removeprefix("triune_"))
        for sample, logged in zip(mine, plain["samples"][task], strict=True):
            assert sample["id"] == logged["doc"]["id"]
            assert sample.get("sent", sample["prompt"]) == logged["arguments"][0][0]
            if "answer" in sample:
                assert sample["answer"] == logged["resps"][0][0]
            else:
                likelihoods = [c["log_likelihood"] for c in sample["choices"]]
                assert likelihoods == pytest.approx([r[0][0] for r in logged["resps"]], abs=1e-3)


def test_an_adapter_is_its_merged_model(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    tasks = "arc_easy,truthfulqa_mc2,selfaware"
    assert run(chats.base, chats.adapter, chats.merged, tasks=tasks, flags=("--limit", "6")).code == 0
    found = numbers(tmp_path / "run")
    for task in tasks.split(","):
        assert found["adapter", task] == pytest.approx(found["merged", task], abs=1e-4)
    mine, theirs, base = (samples(tmp_path / "run" / n, "arc_easy") for n in ("adapter", "merged", "base"))
    told, wanted, before = (
        [c["log_likelihood"] for s in found for c in s["choices"]] for found in (mine, theirs, base)
    )
    assert told == pytest.approx(wanted, abs=1e-3)
    assert told != pytest.approx(before, abs=1)  # the adapter does something
    said = [s["answer"] for s in samples(tmp_path / "run" / "adapter", "selfaware")]
    assert said == [s["answer"] for s in samples(tmp_path / "run" / "merged", "selfaware")]


def test_one_base_stays_loaded(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of one form are swapped in, whatever comes before them; one of another form is loaded for itself."""
    settings = json.loads((chats.other / "config.json").read_text())
    bent = tmp_path / "bent"
    shutil.copytree(chats.other, bent)
    (bent / "config.json").write_text(json.dumps(settings | {"rope_theta": 100.0}))
    loaded: list[str] = []
    load = Transformers._load
    monkeypatch.setattr(Transformers, "_load", lambda self, c: (loaded.append(c.reference), load(self, c)))
    assert run(chats.base, chats.other, f"{chats.other}+{chats.adapter}", bent, tasks="arc_easy").code == 0
    assert loaded == ["base", "bent"]
    swapped = numbers(tmp_path / "run")
    monkeypatch.undo()
    alone = library.evaluate(chats.other, tasks="arc_easy", data=str(MINI))
    assert {r.split: r.value for r in alone}["all"] == swapped["other", "arc_easy"]
    first = samples(tmp_path / "run" / "other", "arc_easy")
    assert first != samples(tmp_path / "run" / "bent", "arc_easy")


def test_benchmarks_for_a_judge_have_samples_and_no_result(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path
) -> None:
    told = run(chats.base, tasks="halueval_wild,mt_bench,arc_easy", flags=("--limit", "1"))
    assert told.code == 0, told.err
    assert "a judge, from the samples" in told.out
    assert {r.benchmark for r in store.read(tmp_path / "run")} == {"arc_easy"}
    (wild,) = samples(tmp_path / "run" / "base", "halueval_wild")
    assert wild["reference"] == selected("halueval_wild")[0]["reference"]
    (bench,) = samples(tmp_path / "run" / "base", "mt_bench")
    assert [m["role"] for m in bench["prompt"]] == ["user", "assistant", "user"]
    assert len(bench["answer"]) == 2
    assert bench["prompt"][1]["content"] == bench["answer"][0]


@pytest.mark.parametrize(("data", "revision"), [("hub", "hub, not pinned"), ("DATA", "8c8dd48f")])
def test_rows_of_the_hub_are_not_the_copy_that_the_table_names(data: str, revision: str) -> None:
    """Else a folder's rows and whatever the hub has today would stand in one column."""
    task = Task(BENCHMARKS["arc_easy"], SimpleNamespace(OUTPUT_TYPE="multiple_choice"))
    row = {"id": "1", "scores": {"acc_norm": 1.0}}
    how = {"data": data, "half": None}
    answers = Answers({"seed": 0, "data": ""}, [row], "2025-01-31T12:00:00+00:00", 1.0, how)
    found = outcomes.results(Model("m", "other", "f-m"), task, answers)
    assert {r.revision for r in found} == {revision}


def test_code_is_left_out_and_named(run: Callable[..., Outcome], chats: Chats) -> None:
    told = run(chats.base, tasks="humaneval,mbpp,arc_easy", flags=("--limit", "1"))
    assert told.code == 0
    assert "Left out: HumanEval and MBPP, which run code that a model wrote." in told.err
    assert told.out.count("left out: runs code, needs --allow-code") == 2
    as_json = json.loads(run(chats.base, tasks="humaneval,arc_easy", flags=("--limit", "1", "--json")).out)
    assert as_json["left_out"] == ["humaneval"]
    assert [(r["benchmark"], r["n"], r["full_n"]) for r in as_json["results"]] == [("arc_easy", 1, 2376)]


def test_from_python(chats: Chats) -> None:
    events: list[Event] = []
    found = library.evaluate(
        [chats.base, chats.other], names=["one", "two"], tasks=["arc_easy"], limit=3, listener=events.append
    )
    assert {(r.model.name, r.split) for r in found} >= {("one", "all"), ("two", "all")}
    assert [e.phase for e in events if isinstance(e, Started)] == [
        "ARC-Easy of one, requests",
        "ARC-Easy of two, requests",
    ]
    asked = sum(len(row["choices"]) for row in selected("arc_easy")[:3])
    assert [e.total for e in events if isinstance(e, Started)] == [asked, asked]
    assert sum(e.amount for e in events if type(e).__name__ == "Advanced") == 2 * asked


# --- not twice --------------------------------------------------------------------------------------------------


def test_what_is_answered_is_not_asked_again(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run(chats.base, flags=("--limit", "3"))
    before = store.read(tmp_path / "run")
    (tmp_path / "run" / store.NAME).unlink()
    request.getfixturevalue("no_model")
    assert run(chats.base, flags=("--limit", "3")).code == 0
    assert store.read(tmp_path / "run") == before  # all of it is in the samples
    fewer = run(chats.base, tasks="arc_easy", flags=("--limit", "2", "--json"))
    assert json.loads(fewer.out)["results"][0]["n"] == 2


def test_more_rows_are_added(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    run(chats.base, tasks="arc_easy", flags=("--limit", "2"))
    first = samples(tmp_path / "run" / "base", "arc_easy")
    told = run(chats.base, tasks="arc_easy", flags=("--limit", "5"))
    more = samples(tmp_path / "run" / "base", "arc_easy")
    assert more[:2] == first
    assert len(more) == 5
    assert "again" not in told.err
    assert numbers(tmp_path / "run")["base", "arc_easy"] == sum(s["scores"]["acc_norm"] for s in more) / 5


def spoil_rows(folder: Path) -> None:
    path = folder / "samples" / "arc_easy.jsonl"
    path.write_text(path.read_text().replace('"acc_norm": 0.0', '"acc_norm": 1.0'))


def lose_record(folder: Path) -> None:
    (folder / "samples" / "arc_easy.json").unlink()


@pytest.mark.parametrize("spoil", [spoil_rows, lose_record])
def test_rows_without_their_record_do_not_count(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    run(chats.base, tasks="arc_easy,xstest_safe", flags=("--limit", "4"))
    folder = tmp_path / "run" / "base"
    right, untouched = samples(folder, "arc_easy"), record(folder, "xstest_safe")
    assert any(s["scores"]["acc_norm"] == 0 for s in right)
    spoil(folder)
    run(chats.base, tasks="arc_easy,xstest_safe", flags=("--limit", "4"))
    assert samples(folder, "arc_easy") == right
    assert record(folder, "xstest_safe") == untouched


def test_other_settings_redo_what_they_change(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(MINI, data)
    flags: tuple[str | Path, ...] = ("--limit", "2", "--data", data)
    run(chats.base, tasks="arc_easy,xstest_safe", flags=flags)
    untouched = record(tmp_path / "run" / "base", "xstest_safe")
    lines = (data / "arc_easy.jsonl").read_text().splitlines()
    (data / "arc_easy.jsonl").write_text("\n".join(lines[:-1]))
    told = run(chats.base, tasks="arc_easy,xstest_safe", flags=flags)
    assert "ARC-Easy of base is measured again: data was '" in told.err
    assert "XSTest" not in told.err
    assert record(tmp_path / "run" / "base", "xstest_safe") == untouched
    assert {r.revision for r in store.read(tmp_path / "run")} == {"8c8dd48f", "d7bb5bd7"}  # no smoke test
    told = run(chats.base, tasks="arc_easy,xstest_safe", flags=(*flags, "--seed", "1"))
    assert told.err.count("is measured again: seed was 0 and is 1.") == 2


def test_another_model_of_the_same_name(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    run(chats.base, tasks="arc_easy", flags=("--limit", "2", "--name", "it"))
    told = run(chats.other, tasks="arc_easy", flags=("--limit", "2", "--name", "it"))
    assert "ARC-Easy of it is measured again: model was" in told.err
    assert len({r.model.fingerprint for r in store.read(tmp_path / "run")}) == 2


@pytest.mark.slow
def test_a_killed_run_continues(start: Any, triune: Run, chats: Chats, tmp_path: Path) -> None:
    """Killed when the first benchmark is done: the second is asked alone, and all ends as if nothing had happened."""
    flags = ("--tasks", "arc_easy,gsm8k", "--quiet")
    process = start("eval", chats.base, *flags, "-o", tmp_path / "killed")
    done = tmp_path / "killed" / "base" / "samples" / "arc_easy.json"
    end = monotonic() + 120
    while not done.exists() and monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = done.read_bytes()
    assert not (tmp_path / "killed" / "base" / "samples" / "gsm8k.json").exists(), "it was too late"
    for folder in ("killed", "whole"):
        assert triune("eval", chats.base, *flags, "-o", tmp_path / folder).code == 0
    assert done.read_bytes() == before
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for name in ("arc_easy", "gsm8k"):
        assert samples(killed / "base", name) == samples(whole / "base", name)
    assert numbers(killed) == numbers(whole)


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(chats: Chats, tmp_path: Path) -> Path:
    path = tmp_path / "half.yaml"
    path.write_text(
        f"merge_method: linear\nbase_model: {chats.base}\nparameters: {{weight: 0.5}}\n"
        f"models:\n- model: {chats.other}\n- model: {chats.base}+{chats.adapter}\n"
    )
    return path


def test_what_kind_of_model_each_is(recipe: Path, chats: Chats, triune: Run, tmp_path: Path) -> None:
    """By what the models of one command are to each other; what a model is called in a store does not hang on it."""
    assert triune("merge", recipe, "--quiet", "--no-gate", tmp_path / "done").code == 0
    texts = [str(p) for p in (chats.base, chats.adapter, chats.other, tmp_path / "done")]
    measuring = Measuring(How(tasks="arc_easy"), tmp_path / "run")
    together, alone = measuring.candidates(texts), [measuring.candidates([text])[0] for text in texts]
    assert [c.model.kind for c in together] == ["base", "other", "other", "merge"]
    assert alone[0].model.kind == "other"
    assert [c.model.fingerprint for c in together] == [c.model.fingerprint for c in alone]
    assert [c.model.kind for c in measuring.candidates([str(chats.base), str(recipe)])] == ["base", "merge"]


@pytest.mark.parametrize(
    ("text", "kind", "specialty"),
    [
        ("demo:base", "base", ""),
        ("demo:honest", "specialist", "honest"),
        ("demo:base+demo:helpful", "specialist", "helpful"),
        ("demo:mix-hummer", "mixture", ""),
    ],
)
def test_the_demo_models_are_known(text: str, kind: str, specialty: str, tmp_path: Path) -> None:
    adapter = None if text == "demo:base" else tmp_path / "adapter"
    found = Candidate(Model("m", "other", "f"), text, Weights(tmp_path, adapter))
    assert with_kinds([found])[0].model == Model("m", kind, "f", specialty)


def test_a_recipe_is_merged_measured_and_removed(
    run: Callable[..., Outcome],
    triune: Run,
    recipe: Path,
    chats: Chats,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    assert run(recipe, flags=("--limit", "2")).code == 0
    folder = tmp_path / "run" / "half"
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "results.json", "samples"]
    assert json.loads((folder / "model.json").read_text())["recipe"] == recipe.read_text()
    (kind,) = {r.model.kind for r in store.read(tmp_path / "run")}
    assert kind == "merge"
    assert triune("merge", recipe, tmp_path / "on-disk").code == 0
    assert run(tmp_path / "on-disk", flags=("--limit", "2")).code == 0
    for name in QUICK.split(","):
        assert samples(folder, name) == samples(tmp_path / "run" / "on-disk", name)
    request.getfixturevalue("no_model")
    assert run(recipe, flags=("--limit", "2")).code == 0  # it is known again without its weights


def test_merged_weights_can_be_kept(run: Callable[..., Outcome], recipe: Path, tmp_path: Path) -> None:
    run(recipe, tasks="arc_easy", flags=("--limit", "1", "--keep"))
    assert (tmp_path / "run" / "half" / "merged" / "model.safetensors").exists()
    recipe.write_text(recipe.read_text().replace("weight: 0.5", "weight: 0.25"))
    told = run(recipe, tasks="arc_easy", flags=("--limit", "1"))
    assert told.code == 0, told.err  # those of the other recipe are not in the way
    assert not (tmp_path / "run" / "half" / "merged").exists()


def test_a_recipe_for_an_adapter(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    recipe = tmp_path / "soup.yaml"
    recipe.write_text(
        f"merge_method: linear\nbase_model: {chats.base}\noutput: lora\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {chats.adapter}}}]\n"
    )
    assert run(recipe, chats.merged, tasks="arc_easy,truthfulqa_mc2").code == 0
    found = numbers(tmp_path / "run")
    for task in ("arc_easy", "truthfulqa_mc2"):
        assert found["soup", task] == pytest.approx(found["merged", task], abs=1e-4)


# --- scored again -----------------------------------------------------------------------------------------------


def test_answers_are_scored_again_without_a_model(
    run: Callable[..., Outcome],
    chats: Chats,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    run(chats.base, chats.other, flags=("--limit", "4"))
    answers = [s["answer"] for s in samples(tmp_path / "run" / "base", "selfaware")]
    request.getfixturevalue("no_model")
    before = store.read(tmp_path / "run")
    assert run(flags=("--rescore",)).code == 0
    assert store.read(tmp_path / "run") == before  # the same graders, the same scores
    monkeypatch.setattr(scoring, "selfaware", lambda row, results: {"acc": 0.25, "degenerate": 0.0})
    told = run("base", flags=("--rescore",))
    assert "SelfAware of base: 4 of 4 scores changed." in told.err
    found = numbers(tmp_path / "run")
    assert found["base", "selfaware"] == 0.25
    assert found["other", "selfaware"] != 0.25
    again = samples(tmp_path / "run" / "base", "selfaware")
    assert [s["answer"] for s in again] == answers
    assert {s["scores"]["acc"] for s in again} == {0.25}
    results = json.loads((tmp_path / "run" / "base" / "results.json").read_text())["results"]
    assert results["triune_selfaware"]["acc,none"] == 0.25
    assert run("base", tasks="selfaware", flags=("--limit", "4")).code == 2  # a name is no model
    assert run(chats.base, tasks="selfaware", flags=("--limit", "4")).code == 0  # still counts as answered


def test_other_rows_cannot_be_scored(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    run(chats.base, tasks="arc_easy", flags=("--limit", "2"))
    data = tmp_path / "data"
    shutil.copytree(MINI, data)
    (data / "arc_easy.jsonl").write_text((data / "arc_easy.jsonl").read_text().replace("mini-", "own-"))
    told = run(tasks="arc_easy", flags=("--rescore", "--data", data))
    assert told.code == 2
    assert "arc_easy was answered on other rows than there are now. Give the same --data." in told.err
    told = run("nobody", tasks="arc_easy", flags=("--rescore",))
    assert "has no answers of nobody to these benchmarks. Run without --rescore first." in told.err


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "flags", "says"),
    [
        (("no/such",), (), "no/such: no such folder here"),
        ((), (), "There is no model to measure."),
        (("base",), ("--tasks", "triune_3h_ofline"), "Did you mean triune_3h_offline?"),
        (("base",), ("--tasks", "arc_easy,mmul"), "'mmul'"),
        (("base",), ("--tasks", ","), "--tasks names no benchmark."),
        (("base",), ("--tasks", "humaneval,mbpp"), "Nothing is left to measure. Add --allow-code"),
        (("base",), ("--data", "nowhere"), "arc_easy.jsonl: this file of benchmark rows is missing."),
        (("base",), ("--limit", "0"), "--limit must be at least 1, got 0."),
        (("base",), ("--batch", "0"), "--batch must be at least 1, got 0."),
        (("base",), ("--batch", "many"), "--batch must be auto or a number, got 'many'."),
        (("base",), ("--backend", "vlm"), "Did you mean vllm?"),
        (("base",), ("--backend", "openai"), "--backend openai needs --url"),
        (("base",), ("--url", "http://localhost/v1/completions"), "--backend hf takes no --url."),
        (("base",), ("--backend", "openai", "--url", "localhost:80"), "--url must end in /v1/completions"),
        (
            ("base",),
            ("--backend", "openai", "--url", "http://l/v1/chat/completions"),
            "takes conversations only, and arc",
        ),
        (("base",), ("--device", "gpu"), "--device must be cpu, cuda, cuda:N or auto, got gpu."),
        (("base",), ("--device", "cuda:7"), "--device cuda:7: there is no such device"),
        (("base", "base"), (), "would share the name base in the run. Give one --name for each model."),
        (("base", "other"), ("--name", "x"), "--name is given 1 times for 2 models."),
        (("base",), ("--name", "a\nb"), "one line of text"),
        (("base",), ("-o", "{file}/run"), "cannot be written: Not a directory."),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_mistakes(
    triune: Run, chats: Chats, tmp_path: Path, models: tuple[str, ...], flags: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").touch()
    named = [str(chats.base.parent / m) if m in ("base", "other") else m for m in models]
    given = [f.replace("{file}", str(tmp_path / "file")) for f in flags]
    out = () if "-o" in flags else ("-o", tmp_path / "run")
    told = triune("eval", *named, "--tasks", "arc_easy", *out, *given)
    assert told.code == 2, told.err
    last = told.err.strip().splitlines()[-1]
    assert last.startswith("triune: ")
    assert says in last
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template(triune: Run, models: Models, tmp_path: Path) -> None:
    told = triune("eval", models.root / "base", "--tasks", "arc_easy,selfaware", "-o", tmp_path / "run")
    assert told.code == 2
    assert "has no chat template, and selfaware are conversations." in told.err
    assert not (tmp_path / "run").exists()


def test_an_adapter_whose_base_is_gone(
    run: Callable[..., Outcome], chats: Chats, tmp_path: Path, write_adapter: Any
) -> None:
    write_adapter(tmp_path / "lost", {"model.layers.0.mlp.up_proj.weight": (48, 32)}, seed=1, base="gone")
    told = run(tmp_path / "lost")
    assert told.code == 2
    assert f"is an adapter and says that its base is gone, which cannot be found. Write BASE+{tmp_path}" in told.err
    assert run(f"{chats.base}+{tmp_path / 'lost'}", tasks="arc_easy", flags=("--limit", "1")).code == 0


def test_an_answer_longer_than_the_model_reads(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(chats.base, short)
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 64}))
    told = run(short, tasks="selfaware")
    assert told.code == 2
    assert "SelfAware of short: the answers may take 64 tokens, and the model reads only 64." in told.err
    told = run(short, tasks="arc_easy")
    assert told.code == 0
    assert "ARC-Easy of short: 6 prompts are longer than the 64 tokens that the model reads and were cut." in told.err
    (cut,) = {r.settings["cut"] for r in store.read(tmp_path / "run")}
    assert cut == 6


def test_one_process_at_a_time(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = run(chats.base)
    assert told.code == 2
    assert "Another process is measuring in" in told.err


def test_notes_are_heard(chats: Chats, tmp_path: Path) -> None:
    events: list[Event] = []
    library.evaluate(chats.base, tasks="humaneval,arc_easy", limit=1, out=tmp_path, listener=events.append)
    assert [e.sentence.split(":")[0] for e in events if isinstance(e, Noted)] == ["Left out", "A smoke test"]


def test_a_base_of_another_size_next_to_it(run: Callable[..., Outcome], chats: Chats, tmp_path: Path) -> None:
    toy_chat(tmp_path / "small", layers=1, config={"max_position_embeddings": 4096})
    assert run(chats.base, tmp_path / "small", chats.other, tasks="arc_easy", flags=("--limit", "1")).code == 0
    assert len(numbers(tmp_path / "run")) == 3
