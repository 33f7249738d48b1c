"""The page and its few addresses, behind the gate of :mod:`triune.studio.gate`.

Only the files of ``static/`` are served, only ``--out`` is written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib.resources import files
from time import monotonic
from typing import Any

from triune._lazy import torch
from triune.errors import CheckpointError, ParameterError, RecipeError, TriuneError, UserError
from triune.evals.answers import PROMPTS
from triune.progress import Advanced, Event, Noted, Started
from triune.reports.colours import of_experts
from triune.studio.form import methods
from triune.studio.gate import Gate, Refused
from triune.studio.generate import answers, encode
from triune.studio.point import Point, RefusedParameter
from triune.studio.score import score, tasks
from triune.studio.session import Merge, Stopped, Studio, listening

LARGEST_BODY = 1 << 16
MOST_TOKENS = 1024
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Send = Callable[[str, Any], None]
"""Takes an event's name and what it tells."""


class Server:
    """The addresses, and the one thread at a time that computes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.model = threading.Lock()
        """Held by who uses the model in memory."""
        self.closing = threading.Event()
        self.scoring = False
        self.working: set[threading.Thread] = set()
        self.threads = torch.get_num_threads()

    def close(self) -> None:
        """Wait until no thread computes any more: torch does not survive being torn down under one."""
        self.closing.set()
        for thread in list(self.working):
            thread.join()

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/static/{name}", self.page),
                Route("/api/session", self.session),
                Route("/api/merge", self.merge, methods=["POST"]),
                Route("/api/answer", self.answer, methods=["POST"]),
                Route("/api/score", self.score, methods=["POST"]),
                Route("/api/save", self.save, methods=["POST"]),
                Route("/api/write", self.write, methods=["POST"]),
            ],
            exception_handlers={UserError: _say},
        )

    # ---- addresses

    async def page(self, request: Any) -> Any:
        from starlette.responses import Response

        wanted = request.path_params.get("name", "index.html")
        known = {f.name: f for f in (files("triune.studio") / "static").iterdir() if f.is_file()}
        if wanted not in known:
            raise Refused(404, "There is nothing here.")
        kind = next((t for ending, t in TYPES.items() if wanted.endswith(ending)), "application/octet-stream")
        return Response(known[wanted].read_bytes(), media_type=kind)

    async def session(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        from triune import __version__

        studio = self.studio
        start = studio.start
        return JSONResponse(
            {
                "version": __version__,
                "base": studio.base,
                "experts": studio.names,
                "colours": of_experts(studio.names),
                "out": str(studio.out.absolute()),
                "prompts": [p for each in PROMPTS.values() for p in each],
                "chat": bool(studio.tokenizer.chat_template),
                "methods": list(methods(len(studio.names))),
                "start": {
                    "method": start.method,
                    "shares": start.shares,
                    "strength": start.strength,
                    "parameters": dict(start.parameters),
                },
            }
        )

    async def merge(self, request: Any) -> Any:
        point, _ = await self._asked(request)

        def work(send: Send, stop: Callable[[], bool]) -> None:
            with self._model(stop):
                self._merged(point, send, stop)

        return self._stream(work)

    async def answer(self, request: Any) -> Any:
        point, asked = await self._asked(request)
        studio, prompt, most = self.studio, asked.get("prompt"), asked.get("max_tokens", 96)
        if not isinstance(prompt, str):
            raise Refused(422, "The prompt must be text.")
        if type(most) is not int or not 1 <= most <= MOST_TOKENS:
            raise Refused(422, f"tokens must be a whole number from 1 to {MOST_TOKENS:,}, got {most!r}.")
        self._not_scoring()
        ids = encode(studio.tokenizer, prompt, most, studio.limit)

        def work(send: Send, stop: Callable[[], bool]) -> None:
            start = monotonic()
            with self._model(stop):
                merged = self._merged(point, send, stop)
                names = [v.name for v in studio.versions]
                versions = [*studio.versions, merged.version]
                for step in answers(studio.resident, studio.tokenizer, versions, ids, most):
                    if stop():
                        raise Stopped
                    told = [
                        {
                            "version": [*names, "merge"][h.version],
                            "text": h.text,
                            "tokens": h.tokens,
                            "finish": h.finish,
                        }
                        for h in step
                    ]
                    send("heard", {"seconds": monotonic() - start, "answers": told})
            send("done", {"seconds": monotonic() - start})

        return self._stream(work)

    async def score(self, request: Any) -> Any:
        point, asked = await self._asked(request)
        studio, wanted = self.studio, asked.get("version", "merge")
        if wanted != "merge" and wanted not in (v.name for v in studio.versions):
            raise Refused(422, f"There is no version {wanted!r}.")
        self._not_scoring()
        chosen = await asyncio.to_thread(tasks, bool(studio.tokenizer.chat_template))

        def work(send: Send, stop: Callable[[], bool]) -> None:
            self.scoring = True
            try:
                with self._model(stop):
                    merged = self._merged(point, send, stop) if wanted == "merge" else None
                    version = merged.version if merged else next(v for v in studio.versions if v.name == wanted)
                    listener = listening(Progress(send), stop)
                    for row in score(studio.resident, studio.tokenizer, version, chosen, listener):
                        send("scored", row)
            finally:
                self.scoring = False
            send("done", {})

        return self._stream(work)

    async def save(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        point, asked = await self._asked(request)
        path = self.studio.save(point, _name(asked))
        return JSONResponse({"path": str(path), "recipe": path.read_text(encoding="utf-8")})

    async def write(self, request: Any) -> Any:
        point, asked = await self._asked(request)
        name = _name(asked)

        def work(send: Send, stop: Callable[[], bool]) -> None:
            result = self.studio.write(point, name, listening(Progress(send), stop))
            checks = [{"passed": c.passed, "sentence": c.sentence} for c in result.checks]
            send("written", {"path": str(result.out.absolute()), "passed": result.passed, "checks": checks})

        return self._stream(work)

    # ---- what they share

    async def _asked(self, request: Any) -> tuple[Point, dict[str, Any]]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise Refused(413, f"The body has more than {LARGEST_BODY:,} bytes.")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The body is not JSON: {error}.") from None
        if not isinstance(asked, dict) or not isinstance(asked.get("point"), dict):
            raise Refused(400, "The body must be an object with a point.")
        return self.studio.point(asked["point"]), asked

    def _merged(self, point: Point, send: Send, stop: Callable[[], bool]) -> Merge:
        merged = self.studio.merged(point, listening(Progress(send), stop))
        told = {
            "seconds": merged.seconds,
            "weights": point.weights,
            "factors": merged.exact,
            "dense": merged.dense,
            "command": self.studio.command(point, "merged/"),
        }
        send("merged", told)
        return merged

    @contextlib.contextmanager
    def _model(self, stop: Callable[[], bool]) -> Iterator[None]:
        """The model for oneself; who was superseded while waiting gives up."""
        while not self.model.acquire(timeout=0.1):
            if stop():
                raise Stopped
        try:
            if stop():
                raise Stopped
            yield
        finally:
            self.model.release()

    def _not_scoring(self) -> None:
        if self.scoring:
            raise Refused(409, "The mini set is being scored. Wait for it, or stop it.")

    def _stream(self, work: Callable[[Send, Callable[[], bool]], None]) -> Any:
        """Events of a thread as ``text/event-stream``; the thread ends when nobody listens any more."""
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._events(work), media_type="text/event-stream")

    async def _events(self, work: Callable[[Send, Callable[[], bool]], None]) -> AsyncIterator[str]:
        loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue[str | None](), threading.Event()

        def stop() -> bool:
            return gone.is_set() or self.closing.is_set()

        def put(text: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(queue.put_nowait, text)

        def send(event: str, told: Any) -> None:
            put(f"event: {event}\ndata: {json.dumps(told)}\n\n")

        def run() -> None:
            torch.set_num_threads(self.threads)  # a thread begins with what any has set last: a merge's lanes set 1
            try:
                work(send, stop)
            except Stopped:
                pass
            except TriuneError as error:
                send("failed", _told(error))
            except Exception as error:
                import traceback

                traceback.print_exc()
                send("failed", {"error": f"This is a bug in triune: {error!r}. The terminal has the details."})
            finally:
                self.working.discard(thread)
                put(None)

        thread = threading.Thread(target=run, daemon=True)
        self.working.add(thread)
        thread.start()
        try:
            while (text := await queue.get()) is not None:
                yield text
        finally:
            gone.set()


class Progress:
    """Tells the page how far long work is, at most a few times a second."""

    def __init__(self, send: Send) -> None:
        self.send, self.phase, self.total, self.done, self.told = send, "", 0, 0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.phase, self.total, self.done = event.phase, event.total, event.done
        elif isinstance(event, Advanced):
            self.done += event.amount
        elif isinstance(event, Noted):
            self.send("noted", {"sentence": event.sentence})
            return
        if not isinstance(event, Advanced) or monotonic() - self.told > 0.1:
            self.told = monotonic()
            self.send("progress", {"phase": self.phase, "done": self.done, "total": self.total})


def _name(asked: Mapping[str, Any]) -> str:
    name = asked.get("name")
    if not isinstance(name, str):
        raise Refused(422, "name must be text.")
    return name


async def _say(request: Any, error: Exception) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(_told(error), error.status if isinstance(error, Refused) else 422)


def _told(error: Exception) -> dict[str, Any]:
    """What the page shows, and where: errors of the point belong beside it, whatever was asked at it."""
    told: dict[str, Any] = {"error": str(error)}
    if isinstance(error, ParameterError | RecipeError | CheckpointError):
        told["point"] = True
    if isinstance(error, RefusedParameter):
        told["parameter"] = error.name
    return told


def serve(studio: Studio, found: socket.socket, host: str) -> None:
    """Answer until SIGINT or SIGTERM; running answers and merges end then."""
    import uvicorn

    server = Server(studio)
    port = found.getsockname()[1]
    config = uvicorn.Config(
        Gate(server.app(), host, port),
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
    )

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ours: uvicorn would raise the signal once more at the end."""
            yield

    web = Quiet(config)

    async def main() -> None:
        def stop() -> None:
            server.closing.set()
            web.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await web.serve(sockets=[found])

    asyncio.run(main())
    server.close()
