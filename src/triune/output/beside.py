"""The files beside a merged model's weights: config, tokenizer, generation config, chat template, custom code.

:func:`plan_beside` reads only small files, refuses what would give a broken model, and decides everything;
:func:`write_beside` only writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from triune.checkpoint.index import read_json
from triune.errors import CheckpointError, RecipeError, UserError, did_you_mean
from triune.output import atomic
from triune.output.vocabulary import (
    Parent,
    Vocabulary,
    cutting_warnings,
    find_parent,
    find_source,
    plan_vocabulary,
    read_tokens,
    tokenizer_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Template = dict[str, str]
    """Chat templates by name; nearly always only ``default``."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
BUILT_IN_TEMPLATES = ("chatml", "llama3", "mistral", "alpaca")
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn|>")
"""Tokens that end a turn in every chat template that writes them. Not ``<|end|>``: for some models more follows it."""

MUST_AGREE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim")
"""They may differ at equal tensor shapes, and then the average of two models is meaningless."""
SHOULD_AGREE = (
    *("rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor", "rms_norm_eps", "layer_norm_eps"),
    *("hidden_act", "hidden_activation", "sliding_window", "layer_types", "tie_word_embeddings"),
    *("max_position_embeddings", "num_experts_per_tok", "attn_logit_softcapping", "final_logit_softcapping"),
)


@dataclass(frozen=True)
class Beside:
    """What stands beside the output's weights, decided and ready to be written."""

    config: Mapping[str, Any]
    vocabulary: Vocabulary | None
    """None: every model's embedding is taken row by row."""
    warnings: tuple[str, ...] = ()
    """What the user should look at."""
    report: tuple[str, ...] = ()
    """What was decided."""
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Files that we make or edit: name -> content."""
    copies: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """Files taken over byte for byte: name -> where from."""


def plan_beside(
    base: Parent,
    experts: Sequence[Parent],
    *,
    tokenizer_source: str | None,
    chat_template: str | None,
    dtype: str,
) -> Beside:
    """Decide every file beside the weights.

    Args:
        base: the recipe's base model, or its first model.
        experts: the models merged into it, in recipe order.
        tokenizer_source: ``base``, ``union``, or a model's reference or name.
        chat_template: ``auto`` (the most common), a built-in's name, a model's reference or name, or Jinja text.
        dtype: of the output's weights, e.g. ``bfloat16``.

    Raises:
        UserError: the models do not fit each other, and the recipe does not say what to do about it.
    """
    parents = [base, *experts]
    warnings: list[str] = []
    config = _plan_config(parents, warnings)
    vocabulary = plan_vocabulary(parents, tokenizer_source)
    source = parents[find_source(parents, tokenizer_source)]
    folder = tokenizer_folder(source)
    warnings += cutting_warnings(parents)

    texts: dict[str, str] = {}
    copies = _copies(base, folder, config)
    if vocabulary and vocabulary.appended:
        _extend_tokenizer(folder, vocabulary, texts)
    template, decision = _choose_template(parents, source, chat_template)
    tokenizer_config = read_json(copies["tokenizer_config.json"]) if "tokenizer_config.json" in copies else {}
    if template:
        _write_template(template, tokenizer_config, texts)

    _set_dtype(config, dtype)
    if vocabulary:
        _update(config, lambda part: _renumber(part, vocabulary))
        _set_vocabulary_size(config, vocabulary.size)
    generation = _generation(parents, config, vocabulary, template, folder, warnings)
    texts["generation_config.json"] = _json(generation)
    copies = {name: path for name, path in copies.items() if name not in texts}
    report = (*(vocabulary.report if vocabulary else ()), *decision)
    return Beside(config, vocabulary, tuple(warnings), report, texts, copies)


def write_beside(beside: Beside, out: Path, *, vocabulary_size: int | None = None) -> list[str]:
    """Write the files, each atomically, and return their names.

    Args:
        beside: the plan.
        out: the output folder.
        vocabulary_size: rows of the embedding that was written, where they are not the plan's.
    """
    config = json.loads(json.dumps(beside.config))
    if vocabulary_size is not None:
        _set_vocabulary_size(config, vocabulary_size)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in {"config.json": _json(config), **beside.texts}.items():
        (out / name).parent.mkdir(exist_ok=True)
        atomic.write_text(out / name, text)
    for name, path in beside.copies.items():
        atomic.copy(path, out / name)
    return sorted(["config.json", *beside.texts, *beside.copies])


# config.json


def _plan_config(parents: Sequence[Parent], warnings: list[str]) -> dict[str, Any]:
    configs = {}
    for parent in parents:
        path = parent.folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{parent.reference} has no config.json in {parent.folder}. Fetch the whole model.")
        configs[parent.folder] = config = read_json(path)
        if config.get("quantization_config"):
            kind = config["quantization_config"].get("quant_method", "unknown")
            raise CheckpointError(
                f"{parent.reference} is quantised (quantization_config in {path}, quant_method {kind}); only plain "
                "weights can be merged. Dequantise it first, or use the model that it was made from."
            )
    base = configs[parents[0].folder]
    for parent in parents[1:]:
        _compare(parents[0], parent, base, configs[parent.folder], warnings)
    base.pop("_name_or_path", None)
    return dict(base)


def _compare(base: Parent, expert: Parent, ours: Any, theirs: Any, warnings: list[str]) -> None:
    """Fields that no shape check can see: refuse the hopeless, warn of the doubtful."""
    for inner in (None, "text_config"):
        a, b = (ours, theirs) if inner is None else (ours.get(inner) or {}, theirs.get(inner) or {})
        for key in (*MUST_AGREE, *SHOULD_AGREE):
            # A file may leave a default out; only what both state can be compared.
            if key not in a or key not in b or a[key] == b[key]:
                continue
            place = f"{inner}.{key}" if inner else key
            said = f"{place} is {b[key]!r} in {expert.reference} but {a[key]!r} in {base.reference}"
            if key in MUST_AGREE:
                raise CheckpointError(f"{said} (config.json). Only models of one architecture can be merged.")
            warnings.append(f"{said}; the output keeps {a[key]!r}, which the other's weights were not trained with.")


def _update(config: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """Apply a change to the config and to the language part of a multimodal one."""
    change(config)
    if isinstance(config.get("text_config"), dict):
        change(config["text_config"])


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    def change(part: dict[str, Any]) -> None:
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype

    _update(config, change)
    config["dtype"] = dtype


def _set_vocabulary_size(config: dict[str, Any], size: int) -> None:
    def change(part: dict[str, Any]) -> None:
        if "vocab_size" in part:
            part["vocab_size"] = size

    _update(config, change)


def _copies(base: Parent, tokenizer: Path | None, config: Mapping[str, Any]) -> dict[str, Path]:
    found = {n: f / n for f in reversed(base.folders) for n in PROCESSOR_FILES if (f / n).is_file()}
    if tokenizer:
        found |= {name: tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
        if (tokenizer / "tokenizer_config.json").is_file():
            found |= _code(tokenizer, read_json(tokenizer / "tokenizer_config.json"))
    return found | _code(base.folder, config)


def _code(folder: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """The Python files that ``auto_map`` names and those they import from beside them. Copied, never run."""
    values = (config.get("auto_map") or {}).values()
    # "org/name--module.Class" points to another repository: nothing to copy.
    names = [v for value in values for v in (value if isinstance(value, list) else [value]) if v and "--" not in v]
    waiting, found = [name.split(".")[0] for name in names], {}
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        if path.stem.isidentifier() and path.name not in found and path.is_file():
            found[path.name] = path
            waiting += re.findall(r"^\s*from\s+\.(\w+)\s+import", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found


# Tokenizer


def _extend_tokenizer(folder: Path | None, vocabulary: Vocabulary, texts: dict[str, str]) -> None:
    """Append the union's new tokens in the JSON files; the rest of them stays as it was."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"tokenizer_source: union edits tokenizer.json, and {folder} has none. Load the tokenizer once with "
            "transformers.AutoTokenizer and save it there."
        )
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or []), *vocabulary.appended]
    texts["tokenizer.json"] = _json(tokenizer)
    config = folder / "tokenizer_config.json"
    if config.is_file() and "added_tokens_decoder" in (content := read_json(config)):
        for entry in vocabulary.appended:
            flags = {key: value for key, value in entry.items() if key != "id"}
            content["added_tokens_decoder"][str(entry["id"])] = flags
        texts["tokenizer_config.json"] = _json(content)
    if (folder / "added_tokens.json").is_file():
        added = read_json(folder / "added_tokens.json")
        texts["added_tokens.json"] = _json({**added, **{e["content"]: e["id"] for e in vocabulary.appended}})


# Chat template


def read_template(parent: Parent) -> Template:
    """The parent's chat templates; an adapter without one has its base's."""
    for folder in parent.folders:
        found: Template = {}
        config = folder / "tokenizer_config.json"
        embedded = read_json(config).get("chat_template") if config.is_file() else None
        if isinstance(embedded, str):
            found["default"] = embedded
        elif embedded:
            found |= {entry["name"]: entry["template"] for entry in embedded}
        if (folder / "chat_template.jinja").is_file():  # transformers prefers the file, too
            found = {"default": (folder / "chat_template.jinja").read_text(encoding="utf-8")}
            extra = folder / "additional_chat_templates"
            found |= {p.stem: p.read_text(encoding="utf-8") for p in sorted(extra.glob("*.jinja"))}
        if found:
            return found
    return {}


def _choose_template(parents: Sequence[Parent], source: Parent, wanted: str | None) -> tuple[Template, list[str]]:
    """The output's templates, and a sentence about the decision where there was one to take."""
    templates = [read_template(p) for p in parents]
    # Jinja drops one line end at the end of a file, so it does not count.
    plain = [{name: text.rstrip("\n") for name, text in t.items()} for t in templates]
    carriers = [i for i, t in enumerate(plain) if t]
    if wanted == "auto":
        counts = Counter(json.dumps(plain[i], sort_keys=True) for i in carriers)
        if not counts:
            return {}, []
        winner = next(i for i in carriers if json.dumps(plain[i], sort_keys=True) == counts.most_common(1)[0][0])
        votes = counts.most_common(1)[0][1]
        said = f"The chat template is that of {parents[winner].reference}, as in {votes} of {len(carriers)} models."
        return templates[winner], [said]
    if wanted is not None:
        return _named_template(parents, templates, wanted), [f"The chat template is the recipe's: {_short(wanted)}."]
    if not carriers:
        return {}, []
    first = carriers[0]
    different = [parents[i].reference for i in carriers if plain[i] != plain[first]]
    if different:
        raise UserError(
            f"The chat templates differ: {', '.join(different)} do not use the one of {parents[first].reference}. A "
            "model answers badly in a format it was not trained in, so choose: chat_template: auto (the most common), "
            f"a model's name ({', '.join(dict.fromkeys(parents[i].name for i in carriers))}), a built-in "
            f"({', '.join(BUILT_IN_TEMPLATES)}), or the Jinja text itself."
        )
    if read_template(source):
        return templates[first], []
    return templates[first], [f"The chat template is that of {parents[first].reference}; {source.reference} has none."]


def _named_template(parents: Sequence[Parent], templates: Sequence[Template], wanted: str) -> Template:
    if wanted in BUILT_IN_TEMPLATES:
        path = resources.files("triune.output") / "templates" / f"{wanted}.jinja"
        return {"default": path.read_text(encoding="utf-8")}
    if wanted == "exaone":
        raise RecipeError(
            "chat_template: exaone is a built-in of mergekit that triune does not have. Give the Jinja text itself, or "
            "the name of a model in the recipe that carries it."
        )
    if "{{" in wanted or "{%" in wanted:
        _check_syntax(wanted)
        return {"default": wanted}
    try:
        chosen = find_parent(parents, wanted, "chat_template")
    except RecipeError:
        known = ["auto", *BUILT_IN_TEMPLATES, *dict.fromkeys(["base", *(p.name for p in parents)])]
        hint = did_you_mean(wanted, [*known, *(p.reference for p in parents)])
        raise RecipeError(
            f"chat_template must be one of {', '.join(known)}, or Jinja text (with {{{{ or {{%), got {wanted!r}.{hint}"
        ) from None
    if not templates[chosen]:
        carriers = [p.name for p, t in zip(parents, templates, strict=True) if t]
        raise UserError(
            f"chat_template: {wanted} names a model that has no chat template. "
            f"Models that have one: {', '.join(carriers) or 'none'}."
        )
    return templates[chosen]


def _check_syntax(text: str) -> None:
    import jinja2

    # transformers knows one tag more, for training masks; to the parser it is like any block.
    known = re.sub(r"{%(-?)\s*generation\s*(-?)%}", r"{%\1 if true \2%}", text)
    known = re.sub(r"{%(-?)\s*endgeneration\s*(-?)%}", r"{%\1 endif \2%}", known)
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(known)
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"chat_template is not valid Jinja: {error.message} (its line {error.lineno}).") from None


def _write_template(template: Template, tokenizer_config: dict[str, Any], texts: dict[str, str]) -> None:
    default = template.get("default") or next(iter(template.values()))
    texts["chat_template.jinja"] = default
    for name, text in template.items():
        if name != "default" and re.fullmatch(r"[\w-]+", name):
            texts[f"additional_chat_templates/{name}.jinja"] = text
    embedded = tokenizer_config.get("chat_template")
    if isinstance(embedded, list):
        embedded = {entry["name"]: entry["template"] for entry in embedded}
    if embedded and embedded not in (default, template):
        edited = json.loads(texts["tokenizer_config.json"]) if "tokenizer_config.json" in texts else tokenizer_config
        texts["tokenizer_config.json"] = _json({k: v for k, v in edited.items() if k != "chat_template"})


# generation_config.json


def _generation(
    parents: Sequence[Parent],
    config: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    template: Template,
    tokenizer: Path | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The base's, with every id at which any parent would stop: one too few, and a chat model never ends."""
    generation = _read_first(parents[0], "generation_config.json")
    if generation:
        _renumber(generation, vocabulary)
    else:
        part = {**(config.get("text_config") or {}), **config}
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        generation = {key: part[key] for key in keys if part.get(key) is not None}
    generation.pop("_from_model_config", None)

    stops: dict[int, None] = dict.fromkeys(_ids(generation.get("eos_token_id")))
    for index, parent in enumerate(parents):
        translate = _translation(vocabulary, index)
        own = read_json(parent.folder / "config.json")
        places = (own, own.get("text_config") or {}, _read_first(parent, "generation_config.json"))
        for stop in dict.fromkeys(i for place in places for i in _ids(place.get("eos_token_id"))):
            if (row := translate(stop)) is not None:
                stops[row] = None
            else:
                warnings.append(f"{parent.reference} stops at token {stop}, which the output's vocabulary lacks.")

    ids = dict(read_tokens(tokenizer).ids) if tokenizer else {}
    ids |= {entry["content"]: entry["id"] for entry in (vocabulary.appended if vocabulary else ())}
    text = "".join(template.values())
    ending = [token for token in END_OF_TURN if token in text]
    for parent in parents:
        token = _read_first(parent, "tokenizer_config.json").get("eos_token")
        ending.append(str(token.get("content") if isinstance(token, dict) else token))
    stops |= dict.fromkeys(ids[token] for token in ending if token in ids)
    if unknown := [token for token in END_OF_TURN if token in text and ids and token not in ids]:
        warnings.append(
            f"The chat template ends a turn with {', '.join(unknown)}, which the output's vocabulary lacks as a token: "
            "the model will hardly ever stop. Choose another chat_template, or tokenizer_source: union."
        )
    if stops:
        generation["eos_token_id"] = next(iter(stops)) if len(stops) == 1 else list(stops)
    return generation


def _read_first(parent: Parent, name: str) -> dict[str, Any]:
    path = next((f / name for f in parent.folders if (f / name).is_file()), None)
    return dict(read_json(path)) if path else {}


def _ids(value: Any) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _translation(vocabulary: Vocabulary | None, model: int) -> Callable[[int], int | None]:
    """A model's token number -> the output's."""
    rows = vocabulary.rows[model] if vocabulary else None
    if rows is None:
        return lambda number: number
    back = {row: number for number, row in enumerate(rows) if row >= 0}
    return back.get


def _renumber(part: dict[str, Any], vocabulary: Vocabulary | None) -> None:
    """The base's token numbers, bos_token_id and the like, in the output's vocabulary."""
    if vocabulary and vocabulary.rows[0] is not None:
        translate = _translation(vocabulary, 0)
        for key in [k for k in part if k.endswith("_token_id")]:
            new = [n for i in _ids(part[key]) if (n := translate(i)) is not None]
            part[key] = new if isinstance(part[key], list) else next(iter(new), None)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."
