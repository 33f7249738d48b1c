"""From answers to numbers: results for the store, and lm-eval's ``results.json``."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triune import __version__
from triune.engine.cores import available_cores
from triune.evals.harness import Task
from triune.evals.models import Candidate
from triune.evals.result import SPLITS, Model, Result, measured
from triune.evals.rows import HUB, half_of
from triune.evals.samples import Answers
from triune.output.atomic import write_text

BUILT_IN = "built-in smoke test"
"""What the data of a run without any is called."""
UNPINNED = "hub, not pinned"
"""The revision of rows that the hub gave: whatever is there today, and not the copy that the table names."""
SMOKE = "smoke test on triune's own rows, not the benchmark's"


def versions() -> dict[str, str]:
    return {"triune": __version__, **{name: version(name) for name in ("lm_eval", "transformers", "torch")}}


def hardware(device: str) -> str:
    """What the model ran on, for people."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {available_cores()} cores" if device == "cpu" else device


def results(model: Model, task: Task, answers: Answers) -> list[Result]:
    """The results for the store: of all rows and of either half, or of the one half that was asked for.

    None where a judge gives the scores.
    """
    benchmark = task.benchmark
    if answers.settings["data"] == BUILT_IN:
        own = f"; {benchmark.proxy}" if benchmark.proxy else ""
        benchmark = replace(benchmark, proxy=SMOKE + own, revision=BUILT_IN)
    elif answers.settings["data"] == HUB:
        benchmark = replace(benchmark, revision=UNPINNED)
    scores = answers.scores(benchmark.metric)
    found = []
    for split in SPLITS:
        part = {i: s for i, s in scores.items() if split in ("all", half_of(i))}
        if part and answers.settings["half"] in (None, split):
            found.append(
                measured(
                    benchmark,
                    model,
                    part,
                    scorer=task.scorer,
                    split=split,
                    time=answers.time,
                    seed=answers.facts["seed"],
                    settings={**answers.settings, "data_sha256": answers.facts["data"], "seconds": answers.seconds},
                )
            )
    return found


def write_results(folder: Path, model: Model, task: Task, answers: Answers) -> None:
    """Put a task's part into ``results.json``, which has the shape of lm-eval's, without the samples."""
    path = folder / "results.json"
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, part in task.results(answers.samples).items():
        whole[key] = dict(sorted({**whole.get(key, {}), **part}.items()))
    how = answers.settings
    whole |= {
        "group_subtasks": {},
        "config": {
            "model": how["backend"],
            "model_args": {"pretrained": model.name, "dtype": how["dtype"]},
            "batch_size": how["batch"],
            "device": how["device"],
            "limit": how["limit"],
            "fewshot_seed": answers.facts["seed"],
        },
        "date": datetime.fromisoformat(answers.time).timestamp(),
        "lm_eval_version": how["versions"]["lm_eval"],
        "transformers_version": how["versions"]["transformers"],
    }
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def write_model(folder: Path, candidate: Candidate) -> None:
    """``model.json``: who the model is, for a second pass over its samples."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = candidate.recipe.text if candidate.recipe else None
    facts = {**asdict(candidate.model), "reference": candidate.reference, "recipe": recipe}
    write_text(folder / "model.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def read_model(folder: Path) -> dict[str, Any]:
    """What :func:`write_model` wrote; empty where there is nothing."""
    path = folder / "model.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
