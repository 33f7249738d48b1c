"""Toy checkpoints of real shape: Llama's names and proportions in some tens of kilobytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def toy_llama(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    intermediate: int = 48,
    layers: int = 2,
    vocabulary: int = 64,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Write a Llama with random weights that plain transformers loads; returns its tensors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    tensors = {"model.embed_tokens.weight": random(vocabulary, hidden), "model.norm.weight": 1 + random(hidden)}
    if not tied:
        tensors["lm_head.weight"] = random(vocabulary, hidden)
    for i in range(layers):
        at = f"model.layers.{i}."
        tensors |= {
            at + "self_attn.q_proj.weight": random(hidden, hidden),
            at + "self_attn.k_proj.weight": random(hidden // 2, hidden),
            at + "self_attn.v_proj.weight": random(hidden // 2, hidden),
            at + "self_attn.o_proj.weight": random(hidden, hidden),
            at + "mlp.gate_proj.weight": random(intermediate, hidden),
            at + "mlp.up_proj.weight": random(intermediate, hidden),
            at + "mlp.down_proj.weight": random(hidden, intermediate),
            at + "input_layernorm.weight": 1 + random(hidden),
            at + "post_attention_layernorm.weight": 1 + random(hidden),
        }
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **(config or {}),
    }
    write_checkpoint(folder, tensors, settings)
    return tensors


def perturbed(
    tensors: Mapping[str, torch.Tensor], seed: int, scale: float = 0.01, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """An expert: every tensor with a little noise on it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (t.float() + scale * torch.randn(t.shape, generator=generator)).to(dtype or t.dtype)
        for n, t in tensors.items()
    }


def write_checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, shards: int = 1
) -> None:
    """A model folder: config.json and safetensors, in one file or several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = {n: tensors[n] for n in names[i::shards]}
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
