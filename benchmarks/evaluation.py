"""``python -m benchmarks.evaluation``: tokens a second of several versions of one model, beside plain lm-eval.

`triune eval` measures all versions in one process, where the base stays loaded and adapters are swapped in; `lm-eval run`
has a process for each version in turn, as its users do. Both run the same tasks on the same rows, and the largest
difference of their numbers is told.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.process import Cost, measure
from benchmarks.tools import OFFLINE
from triune.checkpoint.demo import demo_folder
from triune.evals.tasks import TASKS

VERSIONS = ("base", "helpful", "honest", "harmless")
DEFAULT = "arc_challenge,truthfulqa_mc2,salad_refusal"
"""A likelihood of few choices, one of many, and free answers."""


def triune_command(tasks: str, limit: int, data: Path, out: Path) -> list[str]:
    models = [f"demo:{name}" for name in VERSIONS]
    return [
        *(sys.executable, "-m", "triune", "eval", *models, "--tasks", tasks, "--limit", str(limit)),
        *("--data", str(data), "--allow-code", "--quiet", "-o", str(out)),
    ]


def lm_eval_command(version: str, tasks: str, limit: int, data: Path, out: Path) -> list[str]:
    adapter = "" if version == "base" else f",peft={demo_folder(version)}"
    return [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={demo_folder('base')},dtype=float32{adapter}"),
        *("--include_path", str(TASKS), "--tasks", ",".join(f"triune_{t}" for t in tasks.split(","))),
        *("--apply_chat_template", "--confirm_run_unsafe_code", "--batch_size", "8", "--limit", str(limit)),
        *("--metadata", json.dumps({"data": str(data)}), "--output_path", str(out / version)),
    ]


def tokens_of(run: Path) -> int:
    """Tokens of all questions and answers of a run: each question once, and every choice or answer to it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder("base"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    total = 0
    for file in run.glob("*/samples/*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            sample: dict[str, Any] = json.loads(line)
            texts = [c["text"] for c in sample["choices"]] if "choices" in sample else [sample["answer"]]
            total += count(sample.get("sent") or sample["prompt"]) + sum(map(count, texts))
    return total


def values_of_triune(run: Path) -> dict[tuple[str, str], float]:
    """(version, task) -> value."""
    from triune.evals.store import read

    return {(r.model.name.removeprefix("demo:"), r.benchmark): r.value for r in read(run) if r.split == "all"}


def values_of_lm_eval(run: Path, known: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The same of lm-eval's files: of each task the metric that triune reports."""
    from triune.evals.benchmark import BENCHMARKS

    found = {}
    for version, task in known:
        (file,) = (run / version).rglob("results_*.json")
        results = json.loads(file.read_text())["results"][f"triune_{task}"]
        found[version, task] = results[f"{BENCHMARKS[task].metric},none"]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description="Time whole evaluations.")
    parser.add_argument("--tasks", default=DEFAULT, help=f"benchmarks without code, {DEFAULT} if not given")
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark rows")
    parser.add_argument("--limit", type=int, default=16, metavar="ROWS")
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work" / "evaluation")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    ours: list[Cost] = []
    theirs: list[list[Cost]] = []
    for turn in range(given.repeats):
        out, peer = given.work / f"triune-{turn}", given.work / f"lm-eval-{turn}"
        for folder in (out, peer):
            shutil.rmtree(folder, ignore_errors=True)
        ours.append(_measured(triune_command(given.tasks, given.limit, given.data, out), out))
        peer.mkdir()
        commands = {v: lm_eval_command(v, given.tasks, given.limit, given.data, peer) for v in VERSIONS}
        theirs.append([_measured(command, peer / version) for version, command in commands.items()])
    first = given.work / "triune-0"
    tokens, mine = tokens_of(first), values_of_triune(first)
    other = values_of_lm_eval(given.work / "lm-eval-0", list(mine))
    apart = max(abs(mine[key] - other[key]) for key in mine)
    walls = [median(c.wall for c in ours), median(sum(c.wall for c in turn) for turn in theirs)]
    peaks = [max(c.peak for c in ours), max(c.peak for turn in theirs for c in turn)]
    print(f"\n{'; '.join(f'{k} {v}' for k, v in machine.describe(given.work).items() if k != 'disk')}")
    print(f"{given.tasks}, {given.limit} rows each, {len(VERSIONS)} versions of one model, {tokens:,} tokens\n")
    print("| program | s | tokens / s | GB | faster |\n|---|---|---|---|---|")
    for name, wall, peak in zip(("triune eval", "lm-eval run, batch 8"), walls, peaks, strict=True):
        print(f"| {name} | {wall:.0f} | {tokens / wall:.0f} | {peak / 1e9:.1f} | {walls[1] / wall:.2g}x |")
    print(f"\nLargest difference of any of {len(mine)} values: {apart:.2g}")


def _measured(command: list[str], out: Path) -> Cost:
    cost = measure(command, out.with_name(f"{out.name}.log"), OFFLINE)
    print(f"{out.name}: {cost.wall:.0f} s", flush=True)
    if cost.code:
        raise SystemExit(f"exit code {cost.code}, see {out.with_name(f'{out.name}.log')}")
    return cost


if __name__ == "__main__":
    main()
