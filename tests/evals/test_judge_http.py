"""The client against a real server that fails in every way there is."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest
from judge_server import Answer, Asked, Script, Server, serving

from triune.errors import UserError
from triune.evals.judges.http import Client, Endpoint
from triune.evals.judges.reply import Outcome, Problem, Reply

KEY = "sk-very-secret-1234"


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0}


def client(server: Server, **settings: Any) -> Client:
    usual = {"model": "toy", "key": KEY, "backoff": 0.01, "timeout": 5.0, "tries": 3}
    return Client(Endpoint(url=server.url, **{**usual, **settings}))


def one(script: Script, **settings: Any) -> tuple[Outcome, list[Asked]]:
    """The outcome of a single request, and what the server saw."""
    with serving(script) as server:
        ((place, outcome),) = client(server, **settings).answer([chat("hello")])
    assert place == 0
    return outcome, server.asked


def in_turn(*answers: Answer | str) -> Script:
    """The first answer to the first request, and so on; the last to all further ones."""
    return lambda asked: answers[min(asked.number, len(answers) - 1)]


# --- the protocol -----------------------------------------------------------------------------------------------


def test_a_chat_request_and_its_reply() -> None:
    outcome, (asked,) = one(in_turn(Answer("two words", top={"m": -0.5})))
    assert outcome == Reply("two words", "stop", {"m": -0.5}, tokens_in=1, tokens_out=2, model="toy-0101")
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.body == {"model": "toy", **chat("hello")}


def test_a_prompt_of_token_ids_goes_to_completions() -> None:
    with serving(in_turn("safe")) as server:
        body: Mapping[str, Any] = {"prompt": [1, 2, 3], "max_tokens": 8}
        ((_, outcome),) = client(server).answer([body])
    assert outcome == Reply("safe", "stop", None, 3, 1, "toy-0101")
    assert server.asked[0].path == "/v1/completions"


def test_without_a_key_none_is_sent() -> None:
    _, (asked,) = one(in_turn("x"), key="")
    assert "Authorization" not in asked.headers


def test_a_reply_without_content_or_counts_is_an_empty_reply() -> None:
    content = json.dumps({"choices": [{"message": {"role": "assistant", "content": None}}], "usage": None}).encode()
    assert one(in_turn(Answer(content=content)))[0] == Reply("", "")


# --- faults that pass -------------------------------------------------------------------------------------------

FAULTS = {
    "429": Answer(status=429, content=b'{"error": {"message": "slow down"}}'),
    "500": Answer(status=500, content=b"<html>oops</html>"),
    "503": Answer(status=503, content=b""),
    "408": Answer(status=408, content=b"{}"),
    "broken JSON": Answer(content=b'{"choices": [{"mess'),
    "cut connection": Answer("a long enough answer", cut=True),
    "wrong content type": Answer(content=b"<html>Log in</html>", headers={"Content-Type": "text/html"}),
    "a stream": Answer(content=b'data: {"choices": []}\n\n', headers={"Content-Type": "text/event-stream"}),
    "no choices": Answer(content=b'{"choices": []}'),
    "an error with status 200": Answer(content=b'{"error": {"message": "overloaded"}}'),
    "a list": Answer(content=b"[1, 2]"),
    "content that is no text": Answer(content=b'{"choices": [{"message": {"content": [1]}}]}'),
    "bytes that are no UTF-8": Answer(content=b"\xff\xfe\xff"),
    "too slow": Answer("late", wait=30.0),
}
PATIENCE = {"too slow": 1.0}
"""Seconds that a client waits for these."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again(fault: str) -> None:
    outcome, asked = one(in_turn(FAULTS[fault], "fine"), timeout=PATIENCE.get(fault, 30.0))
    assert isinstance(outcome, Reply)
    assert outcome.text == "fine"
    assert len(asked) == 2
    assert asked[0].body == asked[1].body


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("429", "HTTP 429: slow down"),
        ("500", "HTTP 500: <html>oops</html>"),
        ("an error with status 200", "overloaded"),
        ("cut connection", "cut off"),
        ("too slow", "timed out"),
        ("wrong content type", "Log in"),
    ],
)
def test_a_fault_that_does_not_pass_is_told_after_all_tries(fault: str, words: str) -> None:
    outcome, asked = one(in_turn(FAULTS[fault]), timeout=PATIENCE.get(fault, 30.0))
    assert isinstance(outcome, Problem)
    assert not outcome.lasting
    assert words in outcome.sentence
    assert len(asked) == 3


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        endpoint = Endpoint(url=url, model="toy", backoff=0.01, tries=2, timeout=1.0)
        ((_, outcome),) = Client(endpoint).answer([chat("x")])
    assert isinstance(outcome, Problem)
    assert "refused" in outcome.sentence


def test_waits_double() -> None:
    """0.1 and 0.2 s, and by chance up to half as long again; how long the machine takes on top is its own affair."""
    _, asked = one(in_turn(FAULTS["500"]), backoff=0.1)
    assert asked[1].at - asked[0].at >= 0.1
    assert asked[2].at - asked[1].at >= 0.2


@pytest.mark.parametrize("header", ["0.5", "date"])
def test_retry_after_is_kept_to(header: str) -> None:
    start, value = monotonic(), header if header != "date" else formatdate(time() + 2, usegmt=True)
    _, asked = one(in_turn(Answer(status=429, headers={"Retry-After": value}, content=b""), "fine"))
    assert asked[1].at - start >= (0.5 if header != "date" else 0.9)  # dates are cut to whole seconds


def test_retry_after_holds_all_threads() -> None:
    """One of them is told to wait 1.2 s while the other is still busy: it starts nothing new before, either."""

    def script(asked: Asked) -> Answer | str:
        if asked.number == 0:
            return Answer(status=429, headers={"Retry-After": "1.2"}, content=b"")
        return Answer("fine", wait=0.8 if asked.number == 1 else 0.0)

    with serving(script) as server:
        outcomes = dict(client(server, concurrency=2).answer([chat(str(i)) for i in range(6)]))
    assert len(outcomes) == 6
    assert all(asked.at - server.asked[0].at >= 1.19 for asked in server.asked[2:])


def test_a_wait_of_hours_is_not_waited() -> None:
    outcome, asked = one(in_turn(Answer(status=429, headers={"Retry-After": "86400"}, content=b"daily limit")))
    assert isinstance(outcome, Problem)
    assert "daily limit" in outcome.sentence
    assert len(asked) == 1


# --- faults that last -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_request_that_is_refused_is_not_repeated(status: int) -> None:
    outcome, asked = one(in_turn(Answer(status=status, content=b'{"error": {"message": "content filter"}}')))
    assert outcome == Problem(f"HTTP {status}: content filter", lasting=True)
    assert len(asked) == 1


@pytest.mark.parametrize("status", [301, 307, 401, 402, 404])
def test_a_wrong_key_or_address_stops_everything(status: int) -> None:
    answer = Answer(status=status, content=b'{"error": "no such thing"}', headers={"Location": "http://127.0.0.1:9/"})
    words = f"HTTP {status}: no such thing Check the URL"
    with serving(in_turn(answer)) as server, pytest.raises(UserError, match=words):
        list(client(server, concurrency=1).answer([chat(str(i)) for i in range(9)]))
    assert len(server.asked) == 1


def test_an_empty_account_is_not_waited_for() -> None:
    content = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    with pytest.raises(UserError, match="You exceeded your quota"):
        one(in_turn(Answer(status=429, content=content)))


def test_the_key_is_in_no_message() -> None:
    repeated = f'{{"error": {{"message": "Wrong key {KEY}"}}}}'.encode()
    with pytest.raises(UserError) as caught:
        one(in_turn(Answer(status=401, content=repeated)))
    assert "Wrong key [key]" in str(caught.value)
    outcome, _ = one(in_turn(Answer(status=500, content=repeated)))
    assert KEY not in repr(outcome)
    assert KEY not in repr(Endpoint(url="http://x/v1", model="toy", key=KEY))
    with pytest.raises(UserError) as caught:
        Endpoint(url="http://x/v1", model="toy", key=f"{KEY}\n{KEY}")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://x/v1", "http://user:secret@x/v1", "https://x?key=secret", "https://"]
)
def test_a_url_that_is_none_or_holds_a_secret(url: str) -> None:
    with pytest.raises(UserError, match="must be like https://host/v1") as caught:
        Endpoint(url=url, model="toy")
    assert "secret" not in str(caught.value)


# --- many at once -----------------------------------------------------------------------------------------------


def test_requests_run_at_once_and_keep_their_places() -> None:
    with serving(lambda asked: Answer(asked.text[::-1], wait=0.05)) as server:
        found = dict(client(server, concurrency=4).answer([chat(f"q{i:02}") for i in range(20)]))
    assert {i: r.text for i, r in found.items() if isinstance(r, Reply)} == {i: f"q{i:02}"[::-1] for i in range(20)}
    assert 2 <= server.most_at_once <= 4


def test_the_rate_is_kept_to() -> None:
    """1200 a minute are one each 0.05 s: the sixth is sent after 0.25 s, on however many threads."""
    with serving(in_turn("x")) as server:
        start = monotonic()  # not when the first came in, which a busy server notes late
        list(client(server, concurrency=6, per_minute=1200).answer([chat(str(i)) for i in range(6)]))
    assert max(asked.at for asked in server.asked) - start >= 0.25


def test_who_stops_reading_stops_asking() -> None:
    with serving(lambda asked: Answer("x", wait=0.02)) as server:
        replies = client(server, concurrency=2).answer([chat(str(i)) for i in range(50)])
        next(replies)
        replies.close()
        before = len(server.asked)
        threading.Event().wait(0.2)
        assert len(server.asked) <= before + 2


def test_stopping_does_not_wait_for_a_slow_server() -> None:
    with serving(lambda asked: Answer("x", wait=0.0 if asked.number == 0 else 20.0)) as server:
        start = monotonic()
        replies = client(server, concurrency=2, timeout=30.0).answer([chat(str(i)) for i in range(4)])
        next(replies)
        replies.close()
    assert monotonic() - start < 5
