"""Write a merged LoRA adapter that PEFT loads as it is.

The ranks are known only after computing, so each tensor's result waits in a small file of its own, a part, until
:func:`assemble` lays them out one behind the other. Everything is float32 until the one cast at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from triune._lazy import torch
from triune.checkpoint.index import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS, read_header
from triune.checkpoint.lora import CONFIG, WEIGHTS, Target
from triune.errors import CheckpointError, UserError, did_you_mean
from triune.methods._lowrank import LowRank
from triune.output.atomic import whole_file, write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TENSOR = "tensor"
"""The key of a part's metadata that names its base tensor."""


def write_part(folder: Path, index: int, tensor: str, delta: LowRank) -> str:
    """Keep the delta of base tensor ``tensor`` as ``part-00012.safetensors``; gives the SHA-256 of its bytes."""
    from safetensors.torch import save

    factors = {"left": delta.left, "right": delta.right}
    content = save({n: t.detach().float().cpu().contiguous() for n, t in factors.items()}, {TENSOR: tensor})
    write_bytes(folder / f"part-{index:05d}.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def read_part(path: Path) -> tuple[str, LowRank]:
    """The base tensor's name and its delta."""
    from safetensors import safe_open

    read_header(path)  # Says what is wrong with a damaged file in our words.
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {})[TENSOR], LowRank(file.get_tensor("left"), file.get_tensor("right"))


def assemble(
    parts: Sequence[Path],
    out: Path,
    *,
    base_name: str,
    dtype: str,
    template: Mapping[str, Any] | None,
    targets: Mapping[str, Target] | None = None,
) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into the folder ``out``, and return it.

    A delta of rank 0 is left out. One tensor is in memory at a time; the order of ``parts`` does not matter.

    Args:
        base_name: for PEFT, the base's hub name or folder.
        dtype: float32, float16 or bfloat16.
        template: adapter_config.json of an input, for its task_type and fan_in_fan_out. None: a causal language model.
        targets: where the inputs' factors hang (``Adapter.targets``); for tensors not in there, told by the name.

    Raises:
        UserError: nothing to write, or numbers too large for float16.
    """
    template = template or {}
    code = DTYPES.get(dtype, dtype)
    if code not in DTYPES.values():
        raise UserError(
            f"An adapter's dtype must be one of {', '.join(DTYPES)}, got {dtype}.{did_you_mean(dtype, DTYPES)}"
        )
    entries = sorted((_Entry(path, template, targets or {}) for path in parts), key=lambda e: e.target.module)
    kept = [entry for entry in entries if entry.rank]
    _check(kept, template)
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(kept, out / WEIGHTS, code)
    dropped = [entry.target.module for entry in entries if not entry.rank]
    # The weights first: without its configuration, a folder is no adapter.
    write_text(out / CONFIG, json.dumps(_config(kept, dropped, base_name, template), indent=2, sort_keys=True) + "\n")
    return out


class _Entry:
    """One part as its header tells it."""

    def __init__(self, path: Path, template: Mapping[str, Any], targets: Mapping[str, Target]) -> None:
        from safetensors import safe_open

        shapes = {info.name: info.shape for info in read_header(path)}
        with safe_open(path, framework="pt") as file:
            self.tensor = (file.metadata() or {})[TENSOR]
        self.path = path
        self.target = targets.get(self.tensor) or _told_by_name(self.tensor, template)
        self.rank = shapes["right"][0]
        (m, _), (_, n) = shapes["left"], shapes["right"]
        into, out = (m, n) if self.target.transposed else (n, m)
        ending = "embedding_{}" if self.target.embedding else "{}.weight"
        stem = f"base_model.model.{self.target.module}.lora_{ending}"
        self.keys = stem.format("A"), stem.format("B")
        self.shapes = (self.rank, into), (out, self.rank)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in PEFT's orientation, each row of A as large as its column of B.

        ``left @ right`` often has its size on one side, which float16 would round to 0 or infinity. Powers of two
        move it without rounding anything.
        """
        delta = read_part(self.path)[1]
        big_left, big_right = delta.left.abs().amax(dim=0), delta.right.abs().amax(dim=1)
        balance = torch.exp2(((big_right.log2() - big_left.log2()) / 2).round())
        nothing = (big_left == 0) | (big_right == 0)
        balance = torch.where(nothing | ~balance.isfinite(), 1.0, balance)
        left = (delta.left * balance).masked_fill(nothing, 0)
        right = (delta.right / balance[:, None]).masked_fill(nothing[:, None], 0)
        return (left.T, right.T) if self.target.transposed else (right, left)


def _told_by_name(tensor: str, template: Mapping[str, Any]) -> Target:
    embedding = tensor.endswith(INPUT_EMBEDDINGS)
    conv1d = bool(template.get("fan_in_fan_out")) and not tensor.endswith(OUTPUT_EMBEDDINGS)
    return Target(tensor.removesuffix(".weight"), embedding, embedding or conv1d)


def _check(kept: list[_Entry], template: Mapping[str, Any]) -> None:
    if not kept:
        raise UserError("The merged adapter is zero everywhere: the base itself is the result, no adapter is written.")
    for before, after in pairwise(kept):
        if before.target.module == after.target.module:
            raise CheckpointError(f"{before.path} and {after.path} are both of module {after.target.module}.")
    embedding = next((e.tensor for e in kept if e.target.embedding), None)
    if embedding and template.get("ensure_weight_tying"):
        raise UserError(
            f"{embedding} is also the head of the model, which PEFT cannot load. Write a full model instead."
        )


def _write_weights(kept: list[_Entry], path: Path, code: str) -> None:
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[code]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in kept:
        for key, (rows, columns) in zip(entry.keys, entry.shapes, strict=True):
            start, end = end, end + rows * columns * torch_dtype.itemsize
            header[key] = {"dtype": code, "shape": [rows, columns], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in kept:
            for factor in entry.factors():
                cast = factor.to(torch_dtype).contiguous().reshape(-1)
                if not cast.isfinite().all() and factor.isfinite().all():
                    raise UserError(f"The delta of {entry.tensor} is too large for float16. Use dtype: bfloat16.")
                stream.write(cast.view(torch.uint8).numpy().tobytes())


def _config(kept: list[_Entry], dropped: list[str], base_name: str, template: Mapping[str, Any]) -> dict[str, Any]:
    modules = [entry.target.module for entry in kept]
    rank = max(entry.rank for entry in kept)
    # PEFT reads a key of a pattern, and a target, as the end of a module's name. The ^ makes it the whole name;
    # excluding, as a regular expression, keeps PEFT from wrapping a longer name whose delta was left out.
    ranks = {f"^{re.escape(e.target.module)}": e.rank for e in kept if e.rank != rank}
    longer = [d for d in dropped if any(d.endswith(f".{m}") for m in modules)]
    return {
        "peft_type": "LORA",
        "task_type": template.get("task_type", "CAUSAL_LM"),
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,  # alpha = rank: the scale is exactly 1.
        "target_modules": modules,
        "exclude_modules": "|".join(map(re.escape, longer)) or None,
        "fan_in_fan_out": any(e.target.transposed and not e.target.embedding for e in kept),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
