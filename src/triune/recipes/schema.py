"""What may stand in a recipe: mergekit's YAML and a few keys of ours. pydantic models where YAML enters, and the frozen
dataclasses that the rest of the program sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from triune.methods._spec import Semantics

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from triune.recipes.yaml import Keys


@dataclass(frozen=True)
class Expert:
    """One model to merge."""

    reference: str
    """As typed: ``org/name@revision``, a folder, ``base+adapter``."""
    name: str
    """The label, or the reference. Unique in a recipe: a second ``org/a`` is ``org/a#2``."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    """``recipe.yml:3, models[0]``, for messages."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Two are equal when they ask for the same in the same words, wherever they came from."""

    method: str
    experts: tuple[Expert, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    semantics: Semantics | None = None
    seed: int = 0
    output: Literal["full", "lora"] = "full"
    text: str = field(default="", repr=False)
    """The YAML as typed, or as generated where flags had a say: reading it gives an equal recipe."""
    origin: str = field(default="recipe", compare=False)
    folder: Path | None = field(default=None, compare=False)
    """Relative paths are relative to it; None means the current folder."""


# ---- what may stand in the file


def _reference(value: Any) -> Any:
    """mergekit's mapping ``{model: {path, revision}, lora: {path, revision}}`` as text: ``path@revision+path``.

    >>> _reference({"model": {"path": "org/a", "revision": "v1"}, "lora": {"path": "org/b"}})
    'org/a@v1+org/b'
    """
    if not isinstance(value, dict):
        return value
    if "path" in value:
        value = {"model": value}
    parts = [value.get("model"), value.get("lora")]
    ends = [{"path": end} if isinstance(end, str) else end for end in parts if end is not None]
    unknown = [k for k in value if k not in ("model", "lora") and value[k] is not None]
    unknown += [k for end in ends if isinstance(end, dict) for k in end if k not in ("path", "revision")]
    if unknown:
        raise ValueError("may hold model and lora, and in each path and revision, nothing else")
    if parts[0] is None or not all(isinstance(end, dict) and isinstance(end.get("path"), str) for end in ends):
        raise ValueError("must be text, or a mapping such as {model: {path: org/name, revision: main}}")
    return "+".join("@".join(str(end[k]) for k in ("path", "revision") if end.get(k) is not None) for end in ends)


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _torch_less(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


_REFERENCE_SCHEMA = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "object"}]}
Reference = Annotated[str, BeforeValidator(_reference), AfterValidator(_not_blank), WithJsonSchema(_REFERENCE_SCHEMA)]
Dtype = Annotated[Literal["bfloat16", "float16", "float32"], BeforeValidator(_torch_less)]
LABEL = r"^[A-Za-z0-9_-]+$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FilterEntry(_Strict):
    """A value for the tensors whose name contains the filter."""

    filter: str | None = Field(None, description="A part of the tensor's name; none or `*` means every tensor.")
    value: Any = Field(description="A scalar, or a gradient along the layers.")


class ModelEntry(_Strict):
    """One model to merge."""

    model: Reference = Field(description="A Hub repository `org/name@revision`, a folder, or `base+adapter`.")
    name: Annotated[str, Field(pattern=LABEL)] | None = Field(None, description="A short label for this model.")
    parameters: dict[str, Any] | None = Field(None, description="Parameters of the method for this model.")


class TokenizerEntry(_Strict):
    """mergekit's newer spelling of tokenizer_source."""

    source: Reference = Field(description="base, union, or one of the models.")


class RecipeFile(_Strict):
    """A merge recipe: mergekit's format and a few keys of triune."""

    models: list[ModelEntry] = Field(min_length=1, description="The models to merge.")
    merge_method: str = Field(description="The merge method's name.")
    base_model: Reference | None = Field(None, description="The model that the others were fine-tuned from.")
    parameters: dict[str, Any] | None = Field(None, description="Parameters of the method, for all models.")
    dtype: Dtype | None = Field(None, description="Data type to write; arithmetic is always float32.")
    out_dtype: Dtype | None = Field(None, description="Data type to write, where it differs from dtype.")
    tokenizer_source: Reference | None = Field(None, description="base, union, or one of the models.")
    tokenizer: TokenizerEntry | None = None
    chat_template: Annotated[str, AfterValidator(_not_blank)] | None = Field(
        None, description="auto, a template's name, or its Jinja text."
    )
    semantics: Semantics | None = Field(None, description="Where mergekit and the paper differ, whom to follow.")
    seed: int = Field(0, ge=0, description="For methods with random masks.")
    output: Literal["full", "lora"] = Field("full", description="Write a whole model, or an adapter.")


_ONE = "triune merges whole models of one architecture. List them under models:"
_MOE = f"{_ONE}; one model of the same size comes out, no mixture of experts."
REFUSED: dict[Keys, str] = {
    ("slices",): f"{_ONE}; a list such as weight: [0.2, 0.8] changes a value along the layers.",
    ("modules",): f"{_ONE}; a filter such as {{filter: mlp, value: 0.5}} picks out tensors.",
    ("experts",): _MOE,
    ("gate_mode",): _MOE,
    ("experts_per_token",): _MOE,
    ("shared_experts",): _MOE,
    ("tokenizer", "tokens"): "triune takes tokens as they are. Keep only tokenizer: {source: ...}.",
    ("tokenizer", "pad_to_multiple_of"): "triune keeps the size of the vocabulary. Keep only tokenizer: {source: ...}.",
}
"""What mergekit knows and triune does not, with the way out."""

TOP_LEVEL = tuple(RecipeFile.model_fields)
