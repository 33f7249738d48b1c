"""The mini set, scored on the spot: a smoke test with intervals, no measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.evals.benchmark import members
from triune.evals.harness import Task, load, require_lm_eval
from triune.evals.result import Model, measured
from triune.evals.rows import MINI
from triune.progress import Advanced, Finished, Listener, Started
from triune.studio.versions import Resident, Version

GROUP = "triune_3h_offline"
SHORT = 64
"""Benchmarks whose answers may be longer take minutes on a CPU and are left out."""


def tasks(chat: bool) -> list[Task]:
    """The benchmarks that need neither a judge nor a sandbox nor long answers, on triune's own rows.

    Args:
        chat: whether the model has a chat template, without which there are no conversations.

    Raises:
        UserError: lm-eval is not installed.
    """
    require_lm_eval()
    found = load([b for b in members(GROUP) if b.needs == "none"], str(MINI))
    return [t for t in found if (chat or not t.chat) and t.answer_tokens <= SHORT]


def score(
    resident: Resident, tokenizer: Any, version: Version, chosen: list[Task], listener: Listener
) -> Iterator[dict[str, Any]]:
    """The version's number on each benchmark, as soon as it is known.

    Args:
        listener: is told of every request that was answered; one that raises stops the work.
    """
    from datetime import UTC, datetime

    from triune.evals.lm import FrugalLM

    listener(Started("score", sum(t.requests(list(t.docs)) for t in chosen), unit="answers"))
    (group,) = resident.groups([version])
    model = Model(version.name, "other", version.name)
    for task in chosen:
        with resident.computing(group) as lm_model:
            lm = FrugalLM(lm_model, tokenizer)
            samples = task.run(lm, list(task.docs), 0, lambda n, name=task.name: listener(Advanced(n, name)))  # type: ignore[misc]
        scores = {s["id"]: s["scores"][task.benchmark.metric] for s in samples}
        found = measured(
            task.benchmark, model, scores, scorer=task.scorer, split="all", time=datetime.now(UTC).isoformat()
        )
        yield {
            "benchmark": task.benchmark.name,
            "title": task.benchmark.title,
            "h": task.benchmark.h,
            "metric": found.metric,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "higher_is_better": found.higher_is_better,
        }
    listener(Finished("score"))
