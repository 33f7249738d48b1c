"""Who merges: triune, the programs it is compared with, each in a virtual environment of its own, and the floor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.models import EXPERTS

HERE = Path(__file__).parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Setting:
    """Where one run takes place."""

    case: Case
    models: Path
    out: Path
    """Does not exist yet."""
    peers: Path
    """Folder of the other programs' environments."""

    def recipe(self, *, adapters: bool = False) -> str:
        """The path of the case's recipe, written beside ``out``."""
        path = self.out.with_suffix(".yaml")
        path.write_text(self.case.recipe(self.models, adapters=adapters))
        return str(path)

    @property
    def full(self) -> list[str]:
        """Folders of the full models, the base first."""
        return [str(self.models / name) for name in ("base", *EXPERTS)]


PEERS = {"mergekit": "mergekit==0.1.5", "fusion_bench": "fusion-bench==0.2.33"}


def program(peers: Path, peer: str, name: str) -> str:
    return str(peers / peer / "bin" / name)


def _triune(at: Setting, adapters: bool = False) -> list[str]:
    recipe = at.recipe(adapters=adapters)
    # The other programs do not check what they have made.
    return [sys.executable, "-m", "triune", "merge", recipe, str(at.out), "--no-gate", "--quiet"]


def _mergekit(at: Setting) -> list[str]:
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [program(at.peers, "mergekit", "mergekit-yaml"), at.recipe(), str(at.out), *options]


def _fusion_bench(at: Setting) -> list[str]:
    script = str(HERE / "fusion_bench_tsvm.py")
    return [program(at.peers, "fusion_bench", "python"), script, *at.full, str(at.out)]


def _floor(at: Setting) -> list[str]:
    return [sys.executable, "-I", "-S", str(HERE / "floor.py"), *at.full, str(at.out)]


TOOLS: dict[str, Callable[[Setting], list[str]]] = {
    "triune": _triune,
    "triune-lora": lambda at: _triune(at, adapters=True),
    "mergekit": _mergekit,
    "fusion_bench": _fusion_bench,
    "floor": _floor,
}


def missing(tools: Iterable[str], peers: Path, *, install: bool) -> dict[str, str]:
    """Why a tool cannot run, by tool. With ``install`` its environment is made first, on the torch that triune runs on."""
    reasons = {}
    for tool in sorted({*tools} & {*PEERS}):
        ready = peers / tool / "ready"
        if install and not ready.exists():
            try:
                make_environment(peers / tool, PEERS[tool])
                ready.touch()
            except subprocess.CalledProcessError as error:
                reasons[tool] = f"{PEERS[tool]} could not be installed (exit code {error.returncode})"
        elif not ready.exists():
            reasons[tool] = f"{PEERS[tool]} is not installed (--install makes an environment for it)"
    return reasons


def make_environment(folder: Path, requirement: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    torch = f"torch=={version('torch').partition('+')[0]}"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, torch, requirement], check=True)
