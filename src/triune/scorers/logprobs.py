"""How likely a model finds each answer of a pair: the one number that DPO, its reference and its evaluation share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from triune.checkpoint.identity import identity
from triune.checkpoint.index import open_checkpoint
from triune.checkpoint.quiet import quiet
from triune.checkpoint.ref import ModelRef, resolve_reference
from triune.checkpoint.swap import swapped
from triune.data.pairs import Pair, digest, to_bytes
from triune.data.tokens import Encoded
from triune.engine.executors import Executor
from triune.errors import UserError
from triune.progress import Listener, silent
from triune.scorers.devices import Devices
from triune.scorers.extras import require
from triune.scorers.memory import memory_advice
from triune.scorers.resume import Rewards, score_shared
from triune.scorers.spread import Share, spread

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
"""Tokens in one forward pass, padding included, unless told otherwise."""

ADVICE = "Lower the maximal length of a pair, or free the device of other programs."


class Loaded(NamedTuple):
    """A base in memory, ready to score."""

    model: Any
    """A transformers causal LM in evaluation mode, with TRL's fused head, which never holds all logits at once."""
    ref: ModelRef

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found


class Elsewhere(NamedTuple):
    """A base that the machines of an executor load, each for itself."""

    executor: Executor
    ref: ModelRef
    device: str
    """cpu or cuda, of those machines."""

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32 if self.device == "cpu" else torch.bfloat16


def pick_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it, float32 on a CPU (where bfloat16 is emulated and slower)."""
    import torch

    fast = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load(reference: str, device: str, folder: Path | None = None, dtype: torch.dtype | None = None) -> Loaded:
    """Load a base, in :func:`pick_dtype` if no dtype is given.

    Raises:
        UserError: an adapter, a damaged model, or one that does not fit into memory.
    """
    require("trl")
    return _load(resolve_base(reference, folder), device, dtype or pick_dtype(device))


def _load(ref: ModelRef, device: str, dtype: torch.dtype) -> Loaded:
    from trl.trainer.utils import add_fused_lm_head

    with memory_advice(f"Out of memory while {ref.text} was loaded", ADVICE):
        model = load_weights(ref, dtype).to(device).eval()
    add_fused_lm_head(model)
    return Loaded(model, ref)


def resolve_base(reference: str, folder: Path | None = None) -> ModelRef:
    """The full model that a reference names, with its weights on this machine."""
    ref = resolve_reference(reference, folder)
    if ref.folder is None or ref.adapter is not None:
        raise UserError(f"{reference}: a full model is needed here, not an adapter. Name the model it was trained on.")
    ref.fetch()
    return ref


def load_weights(ref: ModelRef, dtype: torch.dtype) -> Any:
    """A transformers causal LM on the CPU; remote code is never run.

    Raises:
        UserError: transformers cannot load it, or some of its weights are missing.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                ref.folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{ref.text}: transformers cannot load it: {reason} Is it all there?") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{ref.text}: it lacks {len(missing)} tensors, {missing[0]} the first. Fetch it again.")
    return model


def cached_log_probs(
    base: Loaded | Elsewhere,
    version: Path | None,
    pairs: Sequence[Encoded],
    *,
    name: str,
    cache: Path | None,
    devices: Devices,
    listener: Listener = silent,
) -> torch.Tensor:
    """:func:`log_probs` of a version of the base, kept in ``cache`` while they are made: a run that was killed continues.

    Under ``accelerate launch`` each process scores its share and reads the others'.

    Args:
        version: an adapter on the base, a full model of its shapes, or None for the base itself.
        name: the version, for the cache's file name and for messages.
        cache: a folder. None keeps nothing, which needs a single process.

    Raises:
        UserError: a version of another base, or memory runs out.
    """
    import torch

    if not pairs:
        return torch.zeros(0, 2)
    assert base.ref.folder is not None
    by_id = {p.pair.id: p for p in pairs}  # a pair may stand there more than once
    # The tokens stand in for the text: what was cut, and how, changes the scores.
    tokens = {i: " ".join(map(str, (*p.prompt, -1, *p.chosen, -1, *p.rejected))) for i, p in by_id.items()}
    stripped = [Pair(i, text, "", "", "") for i, text in tokens.items()]
    key = f"{identity(base.ref.folder)} {version and identity(version)} {base.dtype}"
    file = f"{re.sub('[^a-z0-9+-]', '_', name)}-{digest(key.encode() + to_bytes(stripped))[:12]}"

    shared = partial(
        score_shared, stripped, folder=cache, name=file, key=key, batch=32, devices=devices, listener=listener
    )
    if isinstance(base, Elsewhere):
        work = partial(_score_there, ref=base.ref, device=base.device, version=version, name=name, pairs=by_id)
        scored = shared(None, spread=partial(spread, executor=base.executor, work=work))
    else:
        with _as_version(base, version, name, by_id):
            scored = shared(partial(_score, model=base.model, pairs=by_id))
    found = {pair.id: pair.rewards["log_prob"] for pair in scored}
    return torch.tensor([found[p.pair.id] for p in pairs])


@contextmanager
def _as_version(base: Loaded, version: Path | None, name: str, pairs: Mapping[str, Encoded]) -> Iterator[None]:
    assert base.ref.folder is not None
    checkpoint = open_checkpoint(base.ref.folder, base.ref.text)
    longest = max(p.length for p in pairs.values())
    with (
        memory_advice(f"Out of memory while pairs of up to {longest} tokens were scored", ADVICE),
        swapped(base.model, checkpoint, version, name),
    ):
        yield


def _score(batch: list[Pair], model: Any, pairs: Mapping[str, Encoded]) -> list[Rewards]:
    rows = log_probs(model, [pairs[p.id] for p in batch]).tolist()
    return [{"log_prob": (chosen, rejected)} for chosen, rejected in rows]


def _score_there(
    share: Share,
    lane: object,
    *,
    ref: ModelRef,
    device: str,
    version: Path | None,
    name: str,
    pairs: Mapping[str, Encoded],
) -> list[list[Rewards]]:
    """What another machine does."""
    import torch

    base = _load(ref, device, torch.float32 if device == "cpu" else torch.bfloat16)
    with _as_version(base, version, name, pairs):
        return [_score(batch, base.model, pairs) for batch in share.batches]


def log_probs(
    model: Any,
    pairs: Sequence[Encoded],
    *,
    batch_tokens: int = BATCH_TOKENS,
    done: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """log pi(chosen | prompt) and log pi(rejected | prompt), summed over the answer's tokens: float32 [pairs, 2].

    Pairs are batched by length, so that little is padding; the result is in the order given. ``done`` is called with
    the number of pairs after each batch. Cost: one forward pass over ``sum(pair.tokens)`` tokens.
    """
    import torch

    device = next(model.parameters()).device
    out = torch.zeros(len(pairs), 2)
    with torch.no_grad():
        for batch in _batches(pairs, batch_tokens):
            rows = [(i, side) for i in batch for side in (0, 1)]
            texts = [(pairs[i].prompt, pairs[i].rejected if side else pairs[i].chosen) for i, side in rows]
            width = max(len(p) + len(a) for p, a in texts)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            mask = torch.zeros_like(ids)
            for row, (prompt, answer) in enumerate(texts):
                end = len(prompt) + len(answer)
                ids[row, :end] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : end] = torch.tensor(answer)
                mask[row, :end] = 1
            seen = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device), fused_lm_head=True
            )
            sums = seen.log_probs.float().sum(1).cpu()
            for row, (i, side) in enumerate(rows):
                out[i, side] = sums[row]
            done(len(batch))
    return out


def _batches(pairs: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of pairs of like length whose padded answers fit into ``batch_tokens``, the longest first: if memory
    does not suffice, that shows at once."""
    batch: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: (-pairs[i].length, i)):
        if batch and 2 * (len(batch) + 1) * pairs[batch[0]].length > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
