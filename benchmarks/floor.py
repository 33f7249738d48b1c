"""The floor under every merge: read all inputs once, write one output as large as the base, flush it to the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHUNK = 1 << 22


def pass_through(base: Path, experts: list[Path], out: Path) -> None:
    """Read the weights of all these folders; keep the base's."""
    buffer = bytearray(CHUNK)
    out.mkdir(parents=True)
    for folder in experts:
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as source:
                while source.readinto(buffer):
                    pass
    for file in sorted(base.glob("*.safetensors")):
        with file.open("rb", buffering=0) as source, (out / file.name).open("wb", buffering=0) as target:
            while count := source.readinto(buffer):
                target.write(memoryview(buffer)[:count])
            os.fsync(target.fileno())


if __name__ == "__main__":
    *inputs, folder = map(Path, sys.argv[1:])
    pass_through(inputs[0], inputs[1:], folder)
