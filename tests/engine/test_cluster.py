"""A real Ray cluster of two nodes on this machine writes the bytes that threads write, whoever dies meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch

import triune as api
from triune.engine.inputs import Lane
from triune.engine.job import Job
from triune.engine.plan import make_plan
from triune.errors import Interrupted, UserError
from triune.progress import Advanced, Event, Finished, Started

if TYPE_CHECKING:
    from conftest import Models, Run

ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'triune[cluster]'")
pytestmark = pytest.mark.slow

METHODS = {
    "elementwise": ("--method", "ties", "--set", "density=0.3"),
    "random": ("--method", "dare_linear", "--set", "density=0.5", "--set", "seed=7"),
    "spectral": ("--method", "tsvm"),
    "whole-model": ("--method", "dare_ties", "--set", "density=0.5", "--set", "semantics=paper"),
}


@pytest.fixture(scope="module")
def larger(make_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A hundred tensors, so that there is a middle to die in."""
    made: Models = make_toy(tmp_path_factory.mktemp("larger"), layers=11)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_the_same_bytes(
    name: str, on_cluster: tuple[str, ...], larger: Models, triune: Run, contents: Any, tmp_path: Path
) -> None:
    """Card and lock file are compared, too, hence the same name for both folders."""
    command = ("merge", *larger.flags, *METHODS[name], "--shard-size", "50kB")
    local, remote = tmp_path / "local" / "out", tmp_path / "ray" / "out"
    assert triune(*command, local).code == 0
    told = triune(*command, *on_cluster, remote)
    assert told.code == 0, told.err
    assert sum(f.endswith(".safetensors") for f in contents(local)) > 2
    assert contents(remote) == contents(local)


def test_adapters_stay_adapters(
    on_cluster: tuple[str, ...], models: Models, write_adapter: Any, triune: Run, contents: Any, tmp_path: Path
) -> None:
    """Parts of an adapter are files of their own. Paths are relative: workers start elsewhere."""
    shapes = {n: tuple(t.shape) for n, t in models.tensors["base"].items() if "proj" in n}
    for seed, name in enumerate(("a", "b")):
        write_adapter(tmp_path / name, shapes, seed=seed, base=str(models.root / "base"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        command = ("merge", "--base", models.root / "base", "-e", "a=a", "-e", "b=b", "--no-gate")
        command += ("--method", "tsvm", "--set", "output=lora")
        assert triune(*command, "local/out").code == 0
        told = triune(*command, *on_cluster, "ray/out")
    assert told.code == 0, told.err
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def recipe_of(models: Models) -> api.Recipe:
    experts = [f"{name}={models.root / name}" for name in models.names]
    return api.recipe_from_flags(
        base=str(models.root / "base"), experts=experts, method="ties", settings=["density=0.3"]
    )


@pytest.fixture
def executor(cluster: Any, tmp_path: Path) -> Iterator[Any]:
    from triune.engine.executors.ray import RayExecutor

    with RayExecutor(tmp_path / "ray" / "out", cluster.address) as made:
        (tmp_path / "ray" / "out" / ".triune").mkdir(parents=True)
        yield made


def test_progress(executor: Any, models: Models, tmp_path: Path) -> None:
    """The bar gets the events of a local merge, and they add up to the same bytes."""
    seen: dict[str, list[Event]] = {"local": [], "ray": []}
    for name, runs in (("local", None), ("ray", executor)):
        api.merge(recipe_of(models), tmp_path / name / "out", executor=runs, gate=False, listener=seen[name].append)
    assert sorted(map(repr, seen["ray"])) == sorted(map(repr, seen["local"]))
    assert [type(e) for e in (seen["ray"][0], seen["ray"][-1])] == [Started, Finished]


# --- deaths -------------------------------------------------------------------------------------------------------


def noted(job: Job, lane: Lane, *, folder: Path, doomed: str = "") -> str:
    """A job that leaves a note of its node when it starts; on the doomed node it does not end."""
    node = str(ray.get_runtime_context().get_node_id())
    (folder / f"{job.index}-{node}").touch()
    time.sleep(600 if node == doomed else 0.05)
    return node


def test_jobs_of_a_dead_node_run_elsewhere(
    executor: Any, cluster: Any, add_node: Any, larger: Models, tmp_path: Path
) -> None:
    """One node dies in the middle of its work: every job ends once, and some began twice."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
    jobs, notes = make_plan(recipe_of(larger)).jobs, tmp_path / "notes"
    notes.mkdir()
    doomed = add_node()
    ended: list[tuple[int, str]] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not any(notes.glob(f"*-{doomed.node_id}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        cluster.remove_node(doomed, allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    work = partial(noted, folder=notes, doomed=doomed.node_id)
    executor.run(jobs, work, lambda job, node: ended.append((job.index, node)))
    killer.join()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    begun = [int(note.name.partition("-")[0]) for note in notes.iterdir()]
    assert sorted(index for index, _ in ended) == [j.index for j in jobs]
    assert len(begun) > len(set(begun)) == len(jobs)
    assert doomed.node_id not in {node for _, node in ended}


def test_a_node_dies_during_a_merge(
    executor: Any, cluster: Any, add_node: Any, larger: Models, contents: Any, tmp_path: Path
) -> None:
    doomed = add_node()

    def kill(event: Event) -> None:
        if isinstance(event, Advanced) and doomed in cluster.list_all_nodes():
            cluster.remove_node(doomed, allow_graceful=False)

    api.merge(recipe_of(larger), tmp_path / "local" / "out", gate=False)
    api.merge(recipe_of(larger), tmp_path / "ray" / "out", executor=executor, gate=False, listener=kill)
    assert doomed not in cluster.list_all_nodes()
    assert contents(tmp_path / "ray" / "out") == contents(tmp_path / "local" / "out")


DEATH = """
import os, signal, sys
from triune.engine.journal import Journal
real, left = Journal.add, int(sys.argv.pop(1))

def die(self, done):
    real(self, done)
    if len(self.finished) == left:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = die
from triune.cli.main import run
run()
"""


def test_the_driver_is_killed_and_run_again(
    on_cluster: tuple[str, ...], larger: Models, triune: Run, contents: Any, tmp_path: Path
) -> None:
    command = ("merge", *larger.flags, *METHODS["random"], "--shard-size", "50kB", "--json")
    local, remote = tmp_path / "local" / "out", tmp_path / "ray" / "out"
    assert triune(*command, local).code == 0
    argv = [sys.executable, "-c", DEATH, "40", *map(str, (*command, *on_cluster, remote))]
    assert subprocess.run(argv, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    assert (remote / ".triune" / "journal.jsonl").read_text().count("\n") == 40
    told = triune(*command, *on_cluster, remote)
    assert told.code == 0, told.err
    assert '"resumed": 40' in told.out
    assert contents(remote) == contents(local)


def test_control_c(executor: Any, larger: Models, contents: Any, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    api.merge(recipe_of(larger), tmp_path / "local" / "out", gate=False)
    with pytest.raises(Interrupted, match="Run the same command again"):
        api.merge(recipe_of(larger), tmp_path / "ray" / "out", executor=executor, gate=False, listener=stop)
    assert api.merge(recipe_of(larger), tmp_path / "ray" / "out", executor=executor, gate=False).resumed == 1
    assert contents(tmp_path / "ray" / "out") == contents(tmp_path / "local" / "out")


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_a_node_that_sees_another_folder(
    executor: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the output stood on this machine's own disk: the token is not where the nodes look."""
    monkeypatch.setattr("triune.engine.executors.ray.Place.mark", lambda self: None)
    with pytest.raises(
        UserError, match=r"Node [\d.]+ sees no .*run-\w+\. Put the models and the output folder on a file"
    ):
        api.merge(recipe_of(models), tmp_path / "ray" / "out", executor=executor, gate=False)
    assert not (tmp_path / "ray" / "out").exists()


def test_a_model_that_no_node_sees(executor: Any, own_models: Models, tmp_path: Path) -> None:
    """An earlier run's tensors are kept while the node is put right."""
    out, hidden = tmp_path / "ray" / "out", own_models.root / "honest"

    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        api.merge(recipe_of(own_models), out, executor=executor, gate=False, listener=stop)

    def hide(event: Event) -> None:
        if isinstance(event, Started):
            hidden.rename(tmp_path / "gone")

    with pytest.raises(UserError, match=r"sees no .*honest/model\.safetensors\..*what is finished is kept"):
        api.merge(recipe_of(own_models), out, executor=executor, gate=False, listener=hide)
    (tmp_path / "gone").rename(hidden)
    assert api.merge(recipe_of(own_models), out, executor=executor, gate=False).resumed == 1


def test_a_node_with_other_software(
    executor: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(executor.place, "software", "triune 9.9 torch 9.9")
    with pytest.raises(UserError, match=r"has triune .*, the machine that started the run triune 9\.9 torch 9\.9\."):
        api.merge(recipe_of(models), tmp_path / "ray" / "out", executor=executor, gate=False)


def unknown(jobs: Any, work: Any, place: Any) -> Any:
    """What a node that lacks its module cannot run."""


def test_a_node_without_triune(executor: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of these tests stands for it: nodes cannot import that either."""
    monkeypatch.setattr("triune.engine.executors.ray._run_group", unknown)
    with pytest.raises(UserError, match=r"A node cannot import test_cluster\. Install the same triune in the Python"):
        api.merge(recipe_of(models), tmp_path / "ray" / "out", executor=executor, gate=False)


def test_an_input_that_is_wrong(
    on_cluster: tuple[str, ...], models: Models, write: Any, triune: Run, tmp_path: Path
) -> None:
    """A mistake found on a node reads as one found here."""
    sick = dict(models.tensors["honest"])
    name = "model.layers.0.mlp.up_proj.weight"
    sick[name] = torch.full_like(sick[name], float("nan"))
    write(tmp_path / "sick", sick, models.root / "base")
    flags = ("--base", models.root / "base", "-e", f"well={models.root / 'helpful'}", "-e", f"sick={tmp_path / 'sick'}")
    said = {}
    for where, options in (("local", ()), ("ray", on_cluster)):
        told = triune("merge", *flags, "--method", "ties", *options, tmp_path / where)
        assert told.code == 2
        assert not (tmp_path / where).exists()
        said[where] = told.err
    assert said["ray"] == said["local"]
    assert f"sick: tensor {name} holds NaN or infinity" in said["ray"]


def test_memory_is_shared_out(
    cluster: Any, models: Models, triune: Run, on_cluster: tuple[str, ...], tmp_path: Path
) -> None:
    """Jobs that fill --max-memory together ask for no more than a node offers, and none asks for more than that."""
    from triune.engine.executors.ray import WORKER, RayExecutor

    with RayExecutor(tmp_path, cluster.address, limit=4 << 30) as made:
        assert made.limit == 4 << 30
        assert made.demand(4 << 30) == made.offered
        four = made.demand(1 << 30)
        assert 4 * four >= made.offered
        assert WORKER <= made.demand(0) < four
    told = triune("merge", *models.flags, "--method", "tsvm", *on_cluster, "--max-memory", "1kB", tmp_path / "out")
    assert told.code == 2
    assert "--max-memory 1 kB: merging" in told.err
