"""RLHFlow/ArmoRM-Llama3-8B-v0.1: a reward model with 19 objectives (arXiv 2406.12845).

It is published with Python code of its own, which we never run. It is a plain Llama with three small parts beside it:
``regression_layer``, ``gating.layers`` and ``reward_transform_matrix``, whose arithmetic stands in ``armorm_heads.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from triune.checkpoint.identity import identity
from triune.checkpoint.index import Checkpoint, open_checkpoint
from triune.checkpoint.quiet import quiet
from triune.checkpoint.ref import ModelRef, resolve_reference
from triune.data.pairs import Pair
from triune.data.tokens import Encoded, load_encoder
from triune.engine.executors import Executor
from triune.errors import CheckpointError, UserError
from triune.progress import Listener, silent
from triune.scorers.armorm_heads import COLUMNS, GATE_TEXT, Heads, last_occurrence
from triune.scorers.devices import Devices, find_devices
from triune.scorers.logprobs import ADVICE, Elsewhere, pick_dtype
from triune.scorers.memory import memory_advice
from triune.scorers.resume import Rewards, score_shared
from triune.scorers.spread import Share, spread

MODEL = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
SCORE = "armorm-score"
"""The column of the gated sum, beside the 19 rewards."""
NEEDS = (
    "The published model takes 16 GB on a GPU in bfloat16, 32 GB on a CPU. Free the device of other programs, or choose "
    "another scorer."
)


def score(
    pairs: Sequence[Pair],
    *,
    model: str = MODEL,
    max_length: int = 4096,
    batch: int = 8,
    journal: Path | None = None,
    folder: Path | None = None,
    devices: Devices | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    listener: Listener = silent,
) -> list[Pair]:
    """The pairs with ArmoRM's 19 rewards and their gated sum as columns.

    Args:
        model: reference of the checkpoint.
        max_length: pairs with more tokens than this in prompt and longer answer are left out of the result, as in
            the model's own training: an answer that is cut has no end for the reward to be read at.
        batch: pairs scored at once.
        journal: a folder for finished scores, so that a killed run continues.
        folder: where relative references start, besides the working directory.
        executor: whose machines score, instead of this one; ``device`` is theirs: cpu or cuda.

    Raises:
        UserError: no such checkpoint, one that is damaged or no reward model like this, a chat template without a place
            for the gate, or memory runs out.

    Cost: one forward pass over prompt and answer of both sides; 16 GB of memory in bfloat16, 32 GB on a CPU.
    """
    devices = devices or find_devices()
    ref = resolve_judge(model, folder)
    read_heads(open_checkpoint(_folder(ref), model))  # what is no reward model shows before anything large is loaded
    encoder = load_encoder(model, folder)
    fit = encoder.fit(pairs, max_length, "drop")
    encoded = {one.pair.id: one for one in fit.pairs}
    shared = partial(
        score_shared,
        [one.pair for one in fit.pairs],
        folder=journal,
        name="score-armorm",
        batch=batch,
        devices=devices,
        listener=listener,
    )
    if executor:
        work = partial(_score_there, reference=model, device=device, folder=folder, encoded=encoded)
        key = key_of(ref, Elsewhere(executor, ref, device).dtype)
        return shared(None, key=key, spread=partial(spread, executor=executor, work=work))
    judge = Judge(model, devices.device, folder)
    longest = max((one.length for one in fit.pairs), default=0)
    with memory_advice(f"Out of memory while pairs of up to {longest} tokens were scored", ADVICE):
        return shared(partial(_score, judge=judge, encoded=encoded), key=judge.key)


def _score(some: Sequence[Pair], judge: Judge, encoded: Mapping[str, Encoded]) -> list[Rewards]:
    return judge.rewards([encoded[pair.id] for pair in some])


def _score_there(
    share: Share, lane: object, *, reference: str, device: str, folder: Path | None, encoded: Mapping[str, Encoded]
) -> list[list[Rewards]]:
    """What another machine does."""
    judge = Judge(reference, device, folder)
    return [_score(batch, judge, encoded) for batch in share.batches]


def resolve_judge(reference: str, folder: Path | None) -> ModelRef:
    """The reward model that is meant, with its weights on this machine."""
    ref = resolve_reference(reference, folder)
    if ref.folder is None or ref.adapter is not None:
        raise CheckpointError(f"{reference} is an adapter, not a reward model. Name a full model, such as {MODEL}.")
    ref.fetch()
    return ref


def key_of(ref: ModelRef, dtype: Any) -> str:
    """What decides the scores besides the pairs."""
    return f"armorm {identity(_folder(ref))} {dtype}"


def _folder(ref: ModelRef) -> Path:
    assert ref.folder is not None
    return ref.folder


class Judge:
    """The model in memory."""

    def __init__(self, reference: str, device: str, folder: Path | None = None) -> None:
        ref = resolve_judge(reference, folder)
        self.heads = read_heads(open_checkpoint(_folder(ref), reference), device)
        self.encoder = load_encoder(reference, folder)
        self.backbone = load_backbone(ref, device)
        self.pattern = self.encoder.tokenizer(GATE_TEXT, add_special_tokens=False)["input_ids"]
        self.key = key_of(ref, self.backbone.dtype)
        self.name, self.device = reference, device

    def rewards(self, pairs: Sequence[Encoded]) -> list[Rewards]:
        """Of each pair the columns, computed in one batch."""
        texts = [(*one.prompt, *answer) for one in pairs for answer in (one.chosen, one.rejected)]
        rows, scores = self.read(texts)
        columns = [[*row, total] for row, total in zip(rows.tolist(), scores.tolist(), strict=True)]
        sides = zip(columns[::2], columns[1::2], strict=True)
        return [dict(zip((*COLUMNS, SCORE), zip(*both, strict=True), strict=True)) for both in sides]

    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Rewards [texts, objectives] and scores [texts] of token sequences, padded on the right to one length."""
        import torch

        # No mask: attention is causal, so nothing that is read sees the padding on its right.
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        with torch.no_grad():
            hidden = self.backbone(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
            every = torch.arange(len(texts))
            last = hidden[every, [len(text) - 1 for text in texts]]
            prompt = hidden[every, [self._gate(text) for text in texts]]
            return self.heads.rewards(last), self.heads.score(last, prompt)

    def _gate(self, text: Sequence[int]) -> int:
        at = last_occurrence(text, self.pattern)
        if at is None:
            raise CheckpointError(
                f"{self.name}: its chat template never writes {GATE_TEXT!r}, where the gate reads the prompt. "
                "Use the tokenizer that was published with the model."
            )
        return at


def load_backbone(ref: ModelRef, device: str) -> Any:
    """The Llama below the heads, in evaluation mode; remote code is never run.

    Raises:
        UserError: transformers cannot load it, some of its weights are missing, or memory runs out.
    """
    from transformers import AutoModel

    try:
        with memory_advice(f"Out of memory while {ref.text} was loaded", NEEDS), quiet():
            model, report = AutoModel.from_pretrained(
                ref.folder,
                dtype=pick_dtype(device),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            model = model.to(device).eval()
    except UserError:
        raise
    except Exception as error:  # transformers raises anything where a config or a shape is not what it should be
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{ref.text}: transformers cannot load it: {reason} Is it all there?") from None
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{ref.text} lacks the tensor {missing[0]} of its backbone. Fetch it again.")
    return model


def read_heads(checkpoint: Checkpoint, device: str = "cpu") -> Heads:
    """The parts beside the backbone, from safetensors alone.

    Raises:
        CheckpointError: a part is missing, or is not what the others ask for.
    """
    from safetensors import safe_open

    def setting(name: str, default: float) -> float:
        value = checkpoint.config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(
                f"{checkpoint.reference}: {name} in its config.json must be a number above 0, got {value!r}. Fetch it again."
            )
        return value

    def tensor(name: str, *shape: int | None) -> Any:
        info = checkpoint.tensors.get(name)
        found = info.shape if info else ()
        if len(found) != len(shape) or any(want not in (None, n) for want, n in zip(shape, found, strict=True)):
            said = f"has the shape {list(found)}" if info else "is missing"
            raise CheckpointError(
                f"{checkpoint.reference}: the tensor {name} {said}, so this is not a reward model like {MODEL}. "
                "Name one, or choose another scorer."
            )
        assert info is not None  # every shape asked for has a dimension
        with safe_open(info.file, framework="pt", device=device) as file:
            return file.get_tensor(name).float()

    objectives = len(COLUMNS)
    regression = tensor("regression_layer.weight", objectives, checkpoint.config.get("hidden_size"))
    width, layers = regression.shape[1], []
    count = int(setting("gating_n_hidden", 3)) + 1
    for i in range(count):
        weight = tensor(f"gating.layers.{i}.weight", objectives if i == count - 1 else None, width)
        layers.append((weight, tensor(f"gating.layers.{i}.bias", weight.shape[0])))
        width = weight.shape[0]
    transform = tensor("reward_transform_matrix", objectives, objectives)
    scale = float(tensor("gating.logit_scale", 1)[0])
    return Heads(regression, tuple(layers), transform, setting("gating_temperature", 10), scale)
