"""A studio over toys, on a port of its own, and a way to talk to it as the page does."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch

from triune.recipes import recipe_from_flags
from triune.studio.session import Studio
from triune.testing import perturbed, write_checkpoint
from triune.testing.chat import toy_chat, toy_tokenizer

NAMES = ("helpful", "honest", "harmless")


@dataclass(frozen=True)
class Toys:
    """A base that chats, three adapters on it and three full models near it."""

    root: Path
    base: Mapping[str, torch.Tensor]

    def experts(self, kind: str) -> list[str]:
        return [f"{n}={self.root / kind / n}" for n in NAMES]

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--base", str(self.root / "base"), *(p for e in self.experts("adapters") for p in ("-e", e)))


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, write_adapter: Any) -> Toys:
    root = tmp_path_factory.mktemp("studio")
    base = toy_chat(root / "base", config={"max_position_embeddings": 256})
    shapes = {n: tuple(t.shape) for n, t in base.items() if "proj" in n}
    config = json.loads((root / "base" / "config.json").read_text())
    for seed, name in enumerate(NAMES, 1):
        write_adapter(root / "adapters" / name, shapes, seed=seed, rank=1 + seed, scale=0.6)
        write_checkpoint(root / "full" / name, perturbed(base, seed, 0.05), config)
        toy_tokenizer().save_pretrained(root / "full" / name)
    return Toys(root, base)


@pytest.fixture(scope="session")
def open_studio(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Studio]:
    """``open_studio("adapters", "tsvm")``"""

    def build(kind: str = "adapters", method: str = "tsvm", settings: tuple[str, ...] = ()) -> Studio:
        recipe = recipe_from_flags(
            base=str(toys.root / "base"), experts=toys.experts(kind), method=method, settings=settings
        )
        return Studio(recipe, tmp_path_factory.mktemp("out") / "kept")

    return build


@pytest.fixture(scope="session")
def adapters(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio("adapters")


@pytest.fixture(scope="session")
def full(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio("full", "linear")


class Page:
    """What a browser would send to one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any, str]:
        """Status, headers and text of an answer."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def events(self, path: str, body: Any) -> list[tuple[str, Any]]:
        """An event stream to its end."""
        status, _, text = self.ask(path, body)
        assert status == 200, text
        found = [event.split("\n") for event in text.strip().split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in found]


@pytest.fixture(scope="session")
def page(adapters: Studio) -> Iterator[Page]:
    """A server in a thread of this process."""
    import uvicorn

    from triune.studio.gate import Gate, listen
    from triune.studio.server import Server

    pytest.importorskip("starlette")
    found = listen("127.0.0.1", 0)
    port = found.getsockname()[1]
    app = Gate(Server(adapters).app(), "127.0.0.1", port)
    web = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [found]}, daemon=True)
    thread.start()
    yield Page(f"http://127.0.0.1:{port}")
    web.should_exit = True
    thread.join(20)
