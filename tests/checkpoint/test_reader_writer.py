"""Reading parts of tensors by position, and writing each tensor at its place in a shard, in any order."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from triune.checkpoint.index import TensorInfo, read_header
from triune.checkpoint.reader import Files, Reader, runs
from triune.checkpoint.source import Factors
from triune.checkpoint.writer import ShardWriter, lay_out, shard_index
from triune.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def info_of(file: Path, name: str) -> TensorInfo:
    return next(t for t in read_header(file) if t.name == name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(11, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"pad": torch.zeros(3), "w": tensor}, tmp_path / "x.safetensors")
    info, hasher = info_of(tmp_path / "x.safetensors", "w"), hashlib.sha256()
    with Files() as files:
        reader = Reader(files)
        for first, last in ((0, 4), (4, 10), (10, 11)):
            out = torch.empty(last - first, 5)
            reader.rows(info, first, last, out, hasher)
            assert torch.equal(out, tensor[first:last].float())
        assert torch.equal(reader.whole(info), tensor.float())
    assert hasher.hexdigest() == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


def test_rows_in_another_order(tmp_path: Path) -> None:
    tensor = torch.arange(20.0).reshape(10, 2)
    save_file({"w": tensor}, tmp_path / "x.safetensors")
    rows = (3, 4, 5, -1, 0, -1, -1, 9, 8)
    out = torch.full((len(rows), 2), -7.0)
    with Files() as files:
        Reader(files).mapped_rows(info_of(tmp_path / "x.safetensors", "w"), rows, out)
    for place, row in enumerate(rows):
        assert torch.equal(out[place], tensor[row] if row >= 0 else torch.full((2,), -7.0))


def test_runs_cover_every_row_once() -> None:
    chance = random.Random(1)
    for _ in range(200):
        rows = tuple(chance.choice((-1, 0, 1, 2, 3, 4)) for _ in range(chance.randint(0, 8)))
        found = {place + i: row + i for place, row, count in runs(rows) for i in range(count)}
        assert found == {place: row for place, row in enumerate(rows) if row >= 0}


@pytest.mark.parametrize("transposed", [False, True])
def test_low_rank(tmp_path: Path, transposed: bool) -> None:
    a, b = torch.randn(2, 5), torch.randn(3, 2)
    save_file({"a": a, "b": b}, tmp_path / "x.safetensors")
    infos = (info_of(tmp_path / "x.safetensors", n) for n in "ab")
    factors = Factors(*infos, scale=0.5, transposed=transposed)
    with Files() as files:
        delta = Reader(files).low_rank(factors)
    wanted = 0.5 * b @ a
    torch.testing.assert_close(delta.dense(), wanted.T if transposed else wanted)
    assert delta.shape == factors.shape


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100, 2)}, tmp_path / "x.safetensors")
    info = info_of(tmp_path / "x.safetensors", "w")
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(300)
    with Files() as files, pytest.raises(CheckpointError, match="ends at byte 300: it was cut off"):
        Reader(files).whole(info)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    info = TensorInfo("w", "F32", (2,), str(tmp_path / "gone"), 0)
    # Not a mistake in a model: the merge keeps what is finished and says what the system said.
    with Files() as files, pytest.raises(FileNotFoundError, match="gone"):
        Reader(files).whole(info)


# --- writing ----------------------------------------------------------------------------------------------------

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4).to(torch.bfloat16), "c": torch.tensor(3)}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def triples() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(n, CODES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()]


@pytest.mark.parametrize("limit", [1, 24, 32, 1000])
def test_tensors_written_in_any_order_and_in_pieces(tmp_path: Path, limit: int) -> None:
    shards = lay_out(triples(), limit)
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    places = {t.name: t for s in shards for t in s.tensors}
    pieces = [
        (places[n], at, t.reshape(-1).view(torch.uint8).numpy().tobytes()[at : at + 3])
        for n, t in TENSORS.items()
        for at in range(0, t.nbytes, 3)
    ]
    random.Random(limit).shuffle(pieces)
    with ShardWriter(tmp_path / "work", shards, tmp_path / "out") as writer:
        for info, at, data in pieces:
            writer.write(info, at, memoryview(data))
        for n, t in TENSORS.items():
            wanted = hashlib.sha256(t.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
            assert writer.digest(places[n]) == wanted
        assert list((tmp_path / "out").iterdir()) == []
        writer.finish()
    assert list((tmp_path / "work").iterdir()) == []
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [s.name for s in shards]
    assert [f.stat().st_size for f in files] == [s.nbytes for s in shards]
    found = {n: t for f in files for n, t in load_file(f).items()}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in TENSORS.items())
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_no_shard_is_larger_than_asked_unless_one_tensor_is() -> None:
    sizes = [5, 3, 9, 1, 1, 20, 2]
    shards = lay_out([(f"w{i}", "U8", (n,)) for i, n in enumerate(sizes)], 10)
    assert [[t.entries for t in s.tensors] for s in shards] == [[5, 3], [9, 1], [1], [20], [2]]
    assert [s.name for s in shards][-1] == "model-00005-of-00005.safetensors"
    assert all(len(s.header) % 8 == 0 for s in shards)
    assert shard_index(shards) is not None
    assert shard_index(lay_out([("w", "U8", (3,))])) is None
