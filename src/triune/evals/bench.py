"""``triune bench``: all models of a suite measured in one way, and the leaderboard of them.

A method with a grid of settings is merged at every point and measured on the tune half of the rows; only the best point
goes on to the report half, on which all models are compared. Everything may be stopped at any time: the models' folders know
what is done, and merged weights are there only while they are measured.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.engine.cache import FREE
from triune.engine.executors import Executor
from triune.errors import UserError, did_you_mean
from triune.evals import samples, store
from triune.evals.benchmark import BENCHMARKS, GROUPS, HS
from triune.evals.leaderboard import Board, leaderboard
from triune.evals.models import Candidate
from triune.evals.records import as_csv
from triune.evals.result import Result
from triune.evals.rows import Half
from triune.evals.run import Ask, How, Run, benchmarks_of
from triune.evals.statistics import mean, oriented
from triune.evals.suite import BASE, Contestant, Suite, contestants
from triune.evals.tables import markdown
from triune.output.atomic import write_text
from triune.progress import Listener, Noted, silent

TUNING = "tuning.json"
CACHE = ".cache"
"""In the run's folder, the decompositions that the points of one grid share; gone when it is measured."""


@dataclass(frozen=True)
class Tuned:
    """How a method's settings were chosen."""

    chosen: str
    scores: Mapping[str, float]
    """Point -> the metric on the tune half, higher is better."""
    metric: str
    n: int
    """Rows."""


@dataclass(frozen=True)
class Benched:
    """A finished benchmark."""

    out: Path
    board: Board
    tuned: Mapping[str, Tuned]
    """By method; only those with something to choose."""


@dataclass(frozen=True)
class Planned:
    """A model that will be measured."""

    name: str
    kind: str
    half: Half
    """The tune half, where it is one of several settings; else the report half."""
    rows: int
    done: int
    """Answered already, or by then."""
    seconds: float | None
    """What is left, by the speed of the models measured so far; None where there is none."""


def bench(
    suite: Suite,
    out: Path | str,
    *,
    folder: Path | None = None,
    only: Sequence[str] = (),
    keep: bool = False,
    listener: Listener = silent,
    executor: Executor | None = None,
    **machine: Any,
) -> Benched:
    """Measure all models of a suite and compare them.

    Args:
        suite: what to compare; see :class:`triune.evals.suite.Suite`.
        out: the folder of the run. Called again with it, only what is missing is measured.
        folder: where relative paths in the suite start, besides the working directory.
        only: names of models; the others stay as they are. All if not given.
        keep: keep merged weights.
        listener: is told about progress.
        executor: whose machines measure, all models at once, instead of this one; ``machine`` gives their device.
        machine: ``backend`` (hf or vllm), ``device``, ``batch``, as of :class:`triune.evals.run.How`.

    Raises:
        UserError: the suite, a model or the data is wrong.
    """
    made = Bench(suite, Path(out), folder=folder, only=only, listener=listener, executor=executor, **machine)
    return made.run(keep)


class Bench:
    """A suite with everything checked that can be before a model is loaded."""

    def __init__(
        self,
        suite: Suite,
        out: Path,
        *,
        folder: Path | None = None,
        only: Sequence[str] = (),
        listener: Listener = silent,
        executor: Executor | None = None,
        **machine: Any,
    ) -> None:
        everything = contestants(suite, folder)
        names = [line.name for line in everything]
        for name in only:
            if name not in names:
                raise UserError(f"--only {name}: the suite has {', '.join(names)}.{did_you_mean(name, names)}")
        tasks, tune_tasks = benchmarks_of(suite.tasks), benchmarks_of(suite.tune.tasks or suite.tasks)
        here = str(folder / suite.data) if folder and suite.data and (folder / suite.data).is_dir() else suite.data
        how = How(
            tasks=[b.name for b in (*tasks, *tune_tasks)],
            data=here,
            limit=suite.limit,
            allow_code=suite.allow_code,
            seed=suite.seed,
            **machine,
        )
        self.suite, self.listener = suite, listener
        self.measuring = Run(how, out, listener, executor)
        self.lines = [line for line in everything if not only or line.name in only]
        self.others = [line for line in everything if line not in self.lines]
        """Of the suite, and not to be measured now."""
        self.tasks = [b.name for b in tasks if b.name in self.measuring.tasks]
        self.tune_tasks = [b.name for b in tune_tasks if b.name in self.measuring.tasks and b.needs != "judge"]
        for point in (p for line in everything for p in line.points):
            self.measuring.check(point)
        self._say_same([p for line in everything for p in line.points])
        self._check_halves()

    def _say_same(self, points: Sequence[Candidate]) -> None:
        names: dict[str, list[str]] = defaultdict(list)
        for point in points:
            names[point.model.fingerprint].append(point.model.name)
        for same in (s for s in names.values() if len(s) > 1):
            self.listener(Noted(f"{' and '.join(same)} are one and the same model: the leaderboard has it once."))

    def _check_halves(self) -> None:
        """Refuse what would have nothing to choose by, or nothing to tell, in the end."""
        halves: list[tuple[Half, str, list[str]]] = [("report", "tasks", self.tasks)]
        if any(len(line.points) > 1 for line in self.lines):
            halves.append(("tune", "tune", self.tune_tasks))
        for half, place, names in halves:
            scored = [name for name in names if BENCHMARKS[name].needs != "judge"]
            if not scored:
                raise UserError(f"{place}: none of these benchmarks gives a number without a judge. Name others.")
            if not any(self._rows(name, half) for name in scored):
                raise UserError(f"{place}: none of the rows is in the {half} half. Raise the limit.")

    def _rows(self, task: str, half: Half | None) -> list[str]:
        limit = self.suite.tune.limit if half == "tune" else None
        return self.measuring.rows(self.measuring.tasks[task], half, limit)

    # ---- running

    def run(self, keep: bool = False) -> Benched:
        run, best = self.measuring, dict[str, Candidate]()
        with run.locked():
            tuned = _read(run.out)
            if run.executor:
                self._ask(keep)
            for number, line in enumerate(self.lines, 1):
                self.listener(Noted(f"Model {number} of {len(self.lines)}: {line.name}"))
                best[line.name] = line.points[0]
                shutil.rmtree(run.out / CACHE, ignore_errors=True)  # of the model before, or of a run that was killed
                run.cache = run.out / CACHE if share_decompositions(line.points) else None
                if len(line.points) > 1:
                    tuned[line.name] = self._tune(line, keep)
                    best[line.name] = line.point(tuned[line.name].chosen)
                    _write(run.out, tuned)
                run.measure(best[line.name], tasks=self.tasks, half="report", keep=keep)
            shutil.rmtree(run.out / CACHE, ignore_errors=True)
            for line in self.others:  # as an earlier call has left them
                best[line.name] = line.point(tuned[line.name].chosen) if line.name in tuned else line.points[0]
            tuned = {name: tuned[name] for name in best if name in tuned}
            board = self._board({c.model.fingerprint for c in best.values()})
            write_text(run.out / "leaderboard.md", markdown(board) + _tuning(tuned) + self._left_out())
            write_text(run.out / "leaderboard.csv", as_csv(board))
        return Benched(run.out, board, tuned)

    def _ask(self, keep: bool) -> None:
        """Let the executor's machines answer: first all that is known to be asked, then what the chosen settings are."""
        grids = [line for line in self.lines if len(line.points) > 1]
        tune = [Ask(p, self.tune_tasks, "tune", self.suite.tune.limit, keep) for line in grids for p in line.points]
        single = [line.points[0] for line in self.lines if line not in grids]
        self.measuring.ask([*tune, *(Ask(p, self.tasks, "report", None, keep) for p in single)])
        best = [line.point(self._tune(line, keep).chosen) for line in grids]
        self.measuring.ask(Ask(p, self.tasks, "report", None, keep) for p in best)

    def _tune(self, line: Contestant, keep: bool) -> Tuned:
        """Measure all points on the tune half; of equally good ones the first is chosen."""
        metric, limit = self.suite.tune.metric, self.suite.tune.limit
        scores, n = {}, 0
        for point in line.points:
            found = self.measuring.measure(point, tasks=self.tune_tasks, half="tune", limit=limit, keep=keep)
            scores[point.model.name] = round(value(found, metric), 12)
            n = sum(r.n for r in found)
        return Tuned(max(scores, key=lambda name: scores[name]), scores, metric, n)

    def _board(self, shown: Collection[str]) -> Board:
        there = store.read(self.measuring.out)
        found = [r for r in there if r.model.fingerprint in shown and r.benchmark in self.tasks]
        group = self.suite.tasks if isinstance(self.suite.tasks, str) and self.suite.tasks in GROUPS else None
        has_base = any(r.model.name == BASE and r.split == "report" for r in found)
        return leaderboard(found, group=group, split="report", reference=BASE if has_base else None)

    def _left_out(self) -> str:
        titles = " and ".join(b.title for b in self.measuring.left_out)
        told = f"\nLeft out, because they run code that a model wrote: {titles}. `allow_code: true` adds them.\n"
        return told if titles else ""

    # ---- planning

    def plan(self) -> list[Planned]:
        """What :meth:`run` would do. A method with a grid has a line for each point, and one for whichever is best."""
        speed = _speed(self.measuring)
        found = []
        for line in self.lines:
            if len(line.points) == 1:
                found.append(self._planned(line.points[0], line.name, "report", speed))
                continue
            found += [self._planned(point, point.model.name, "tune", speed) for point in line.points]
            found.append(self._planned(None, f"{line.name}: the best", "report", speed))
        return found

    def _planned(self, point: Candidate | None, name: str, half: Half, speed: Mapping[str, float]) -> Planned:
        """Of a model, or of the best of several, which has answered nothing of the report half yet."""
        rows, left, seconds, known = 0, 0, 0.0, True
        for task in self.tune_tasks if half == "tune" else self.tasks:
            ids = self._rows(task, half)
            missing = ids
            if point is not None:
                limit = self.suite.tune.limit if half == "tune" else None
                missing = self.measuring.job(point, self.measuring.tasks[task], half, limit).missing
            rows, left = rows + len(ids), left + len(missing)
            seconds += len(missing) * speed.get(task, 0.0)
            known = known and (task in speed or not missing)
        return Planned(
            name, point.model.kind if point else "merge", half, rows, rows - left, seconds if known else None
        )


def share_decompositions(points: Sequence[Candidate]) -> bool:
    """Whether merges of a grid differ in nothing but weights or scaling; a cache of others would only fill the disk."""

    def rest(parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in parameters.items() if k not in FREE}

    recipes = [p.recipe for p in points if p.recipe]
    return len(recipes) > len({repr((rest(r.parameters), [rest(e.parameters) for e in r.experts])) for r in recipes})


def value(results: Collection[Result], metric: str) -> float:
    """What settings are compared by: the mean of the three Hs, or the lowest of them, of those that were measured."""
    scores = {r.benchmark: oriented(r.estimate, r.higher_is_better) for r in results}
    benchmarks = [BENCHMARKS[name] for name in scores]
    parts = [[b for b in benchmarks if b.h == h] for h in HS] if metric == "balance" else [benchmarks]
    found = [mean(scores, part) for part in parts]
    return min(estimate.value for estimate in found if estimate)


def _speed(run: Run) -> dict[str, float]:
    """Seconds a row, by benchmark: the mean over the models that have answered."""
    seconds: dict[str, float] = defaultdict(float)
    rows: dict[str, int] = defaultdict(int)
    for folder in (p for p in run.out.glob("*") if p.is_dir()):
        for name in run.tasks:
            if answers := samples.read(folder / "samples", name):
                seconds[name] += answers.seconds
                rows[name] += len(answers.samples)
    return {name: seconds[name] / rows[name] for name in rows}


def _tuning(tuned: Mapping[str, Tuned]) -> str:
    """A table of what was chosen, in Markdown."""
    if not tuned:
        return ""
    head = "| method | chosen | of | rows | on the tune half |\n|---|---|---|---|---|\n"
    lines = [
        f"| {name} | {t.chosen} | {len(t.scores)} | {t.n} | "
        + ", ".join(f"{point.removeprefix(name)} {100 * score:.1f}" for point, score in t.scores.items())
        + " |"
        for name, t in tuned.items()
    ]
    return f"\n### Settings\n\n{head}" + "\n".join(lines) + "\n"


def _read(out: Path) -> dict[str, Tuned]:
    path = out / TUNING
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Tuned(**record) for name, record in there.items()}


def _write(out: Path, tuned: Mapping[str, Tuned]) -> None:
    write_text(out / TUNING, json.dumps({name: vars(t) for name, t in tuned.items()}, indent=1) + "\n")
