"""What a checkpoint holds, read from its headers alone: names, dtypes, shapes, and where the bytes stand.

The safetensors format (https://github.com/huggingface/safetensors#format) is eight bytes of header length, a JSON header,
and the tensors' bytes. We read the header ourselves, because its offsets let us read and write any part of any tensor.
Nothing here loads a weight or imports torch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from triune.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_HEADER = 100_000_000
"""The limit of the safetensors library: a longer header is a lie or an attack."""

INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: what it is and where its bytes stand."""

    name: str
    dtype: str
    """As safetensors spells it: BF16, F32, ..."""
    shape: tuple[int, ...]
    file: str
    start: int
    """Offset of its first byte in the file."""

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.entries * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns when read as a matrix whose rows run along the last dimension; a vector is one row."""
        columns = self.shape[-1] if self.shape else 1
        return (self.entries // columns if columns else 0), columns


@dataclass(frozen=True)
class Checkpoint:
    """A model folder as its headers describe it."""

    reference: str
    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Names that stand for another tensor: the head of a model with tied embeddings is its input embedding."""
        return dict(_tied(self.config, self.tensors))

    def get(self, name: str) -> TensorInfo | None:
        """The tensor of that name, through a tie if there is one."""
        return self.tensors.get(self.tied.get(name, name))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


def open_checkpoint(folder: Path, reference: str) -> Checkpoint:
    """Read the headers of a local model folder.

    Raises:
        CheckpointError: no safetensors there, pickles instead, a damaged file, or an index that does not match.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(folder, reference):
        for info in read_header(file):
            if info.name in tensors:
                raise CheckpointError(f"{reference}: tensor {info.name} stands in two files of {folder}. Remove one.")
            tensors[info.name] = info
    index = folder / "model.safetensors.index.json"
    if index.exists() and (lost := sorted(set(read_json(index)["weight_map"]) - set(tensors))):
        raise CheckpointError(
            f"{reference}: {index.name} names {lost[0]}, which no file of {folder} holds. Fetch it again."
        )
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return checkpoint(reference, folder, tensors, config)


def checkpoint(
    reference: str, folder: Path, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Checkpoint:
    """A checkpoint of these headers, without what a tied model stores twice."""
    for info in tensors.values():
        if info.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{reference}: tensor {info.name} has dtype {info.dtype}, which cannot be merged. "
                "Dequantise the model to bfloat16 first."
            )
    tied = dict(_tied(config, tensors))
    return Checkpoint(reference, folder, {n: t for n, t in tensors.items() if n not in tied}, config)


def _tied(config: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, str]]:
    names = list(names)
    text = config.get("text_config")
    # transformers leaves out what is a family's default; then a model without a head of its own is a tied one.
    headless = not any(n.endswith(OUTPUT_EMBEDDINGS) for n in names)
    default = text.get("tie_word_embeddings", headless) if isinstance(text, dict) else headless
    if not config.get("tie_word_embeddings", default):
        return []
    embedding = next((n for n in names if n.endswith(INPUT_EMBEDDINGS)), None)
    return [(head, embedding) for head in OUTPUT_EMBEDDINGS] if embedding else []


def _weight_files(folder: Path, reference: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        if not named or not all(isinstance(name, str) for name in named):
            raise CheckpointError(f"{reference}: {index} has no weight_map. Save the model again with save_pretrained.")
        files = [folder / name for name in sorted(set(named))]
        for file in files:
            if file.parent != folder or not file.exists():
                raise CheckpointError(f"{reference}: {index.name} names {file.name}, which is not in {folder}.")
        return files
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not folder.is_dir():
        raise CheckpointError(f"{reference}: there is no folder {folder}.")
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        raise CheckpointError(
            f"{reference}: {pickles[0].name} is a pickle, which can run code when it is read; triune reads safetensors "
            f'only. Convert it once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
        )
    raise CheckpointError(f"{reference}: {folder} holds no model.safetensors and no model.safetensors.index.json.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a :class:`CheckpointError` that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one safetensors file, in order of their bytes.

    Raises:
        CheckpointError: the file is truncated, or its header does not describe it.
    """
    try:
        with path.open("rb") as file:
            return header_of(str(path), path.stat().st_size, file.read)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def header_of(file: str, size: int, read: Callable[[int], bytes]) -> list[TensorInfo]:
    """The same of a file that is open at its start; ``read`` gives the next bytes."""
    head = read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(f"{file}: the header claims {length} bytes in a file of {size}. {_AGAIN}")
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not JSON ({error}). {_AGAIN}") from None
    return parse_header(header, file, 8 + length, size)


_AGAIN = "The file is damaged or cut off: fetch it again."


def parse_header(header: Any, file: str, data_start: int, size: int | None) -> list[TensorInfo]:
    """Check a header against the size of its file (None: unknown) and list its tensors in order of their bytes."""
    tensors = []
    entries = header.items() if isinstance(header, dict) else ()
    for name, entry in entries:
        if name == "__metadata__":
            continue
        try:
            first, last = (int(x) for x in entry["data_offsets"])
            info = TensorInfo(
                name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), file, data_start + first
            )
            item = ITEM_BYTES.get(info.dtype)
            fits = 0 <= first <= last and all(n >= 0 for n in info.shape)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{file}: the header's entry for {name!r} is malformed. {_AGAIN}") from None
        if not fits or (item is not None and last - first != info.entries * item):
            raise CheckpointError(
                f"{file}: tensor {name} of shape {list(info.shape)} {info.dtype} cannot take bytes {first} to {last}. "
                f"{_AGAIN}"
            )
        if size is not None and data_start + last > size:
            raise CheckpointError(
                f"{file}: tensor {name} ends at byte {data_start + last}, but the file has {size}. {_AGAIN}"
            )
        tensors.append(info)
    if not tensors:
        raise CheckpointError(f"{file}: the header names no tensor. {_AGAIN}")
    tensors.sort(key=lambda t: t.start)
    for before, after in pairwise(tensors):
        if before.dtype in ITEM_BYTES and before.start + before.nbytes > after.start:
            raise CheckpointError(f"{file}: tensors {before.name} and {after.name} overlap. {_AGAIN}")
    return tensors
