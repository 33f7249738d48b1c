from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import CheckpointError, RecipeError, UserError
from triune.output.beside import plan_beside, write_beside
from triune.output.vocabulary import Parent, plan_vocabulary

from .conftest import WORDS, save, tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Parent]

N = len(WORDS)


def test_equal_vocabularies_need_no_map(make: Make) -> None:
    parents = [make("base"), make("helpful")]
    assert plan_vocabulary(parents, None) is None
    assert plan_vocabulary(parents, "union") is None
    assert plan_vocabulary(parents, "helpful") is None
    assert plan_vocabulary([make("bare", words=None), make("bare2", words=None)], None) is None


def test_a_difference_is_refused_with_examples_and_a_next_step(make: Make) -> None:
    parents = [make("base"), make("helpful", added=["<|im_start|>", "<|im_end|>"])]
    with pytest.raises(UserError) as error:
        plan_vocabulary(parents, None)
    assert str(error.value) == (
        f"The vocabulary of org/helpful ({N + 2} tokens) differs from that of org/base ({N}) in 2 tokens, e.g. "
        "'<|im_end|>', '<|im_start|>'. Set tokenizer_source: base to keep the base's tokens, or tokenizer_source: "
        "union to keep all."
    )


def test_union_by_hand(make: Make) -> None:
    """Base has N tokens in N + 1 rows. The union appends b (row N, the padding's place) and c (row N + 1)."""
    parents = [make("base", rows=N + 1), make("one", added=["<b>"]), make("two", added=["<c>", "<b>"])]
    plan = plan_vocabulary(parents, "union")
    assert plan is not None
    assert plan.size == N + 2
    assert [e["content"] for e in plan.appended] == ["<b>", "<c>"]
    assert plan.rows[0] == [*range(N), -1, -1]
    assert plan.rows[1] == [*range(N), N, -1]
    assert plan.rows[2] == [*range(N), N + 1, N]
    assert plan.report[0] == "The union adds 2 tokens to those of org/base."
    assert plan.report[-1] == (
        "org/two: 0 of its tokens are dropped, 2 get a new number, and it has no row for 0 of the output's."
    )


def test_an_experts_order_and_padding(make: Make) -> None:
    """tokenizer_source: helpful keeps the expert's rows, its padding included; the base's padding is its own."""
    swapped = ["<s>", "</s>", "<unk>", *reversed(WORDS[3:])]
    plan = plan_vocabulary([make("base", rows=N + 4), make("helpful", words=swapped, rows=N + 2)], "helpful")
    assert plan is not None
    assert plan.size == N + 2
    assert plan.rows[1] is None
    assert plan.rows[0] == [0, 1, 2, *range(N - 1, 2, -1), N, N + 1]


def test_only_the_padding_differs(make: Make) -> None:
    parents = [make("base", rows=N), make("helpful", rows=N + 3)]
    with pytest.raises(UserError, match=f"same tokens, but embeddings of {N + 3} and {N} rows"):
        plan_vocabulary(parents, None)
    plan = plan_vocabulary(parents, "base")
    assert plan is not None
    assert (plan.size, plan.rows) == (N, (None, list(range(N))))


def test_a_token_beyond_its_models_embedding_is_missing(make: Make) -> None:
    parents = [make("base", rows=N + 1, added=["<b>"]), make("one", added=["<b>"], rows=N)]
    plan = plan_vocabulary(parents, "base")
    assert plan is not None
    assert plan.rows == (None, [*range(N), -1])


def test_union_refuses_another_core(make: Make) -> None:
    with pytest.raises(UserError, match=r"those of org/other and org/base differ in their core vocabulary \('extra'\)"):
        plan_vocabulary([make("base"), make("other", words=[*WORDS, "extra"])], "union")


def test_opaque_files_are_compared_by_their_bytes(make: Make) -> None:
    parents = [make("base", words=None), make("helpful", words=None)]
    for parent in parents:
        (parent.folder / "tokenizer.model").write_bytes(b"same")
    assert plan_vocabulary(parents, None) is None
    (parents[1].folder / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(UserError, match=r"not the same file, .* Load each once with transformers.AutoTokenizer"):
        plan_vocabulary(parents, "base")


def test_vocab_json_is_read_where_there_is_no_tokenizer_json(make: Make) -> None:
    parents = [make("base", added=["<b>"]), make("old", words=None, rows=N + 1)]
    save(parents[1].folder / "vocab.json", {w: i for i, w in enumerate(WORDS)})
    save(parents[1].folder / "tokenizer_config.json", {"added_tokens_decoder": {str(N): {"content": "<b>"}}})
    assert plan_vocabulary(parents, None) is None


def test_an_adapter_with_its_own_tokenizer_counts(make: Make, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    base = make("base")
    adapter = tmp_path / "adapter"
    save(adapter / "tokenizer.json", tokenizer_json(WORDS, ["<b>"]))
    save_file(
        {"base_model.model.model.embed_tokens.weight": torch.zeros(N + 1, 16)}, adapter / "adapter_model.safetensors"
    )
    lora = replace(make("base"), reference="org/base+org/lora", name="lora", adapter=adapter)
    with pytest.raises(UserError, match=r"org/base\+org/lora"):
        plan_vocabulary([base, lora], None)
    plan = plan_vocabulary([base, lora], "lora")
    assert plan is not None
    assert plan.rows == ([*range(N), -1], None)


def test_an_unknown_source_is_refused(make: Make) -> None:
    with pytest.raises(RecipeError) as error:
        plan_vocabulary([make("base"), make("helpful")], "helpfull")
    assert str(error.value) == (
        "tokenizer_source must be one of union, base, helpful, got 'helpfull'. Did you mean helpful?"
    )


@pytest.mark.parametrize("decoder", [False, True])
def test_transformers_reads_the_union(make: Make, tmp_path: Path, decoder: bool) -> None:
    from transformers import AutoTokenizer

    parents = [make("base"), make("one", added=["<b>"]), make("two", added=["<c>", "<b>"])]
    if decoder:
        for parent in parents:
            tokenizer = AutoTokenizer.from_pretrained(parent.folder)
            added = {
                str(i): {"content": t.content, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
                for i, t in tokenizer.added_tokens_decoder.items()
            }
            path = parent.folder / "tokenizer_config.json"
            save(path, {**json.loads(path.read_text()), "added_tokens_decoder": added})
    plan = plan_beside(parents[0], parents[1:], tokenizer_source="union", chat_template=None, dtype="bfloat16")
    write_beside(plan, tmp_path / "out")
    merged = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(merged) == N + 2
    assert merged.convert_ids_to_tokens(merged("<c> the harbour <b>")["input_ids"]) == ["<c>", "the", "harbour", "<b>"]
    assert plan.vocabulary is not None
    for parent, rows in zip(parents, plan.vocabulary.rows, strict=True):
        own = AutoTokenizer.from_pretrained(parent.folder)
        ids = own("the <b> bread <c>" if parent.name == "two" else "the bread")["input_ids"]
        assert rows is not None
        new = merged.convert_tokens_to_ids(own.convert_ids_to_tokens(ids))
        assert [rows[i] for i in new] == ids


words = st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=12, unique=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(words, st.integers(0, 3)), min_size=2, max_size=4), st.data())
def test_rows_point_to_the_same_token(models: list[tuple[list[str], int]], data: st.DataObject) -> None:
    source = data.draw(st.integers(0, len(models) - 1))
    with tempfile.TemporaryDirectory() as place:
        parents = []
        for index, (vocabulary, padding) in enumerate(models):
            folder = Path(place) / str(index)
            save(folder / "vocab.json", {w: i for i, w in enumerate(vocabulary)})
            save(folder / "config.json", {"vocab_size": len(vocabulary) + padding})
            parents.append(Parent(f"m{index}", f"m{index}", folder))
        plan = plan_vocabulary(parents, f"m{source}")
    if plan is None:
        assert all(model == models[0] for model in models)
        return
    chosen, padding = models[source]
    assert plan.size == len(chosen) + padding
    assert plan.rows[source] is None
    for (vocabulary, own_padding), rows in zip(models, plan.rows, strict=True):
        rows = list(range(plan.size)) if rows is None else rows
        for number, token in enumerate(chosen):
            assert rows[number] == (vocabulary.index(token) if token in vocabulary else -1)
        for number in range(len(chosen), plan.size):
            padded = len(vocabulary) <= number < len(vocabulary) + own_padding
            assert rows[number] == (number if padded else -1)


def test_large_vocabularies_are_fast(tmp_path: Path) -> None:
    size = 150_000
    for name, shift in (("base", 0), ("expert", 7)):
        save(tmp_path / name / "vocab.json", {f"token{(i + shift) % size}": i for i in range(size)})
        save(tmp_path / name / "config.json", {"vocab_size": size})
    start = time.process_time()
    plan = plan_vocabulary([Parent(n, n, tmp_path / n) for n in ("base", "expert")], "base")
    assert plan is not None
    assert plan.rows[1] is not None
    assert plan.rows[1][:3] == [size - 7, size - 6, size - 5]
    assert time.process_time() - start < 5


def test_a_damaged_tokenizer_is_refused(make: Make) -> None:
    base = make("base")
    (base.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"tokenizer.json is no tokenizer .* \(KeyError\('model'\)\). Fetch it again"
    ):
        plan_vocabulary([base, make("one")], None)
