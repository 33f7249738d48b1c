"""One model in memory that computes as any of its versions, and as several at once: row i of a batch is version i.

A version that differs from the base by low-rank deltas of linear layers costs two thin products beside each layer. One
with other changes (a full model, or a merge that works entry by entry) brings tensors of its own, which take the place of
the parameters for as long as it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from triune._lazy import torch
from triune.checkpoint.swap import linear_layer, parameter_name
from triune.errors import CheckpointError
from triune.methods._lowrank import LowRank

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Version:
    """What distinguishes a model from the base, by the names of the base's tensors."""

    name: str
    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """In the place of the base's; a delta counts from there."""


@dataclass(frozen=True)
class Group:
    """Versions that one forward pass computes, a row of the batch each."""

    rows: tuple[int, ...]
    """Their places in the list that was asked for."""
    tensors: Mapping[str, torch.Tensor]
    """Parameter -> what takes its place."""
    beside: Mapping[nn.Module, tuple[torch.Tensor, torch.Tensor]]
    """Layer -> ``[rows, in, rank]`` and ``[rows, rank, out]``."""


class Resident:
    """A transformers causal LM, computing as one version or several.

    Args:
        model: a loaded base, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parameters: dict[str, Any] = dict(model.named_parameters())
        self.layers: dict[str, nn.Module | None] = {}
        """Tensor -> the linear layer whose output its delta is added to; None where there is no such call."""
        self.group: Group | None = None
        self.lockstep = self._rows_stay_apart()

    def parameter(self, tensor: str) -> str:
        """What a tensor of a file is called in memory."""
        found = parameter_name(self.parameters, tensor)
        if found is None:
            raise CheckpointError(f"tensor {tensor} has no counterpart in the model that transformers loads.")
        return found

    def layer(self, tensor: str) -> nn.Module | None:
        """The linear layer of a weight, with a hook that adds what the group at work has beside it."""
        if tensor not in self.layers:
            layer = self.layers[tensor] = linear_layer(self.model, self.parameter(tensor))
            if layer is not None:
                layer.register_forward_hook(self._add)
        return self.layers[tensor]

    def groups(self, versions: Sequence[Version]) -> list[Group]:
        """The fewest forward passes that compute all versions."""
        together = [i for i, v in enumerate(versions) if self.lockstep and self._thin(v)]
        alone = [[i] for i in range(len(versions)) if i not in together]
        return [self._group(rows, [versions[i] for i in rows]) for rows in ([together] if together else []) + alone]

    def _thin(self, version: Version) -> bool:
        return not version.tensors and all(self.layer(t) is not None for t in version.deltas)

    def _group(self, rows: Sequence[int], versions: Sequence[Version]) -> Group:
        tensors: dict[str, torch.Tensor] = {}
        for version in versions:
            for tensor, value in version.tensors.items():
                tensors[self.parameter(tensor)] = value
            for tensor, delta in version.deltas.items():
                if self.layer(tensor) is None:  # an embedding, read without a call
                    parameter = self.parameter(tensor)
                    there = tensors.get(parameter, self.parameters[parameter].data)
                    tensors[parameter] = (there.float() + delta.dense()).to(there)
        names = dict.fromkeys(t for v in versions for t in v.deltas if self.layer(t) is not None)
        beside = {}
        for tensor in names:
            layer, weight = self.layer(tensor), self.parameters[self.parameter(tensor)]
            assert layer is not None
            beside[layer] = _side_by_side([v.deltas.get(tensor) for v in versions], layer, weight)
        return Group(tuple(rows), tensors, beside)

    @contextmanager
    def computing(self, group: Group) -> Iterator[Any]:
        """Inside the block the model computes as these versions: a batch has a row for each. Of one version any batch."""
        before = {name: self.parameters[name].data for name in group.tensors}
        try:
            for name, value in group.tensors.items():
                self.parameters[name].data = value
            self.group = group
            yield self.model
        finally:
            self.group = None
            for name, data in before.items():
                self.parameters[name].data = data

    def _add(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        pair = self.group.beside.get(layer) if self.group else None
        if pair is None:
            return None
        down, up = pair
        x = inputs[0]
        if len(down) == 1:
            return output + (x @ down[0]) @ up[0]
        return output + torch.bmm(torch.bmm(x, down), up)

    def _rows_stay_apart(self) -> bool:
        """Whether each row of a batch reaches every linear layer as a row; tokens that are sent to experts do not."""
        from torch import nn

        shapes: set[tuple[int, ...]] = set()
        hooks = [
            m.register_forward_pre_hook(lambda _, x: shapes.add(tuple(x[0].shape[:-1])))
            for m in self.model.modules()
            if isinstance(m, nn.Linear)
        ]
        with torch.no_grad():
            self.model(torch.zeros(2, 3, dtype=torch.long, device=self.model.device))
        for hook in hooks:
            hook.remove()
        return all(len(s) == 2 and s[0] == 2 for s in shapes)


def _side_by_side(
    deltas: Sequence[LowRank | None], layer: nn.Module, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The deltas of one layer for all rows, filled up with zeros to one rank."""
    from torch import nn

    rank = max((d.rank for d in deltas if d is not None), default=0)
    stored_out_in = isinstance(layer, nn.Linear)
    out, into = weight.shape if stored_out_in else weight.shape[::-1]
    down, up = weight.new_zeros(len(deltas), into, rank), weight.new_zeros(len(deltas), rank, out)
    for i, delta in enumerate(deltas):
        if delta is not None:
            a, b = (delta.right.T, delta.left.T) if stored_out_in else (delta.left, delta.right)
            down[i, :, : delta.rank], up[i, : delta.rank] = a, b
    return down, up
