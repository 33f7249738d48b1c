"""The benchmarks on the Hugging Face hub, and how a row there becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from triune.errors import UserError

Row = dict[str, Any]


class There(NamedTuple):
    """A dataset on the hub."""

    path: str
    name: str | None
    split: str
    ours: Callable[[Row], Row] = dict
    """Their row -> ours, but for the id."""


def _arc(row: Row) -> Row:
    choices = row["choices"]
    return {"question": row["question"], "choices": choices["text"], "answer": choices["label"].index(row["answerKey"])}


def _truthfulqa(row: Row) -> Row:
    return {"question": row["question"], "mc1": row["mc1_targets"], "mc2": row["mc2_targets"]}


def _hhh(category: str, row: Row) -> Row:
    by_label = dict(zip(row["targets"]["labels"], row["targets"]["choices"], strict=True))
    return {"category": category, "prompt": row["input"], "chosen": by_label[1], "rejected": by_label[0]}


def _salad(row: Row) -> Row:
    return {"prompt": row["question"], **{f"category_{i}": row[f"{i}-category"] for i in (1, 2, 3)}}


def _mt_bench(row: Row) -> Row:
    return {"category": row["category"], "turns": row["prompt"], "reference": row["reference"]}


_HHH = tuple(
    There("HuggingFaceH4/hhh_alignment", c, "test", partial(_hhh, c))
    for c in ("helpful", "honest", "harmless", "other")
)

DATASETS: Mapping[str, tuple[There, ...]] = {
    "gsm8k": (There("openai/gsm8k", "main", "test"),),
    "gsm8k_fewshot": (There("openai/gsm8k", "main", "train[:8]"),),
    "humaneval": (There("openai/openai_humaneval", None, "test"),),
    "mbpp": (There("google-research-datasets/mbpp", "full", "test"),),
    "mbpp_fewshot": (There("google-research-datasets/mbpp", "full", "prompt[1:4]"),),  # task_id 2, 3, 4
    "mmlu": (There("cais/mmlu", "all", "test"),),
    "mmlu_dev": (There("cais/mmlu", "all", "dev"),),
    "arc_easy": (There("allenai/ai2_arc", "ARC-Easy", "test", _arc),),
    "arc_challenge": (There("allenai/ai2_arc", "ARC-Challenge", "test", _arc),),
    "truthfulqa": (There("truthfulqa/truthful_qa", "multiple_choice", "validation", _truthfulqa),),
    "selfaware": (There("JesusCrist/selfAware", None, "train"),),
    "hhh_alignment": _HHH,
    "xstest": (There("Paul/XSTest", None, "train"),),
    "or_bench_hard": (There("bench-llm/or-bench", "or-bench-hard-1k", "train"),),
    "salad": (There("OpenSafetyLab/Salad-Data", "base_set", "train", _salad),),
    "mt_bench": (There("HuggingFaceH4/mt_bench_prompts", None, "train", _mt_bench),),
}
"""File -> where its rows are. Not there, or not by a name that is known here: halueval_wild, instruct_open."""


def rows(name: str) -> Iterator[tuple[str, Row]]:
    """Place and content of each row, with the ids ``name-0``, ``name-1``, ...

    Raises:
        UserError: it is not on the hub, or the hub does not give it.
    """
    if name not in DATASETS:
        raise UserError(f"{name}: the hub has no such rows. Name a folder with {name}.jsonl (data, or TRIUNE_DATA).")
    from datasets import load_dataset

    number = 0
    for there in DATASETS[name]:
        try:
            found = load_dataset(there.path, there.name, split=there.split)
        except Exception as error:  # anything, from the types of datasets to those of its HTTP library
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{name}: the hub did not give {there.path}: {reason} Check the network, and HF_TOKEN if the dataset is "
                "gated, or name a folder with the rows."
            ) from None
        for row in found:
            yield f"{there.path}: row {number}", {**there.ours(row), "id": f"{name}-{number}"}
            number += 1
