"""What is merged: each case is one recipe, in mergekit's format, that every tool of the case gets word for word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.models import EXPERTS

WITHOUT_BASE = ("linear",)


@dataclass(frozen=True)
class Case:
    """One row of the table. The first tool is ours, the second is what it is compared with."""

    name: str
    method: str
    tools: tuple[str, ...]
    expert: Mapping[str, float] = field(default_factory=dict)
    """Parameters of each expert."""
    shared: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, models: Path, *, adapters: bool = False) -> str:
        """The recipe as YAML. Of adapters it makes an adapter again."""
        inputs = [f"{models / 'base'}+{models / e}-lora" if adapters else str(models / e) for e in EXPERTS]
        tree: dict[str, Any] = {
            "merge_method": self.method,
            "models": [{"model": path, "parameters": dict(self.expert)} for path in inputs],
            "dtype": "bfloat16",
        }
        if self.method not in WITHOUT_BASE:
            tree["base_model"] = str(models / "base")
        if self.shared:
            tree["parameters"] = dict(self.shared)
        if adapters:
            tree["output"] = "lora"
        return yaml.safe_dump(tree, sort_keys=False)


ELEMENTWISE = ("triune", "mergekit", "floor")
CHANNEL = {"outlier_scope": "channel"}  # entry, the default, cannot stay in factors
CASES = {
    case.name: case
    for case in (
        Case("linear", "linear", ELEMENTWISE, {"weight": 1.0}),
        Case("task_arithmetic", "task_arithmetic", ELEMENTWISE, {"weight": 0.5}),
        Case("ties", "ties", ELEMENTWISE, {"weight": 1.0, "density": 0.2}),
        Case("dare_ties", "dare_ties", ELEMENTWISE, {"weight": 0.5, "density": 0.3}),
        Case("della", "della", ELEMENTWISE, {"weight": 0.5, "density": 0.3, "epsilon": 0.1}),
        Case("breadcrumbs", "breadcrumbs", ELEMENTWISE, {"weight": 0.5, "density": 0.9, "gamma": 0.01}),
        Case("tsvm", "tsvm", ("triune", "fusion_bench", "floor")),
        Case("tsvm of adapters", "tsvm", ("triune-lora", "triune")),
        Case("r_tsvm of adapters", "r_tsvm", ("triune-lora", "triune"), shared=CHANNEL),
    )
}
