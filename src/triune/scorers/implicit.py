"""Rewards without a reward model: what preference optimisation made of the specialists.

A model trained by DPO *is* a reward model (Rafailov et al. 2023, arXiv 2305.18290, eq. 5): up to a term of the prompt
alone, which cancels between two answers, ``r_d(x, y) = beta * (log pi_d(y | x) - log pi_base(y | x))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from triune.checkpoint.ref import resolve_reference
from triune.data.pairs import Pair
from triune.data.tokens import load_encoder
from triune.engine.executors import Executor
from triune.progress import Listener, silent
from triune.scorers.devices import Devices, find_devices
from triune.scorers.logprobs import Elsewhere, cached_log_probs, load, resolve_base


def score(
    pairs: Sequence[Pair],
    *,
    base: str,
    specialists: Mapping[str, str],
    beta: float = 0.1,
    max_length: int = 1024,
    journal: Path | None = None,
    folder: Path | None = None,
    devices: Devices | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    listener: Listener = silent,
) -> list[Pair]:
    """The pairs with one reward column a specialist, named by its dimension.

    Args:
        base: reference of the model that all specialists were trained from.
        specialists: dimension -> reference of an adapter on the base, or of a full model of its shapes.
        beta: the same as in training, so that rewards of different runs compare.
        max_length: longer answers are scored as far as they fit; pairs whose prompt alone is longer get reward 0 twice.
        journal: a folder for finished scores, so that a killed run continues.
        folder: where relative references start, besides the working directory.
        executor: whose machines score, instead of this one; ``device`` is theirs: cpu or cuda.

    Cost: one forward pass over all pairs for the base and for each specialist.
    """
    devices = devices or find_devices()
    fit = load_encoder(base, folder).fit(pairs, max_length)
    loaded = Elsewhere(executor, resolve_base(base, folder), device) if executor else load(base, devices.device, folder)

    def scored(version: Path | None, name: str) -> list[tuple[float, float]]:
        found = cached_log_probs(
            loaded, version, fit.pairs, name=f"score-{name}", cache=journal, devices=devices, listener=listener
        )
        return [(chosen, rejected) for chosen, rejected in found.tolist()]

    reference = scored(None, "base")
    rewards: dict[str, dict[str, tuple[float, float]]] = {pair.id: {} for pair in pairs}
    for dimension, text in specialists.items():
        ref = resolve_reference(text, folder)
        ref.fetch()
        for pair in pairs:
            rewards[pair.id][dimension] = (0.0, 0.0)
        for encoded, new, old in zip(fit.pairs, scored(ref.adapter or ref.folder, dimension), reference, strict=True):
            rewards[encoded.pair.id][dimension] = (beta * (new[0] - old[0]), beta * (new[1] - old[1]))
    return [replace(pair, rewards={**pair.rewards, **rewards[pair.id]}) for pair in pairs]
