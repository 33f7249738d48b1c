"""On the same rows our tasks ask lm-eval's own questions and give its own scores: GSM8K, MMLU, ARC, TruthfulQA.

lm-eval's definitions are those it ships with. They ask the hub for their rows, and get ours in the shape of the hub. The
model is scripted by row, so that right answers, wrong ones and ones of broken form all occur.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.samplers import FirstNSampler
from lm_eval.tasks import TaskManager

from triune.evals.rows import MINI, Row, rows
from triune.evals.tasks import TASKS

DATA = Path(os.environ.get("TRIUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
THEIRS = Path(lm_eval.tasks.__file__).parent
LETTERS = ["A", "B", "C", "D"]

Asked = dict[str, tuple[list[Any], dict[str, Any]]]
"""Prompt -> what else was sent with it, and the row's scores."""


@pytest.fixture(params=["mini", "slices"])
def data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder: Path = {"mini": MINI, "slices": DATA}[request.param]
    if not (folder / "mmlu.jsonl").exists():
        pytest.skip("the folder of data slices is not here")
    monkeypatch.setattr("datasets.load_dataset", lambda path, name=None, **_: as_on_the_hub(folder, path, name))
    return folder


def as_on_the_hub(folder: Path, path: str, name: str | None) -> dict[str, Dataset]:
    """Our rows under the splits and columns that lm-eval's own tasks expect."""
    if path == "openai/gsm8k":
        splits = {"train": rows("gsm8k_fewshot", folder), "test": rows("gsm8k", folder)}
    elif path == "cais/mmlu":
        splits = {
            split: [row for row in rows(file, folder) if row["subject"] == name]
            for split, file in (("dev", "mmlu_dev"), ("test", "mmlu"))
        }
    elif path == "allenai/ai2_arc":
        test = [arc(row) for row in rows(str(name).lower().replace("-", "_"), folder)]
        splits = {"train": test[:1], "validation": test[:1], "test": test}
    else:
        assert path == "truthfulqa/truthful_qa"
        found = [
            {"question": r["question"], "mc1_targets": r["mc1"], "mc2_targets": r["mc2"]}
            for r in rows("truthfulqa", folder)
        ]
        splits = {"validation": found}
    return {split: Dataset.from_list(found) for split, found in splits.items()}


def arc(row: Row) -> Row:
    labels = "ABCDE"[: len(row["choices"])]
    choices = {"text": row["choices"], "label": list(labels)}
    return {"id": row["id"], "question": row["question"], "choices": choices, "answerKey": labels[row["answer"]]}


class Scripted(LM):  # type: ignore[misc]
    """Likelihoods from a hash of the text, answers by the row's question from the right one and many wrong ones."""

    tokenizer_name = "scripted"

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-1.0 - _share("".join(r.args)) * len(r.args[1]), False) for r in requests]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        raise AssertionError("No benchmark asks for the likelihood of a whole text.")

    def generate_until(self, requests: Any) -> list[str]:
        return [self._answer(r.doc["question"], r.doc["answer"]) for r in requests]

    def _answer(self, question: str, solution: str) -> str:
        number = solution.rpartition("#### ")[2].replace(",", "")
        forms = (
            solution,
            f"#### {number}.",
            f"#### ${number}",
            f"#### {number}\n\nThen 3 are left.",
            f"#### 3\nNo: #### {number}",
            f"It is ${number}, I think.",
            f"It is **{number}**.",
            f"{number}.00",
            f"{int(number):,}." if number.isdigit() else number,
            f"#### -{number}",
            "#### 1,2.3.",
            "I do not know ...",
            "",
        )
        return forms[int(_share(question) * len(forms))]

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages) + str(add_generation_prompt)


def _share(text: str) -> float:
    """From 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def asked(tasks: list[Any], manager: TaskManager, **how: Any) -> Asked:
    result = simple_evaluate(Scripted(), tasks=tasks, task_manager=manager, bootstrap_iters=0, **how)
    scores: dict[str, dict[str, Any]] = defaultdict(dict)
    sent = {}
    for samples in result["samples"].values():
        for sample in samples:
            prompt = sample["arguments"][0][0]
            sent[prompt] = [argument[1] for argument in sample["arguments"]]
            scores[prompt] |= {f"{metric}, {sample['filter']}": sample[metric] for metric in sample["metrics"]}
    assert len(sent) == sum(s["effective"] for s in result["n-samples"].values())  # no two rows had one prompt
    return {prompt: (sent[prompt], scores[prompt]) for prompt in sent}


def ours(name: str, data: Path) -> Asked:
    # With the chat template: tasks of bare text shall not mind.
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"data": str(data)})
    return asked([f"triune_{name}"], manager, apply_chat_template=True)


def theirs(folder: str, *names: str, num_fewshot: int | None = None, **how: Any) -> Asked:
    manager = TaskManager(include_path=THEIRS / folder, include_defaults=False)
    tasks = [manager.load([name])["tasks"][name] for name in names]
    for task in tasks:
        if hasattr(task, "sampler") and task.config.num_fewshot:
            # It draws other examples for each row, by chance; the same five for all shows that the rest is equal.
            task.sampler = FirstNSampler(list(task.fewshot_docs()))
        if num_fewshot:
            task.set_config("num_fewshot", num_fewshot)
    return asked(tasks, manager, **how)


def test_gsm8k(data: Path) -> None:
    found, expected = ours("gsm8k", data), theirs("gsm8k", "gsm8k", apply_chat_template=True, fewshot_as_multiturn=True)
    assert found.keys() == expected.keys()
    by_question = {json.loads(prompt.removesuffix("True"))[-1]["content"]: prompt for prompt in found}
    seen = set()
    for row in rows("gsm8k", data):
        prompt = by_question[f"Question: {row['question']}\nAnswer:"]
        ((settings,), scores), ((their_settings,), their_scores) = found[prompt], expected[prompt]
        assert settings == their_settings | {"max_gen_toks": 256}  # what back ends take where nothing is said
        strict, flexible = their_scores["exact_match, strict-match"], their_scores["exact_match, flexible-extract"]
        if Scripted()._answer(row["question"], row["answer"]).endswith(".00"):
            assert flexible == 0
            flexible = 1  # the one difference: 18.00 is 18
        assert scores == {"exact_match, none": strict, "flexible_match, none": flexible}
        seen.add((strict, flexible))
    assert {(1, 1), (0, 1), (0, 0)} <= seen


def test_mmlu(data: Path) -> None:
    subjects = sorted({row["subject"] for row in rows("mmlu", data)})
    expected = theirs("mmlu/default", *(f"mmlu_{s}" for s in subjects), num_fewshot=5)
    assert ours("mmlu", data) == expected
    assert {scores["acc, none"] for _, scores in expected.values()} == {0, 1}


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc(name: str, data: Path) -> None:
    expected = theirs("arc", name)
    assert ours(name, data) == expected
    assert {scores["acc_norm, none"] for _, scores in expected.values()} == {0, 1}


def test_truthfulqa(data: Path) -> None:
    for name in ("mc1", "mc2"):
        expected = theirs("truthfulqa", f"truthfulqa_{name}")
        found = ours(f"truthfulqa_{name}", data)
        assert {p: sent for p, (sent, _) in found.items()} == {p: sent for p, (sent, _) in expected.items()}
        for prompt, (_, scores) in found.items():
            assert scores[f"{name}, none"] == pytest.approx(expected[prompt][1]["acc, none"])
