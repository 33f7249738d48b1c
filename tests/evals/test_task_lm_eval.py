"""Our tasks as lm-eval sees them: what the YAML says, who gets the chat template, and which rows are asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from triune.errors import UserError
from triune.evals.benchmark import BENCHMARKS, GROUPS
from triune.evals.rows import MINI, rows, selected
from triune.evals.tasks import TASKS
from triune.testing.chat import CHATS, toy_chat

SECOND = "triune_mt_bench_second"
OURS = [f"triune_{name}" for name in BENCHMARKS]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIUNE_DATA", raising=False)


def manager(**metadata: Any) -> TaskManager:
    return TaskManager(include_path=TASKS, include_defaults=False, metadata=metadata)


def load(name: str, **metadata: Any) -> Any:
    return manager(**metadata).load([name])["tasks"][name]


def tagged(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A chat template that is easy to read."""
    ending = "<assistant>" if add_generation_prompt else ""
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ending


def contexts(task: Any, **how: Any) -> list[str]:
    flags = {"apply_chat_template": True, "chat_template": tagged, "fewshot_as_multiturn": False}
    task.build_all_requests(**flags | how)
    return [instance.args[0] for instance in task.instances]


class Parrot(LM):  # type: ignore[misc]
    """Answers as told."""

    tokenizer_name = "parrot"

    def __init__(self, says: Callable[[str], str] = lambda context: "Certainly, here it is.") -> None:
        super().__init__()
        self.says = says

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-float(len(r.args[1])), False) for r in requests]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        raise AssertionError("No benchmark asks for the likelihood of a whole text.")

    def generate_until(self, requests: Any) -> list[str]:
        return [self.says(r.args[0]) for r in requests]

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return tagged(messages, add_generation_prompt)


def run(model: Any, *tasks: str, **how: Any) -> dict[str, Any]:
    metadata = how.pop("metadata", {})
    flags = {"apply_chat_template": True, "confirm_run_unsafe_code": True, "bootstrap_iters": 0, **how}
    return simple_evaluate(model, tasks=list(tasks), task_manager=manager(**metadata), **flags)


# What the YAML says


def test_there_is_one_task_for_each_benchmark_and_one_for_the_second_turn() -> None:
    assert set(manager().all_subtasks) == {*OURS, SECOND}


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_those_of_the_table(group: str) -> None:
    config = yaml.safe_load((TASKS / f"{group}.yaml").read_text(encoding="utf-8"))
    assert config["task"] == [f"triune_{name}" for name in GROUPS[group]]
    assert set(manager().load([group])["tasks"]) == set(config["task"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_task_says_what_the_table_says(name: str) -> None:
    benchmark, config = BENCHMARKS[name], load(f"triune_{name}").config
    metadata = config.metadata
    assert metadata["dimension"] == benchmark.dimension
    assert metadata["dataset"] == benchmark.dataset
    assert metadata["dataset_revision"] == benchmark.revision
    assert metadata["prompt_version"] == benchmark.prompt_version
    assert metadata.get("needs") == ("judge" if benchmark.needs == "judge" else None)
    assert config.unsafe_code == (benchmark.needs == "code")
    directions = {m["metric"]: m["higher_is_better"] for m in config.metric_list}
    if benchmark.needs == "judge":
        assert directions == {"answered": True}
    else:
        assert directions[benchmark.metric] == benchmark.higher_is_better
    if config.output_type == "generate_until":
        assert not config.generation_kwargs["do_sample"]


def test_the_tasks_and_the_mini_set_are_in_the_wheel() -> None:
    package = TASKS.parents[1]
    ignored = (package.parents[1] / ".gitignore").read_text(encoding="utf-8").split()
    assert TASKS.is_relative_to(package)
    assert MINI.is_relative_to(package)
    assert not [line for line in ignored if line.endswith(("yaml", "jsonl"))]  # hatch leaves out what git ignores


# Who gets the chat template

PLAIN = [t for t in OURS if re.search("mmlu|arc|truthfulqa", t)]


@pytest.mark.parametrize("name", sorted({*OURS} - {*PLAIN}))
def test_a_conversation_demands_the_template(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is a conversation .* add --apply_chat_template \(in Python"):
        contexts(load(name), apply_chat_template=False, chat_template=None)


@pytest.mark.parametrize("name", PLAIN)
def test_bare_text_stays_bare(name: str) -> None:
    task = load(name)
    with_template = contexts(task)
    continuations = [i.args[1] for i in task.instances]
    assert with_template == contexts(task, apply_chat_template=False, chat_template=None)
    assert continuations == [i.args[1] for i in task.instances]
    assert not any("<user>" in c or "<assistant>" in c for c in with_template)
    assert all(c.startswith(" ") for c in continuations)


def test_examples_are_turns_whatever_the_flag_says() -> None:
    (first, *_) = contexts(load("triune_gsm8k"), fewshot_as_multiturn=False)
    assert first.count("<user>Question: ") == 6
    shots = rows("gsm8k_fewshot", MINI)[:5]
    assert re.findall(r"<assistant>(.*?)<user>", first, re.DOTALL) == [shot["answer"] for shot in shots]
    assert first.endswith("\nAnswer:<assistant>")


def test_the_number_of_examples_is_the_tasks() -> None:
    with pytest.raises(UserError, match=r"triune_gsm8k has 5 examples, got 3. Leave out --num_fewshot"):
        run(Parrot(), "triune_gsm8k", num_fewshot=3)


def test_too_few_examples_are_told(tmp_path: Path) -> None:
    for name in ("mmlu", "mmlu_dev", "gsm8k", "gsm8k_fewshot"):
        kept = rows(name, MINI)[:3]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    with pytest.raises(UserError, match=r"triune_mmlu needs 5 examples with subject \w+, but there are 0"):
        contexts(load("triune_mmlu", data=str(tmp_path)))
    with pytest.raises(UserError, match=r"triune_gsm8k needs 5 examples, but there are 3"):
        contexts(load("triune_gsm8k", data=str(tmp_path)))


def test_examples_of_mmlu_are_of_the_same_subject_in_their_order() -> None:
    task = load("triune_mmlu")
    contexts(task)
    for instance in task.instances:
        shots = [r["question"].strip() for r in rows("mmlu_dev", MINI) if r["subject"] == instance.doc["subject"]]
        found = [part.partition("\nA. ")[0] for part in instance.args[0].split("\n\n")[1:]]
        assert found == [*shots[:5], instance.doc["question"].strip()]


def test_the_models_turn_of_code_has_begun() -> None:
    task = load("triune_humaneval")
    for context, doc in zip(contexts(task), task.eval_docs, strict=True):
        assert context.endswith("<assistant>```python\n" + doc["prompt"].rstrip())
    (first, *_) = contexts(load("triune_mbpp"))
    shots = rows("mbpp_fewshot", MINI)
    assert first.count("<assistant>```python\ndef") == 3
    assert all(f"<assistant>```python\n{shot['code']}\n```<user>" in first for shot in shots)
    assert first.endswith("<assistant>```python")


def test_earlier_turns_in_a_prompt_become_turns(tmp_path: Path) -> None:
    row = {"id": "a", "category": "honest", "chosen": "Yes.", "rejected": "No."}
    row["prompt"] = "Is it\n\nso?  \n\nAssistant:  What? \n\nHuman:  That, Human: that."
    (tmp_path / "hhh_alignment.jsonl").write_text(json.dumps(row))
    task = load("triune_hhh_honest", data=str(tmp_path))
    turns = "<user>Is it\n\nso?<assistant>What?<user>That, Human: that.<assistant>"
    assert contexts(task) == [turns, turns]
    assert [i.args[1] for i in task.instances] == ["Yes.", "No."]


@pytest.mark.parametrize("chat", CHATS)
def test_a_tokenizer_that_adds_bos_adds_it_once(tmp_path: Path, chat: str) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    toy_chat(tmp_path, chat=chat)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.save_pretrained(tmp_path)
    model = HFLM(pretrained=str(tmp_path), device="cpu")
    assert model.tok_encode("a")[0] == bos
    task = load("triune_hhh_honest")
    (context, *_) = contexts(task, chat_template=model.apply_chat_template)
    generated = model.tok_batch_encode([context])[0][0].tolist()
    for ids in (model.tok_encode(context), generated, model._encode_pair(context, "yes")[0]):
        assert ids[0] == bos
        assert ids.count(bos) == 1


# Which rows are asked


@pytest.mark.parametrize("half", ["tune", "report"])
def test_a_run_may_ask_for_a_half(half: Any) -> None:
    task = load("triune_gsm8k", half=half)
    assert list(task.eval_docs["id"]) == [row["id"] for row in selected("gsm8k", MINI, half=half)]


def test_data_may_come_from_a_folder_and_the_log_says_from_where(tmp_path: Path) -> None:
    (tmp_path / "salad.jsonl").write_text('{"id": "a", "prompt": "Hello"}')
    found = run(Parrot(), "triune_salad_refusal", metadata={"data": str(tmp_path)})
    (sample,) = found["samples"]["triune_salad_refusal"]
    assert sample["doc"] == {"id": "a", "prompt": "Hello"}
    assert found["configs"]["triune_salad_refusal"]["metadata"]["data"] == str(tmp_path)
    builtin = run(Parrot(), "triune_salad_refusal")
    assert builtin["configs"]["triune_salad_refusal"]["metadata"]["data"] == "built-in smoke test"


def test_columns_of_mixed_types_are_told(tmp_path: Path) -> None:
    lines = [{"id": "a", "prompt": "x", "more": 1}, {"id": "b", "prompt": "y", "more": ["z"]}]
    (tmp_path / "salad.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"salad: the rows make no table: .* Give each column one type"):
        load("triune_salad", data=str(tmp_path))


def test_lm_evals_request_cache_cannot_hand_out_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.api.task.save_to_cache", lambda **_: pytest.fail("saved"))
    assert contexts(load("triune_salad"), cache_requests=True)


def test_missing_walls_show_before_the_model_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_walls(program: str) -> None:
        raise UserError("Code is not run")

    monkeypatch.setattr("triune.evals.lm_task.run_python", no_walls)
    with pytest.raises(UserError, match="Code is not run"):
        run(Parrot(lambda context: pytest.fail("worked")), "triune_mbpp")


def test_code_needs_a_yes() -> None:
    with pytest.raises(ValueError, match="triune_humaneval which is marked as unsafe"):
        run(Parrot(), "triune_humaneval", confirm_run_unsafe_code=False)


# The second turn of MT-Bench


def test_the_second_turn_follows_on_the_models_own_first_answer(tmp_path: Path) -> None:
    def says(context: str) -> str:
        return "" if "lighthouse" in context else "[1, 2]"  # what looks like a list is still text

    first = run(Parrot(says), "triune_mt_bench", limit=3)["samples"]["triune_mt_bench"]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, first)))
    second = run(Parrot(says), SECOND, metadata={"first_turn": str(path)})["samples"][SECOND]
    assert [s["doc"]["id"] for s in second] == [s["doc"]["id"] for s in first]
    for sample in second:
        ask, again = sample["doc"]["turns"]
        said = " " if "lighthouse" in ask else "[1, 2]"
        assert sample["doc"]["said"] == said
        assert sample["arguments"][0][0] == f"<user>{ask}<assistant>{said}<user>{again}<assistant>"
    assert {s["doc"]["said"] for s in second} == {" ", "[1, 2]"}


def test_the_second_turn_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the answers to the first turn: run triune_mt_bench with --log_samples"):
        load(SECOND)
    path = tmp_path / "samples.jsonl"
    for content in ("{", '{"doc": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"samples.jsonl: these are no samples of lm-eval"):
            load(SECOND, first_turn=str(path))
    path.write_text('{"doc": {"id": "other"}, "filtered_resps": ["x"]}')
    with pytest.raises(UserError, match="first_turn has no answer to any of its rows"):
        load(SECOND, first_turn=str(path))


# All of it


def test_all_tasks_give_their_metric_for_every_row() -> None:
    found = run(Parrot(), *OURS, limit=2)
    for name, benchmark in BENCHMARKS.items():
        samples = found["samples"][f"triune_{name}"]
        metric = "answered" if benchmark.needs == "judge" else benchmark.metric
        assert [s["doc"]["id"] for s in samples] == [d["id"] for d in load(f"triune_{name}").eval_docs][:2]
        assert all(0 <= s[metric] <= 1 for s in samples)
        mean = sum(s[metric] for s in samples) / 2
        assert found["results"][f"triune_{name}"][f"{metric},none"] == pytest.approx(mean)


@pytest.mark.slow
def test_plain_lm_eval_gives_the_same_numbers(tmp_path: Path) -> None:
    model = tmp_path / "model"
    toy_chat(model)
    flags = f"--include_path {TASKS} --tasks triune_3h_offline --model hf --model_args pretrained={model} --device cpu"
    flags += (
        f" --apply_chat_template --limit 2 --confirm_run_unsafe_code --log_samples --output_path {tmp_path / 'out'}"
    )
    command = [sys.executable, "-m", "lm_eval", "run", *flags.split()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    plain = json.loads(path.read_text())["results"]
    ours = run("hf", "triune_3h_offline", model_args={"pretrained": str(model)}, device="cpu", limit=2)["results"]
    assert set(plain) == {*ours} == {"triune_3h_offline", *(f"triune_{n}" for n in GROUPS["triune_3h_offline"])}
    for task in plain:
        numbers = {k: v for k, v in ours[task].items() if isinstance(v, float)}
        assert {k: plain[task][k] for k in numbers} == pytest.approx(numbers)
