"""A judge for tests: a real HTTP server on loopback that speaks the OpenAI protocol and plays a script, faults included."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float

    @property
    def text(self) -> str:
        """What the judge was asked."""
        return str(self.body["messages"][0]["content"])


@dataclass(frozen=True)
class Answer:
    """What goes back: a completion of ``text``, or raw ``content``."""

    text: str = ""
    content: bytes | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "stop"
    top: Mapping[str, float] | None = None
    wait: float = 0.0
    cut: bool = False
    """Close the connection in the middle of the body."""


Script = Callable[[Asked], Answer | str]


class Server:
    """Answers by a script and remembers what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    asked = Asked(len(outer.asked), self.path, dict(self.headers), body, monotonic())
                    outer.asked.append(asked)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    found = outer.script(asked)
                    answer = found if isinstance(found, Answer) else Answer(found)
                    outer.closing.wait(answer.wait)
                finally:
                    with outer.lock:
                        outer.at_once -= 1
                self.send(answer, asked)  # not counted: who has its answer may ask again before this returns

            def send(self, answer: Answer, asked: Asked) -> None:
                content = completion(answer, asked) if answer.content is None else answer.content
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if answer.cut else content)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that has gone
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def completion(answer: Answer, asked: Asked) -> bytes:
    """As the protocol has it; tokens are counted as words."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish}
    if "prompt" in asked.body:
        choice["text"] = answer.text
        words = len(asked.body["prompt"])
    else:
        choice["message"] = {"role": "assistant", "content": answer.text}
        words = len(asked.text.split())
    if answer.top is not None:
        top = [{"token": t, "logprob": p} for t, p in answer.top.items()]
        choice["logprobs"] = {"content": [{"token": answer.text, "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": words, "completion_tokens": len(answer.text.split())}
    return json.dumps({"model": f"{asked.body['model']}-0101", "choices": [choice], "usage": usage}).encode()


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server that plays the script while the block runs."""
    server = Server(script)
    thread = threading.Thread(target=lambda: server.http.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that happens elsewhere."""
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "it did not happen in time"
        sleep(0.01)
