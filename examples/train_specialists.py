"""Train the three demo specialists (helpful, honest, harmless) by DPO from preference pairs, on a CPU.

    python examples/train_specialists.py --data DIR [--only NAME ...] [--steps 32] [--out src/triune/demo_adapters]

``--data`` (or ``$TRIUNE_DATA``) names a folder with the ``pref_*.jsonl`` files listed in ``SPECIALISTS``, one JSON
object a line: ``prompt``, ``chosen``, ``rejected`` and ``split`` (``train`` or ``val``). The three get the same budget,
and rows of the split ``val`` only ever measure. Needs ``pip install triune[demo,train]``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from datasets import Dataset
from matplotlib import pyplot as plt
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from triune.checkpoint.demo import demo_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEED, BATCH = 0, 8
# Prompt and answer together. Longer pairs are left out, not cut: a cut answer has no end to learn.
MAX_TOKENS = {"train": 128, "val": 192}
LEARNING_RATE, BETA = 5e-4, 0.1
# DPO only widens the gap, which can leave both answers less likely. This much plain likelihood keeps the chosen one up.
SFT_WEIGHT = 0.2
RANK, ALPHA = 8, 16
STRENGTH = {"helpful": 1.0, "honest": 1.0, "harmless": 0.75}  # what is stored; NOTES says why
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NOTES = {
    "honest": "\nTrained on TruthfulQA: do not compare it with other models there.\n",
    "harmless": "\nAt full strength it also refused to name the capital of France. What is stored is the strength that, by "
    "reading the\nanswers to a few questions, still refuses harmful ones. It refuses many harmless ones as well.\n",
}
TABLE_HEAD = """| validation pairs | n | reward before | reward after | plain before | plain after |
| --- | --- | --- | --- | --- | --- |"""


class Source(NamedTuple):
    """A preference file, and whose data it is."""

    file: str
    origin: str
    licence: str


# HaluEval-QA is left out of honesty on purpose: its chosen answer is longer in 5% of the pairs, so it teaches brevity.
SPECIALISTS = {
    "helpful": [
        Source("pref_pandalm.jsonl", "PandaLM test set, pairs where all three annotators agree", "Apache-2.0"),
        Source("pref_ultrafeedback.jsonl", "UltraFeedback (OpenBMB), binarised", "MIT"),
    ],
    "honest": [Source("pref_truthfulqa.jsonl", "TruthfulQA fine-tuning data, human-labelled answers", "Apache-2.0")],
    "harmless": [Source("pref_hh_harmless.jsonl", "Anthropic HH-RLHF, harmless-base, read and filtered", "MIT")],
}


class Pair(NamedTuple):
    """One preference: a prompt in the chat template, and two answers that end the turn."""

    file: str
    prompt: str
    chosen: str
    rejected: str
    tokens: int


def read_pairs(data: Path, sources: Sequence[Source], split: str, tokenizer: Any) -> list[Pair]:
    """The pairs of a split that fit into :data:`MAX_TOKENS`."""
    pairs = []
    for source in sources:
        for line in (data / source.file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["split"] != split:
                continue
            prompt = tokenizer.apply_chat_template(messages(row["prompt"]), tokenize=False, add_generation_prompt=True)
            chosen, rejected = (row[side].strip() + tokenizer.eos_token for side in ("chosen", "rejected"))
            tokens = max(len(tokenizer(prompt + answer)["input_ids"]) for answer in (chosen, rejected))
            if tokens <= MAX_TOKENS[split]:
                pairs.append(Pair(source.file, prompt, chosen, rejected, tokens))
    return pairs


def messages(prompt: str) -> list[dict[str, str]]:
    """A prompt as chat messages. HH-RLHF writes several turns as ``Human: ...`` and ``Assistant: ...`` paragraphs."""
    if not prompt.startswith("Human:"):
        return [{"role": "user", "content": prompt.strip()}]
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", prompt)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)]


def in_training_order(pairs: Sequence[Pair], steps: int) -> list[Pair]:
    """A seeded choice of pairs for the steps, in batches of like length: less padding, so faster."""
    rng = random.Random(SEED)
    count = min(len(pairs), steps * BATCH) // BATCH * BATCH
    chosen = sorted(rng.sample(list(pairs), count), key=lambda pair: pair.tokens)
    batches = [chosen[i : i + BATCH] for i in range(0, count, BATCH)]
    rng.shuffle(batches)
    return [pair for batch in batches for pair in batch]


@torch.no_grad()
def log_probs(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """For each pair the log-probabilities of both answers and their lengths in tokens: [pairs, 2 answers, 2]."""
    out = torch.zeros(len(pairs), 2, 2)
    for i, pair in enumerate(pairs):
        prompt = tokenizer(pair.prompt, return_tensors="pt")["input_ids"]
        start = prompt.shape[1]
        read = model(input_ids=prompt, use_cache=True, logits_to_keep=1)  # once for both answers
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            ids = tokenizer(pair.prompt + answer, return_tensors="pt")["input_ids"][:, start:]
            rest = model(input_ids=ids[:, :-1], past_key_values=read.past_key_values, use_cache=True)
            read.past_key_values.crop(1 - ids.shape[1])
            scores = torch.cat([read.logits[0], rest.logits[0]]).log_softmax(-1).gather(-1, ids[0, :, None])
            out[i, side] = torch.tensor([scores.sum().item(), ids.shape[1]])
    return out


def preferred(scores: torch.Tensor) -> str:
    """How often the chosen answer scores above the rejected one, from scores [pairs, 2], with its Wilson interval."""
    margin = scores[:, 0] - scores[:, 1]
    n, z = len(margin), 1.96
    rate = ((margin > 0).sum().item() + 0.5 * (margin == 0).sum().item()) / n  # a tie counts one half
    mid = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    return f"{rate:.3f} [{max(0, mid - half):.3f}, {min(1, mid + half):.3f}]"


def train(base: Path, pairs: Sequence[Pair], steps: int) -> tuple[PeftModel, list[dict[str, Any]]]:
    """Train one adapter. Returns it with one record a step."""
    torch.manual_seed(SEED)  # the adapter's start
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, task_type="CAUSAL_LM"))
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(
            output_dir=scratch,
            max_steps=steps,
            # Small pieces of a batch are faster on a CPU: their activations stay in memory that is already mapped.
            per_device_train_batch_size=BATCH // 2,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 10),
            beta=BETA,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, SFT_WEIGHT],
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
        trainer = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
    kept = {"step": "step", "loss": "loss", "rewards/margins": "reward_margin", "rewards/accuracies": "reward_accuracy"}
    kept |= {"grad_norm": "grad_norm", "learning_rate": "learning_rate"}
    return model, [{kept[k]: e[k] for k in kept} for e in trainer.state.log_history if "loss" in e]


def save(model: PeftModel, strength: float, folder: Path) -> None:
    """Write the adapter in bf16, and change the one in memory alike so that what is measured is what is shipped."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(parameter.data.bfloat16())
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", strength)
    model.peft_config["default"].lora_alpha = round(ALPHA * strength)
    model.peft_config["default"].base_model_name_or_path = BASE_ID  # not the folder on this machine
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    weights = folder / "adapter_model.safetensors"
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in any order
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def plot(name: str, records: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss and reward margin by step."""
    figure, axis = plt.subplots(figsize=(5, 2.6), dpi=80, layout="constrained")
    for key, colour, label in (("loss", "C0", "loss"), ("reward_margin", "C1", "reward margin")):
        axis.plot([r["step"] for r in records], [r[key] for r in records], colour, label=label)
    axis.set(xlabel="step", title=f"{name}: DPO")
    axis.legend(frameon=False)
    figure.savefig(file)


def card(name: str, used: dict[str, int], steps: int, minutes: float, command: str, table: str) -> str:
    """The adapter's README."""
    data = "\n".join(f"| `{s.file}` | {used[s.file]} | {s.origin} | {s.licence} |" for s in SPECIALISTS[name])
    return f"""---
license: apache-2.0
base_model: {BASE_ID}
library_name: peft
pipeline_tag: text-generation
language: [en]
tags: [lora, dpo, triune, {name}]
---

# The {name} demo specialist

A rank {RANK} LoRA adapter for {BASE_ID}, trained briefly on a CPU so that
triune has three specialists to merge. It shows the tool at work. It is not a model to deploy, and it is not safe or
truthful by any useful standard.

## Training

| file | pairs used | source | licence of the data |
| --- | --- | --- | --- |
{data}
{NOTES.get(name, "")}
{sum(used.values())} different pairs of at most {MAX_TOKENS["train"]} tokens, {steps} steps of {BATCH} pairs, seed {SEED}, {minutes:.0f} minutes on a CPU (threads: {torch.get_num_threads()}).
Loss: DPO (sigmoid, beta {BETA}) plus {SFT_WEIGHT} x the negative log-likelihood of the chosen answer. AdamW, learning
rate {LEARNING_RATE}, cosine, {max(1, steps // 10)} warm-up steps. LoRA: rank {RANK}, alpha {ALPHA}, all linear layers of attention and MLP.
Trained in fp32 on the unpacked 4-bit weights of the demo base, stored in bf16 at {STRENGTH[name]:.0%} of its strength.
The three specialists have the same budget. `training.jsonl` has every step.

![loss and reward margin](training.png)

## Preference accuracy on held-out pairs

The share of validation pairs whose chosen answer scores above the rejected one, with its 95% Wilson interval. *Reward*
is the implicit reward (policy minus base log-probability; ties count one half, so 0.5 is no change). *Plain* is the
log-probability per token.

{table}

Made by `{command}`.
"""  # noqa: E501 (a page, not code)


def main() -> None:
    """Train, measure, and write the adapter folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TRIUNE_DATA")
    parser.add_argument("--data", type=Path, default=data, required=not data, help="default: $TRIUNE_DATA")
    parser.add_argument("--only", nargs="+", choices=list(SPECIALISTS), default=list(SPECIALISTS))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("src/triune/demo_adapters"))
    args = parser.parse_args()
    plt.switch_backend("agg")
    command = f"python examples/train_specialists.py --data DIR --steps {args.steps}"

    base = demo_folder("base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    held_out = {name: read_pairs(args.data, sources, "val", tokenizer) for name, sources in SPECIALISTS.items()}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = {name: log_probs(model, tokenizer, pairs) for name, pairs in held_out.items()}

    for name in args.only:
        started = time.monotonic()
        pairs = in_training_order(read_pairs(args.data, SPECIALISTS[name], "train", tokenizer), args.steps)
        model, records = train(base, pairs, args.steps)
        minutes = (time.monotonic() - started) / 60
        folder = args.out / name
        save(model, STRENGTH[name], folder)
        plot(name, records, folder / "training.png")
        (folder / "training.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        model.eval()
        lines = [TABLE_HEAD]
        for other, held in held_out.items():
            old, new = before[other], log_probs(model, tokenizer, held)
            gains = (torch.zeros(len(held), 2), new[..., 0] - old[..., 0])
            plain = (old[..., 0] / old[..., 1], new[..., 0] / new[..., 1])
            lines.append(f"| {other} | {len(held)} | " + " | ".join(map(preferred, gains + plain)) + " |")
        used = {source.file: sum(pair.file == source.file for pair in pairs) for source in SPECIALISTS[name]}
        text = card(name, used, args.steps, minutes, command, "\n".join(lines))
        (folder / "README.md").write_text(text, encoding="utf-8")
        print(name, *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
