"""One model stays loaded; other versions of it are swapped in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from triune.checkpoint.index import OUTPUT_EMBEDDINGS, Checkpoint, TensorInfo, open_checkpoint
from triune.checkpoint.lora import PREFIXES, is_adapter, open_adapter
from triune.checkpoint.reader import Files, Reader
from triune.checkpoint.source import Factors
from triune.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle


@contextmanager
def swapped(model: torch.nn.Module, base: Checkpoint, version: Path | None, name: str) -> Iterator[None]:
    """Inside the block the model computes as ``version``; afterwards it is what it was, bit for bit.

    A full model takes the place of the parameters. An adapter is not merged into them, where bfloat16 would round its
    delta: its factors act beside each linear layer, in the type of the layer, by PEFT's own steps, so that a score is that
    of the model in training. Only in embeddings and in the head, whose weights are read without a call, it is merged.

    Args:
        model: a loaded transformers model of the base.
        base: the base's headers.
        version: an adapter on the base, or a full model of the same shapes; None or the base itself changes nothing.
        name: the version, for messages.

    Raises:
        CheckpointError: the version has other tensors than the base, or other shapes.

    What is replaced waits on the CPU: on the device it would be a second model.
    """
    parameters = dict(model.named_parameters())
    with ExitStack() as undo:

        def put(parameter: str, value: torch.Tensor) -> None:
            there = parameters[parameter].data
            undo.callback(there.copy_, there.to("cpu", copy=True))
            there.copy_(value)

        if version is not None and is_adapter(version):
            adapter = open_adapter(version, name, base)
            for parameter, value in _stored(_places(parameters, base, adapter.replaced, name)):
                put(parameter, value)
            changed = _places(parameters, base, {tensor: base.tensors[tensor] for tensor in adapter.deltas}, name)
            with Files() as files:
                reader = Reader(files)
                for parameter, info in changed.items():
                    factors, weight = adapter.deltas[info.name], parameters[parameter]
                    if (layer := linear_layer(model, parameter)) is not None:
                        undo.callback(_beside(layer, weight, factors, reader).remove)
                    else:
                        put(parameter, weight.float() + reader.low_rank(factors).dense().to(weight.device))
        elif version is not None and version != base.folder:
            tensors = open_checkpoint(version, name).tensors
            # Both files may hold what transformers computes anew, such as rotary frequencies in old checkpoints.
            wanted = {t: i for t, i in tensors.items() if t not in base.tensors or parameter_name(parameters, t)}
            places = _places(parameters, base, wanted, name)
            if missing := sorted(set(parameters) - set(places)):
                raise CheckpointError(f"{name}: it has no tensor {missing[0]}, which {base.reference} has.")
            for parameter, value in _stored(places):
                put(parameter, value)
        yield


def linear_layer(model: torch.nn.Module, parameter: str) -> torch.nn.Module | None:
    """The linear layer that a weight belongs to, if the model calls it. A fused head reads the weight instead."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layer = model.get_submodule(parameter.rpartition(".")[0])
    linear = isinstance(layer, nn.Linear | Conv1D) and not parameter.endswith(OUTPUT_EMBEDDINGS)
    return layer if linear else None


def _beside(layer: torch.nn.Module, weight: torch.Tensor, factors: Factors, reader: Reader) -> RemovableHandle:
    """Let the layer's output be ``W x + scale * B (A x)``, with the layer's device and type throughout."""
    from torch.nn.functional import linear

    a, b = (reader.whole(factor).to(weight) for factor in (factors.a, factors.b))

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + linear(linear(inputs[0], a), b) * factors.scale

    return layer.register_forward_hook(add)


def parameter_name(parameters: Mapping[str, torch.Tensor], tensor: str) -> str | None:
    """What a tensor of a file is called in memory: a class with a head may put a prefix before the name."""
    return next((prefix + tensor for prefix in PREFIXES if prefix + tensor in parameters), None)


def _places(
    parameters: Mapping[str, torch.Tensor], base: Checkpoint, tensors: Mapping[str, TensorInfo], name: str
) -> dict[str, TensorInfo]:
    """Parameter -> the tensor for it."""
    places: dict[str, TensorInfo] = {}
    for tensor, info in tensors.items():
        parameter = parameter_name(parameters, tensor)
        if parameter is None or tuple(parameters[parameter].shape) != info.shape:
            raise CheckpointError(f"{name}: tensor {tensor} has no counterpart of its shape in {base.reference}.")
        places[parameter] = info
    return places


def _stored(places: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for parameter, info in places.items():
        with safe_open(info.file, framework="pt") as file:
            yield parameter, file.get_tensor(info.name)
