"""``triune bench --executor ray`` on a real cluster of two nodes: the numbers of one machine, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import triune as library
from triune.errors import Interrupted
from triune.evals import store
from triune.evals.result import Result
from triune.progress import Advanced, Event

if TYPE_CHECKING:
    from conftest import Chats, Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("built_in")]


@pytest.fixture(scope="module")
def suite(chats: Chats, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a full model, an adapter, and TIES with two densities, on rows of our own."""
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    tree = {
        "base_model": str(chats.base),
        "specialists": {"helpful": str(chats.other), "honest": str(chats.adapter)},
        "models": {"ties": {"method": "ties", "grid": {"density": [0.1, 1.0]}}},
        "tasks": ["arc_easy", "hhh_honest", "hhh_harmless"],
    }
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def local(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of this machine alone."""
    out = tmp_path_factory.mktemp("local") / "run"
    library.bench(library.Suite.model_validate(yaml.safe_load(suite.read_text())), out)
    return out


def numbers(run: Path) -> list[Result]:
    """All that the store holds but for when, how fast and on how many cores."""
    return [replace(r, time="2026-01-01T00:00:00Z", settings={}) for r in store.read(run)]


def texts(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text() for name in ("leaderboard.csv", "leaderboard.md", "tuning.json")}


def test_the_same_numbers(
    suite: Path, local: Path, on_cluster: tuple[str, ...], triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("triune.evals.run.Run._lent", None)  # no model is loaded here
    told = triune("bench", suite, "-o", "run", *on_cluster)
    assert told.code == 0, told.err
    run = tmp_path / "run"
    assert numbers(run) == numbers(local)
    assert texts(run) == texts(local)
    assert not list(run.rglob("*.safetensors"))
    assert not (run / ".triune").exists()
    assert "A smoke test" in told.err
    assert triune("bench", suite, "-o", "run").code == 0  # nothing is left to do
    assert numbers(run) == numbers(local)


def test_a_worker_dies(
    suite: Path, local: Path, on_cluster: tuple[str, ...], triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as soon as a first merge has begun: what it had in hand is measured by another."""
    monkeypatch.chdir(tmp_path)
    killed: list[int] = []

    def kill() -> None:
        deadline = monotonic() + 60
        while not killed and monotonic() < deadline:
            sleep(0.02)
            if any(tmp_path.glob("run/ties*/merged")):
                killed.extend(workers(tmp_path)[:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = Thread(target=kill)
    thread.start()
    told = triune("bench", suite, "-o", "run", *on_cluster)
    thread.join()
    assert told.code == 0, told.err
    assert killed
    assert numbers(tmp_path / "run") == numbers(local)
    assert texts(tmp_path / "run") == texts(local)


def test_stopped_and_continued(suite: Path, local: Path, cluster: Any, tmp_path: Path) -> None:
    """After the first model nothing more is waited for; what it answered is not asked again."""
    from triune.engine.executors.ray import RayExecutor

    checked, run = library.Suite.model_validate(yaml.safe_load(suite.read_text())), tmp_path / "run"
    there: dict[str, int] = {}

    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            there[event.note] = (run / event.note / "samples" / "arc_easy.jsonl").stat().st_ino
            raise KeyboardInterrupt

    with RayExecutor(run, cluster.address, alone=True) as executor:
        with pytest.raises(Interrupted, match="Run the same command again"):
            library.bench(checked, run, executor=executor, listener=stop, device="cpu")
        library.bench(checked, run, executor=executor, device="cpu")
    (name,) = there
    if "[" not in name:  # a tuned model may have been asked the other half since
        assert (run / name / "samples" / "arc_easy.jsonl").stat().st_ino == there[name]
    assert numbers(run) == numbers(local)


def workers(start: Path) -> list[int]:
    """Processes of Ray that work for a run which was started there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").readlink() == start and b"ray::" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_a_mistake_found_on_a_node(
    on_cluster: tuple[str, ...], suite: Path, triune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other software there would give numbers that do not compare."""
    monkeypatch.setattr("triune.evals.outcomes.versions", lambda: {"lm_eval": "9.9"})
    told = triune("bench", suite, "-o", tmp_path / "run", "--only", "base", *on_cluster)
    assert told.code == 2
    assert "the machine that started the run {'lm_eval': '9.9'}. Install the same on all. Then run the same" in told.err


def test_wrong_flags(suite: Path, triune: Run, tmp_path: Path) -> None:
    def told(*flags: str) -> str:
        outcome = triune("bench", suite, "-o", tmp_path / "run", *flags)
        assert outcome.code == 2
        return outcome.err

    assert "--executor must be local or ray, got spark." in told("--executor", "spark")
    assert "--address is of a Ray cluster: add --executor ray" in told("--address", "here:1")
    assert "--executor ray takes --device auto or cpu, got cuda:1." in told("--executor", "ray", "--device", "cuda:1")
    assert not (tmp_path / "run").exists()
