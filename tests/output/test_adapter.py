"""A merged adapter's folder: PEFT loads it and means what we mean."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from triune.checkpoint.index import open_checkpoint, read_header
from triune.checkpoint.lora import Target, open_adapter
from triune.errors import CheckpointError, UserError
from triune.methods._lowrank import LowRank
from triune.output.adapter import assemble, read_part, write_part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

LAYERS = "model.layers.{}.{}.weight"
RANKS = {
    LAYERS.format(0, "self_attn.q_proj"): 3,
    LAYERS.format(1, "self_attn.q_proj"): 1,
    LAYERS.format(1, "self_attn.v_proj"): 5,
    LAYERS.format(0, "mlp.down_proj"): 2,
    LAYERS.format(1, "mlp.down_proj"): 0,
}
TOKENS = torch.arange(8)[None]


def llama(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    layers = {"num_hidden_layers": 2, "vocab_size": 40, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **layers, **config})).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)).eval()


def deltas(model: torch.nn.Module, ranks: Mapping[str, int]) -> dict[str, LowRank]:
    """Random ones of a merge's usual kind: long columns on the left, short rows on the right."""
    torch.manual_seed(1)
    shapes = {name: model.get_parameter(name).shape for name in ranks}
    return {n: LowRank(torch.randn(shapes[n][0], r) * 3, torch.randn(r, shapes[n][1]) / 20) for n, r in ranks.items()}


def write(folder: Path, merged: Mapping[str, LowRank], dtype: str = "float32", **options: Any) -> Path:
    parts = folder / "parts"
    parts.mkdir()
    for index, (name, delta) in enumerate(merged.items()):
        write_part(parts, index, name, delta)
    options = {"base_name": "org/base", "template": None, **options}
    return assemble(sorted(parts.iterdir()), folder / "out", dtype=dtype, **options)


def add(model: torch.nn.Module, merged: Mapping[str, LowRank]) -> torch.nn.Module:
    with torch.no_grad():
        for name, delta in merged.items():
            model.get_parameter(name).add_(delta.dense())
    return model


# By hand


def test_a_part(tmp_path: Path) -> None:
    delta = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0, 5.0]]))
    digest = write_part(tmp_path, 12, "a.weight", delta)
    path = tmp_path / "part-00012.safetensors"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    name, back = read_part(path)
    assert name == "a.weight"
    assert torch.equal(back.left, delta.left)
    assert torch.equal(back.right, delta.right)
    assert write_part(tmp_path, 12, "a.weight", delta) == digest
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="The file is damaged or cut off"):
        read_part(path)


def test_files_by_hand(tmp_path: Path) -> None:
    """The largest entries are 8 and 0.5: a factor of sqrt(0.5 / 8) = 1/4 makes both 2."""
    merged = {
        "b.proj.weight": LowRank(torch.tensor([[8.0], [0.0]]), torch.tensor([[0.5, 0.0, 0.0]])),
        "a.proj.weight": LowRank(torch.eye(2), torch.eye(2)),
    }
    out = write(tmp_path, merged)
    weights = load_file(out / "adapter_model.safetensors")
    stems = [f"base_model.model.{x}.proj.lora_{s}.weight" for x in "ab" for s in "AB"]
    assert [t.name for t in read_header(out / "adapter_model.safetensors")] == stems
    assert weights[stems[2]].tolist() == [[2.0, 0.0, 0.0]]
    assert weights[stems[3]].tolist() == [[2.0], [0.0]]
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((out / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": 2,
        "lora_alpha": 2,
        "rank_pattern": {r"^b\.proj": 1},
        "alpha_pattern": {r"^b\.proj": 1},
        "target_modules": ["a.proj", "b.proj"],
        "inference_mode": True,
    }
    assert expected.items() <= config.items()
    assert sorted(p.name for p in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_order_of_the_parts_does_not_matter(tmp_path: Path) -> None:
    merged = deltas(llama(), RANKS)
    for name, items in {"a": list(merged.items()), "b": list(merged.items())[::-1]}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, dict(items))
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a/out" / file).read_bytes() == (tmp_path / "b/out" / file).read_bytes()


# By property


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("float16", 2**-10), ("bfloat16", 2**-7)])
@pytest.mark.parametrize("lopsided", [1.0, 2.0**24, 2.0**-24])
def test_what_is_stored_is_what_was_given(tmp_path: Path, dtype: str, error: float, lopsided: float) -> None:
    """Scaled by powers of two, float32 keeps every bit, and float16 its precision however lopsided the factors are.

    Two factors that are each rounded by half of the last place, u: their product is off by at most 2u|left||right|.
    """
    torch.manual_seed(0)
    left, right = torch.randn(16, 4), torch.randn(4, 16)
    right[2] = 0  # a column without a counterpart
    name = LAYERS.format(0, "self_attn.q_proj")
    delta = LowRank(left * lopsided, right / lopsided)
    llama().save_pretrained(tmp_path / "base")
    out = write(tmp_path, {name: delta}, dtype)
    factors = open_adapter(out, "out", open_checkpoint(tmp_path / "base", "base")).deltas[name]
    assert (factors.scale, factors.transposed) == (1.0, False)
    weights = load_file(out / "adapter_model.safetensors")
    b, a = weights[factors.b.name].double(), weights[factors.a.name].double()
    bound = error * (left.double().abs() @ right.double().abs()) + (1e-6 if dtype == "float16" else 0)
    assert ((b @ a - delta.left.double() @ delta.right.double()).abs() <= bound).all()


# Against PEFT


def test_llama_through_peft(tmp_path: Path) -> None:
    merged = deltas(llama(), RANKS)
    expected = add(llama(), merged)
    peft = PeftModel.from_pretrained(llama(), write(tmp_path, merged)).eval()
    wrapped = {n.removesuffix(".lora_A") for n, _ in peft.get_base_model().named_modules() if n.endswith(".lora_A")}
    assert wrapped == {name.removesuffix(".weight") for name, rank in RANKS.items() if rank}
    with torch.no_grad():
        assert (expected(TOKENS).logits - llama()(TOKENS).logits).abs().max() > 1e-2
        torch.testing.assert_close(peft(TOKENS).logits, expected(TOKENS).logits, rtol=0, atol=1e-5)
    for name, tensor in peft.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=0, atol=1e-6, msg=name)


def test_embedding_and_head_through_peft(tmp_path: Path) -> None:
    merged = deltas(llama(), {"model.embed_tokens.weight": 2, "lm_head.weight": 3})
    expected = add(llama(), merged)
    peft = PeftModel.from_pretrained(llama(), write(tmp_path, merged)).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(TOKENS).logits, expected(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("told", ["template", "targets"])
def test_gpt2_through_peft(tmp_path: Path, told: str) -> None:
    """Weights stored as [in, out], a square one among them, and names without PEFT's prefix."""
    h = "transformer.h.0"
    ranks = {f"{h}.attn.c_attn.weight": 2, f"{h}.attn.c_proj.weight": 1, f"{h}.mlp.c_proj.weight": 3}
    merged = deltas(gpt2(), ranks | {"transformer.wte.weight": 2})
    expected = add(gpt2(), merged)
    options: dict[str, Any] = {"template": {"fan_in_fan_out": True}}
    if told == "targets":
        short = {name.removeprefix("transformer."): name.removesuffix(".weight") for name in merged}
        targets = {s: Target(m, embedding="wte" in m, transposed=True) for s, m in short.items()}
        merged = {name.removeprefix("transformer."): delta for name, delta in merged.items()}
        options = {"template": None, "targets": targets}
    peft = PeftModel.from_pretrained(gpt2(), write(tmp_path, merged, **options)).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(TOKENS).logits, expected(TOKENS).logits, rtol=0, atol=1e-5)


class Nested(torch.nn.Module):
    """Modules whose names are the ends of others'."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(4, 4, bias=False)
        self.a = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4, bias=False)})
        self.b = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4, bias=False)})})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b["a"]["proj"](self.a["proj"](self.proj(x).tanh()).tanh())


@pytest.mark.parametrize("ranks", [(1, 2, 3), (3, 2, 1), (2, 1, 2), (1, 0, 2), (2, 1, 0), (2, 0, 0)])
def test_names_that_end_like_others(tmp_path: Path, ranks: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = Nested()
    names = ("proj", "a.proj", "b.a.proj")
    merged = deltas(model, {f"{name}.weight": rank for name, rank in zip(names, ranks, strict=True)})
    out = write(tmp_path, merged, template={"task_type": None})
    x = torch.randn(5, 4)
    plain = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = add(model, merged)(x)
        model.load_state_dict(plain)
        peft = PeftModel.from_pretrained(model, out)
        torch.testing.assert_close(peft(x), expected, rtol=0, atol=1e-5)
    wrapped = {n.removesuffix(".lora_A") for n, _ in peft.get_base_model().named_modules() if n.endswith(".lora_A")}
    assert wrapped == {name for name, rank in zip(names, ranks, strict=True) if rank}


# Refusals


def test_refusals(tmp_path: Path) -> None:
    def refused(folder: str, merged: Mapping[str, LowRank], **options: Any) -> str:
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError) as error:
            write(tmp_path / folder, merged, **options)
        assert not (tmp_path / folder / "out/adapter_config.json").exists()
        assert not (tmp_path / folder / "out/adapter_model.safetensors").exists()
        return str(error.value)

    one = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    assert refused("dtype", {"a.weight": one}, dtype="bfloat") == (
        "An adapter's dtype must be one of float32, float16, bfloat16, got bfloat. Did you mean bfloat16?"
    )
    assert refused("empty", {"a.weight": LowRank(torch.ones(2, 0), torch.ones(0, 2))}) == (
        "The merged adapter is zero everywhere: the base itself is the result, no adapter is written."
    )
    assert refused("large", {"a.weight": LowRank(torch.full((2, 1), 1e12), torch.ones(1, 2))}, dtype="float16") == (
        "The delta of a.weight is too large for float16. Use dtype: bfloat16."
    )
    embedding = {"model.embed_tokens.weight": one}
    assert refused("tied", embedding, template={"ensure_weight_tying": True}) == (
        "model.embed_tokens.weight is also the head of the model, which PEFT cannot load. Write a full model instead."
    )
    both = {"a.weight": one, "b.weight": one}
    message = refused("twice", both, targets={"b.weight": Target("a")})
    assert message.endswith("part-00001.safetensors are both of module a.")
