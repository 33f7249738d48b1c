"""Toy models to merge, and the program to merge them with: in a process of its own, or in this one for speed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file

from triune.testing import perturbed, toy_llama, write_checkpoint

# A shell that runs the tests in the background has them ignore Ctrl-C, and the programs that they start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROGRAM = (sys.executable, "-c", "from triune.cli.main import run; run()")


@dataclass(frozen=True)
class Outcome:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


class Run(Protocol):
    """The program as a function of its arguments."""

    def __call__(self, *args: str | Path) -> Outcome: ...


@dataclass(frozen=True)
class Models:
    """A base and three experts on disk, and their tensors."""

    root: Path
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    """By folder: base, helpful, honest, harmless."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(n for n in self.tensors if n != "base")

    @property
    def flags(self) -> tuple[str, ...]:
        experts = [part for name in self.names for part in ("--expert", f"{name}={self.root / name}")]
        return ("--base", str(self.root / "base"), *experts)

    def stack(self, tensor: str) -> list[torch.Tensor]:
        return [self.tensors[n][tensor] for n in self.names]


@dataclass(frozen=True)
class Case:
    """A method with settings under which each of its steps does something."""

    method: str
    parameters: Mapping[str, Any]

    @property
    def flags(self) -> tuple[str, ...]:
        settings = [part for key, value in self.parameters.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        return ("--method", self.method, *settings)

    @property
    def semantics(self) -> str | None:
        return self.parameters.get("semantics")

    @property
    def whole_model(self) -> bool:
        """Whether its statistics are of all tensors together."""
        return self.method in ("ties", "dare_ties") and self.semantics == "paper"

    def __str__(self) -> str:
        return "-".join(filter(None, (self.method, self.semantics, "rows" * ("filter_wise" in self.parameters))))


_PRUNED = {"weight": [0.5, 1.0, 1.5], "density": 0.5}
_SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"weight": [1.0, 2.0, 0.5]},
    "rewarded_soup": {"weight": [0.2, 0.3, 0.5]},
    "model_stock": {},
    "task_arithmetic": {"weight": [0.5, 1.0, 0.25], "lambda": 0.7},
    "ties": {"weight": [0.5, 1.0, 1.5], "density": 0.3},
    "dare_linear": _PRUNED,
    "dare_ties": _PRUNED,
    "della_linear": {**_PRUNED, "epsilon": 0.2},
    "della": {**_PRUNED, "epsilon": 0.2},
    "breadcrumbs": {**_PRUNED, "gamma": 0.05},
    "breadcrumbs_ties": {**_PRUNED, "gamma": 0.05},
    "tsvm": {},
    "r_tsvm": {},
}
_TWO_SEMANTICS = ("model_stock", "ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs")
_TWO_SEMANTICS += ("breadcrumbs_ties",)
CASES = [Case(m, s) for m, s in _SETTINGS.items() if m not in _TWO_SEMANTICS]
CASES += [Case(m, {**_SETTINGS[m], "semantics": way}) for m in _TWO_SEMANTICS for way in ("mergekit", "paper")]
CASES.append(Case("model_stock", {"filter_wise": True}))


def per_expert(case: Case, names: Sequence[str]) -> tuple[str, ...]:
    """The case's flags, with lists as one setting for each expert: a plain list is a gradient along the layers."""
    flags = ["--method", case.method]
    for key, value in case.parameters.items():
        each = zip(names, value, strict=True) if isinstance(value, list) else ()
        flags += [part for name, v in each for part in ("--set", f"{key}.{name}={v}")]
        if not isinstance(value, list):
            flags += ["--set", f"{key}={json.dumps(value)}"]
    return tuple(flags)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the thirteen methods, in both semantics where there are two."""
    found: Case = request.param
    return found


@pytest.fixture
def flags_of(models: Models) -> Any:
    """A case's flags for the toy's experts."""
    return lambda case, names=models.names: per_expert(case, names)


def make_models(root: Path, **settings: Any) -> Models:
    """A toy Llama and three experts near it."""
    base = toy_llama(root / "base", **settings)
    config = json.loads((root / "base" / "config.json").read_text())
    tensors = {"base": base}
    for seed, name in enumerate(("helpful", "honest", "harmless"), 1):
        tensors[name] = perturbed(base, seed)
        write_checkpoint(root / name, tensors[name], config)
    return Models(root, tensors)


@pytest.fixture(scope="session")
def make_toy() -> Any:
    """Make a toy of another size."""
    return make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The toy that most tests merge. Read it, never write it."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def own_models(tmp_path: Path) -> Models:
    """The same toy, to be damaged."""
    return make_models(tmp_path / "models")


@pytest.fixture(scope="session")
def write() -> Any:
    """Write tensors as a model with the configuration of another folder, changed as wished."""

    def build(folder: Path, tensors: Mapping[str, torch.Tensor], like: Path | None = None, **config: Any) -> Path:
        known = json.loads((like / "config.json").read_text()) if like else {"model_type": "llama"}
        write_checkpoint(folder, tensors, {**known, **config})
        return folder

    return build


@pytest.fixture(scope="session")
def write_adapter() -> Any:
    """Write a LoRA adapter as PEFT does, for these weights; returns its deltas."""

    def build(
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        *,
        seed: int,
        rank: int = 2,
        base: str = "base",
        scale: float = 0.05,
        **config: Any,
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        factors, deltas = {}, {}
        for name, (out, into) in shapes.items():
            a = torch.randn(rank, into, generator=generator) * scale
            b = torch.randn(out, rank, generator=generator) * scale
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            deltas[name] = 2.0 * b @ a
        folder.mkdir(parents=True)
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": sorted({n.removesuffix(".weight").rpartition(".")[2] for n in shapes}),
            **config,
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return deltas

    return build


@pytest.fixture
def triune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program in this process."""
    from triune.cli.main import run

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")

    def call(*args: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["triune", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            run()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def program() -> Any:
    """The program in a process of its own: its command line and environment, for subprocess."""

    def call(*args: str | Path, cwd: Path | None = None) -> Outcome:
        done = subprocess.run(
            [*PROGRAM, *map(str, args)], capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def start() -> Any:
    """The program in a process of its own that the test may stop."""

    def call(*args: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    return call


def environment() -> dict[str, str]:
    """Ours, without the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "400", "TERMINAL_WIDTH": "400"}


@pytest.fixture(scope="session")
def contents() -> Any:
    """Every file under a folder and the hash of its bytes."""

    def read(folder: Path) -> dict[str, str]:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    return read


@pytest.fixture(scope="session")
def load() -> Any:
    """All tensors of a folder, from all of its shards."""

    def read(folder: Path) -> dict[str, torch.Tensor]:
        return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}

    return read


# --- a cluster ----------------------------------------------------------------------------------------------------

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "local_fs_capacity_threshold": 1.0,  # results may go to a disk that is nearly full
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A real Ray cluster on this machine: the head and one node more, a core each."""
    ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'triune[cluster]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(
            initialize_head=True, head_node_args={**SMALL, "include_dashboard": False, "_system_config": SYSTEM}
        )
        made.add_node(**SMALL)
        # Programs in this process find it connected, which spares each new workers.
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def on_cluster(cluster: Any) -> tuple[str, ...]:
    return ("--executor", "ray", "--address", str(cluster.address))


@pytest.fixture
def add_node(cluster: Any) -> Callable[[], Any]:
    """Give the cluster a node more, to be killed."""

    def add() -> Any:
        node = cluster.add_node(**SMALL)
        cluster.wait_for_nodes()
        return node

    return add
