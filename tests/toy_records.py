"""What every command of triune leaves behind, small and made up, with hostile names and answers: inputs of reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triune.evals import store
from triune.evals.benchmark import BENCHMARKS
from triune.evals.result import Model, Result, measured

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
TIME = "2025-01-31T12:00:00+00:00"
MODELS = (
    Model("base", "base", "f-base"),
    Model("helpful", "specialist", "f-helpful", "helpful"),
    Model("honest", "specialist", "f-honest", "honest"),
    Model("harmless", "specialist", "f-harmless", "harmless"),
    Model("mix", "mixture", "f-mix"),
    Model(f"r_tsvm{HOSTILE}", "merge", "f-merge"),
)
ROWS = {"arc_easy": (4, 5, 4, 3, 4, 5), "truthfulqa_mc2": (3, 3, 6, 3, 4, 5), "xstest_unsafe": (5, 4, 5, 8, 6, 7)}
"""Benchmark, one of each H -> rows of ten that each model gets right."""


def results() -> list[Result]:
    """All models on three benchmarks, and two settings of a method on the tune half."""
    found = [_one(b, m, ones, "report") for b, each in ROWS.items() for m, ones in zip(MODELS, each, strict=True)]
    for setting, ones in (("0.5", 4), ("1.0", 6)):
        model = Model(f"ties[lambda={setting}]", "merge", f"f-ties-{setting}")
        found += [_one(b, model, ones, "tune") for b in ROWS]
    return found


def _one(benchmark: str, model: Model, ones: int, split: str) -> Result:
    scores = {f"{benchmark}-{i:02d}": float(i < ones) for i in range(10)}
    return measured(replace(BENCHMARKS[benchmark]), model, scores, scorer="exact", split=split, time=TIME)


def write_run(folder: Path) -> Path:
    """A run folder: a store, and samples of two models."""
    folder.mkdir(parents=True)
    store.add(folder / store.NAME, results())
    for model in (MODELS[0], MODELS[-1]):
        own = folder / model.fingerprint
        (own / "samples").mkdir(parents=True)
        _json(own / "model.json", {"name": model.name, "kind": model.kind, "fingerprint": model.fingerprint})
        sample = {"id": "1", "benchmark": "gsm8k", "prompt": [{"role": "user", "content": f"1 + 1? {HOSTILE}"}]}
        sample |= {"answer": f"2\u2028{HOSTILE}", "scores": {"exact_match": 1.0}, "reference": "2"}
        lines = [sample, {**sample, "id": "2", "answer": "x" * 2000}]
        _lines(own / "samples" / "gsm8k.jsonl", lines)
        _lines(
            own / "samples" / "mmlu.jsonl", [{"id": "1", "prompt": "A or B?", "choices": [-1.0, -2.0], "scores": {}}]
        )
    return folder


def write_answers(path: Path) -> Path:
    """Answers as ``triune demo`` keeps them."""
    asked = {"prompt": "Who are you?", "topic": "honest", "answers": {"base": HOSTILE, "merged": "A model."}}
    _json(path, {"schema": "triune-answers/1", "models": ["base", "merged"], "prompts": [asked]})
    return path


def write_training(folder: Path) -> Path:
    """A folder of two trained models."""
    for i, name in enumerate(("honest", "mix")):
        own = folder / name
        own.mkdir(parents=True)
        steps = [
            {"step": s, "loss": 0.7 - 0.05 * s, "reward_margin": 0.1 * s * i, "reward_accuracy": 0.5} for s in (1, 2, 3)
        ]
        _lines(own / "training.jsonl", steps)
        accuracy = {
            "honesty": {"n": 8, "reward": [0.75, 0.41, 0.93], "before": [0.5, 0.2, 0.8], "after": [0.6, 0.3, 0.9]}
        }
        record = {
            "name": name,
            "data": {"dimensions": {"honesty": 8}, "sources": {"a.jsonl": {"licence": "CC0-1.0"}}},
            "training": {"loss": "dpo"},
            "budget": {"steps": 3, "tokens": 1234},
            "accuracy": accuracy,
        }
        _json(own / "triune.training.json", record)
    return folder


def write_experiment(folder: Path) -> Path:
    """A finished continual experiment of two dimensions and two sides."""
    folder.mkdir(parents=True)

    def share(value: float) -> dict[str, Any]:
        return {"n": 8, "reward": [value, max(0.0, value - 0.3), min(1.0, value + 0.2)]}

    def row(step: int, helpful: float, honest: float) -> dict[str, Any]:
        return {
            "step": step,
            "model": f"m/{step}",
            "accuracy": {"helpfulness": share(helpful), "honesty": share(honest)},
        }

    forgotten: Mapping[str, Any] = {"n": 8, "value": 0.25, "best": share(0.75)["reward"], "last": share(0.5)["reward"]}
    summary = {
        "paradigm": "continual",
        "accuracy": {"base": {"honesty": share(0.5)}, "helpful": {"honesty": share(0.625)}},
        "failed_checks": {},
        "stages": {"1": "helpfulness", "2": "honesty"},
        "matrix": {
            "linear": [row(1, 0.75, 0.5), row(2, 0.625, 0.75)],
            "sequential": [row(1, 0.75, 0.5), row(2, 0.5, 0.875)],
        },
        "forgetting": {
            "linear": {"helpfulness": {**forgotten, "value": 0.125}},
            "sequential": {"helpfulness": forgotten},
        },
    }
    _json(folder / "summary.json", summary)
    return folder


def write_merge(models: Any, out: Path) -> Path:
    """A real merge of toy models, with a recipe that holds markup."""
    import triune

    text = f"# {HOSTILE}\nmerge_method: task_arithmetic\nbase_model: {models.root / 'base'}\nmodels:\n"
    text += "".join(f"  - {{model: {models.root / name}, parameters: {{weight: 1.0}}}}\n" for name in models.names)
    triune.merge(triune.parse_recipe(text), out, gate=False)
    return out


def write_diagnosis(models: Any, path: Path) -> Path:
    """A real diagnosis of toy models."""
    import triune

    experts = [f"{name}={models.root / name}" for name in models.names]
    recipe = triune.recipe_from_flags(base=str(models.root / "base"), experts=experts)
    triune.diagnose(recipe, path, effects=["r_tsvm", "ties"])
    return path


def write_everything(models: Any, root: Path) -> list[Path]:
    """One of each."""
    store.add(root / "ablation.db", results())
    return [
        write_merge(models, root / "merged"),
        write_diagnosis(models, root / "diagnosis.jsonl"),
        write_run(root / "run"),
        root / "ablation.db",
        write_answers(root / "answers.json"),
        write_training(root / "train"),
        write_experiment(root / "experiment"),
    ]


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
