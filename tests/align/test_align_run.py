"""Whole experiments on a toy: what they leave behind, and that stopping them anywhere changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from triune.align.align import Aligned, _claim, _tree, align, plan
from triune.align.align_config import AlignConfig
from triune.checkpoint.ref import resolve_reference
from triune.config import load_config
from triune.errors import UserError
from triune.progress import Event, Started
from triune.recipes.yaml import write_yaml

if TYPE_CHECKING:
    from conftest import Run

STATIC: dict[str, Any] = {
    "mixtures": {"at-random": {"mixture": "heuristic"}, "hummer": {"mixture": "hummer"}},
    "merges": ["r_tsvm", {"name": "ties-03", "method": "ties", "parameters": {"density": 0.3}}],
}
CONTINUAL: dict[str, Any] = {
    "paradigm": "continual",
    "continual": {"replay": 0.25},
    "merges": ["linear", {"name": "add", "method": "task_arithmetic", "parameters": {"lambda": 0.5}, "output": "lora"}],
}
TWO = {"helpful": "helpfulness", "honest": "honesty"}
SMALL: dict[str, Any] = {"specialists": TWO, "merges": ["ties"], "budget": {"epochs": 3}, "training": {"save_steps": 1}}
"""Six steps for each model, with a checkpoint after each."""


@pytest.fixture(scope="module")
def finished(write_experiment: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Aligned]:
    """An experiment, run without a stop; once for each config. Read it, never write it."""
    made: dict[str, Aligned] = {}

    def run(**change: Any) -> Aligned:
        key = json.dumps(change)
        if key not in made:
            folder = tmp_path_factory.mktemp("experiment")
            config = load_config(write_experiment(folder, **change), AlignConfig)
            made[key] = align(config, folder / "out", device="cpu")
        return made[key]

    return run


@pytest.fixture(scope="module")
def bytes_of(contents: Any) -> Callable[[Path], dict[str, Any]]:
    """Every file of an experiment, without caches, and without what tells when and where it was made."""

    def read(out: Path) -> dict[str, Any]:
        files = {name: digest for name, digest in contents(out).items() if "work" not in Path(name).parts[1:-1]}
        for name in files:
            if name.endswith("triune.lock.json"):
                lock = json.loads((out / name).read_text())
                files[name] = {k: v for k, v in lock.items() if k not in ("fingerprint", "working_folder")}
        return files

    return read


def models(out: Path) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in json.loads((out / "models.json").read_text())}


def tensors(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / "merged" / name / "model.safetensors")


# --- what an experiment leaves behind -----------------------------------------------------------------------------


def test_static(finished: Any, tiny: Path) -> None:
    done = finished(**STATIC)
    assert {p.name for p in done.out.iterdir()} == {
        *("config.yaml", "lock.json", "journal.jsonl", "models.json", "summary.json", "summary.md", "done"),
        *("train", "merged"),
    }
    kinds = {name: (m["kind"], m["method"]) for name, m in models(done.out).items()}
    assert kinds == {
        "base": ("base", None),
        **dict.fromkeys(("helpful", "honest", "harmless"), ("specialist", None)),
        **dict.fromkeys(("at-random", "hummer"), ("mixture", None)),
        "r_tsvm": ("merge", "r_tsvm"),
        "ties-03": ("merge", "ties"),
    }
    lines = [json.loads(line) for line in (done.out / "journal.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == list(kinds)[1:]
    assert len({line["fingerprint"] for line in lines}) == len(lines)
    assert list(done.summary["accuracy"]) == list(kinds)
    # The specialist was trained hard on three sentences: it knows its own dimension by heart.
    assert done.summary["accuracy"]["honest"]["honesty"]["reward"][0] == 1.0
    assert done.summary["accuracy"]["base"]["honesty"]["reward"][0] == 0.5
    assert done.summary["accuracy"]["base"]["honesty"]["n"] == 4
    assert "| ties-03 |" in (done.out / "summary.md").read_text()
    lock = json.loads((done.out / "lock.json").read_text())
    assert lock["data"]["train"]["honesty"] == 12
    assert lock["base"]["reference"] == str(tiny)


def test_every_model_can_be_found_from_the_folder(finished: Any) -> None:
    for change in (STATIC, CONTINUAL):
        out = finished(**change).out
        for m in models(out).values():
            ref = resolve_reference(m["reference"], out)
            assert ref.folder is not None
            assert (ref.adapter is None) == ("+" not in m["reference"])


def test_the_merges_are_those_of_triune_merge(finished: Any, triune: Run, tmp_path: Path) -> None:
    out = finished(**STATIC).out
    found = models(out)
    experts = [p for n in ("helpful", "honest", "harmless") for p in ("--expert", f"{n}={out / 'train' / n}")]
    base = found["base"]["reference"]
    flags = ("--base", base, *experts, "--method", "ties", "--set", "density=0.3", "-q")
    assert triune("merge", *flags, tmp_path / "ties").code == 0
    by_hand = load_file(tmp_path / "ties" / "model.safetensors")
    ours = tensors(out, "ties-03")
    assert all(torch.equal(ours[name], tensor) for name, tensor in by_hand.items())


def test_continual_ends_where_one_merge_would(finished: Any, triune: Run, tmp_path: Path) -> None:
    """Methods that are linear in the deltas do not care whether experts come at once or one by one."""
    out = finished(**CONTINUAL).out
    base = models(out)["base"]["reference"]
    experts = [p for n in ("helpful", "honest", "harmless") for p in ("--expert", f"{n}={out / 'train' / n}")]
    flags = ("--base", base, *experts, "-q")
    assert triune("merge", *flags, "--method", "linear", tmp_path / "linear").code == 0
    torch.testing.assert_close(tensors(out, "linear/3"), load_file(tmp_path / "linear" / "model.safetensors"))
    add = ("--method", "task_arithmetic", "--set", "lambda=0.5")
    assert triune("merge", *flags, *add, tmp_path / "at-once").code == 0
    # the adapter of the third step, made whole
    whole = ("--base", base, "--expert", out / "merged" / "add" / "3", "--method", "task_arithmetic", "-q")
    assert triune("merge", *whole, tmp_path / "whole").code == 0
    at_once, one_by_one = (load_file(tmp_path / n / "model.safetensors") for n in ("at-once", "whole"))
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-4, atol=1e-5)
    moved = max((at_once[n] - t).abs().max() for n, t in load_file(Path(base) / "model.safetensors").items())
    assert moved > 1e-3  # and it is not the base that is compared with itself


def test_continual(finished: Any) -> None:
    done = finished(**CONTINUAL)
    steps = {(m["kind"], m["step"]) for m in models(done.out).values()}
    assert {("merge", 2), ("merge", 3), ("sequential", 2), ("sequential", 3), ("specialist", 1)} <= steps
    assert set(done.summary["matrix"]) == {"linear", "add", "sequential"}
    assert set(done.summary["forgetting"]["sequential"]) == {"helpfulness", "honesty"}
    assert "## Forgetting" in (done.out / "summary.md").read_text()
    told = json.loads((done.out / "train" / "sequential-3" / "triune.training.json").read_text())
    assert told["data"]["dimensions"] == {"harmlessness": 6, "helpfulness": 1, "honesty": 1}  # a quarter of 8 replayed


def test_the_sequential_model_starts_from_the_one_before(finished: Any) -> None:
    """Its first loss is log 2: before its first step, a model is as far from itself as from its reference."""
    out = finished(**CONTINUAL).out
    for step in (2, 3):
        first = json.loads((out / "train" / f"sequential-{step}" / "training.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    before, after = (load_file(out / "train" / n / "adapter_model.safetensors") for n in ("helpful", "sequential-2"))
    change = torch.cat([(after[n] - before[n]).flatten() for n in before])
    size = torch.cat([before[n].flatten() for n in before])
    assert 0 < change.norm() < size.norm()


CURRENT: dict[str, Any] = {"paradigm": "continual", "continual": {"start": "current"}}


def test_an_adapter_trained_from_the_merged_model(finished: Any) -> None:
    done = finished(**CURRENT, specialists=TWO, merges=["linear", "task_arithmetic"])
    assert models(done.out)["first/honest"]["reference"] == "merged/first+current/first/honest"
    # An average is one of models: M_2 = 1/2 M_1 + 1/2 (M_1 + adapter) = M_1 + 1/2 adapter. A sum adds the adapter whole.
    q = "model.layers.0.self_attn.q_proj"
    adapter = load_file(done.out / "current" / "first" / "honest" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{q}.lora_{factor}.weight"] for factor in "AB")
    for method, share in (("linear", 1 / 2), ("task_arithmetic", 1.0)):
        learned = tensors(done.out, f"{method}/2")[f"{q}.weight"] - tensors(done.out, "first")[f"{q}.weight"]
        torch.testing.assert_close(learned, share * 2.0 * b @ a, rtol=1e-3, atol=1e-5)  # alpha / rank = 4 / 2


def test_full_models_trained_from_the_merged_model(finished: Any) -> None:
    out = finished(**CURRENT, merges=["linear"], training={"tuning": "full", "learning_rate": 1e-3}).out
    assert models(out)["linear/2/harmless"]["reference"] == "current/linear/2/harmless"
    folder = out / "current" / "linear" / "2"
    told = json.loads((folder / "harmless" / "triune.training.json").read_text())
    assert told["base"]["name"] == str(out / "merged" / "linear" / "2")
    # On the very pairs that a specialist from the base gets.
    from_base = finished(**CONTINUAL).out / "train" / "pairs" / "harmless.jsonl"
    assert (folder / "pairs" / "harmless.jsonl").read_bytes() == from_base.read_bytes()
    merged, tuned = tensors(out, "linear/2"), load_file(folder / "harmless" / "model.safetensors")
    for name, tensor in tensors(out, "linear/3").items():  # M_3 = 2/3 M_2 + 1/3 S_3
        torch.testing.assert_close(tensor, merged[name] * 2 / 3 + tuned[name] / 3, rtol=1e-4, atol=1e-6)
    first = json.loads((out / "train" / "sequential-2" / "training.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: the model before is its reference


# --- stopping and continuing --------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_a_stage(
    finished: Any, bytes_of: Any, start: Any, program: Any, write_experiment: Any, tmp_path: Path
) -> None:
    config, out = write_experiment(tmp_path, **SMALL), tmp_path / "out"
    command = ("align", config, "-o", out, "--device", "cpu", "-q")
    with start(*command) as running:
        while running.poll() is None and not list((out / "train" / "work" / "honest").glob("checkpoint-*/complete")):
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.stderr.read()
    assert [json.loads(x)["stage"] for x in (out / "journal.jsonl").read_text().splitlines()] == ["helpful"]
    assert not (out / "done").exists()
    helpful = (out / "train" / "helpful" / "adapter_model.safetensors").stat().st_mtime_ns
    told = program(*command)
    assert told.code == 0, told.err
    assert (out / "train" / "helpful" / "adapter_model.safetensors").stat().st_mtime_ns == helpful
    assert bytes_of(out) == bytes_of(finished(**SMALL).out)


class Stopped(Exception):
    """What ends a run in these tests."""


def test_stopped_again_and_again(finished: Any, bytes_of: Any, write_experiment: Any, tmp_path: Path) -> None:
    """After every second phase, those of merges included."""
    config = load_config(write_experiment(tmp_path, **SMALL), AlignConfig)
    out, stops = tmp_path / "out", 0

    def stop_at(phases: int) -> Callable[[Event], None]:
        left = iter(range(phases))

        def listen(event: Event) -> None:
            if isinstance(event, Started) and next(left, None) is None:
                raise Stopped

        return listen

    while not (out / "done").exists():
        try:
            align(config, out, device="cpu", listener=stop_at(2))
        except Stopped:
            stops += 1
    assert stops > 5
    assert bytes_of(out) == bytes_of(finished(**SMALL).out)


def test_a_moved_folder_continues(finished: Any, bytes_of: Any, write_experiment: Any, tmp_path: Path) -> None:
    out, moved = tmp_path / "out", tmp_path / "elsewhere" / "moved"
    shutil.copytree(finished(**SMALL).out, out)
    (out / "done").unlink()
    shutil.rmtree(out / "merged")
    moved.parent.mkdir()
    out.rename(moved)
    align(load_config(write_experiment(tmp_path, **SMALL), AlignConfig), moved, device="cpu")
    assert bytes_of(moved).keys() == bytes_of(finished(**SMALL).out).keys()
    assert torch.equal(*(tensors(o, "ties")["model.norm.weight"] for o in (moved, finished(**SMALL).out)))


def test_trained_models_serve_other_merges(finished: Any, write_experiment: Any, tmp_path: Path) -> None:
    """Copied into a new folder, ``train/`` is not trained again."""
    merges = [{"name": "wide", "method": "linear", "parameters": {"weight.honest": 3, "dtype": "bfloat16"}}]
    config = load_config(write_experiment(tmp_path, **{**SMALL, "merges": merges}), AlignConfig)
    shutil.copytree(finished(**SMALL).out / "train", tmp_path / "out" / "train")
    file = tmp_path / "out" / "train" / "honest" / "adapter_model.safetensors"
    before = file.stat().st_mtime_ns
    align(config, tmp_path / "out", device="cpu")
    assert file.stat().st_mtime_ns == before
    assert tensors(tmp_path / "out", "wide")["model.norm.weight"].dtype == torch.bfloat16


def test_a_finished_experiment_says_so(
    finished: Any, triune: Run, write_experiment: Any, contents: Any, tmp_path: Path
) -> None:
    out = finished(**SMALL).out
    before = contents(out)
    told = triune("align", write_experiment(tmp_path, **SMALL), "-o", out, "--device", "cpu")
    assert told.code == 0, told.err
    assert "this very experiment, finished; nothing to do" in told.err
    assert "| ties |" in told.out
    again = triune("align", write_experiment(tmp_path, **SMALL), "-o", out, "--json", "-q")
    assert json.loads(again.out)["already_done"] is True
    assert again.err == ""
    assert contents(out) == before


def test_another_config_is_refused(finished: Any, triune: Run, write_experiment: Any, tmp_path: Path) -> None:
    out = finished(**SMALL).out
    config = write_experiment(tmp_path, **SMALL)
    told = triune("align", config, "-o", out, "--set", "training.beta=0.3", "--set", "seed=1")
    assert told.code == 2
    assert "seed was 0 there and is 1 now and 1 more settings differ" in told.err
    assert "name another folder" in told.err
    # What changes no result may change: it is what one lowers when memory runs out.
    assert triune("align", config, "-o", out, "--set", "training.device_batch=1", "-q").code == 0


def test_small_batches_of_another_size_are_another_experiment_where_they_change_the_result(
    write_experiment: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def config(**training: Any) -> AlignConfig:
        return load_config(write_experiment(tmp_path, **SMALL | {"training": training}), AlignConfig)

    for settings in ({}, {"sft_weight": 0.2}, {"loss": "aot"}):
        (out / "config.yaml").write_text(write_yaml(_tree(config(**settings))))
        (out / "lock.json").write_text("{}")
        _claim(out, config(**settings, save_steps=7))
        if settings:
            with pytest.raises(UserError, match=r"training\.device_batch was 4 there and is 2 now"):
                _claim(out, config(**settings, device_batch=2))
        else:
            _claim(out, config(**settings, device_batch=2))


def test_another_precision_is_refused(
    finished: Any, write_experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a CPU, continued on a GPU: half of the models would be rounded otherwise."""
    out = tmp_path / "out"
    shutil.copytree(finished(**SMALL).out, out)
    (out / "done").unlink()
    monkeypatch.setattr("triune.align.align.use_bfloat16", lambda *_: True)
    with pytest.raises(UserError, match="was begun with other precision"):
        align(load_config(write_experiment(tmp_path, **SMALL), AlignConfig), out, device="cpu")


def test_other_data_is_refused(finished: Any, write_experiment: Any, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished(**SMALL).out, out)
    (out / "done").unlink()
    other = tmp_path / pairs_file.name
    other.write_text("".join(reversed(pairs_file.read_text().splitlines(keepends=True))))
    config = load_config(write_experiment(tmp_path, **SMALL), AlignConfig)
    content = pairs_file.read_text()
    try:
        pairs_file.write_text(content.replace("soap", "milk"))
        with pytest.raises(UserError, match="was begun with other data"):
            align(config, out, device="cpu")
    finally:
        pairs_file.write_text(content)


def test_a_start_that_was_killed_is_started_again(write_experiment: Any, tmp_path: Path) -> None:
    """What a kill leaves between the lock file and the config, and inside of writing either."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("lock.json", ".lock.json.0123abcd.part", ".config.yaml.0123abcd.part"):
        (out / name).write_text("{}")
    _claim(out, load_config(write_experiment(tmp_path, **SMALL), AlignConfig))


def test_what_is_no_experiment_is_left_alone(triune: Run, write_experiment: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    told = triune("align", write_experiment(tmp_path, **SMALL), "-o", tmp_path / "out")
    assert told.code == 2
    assert "holds something that is no experiment" in told.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["config.yaml", "done"])
def test_files_of_the_same_name_are_somebodys_own(
    triune: Run, write_experiment: Any, tmp_path: Path, name: str
) -> None:
    """A config that somebody wrote by hand is told from the one that an experiment writes, which comes after its lock."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"caf\xe9: 1")
    told = triune("align", write_experiment(tmp_path, **SMALL), "-o", tmp_path / "out")
    assert told.code == 2, told.err
    assert "holds something that is no experiment" in told.err
    assert (tmp_path / "out" / name).read_bytes() == b"caf\xe9: 1"


def test_two_processes_at_once(write_experiment: Any, tmp_path: Path) -> None:
    config = load_config(write_experiment(tmp_path, **SMALL), AlignConfig)

    def second(event: Event) -> None:
        with pytest.raises(UserError, match="Another process"):
            align(config, tmp_path / "out", device="cpu")
        raise Stopped

    with pytest.raises(Stopped):
        align(config, tmp_path / "out", device="cpu", listener=second)


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_cost_and_writes_nothing(triune: Run, write_experiment: Any, tmp_path: Path) -> None:
    config = write_experiment(tmp_path, **STATIC)
    told = triune("align", config, "-o", tmp_path / "out", "--dry-run")
    assert told.code == 0, told.err
    rows = {line.split()[0]: line.split() for line in told.out.splitlines()[1:]}
    assert rows["honest"][1:4] == ["specialist", "base", "8"]
    assert rows["honest"][-1] == "2"  # 8 pairs, 4 a step
    assert rows["r_tsvm"] == ["r_tsvm", "merge", "helpful,", "honest,", "harmless"]
    assert not (tmp_path / "out").exists()
    planned = json.loads(triune("align", config, "-o", tmp_path / "out", "--dry-run", "--json").out)
    assert [p["usage"] and p["usage"]["steps"] for p in planned] == [2] * 5 + [None] * 2


def test_a_plan_knows_what_is_finished(finished: Any, write_experiment: Any, tmp_path: Path) -> None:
    config = load_config(write_experiment(tmp_path, **SMALL), AlignConfig)
    assert all(p.finished for p in plan(config, finished(**SMALL).out, device="cpu"))
    assert not any(p.finished for p in plan(config, tmp_path / "out", device="cpu"))


def test_no_output(triune: Run, write_experiment: Any, tmp_path: Path) -> None:
    told = triune("align", write_experiment(tmp_path, **SMALL))
    assert told.code == 2
    assert "names no output" in told.err
