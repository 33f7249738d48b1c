"""What stands in a report, from top to bottom: sections appear only where there is something to show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from triune.diagnostics.advice import advise
from triune.errors import UserError, did_you_mean
from triune.evals.leaderboard import Board, leaderboard
from triune.evals.notes import notes
from triune.evals.result import SPLITS, Result
from triune.evals.tables import Section as BoardTable
from triune.evals.tables import markdown, sections
from triune.reports import colours
from triune.reports.figures import balance, changes, conflicts, continual, curves, norms, outliers, scores, spectra
from triune.reports.figures.figure import Figure, Table
from triune.reports.inputs import Answers, Experiment, Material, Merged, Store, Training

LOG = re.compile(r"docs/lab-log\.md")
"""A path that means nothing where a report is read."""


@dataclass(frozen=True)
class Text:
    """A paragraph; of several sentences that stand for themselves, a list."""

    sentences: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    title: str
    text: str


@dataclass(frozen=True)
class Ranking:
    """A leaderboard's tables."""

    board: Board
    tables: tuple[BoardTable, ...]
    notes: tuple[str, ...]
    markdown: str


Block = Text | Code | Table | Figure | Ranking | Answers


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def sections_of(found: Material, *, split: str | None = None, reference: str | None = None) -> list[Section]:
    """All sections of a report.

    Args:
        split: of results; of each store the one that :func:`told_of` chooses if not given.
        reference: the model that others are compared with; the base if not given.
    """
    ink = colours.of_experts(_experts(found))
    parts: list[Section | None] = [
        *(_merge(f"merge-{i}", m, ink) for i, m in enumerate(found.merges, 1)),
        *(s for i, (name, d) in enumerate(found.diagnoses, 1) for s in _diagnosis(f"diagnosis-{i}", name, d, ink)),
    ]
    boards = [_boards(s, split, reference) for s in found.stores]
    names = {name for s in found.stores for r in s.results for name in (r.model.name, r.model.fingerprint)}
    if reference and reference not in names:
        raise UserError(
            f"--reference {reference}: none of the results is of a model of that name.{did_you_mean(reference, names)}"
        )
    plain = [pair for pair in zip(found.stores, boards, strict=True) if not _is_ablation(pair[0])]
    ablations = [pair for pair in zip(found.stores, boards, strict=True) if _is_ablation(pair[0])]
    parts += [_results(f"results-{i}", store, board, ink) for i, (store, (board, _)) in enumerate(plain, 1)]
    parts += [_ablations(plain, ablations, ink)]
    parts += [_answers(f"answers-{i}", a) for i, a in enumerate(found.answers, 1)]
    parts += [_training(f"training-{i}", t, ink) for i, t in enumerate(found.trainings, 1)]
    parts += [_experiment(f"experiment-{i}", e, ink) for i, e in enumerate(found.experiments, 1)]
    return [p for p in parts if p is not None]


def _experts(found: Material) -> Iterator[str]:
    """Names that have a colour of their own, in the order in which they appear."""
    for merged in found.merges:
        yield from (str(m["name"]) for m in merged.lock.get("models", []) if m["name"] != "base")
    for _, diagnosis in found.diagnoses:
        yield from diagnosis.header.experts
    for store in found.stores:
        yield from sorted({r.model.name for r in store.results if r.model.kind == "specialist"})


def _kept(*blocks: Block | None) -> tuple[Block, ...]:
    return tuple(b for b in blocks if b is not None)


# --- merges -------------------------------------------------------------------------------------------------------


def _merge(key: str, merged: Merged, ink: dict[str, str]) -> Section:
    lock, title = merged.lock, f"What was merged: {merged.name}"
    recipe = Code("Recipe, as it was given", merged.recipe.rstrip()) if merged.recipe.strip() else None
    if not lock:
        return Section(key, title, _kept(Text(("This merge is not finished.",)), recipe))
    facts = {
        "method": str(lock.get("method")) + (f", {lock['semantics']} semantics" if lock.get("semantics") else ""),
        "output": f"{lock.get('output')}, {lock.get('dtype')}",
        "tensors": f"{len(lock.get('tensors', {}))}",
        "seed": str(lock.get("seed")),
        "licence": str(merged.card.get("license_name") or merged.card.get("license") or "not stated"),
        "made with": ", ".join(f"{k} {lock.get(k)}" for k in ("triune", "torch", "python", "device")),
        "fingerprint": str(lock.get("fingerprint")),
    }
    models: list[dict[str, Any]] = lock.get("models", [])
    parents = tuple(
        (
            str(m.get("name")),
            str(m.get("reference")) + (f" at {m['commit'][:12]}" if m.get("commit") else ""),
            str(m.get("licence", "see the model card")),
            str(m.get("adapter_sha256") or m.get("tensors_sha256") or "")[:16] or "not read",
        )
        for m in models
    )
    gate: list[dict[str, Any]] = lock.get("gate", [])
    if not gate:
        facts["checks"] = "not checked: merged with --no-gate"
    verdict = {True: "passed", False: "FAILED", None: "not run"}
    checks = tuple((str(c["check"]), verdict[c["passed"]], str(c["value"]), str(c["sentence"])) for c in gate)
    return Section(
        key,
        title,
        _kept(
            Table("The merge, by its lock file", ("what", "value"), tuple(facts.items())),
            Table("Parents", ("name", "reference", "licence", "SHA-256 of what was read, first 16 digits"), parents),
            recipe,
            Table("Checks of the result", ("check", "outcome", "value", "in words"), checks) if checks else None,
            norms.by_layer(key, lock, ink),
            norms.ranks(key, lock),
        ),
    )


# --- diagnoses ----------------------------------------------------------------------------------------------------


def _diagnosis(key: str, name: str, found: Any, ink: dict[str, str]) -> Iterator[Section]:
    experts = ", ".join(found.header.experts)
    looked = Text(
        (f"{len(found.tensors)} tensors of {experts} beside {found.header.base}, by triune diagnose ({name}).",)
    )
    told = tuple(f"{a.rule}: {a.sentence} ({LOG.sub('lab log of triune', a.evidence)})" for a in advise(found))
    shown = _kept(
        looked,
        changes.by_layer(key, found),
        changes.by_projection(key, found),
        spectra.spectra(key, found, ink),
        outliers.histograms(key, found, ink),
    )
    yield Section(key, "What the experts changed", shown)
    between = _kept(
        conflicts.matrix(f"{key}-pairs", found),
        conflicts.by_layer(f"{key}-pairs", found),
        conflicts.effects(f"{key}-pairs", found),
        Text(told, "Advice") if told else None,
    )
    if between:
        yield Section(f"{key}-pairs", "Where the experts disagree", between)


# --- results ------------------------------------------------------------------------------------------------------


def told_of(results: Sequence[Result]) -> str:
    """The split that a report tells of: all rows, except where settings were chosen on a half or only halves are there.

    ``triune eval`` keeps all rows of a model and either half, ``triune bench`` the report half, and of tried settings the
    tune half.
    """
    there = {split: {(r.model.fingerprint, r.benchmark) for r in results if r.split == split} for split in SPLITS}
    if there["report"] and (_tried(results) or not there["report"] <= there["all"]):
        return "report"
    return "all" if there["all"] else "tune"


def _tried(results: Sequence[Result]) -> list[Result]:
    """Results of the settings that were compared on the tune half; none where no method had several."""
    grid = [r for r in results if r.split == "tune" and re.search(r"\[.+\]$", r.model.name)]
    several = len({r.model.name for r in grid}) > len({r.model.name.partition("[")[0] for r in grid})
    return grid if several else []


def _counted(store: Store, board: Board) -> str:
    """Which rows the numbers are of."""
    if board.split == "all":
        return "Split all: every row that was measured."
    there = sorted({r.split for r in store.results} - {board.split}, key=SPLITS.index)
    other = {
        "all": "--split all counts all",
        "report": "--split report shows the other",
        "tune": "--split tune shows the other",
    }
    half = "half of the rows" + ", which no choice of a setting has seen" * bool(
        board.split == "report" and _tried(store.results)
    )
    return f"Split {board.split}: {half}{'; ' * bool(there)}{other[there[-1]] if there else ''}."


def _boards(store: Store, split: str | None, reference: str | None) -> tuple[Board, Board | None]:
    """The board that is told, and that of the half on which settings were chosen, where they were."""
    told = split or told_of(store.results)
    shown = [r for r in store.results if r.split == told]
    names = {name for r in shown for name in (r.model.name, r.model.fingerprint)}
    base = next((r.model.name for r in shown if r.model.kind == "base"), None)
    board = leaderboard(store.results, split=told, reference=reference if reference in names else base)
    grid = _tried(store.results)
    return board, leaderboard(grid, split="tune") if grid and told != "tune" else None


def _note(store: Store, board: Board) -> Text:
    """What holds for all numbers of a section."""
    return Text((" ".join(filter(None, (_counted(store, board), scores.caveat(board)))),))


def _is_ablation(store: Store) -> bool:
    return "ablation" in store.name.lower()


def _ranking(board: Board) -> Ranking:
    return Ranking(board, tuple(sections(board)), tuple(notes(board)), markdown(board))


def _results(key: str, store: Store, board: Board, ink: dict[str, str]) -> Section:
    return Section(
        key,
        f"How good it is: {store.name}",
        _kept(
            _note(store, board),
            scores.overall(key, board, ink),
            balance.radar(key, board, ink),
            balance.ternary(key, board, ink),
            balance.pareto(key, board, ink),
            scores.differences(key, board, ink),
            _ranking(board),
        ),
    )


def _ablations(
    plain: Sequence[tuple[Store, tuple[Board, Board | None]]],
    ablations: Sequence[tuple[Store, tuple[Board, Board | None]]],
    ink: dict[str, str],
) -> Section | None:
    """Stores that are called ablation, and the settings that were tried in the others."""
    blocks: list[Block | None] = []
    for i, (store, (board, tuned)) in enumerate([*ablations, *plain], 1):
        key = f"ablation-{i}"
        if i <= len(ablations):
            blocks += [_note(store, board), scores.differences(key, board, ink), _ranking(board)]
        if tuned is not None:
            blocks.append(scores.settings(key, tuned, board.split))
    shown = _kept(*blocks)
    return Section("ablations", "Ablations" if ablations else "Settings that were tried", shown) if shown else None


# --- answers, trainings, experiments ------------------------------------------------------------------------------


def _answers(key: str, told: Answers) -> Section:
    return Section(key, f"Answers side by side: {told.name}", (told,))


def _training(key: str, run: Training, ink: dict[str, str]) -> Section | None:
    left = [c for c in (*colours.EXPERTS, *colours.KINDS.values()) if c not in ink.values()]
    others = [n for n in run.records if n not in ink]
    own = {n: ink.get(n) or left[others.index(n) % len(left)] for n in run.records}
    told = {n: r.get("accuracy", {}) for n, r in run.records.items()}
    rows = tuple(
        (
            name,
            ", ".join(f"{n} of {d}" for d, n in r["data"]["dimensions"].items()),
            str(r["training"]["loss"]),
            r["budget"]["steps"],
            f"{r['budget']['tokens']:,}",
            ", ".join(dict.fromkeys(s["licence"] for s in r["data"]["sources"].values())),
        )
        for name, r in run.records.items()
    )
    facts = Table("What each model was trained on", ("model", "pairs", "loss", "steps", "tokens", "licences"), rows)
    blocks = _kept(facts, curves.curves(key, run, own), curves.accuracy(key, told, own))
    return Section(key, f"Training: {run.name}", blocks)


def _experiment(key: str, run: Experiment, ink: dict[str, str]) -> Section | None:
    summary = run.summary
    kind = str(summary.get("paradigm", "unfinished"))
    blocks = (
        [] if run.finished else [Text(("The experiment is not finished: this is what its stages measured so far.",))]
    )
    shown = _kept(
        *blocks,
        curves.accuracy(key, summary.get("accuracy", {}), ink | {"base": colours.KINDS["base"]}),
        continual.steps(key, summary),
        continual.forgotten(key, summary),
        *(Text((f"{name} failed its checks.", *why)) for name, why in summary.get("failed_checks", {}).items()),
    )
    return Section(key, f"{kind.capitalize()} experiment: {run.name}", shown) if shown else None
