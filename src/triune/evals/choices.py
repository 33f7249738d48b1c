"""A prompt and all of its choices in one pass: the prompt is read once, and no choice sees another.

lm-eval reads the prompt again with every choice. Here a row of the batch is ``prompt, choice 1, choice 2, ...``; the mask
lets each choice see the prompt and itself, and its positions go on where the prompt ends (as the branches of a tree do in
speculative decoding: SpecInfer, https://arxiv.org/abs/2305.09781). With seven answers to a question after a long preamble
that is a fifth of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

Tokens = Sequence[int]


class Row(NamedTuple):
    """A prompt and its choices."""

    prompt: Tokens
    choices: Sequence[Tokens]

    @property
    def length(self) -> int:
        """Tokens to read: the last of a choice is only predicted."""
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True)
class Batch:
    """Rows laid out so that all prompts end in one column, of which the first choices' first tokens are predicted."""

    ids: torch.Tensor
    """[rows, width]"""
    positions: torch.Tensor
    """[rows, width]"""
    seen: torch.Tensor
    """[rows, 1, width, width], true where the second-last dimension's token sees the last one's."""
    kept: int
    """Columns, from the right, whose logits are needed."""


def lay_out(rows: Sequence[Row]) -> Batch:
    """
    >>> batch = lay_out([Row([5, 6], [[7, 8], [9, 7, 8]])])
    >>> batch.ids.tolist(), batch.positions.tolist(), batch.kept
    ([[5, 6, 7, 9, 7]], [[0, 1, 2, 2, 3]], 4)
    >>> batch.seen.int()[0, 0].tolist()
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """
    import torch

    end = max(len(row.prompt) for row in rows)
    width = end + max(row.length - len(row.prompt) for row in rows)
    ids, positions = torch.zeros(2, len(rows), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: a softmax needs something
    for b, (prompt, choices) in enumerate(rows):
        start = end - len(prompt)
        parts = [(start, prompt, 0)]
        at = end
        for choice in choices:
            parts.append((at, choice[:-1], len(prompt)))
            at += len(choice) - 1
        for first, tokens, position in parts:
            part = slice(first, first + len(tokens))
            ids[b, part] = torch.tensor(tokens, dtype=torch.long)
            positions[b, part] = torch.arange(len(tokens)) + position
            seen[b, part, part] = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
            if first >= end:
                seen[b, part, start:end] = True
    return Batch(ids, positions, seen[:, None], width - end + 1)


def read_off(logits: torch.Tensor, rows: Sequence[Row]) -> list[list[tuple[float, bool]]]:
    """Of each choice of each row the log-likelihood, and whether each of its tokens is the likeliest.

    Args:
        logits: of the kept columns, [rows, kept, vocabulary].
    """
    import torch

    found = []
    for logit, (_, choices) in zip(logits, rows, strict=True):
        at, answers = 1, []
        for choice in choices:
            columns = torch.tensor([0, *range(at, at + len(choice) - 1)], device=logit.device)
            at += len(choice) - 1
            log_probs = logit[columns].float().log_softmax(-1)
            wanted = torch.tensor(choice, device=logit.device)
            likelihood = log_probs.gather(1, wanted[:, None]).sum()
            answers.append((float(likelihood), bool((log_probs.argmax(-1) == wanted).all())))
        found.append(answers)
    return found
