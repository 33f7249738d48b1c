"""Synthetic Llama checkpoints: a base, three full experts and three LoRA experts, of any size, in a few blocks of memory.

A full expert's delta is what fine-tuning leaves: a product of low rank and, on every entry, noise with heavy tails. A LoRA
expert has the product alone. Every block is drawn from (seed, tensor, block), so a folder's bytes depend on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from triune.checkpoint.index import TensorInfo
from triune.checkpoint.writer import ShardWriter, lay_out

EXPERTS = ("helpful", "honest", "harmless")
RANK = 16
BLOCK = 1 << 22
"""Entries drawn at a time."""
BASE_SCALE, LOW_RANK_SCALE, TAIL_SCALE = 0.02, 0.002, 0.0005
"""Standard deviations: of the base, of the product of low rank, and of the noise before it is cubed."""


@dataclass(frozen=True)
class Size:
    """A Llama's measures."""

    hidden: int
    intermediate: int
    layers: int
    key_value: int
    """Width of the keys and values."""
    vocabulary: int
    tied: bool = False
    heads: int = 32

    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices that an adapter changes."""
        hidden, inner = self.hidden, self.intermediate
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (self.key_value, hidden),
            "self_attn.v_proj": (self.key_value, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {f"model.layers.{i}.{name}.weight": s for i in range(self.layers) for name, s in shapes.items()}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        norms = [
            f"model.layers.{i}.{n}_layernorm.weight" for i in range(self.layers) for n in ("input", "post_attention")
        ]
        ends = ["model.embed_tokens.weight", *(["lm_head.weight"] if not self.tied else [])]
        return {
            **dict.fromkeys(ends, (self.vocabulary, self.hidden)),
            **self.linears(),
            **dict.fromkeys([*norms, "model.norm.weight"], (self.hidden,)),
        }

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads * self.key_value // self.hidden,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SIZES = {
    "tiny": Size(64, 176, 2, 32, 256, heads=4),
    "small": Size(1024, 4096, 2, 256, 8000),
    "slice1b": Size(2048, 8192, 2, 512, 8000),  # two layers of Llama-3.2-1B
    "slice8b": Size(4096, 14336, 4, 1024, 8000),  # four layers of Llama-3-8B
    "layer8b": Size(4096, 14336, 1, 1024, 8000),  # one of them: spectral methods take minutes a layer
    "1b": Size(2048, 8192, 16, 512, 128256, tied=True),
    "8b": Size(4096, 14336, 32, 1024, 128256),
}


def make_models(folder: Path, size: Size, seed: int = 0) -> None:
    """Write ``base``, the experts and, as ``NAME-lora``, their adapters into the folder, unless they are there already."""
    wanted = json.dumps({"size": repr(size), "seed": seed})
    done = folder / "made.json"
    if done.exists() and done.read_text() == wanted:
        return
    done.unlink(missing_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a product's last bits can depend on the number of threads
    try:
        _write_full(folder, size, seed)
        for expert in EXPERTS:
            _write_adapter(folder, expert, size, seed)
    finally:
        torch.set_num_threads(threads)
    done.write_text(wanted)


def factors(size: Size, seed: int, expert: str, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """LoRA's B and A for one matrix, in bfloat16: their product, times two, is the expert's delta of low rank."""
    rows, columns = size.linears()[tensor]
    scale = (LOW_RANK_SCALE / 2) ** 0.5 / RANK**0.25
    draw = _generator(seed, expert, tensor, "factors")
    left, right = (torch.randn(shape, generator=draw) * scale for shape in ((rows, RANK), (RANK, columns)))
    return left.bfloat16(), right.bfloat16()


def _write_full(folder: Path, size: Size, seed: int) -> None:
    names = ("base", *EXPERTS)
    shards = lay_out((name, "BF16", shape) for name, shape in size.tensors().items())
    writers = []
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(size.config(), indent=1))
        writers.append(ShardWriter(folder / name, shards, folder / name))
    weight_map = {t.name: s.name for s in shards for t in s.tensors}
    for info in (t for s in shards for t in s.tensors):
        for at, blocks in _blocks(size, seed, info):
            for writer, block in zip(writers, blocks, strict=True):
                writer.write(info, 2 * at, memoryview(block.view(torch.uint8).numpy().data))
    for name, writer in zip(names, writers, strict=True):
        writer.finish()
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(s.nbytes for s in shards)}, "weight_map": weight_map}
            (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))


def _blocks(size: Size, seed: int, info: TensorInfo) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Runs of whole rows: their first entry's index, and the entries of base and experts."""
    rows, columns = info.matrix
    step = max(1, BLOCK // columns)
    adapted = info.name in size.linears()
    products = [factors(size, seed, e, info.name) for e in EXPERTS] if adapted else []
    for first in range(0, rows, step):
        shape = (min(step, rows - first), columns)
        noise = torch.randn(shape, generator=_generator(seed, "base", info.name, first))
        base = noise.mul_(BASE_SCALE).add_(1.0 if len(info.shape) == 1 else 0.0).bfloat16()
        blocks = [base]
        for t, expert in enumerate(EXPERTS):
            delta = torch.randn(shape, generator=_generator(seed, expert, info.name, first)).pow_(3).mul_(TAIL_SCALE)
            if products:
                left, right = products[t]
                delta.addmm_(left[first : first + step].float(), right.float(), alpha=2.0)
            blocks.append(delta.add_(base).bfloat16())
        yield first * columns, [b.reshape(-1) for b in blocks]


def _write_adapter(folder: Path, expert: str, size: Size, seed: int) -> None:
    """As PEFT would."""
    out = folder / f"{expert}-lora"
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name in size.linears():
        b, a = factors(size, seed, expert, name)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder / "base"),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({n.split(".")[-2] for n in size.linears()}),
    }
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=1))
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
