"""lm-eval's model class for transformers, made frugal: the same answers with less memory and fewer steps.

This module imports lm-eval, which imports torch: import it where a model is about to run.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from triune.evals.choices import Row, lay_out, read_off

if TYPE_CHECKING:
    import torch

Prompt = tuple[int, ...]

PREFIX = 32
"""Tokens that a shared beginning must have to be worth a pass of its own."""


class Limits(NamedTuple):
    """What one batch may hold."""

    answers: int
    """Prompts that are answered together."""
    tokens: int
    """Of these prompts and their answers, in keys and values: 2^15 are 1.5 GB for SmolLM2-135M in float32."""
    logits: int
    """Numbers, for choices: 2^27 are 0.5 GB in float32, and their softmax takes as much again."""


LIMITS = {"cpu": Limits(64, 1 << 15, 1 << 27), "cuda": Limits(128, 1 << 17, 1 << 31)}


class FrugalLM(HFLM):  # type: ignore[misc]
    """What lm-eval does, except that

    - choices are batched by tokens, so that their logits fit into :data:`LIMITS`: a fixed number of rows that suits short
      prompts runs out of memory at long ones;
    - logits are made of the last positions only, which are all that the likelihood of a choice needs;
    - a prompt with several choices is read once (:mod:`triune.evals.choices`), if the model proves to allow it;
    - examples that all prompts of a batch begin with are read once, and keys and values are not copied at each token;
    - an answer that has ended with any of the stop strings is not continued until all others have ended, too.

    Args:
        model: a transformers causal LM in evaluation mode.
        tokenizer: its tokenizer.
        batch: rows at a time, for choices and answers alike; by the above if not given.
    """

    cache_hook: Any

    def __init__(self, model: Any, tokenizer: Any, batch: int | None = None) -> None:
        device = model.device.type
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch or "auto", max_batch_size=None)
        self.ends: list[str] = []
        """How the answers of the last batch ended, ``stop`` or ``length``, in its order; who reads one takes it out."""
        self.cut = 0
        """Prompts that were longer than the model reads, and lost their beginning."""
        self.limits = LIMITS[device]
        self.rows = batch or 1 << 20
        self.tokens = self.limits.logits // model.get_input_embeddings().num_embeddings
        """Of a batch of choices, padding included."""
        self.answers = 1
        """Of a batch, for the prompts at hand."""
        self.choice: int | None = None
        """Tokens of the longest choice."""
        self.first = 0
        """Where the batch of choices in the making begins."""
        self.can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    # ---- choices

    def _loglikelihood_tokens(self, requests: Sequence[Any], **how: Any) -> list[tuple[float, bool]]:
        self.cut += len(
            {text[0] for text, prompt, choice in requests if len(prompt) + len(choice) > self.max_length + 1}
        )
        by_prompt: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for n, (_, prompt, _) in enumerate(requests):
            by_prompt[tuple(prompt)].append(n)
        rows = {
            prompt: Row([*prompt], [requests[n][2] for n in group])
            for prompt, group in by_prompt.items()
            if len(group) > 1 and any(len(requests[n][2]) > 1 for n in group)
        }
        rows = {prompt: row for prompt, row in rows.items() if row.length <= self.max_length}
        found: dict[int, tuple[float, bool]] = {}
        for prompt, answers in self._in_one_pass(rows):
            for n, answer in zip(by_prompt[prompt], answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", requests[n][0], answer)
                found[n] = answer
        others = [n for n in range(len(requests)) if n not in found]
        found |= zip(others, self._one_by_one([requests[n] for n in others], **how), strict=True)
        return [found[n] for n in range(len(requests))]

    def _one_by_one(self, requests: Sequence[Any], **how: Any) -> list[tuple[float, bool]]:
        """lm-eval's way."""
        if not requests:
            return []
        self.choice = max(len(choice) for _, _, choice in requests)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **how)
        return answers

    def _in_one_pass(self, rows: Mapping[Prompt, Row]) -> Iterator[tuple[Prompt, list[tuple[float, bool]]]]:
        """Likelihoods of all choices of a prompt at once, the longest first; nothing if the model does not allow it."""
        prompts = sorted(rows, key=lambda p: -rows[p].length)
        if not prompts or not self.can_keep or not self._agrees(rows[prompts[0]]):
            return
        while prompts:
            length = rows[prompts[0]].length
            count = max(1, min(self.rows, self.tokens // length, self.limits.logits // length**2))
            batch, prompts = prompts[:count], prompts[count:]
            yield from zip(batch, self._read([rows[p] for p in batch]), strict=True)

    def _read(self, rows: Sequence[Row]) -> list[list[tuple[float, bool]]]:
        import torch

        batch = lay_out(rows)
        mask = torch.zeros(batch.seen.shape, dtype=self.model.dtype)
        mask.masked_fill_(~batch.seen, torch.finfo(mask.dtype).min)
        with torch.no_grad():
            logits = self.model(
                input_ids=batch.ids.to(self.device),
                position_ids=batch.positions.to(self.device),
                attention_mask=mask.to(self.device),
                logits_to_keep=batch.kept,
                use_cache=False,
            ).logits
        return read_off(logits, rows)

    def _agrees(self, row: Row) -> bool:
        """Whether the model reads a row as it reads its choices one by one. One with a sliding window or without
        attention does not, and the longest row shows it."""
        import torch

        hook, self.cache_hook = self.cache_hook, CacheHook(None)
        one_by_one = self._one_by_one([(None, row.prompt, choice) for choice in row.choices])
        self.cache_hook = hook
        try:
            (in_one_pass,) = self._read([row])
        except (TypeError, ValueError, RuntimeError):  # it takes no such mask
            return False
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return all(
            abs(a - b) <= tolerance * len(choice)
            for (a, _), (b, _), choice in zip(one_by_one, in_one_pass, row.choices, strict=True)
        )

    def _batch_scheduler(self, position: int, requests: Sequence[Any]) -> int:
        """Rows of the batch that this request is in. lm-eval asks at each: they are sorted, the longest first."""
        if position == 0:
            self.first = 0
        _, prompt, choice = requests[self.first]
        rows: int = max(1, self.tokens // (len(prompt) + len(choice)))
        if position - self.first + 1 == rows:
            self.first = position + 1
        return rows

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        import torch

        how = {}
        if self.can_keep and self.choice:
            width = inps.shape[1]
            # lm-eval pads with zeros on the right. A true token 0 at a row's end only looks like more padding.
            last = ((inps != 0) * torch.arange(1, width + 1, device=inps.device)).amax(1)
            how["logits_to_keep"] = min(width, width - int(last.min()) + self.choice)
        with torch.no_grad():
            logits: torch.Tensor = self.model(inps, use_cache=False, **how).logits
        return logits  # lm-eval counts them from the end

    # ---- answers

    def generate_until(self, requests: Sequence[Any], **how: Any) -> list[str]:
        lengths = [len(self.tok_encode(r.args[0])) + r.args[1].get("max_gen_toks", self.max_gen_toks) for r in requests]
        self.answers = max(1, min(self.limits.answers, self.limits.tokens // max(lengths)))
        answers: list[str] = super().generate_until(requests, **how)
        return answers

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """Not by trying the longest text that the model can read."""
        return self.answers

    def tok_batch_encode(self, strings: list[str], *args: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        limit = how.pop("left_truncate_len", None)
        ids, mask = super().tok_batch_encode(strings, *args, **how)
        if limit is not None:
            self.cut += int((mask.sum(1) > limit).sum())
            ids, mask = ids[:, -limit:], mask[:, -limit:]
        return ids, mask

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **how: Any) -> torch.Tensor:
        import torch

        if not how.get("temperature"):
            how = {k: v for k, v in how.items() if k != "temperature"} | {"do_sample": False}
        room = max_length - context.shape[1]
        ids, read = self._after_shared_prefix(context, how.pop("attention_mask"), room)
        width, pad = ids.shape[1], self.tokenizer.pad_token_id
        ended = Ended(self.tokenizer, stop, width)
        out = self.model.generate(
            input_ids=ids,
            max_length=width + room,
            stopping_criteria=[ended],
            pad_token_id=pad,
            **read,
            **how,
        )
        eos = self.model.generation_config.eos_token_id
        last = {pad, *(eos if isinstance(eos, list) else [eos])}
        for row, end in zip(out, ended.rows, strict=True):
            if end is not None:
                row[end:] = pad  # a model whose configuration has no EOS has gone on
        answers = out[:, width:]
        self.ends = [
            "stop" if end is not None or last & {*tokens} else "length"
            for end, tokens in zip(ended.rows, answers.tolist(), strict=True)
        ]
        return torch.cat([context, answers], 1)

    def _after_shared_prefix(
        self, ids: torch.Tensor, mask: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The batch, and what ``generate`` needs beside it: keys and values with room for the answers.

        Of examples that all prompts begin with, as GSM8K's, they are computed once, and the rows' padding comes after them.
        """
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if not cache.layers or any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
            return ids, {"attention_mask": mask}  # a sliding window would count the padding
        prompts = [row[seen.bool()] for row, seen in zip(ids, mask, strict=True)]
        shared = shared_prefix([p.tolist() for p in prompts])
        if len(prompts) > 1 and shared >= PREFIX:
            with torch.no_grad():
                self.model(prompts[0][None, :shared], past_key_values=cache, logits_to_keep=1)
            width = max(map(len, prompts))
            ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id, device=self.device)
            mask = torch.zeros_like(ids)
            for row, seen, prompt in zip(ids, mask, prompts, strict=True):
                row[:shared], row[shared + width - len(prompt) :] = prompt[:shared], prompt[shared:]
                seen[:shared], seen[shared + width - len(prompt) :] = 1, 1
        make_room(cache, len(prompts), ids.shape[1] + room)
        return ids, {"attention_mask": mask, "past_key_values": cache}


def make_room(cache: Any, rows: int, tokens: int) -> None:
    """Let a cache hold keys and values of so many tokens in one place: it would copy all of them at each new one."""

    def append(layer: Any, *new: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        there, more = layer.get_seq_length(), new[0].shape[-2]
        if not hasattr(layer, "room"):
            layer.room = [n.new_empty(rows, n.shape[1], tokens, n.shape[3]) for n in new[:2]]
            for room, old in zip(layer.room, (layer.keys, layer.values), strict=True) if there else ():
                room[:, :, :there] = old  # one row, for all
        for room, n in zip(layer.room, new[:2], strict=True):
            room[:, :, there : there + more] = n
        layer.keys, layer.values = (room[:, :, : there + more] for room in layer.room)
        layer.is_initialized = True
        return layer.keys, layer.values

    for layer in cache.layers:
        layer.update = partial(append, layer)


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; of each at least one is left.

    >>> shared_prefix([[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 5]])
    2
    """
    length = min(map(len, rows)) - 1
    return next((n for n in range(length) if len({row[n] for row in rows}) > 1), length)


class Ended:
    """Tells ``generate`` which rows have said a stop string: in their text, or as a control token, which text leaves out."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.start = tokenizer, start
        spelled = {s: tokenizer.encode(s, add_special_tokens=False) for s in stop if s}
        self.text = [s for s, ids in spelled.items() if tokenizer.decode(ids, skip_special_tokens=True)]
        self.control = {ids[0] for s, ids in spelled.items() if s not in self.text}
        # Two more, as lm-eval has it: the model may spell a stop string in more tokens than the tokenizer.
        self.tail = 2 + max(map(len, spelled.values()), default=0)
        self.rows: list[int | None] = []
        """Where each has ended, in columns."""

    def __call__(self, ids: torch.Tensor, scores: Any, **how: Any) -> torch.Tensor:
        import torch

        last = ids[:, max(self.start, ids.shape[1] - self.tail) :].tolist()
        said = self.tokenizer.batch_decode(last, skip_special_tokens=True)
        ended = [
            not self.control.isdisjoint(tokens) or any(s in text for s in self.text)
            for tokens, text in zip(last, said, strict=True)
        ]
        before = self.rows or [None] * len(ended)
        self.rows = [ids.shape[1] if now and at is None else at for at, now in zip(before, ended, strict=True)]
        return torch.tensor([at is not None for at in self.rows], device=ids.device)
