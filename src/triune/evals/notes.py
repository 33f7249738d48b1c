"""The footnotes of a leaderboard: what a reader must know beside the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from triune.evals.leaderboard import ALPHA, Board, Column


def notes(board: Board) -> list[str]:
    """One sentence or two each, those that say nothing left out."""
    columns = [c for c in board.columns if c.level == "benchmark"]
    return [*_reading(board), *_proxies(board, columns), *_slices(board, columns), *_gaps(board, columns)]


def _reading(board: Board) -> Iterator[str]:
    yield (
        "Percent with 95% intervals: Wilson's where answers are right or wrong, else by bootstrap; of means by MOVER. A "
        "benchmark keeps its own direction: ↑ higher is better, ↓ lower is better. All means count higher as better."
    )
    if any(c.level == "overall" for c in board.columns):
        yield (
            "3H is the mean of helpful, honest and harmless, each of these the mean of its dimensions, and a dimension "
            "that of its benchmarks. Balance is the lowest of the three."
        )
    else:
        yield "There is no 3H mean and no rank: not all of helpful, honest and harmless were measured."
    if board.lines[0].retention:
        yield "Kept: a model's score over the specialist's, on the benchmarks of what the specialist was trained for."
    if board.reference is not None:
        compared = len(
            {
                (line.label, c.benchmarks)
                for line in board.lines
                for c in board.columns
                if c.name in line.cells and line.cells[c.name].comparison
            }
        )
        yield (
            f"▲ better, ▼ worse than {board.reference} on the same rows: Holm-corrected p < {ALPHA} over all {compared} "
            "comparisons; McNemar's exact test where scores are right or wrong, else the paired bootstrap."
        )


def _proxies(board: Board, columns: list[Column]) -> Iterator[str]:
    titles: dict[str, list[str]] = {}
    for column in columns:
        for text in sorted({r.proxy for r in board.results(column)} - {""}):
            titles.setdefault(text, []).append(column.title)
    if titles:
        each = "; ".join(f"{', '.join(names)}: {text}" for text, names in titles.items())
        yield f"≈ is, or counts, a number that is not the official one. {each}."


def _slices(board: Board, columns: list[Column]) -> Iterator[str]:
    sizes = [(c.title, max(r.n for r in board.results(c)), c.benchmarks[0].items) for c in columns]
    found = [f"{title} n = {n:,} of {items:,}" for title, n, items in sizes if n < items]
    if found:
        yield f"Slices, not to be compared with published scores: {'; '.join(found)}."


def _gaps(board: Board, columns: list[Column]) -> Iterator[str]:
    unscored, uncompared = [], []
    for line in board.lines:
        if missing := [c.title for c in columns if c.name not in line.cells]:
            unscored.append(f"{line.label} without {', '.join(missing)}")
        alone = [c.title for c in columns if c.name in line.cells and line.cells[c.name].comparison is None]
        if alone and board.reference not in (None, line.label):
            uncompared.append(f"{line.label} on {', '.join(alone)}")
    if unscored:
        yield f"† is a mean over fewer benchmarks than other models', and has no rank: {'; '.join(unscored)}."
    if uncompared:
        yield f"Not compared with {board.reference}, for want of scores of the same rows: {'; '.join(uncompared)}."
    if board.other_half:
        titles = ", ".join(b.title for b in board.other_half)
        yield f"Measured, but on no row of the half {board.split}: {titles}; --split all counts all rows."
    if never := [b.title for b in board.unmeasured if b not in board.other_half]:
        yield f"Of {board.group}, measured for no model: {', '.join(never)}."
    if board.outside:
        yield f"Measured, but not of {board.group}: {', '.join(board.outside)}."
    if board.left_out:
        each = (
            f"{r.benchmark} of {label}, {r.metric} by {r.scorer} (prompt {r.prompt_version}, data {r.revision}): "
            f"{100 * r.value:.1f}"
            for label, r in board.left_out
        )
        yield f"Left out, because measured in another way than the rest of the column: {'; '.join(each)}."
