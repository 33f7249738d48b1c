"""One job's inputs, read block by block: what the method takes, in float32, and the base beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from triune._lazy import torch
from triune.checkpoint.reader import Files, Reader
from triune.checkpoint.source import Source
from triune.engine.job import Job, block_rows
from triune.engine.transfer import Slot
from triune.methods._spec import View


@dataclass
class Lane:
    """What one worker owns: buffers and a device."""

    files: Files
    device: str = "cpu"
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.files)


class Inputs:
    """The tensors of one job, ready to be read block by block."""

    def __init__(self, job: Job, lane: Lane) -> None:
        self.job, self.lane, self.reader = job, lane, lane.reader
        self.columns = job.output.matrix[1]
        self.low_rank = [
            self.reader.low_rank(s.factors) if s.factors and job.route != "copy" else None for s in job.experts
        ]
        self.hashers: dict[int, hashlib._Hash] = {}
        for source in (job.base, *job.experts):
            if source and source.dense and source.rows is None:
                lane.files.advise(source.dense)
        rows = block_rows(job, *job.output.matrix)
        self._stack = torch.empty(len(job.experts), rows, self.columns)
        self._base = torch.empty(rows, self.columns)

    def start_hashing(self) -> None:
        """From now on, hash what is read of each dense input: for the one pass that reads every block once."""
        sources = {-1: self.job.base, **dict(enumerate(self.job.experts))}
        self.hashers = {model: hashlib.sha256() for model, s in sources.items() if s and s.dense}

    def _read(self, source: Source, model: int, first: int, last: int, out: torch.Tensor) -> None:
        assert source.dense is not None
        hasher = self.hashers.get(model)
        if source.rows is None:
            self.reader.rows(source.dense, first, last, out, hasher)
        else:
            self.reader.mapped_rows(source.dense, source.rows[first:last], out, hasher)

    def base(self, first: int, last: int) -> torch.Tensor:
        """Rows of the base, ``[rows, columns]`` float32; zeros where there is no base."""
        out = self._base[: last - first]
        if self.job.base is None:
            return out.zero_()
        if self.job.base.rows is not None:
            out.zero_()  # a token that no model has
        self._read(self.job.base, -1, first, last, out)
        return out

    def block(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's rows and the stack that the method takes, deltas or tensors: ``[experts, rows, columns]``."""
        deltas = self.job.spec.takes == "deltas"
        base, stack = self.base(first, last), self._stack[:, : last - first]
        mapped = any(s.rows is not None for s in (self.job.base, *self.job.experts) if s)
        for t, (source, change) in enumerate(zip(self.job.experts, self.low_rank, strict=True)):
            if source.dense is not None:
                self._read(source, t, first, last, stack[t])
            elif deltas and not mapped:
                stack[t].zero_()  # the change alone, not rounded by adding it to the base first
            else:
                stack[t] = base
            if change is not None:
                stack[t] += change.rows(first, last)
            if deltas and not mapped and source.dense is not None:
                stack[t] -= base
        if mapped:
            self._fill_missing(first, last, base, stack)
            if deltas:
                stack -= base
        return base, stack

    def into(self, slot: Slot, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in a slot's buffers."""
        self._base, self._stack = slot.base, slot.stack
        return self.block(first, last)

    def _fill_missing(self, first: int, last: int, base: torch.Tensor, stack: torch.Tensor) -> None:
        """Rows of tokens that a model does not have: the base gets the mean of those that do, an expert the base's."""

        def missing(source: Source | None) -> torch.Tensor:
            if source is None or source.rows is None:
                return torch.zeros(last - first, dtype=torch.bool)
            return torch.tensor(source.rows[first:last]) < 0

        absent = torch.stack([missing(s if s.dense is not None else self.job.base) for s in self.job.experts])
        # Without a base there is nothing to stay at: a model that lacks the token takes the others' mean.
        lost = missing(self.job.base) if self.job.base else absent.any(0)
        if bool(lost.any()):
            present = (~absent).to(torch.float32).unsqueeze(-1)
            mean = (stack.where(~absent.unsqueeze(-1), 0.0)).sum(0) / present.sum(0).clamp(min=1)
            base[lost] = mean[lost]
        for t in range(len(stack)):
            stack[t][absent[t]] = base[absent[t]]

    def view(self, first: int) -> View:
        return replace(self.job.view, start=first * self.columns)

    def digests(self) -> dict[int, str]:
        """SHA-256 of what was read since :meth:`start_hashing`, by model: -1 is the base."""
        return {model: h.hexdigest() for model, h in self.hashers.items()}
