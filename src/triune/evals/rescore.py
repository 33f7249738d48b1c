"""The same answers, scored again: what a mended grader needs, and no model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from datetime import UTC, datetime

from triune.errors import UserError
from triune.evals import outcomes, samples, store
from triune.evals.result import Model, Result
from triune.evals.run import Run
from triune.progress import Noted


def rescore(run: Run, names: Collection[str] = ()) -> list[Result]:
    """Score all answers in a run's folder again, and replace the results in its store.

    Args:
        run: of the same data; its tasks and its leave to run code count, not its back end.
        names: models, by name or reference; all if not given.

    Raises:
        UserError: the folder has no answers of such a model, or the data has other rows than were answered.
    """
    found: list[Result] = []
    scored = 0
    old = store.read(run.out) if (run.out / store.NAME).exists() else []
    for folder in sorted(p for p in run.out.glob("*") if p.is_dir()):
        record = outcomes.read_model(folder)
        if not record or (names and not {record["name"], record["reference"]} & {*names}):
            continue
        model = Model(**{f.name: record[f.name] for f in fields(Model)})
        for name, task in run.tasks.items():
            answers = samples.read(folder / "samples", name)
            if answers is None or task.benchmark.needs == "judge":
                continue
            if answers.facts["data"] != task.facts["data"]:
                raise UserError(
                    f"{folder}: {name} was answered on other rows than there are now. Give the same --data."
                )
            again = [task.rescored(s) for s in answers.samples]
            changed = sum(new["scores"] != s["scores"] for new, s in zip(again, answers.samples, strict=True))
            if changed:
                run.listener(
                    Noted(f"{task.benchmark.title} of {model.name}: {changed} of {len(again)} scores changed.")
                )
                now = datetime.now(UTC).isoformat(timespec="seconds")
                answers = replace(answers, samples=again, time=now)
                samples.write(folder / "samples", name, answers)
            before = [r for r in old if (r.model.fingerprint, r.benchmark) == (model.fingerprint, name)]
            rows = {i for r in before for i in r.scores}
            last = max(before, key=lambda r: len(r.scores)).settings if before else {"limit": None, "half": None}
            how = {**answers.settings, "limit": last["limit"], "half": last["half"]}
            answers = replace(answers.only(rows) if rows else answers, settings=how)
            outcomes.write_results(folder, model, task, answers)
            found += outcomes.results(model, task, answers)
            scored += 1
    if not scored:
        of = f" of {', '.join(names)}" if names else ""
        raise UserError(f"{run.out} has no answers{of} to these benchmarks. Run without --rescore first.")
    store.add(run.out, found)
    return found
