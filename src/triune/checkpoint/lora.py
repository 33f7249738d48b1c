"""LoRA adapters as PEFT saves them, read from their headers alone: which base tensor changes, and by what.

The rules are those of PEFT 0.21, field by field of its ``LoraConfig``: a field either only mattered in training, or is
followed here, or is refused by name. A field that we do not know is refused when it is set, because a merge that leaves
out a part of the maths looks exactly like a right one. Nothing here loads a weight or imports torch.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from triune.checkpoint.index import (
    INPUT_EMBEDDINGS,
    OUTPUT_EMBEDDINGS,
    Checkpoint,
    TensorInfo,
    read_header,
    read_json,
)
from triune.checkpoint.source import Factors
from triune.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DTYPES = ("F32", "F16", "BF16")

FOLLOWED = frozenset({
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out", "modules_to_save", "init_lora_weights", "ensure_weight_tying",
})  # fmt: skip
IGNORED = frozenset({
    # About the file, or about which modules to wrap: the names in the weights file say that.
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "runtime_config",
    # Only used while training or for the first values of the factors.
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    # Without meaning unless use_qalora is set, which is refused.
    "qalora_group_size",
})  # fmt: skip

_MERGE = (
    "Turn it into a full checkpoint first: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)."
)
_NEVER = "PEFT cannot merge it into a checkpoint, so neither can triune: train a plain LoRA adapter instead."
REFUSED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA also rescales the base's weights, which is not a low-rank change", _MERGE),
    "bias": ("the adapter also changes biases", _MERGE),
    "lora_bias": ("the adapter also changes biases", _MERGE),
    "target_parameters": ("the adapter changes bare parameters, whose layout is not that of a matrix", _MERGE),
    "trainable_token_indices": ("the adapter also replaces single rows of the embeddings", _MERGE),
    "velora_config": ("VeLoRA stores more than two factors per module", _MERGE),
    "monteclora_config": ("Monteclora stores more than two factors per module", _MERGE),
    "kasa_config": ("KaSA first removes a part of the base's weights", _MERGE),
    "use_bdlora": ("BD-LoRA's factors are block-diagonal", _MERGE),
    "layer_replication": ("the adapter's model repeats layers that the base has once", _MERGE),
    "megatron_config": ("the adapter was trained on Megatron's layers, whose names and shapes differ", _MERGE),
    "alora_invocation_tokens": ("aLoRA acts on some tokens of a text only", _NEVER),
    "arrow_config": ("Arrow picks adapters for each token", _NEVER),
    "use_qalora": ("QALoRA's factors act on pooled inputs of a quantised model", _NEVER),
}
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Those that leave the base alone. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take out of it what they start with."""

PREFIXES = ("", "model.", "language_model.", "model.language_model.", "language_model.model.", "transformer.")
"""What the same module's name may begin with: a class with or without a head, a vision model, GPT-2's files."""

CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Their layers store ``[in, out]``, whatever fan_in_fan_out says."""

_Pairs: TypeAlias = "dict[tuple[str, bool], dict[str, TensorInfo]]"
_LINEAR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_EMBEDDING = re.compile(r"base_model\.model\.(.+)\.lora_embedding_([AB])(?:\.[^.]+)?")
_FULL = re.compile(r"base_model\.model\.(.+)")


@dataclass(frozen=True)
class Target:
    """Where an adapter hangs in PEFT's model."""

    module: str
    """Its name there, which may begin differently from the tensor's name in the base's files."""
    embedding: bool = False
    transposed: bool = False
    """The base stores the weight as ``[in, out]``; always so for embeddings."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as its headers describe it.

    A tensor may stand in both ``deltas`` and ``replaced``: PEFT saves the embedding below an embedding adapter, too.
    The adapted weight is then the replaced tensor plus the delta.
    """

    reference: str
    folder: Path
    base_name: str | None
    """What the adapter says it was trained on."""
    deltas: Mapping[str, Factors]
    """Base tensor name -> its low-rank change."""
    replaced: Mapping[str, TensorInfo]
    """Base tensor name -> the full tensor in its place. An embedding's may have another number of rows."""
    rank: int
    """The largest; 0 without factors."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """Base tensor name -> where its factors hang."""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def open_adapter(folder: Path, reference: str, base: Checkpoint) -> Adapter:
    """Read an adapter's headers and map it to the tensors of its base.

    Raises:
        CheckpointError: a kind of adapter that triune does not merge, a damaged one, or one of another base.
    """
    config = read_json(folder / CONFIG)
    if (folder / WEIGHTS).exists():
        _check_config(config, reference)
        return _Reader(folder, reference, config, base).adapter(read_header(folder / WEIGHTS))
    if (folder / PICKLE).exists():
        raise CheckpointError(
            f"{reference}: {PICKLE} is a pickle, which can run code when it is read; triune reads safetensors only. "
            "Convert it once: load it with PeftModel.from_pretrained(base, adapter) and save_pretrained(folder)."
        )
    raise CheckpointError(f"{reference}: {folder} holds no {WEIGHTS}. Fetch the adapter again.")


def check_base(adapter: Adapter, base: Checkpoint, base_reference: str) -> None:
    """Refuse an adapter that names another base than the one it is about to change."""
    if not check_base_name(adapter.base_name, base_reference, base.folder):
        raise CheckpointError(
            f"Adapter {adapter.reference} was trained on {adapter.base_name}, the base is {base_reference}. "
            f"If they are the same weights, write {base_reference}+{adapter.reference}."
        )


def check_base_name(recorded: str | None, base_reference: str, base_folder: Path) -> bool:
    """Whether the name that an adapter recorded may mean this base.

    >>> check_base_name("/home/me/SmolLM2-135M/", "HuggingFaceTB/smollm2-135m@main", Path("/cache/1a2b"))
    True
    >>> check_base_name("org/other", "HuggingFaceTB/SmolLM2-135M", Path("/cache/1a2b"))
    False
    """
    if not recorded or recorded == base_reference or os.path.realpath(recorded) == os.path.realpath(base_folder):
        return True
    names = {Path(name).name.lower() for name in (base_reference, base_reference.split("@")[0], str(base_folder))}
    return bool({Path(recorded).name.lower(), Path(recorded.split("@")[0]).name.lower()} & (names - {""}))


def _check_config(config: Mapping[str, Any], reference: str) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{reference}: this is an adapter of type {kind}; triune merges LoRA. {_MERGE}")
    for name, value in config.items():
        if name in FOLLOWED or name in IGNORED or value in (None, False, "none", []):
            continue
        if value == {} and name not in REFUSED:  # An empty kasa_config is a KaSA with all its defaults.
            continue
        if name in REFUSED:
            why, step = REFUSED[name]
            raise CheckpointError(f"{reference}: {CONFIG} sets {name} to {_short(value)}: {why}. {step}")
        raise CheckpointError(
            f"{reference}: {CONFIG} sets {name} to {_short(value)}, which triune does not know and which may change "
            f"the weights. {_MERGE} If it does not change them, remove the line."
        )
    start = config.get("init_lora_weights", True)
    if start not in INITIALISATIONS:
        raise CheckpointError(
            f"{reference}: {CONFIG} sets init_lora_weights to {_short(start)}: such factors are a change to a base "
            "that was itself changed, not to the one on disk. Save the adapter again from the training script with "
            f"save_pretrained(folder, path_initial_model_for_weight_conversion=...), where PEFT offers it. {_MERGE}"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class _Reader:
    folder: Path
    reference: str
    config: Mapping[str, Any]
    base: Checkpoint

    def adapter(self, tensors: list[TensorInfo]) -> Adapter:
        pairs, full = self.sort(tensors)
        found = {key: self.find(f"{key[0]}.weight", _shape(pair)) for key, pair in pairs.items()}
        mixed = self.mixed(pairs, found)
        deltas: dict[str, Factors] = {}
        targets: dict[str, Target] = {}
        heads = []
        for (module, embedding), pair in pairs.items():
            name, is_head = found[module, embedding]
            self.check_tie(name, is_head, module)
            transposed = self.transposed(name, embedding, module, pair, mixed)
            factors = Factors(pair["A"], pair["B"], self.scale(module, pair["A"].shape[0]), transposed)
            if is_head:
                heads.append((name, module, factors))
                continue
            if name in deltas:
                raise self.error(f"{targets[name].module} and {module} are both {name} in the base. {_MERGE}")
            deltas[name], targets[name] = factors, Target(module, embedding, transposed)
        for name, module, factors in heads:  # Under ensure_weight_tying these are the embedding's own numbers.
            twin = deltas.get(name)
            if twin is None or (twin.rank, twin.scale) != (factors.rank, factors.scale):
                raise self.error(f"{module} is {name} in the base, which the file does not change alike. {_MERGE}")
        rank = max((f.rank for f in deltas.values()), default=0)
        base_name = self.config.get("base_model_name_or_path") or None
        return Adapter(self.reference, self.folder, base_name, deltas, self.replaced(full, deltas), rank, targets)

    def sort(self, tensors: list[TensorInfo]) -> tuple[_Pairs, list[TensorInfo]]:
        """The pairs of factors by (module, whether of an embedding), and the tensors that are none."""
        pairs: _Pairs = {}
        full = []
        for info in tensors:
            if info.dtype not in DTYPES:
                raise self.error(f"tensor {info.name} is {info.dtype}; triune reads {', '.join(DTYPES)}. {_MERGE}")
            linear = _LINEAR.fullmatch(info.name)
            match = linear or _EMBEDDING.fullmatch(info.name)
            if not match:
                full.append(info)
                continue
            pair = pairs.setdefault((match[1], linear is None), {})
            if match[2] in pair:
                raise self.error(f"{pair[match[2]].name} and {info.name} are of two adapters. Save one of them.")
            pair[match[2]] = info
        for (module, _), pair in pairs.items():
            if len(pair) < 2:
                raise self.error(f"{module} has {''.join(pair)} but not the other factor. Fetch the adapter again.")
            a, b = pair["A"].shape, pair["B"].shape
            if not (len(a) == len(b) == 2 and a[0] == b[1] > 0):
                raise self.error(
                    f"the factors of {module} have shapes {list(a)} and {list(b)}; triune reads matrices "
                    f"[rank, in] and [out, rank]. {_MERGE}"
                )
        return pairs, full

    def find(self, parameter: str, shape: tuple[int, ...]) -> tuple[str, bool]:
        """The base's name of a parameter, and whether the base has it only as a tied head."""
        spellings = {parameter}
        if self.base.get(parameter) is None:
            cores = [parameter.removeprefix(p) for p in PREFIXES if parameter.startswith(p)]
            spellings = {p + core for p in PREFIXES for core in cores if self.base.get(p + core) is not None}
        if len(spellings) != 1:
            raise self.foreign(f"it changes {parameter} {list(shape)}, which the base does not have")
        found = spellings.pop()
        return self.base.tied.get(found, found), found in self.base.tied

    def check_tie(self, name: str, is_head: bool, module: str) -> None:
        """Where embedding and head are one tensor, an adapter must have changed both alike.

        PEFT's merge_and_unload gets these wrong: it adds one side's delta to both, and under ensure_weight_tying twice.
        """
        if name in self.base.tied.values() and not self.config.get("ensure_weight_tying"):
            raise self.error(
                f"{module} changes {'the head' if is_head else 'the input embedding'} alone, but in "
                f"{self.base.reference} embedding and head are one tensor, {name}, which cannot hold the result. "
                "Train with ensure_weight_tying=True, or without this module."
            )

    def transposed(self, name: str, embedding: bool, module: str, pair: Mapping[str, TensorInfo], mixed: bool) -> bool:
        """Whether the base stores the weight as [in, out].

        PEFT goes by the module's class and corrects the flag, which then is that of the last module it wrapped.
        """
        (out, into), there = _shape(pair), self.base.tensors[name].shape
        family = self.base.config.get("model_type") in CONV1D_FAMILIES
        plain = there == (out, into) and not embedding
        swapped = there == (into, out) and bool(embedding or family or self.config.get("fan_in_fan_out"))
        if not plain and not swapped:
            shape = [into, out] if embedding else [out, into]
            raise self.foreign(f"{module} changes a weight of shape {shape}, the base's {name} is {list(there)}")
        if not (plain and swapped):
            return swapped
        if name.endswith(OUTPUT_EMBEDDINGS):
            return False
        if mixed and not family:
            raise self.error(f"{name} is square, and fan_in_fan_out does not hold for all modules. {_MERGE}")
        return True

    def mixed(self, pairs: _Pairs, found: Mapping[tuple[str, bool], tuple[str, bool]]) -> bool:
        """Whether a module other than the embeddings is surely stored as [out, in]."""
        embeddings = (*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS)
        sure = ((found[key][0], _shape(pair)) for key, pair in pairs.items() if len(set(_shape(pair))) == 2)
        return any(self.base.tensors[name].shape == shape for name, shape in sure if not name.endswith(embeddings))

    def scale(self, module: str, rank: int) -> float:
        expected = self.number("r", "rank_pattern", module)
        if rank != expected:
            raise self.error(f"{module} has rank {rank}, but {CONFIG} says {expected:g}. Fetch the adapter again.")
        alpha = self.number("lora_alpha", "alpha_pattern", module)
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def number(self, default: str, patterns: str, module: str) -> float:
        """PEFT's rule: the first pattern that matches the end of the module's name, from a dot on.

        First in the file, that is: PEFT sorts the patterns when it saves, and loads them so.
        """
        value, where = self.config.get(default, 8), default
        known = self.config.get(patterns) or {}
        if not isinstance(known, dict):
            raise self.error(f"{CONFIG}: {patterns} must be an object, got {_short(known)}.")
        for key, own in known.items():
            try:
                matches = re.match(rf"(.*\.)?({key})$", module)
            except re.error as error:
                raise self.error(f"{CONFIG}: {patterns} has {key!r}, no regular expression ({error}).") from None
            if matches:
                value, where = own, f"{patterns}[{key!r}]"
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{CONFIG}: {where} must be a number, got {_short(value)}.")
        return float(value)

    def replaced(self, full: list[TensorInfo], deltas: Mapping[str, Factors]) -> dict[str, TensorInfo]:
        replaced: dict[str, TensorInfo] = {}
        heads = []
        for info in full:
            match = _FULL.fullmatch(info.name)
            if not match or ".lora_" in info.name:
                raise self.error(f"the file has {info.name}, which is no part of a LoRA that triune knows. {_MERGE}")
            if ".original_module." in info.name:
                continue  # Old versions of PEFT saved the base's own, too.
            # Embeddings come along unasked when they are adapted (then as base_layer) or have grown.
            parameter = re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", match[1])
            module = parameter.rpartition(".")[0]
            embedding = f"{module}.weight".endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS))
            trained = any(f".{m}." in f".{parameter}" for m in self.config.get("modules_to_save") or [])
            if not trained and not embedding:
                raise self.error(f"the file has {info.name}, which modules_to_save does not name. {_MERGE}")
            name, is_head = self.find(parameter, info.shape)
            if trained:
                self.check_tie(name, is_head, module)
            if is_head:
                heads.append((name, info))
                continue
            if name in replaced:
                raise self.error(f"{replaced[name].name} and {info.name} are both {name} in the base. {_MERGE}")
            there = self.base.tensors[name].shape
            resized = embedding and name not in deltas and info.shape[1:] == there[1:]
            if info.shape != there and not resized:
                raise self.foreign(f"{info.name} has shape {list(info.shape)}, the base's {name} is {list(there)}")
            replaced[name] = info
        for name, info in heads:
            if name not in replaced or replaced[name].shape != info.shape:
                raise self.error(f"{info.name} is {name} in the base, which the file does not replace alike. {_MERGE}")
        return replaced

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.reference}: {message}")

    def foreign(self, fact: str) -> CheckpointError:
        said = self.config.get("base_model_name_or_path")
        return self.error(
            f"{fact}: the adapter was trained on another base than {self.base.reference}, or on one saved under other "
            f"names. {f'It says {said}: write' if said else 'Write'} base+adapter with the base it was trained on."
        )


def _shape(pair: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """(out, in) of the layer."""
    return pair["B"].shape[0], pair["A"].shape[1]
