"""Is the merged model still a model? Cheap checks of the result that catch gibberish before a user does.

The limits, and why they let every method at sane settings pass:

- Of one tensor's norm, between a tenth and ten times what base and experts explain: lost or exploded, never a merge.
- Of one layer's norm against the base's, a half to twice: fine-tuning moves it by a few percent.
- Of one layer's change against the sum S of the experts' changes, four times, and only where the change is also more
  than 5 % of the base. Averages stay below S, sums (task arithmetic, TSVM) reach at most S, and dropping entries with
  rescaling (DARE, DELLA) reaches S * sqrt(1 / density): 3.2 S at density 0.1. Below 5 % even DARE at 0.01 works.
- Perplexity on plain prose at most 1.5 times the base's: tuning for chat costs 0 to 30 %, a broken merge a factor.
- Repeated 4-grams in greedy answers at most one half, or what the base itself shows plus 0.1.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from triune.checkpoint.index import read_header, read_json
from triune.checkpoint.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TENSOR_LIMIT = 10.0
LAYER_LIMIT = 2.0
DRIFT_LIMIT = 4.0
DRIFT_FLOOR = 0.05
PERPLEXITY_LIMIT = 1.5
REPEATS_LIMIT = 0.5
REPEATS_SLACK = 0.1

PROSE = """\
The harbour was quiet in the early morning, and the first boats had not yet come back from the night's fishing. A
woman in a blue coat walked along the wall with a basket on her arm and counted the steps to the lighthouse, as she
had done every day since her brother left for the city. At the end of the wall an old man was mending a net. He nodded
to her without looking up. "The wind will turn before noon," he said, "and then they will all be home at once." She
sat down beside him and watched the water change from grey to green while the sun rose behind the hills.

Bread is made from very few things: flour, water, salt, and some kind of yeast. What makes one loaf different from
another is mostly time. A dough that rests overnight in a cool place has a deeper taste than one that is baked after
an hour, because the yeast and the bacteria in the flour work slowly and leave acids behind. The oven should be as hot
as possible at the beginning, so that the crust forms late and the loaf can rise. After it is taken out, the bread
should cool on a rack for at least half an hour before it is cut."""
"""Written for this check, so that no model was trained on it."""
QUESTIONS = ("How do I keep my house plants healthy?", "What is the capital of France, and what is it known for?")
NEW_TOKENS = 48
MOST_TOKENS = 512
SMALL = 500_000_000


@dataclass(frozen=True)
class TensorNorms:
    """Frobenius norms of one tensor, gathered while the merge streams."""

    name: str
    merged: float
    base: float
    deltas: tuple[float, ...]
    """Of each expert minus base."""
    merged_delta: float
    """Of merged minus base."""


@dataclass(frozen=True)
class Check:
    """One check and its outcome."""

    name: str
    passed: bool | None
    """None: not run."""
    value: str
    sentence: str


def check_norms(norms: Sequence[TensorNorms]) -> list[Check]:
    """NaN and Inf, and the norm of every tensor and layer against the base's and the experts'."""
    broken = [n.name for n in norms if not math.isfinite(n.merged)]
    some = f", e.g. {broken[0]}" if broken else ""
    sentence = f"{len(broken)} of {len(norms)} tensors hold NaN or Inf{some}; none may."
    layers: dict[str, list[TensorNorms]] = {}
    tensors, ratios, changes = {}, {}, {}
    for n in norms:
        if n.name not in broken:
            tensors[n.name] = _scale(n)
            layers.setdefault(_layer(n.name), []).append(n)
    for layer, members in layers.items():
        merged, base = math.hypot(*(n.merged for n in members)), math.hypot(*(n.base for n in members))
        change = math.hypot(*(n.merged_delta for n in members))
        experts = sum(math.hypot(*each) for each in zip_longest(*(n.deltas for n in members), fillvalue=0.0))
        if base:
            ratios[layer] = merged / base
        if change > DRIFT_FLOOR * base:
            changes[layer] = change / experts if experts else math.inf
    explained, all_experts = "times what its inputs explain", "times those of all experts together"
    return [
        Check("finite", not broken, str(len(broken)), sentence),
        _worst("tensor norms", tensors, 1 / TENSOR_LIMIT, TENSOR_LIMIT, f"the norm of {{}} is {{:.3g}} {explained}"),
        _worst("layer norms", ratios, 1 / LAYER_LIMIT, LAYER_LIMIT, "the norm of {} is {:.3g} times the base's"),
        _worst("layer changes", changes, 0, DRIFT_LIMIT, f"the change of {{}} is {{:.3g}} {all_experts}"),
    ]


def _layer(name: str) -> str:
    """The name up to the layer's number; the tensor's own outside the layers (embeddings, final norm, head).

    >>> _layer("model.layers.12.mlp.up_proj.weight"), _layer("lm_head.weight")
    ('model.layers.12', 'lm_head.weight')
    """
    found = re.search(r"\.\d+(?=\.)", name)
    return name[: found.end()] if found else name


def _scale(n: TensorNorms) -> float:
    """The norm as a multiple of what the inputs explain: 1 anywhere between base minus and base plus all deltas."""
    low, high = n.base - sum(n.deltas), n.base + sum(n.deltas)
    if n.merged > high:
        return n.merged / high if high else math.inf
    return n.merged / low if n.merged < low else 1.0


def _worst(name: str, ratios: dict[str, float], low: float, high: float, sentence: str) -> Check:
    if not ratios:
        return Check(name, True, "none", f"Nothing to judge: no change above {DRIFT_FLOOR:.0%} of the base.")

    def badness(key: str) -> float:
        return max(ratios[key] / high, low / ratios[key] if ratios[key] else math.inf if low else 0.0)

    worst = max(ratios, key=badness)
    rule = f"it must stay between {low:g} and {high:g}." if low else f"the limit is {high:g}."
    said = f"At worst, {sentence.format(worst, ratios[worst])}; {rule}"
    return Check(name, low <= ratios[worst] <= high, f"{ratios[worst]:.3g}", said)


def check_model(out: Path, base: Path, *, memory_limit: int, device: str = "cpu") -> list[Check]:
    """Load the result and let it read and write a little. A few seconds for a small model.

    Args:
        out: the merged model, or a folder with a LoRA adapter for ``base``.
        base: the base model's folder.
        memory_limit: bytes; the checks are not run where they would need more.
        device: where to run.
    """
    lora = (out / "adapter_config.json").is_file()
    reason = _cannot_run(out, base, lora)
    if not reason and (needed := _needed(out, base, lora, 2)) > memory_limit:
        # Not the limit itself: it may be half of what is free just now, and equal merges have equal cards.
        reason = f"it would need about {needed / 1e9:.3g} GB of memory, which is above the limit (--max-memory)."
    if reason:
        return [Check(name, None, "not run", f"Not run: {reason}") for name in ("loads", "perplexity", "repetition")]
    # Most CPUs lack bfloat16 arithmetic and then take five times as long with it.
    wide = device == "cpu" and _needed(out, base, lora, 4) <= memory_limit
    with quiet():
        return _check_model(out, base, lora, device, "float32" if wide else "bfloat16")


def _check_model(out: Path, base: Path, lora: bool, device: str, dtype: str) -> list[Check]:
    try:
        model, tokenizer, missing = _load(out, base if lora else None, device, dtype)
    except Exception as error:  # Whatever stops transformers here will stop the user as well.
        return [Check("loads", False, type(error).__name__, f"transformers cannot load it: {_first_line(error)}")]
    some = f", e.g. {missing[0]}" if missing else ""
    sentence = f"transformers loads the result and finds {len(missing)} weights missing{some}; none may be."
    checks = [Check("loads", not missing, str(len(missing)), sentence)]
    try:
        loss, _ = _read(model, tokenizer)
        prompts = _prompts(tokenizer)
        repeats = _write(model, tokenizer, prompts)
    except Exception as error:  # A chat template is a program from a file: it may raise anything.
        sentence = f"The model or its chat template fails on plain text: {_first_line(error)}"
        return [*checks, Check("reads", False, type(error).__name__, sentence)]
    del model

    reference, own, _ = _load(base, None, device, dtype)
    base_loss, tokens = _read(reference, own if _has_tokenizer(base) else tokenizer)
    # The reference's tokens count for both, so that another vocabulary does not move the number.
    perplexity, base_perplexity = (math.exp(min(total / tokens, 100)) for total in (loss, base_loss))
    ratio = perplexity / base_perplexity
    sentence = (
        f"Perplexity on {tokens} tokens of plain prose is {perplexity:.4g}, the base's is {base_perplexity:.4g}; "
        f"the ratio {ratio:.3g} must be at most {PERPLEXITY_LIMIT:g}."
    )
    checks.append(Check("perplexity", math.isfinite(loss) and ratio <= PERPLEXITY_LIMIT, f"{perplexity:.4g}", sentence))
    limit, why = REPEATS_LIMIT, "the limit is"
    if repeats > limit:
        base_repeats = _write(reference, own if _has_tokenizer(base) else tokenizer, prompts)
        limit, why = max(limit, base_repeats + REPEATS_SLACK), f"the base repeats {base_repeats:.0%}, so the limit is"
    sentence = f"{repeats:.0%} of the 4-grams in its greedy answers are repeats; {why} {limit:.0%}."
    return [*checks, Check("repetition", repeats <= limit, f"{repeats:.2f}", sentence)]


def _cannot_run(out: Path, base: Path, lora: bool) -> str | None:
    if lora and find_spec("peft") is None:
        return "the output is a LoRA adapter and peft is not installed (pip install peft)."
    if not (_has_tokenizer(out) or (lora and _has_tokenizer(base))):
        return "the model has no tokenizer, so there is nothing to read with."
    if not any(base.glob("*.safetensors")):  # it was read from a URL
        return "the base's weights are not on this machine, so there is nothing to compare with."
    if read_json(base / "config.json").get("auto_map"):
        return "the model needs its own code, which triune does not run (auto_map in config.json)."
    return None


def _needed(out: Path, base: Path, lora: bool, entry: int) -> int:
    """Peak bytes: the larger model, and the scores of every token of the text, once more as logarithms."""
    models = [_entries(base) + _entries(out)] if lora else [_entries(out), _entries(base)]
    return entry * max(models) + 2 * 4 * MOST_TOKENS * int(read_json(base / "config.json").get("vocab_size") or 0)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _entries(folder: Path) -> int:
    """Numbers in the folder's weights, from the headers of its safetensors files."""
    return sum(tensor.entries for path in folder.glob("*.safetensors") for tensor in read_header(path))


def _load(folder: Path, base: Path | None, device: str, dtype: str) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer, names of missing weights. With ``base``, the folder holds an adapter for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    model, info = AutoModelForCausalLM.from_pretrained(base or folder, dtype=dtype, output_loading_info=True, **local)
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    source = folder if _has_tokenizer(folder) or not base else base
    tokenizer = AutoTokenizer.from_pretrained(source, **local) if _has_tokenizer(source) else None
    return model.to(device).eval(), tokenizer, sorted(info["missing_keys"])


def _prompts(tokenizer: Any) -> list[str]:
    if not tokenizer.chat_template:
        return list(QUESTIONS)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(a, tokenize=False, add_generation_prompt=True) for a in asked]


def _read(model: Any, tokenizer: Any) -> tuple[float, int]:
    """Summed negative log-likelihood of the prose, and over how many tokens."""
    import torch

    ids = tokenizer(PROSE, return_tensors="pt")["input_ids"][:, :MOST_TOKENS].to(model.device)
    with torch.inference_mode():
        scores = model(input_ids=ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum")
    return float(loss), max(ids.shape[1] - 1, 1)


def _write(model: Any, tokenizer: Any, prompts: Sequence[str]) -> float:
    """Fraction of the 4-grams in greedy answers that occurred before in the same answer."""
    import torch
    from transformers import GenerationConfig

    stops = model.generation_config.eos_token_id
    pad = (stops[0] if isinstance(stops, list) else stops) or 0
    # A fresh configuration: a repetition penalty in the model's own would hide what we look for.
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stops, pad_token_id=pad)
    ids = [tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"] for prompt in prompts]
    longest = max(map(len, ids))
    # One batch, padded on the left by hand: not every tokenizer has a padding token.
    batch = torch.tensor([[pad] * (longest - len(i)) + i for i in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=model.device)
    # Token by token, the threads of a small model mostly wait for each other, on a busy machine for minutes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_parameters() < SMALL else threads)
    try:
        with torch.inference_mode():
            answers = model.generate(input_ids=batch, attention_mask=mask, generation_config=greedy)
    finally:
        torch.set_num_threads(threads)
    repeated = total = 0
    for answer in answers[:, longest:].tolist():
        # What follows the first stop is padding.
        ends = [answer.index(stop) for stop in (stops if isinstance(stops, list) else [stops]) if stop in answer]
        grams = list(zip(*(answer[i : min(ends, default=NEW_TOKENS)] for i in range(4)), strict=False))
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
