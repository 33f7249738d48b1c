"""``python -m benchmarks.startup``: how long the command line takes before it does anything.

The models have the shapes of Llama-3-8B and nothing but headers and configuration: their files are sparse.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.models import EXPERTS, SIZES
from benchmarks.process import measure
from benchmarks.tools import OFFLINE
from triune.checkpoint.writer import ShardWriter, lay_out, shard_index


def write_headers(folder: Path, size: str) -> None:
    """Base and experts without weights."""
    shards = lay_out((name, "BF16", shape) for name, shape in SIZES[size].tensors().items())
    for model in ("base", *EXPERTS):
        target = folder / model
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(SIZES[size].config()))
        if index := shard_index(shards):
            (target / "model.safetensors.index.json").write_text(index)
        with ShardWriter(target, shards, target) as writer:
            for shard in shards:
                writer.write(shard.tensors[0], 0, memoryview(b""))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="Time help and plans.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work" / "startup")
    given = parser.parse_args(arguments)
    shutil.rmtree(given.work / "8b", ignore_errors=True)
    write_headers(given.work / "8b", "8b")
    commands = {"triune --help": ["--help"]}
    for name in ("ties", "tsvm"):
        recipe = given.work / f"{name}.yaml"
        recipe.write_text(CASES[name].recipe((given.work / "8b").resolve()))
        commands[f"triune plan, {name} of three 8B experts"] = ["plan", str(recipe)]
    print("; ".join(f"{key} {value}" for key, value in machine.describe(given.work).items() if key != "disk"))
    print(f"\n| command | s, median of {given.repeats} | [smallest, largest] |\n|---|---|---|")
    for what, command in commands.items():
        costs = [
            measure([sys.executable, "-m", "triune", *command], given.work / "log", OFFLINE)
            for _ in range(given.repeats)
        ]
        if any(c.code for c in costs):
            raise SystemExit((given.work / "log").read_text())
        walls = [c.wall for c in costs]
        print(f"| {what} | {median(walls):.2f} | [{min(walls):.2f}, {max(walls):.2f}] |", flush=True)


if __name__ == "__main__":
    main()
