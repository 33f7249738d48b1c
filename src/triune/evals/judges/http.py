"""A client for any endpoint that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, ``transformers serve``, hosted APIs.

The standard library's ``urllib`` and threads. httpx comes with huggingface_hub under a name that depends on its version
(``httpx``, ``httpx2``), the ``openai`` package would bring a dozen dependencies, and requests that take seconds each gain
nothing from async. It never follows a redirect, so that the key goes where the user said and nowhere else.
"""

from __future__ import annotations

import json
import random
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from triune.errors import UserError
from triune.evals.judges.reply import Body, Outcome, Problem, Reply

WRONG_SETUP = (401, 402, 404, 405)
"""Not of this request but of all: the key, the address, the name of the model. 403 may be a filter for this text alone."""
PASSING = (408, 409, 425, 429)
"""Worth another try, as are 5xx."""
LARGEST = 16 << 20
"""Bytes of a response."""
PATIENCE = 600.0
"""Seconds: a server that asks for a longer wait than this is not waited for."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model answers, and how it may be asked."""

    url: str
    """Up to and without ``/chat/completions``, such as ``http://localhost:8000/v1``."""
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    per_minute: float = 0.0
    """Requests; 0 for as many as there can be."""
    timeout: float = 600.0
    """Seconds without a byte."""
    tries: int = 6
    backoff: float = 1.0
    """Seconds before the second try, twice as many before each further one, and by chance up to half as long again."""
    seed: int = 0

    def __post_init__(self) -> None:
        scheme, separator, rest = self.url.partition("://")
        if scheme not in ("http", "https") or not separator or not rest or set(rest) & set("@?# "):
            raise UserError(
                "The judge's URL must be like https://host/v1, without a user, a query or a key in it. The key is read "
                "from an environment variable."
            )
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError("The judge's key holds characters that a key cannot have. Set its variable again.")


class Pace:
    """Hands out the times at which requests may start.

    >>> pace = Pace(per_minute=120)
    >>> [pace.delay(now=10.0), pace.delay(now=10.0), pace.delay(now=10.75)]  # one each half second
    [0.0, 0.5, 0.25]
    >>> pace.hold(until=30.0)
    >>> pace.delay(now=12.0)
    18.0
    """

    def __init__(self, per_minute: float) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def delay(self, now: float) -> float:
        """Take the next time there is; the seconds until then."""
        with self._lock:
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def hold(self, until: float) -> None:
        """Let nobody start before."""
        with self._lock:
            self._next = max(self._next, until)


class Client:
    """Sends requests to an endpoint: several at once, paced, and again where they fail for a passing reason."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._opener: OpenerDirector = build_opener(_NoRedirect)
        self._pace = Pace(endpoint.per_minute)

    def answer(self, bodies: Sequence[Body]) -> Iterator[tuple[int, Outcome]]:
        """Each body's place in the list and its reply, or why there is none, as they come.

        Raises:
            UserError: the endpoint will not serve any request: a wrong key, address or model.
        """
        todo: SimpleQueue[tuple[int, Body]] = SimpleQueue()
        done: SimpleQueue[tuple[int, Outcome | Exception]] = SimpleQueue()
        stop = threading.Event()
        for item in enumerate(bodies):
            todo.put(item)

        def work() -> None:
            while not stop.is_set():
                try:
                    place, body = todo.get_nowait()
                except Empty:
                    return
                try:
                    done.put((place, self._ask(body, stop)))
                except Exception as error:
                    done.put((place, error))  # before the others are stopped, whose outcomes mean nothing then
                    stop.set()

        try:
            # Daemons, because who presses Ctrl-C should not wait for a slow server.
            for _ in range(min(self.endpoint.concurrency, len(bodies))):
                threading.Thread(target=work, daemon=True).start()
            for _ in bodies:
                place, outcome = done.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield place, outcome
        finally:
            stop.set()

    def _ask(self, body: Body, stop: threading.Event) -> Outcome:
        """One request, as often as it needs."""
        data = json.dumps({"model": self.endpoint.model, **body}).encode()
        chance = random.Random(f"{self.endpoint.seed}:".encode() + data)
        problem = Problem("it was not asked", lasting=False)
        for attempt in range(self.endpoint.tries):
            if attempt:
                stop.wait(self.endpoint.backoff * 2 ** (attempt - 1) * chance.uniform(1.0, 1.5))
            stop.wait(self._pace.delay(monotonic()))
            if stop.is_set():
                break
            try:
                return self._send(data, "/completions" if "prompt" in body else "/chat/completions")
            except _Passing as error:
                problem = Problem(str(error), lasting=False)
                if error.wait > PATIENCE:
                    break
                self._pace.hold(monotonic() + error.wait)
            except _Lasting as error:
                return Problem(str(error), lasting=True)
        return problem

    def _send(self, data: bytes, path: str) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "triune"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        request = Request(self.endpoint.url.rstrip("/") + path, data, headers)
        try:
            with self._opener.open(request, timeout=self.endpoint.timeout) as response:
                content = response.read(LARGEST)
                if response.length:
                    raise _Passing("a response that is cut off, or larger than 16 MB")
        except HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors, too
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(f"{self.endpoint.url} has no certificate to trust: {reason.verify_message}.") from None
            raise _Passing(f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__) from None
        return self._reply(content)

    def _refused(self, error: HTTPError) -> Exception:
        """What an error status means for us."""
        try:
            content = error.read(LARGEST)
        except (OSError, HTTPException):
            content = b""
        said, code = f"HTTP {error.code}: {self._said(content)}", _error(content).get("code")
        if error.code in WRONG_SETUP or error.code // 100 == 3 or code == "insufficient_quota":
            step = "Check the URL (most end with /v1), the name of the model, and the key."
            return UserError(f"The judge {self.endpoint.model} at {self.endpoint.url} answers {said} {step}")
        if error.code in PASSING or error.code >= 500:
            return _Passing(said, _seconds(error.headers.get("Retry-After"), time()))
        return _Lasting(said)

    def _reply(self, content: bytes) -> Reply:
        """A completion in the OpenAI protocol."""
        try:
            answer = json.loads(content)
            choice, counted = answer["choices"][0], answer.get("usage") or {}
            text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError
            return Reply(
                text,
                str(choice.get("finish_reason") or ""),
                _top(choice.get("logprobs")),
                int(counted.get("prompt_tokens") or 0),
                int(counted.get("completion_tokens") or 0),
                str(answer.get("model") or ""),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Passing(f"no completion, but {self._said(content)}") from None

    def _said(self, content: bytes) -> str:
        """What a server says of an error, in a line and without the key, which some repeat."""
        text = str(_error(content).get("message") or content.decode(errors="replace"))
        text = text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text
        line = " ".join(text.split())
        return line if len(line) <= 200 else f"{line[:200]}..."


class _Passing(Exception):
    """Another try may do."""

    def __init__(self, sentence: str, wait: float = 0.0) -> None:
        super().__init__(sentence)
        self.wait = wait
        """Seconds that the server asked for."""


class _Lasting(Exception):
    """This request will never do."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _error(content: bytes) -> Mapping[str, Any]:
    """The ``error`` of a response, of whatever form."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    found = found.get("error", found) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {"message": found}


def _seconds(header: str | None, now: float) -> float:
    """A Retry-After: seconds, or a date.

    >>> _seconds("2.5", 0.0), _seconds("Thu, 01 Jan 1970 00:00:09 GMT", 4.0), _seconds("soon", 0.0), _seconds(None, 0.0)
    (2.5, 5.0, 0.0, 0.0)
    """
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(header)).timestamp() - now)
    except ValueError:
        return 0.0


def _top(logprobs: Any) -> dict[str, float] | None:
    """The likeliest first tokens of a chat completion, where they were asked for."""
    if not logprobs or not logprobs.get("content"):
        return None
    return {str(token["token"]): float(token["logprob"]) for token in logprobs["content"][0]["top_logprobs"]}
