"""Rows of benchmarks: where they come from, what is checked, and how they are divided."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.errors import UserError
from triune.evals import hub
from triune.evals.rows import COLUMNS, MINI, half_of, rows, selected, source

DATA = Path(os.environ.get("TRIUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
Put = Callable[..., Path]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIUNE_DATA", raising=False)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file of rows; returns its folder."""

    def write(name: str, *lines: Any) -> Path:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def prompt(row_id: str, text: str = "hello") -> dict[str, str]:
    return {"id": row_id, "prompt": text}


# Where rows come from


def test_a_named_folder_comes_before_the_environment_and_that_before_the_mini_set(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source() == MINI
    monkeypatch.setenv("TRIUNE_DATA", "/elsewhere")
    assert source() == Path("/elsewhere")
    assert source("hub") is None
    assert rows("salad", put("salad", prompt("a"))) == [prompt("a")]
    monkeypatch.setenv("TRIUNE_DATA", str(tmp_path))
    assert rows("salad") == [prompt("a")]


@pytest.mark.parametrize("name", COLUMNS)
def test_the_mini_set_keeps_the_rules(name: str) -> None:
    assert rows(name, MINI)


@pytest.mark.skipif(not (DATA / "xstest.jsonl").exists(), reason="the folder of data slices is not here")
@pytest.mark.parametrize("name", COLUMNS)
def test_the_data_slices_keep_the_rules(name: str) -> None:
    path = DATA / f"{name}.jsonl"
    assert len(rows(name, DATA)) == len(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))


def test_the_type_that_halueval_wild_does_not_count_is_left_out(put: Put) -> None:
    """Its README: five types make the benchmark, "other types" is outside."""
    kinds = ("complex reasoning", "other types", "inappropriate content")
    lines = [{"id": k, "query": "why?", "reference": "so", "query_type": k} for k in kinds]
    assert [row["id"] for row in rows("halueval_wild", put("halueval_wild", *lines))] == [kinds[0], kinds[2]]


def test_rare_line_breaks_in_a_text_do_not_end_its_row(put: Put) -> None:
    row = prompt("a", "one\u2028two\x85three")
    assert rows("salad", put("salad", json.dumps(row, ensure_ascii=False))) == [row]


# What is refused

MATHS = {"id": "a", "question": "1 + 1?", "answer": "#### 2"}
CHOICE = {"id": "a", "question": "?", "choices": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("name", "lines", "says"),
    [
        ("salad", ["{"], r"salad.jsonl:1: this line is no JSON"),
        ("salad", [["a"]], r"salad.jsonl:1: a row must be an object with columns"),
        (
            "salad",
            [prompt("a"), {"id": "b"}],
            r"salad.jsonl:2: the column prompt is missing; a row of salad needs id, prompt",
        ),
        ("salad", [prompt("a", " ")], r"prompt must be text that is not empty, got ' '"),
        ("salad", [prompt("a"), prompt("a")], r"salad.jsonl:2: the id 'a' is that of .*salad.jsonl:1, too"),
        ("salad", [prompt("")], r"id must be text"),
        ("salad", [""], r"salad: there are no rows"),
        ("gsm8k", [MATHS | {"answer": "2"}], r"answer must be a solution that ends with #### and a number"),
        ("arc_easy", [CHOICE | {"answer": 2}], r"answer is 2, counted from 0, but there are 2 choices"),
        ("arc_easy", [CHOICE | {"answer": True}], r"answer must be the index of a choice"),
        ("arc_easy", [CHOICE | {"choices": ["x"]}], r"choices must be a list of two or more texts"),
        ("mmlu", [CHOICE | {"subject": "s"}], r"choices must be a list of four texts"),
        ("selfaware", [{"id": "a", "question": "?", "answerable": "no"}], r"answerable must be true or false"),
        ("xstest", [prompt("a") | {"label": "both"}], r"label must be one of safe, unsafe, got 'both'"),
        ("mt_bench", [{"id": "a", "turns": ["x"], "reference": []}], r"turns must be a list of two user turns"),
    ],
)
def test_a_broken_row_is_told_by_place_value_and_rule(put: Put, name: str, lines: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        rows(name, put(name, *lines))


@pytest.mark.parametrize("labels", [[1], [0, 0], [1, 1], [1, 2], "10"])
def test_labels_of_truthfulqa_tell_some_apart(put: Put, labels: Any) -> None:
    good, bad = {"choices": ["x", "y"], "labels": [0, 1]}, {"choices": ["x", "y"], "labels": labels}
    with pytest.raises(UserError, match="mc2 must be choices with as many labels"):
        rows("truthfulqa", put("truthfulqa", {"id": "a", "question": "?", "mc1": good, "mc2": bad}))


def test_a_missing_file_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"salad.jsonl: this file of benchmark rows is missing. Name the folder"):
        rows("salad", tmp_path)
    with pytest.raises(UserError, match=r"no rows 'gsm8', but gsm8k.*Did you mean gsm8k\?"):
        rows("gsm8")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "salad.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"salad.jsonl: cannot be read"):
        rows("salad", tmp_path)


# How they are divided and ordered


def test_the_half_of_a_row_never_changes() -> None:
    # The first bytes of SHA-256 of "half:a" and "half:f" are 0x3d, which is odd, and 0x30, which is even.
    assert (half_of("a"), half_of("f")) == ("report", "tune")


def test_the_halves_are_all_rows_once_and_about_as_many() -> None:
    found = [half_of(f"row-{i}") for i in range(2000)]
    assert abs(found.count("tune") - 1000) < 100  # four standard deviations are 90
    both = [{row["id"] for row in selected("gsm8k", MINI, half=h)} for h in ("tune", "report")]  # type: ignore[arg-type]
    assert both[0] | both[1] == {row["id"] for row in rows("gsm8k", MINI)}
    assert not both[0] & both[1]


@given(st.sets(st.text(min_size=1).filter(str.strip), min_size=2, max_size=40))
def test_the_order_is_of_chance_and_does_not_depend_on_the_file(tmp_path_factory: Any, ids: set[str]) -> None:
    folder = tmp_path_factory.mktemp("rows")

    def order(names: list[str]) -> list[str]:
        (folder / "salad.jsonl").write_text("\n".join(json.dumps(prompt(n)) for n in names), encoding="utf-8")
        return [row["id"] for row in selected("salad", folder)]

    names = sorted(ids)
    assert order(names) == order(names[::-1])
    assert [n for n in order(names) if n != names[0]] == order(names[1:])


def test_the_first_rows_of_a_sorted_file_are_of_all_kinds(put: Put) -> None:
    folder = put("xstest", *({**prompt(f"x-{i}"), "label": "safe" if i < 100 else "unsafe"} for i in range(200)))
    first = [row["label"] for row in selected("xstest", folder)[:40]]
    assert 8 <= first.count("safe") <= 32


def test_only_rows_with_the_wanted_values(put: Put) -> None:
    assert {row["label"] for row in selected("xstest", MINI, where={"label": "safe"})} == {"safe"}
    with pytest.raises(UserError, match=r"xstest has no rows with label unsafe, half tune"):
        selected("xstest", put("xstest", {**prompt("a"), "label": "safe"}), where={"label": "unsafe"}, half="tune")
    with pytest.raises(UserError, match=r"half is tune or report, got 'both'"):
        selected("xstest", MINI, half="both")  # type: ignore[arg-type]


# The hub, played by a function

THEIRS: dict[str, dict[str, Any]] = {
    "ARC-Easy": {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
    "multiple_choice": {
        "question": "q",
        "mc1_targets": {"choices": ["x", "y"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["x", "y"], "labels": [1, 0]},
    },
    "helpful": {"input": "p", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}},
    "or-bench-hard-1k": {"id": 7, "prompt": "p", "category": "c"},
    "base_set": {"question": "p", "1-category": "O1", "2-category": "O2", "3-category": "O3"},
}


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """The hub gives one row of each dataset; what was asked for."""
    asked = []

    def load_dataset(path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, name, split))
        return [THEIRS["helpful" if "hhh" in path else str(name)]]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("arc_easy", {"question": "q", "choices": ["x", "y"], "answer": 1}),
        ("truthfulqa", {"question": "q", "mc1": THEIRS["multiple_choice"]["mc1_targets"]}),
        ("hhh_alignment", {"category": "helpful", "prompt": "p", "chosen": "good", "rejected": "bad"}),
        ("or_bench_hard", {"prompt": "p", "category": "c"}),
        ("salad", {"prompt": "p", "category_1": "O1", "category_3": "O3"}),
    ],
)
def test_a_row_of_the_hub_becomes_one_of_ours(on_hub: Any, name: str, ours: dict[str, Any]) -> None:
    found = rows(name, "hub")[0]
    assert found["id"] == f"{name}-0"
    assert ours.items() <= found.items()


def test_the_four_kinds_of_hhh_have_ids_of_their_own(on_hub: Any) -> None:
    assert [(r["id"], r["category"]) for r in rows("hhh_alignment", "hub")][-1] == ("hhh_alignment-3", "other")


def test_the_environment_may_name_the_hub(on_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIUNE_DATA", "hub")
    rows("salad")
    assert on_hub == [("OpenSafetyLab/Salad-Data", "base_set", "train")]


def test_what_the_hub_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert set(COLUMNS) - set(hub.DATASETS) == {"halueval_wild", "instruct_open"}
    with pytest.raises(UserError, match=r"halueval_wild: the hub has no such rows. Name a folder with halueval_wild"):
        rows("halueval_wild", "hub")
    with pytest.raises(UserError, match=re.escape("did not give openai/gsm8k: no route to host Check the network")):
        rows("gsm8k", "hub")
