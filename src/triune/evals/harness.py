"""The one place that calls lm-evaluation-harness: our tasks loaded, some of their rows run, and not a word printed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from triune.checkpoint.quiet import quiet
from triune.errors import UserError
from triune.evals.benchmark import Benchmark
from triune.evals.samples import Sample
from triune.evals.tasks import TASKS

PREFIX = "triune_"
"""How a task of lm-eval's is called: this and the benchmark's name."""
KINDS = ("category", "subject", "query_type", "category_1", "type")
"""Columns that say what kind of row it is, the first that is there."""


@dataclass(frozen=True)
class Task:
    """A benchmark, ready to run."""

    benchmark: Benchmark
    inner: Any
    """lm-eval's object."""
    second: Callable[[Mapping[str, str]], Any] | None = None
    """Of a conversation of two turns: from the answers to the first, by row id, to lm-eval's object for the second."""

    @property
    def name(self) -> str:
        return PREFIX + self.benchmark.name

    @property
    def likelihood(self) -> bool:
        """Whether it asks how likely given texts are, instead of for a text."""
        return bool(self.inner.OUTPUT_TYPE == "multiple_choice")

    @property
    def chat(self) -> bool:
        """Whether its prompts are in the model's chat template."""
        from triune.evals.lm_task import Chat

        return isinstance(self.inner, Chat)

    @property
    def scorer(self) -> str:
        if self.likelihood:
            return "likelihood"
        return "tests" if self.benchmark.needs == "code" else "phrases" if self.benchmark.proxy else "exact"

    @cached_property
    def docs(self) -> Mapping[str, dict[str, Any]]:
        """Row id -> row, in the order of the task."""
        return {doc["id"]: doc for doc in self.inner.eval_docs}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What of the task decides a model's answers."""
        rows = [list(self.docs.values()), list(self.inner.dataset["shots"])]
        return {
            "task": self.name,
            "version": self.inner.VERSION,
            "prompt_version": self.benchmark.prompt_version,
            "shots": self.inner.config.num_fewshot,
            "generation": self.inner.config.generation_kwargs,
            "data": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        }

    @property
    def answer_tokens(self) -> int:
        """Tokens that an answer may have; 0 where none is given."""
        return int((self.inner.config.generation_kwargs or {}).get("max_gen_toks", 0))

    def requests(self, ids: Collection[str]) -> int:
        """How much there is to do for these rows, as progress counts it."""
        each = 1 if self.second is None else 2
        return sum(len(self.inner.doc_to_choice(self.docs[i])) if self.likelihood else each for i in ids)

    # ---- running

    def run(self, lm: Any, ids: Collection[str], seed: int, done: Callable[[int], None]) -> list[Sample]:
        """Let a model answer these rows.

        Args:
            lm: any model class of lm-eval.
            done: is called with the number of requests that were answered.
        """
        samples = self._run(self.inner, lm, ids, seed, done)
        if self.second is None:
            return samples
        first = {s["id"]: s["answer"] for s in samples}
        later = self._run(self.second(first), lm, ids, seed, done)  # whose prompts hold the first answers
        return [{**s, "answer": [first[s["id"]], s["answer"]]} for s in later]

    def _run(self, inner: Any, lm: Any, ids: Collection[str], seed: int, done: Callable[[int], None]) -> list[Sample]:
        from lm_eval.evaluator import evaluate

        inner.set_fewshot_seed(seed)
        name, docs = inner.config.task, [doc["id"] for doc in inner.eval_docs]
        wanted = [n for n, i in enumerate(docs) if i in ids]
        with hushed(), _Heard(lm, done) as heard:
            found = evaluate(
                lm=lm,
                task_dict={"tasks": {name: inner}},
                samples=None if len(wanted) == len(docs) else {name: wanted},
                bootstrap_iters=0,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                confirm_run_unsafe_code=True,
            )
        return [self._sample(s, heard) for s in found["samples"][name]]

    def _sample(self, logged: Mapping[str, Any], heard: _Heard) -> Sample:
        doc, requests, answers = logged["doc"], logged["arguments"], [r[0] for r in logged["resps"]]
        sent = getattr(requests[0][0], "prompt", requests[0][0])  # an endpoint's messages come in a wrapper
        sample: Sample = {"id": doc["id"], "benchmark": self.benchmark.name, "prompt": heard.messages.get(sent, sent)}
        if sent in heard.messages:
            sample["sent"] = sent
        if self.likelihood:
            sample["choices"] = [
                {"text": request[1], "log_likelihood": float(ll), "greedy": bool(greedy)}
                for request, (ll, greedy) in zip(requests, answers, strict=True)
            ]
        else:
            sample["answer"] = answers[0]
            if sent in heard.finish:
                sample["finish"] = heard.finish[sent]
        sample["scores"] = {m: float(logged[m]) for m in logged["metrics"]}
        sample["reference"] = doc.get("reference") if logged["target"] == "" else logged["target"]
        if kind := next((doc[k] for k in KINDS if k in doc), None):
            sample["category"] = kind
        return sample

    def rescored(self, sample: Sample) -> Sample:
        """The same answer with the scores that it gets now."""
        choices = [(c["log_likelihood"], c["greedy"]) for c in sample.get("choices", ())]
        with hushed():
            found = self.inner.process_results(self.docs[sample["id"]], choices or [sample["answer"]])
        return {**sample, "scores": {m: float(value) for m, value in found.items()}}

    # ---- lm-eval's words

    def results(self, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
        """The task's part of lm-eval's results, from its samples."""
        from lm_eval.api.metrics import stderr_for_metric

        numbers: dict[str, Any] = {"name": self.name, "alias": self.name, "sample_len": len(samples)}
        for metric, mean in self.inner.aggregation().items():
            values = [s["scores"][metric] for s in samples]
            error = stderr_for_metric(mean, 1)
            numbers[f"{metric},none"] = mean(values)
            numbers[f"{metric}_stderr,none"] = error(values) if error and len(values) > 1 else "N/A"
        with hushed():
            config = json.loads(json.dumps(self.inner.dump_config(), default=str))
        config["metadata"].pop("config_source", None)
        return {
            "results": {self.name: numbers},
            "configs": {self.name: config},
            "versions": {self.name: self.inner.VERSION},
            "n-shot": {self.name: self.inner.config.num_fewshot},
            "higher_is_better": {self.name: dict(self.inner.higher_is_better())},
            "n-samples": {self.name: {"original": len(self.docs), "effective": len(samples)}},
        }


class _Heard:
    """Listens to a model class of lm-eval while it is asked: what goes in and what comes out, as soon as it does."""

    def __init__(self, lm: Any, done: Callable[[int], None]) -> None:
        self.lm, self.done = lm, done
        self.finish: dict[str, str] = {}
        """Prompt as sent -> how its answer ended, where the model class knows."""
        self.messages: dict[str, list[dict[str, str]]] = {}
        """Prompt as sent -> the conversation that it was made of."""

    def __enter__(self) -> _Heard:
        render = self.lm.apply_chat_template

        def rendered(messages: list[dict[str, str]], **how: Any) -> Any:
            sent = render(messages, **how)
            self.messages[getattr(sent, "prompt", sent)] = messages
            return sent

        self.lm.apply_chat_template = rendered
        self.lm.set_cache_hook(self)
        return self

    def __exit__(self, *_: object) -> None:
        del self.lm.apply_chat_template  # the class's own shows again

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """What lm-eval calls as its cache of answers."""
        ends = getattr(self.lm, "ends", None)
        if kind == "generate_until" and ends:
            self.finish[request[0]] = ends.pop(0)
        self.done(1)


def load(benchmarks: Sequence[Benchmark], data: str | None) -> list[Task]:
    """Our tasks for these benchmarks.

    Raises:
        UserError: lm-eval is not installed, or there is something wrong with the rows.
    """
    require_lm_eval()
    return [
        Task(b, _load(PREFIX + b.name, data=data), partial(_second, data) if b.name == "mt_bench" else None)
        for b in benchmarks
    ]


def _load(name: str, **metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager

    with hushed():
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
        return manager.load([name])["tasks"][name]


def _second(data: str | None, said: Mapping[str, str]) -> Any:
    """MT-Bench's second turn, which goes on where these answers ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.jsonl"
        path.write_text(
            "".join(json.dumps({"doc": {"id": i}, "filtered_resps": [answer]}) + "\n" for i, answer in said.items()),
            encoding="utf-8",
        )
        return _load(f"{PREFIX}mt_bench_second", data=data, first_turn=str(path))


def require_lm_eval() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise UserError('This needs lm-eval, which is not installed. Run: pip install "triune[eval]"')


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep lm-eval, transformers and their progress bars quiet: there are a bar and messages of our own."""
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")
    level, start = logger.level, tqdm.__init__

    def disabled(self: Any, *args: Any, **how: Any) -> None:
        start(self, *args, **{**how, "disable": True})

    logger.setLevel(logging.CRITICAL)
    tqdm.__init__ = disabled
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = start
        logger.setLevel(level)
