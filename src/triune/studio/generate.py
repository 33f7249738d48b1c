"""Greedy answers of several versions to one prompt, token by token, in lock-step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from triune._lazy import torch
from triune.errors import UserError
from triune.studio.versions import Resident, Version

REPLACEMENT = "\ufffd"
"""What a tokenizer gives for the first bytes of a character whose last are still to come."""


@dataclass
class Row:
    """The answer of one version so far."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    """``stop`` or ``length`` when it has ended."""


@dataclass(frozen=True)
class Heard:
    """What one step added to one answer."""

    version: int
    text: str
    tokens: int
    """Of the whole answer so far."""
    finish: str = ""


def encode(tokenizer: Any, prompt: str, room: int, limit: int | None) -> list[int]:
    """The tokens of a user's turn, in the model's chat template if it has one.

    Args:
        room: tokens that the answer may take.
        limit: tokens that the model reads at most, if known.

    Raises:
        UserError: the prompt is too long, or empty.
    """
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        ids = list(tokenizer(prompt)["input_ids"])
    if not prompt.strip() or not ids:
        raise UserError("The prompt is empty. Write something to answer.")
    if limit is not None and len(ids) + room > limit:
        raise UserError(
            f"The prompt has {len(ids):,} tokens; with {room} for the answer the model reads at most {limit:,}. Shorten it."
        )
    return ids


def answers(
    resident: Resident, tokenizer: Any, versions: Sequence[Version], prompt: Sequence[int], max_new_tokens: int
) -> Iterator[list[Heard]]:
    """What each step adds to the answers, one step for all versions at a time.

    Args:
        resident: the model.
        tokenizer: its tokenizer.
        versions: each answers on its own.
        prompt: tokens, the same for all.
        max_new_tokens: answers are cut there.

    Yields:
        The texts that became known, by version; those that have ended are no longer among them.
    """
    from transformers import DynamicCache

    model = resident.model
    ends = _ends(model, tokenizer)
    rows = [Row() for _ in versions]
    groups = resident.groups(versions)
    caches = [DynamicCache(config=model.config) for _ in groups]
    last = [torch.tensor([list(prompt)] * len(g.rows), device=model.device) for g in groups]
    for _ in range(max_new_tokens):
        heard: list[Heard] = []
        for at, group in enumerate(groups):
            if all(rows[i].finish for i in group.rows):
                continue
            with torch.no_grad(), resident.computing(group):
                logits = model(last[at], past_key_values=caches[at], use_cache=True, logits_to_keep=1).logits
            chosen = logits[:, -1].argmax(-1)
            last[at] = chosen[:, None]
            for i, token in zip(group.rows, chosen.tolist(), strict=True):
                if not rows[i].finish:
                    heard.append(_hear(rows[i], i, token, ends, tokenizer, max_new_tokens))
        if not heard:
            return
        yield heard


def _hear(row: Row, version: int, token: int, ends: set[int], tokenizer: Any, most: int) -> Heard:
    if token in ends:
        row.finish = "stop"
    else:
        row.tokens.append(token)
        row.finish = "length" if len(row.tokens) == most else ""
    text = tokenizer.decode(row.tokens, skip_special_tokens=True)
    if not row.finish and text.endswith(REPLACEMENT):
        text = row.text
    new, row.text = text[len(row.text) :], text
    return Heard(version, new, len(row.tokens), row.finish)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    known = eos if isinstance(eos, list) else [eos]
    return {t for t in (*known, tokenizer.eos_token_id) if t is not None}
