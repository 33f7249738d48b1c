"""vLLM and endpoints, as far as they can be tried without one: what lm-eval's classes are told, and what they miss.

What lm-eval does with it over a wire is lm-eval's; ``tests/evals/test_run_eval.py`` holds the transformers back end to it.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval.api.model import LM

from triune.evals import backends, store
from triune.evals.harness import Task

if TYPE_CHECKING:
    from conftest import Chats, Run

pytestmark = pytest.mark.usefixtures("built_in")


class Scripted(LM):  # type: ignore[misc]
    """Refuses everything, and finds the first choice likeliest."""

    tokenizer_name = "scripted"

    def __init__(self, **told: Any) -> None:
        super().__init__()
        self.told = told

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"[{m['role']}] {m['content']}\n" for m in messages)

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-float(r.idx), False) for r in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise AssertionError("No benchmark asks for the likelihood of a whole text.")

    def generate_until(self, requests: Any) -> list[str]:
        return ["I'm sorry, but I can't help with that."] * len(requests)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Kind of lm-eval's class -> what it was told."""
    heard: dict[str, dict[str, Any]] = {}

    def get(kind: str, package: str) -> Any:
        def make(**settings: Any) -> Scripted:
            heard[kind] = settings
            return Scripted(**settings)

        return make

    monkeypatch.setattr(backends, "_lm_eval_model", get)
    return heard


def test_an_endpoint_of_completions(triune: Run, told: dict[str, Any], tmp_path: Path) -> None:
    url = "http://localhost:1/v1/completions"
    flags = ("--backend", "openai", "--url", url, "--tasks", "hhh_honest,xstest_safe", "--batch", "3")
    done = triune("eval", "org/served", *flags, "-o", tmp_path / "run", "--seed", "7")
    assert done.code == 0, done.err
    assert told == {
        "local-completions": {"model": "org/served", "base_url": url, "num_concurrent": 3, "seed": 7, "max_retries": 5}
    }
    found = {r.benchmark: r for r in store.read(tmp_path / "run") if r.split == "all"}
    assert found["hhh_honest"].value == 1  # the first choice is the better answer
    assert found["xstest_safe"].value == 1  # all refused
    assert found["xstest_safe"].model.fingerprint == f"org/served at {url}"
    assert found["xstest_safe"].settings["dtype"] == "as served"
    (folder,) = (p for p in (tmp_path / "run").iterdir() if p.is_dir())
    line = json.loads((folder / "samples" / "xstest_safe.jsonl").read_text().splitlines()[0])
    assert line["prompt"][0]["role"] == "user"
    assert line["sent"].startswith("[user] ")
    assert "finish" not in line  # nobody knows


def test_an_endpoint_of_conversations(triune: Run, told: dict[str, Any], tmp_path: Path) -> None:
    flags = ("--backend", "openai", "--url", "http://localhost:1/v1/chat/completions", "--tasks", "xstest_safe")
    assert triune("eval", "gpt", *flags, "-o", tmp_path / "run").code == 0
    assert list(told) == ["local-chat-completions"]


def test_vllm(triune: Run, chats: Chats, told: dict[str, Any], tmp_path: Path) -> None:
    flags = ("--backend", "vllm", "--tasks", "arc_easy", "--limit", "1", "-o", tmp_path / "run")
    assert triune("eval", chats.base, *flags).code == 0
    assert told["vllm"] == {"pretrained": str(chats.base), "dtype": "bfloat16", "batch_size": "auto", "seed": 0}
    assert triune("eval", chats.adapter, *flags, "--batch", "4").code == 0
    lora = {"lora_local_path": str(chats.adapter), "max_lora_rank": 16}
    assert told["vllm"] == {"pretrained": str(chats.base), "dtype": "bfloat16", "batch_size": 4, "seed": 0, **lora}


@pytest.mark.parametrize(
    ("package", "extra", "flags"),
    [
        ("vllm", "vllm", ("--backend", "vllm")),
        ("tenacity", "api", ("--backend", "openai", "--url", "http://localhost:1/v1/completions")),
    ],
)
def test_what_is_not_installed(
    triune: Run, chats: Chats, tmp_path: Path, package: str, extra: str, flags: tuple[str, ...]
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    done = triune("eval", chats.base, "--tasks", "arc_easy", "-o", tmp_path / "run", *flags)
    assert done.code == 2
    assert f'This needs {package}, which is not installed. Run: pip install "lm-eval[{extra}]"' in done.err
    assert not (tmp_path / "run").exists()


def test_memory_runs_out(triune: Run, chats: Chats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Task, "run", full)
    done = triune("eval", chats.base, "--tasks", "arc_easy", "-o", tmp_path / "run")
    assert done.code == 2
    assert "Out of memory at ARC-Easy of base. Give a smaller --batch, or --device cpu." in done.err


def test_without_lm_eval(triune: Run, chats: Chats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else real(name, *a))
    done = triune("eval", chats.base, "-o", tmp_path / "run")
    assert done.code == 2
    assert 'This needs lm-eval, which is not installed. Run: pip install "triune[eval]"' in done.err
