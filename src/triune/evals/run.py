"""Models measured on benchmarks, into a folder that may be stopped at any time, judged later and read by anyone.

``RUN/results.db`` is the store, ``RUN/MODEL/model.json`` says who the model is, ``RUN/MODEL/samples/`` what it answered, and
``RUN/MODEL/results.json`` the same numbers in lm-eval's form. The samples are the truth: the others follow from them.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any

from triune.engine.executors import Executor, ExecutorFailed
from triune.engine.merge import merge
from triune.errors import UserError, did_you_mean
from triune.evals import outcomes, samples, store
from triune.evals.backends import Backend, make
from triune.evals.benchmark import BENCHMARKS, GROUPS, Benchmark
from triune.evals.harness import PREFIX, Task, load, require_lm_eval
from triune.evals.models import Candidate, Weights, check_names, find, served, with_kinds
from triune.evals.result import Result
from triune.evals.rows import HUB, MINI, Half, half_of, source
from triune.evals.samples import Answers
from triune.progress import Advanced, Finished, Listener, Noted, Started, silent
from triune.scorers.memory import memory_advice

DEFAULT = "triune_3h_offline"
MERGED = "merged"
"""Where in a model's folder the weights are that a recipe makes."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How models are measured: the same for all of a run."""

    tasks: str | Sequence[str] = DEFAULT
    """Groups and benchmarks: a list, or a text with commas."""
    data: str | None = None
    """A folder of rows, or ``hub``; see :mod:`triune.evals.rows`."""
    limit: int | None = None
    """Rows of each benchmark; all if not given."""
    allow_code: bool = False
    """Whether code that a model wrote may run, in the sandbox."""
    backend: str = "hf"
    device: str = "auto"
    batch: int | None = None
    """Rows at a time; by their length and the memory if not given."""
    seed: int = 0
    url: str | None = None
    """Of an OpenAI-compatible endpoint."""


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    out: Path | str | None = None,
    names: Sequence[str] = (),
    keep: bool = False,
    listener: Listener = silent,
    **how: Any,
) -> list[Result]:
    """Measure models on the benchmarks of helpfulness, honesty and harmlessness.

    Args:
        models: references, or recipes (``.yaml``) of merges, which are made for the occasion.
        out: the folder of the run. Called again with it, only what is missing is measured. None keeps nothing.
        names: what the models are called in tables, one each; made from the references if not given.
        keep: keep merged weights.
        listener: is told about progress.
        how: the fields of :class:`How`: ``tasks``, ``data``, ``limit``, ``allow_code``, ``backend``, ``device``, ``batch``,
            ``seed``, ``url``.

    Returns:
        The results as they are in the store: each for the rows of the half ``tune``, of the half ``report``, and ``all``.

    Raises:
        UserError: a model, a benchmark, the data or a setting is wrong.
    """
    texts = [str(m) for m in ([models] if isinstance(models, str | Path) else models)]
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as folder:
        run = Run(How(**how), Path(folder), listener)
        candidates = run.candidates(texts, names)
        with run.locked():
            return [result for c in candidates for result in run.measure(c, keep=keep)]


def benchmarks_of(tasks: str | Sequence[str]) -> list[Benchmark]:
    """The benchmarks that a text or list of names and groups means, each once.

    >>> [b.name for b in benchmarks_of("arc_easy,triune_gsm8k")]
    ['arc_easy', 'gsm8k']
    """
    words = [w.strip() for w in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    found: dict[str, Benchmark] = {}
    for word in filter(None, words):
        names = GROUPS.get(word, (word.removeprefix(PREFIX),))
        if names[0] not in BENCHMARKS:
            known = (*GROUPS, *BENCHMARKS)
            raise UserError(
                f"There is no benchmark or group {word!r}; there are {', '.join(known)}.{did_you_mean(word, known)}"
            )
        found |= {name: BENCHMARKS[name] for name in names}
    if not found:
        raise UserError("--tasks names no benchmark. Give names or groups with commas between them.")
    return list(found.values())


@dataclass(frozen=True)
class Job:
    """A benchmark for a model."""

    task: Task
    facts: dict[str, Any]
    """All that decides the answers."""
    ids: Sequence[str]
    """The rows to answer."""
    answers: Answers | None
    """What is answered already, perhaps to other rows, too."""

    @cached_property
    def missing(self) -> list[str]:
        there = {s["id"] for s in self.answers.samples} if self.answers else set()
        return [i for i in self.ids if i not in there]


@dataclass(frozen=True)
class Ask:
    """A model and what it is asked: a job for any machine that sees the run's folder and the models."""

    candidate: Candidate
    tasks: Sequence[str]
    half: Half | None = None
    limit: int | None = None
    keep: bool = False
    """Keep merged weights."""
    traffic: int = 0
    """Answers that are missing."""
    nbytes: int = 0
    """Not declared: it has its machine, or its GPU, for itself."""


class Run:
    """All that the models of a run share, checked and loaded.

    Args:
        executor: whose machines answer what :meth:`ask` asks.

    Raises:
        UserError: a benchmark, the data or a setting is wrong; so far nothing is written.
    """

    def __init__(self, how: How, out: Path, listener: Listener = silent, executor: Executor | None = None) -> None:
        for flag, value in (("--limit", how.limit), ("--batch", how.batch)):
            if value is not None and value < 1:
                raise UserError(f"{flag} must be at least 1, got {value}.")
        wanted = benchmarks_of(how.tasks)
        require_lm_eval()
        self.how, self.out, self.listener, self.executor = how, out, listener, executor
        self.backend: Backend = make(
            how.backend, device=how.device, batch=how.batch, seed=how.seed, url=how.url, remote=executor is not None
        )
        self.cache: Path | None = None
        """Where merges with other weights or another scaling share their decompositions."""
        self.left_out = [b for b in wanted if b.needs == "code" and not how.allow_code]
        """They run code that a model wrote, and that was not allowed."""
        self.tasks = {t.benchmark.name: t for t in load([b for b in wanted if b not in self.left_out], how.data)}
        folder = source(how.data)
        self.data = outcomes.BUILT_IN if folder == MINI else folder.absolute().name if folder else HUB
        self._say()
        self._check_endpoint()

    def _say(self) -> None:
        if self.left_out:
            titles = " and ".join(b.title for b in self.left_out)
            self.listener(
                Noted(f"Left out: {titles}, which run code that a model wrote. --allow-code runs it in a sandbox.")
            )
        if not self.tasks:
            raise UserError("Nothing is left to measure. Add --allow-code, or name other --tasks.")
        if self.data == outcomes.BUILT_IN:
            self.listener(Noted("A smoke test: without --data there are only a few rows of triune's own."))

    def _check_endpoint(self) -> None:
        if self.backend.chat_only and (bare := [n for n, t in self.tasks.items() if t.likelihood or not t.chat]):
            raise UserError(
                f"{self.how.url} takes conversations only, and {', '.join(bare)} ask how likely bare text is. Leave them "
                "out with --tasks, or name the endpoint's /v1/completions."
            )

    def candidates(self, texts: Sequence[str], names: Sequence[str] = ()) -> list[Candidate]:
        """The models that these texts name."""
        if not texts:
            raise UserError("There is no model to measure. Name a folder, a hub id, demo:base, or a recipe.")
        if names and len(names) != len(texts):
            raise UserError(f"--name is given {len(names)} times for {len(texts)} models. Give one for each, or none.")
        pairs = zip(texts, names or [""] * len(texts), strict=True)
        url = self.how.url
        found = with_kinds(served(text, url, name=name) if url else find(text, name=name) for text, name in pairs)
        check_names(found, "Give one --name for each model.")
        for candidate in found:
            self.check(candidate)
        return found

    def check(self, candidate: Candidate) -> None:
        """Refuse a model that cannot answer the tasks, before any is asked."""
        chats = [name for name, task in self.tasks.items() if task.chat]
        if candidate.weights and chats and not candidate.weights.has_chat_template:
            raise UserError(
                f"{candidate.reference} has no chat template, and {', '.join(chats)} are conversations. Put the template "
                "that it was trained with into its folder, or leave them out with --tasks."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time in the run's folder."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = (self.out / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}. Name another folder with -o.") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"Another process is measuring in {self.out}. Wait for it, or name another folder."
                ) from None
            try:
                yield
            finally:
                if [p.name for p in self.out.iterdir()] == [".lock"]:  # nothing came of it
                    (self.out / ".lock").unlink()
                    self.out.rmdir()

    def rows(self, task: Task, half: Half | None = None, limit: int | None = None) -> list[str]:
        """The ids of the rows to run: the first ones, and of these the first of a half."""
        ids = list(task.docs)[: self.how.limit]
        return [i for i in ids if half in (None, half_of(i))][:limit]

    # ---- measuring

    def measure(
        self,
        candidate: Candidate,
        *,
        tasks: Sequence[str] = (),
        half: Half | None = None,
        limit: int | None = None,
        keep: bool = False,
    ) -> list[Result]:
        """Let a model answer what it has not answered yet, and put its results into the store.

        Args:
            tasks: of this run's; all if not given.
            half: only rows of this half, and the result of it alone.
            limit: rows of each benchmark, besides the run's own limit.
            keep: keep merged weights.
        """
        folder = self.out / candidate.folder
        results = []
        for job, answers in self.answers(Ask(candidate, tasks, half, limit, keep)):
            settings = {**answers.settings, "limit": self.how.limit, "half": half}
            answers = replace(answers.only(job.ids), settings=settings)
            outcomes.write_results(folder, candidate.model, job.task, answers)
            found = outcomes.results(candidate.model, job.task, answers)
            store.add(self.out, found)
            results += found
        return results

    def answers(self, ask: Ask) -> Iterator[tuple[Job, Answers]]:
        """Let a model answer what it has not answered yet, benchmark by benchmark, each written down when it is whole."""
        jobs = self._jobs(ask)
        with self._lent(ask.candidate) if any(job.missing for job in jobs) else nullcontext() as lm:
            for job in jobs:
                answers = self._answer(ask.candidate, job, lm) if job.missing else job.answers
                assert answers is not None
                yield job, answers
        if not ask.keep:
            shutil.rmtree(self.out / ask.candidate.folder / MERGED, ignore_errors=True)

    def ask(self, asks: Iterable[Ask]) -> None:
        """Let the executor's machines answer what is missing, all models at once: :meth:`measure` finds it done."""
        assert self.executor is not None
        asks = [replace(a, traffic=sum(j.task.requests(j.missing) for j in self._jobs(a))) for a in asks]
        todo = [a for a in asks if a.traffic]
        if not todo:
            return

        def done(ask: Ask, told: tuple[dict[str, Answers], list[Noted]]) -> None:
            for name, answers in told[0].items():  # once more: this machine's view of a network folder may be old
                samples.write(self.out / ask.candidate.folder / "samples", name, answers)
            for note in told[1]:
                self.listener(note)
            self.listener(Advanced(ask.traffic, ask.candidate.model.name))

        folder = source(
            self.how.data
        )  # TRIUNE_DATA is of this machine, and the built-in rows are a part of each triune
        how = replace(self.how, data=None if folder == MINI else str(folder or HUB))
        work = partial(_answer_there, how=how, out=self.out.absolute(), versions=outcomes.versions())
        self.listener(Started(f"{len(todo)} models", sum(a.traffic for a in todo), unit="answers"))
        try:
            self.executor.run(todo, work, done)
        except ExecutorFailed as error:
            raise UserError(f"{error} Then run the same command again: what is finished is kept.") from None
        self.listener(Finished("models"))

    def _jobs(self, ask: Ask) -> list[Job]:
        jobs = [self.job(ask.candidate, self.tasks[name], ask.half, ask.limit) for name in ask.tasks or self.tasks]
        return [job for job in jobs if job.ids]  # of a few rows, perhaps none is in the half

    def job(self, candidate: Candidate, task: Task, half: Half | None = None, limit: int | None = None) -> Job:
        """What there is to do, and what is done already."""
        facts = {
            "model": candidate.model.fingerprint,
            **task.facts,
            "backend": self.backend.name,
            "dtype": self.backend.dtype,
            "seed": self.how.seed,
        }
        answers = samples.read(self.out / candidate.folder / "samples", task.benchmark.name)
        if answers and (difference := samples.changed(answers.facts, facts)):
            what = f"{task.benchmark.title} of {candidate.model.name}"
            self.listener(Noted(f"{what} is measured again: {difference}."))
            answers = None
        return Job(task, facts, self.rows(task, half, limit), answers)

    @contextmanager
    def _lent(self, candidate: Candidate) -> Iterator[Any]:
        """The model, ready to answer; merged first if there is only its recipe."""
        folder, weights = self.out / candidate.folder, candidate.weights
        if outcomes.read_model(folder).get("fingerprint") != candidate.model.fingerprint:
            shutil.rmtree(folder / MERGED, ignore_errors=True)  # of another recipe, whose run was killed
        if candidate.recipe is not None:
            outcomes.write_model(folder, candidate)
            made = merge(candidate.recipe, folder / MERGED, gate=False, listener=self.listener, cache=self.cache)
            lora = candidate.recipe.output == "lora"
            weights = Weights(made.plan.template.checkpoint.folder, made.out) if lora else Weights(made.out)
            self.check(replace(candidate, weights=weights))
        with self.backend.opened(candidate, weights) as lm:
            outcomes.write_model(folder, candidate)
            yield lm

    def _answer(self, candidate: Candidate, job: Job, lm: Any) -> Answers:
        """The answers to all rows of a job, those that are there already among them, written down."""
        task, before = job.task, job.answers
        title = f"{task.benchmark.title} of {candidate.model.name}"
        reads = getattr(lm, "max_length", None)
        if reads is not None and task.answer_tokens >= reads:
            raise UserError(
                f"{title}: the answers may take {task.answer_tokens} tokens, and the model reads only {reads}. Leave the "
                "benchmark out with --tasks."
            )
        start, cut = monotonic(), getattr(lm, "cut", 0)
        count = task.requests(job.missing)
        what = title if count == len(job.missing) else f"{title}, requests"  # one for each choice, or each turn
        self.listener(Started(what, count, unit="answers"))
        with memory_advice(f"Out of memory at {title}", "Give a smaller --batch, or --device cpu."):
            fresh = task.run(lm, job.missing, self.how.seed, lambda n: self.listener(Advanced(n)))
        self.listener(Finished(title))
        if cut := getattr(lm, "cut", 0) - cut:
            self.listener(
                Noted(f"{title}: {cut} prompts are longer than the {reads} tokens that the model reads and were cut.")
            )
        by_id = {s["id"]: s for s in (*(before.samples if before else ()), *fresh)}
        answers = Answers(
            facts=job.facts,
            samples=[by_id[i] for i in task.docs if i in by_id],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(monotonic() - start + (before.seconds if before else 0), 2),
            settings={
                "backend": self.backend.name,
                "device": outcomes.hardware(getattr(self.backend, "device", "")),
                "dtype": self.backend.dtype,
                "batch": self.how.batch or "auto",
                "shots": job.facts["shots"],
                "chat_template": _template(lm) if task.chat else None,
                "data": self.data,
                "cut": cut + (before.settings["cut"] if before else 0),
                "versions": outcomes.versions(),
            },
            first_prompt=_tokens(lm, fresh[0].get("sent") or fresh[0]["prompt"]),
        )
        samples.write(self.out / candidate.folder / "samples", task.benchmark.name, answers)
        return answers


def _answer_there(
    ask: Ask, lane: object, *, how: How, out: Path, versions: dict[str, str]
) -> tuple[dict[str, Answers], list[Noted]]:
    """What another machine does: the answers by benchmark, and what there is to say about them."""
    if (here := outcomes.versions()) != versions:
        raise ExecutorFailed(
            f"A node has {here}, the machine that started the run {versions}. Install the same on all."
        )
    run, notes = Run(how, out), list[Noted]()
    run.listener = lambda event: notes.append(event) if isinstance(event, Noted) else None
    return {job.task.benchmark.name: answers for job, answers in run.answers(ask)}, notes


def _template(lm: Any) -> str:
    """A digest of the chat template; empty where an endpoint keeps it to itself."""
    text = getattr(getattr(lm, "tokenizer", None), "chat_template", None)
    return hashlib.sha256(str(text).encode()).hexdigest()[:16] if text else ""


def _tokens(lm: Any, prompt: str) -> str:
    """What the model reads, where its tokenizer is here."""
    return " ".join(map(str, lm.tok_encode(prompt))) if getattr(lm, "tokenizer", None) else ""
