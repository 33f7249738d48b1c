"""Which row of each model's embedding becomes which row of the output's, aligned by the tokens' strings.

Reads the tokenizers' own files; transformers and torch are not imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from triune.checkpoint.index import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS, read_header, read_json
from triune.errors import CheckpointError, RecipeError, UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MISSING = -1
"""In a row map: that model has no row for the token."""

READABLE = ("tokenizer.json", "vocab.json")
OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "tekken.json")
"""Vocabularies that are only compared byte for byte."""


@dataclass(frozen=True)
class Parent:
    """One input of the merge."""

    reference: str
    """As typed by the user."""
    name: str
    """A label, e.g. ``helpful``."""
    folder: Path
    """The full model's folder; for a base with an adapter, the base's folder."""
    adapter: Path | None = None
    """The adapter's folder, if any. A file it lacks is the one of its base."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where to look for a file, first hit wins."""
        return (self.adapter, self.folder) if self.adapter else (self.folder,)


@dataclass(frozen=True)
class Vocabulary:
    """The output's embedding, row by row."""

    size: int
    """Rows of the output's embedding, padding included."""
    rows: tuple[list[int] | None, ...]
    """For each of [base, *experts]: output row -> that model's row, or :data:`MISSING`. None: identity.

    A row may be missing in every model: a token of the chosen tokenizer that not even its own model has a row for.
    """
    report: tuple[str, ...] = ()
    """What was added, dropped and renumbered, in sentences."""
    appended: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """Entries for ``added_tokens`` of tokenizer.json that a union puts behind the base's tokens."""


@dataclass(frozen=True)
class Tokens:
    """What the tokenizer files of one folder say."""

    ids: Mapping[str, int]
    """Token -> id, added tokens included. Empty where there is only an opaque file."""
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merges: tuple[str, ...] = ()
    steps: str = ""
    """Normalizer and pre-tokenizer: text is cut differently where these differ, even at equal vocabularies."""
    raw: bytes = b""
    """The opaque file, if any."""

    @property
    def core(self) -> frozenset[str]:
        return frozenset(self.ids) - frozenset(self.added)


def find_parent(parents: Sequence[Parent], wanted: str, key: str, also: Sequence[str] = ()) -> int:
    """Index of the model that a recipe's ``key`` names; 0 is the base."""
    for index, parent in enumerate(parents):
        if wanted in (parent.reference, parent.name) or (wanted == "base" and index == 0):
            return index
    known = list(dict.fromkeys([*also, "base", *(p.name for p in parents)]))
    hint = did_you_mean(wanted, [*known, *(p.reference for p in parents)])
    raise RecipeError(f"{key} must be one of {', '.join(known)}, got {wanted!r}.{hint}")


def tokenizer_folder(parent: Parent) -> Path | None:
    """The folder whose tokenizer the parent uses: an adapter may ship its own."""
    return next((f for f in parent.folders if any((f / n).is_file() for n in READABLE + OPAQUE)), None)


def read_tokens(folder: Path) -> Tokens:
    raw = next(((folder / n).read_bytes() for n in OPAQUE if (folder / n).is_file()), b"")
    if (folder / "tokenizer.json").is_file():
        try:
            return replace(_parse_tokenizer((folder / "tokenizer.json").read_bytes()), raw=raw)
        except (KeyError, TypeError, ValueError) as error:
            path = folder / "tokenizer.json"
            raise CheckpointError(
                f"{path} is no tokenizer of the tokenizers library ({error!r}). Fetch it again."
            ) from None
    added: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        added.update(read_json(folder / "added_tokens.json"))
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        added.update({entry["content"]: int(number) for number, entry in decoder.items()})
    entries = {token: {"id": number, "content": token} for token, number in added.items()}
    if (folder / "vocab.json").is_file():
        merges = folder / "merges.txt"
        lines = merges.read_text(encoding="utf-8").splitlines() if merges.is_file() else []
        lines = [line for line in lines if line and not line.startswith("#version")]
        return Tokens({**read_json(folder / "vocab.json"), **added}, entries, tuple(lines), raw=raw)
    return Tokens({}, entries, raw=raw)


@lru_cache(maxsize=8)
def _parse_tokenizer(text: bytes) -> Tokens:
    """Cached, because the models of one merge mostly share one large file."""
    content = json.loads(text)
    model = content["model"]
    vocab = model["vocab"]
    # Unigram models keep a list of [piece, score], the others a dictionary of ids.
    core = vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    added = {entry["content"]: entry for entry in content.get("added_tokens") or []}
    ids = {**core, **{token: entry["id"] for token, entry in added.items()}}
    merges = tuple(m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or ())
    steps = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")], sort_keys=True)
    return Tokens(ids, added, merges, steps)


def embedding_rows(parent: Parent) -> int | None:
    """Rows of the parent's embedding: its config's, or those of a resized embedding that the adapter ships."""
    rows: int | None = None
    if (parent.folder / "config.json").is_file():
        config = read_json(parent.folder / "config.json")
        rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    weights = parent.adapter / "adapter_model.safetensors" if parent.adapter else None
    if weights and weights.is_file():
        resized = [t.shape[0] for t in read_header(weights) if t.name.endswith(INPUT_EMBEDDINGS + OUTPUT_EMBEDDINGS)]
        rows = max([rows or 0, *resized]) or None
    return rows


def find_source(parents: Sequence[Parent], tokenizer_source: str | None) -> int:
    """Index of the model whose tokenizer files the output takes."""
    if tokenizer_source in (None, "union"):
        return 0
    return find_parent(parents, str(tokenizer_source), "tokenizer_source", ["union"])


def plan_vocabulary(parents: Sequence[Parent], tokenizer_source: str | None) -> Vocabulary | None:
    """Align the vocabularies of [base, *experts], or None where all models agree row by row.

    Raises:
        UserError: vocabularies differ and no ``tokenizer_source`` says which to take, or they cannot be aligned.
    """
    union = tokenizer_source == "union"
    source = find_source(parents, tokenizer_source)
    folders = [tokenizer_folder(p) for p in parents]
    read = {f: read_tokens(f) for f in dict.fromkeys(folders) if f}
    # A model without tokenizer files cannot disagree: it is taken to use the base's.
    default = read[folders[0]] if folders[0] else None
    tokens = [read[f] if f else default for f in folders]
    sizes = [embedding_rows(p) for p in parents]
    chosen = tokens[source]
    if chosen is None:
        return None
    if not any(_differ(chosen, t) or sizes[source] != s for t, s in zip(tokens, sizes, strict=True)):
        return None
    for parent, own in zip(parents, tokens, strict=True):
        if own is not None and not (own.ids and chosen.ids) and _differ(chosen, own):
            raise UserError(
                f"The tokenizers of {parents[source].reference} and {parent.reference} are not the same file, and at "
                "least one cannot be read token by token. Load each once with transformers.AutoTokenizer and save it "
                "in its folder, so that it has a tokenizer.json."
            )
    if not tokenizer_source:
        _refuse(parents, tokens, sizes)
    appended = _appended(parents, tokens, sizes) if union else ()
    out = {**chosen.ids, **{entry["content"]: entry["id"] for entry in appended}}
    size = max([sizes[source] or 0, *(entry["id"] + 1 for entry in appended)]) or max(out.values()) + 1
    # An opaque file that equals the chosen tokenizer's holds the same tokens.
    ids = [own.ids if own and own.ids else chosen.ids for own in tokens]
    rows = tuple(_rows(out, size, own_ids, n or size) for own_ids, n in zip(ids, sizes, strict=True))
    report = [f"The union adds {len(appended)} tokens to those of {parents[0].reference}."] if union else []
    for parent, own_ids, own_rows in zip(parents, ids, rows, strict=True):
        if own_rows is not None:
            dropped = sum(token not in out for token in own_ids)
            renumbered = sum(out.get(token, number) != number for token, number in own_ids.items())
            lacking = sum(own_rows[number] == MISSING for number in out.values() if number < size)
            report.append(
                f"{parent.reference}: {dropped} of its tokens are dropped, {renumbered} get a new number, "
                f"and it has no row for {lacking} of the output's."
            )
    return Vocabulary(size, rows, tuple(report), appended)


def cutting_warnings(parents: Sequence[Parent]) -> list[str]:
    """Models with the base's vocabulary that nevertheless cut text into other tokens."""
    first = tokenizer_folder(parents[0])
    if first is None:
        return []
    base, found = read_tokens(first), []
    for parent in parents[1:]:
        folder = tokenizer_folder(parent)
        if folder is None or folder == first:
            continue
        own = read_tokens(folder)
        if own.ids and own.ids == base.ids and (own.merges, own.steps) != (base.merges, base.steps):
            found.append(
                f"{parent.reference} has the vocabulary of {parents[0].reference} but cuts text differently "
                "(merges, normalizer or pre_tokenizer in tokenizer.json); the output follows tokenizer_source."
            )
    return found


def _differ(one: Tokens, other: Tokens | None) -> bool:
    if other is None or one is other:
        return False
    return one.ids != other.ids if one.ids and other.ids else not one.raw or one.raw != other.raw


def _refuse(parents: Sequence[Parent], tokens: Sequence[Tokens | None], sizes: Sequence[int | None]) -> None:
    base, first = parents[0].reference, tokens[0]
    assert first is not None
    choices = "Set tokenizer_source: base to keep the base's tokens, or tokenizer_source: union to keep all."
    for parent, own, size in zip(parents[1:], tokens[1:], sizes[1:], strict=True):
        if own is None:
            continue
        if _differ(first, own):
            different = {token for token, _ in own.ids.items() ^ first.ids.items()}
            examples = ", ".join(repr(token) for token in sorted(different)[:3])
            raise UserError(
                f"The vocabulary of {parent.reference} ({len(own.ids)} tokens) differs from that of {base} "
                f"({len(first.ids)}) in {len(different)} tokens, e.g. {examples}. {choices}"
            )
        if size != sizes[0]:
            raise UserError(
                f"{parent.reference} and {base} have the same tokens, but embeddings of {size} and {sizes[0]} rows "
                "(vocab_size in config.json). Set tokenizer_source: base to keep the base's rows."
            )


def _rows(out: Mapping[str, int], size: int, own: Mapping[str, int], own_size: int) -> list[int] | None:
    rows = [MISSING] * size
    for token, number in out.items():
        if number < size:
            row = own.get(token, MISSING)
            rows[number] = row if row < own_size else MISSING
    # Padding has no token to align by; it keeps its place where it is padding in both.
    for row in set(range(min(size, own_size))).difference(out.values(), own.values()):
        rows[row] = row
    return None if size == own_size and rows == list(range(size)) else rows


def _appended(
    parents: Sequence[Parent], tokens: Sequence[Tokens | None], sizes: Sequence[int | None]
) -> tuple[Mapping[str, Any], ...]:
    """Entries for the tokens that only experts have, numbered as the tokenizers library will number them."""
    base = tokens[0]
    assert base is not None
    entries: dict[str, dict[str, Any]] = {}
    following = max(base.ids.values()) + 1
    for parent, own, size in zip(parents, tokens, sizes, strict=True):
        if own is None:
            continue
        # Plain words that one model has as added tokens and the other in its core are no difference in the core.
        core = (own.core ^ base.core) - set(own.added) - set(base.added)
        if core or own.merges != base.merges:
            examples = ", ".join(repr(token) for token in sorted(core)[:3]) or "the merges"
            raise UserError(
                "tokenizer_source: union needs tokenizers that differ in added tokens only, but those of "
                f"{parent.reference} and {parents[0].reference} differ in their core vocabulary ({examples}). "
                "Set tokenizer_source: base."
            )
        for token, number in sorted(own.ids.items(), key=lambda item: item[1]):
            if token not in base.ids and token not in entries and number < (size or number + 1):
                flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                entries[token] = {**flags, **own.added[token], "id": following + len(entries)}
    if entries and len(base.ids) != following:
        # The library ignores the ids in its file and counts on from the number of tokens.
        raise UserError(
            f"tokenizer_source: union appends tokens, but the tokenizer of {parents[0].reference} has {len(base.ids)} "
            f"tokens with numbers up to {following - 1}, so new ones would collide. Set tokenizer_source: base."
        )
    return tuple(entries.values())
