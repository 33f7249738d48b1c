"""Headers of safetensors files, whole folders, and ties, read without a weight."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from triune.checkpoint.index import ITEM_BYTES, TensorInfo, open_checkpoint, parse_header, read_header
from triune.errors import CheckpointError, UserError
from triune.testing import write_checkpoint

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1, dtype=torch.int64), "c": torch.zeros(0, 4)}


def test_names_dtypes_shapes_and_places(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "x.safetensors").read_bytes()
    found = {t.name: t for t in read_header(tmp_path / "x.safetensors")}
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        "a": ("I64", ()),
        "b": ("F32", (2, 3)),
        "c": ("F32", (0, 4)),
    }
    b = found["b"]
    assert content[b.start : b.start + b.nbytes] == TENSORS["b"].numpy().tobytes()


@pytest.mark.parametrize(
    ("shape", "matrix"), [((), (1, 1)), ((5,), (1, 5)), ((2, 3), (2, 3)), ((2, 3, 4), (6, 4)), ((3, 0), (0, 0))]
)
def test_every_tensor_reads_as_a_matrix(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert TensorInfo("x", "F32", shape, "", 0).matrix == matrix


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder(tmp_path: Path, shards: int) -> None:
    tensors = {f"w{i}": torch.full((i + 1,), float(i)) for i in range(7)}
    write_checkpoint(tmp_path, tensors, {"model_type": "llama"}, shards=shards)
    found = open_checkpoint(tmp_path, "me")
    assert set(found.tensors) == set(tensors)
    assert found.nbytes == sum(t.nbytes for t in tensors.values())
    assert found.config == {"model_type": "llama"}
    assert len({t.file for t in found.tensors.values()}) == shards


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2)}, {}, shards=2)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="tensor a stands in two files"):
        open_checkpoint(tmp_path, "me")


@pytest.mark.parametrize("nested", [False, True])
def test_ties(tmp_path: Path, nested: bool) -> None:
    tie = {"tie_word_embeddings": True}
    tensors = {"model.embed_tokens.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2, 2)}
    write_checkpoint(tmp_path, tensors, {"text_config": tie} if nested else tie)
    found = open_checkpoint(tmp_path, "me")
    assert set(found.tensors) == {"model.embed_tokens.weight"}
    assert found.get("lm_head.weight") is found.tensors["model.embed_tokens.weight"]


def test_an_unknown_dtype(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"xx")
    with pytest.raises(CheckpointError, match=r"me: tensor w has dtype F8_E4M3.*Dequantise"):
        open_checkpoint(tmp_path, "me")


def attempt(read: Callable[[], list[TensorInfo]]) -> tuple[str | None, list[TensorInfo]]:
    """The refusal, if any, and what was read, if anything."""
    try:
        return None, read()
    except UserError as error:
        return str(error), []


_numbers = st.integers(-3, 40)
_entry = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*ITEM_BYTES, "X9"]), "shape": st.lists(_numbers, max_size=3)},
    optional={"data_offsets": st.lists(_numbers, min_size=1, max_size=3)},
)
_json = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3), max_leaves=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=3), _entry | _json, max_size=4) | _json)
def test_any_header_is_read_or_refused(header: Any) -> None:
    said, tensors = attempt(lambda: parse_header(header, "file", 8, 48))
    assert said is None or said.startswith("file: ")
    assert all(t.start >= 8 and (t.dtype not in ITEM_BYTES or t.start + t.nbytes <= 48) for t in tensors)
    known = [t for t in tensors if t.dtype in ITEM_BYTES and t.nbytes]
    assert all(a.start + a.nbytes <= b.start for a, b in pairwise(known))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cut=st.integers(0, 400), place=st.integers(0, 399), bit=st.integers(0, 7))
def test_any_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, bit: int
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    save_file(TENSORS, file)
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content[:cut])
    said, tensors = attempt(lambda: read_header(file))
    assert said is None or str(file) in said
    assert all(t.dtype not in ITEM_BYTES or t.start + t.nbytes <= cut for t in tensors)
