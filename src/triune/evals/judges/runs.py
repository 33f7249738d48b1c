"""What there is to judge in a run folder, and where its results go.

A run folder is what ``triune eval`` writes: ``RUN/results.db``, and for each model ``RUN/NAME/model.json`` and
``RUN/NAME/samples/BENCHMARK.jsonl``. Replies of judges are kept in ``RUN/NAME/judged/BENCHMARK.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from triune.errors import UserError, did_you_mean
from triune.evals import samples
from triune.evals.benchmark import BENCHMARKS
from triune.evals.judges import RUBRICS, Rubric, pairs
from triune.evals.judges.cache import Cache
from triune.evals.judges.judge import Judged, Pass
from triune.evals.judges.reply import Judge
from triune.evals.judges.samples import Sample, read_samples
from triune.evals.outcomes import BUILT_IN, SMOKE, UNPINNED
from triune.evals.result import SPLITS, Model, Result, measured
from triune.evals.rows import HUB, half_of
from triune.evals.store import NAME

USUAL = ("instruct_open", "halueval_wild", "salad", "or_bench", "mt_bench")
"""What is judged unless benchmarks are named: where a judge is the official way."""

OTHER_FILES: Mapping[str, str] = {"salad": "salad_refusal"}
"""The same answers, logged under another name."""


@dataclass(frozen=True)
class Part:
    """The answers of one model to one benchmark."""

    benchmark: str
    samples: Path
    replies: Path
    model: Model | None = None
    """None for a file that belongs to no run."""
    store: Path | None = None

    @property
    def label(self) -> str:
        return self.model.name if self.model else str(self.samples)


def parts(paths: Sequence[Path], benchmarks: Sequence[str]) -> list[Part]:
    """What these run folders, model folders and sample files hold of the benchmarks, in their order.

    Raises:
        UserError: a path is none of these, or holds nothing of it.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise UserError(f"There is no benchmark {name!r}.{did_you_mean(name, BENCHMARKS)}")
    found: list[Part] = []
    for path in paths:
        if path.is_file():
            found += [part for part in [_file(path)] if part.benchmark in benchmarks]
            continue
        folders = [path] if (path / "model.json").is_file() else sorted(p.parent for p in path.glob("*/model.json"))
        if not folders:
            raise UserError(f"{path}: there is no model.json in it or below. Name a run folder, or a file of samples.")
        found += [part for folder in folders for part in _folder(folder, benchmarks)]
    if not found:
        where, what = ", ".join(map(str, paths)), ", ".join(benchmarks)
        raise UserError(f"{where}: no samples of {what}. Run `triune eval` with these tasks, or name others.")
    return found


def _folder(folder: Path, benchmarks: Sequence[str]) -> list[Part]:
    found = []
    for name in benchmarks:
        for file in (name, OTHER_FILES.get(name, name)):
            logged = folder / "samples" / f"{file}.jsonl"
            if logged.is_file():
                replies = folder / "judged" / f"{name}.jsonl"
                found.append(Part(name, logged, replies, _model(folder / "model.json"), folder.parent / NAME))
                break
    return found


def _file(path: Path) -> Part:
    """A file of samples; in a run folder it is of that run."""
    benchmark = read_samples(path)[0].benchmark
    folder = path.parent.parent
    if path.parent.name == "samples" and (folder / "model.json").is_file():
        replies = folder / "judged" / f"{benchmark}.jsonl"
        return Part(benchmark, path, replies, _model(folder / "model.json"), folder.parent / NAME)
    return Part(benchmark, path, path.with_name(f"{path.stem}.judged.jsonl"))


def _model(path: Path) -> Model:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return Model(**{f.name: row[f.name] for f in fields(Model) if f.name in row})
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not say what model this is ({error}). Run `triune eval` again.") from None


def passes(
    paths: Sequence[Path],
    benchmarks: Sequence[str] | None,
    by: Judge,
    rubrics: Mapping[str, Rubric],
    *,
    reference: str | None = None,
    logprobs: bool = False,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[tuple[Part, Pass]]:
    """All that a judge with these rubrics has to do.

    Args:
        paths: see :func:`parts`.
        benchmarks: by name; those of :data:`USUAL` that the judge can judge and that are there if not given.
        reference: see :func:`rival`.
        logprobs: see :func:`triune.evals.judges.pairs`.
        note: is told what was left out because nobody asked for it by name.

    Raises:
        UserError: there is nothing to do, or the judge cannot judge a benchmark that was named.
    """
    able = {*rubrics, "instruct_open"} if rubrics is RUBRICS else set(rubrics)
    if wrong := [b for b in benchmarks or () if b in BENCHMARKS and b not in able]:
        raise UserError(f"{by.name} cannot judge {wrong[0]}; it can judge {', '.join(sorted(able))}.")
    found = parts(paths, benchmarks or [b for b in USUAL if b in able])
    versus, compare = "", None
    if any(p.benchmark == "instruct_open" for p in found):
        try:
            versus, others = rival(found, reference)
            compare = pairs({s.id: "\n\n".join(s.answers) for s in others}, versus, logprobs=logprobs)
        except UserError as error:
            if benchmarks or reference:
                raise
            note(f"Left out: {error}")
    todo = []
    for part in found:
        rubric = compare if part.benchmark == "instruct_open" else rubrics[part.benchmark]
        if rubric is not None and not (rubric is compare and part.label == versus):
            todo.append((part, Pass(read_samples(part.samples), rubric, by, Cache(part.replies))))
    return todo


def rival(found: Sequence[Part], reference: str | None) -> tuple[str, list[Sample]]:
    """The model that all others' answers are compared with: its name and its samples.

    Args:
        reference: a model's name, or a file of its samples; the only base model among the parts if not given.

    Raises:
        UserError: there is no such model, or more than one.
    """
    mine = [p for p in found if p.benchmark == "instruct_open"]
    if reference and Path(reference).is_file():
        part = _file(Path(reference))
        return part.model.name if part.model else Path(reference).stem, read_samples(Path(reference))
    models = [(p, p.model) for p in mine if p.model]
    chosen = [(p, m) for p, m in models if (m.name == reference if reference else m.kind == "base")]
    if len(chosen) != 1:
        what = f"of the name {reference!r}" if reference else "of the kind base"
        names = ", ".join(m.name for _, m in models) or "none"
        raise UserError(
            f"instruct_open compares with another model's answers, and there are {len(chosen)} models {what}; there are "
            f"{names}. Name one, or a file of its samples, by --reference."
        )
    ((part, model),) = chosen
    return model.name, read_samples(part.samples)


def proxy_of(part: Part, todo: Pass, judged: Judged) -> str:
    """In what way the number is not the official one; empty where it is."""
    answers = samples.read(part.samples.parent, part.samples.stem)
    ways = (
        SMOKE * (answers is not None and answers.settings.get("data") == BUILT_IN),
        todo.rubric.proxy,
        f"of the short answers to {part.samples.stem}" * (part.samples.stem == OTHER_FILES.get(part.benchmark)),
        "answers without a verdict left out" * bool(judged.unparsed or judged.refused),
    )
    return "; ".join(filter(None, ways))


def results_of(part: Part, todo: Pass, judged: Judged, *, time: str) -> list[Result]:
    """The rows for the results store: of all samples and of either half, as ``triune eval`` divides them."""
    assert part.model is not None
    answers = samples.read(part.samples.parent, part.samples.stem)
    how = answers.settings if answers else {}
    benchmark, rubric, judge = BENCHMARKS[part.benchmark], todo.rubric, todo.judge
    revisions = {BUILT_IN: BUILT_IN, HUB: UNPINNED}
    benchmark = replace(
        benchmark,
        proxy=proxy_of(part, todo, judged),
        prompt_version=benchmark.prompt_version + f", judge {rubric.version}" * bool(rubric.version),
        revision=revisions.get(how.get("data", ""), benchmark.revision),
    )
    settings = {
        **how,
        "judge": judge.key,
        "judge_models": list(judged.models),
        "unparsed": len(judged.unparsed),
        "refused": len(judged.refused),
        "tokens_in": judged.usage.tokens_in,
        "tokens_out": judged.usage.tokens_out,
    }
    found = []
    for split in SPLITS:
        scores = {i: s for i, s in judged.scores.items() if split in ("all", half_of(i))}
        if scores and how.get("half") in (None, split):
            scorer = judge.name + rubric.scorer
            seed = answers.facts["seed"] if answers else 0
            found.append(
                measured(
                    *(benchmark, part.model, scores),
                    scorer=scorer,
                    split=split,
                    time=time,
                    seed=seed,
                    settings=settings,
                )
            )
    return found
