"""Tiny model folders, made from nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from triune.output.beside import Parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    *("the", "harbour", "was", "quiet", "in", "early", "morning", "boats", "had"),
    *("not", "yet", "come", "back", "bread", "is", "made", "of"),
]
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def tokenizer_json(words: Sequence[str], added: Sequence[str] = (), start: int | None = None) -> dict[str, Any]:
    """A word-level tokenizer as the tokenizers library writes it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([w for w in words if w.startswith("<")])
    made.add_tokens([AddedToken(t, special=True) for t in added])
    return dict(json.loads(made.to_str()))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Parent]:
    """Make a parent: a folder with config.json and a tokenizer."""

    def build(
        name: str,
        *,
        words: Sequence[str] | None = WORDS,
        added: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        rows: int | None = None,
        template: str | None = None,
        eos: Any = 1,
        generation: dict[str, Any] | None = None,
        card: str | None = None,
    ) -> Parent:
        folder = tmp_path / name
        size = rows or len(words or WORDS) + len(added)
        content = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "rms_norm_eps": 1e-5, "vocab_size": size, "bos_token_id": 0, "eos_token_id": eos,
            "tie_word_embeddings": True, "torch_dtype": "float32", "_name_or_path": "/home/someone/secret",
        }  # fmt: skip
        save(folder / "config.json", {**content, **(config or {})})
        if words:
            save(folder / "tokenizer.json", tokenizer_json(words, added))
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
            save(folder / "tokenizer_config.json", {**settings, "unk_token": "<unk>"})
        if template:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        if generation:
            save(folder / "generation_config.json", generation)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
        return Parent(f"org/{name}", name, folder)

    return build


@pytest.fixture
def weights() -> Iterator[Callable[..., None]]:
    """Put random Llama weights into a folder; the same seed gives the same weights."""
    import torch

    # Threads that wait for each other cost a tiny model far more than they save.
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def build(folder: Path, seed: int = 0) -> None:
        from safetensors.torch import save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        state = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    yield build
    torch.set_num_threads(before)
