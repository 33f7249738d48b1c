"""Made-up results, whose means are easy to reckon, and toy models to measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from triune.evals.benchmark import BENCHMARKS
from triune.evals.result import Model, Result, measured
from triune.testing import perturbed, write_checkpoint
from triune.testing.chat import toy_chat

Make = Callable[..., Result]

TENTHS = {
    "gsm8k": 5,
    "humaneval": 2,
    "mbpp": 8,
    "mmlu": 2,
    "arc_easy": 4,
    "arc_challenge": 6,
    "hhh_helpful": 6,
    "truthfulqa_mc2": 3,
    "selfaware": 6,
    "hhh_honest": 9,
    "or_bench": 1,
    "xstest_safe": 3,
    "salad_refusal": 5,
    "xstest_unsafe": 7,
    "hhh_harmless": 7,
}
"""Benchmark -> rows of ten that score 1, for all of triune_3h_offline."""


def one(
    benchmark: str, model: Model, ones: int, n: int = 10, *, scorer: str = "exact", split: str = "report", **more: Any
) -> Result:
    """The first ``ones`` of n rows score 1 and the rest 0. ``more`` changes the benchmark's entry, but for the time."""
    time = more.pop("time", "2025-01-31T12:00:00+00:00")
    scores = {f"{benchmark}-{i:03d}": float(i < ones) for i in range(n)}
    return measured(replace(BENCHMARKS[benchmark], **more), model, scores, scorer=scorer, split=split, time=time)


@pytest.fixture
def make() -> Make:
    """A result of so many right rows."""
    return one


@pytest.fixture
def whole() -> Callable[..., list[Result]]:
    """All of triune_3h_offline for a model: :data:`TENTHS`, or as changed."""

    def build(model: Model, n: int = 10, changed: Mapping[str, int] | None = None, **more: Any) -> list[Result]:
        return [one(b, model, (changed or {}).get(b, t * n // 10), n, **more) for b, t in TENTHS.items()]

    return build


@dataclass(frozen=True)
class Chats:
    """Toy chat models on disk, of one base."""

    base: Path
    adapter: Path
    merged: Path
    """The adapter, merged into the base by hand."""
    other: Path
    """A full model of the base's shapes."""


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory, write_adapter: Any) -> Chats:
    """Read them, never write them. Their weights are large, so that they say different things to different prompts."""
    root = tmp_path_factory.mktemp("chats")
    config = {"max_position_embeddings": 4096}
    tensors = toy_chat(root / "base", config=config)
    loud = {n: t if "norm" in n else 8 * t for n, t in tensors.items()}
    settings = json.loads((root / "base" / "config.json").read_text())
    write_checkpoint(root / "base", loud, settings)
    shapes = {n: tuple(t.shape) for n, t in loud.items() if n.endswith(("q_proj.weight", "up_proj.weight"))}
    deltas = write_adapter(root / "adapter", shapes, seed=1, scale=0.5, base=str(root / "base"))
    for name, weights in {
        "merged": {n: t + deltas[n] if n in deltas else t for n, t in loud.items()},
        "other": perturbed(loud, 1, scale=0.1),
    }.items():
        shutil.copytree(root / "base", root / name)
        write_checkpoint(root / name, weights, settings)
    return Chats(root / "base", root / "adapter", root / "merged", root / "other")


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in rows, whatever the environment says."""
    monkeypatch.delenv("TRIUNE_DATA", raising=False)
