"""``tokenizer_source`` for models whose embeddings have other rows: the rows of the output, checked one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from conftest import Run

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CORE = ["<unk>", "one", "two", "three"]
VOCABULARIES = {"base": [*CORE, "<b>"], "a": [*CORE, "<a>", "<b>"], "b": [*CORE, "<b>"]}
"""Expert a has a token more, and therefore <b> at another place."""


def tokenizer(core: list[str], added: list[str]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(core) + i, "content": t, **flags} for i, t in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(core)}, "unk_token": "<unk>"},
    }


@pytest.fixture
def rows(tmp_path: Path, write: Any) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """For each model and each of its two embeddings, the row of each token."""
    found = {}
    for seed, (name, words) in enumerate(VOCABULARIES.items()):
        generator = torch.Generator().manual_seed(seed)
        tensors = {n: torch.randn(len(words), 4, generator=generator) for n in (EMBEDDING, HEAD)}
        tensors["model.norm.weight"] = torch.ones(4)
        write(tmp_path / name, tensors, model_type="llama", vocab_size=len(words), tie_word_embeddings=False)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer(CORE, words[4:])))
        found[name] = {n: dict(zip(words, tensors[n], strict=True)) for n in (EMBEDDING, HEAD)}
    return found


@pytest.fixture
def merge(triune: Run, load: Any, tmp_path: Path) -> Any:
    def call(source: str, method: str = "task_arithmetic") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        flags = ("--base", tmp_path / "base", "--expert", f"a={tmp_path / 'a'}", "--expert", f"b={tmp_path / 'b'}")
        weight = ("--set", "weight=0.5", "--set", f"tokenizer_source={source}")
        told = triune("merge", *flags, "--method", method, *weight, "--no-gate", tmp_path / "out")
        assert told.code == 0, told.err
        return load(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())

    return call


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
@pytest.mark.parametrize(
    ("source", "words"),
    [("base", VOCABULARIES["base"]), ("a", VOCABULARIES["a"]), ("union", [*VOCABULARIES["base"], "<a>"])],
    ids=["base", "expert", "union"],
)
def test_rows(rows: Any, merge: Any, tmp_path: Path, source: str, words: list[str], method: str) -> None:
    merged, config = merge(source, method)
    assert config["vocab_size"] == len(words)
    for name in (EMBEDDING, HEAD):
        assert merged[name].shape == (len(words), 4)
        for place, word in enumerate(words):
            # Who lacks a token takes the base's row for it; where the base lacks it, the mean of those who have it.
            have = [rows[e][name][word] for e in ("a", "b") if word in rows[e][name]]
            base = rows["base"][name].get(word, torch.stack(have).mean(0))
            experts = [rows[e][name].get(word, base) for e in ("a", "b")]
            wanted = base + sum(0.5 * (expert - base) for expert in experts)
            torch.testing.assert_close(merged[name][place], wanted, msg=lambda m, w=word: f"{w}: {m}")


@pytest.mark.parametrize("source", ["base", "a", "union"])
def test_the_tokenizer_fits_the_rows(rows: Any, merge: Any, tmp_path: Path, source: str) -> None:
    from tokenizers import Tokenizer

    merged, _ = merge(source)
    loaded = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    known = loaded.get_vocab()
    assert len(known) == len(merged[EMBEDDING])
    assert ("<a>" in known) == (source != "base")
    assert all(loaded.token_to_id(w) == i for i, w in enumerate(VOCABULARIES["a" if source == "a" else "base"]))


def test_without_a_base_a_new_token_keeps_its_row(rows: Any, triune: Run, load: Any, tmp_path: Path) -> None:
    """Averaged only with models that have the token: the mean of one row is that row, whatever the weights."""
    experts = ("--expert", f"b={tmp_path / 'b'}", "--expert", f"a={tmp_path / 'a'}")
    settings = ("--set", "weight=0.5", "--set", "tokenizer_source=union")
    told = triune("merge", *experts, "--method", "linear", *settings, "--no-gate", tmp_path / "out")
    assert told.code == 0, told.err
    merged = load(tmp_path / "out")
    assert torch.allclose(merged[EMBEDDING][-1], rows["a"][EMBEDDING]["<a>"])
    one = (rows["a"][EMBEDDING]["one"] + rows["b"][EMBEDDING]["one"]) / 2
    assert torch.allclose(merged[EMBEDDING][1], one)


def test_rows_that_move_are_not_decomposed(rows: Any, triune: Run, tmp_path: Path) -> None:
    flags = ("--base", tmp_path / "base", "--expert", f"a={tmp_path / 'a'}", "--expert", f"b={tmp_path / 'b'}")
    settings = ("--set", "tokenizer_source=union", "--set", "embeddings=svd")
    told = triune("merge", *flags, "--method", "tsvm", *settings, tmp_path / "out")
    assert told.code == 2
    assert "Set embeddings: mean" in told.err
