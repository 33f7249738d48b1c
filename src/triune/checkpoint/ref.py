"""From what a user types to folders on this machine.

A reference is a local folder, ``org/name`` or ``org/name@revision`` on the hub, a URL such as ``s3://bucket/model``,
``demo:NAME``, or one of these followed by ``+adapter``. It means the same in every recipe and every flag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.checkpoint import remote
from triune.checkpoint.demo import DEMO_NAMES, cache_folder, demo_folder
from triune.checkpoint.index import Checkpoint, TensorInfo, checkpoint, open_checkpoint, read_json
from triune.errors import CheckpointError, did_you_mean

HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+(@[\w./-]+)?")
SMALL_FILES = ["*.json", "*.jinja", "*.md", "*.txt", "*.py", "*.model", "adapter_model.safetensors"]


@dataclass(frozen=True)
class ModelRef:
    """A reference, resolved as far as its small files: configuration, tokenizer, adapter; the weights may be remote."""

    text: str
    """As the user typed it."""
    folder: Path | None
    """The model; None for an adapter that was named without one."""
    adapter: Path | None = None
    hub: tuple[str, str] | None = None
    """(repository, commit) of a model on the hub whose weights may not be here yet."""
    url: str | None = None
    """Of a model whose weights are read from there, unless :meth:`fetch` has brought them here."""

    def checkpoint(self) -> Checkpoint:
        """The headers of the full model, read from afar without its weights where they are not here yet."""
        assert self.folder is not None
        if self.hub and not self._is_here:
            return _remote_checkpoint(self.text, self.folder, *self.hub)
        if self.url and not self._is_here:
            tensors = remote.read_headers(self.url, _weight_names(self.folder))
            return checkpoint(self.text, self.folder, tensors, _config(self.folder))
        return open_checkpoint(self.folder, self.text)

    def fetch(self) -> None:
        """Make sure that the weights are on this machine."""
        if self.hub:
            assert self.folder is not None
            _snapshot(self.text, *self.hub, patterns=[*SMALL_FILES, *_weight_names(self.folder)])
        if self.url:
            assert self.folder is not None
            remote.fetch(self.url, _weight_names(self.folder), self.folder)

    @property
    def _is_here(self) -> bool:
        assert self.folder is not None
        return all((self.folder / name).exists() for name in _weight_names(self.folder))


def resolve_reference(text: str, folder: Path | None = None) -> ModelRef:
    """Find what a reference names.

    Args:
        text: the reference.
        folder: where relative paths start, besides the working directory: the recipe's own folder.

    Raises:
        CheckpointError: nothing of that name can be found; the message lists what was tried.
    """
    if not text.strip():
        raise CheckpointError("A model reference is empty. Write a folder, org/name@revision, or base+adapter.")
    if (found := _local(text, folder)) is None and "+" in text:
        model, _, adapter = text.rpartition("+")
        base, lora = resolve_reference(model, folder), resolve_reference(adapter, folder)
        if base.adapter or lora.adapter is None:
            what = "carries an adapter already" if base.adapter else f"{adapter} is not an adapter"
            raise CheckpointError(f"{text}: expected base+adapter, but {model if base.adapter else ''} {what}.")
        return ModelRef(text, base.folder, lora.adapter, base.hub, base.url)
    if found is not None:
        return _classify(text, found, None)
    if text.startswith("demo:"):
        name = text.removeprefix("demo:")
        if name not in DEMO_NAMES:
            names = ", ".join(f"demo:{n}" for n in DEMO_NAMES)
            hint = did_you_mean(name, DEMO_NAMES).replace("mean ", "mean demo:")
            raise CheckpointError(f"There is no {text}; there are {names}.{hint}")
        return _classify(text, demo_folder(name), None)
    if remote.is_url(text):
        return _classify(text, remote.fetch_small(text, SMALL_FILES, cache_folder()), None, text)
    if HUB_ID.fullmatch(text):
        repository, _, revision = text.partition("@")
        path, commit = _snapshot(text, repository, revision or None, patterns=SMALL_FILES)
        return _classify(text, path, (repository, commit))
    raise CheckpointError(
        f"{text}: there is no such folder, and it is not of the form org/name, demo:NAME or s3://bucket/model."
    )


def _local(text: str, folder: Path | None) -> Path | None:
    for start in (folder, Path()):
        if start is not None and (start / Path(text).expanduser()).is_dir():
            return (start / Path(text).expanduser()).resolve()
    return None


def _classify(text: str, path: Path, hub: tuple[str, str] | None, url: str | None = None) -> ModelRef:
    if (path / "adapter_config.json").exists():
        return ModelRef(text, None, path)
    return ModelRef(text, path, None, hub, url)


def _weight_names(folder: Path) -> list[str]:
    """The weight files that transformers would load: a repository may hold the same weights in other forms, too."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
    if away := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {away[0]}, which is not beside it. Do not use this model.")
    return names


def _snapshot(text: str, repository: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{text}: no such folder here, and the hub did not give {repository}: {reason} "
            "Check the name, the network, and HF_TOKEN if the model is gated."
        ) from None
    return path, path.name


def _remote_checkpoint(text: str, folder: Path, repository: str, commit: str) -> Checkpoint:
    """Headers by range requests: a plan needs no download. The offsets are of no use until the files are here."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError

    try:
        metadata = get_safetensors_metadata(repository, revision=commit)
    except (HfHubHTTPError, NotASafetensorsRepoError, OSError) as error:
        raise CheckpointError(f"{text}: the hub has no readable safetensors for it: {error}") from None
    tensors: dict[str, TensorInfo] = {}
    for file, header in metadata.files_metadata.items():
        for name, t in header.tensors.items():
            tensors[name] = TensorInfo(name, t.dtype, tuple(t.shape), str(folder / file), t.data_offsets[0])
    return checkpoint(text, folder, tensors, _config(folder))


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    return read_json(config) if config.exists() else {}
