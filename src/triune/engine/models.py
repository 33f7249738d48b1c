"""The models that a recipe names, opened: their headers, what adapters change in them, and whether they fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from triune.checkpoint.index import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS, Checkpoint, TensorInfo
from triune.checkpoint.lora import Adapter, check_base, open_adapter
from triune.checkpoint.ref import ModelRef, resolve_reference
from triune.checkpoint.source import Source
from triune.errors import CheckpointError, UserError
from triune.output.vocabulary import Parent
from triune.recipes import Recipe

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Model:
    """One input: where it is and what its headers say."""

    ref: ModelRef
    name: str
    checkpoint: Checkpoint
    """Of the full model; for an adapter, of its base."""
    adapter: Adapter | None
    on_base: bool
    """Nothing but (perhaps) an adapter distinguishes it from the recipe's base."""

    @property
    def parent(self) -> Parent:
        return Parent(self.ref.text, self.name, self.checkpoint.folder, self.ref.adapter)

    def source(self, name: str) -> Source | None:
        """This model's version of one of the base's tensors; None if it has no such tensor."""
        own = None if self.on_base else self.checkpoint.get(name)
        if own is None and not self.on_base:
            return None
        factors = self.adapter.deltas.get(name) if self.adapter else None
        if self.adapter and name in self.adapter.replaced:
            own = self.adapter.replaced[name]
        return Source(own, factors)


# --- opening the models -------------------------------------------------------------------------------------------


def open_base(recipe: Recipe) -> Model | None:
    """The recipe's base, if it names one."""
    if recipe.base is None:
        return None
    ref = resolve_reference(recipe.base, recipe.folder)
    if ref.folder is None:
        raise CheckpointError(f"base_model: {recipe.base} is an adapter. Name the full model that it was trained on.")
    checkpoint = ref.checkpoint()
    adapter = open_adapter(ref.adapter, ref.text, checkpoint) if ref.adapter else None
    if adapter is not None:
        raise CheckpointError(
            f"base_model: {recipe.base} carries an adapter. Merge it first (`triune merge --method linear --expert "
            f"{recipe.base} OUT`) and name the result."
        )
    return Model(ref, "base", checkpoint, None, on_base=True)


def open_expert(recipe: Recipe, index: int, base: Model | None) -> Model:
    """One of the recipe's experts; a bare adapter is put on the base."""
    expert = recipe.experts[index]
    try:
        ref = resolve_reference(expert.reference, recipe.folder)
        if ref.folder is None:
            if base is None:
                raise CheckpointError(
                    f"{expert.reference} is an adapter, and there is no base to put it on. Add base_model (--base)."
                )
            assert ref.adapter is not None
            adapter = open_adapter(ref.adapter, ref.text, base.checkpoint)
            check_base(adapter, base.checkpoint, base.ref.text)
            return Model(ref, expert.name, base.checkpoint, adapter, on_base=True)
        on_base = base is not None and ref.folder == base.ref.folder
        checkpoint = base.checkpoint if base is not None and on_base else ref.checkpoint()
        lora = open_adapter(ref.adapter, ref.text, checkpoint) if ref.adapter else None
        return Model(ref, expert.name, checkpoint, lora, on_base)
    except UserError as error:
        raise type(error)(f"{error} ({expert.place})" if expert.place else str(error)) from None


# --- names, shapes, dtypes ----------------------------------------------------------------------------------------


def tensor_names(template: Model, experts: Sequence[Model]) -> list[str]:
    """The template's tensors, once every expert has shown that it has the same ones."""
    ours = template.checkpoint
    for expert in experts:
        theirs = expert.checkpoint
        if theirs is ours:
            continue
        missing = [n for n in ours.tensors if theirs.get(n) is None and not skippable(n)]
        extra = [n for n in theirs.tensors if n not in ours.tensors and not skippable(n)]
        if missing:
            raise CheckpointError(
                f"{expert.ref.text} lacks {some(missing)}, which {template.ref.text} has. Only models of one "
                "architecture can be merged."
            )
        if extra:
            untied = [n for n in extra if n in ours.tied or n.endswith(OUTPUT_EMBEDDINGS)]
            hint = (
                " It has an output head of its own, where the base uses its embeddings: save it with tied weights."
                if untied
                else " Only models of one architecture can be merged."
            )
            raise CheckpointError(f"{expert.ref.text} has {some(extra)}, which {template.ref.text} lacks.{hint}")
    return list(ours.tensors)


def skippable(name: str) -> bool:
    """Whether a tensor is a constant that old checkpoints carry along, and transformers computes anew."""
    return name.endswith("inv_freq")


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def common_dtype(template: Model) -> str:
    """The dtype of most of a model's entries."""
    count = Counter[str]()
    for info in template.checkpoint.tensors.values():
        count[info.dtype] += info.entries if info.is_float else 0
    spelled = {code: name for name, code in DTYPES.items()}
    return spelled.get(count.most_common(1)[0][0], "float32")


def check_shape(name: str, info: TensorInfo, wanted: tuple[int, ...], model: Model, template: Model) -> None:
    """Refuse a tensor of another shape than the template's."""
    if not info.is_float:
        raise CheckpointError(
            f"{model.ref.text}: tensor {name} holds integers ({info.dtype}), in {template.ref.text} it holds numbers. "
            "If the model is quantised, use the original checkpoint."
        )
    if info.shape == wanted:
        return
    vocabulary = name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS)) and info.shape[1:] == wanted[1:]
    step = (
        "Their vocabularies differ in size: set tokenizer_source to base or union."
        if vocabulary
        else "Only models of one architecture and size can be merged."
    )
    raise CheckpointError(
        f"{model.ref.text}: tensor {name} has shape {list(info.shape)}, in {template.ref.text} it is {list(wanted)}. {step}"
    )
