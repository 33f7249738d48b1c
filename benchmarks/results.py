"""Results on disk, and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.cases import CASES
from benchmarks.process import Cost


@dataclass(frozen=True)
class Run:
    """One process."""

    tool: str
    turn: int
    cost: Cost
    load: float
    """Of the machine, just before."""


@dataclass
class Measured:
    """All runs of one case, which took turns on one machine."""

    size: str
    case: str
    machine: dict[str, str]
    date: str
    runs: list[Run] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Why a tool did not run."""

    def of(self, tool: str) -> list[Run]:
        """Its runs that ended well."""
        return [r for r in self.runs if r.tool == tool and r.cost.code == 0]

    def wall(self, tool: str) -> float | None:
        return median([r.cost.wall for r in self.of(tool)]) if self.of(tool) else None

    def cpu(self, tool: str) -> float | None:
        return median([r.cost.cpu for r in self.of(tool)]) if self.of(tool) else None

    def peak(self, tool: str) -> float | None:
        return median([r.cost.peak for r in self.of(tool)]) if self.of(tool) else None


def save(folder: Path, measured: Measured) -> None:
    """As ``SIZE/CASE.json``."""
    path = folder / measured.size / f"{measured.case.replace(' ', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(measured), indent=1) + "\n")


def load(folder: Path) -> list[Measured]:
    """Everything saved there, in the order of the table of cases."""
    found = []
    for path in folder.glob("*/*.json"):
        tree = json.loads(path.read_text())
        runs = [Run(**{**r, "cost": Cost(**r["cost"])}) for r in tree.pop("runs")]
        found.append(Measured(**tree, runs=runs))
    return sorted(found, key=lambda m: (m.size, list(CASES).index(m.case)))


HEADER = (
    "case", "against", "triune s", "peer s", "floor s", "peer / triune", "triune / floor",
    "triune CPU s", "peer CPU s", "triune GB", "peer GB", "peer / triune",
)  # fmt: skip


def row(m: Measured) -> tuple[str, ...]:
    """Medians, with their range and number where a tool ran more than once."""
    ours, peer, *_ = CASES[m.case].tools
    return (
        m.case,
        peer,
        _walls(m, ours),
        _walls(m, peer),
        _walls(m, "floor") if "floor" in CASES[m.case].tools else "",
        _ratio(m.wall(peer), m.wall(ours)),
        _ratio(m.wall(ours), m.wall("floor")),
        _number(m.cpu(ours)),
        _number(m.cpu(peer)),
        _number(m.peak(ours), 1e9),
        _number(m.peak(peer), 1e9),
        _ratio(m.peak(peer), m.peak(ours)),
    )


def table(measured: Sequence[Measured]) -> str:
    """A Markdown table, padded so that it reads well in a terminal, too."""
    several = len({m.size for m in measured}) > 1
    rows = [
        HEADER,
        *((f"{first} ({m.size})" if several else first, *rest) for m in measured for first, *rest in [row(m)]),
    ]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) + " |" for r in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _walls(m: Measured, tool: str) -> str:
    walls = [r.cost.wall for r in m.of(tool)]
    if not walls:
        return "failed" if any(r.tool == tool for r in m.runs) else "not run"
    if len(walls) == 1:
        return f"{walls[0]:.3g}"
    return f"{median(walls):.3g} [{min(walls):.3g}, {max(walls):.3g}] n={len(walls)}"


def _number(value: float | None, unit: float = 1.0) -> str:
    return f"{value / unit:.3g}" if value is not None else ""


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2g}x" if a is not None and b is not None else ""
