"""What the server answers, whom it refuses, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

POINT = {"method": "tsvm", "shares": [2, 1, 1], "strength": 3, "parameters": {}}
POSTS = ("/api/merge", "/api/answer", "/api/score", "/api/save", "/api/write")


def test_the_page_needs_nothing_from_elsewhere(page: Any) -> None:
    status, headers, text = page.ask("/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    sources = [text, *(page.ask(f"/static/{name}")[2] for name in ("studio.js", "studio.css"))]
    for source in sources:
        assert "https://" not in source
        assert "innerHTML" not in source
    assert "/static/studio.js" in text
    assert page.ask("/static/studio.js")[1]["content-type"].startswith("text/javascript")


def test_the_form_is_made_of_the_methods_own_specifications(page: Any) -> None:
    from triune.methods import METHODS

    session = json.loads(page.ask("/api/session")[2])
    assert [m["name"] for m in session["methods"]] == list(METHODS)
    ties = next(m for m in session["methods"] if m["name"] == "ties")
    density = next(p for p in ties["parameters"] if p["name"] == "density")
    assert density == {
        "name": "density", "kind": "float", "default": 1.0, "per_model": True, "interval": "[0, 1]", "choices": [],
    }  # fmt: skip
    assert session["experts"] == ["helpful", "honest", "harmless"]


def test_a_point_is_merged_and_all_answer(page: Any) -> None:
    events = page.events("/api/answer", {"point": POINT, "prompt": "Who are you?", "max_tokens": 5})
    names = [name for name, _ in events]
    assert names[-1] == "done"
    merged = next(told for name, told in events if name == "merged")
    assert merged["weights"] == [1.5, 0.75, 0.75]
    assert "--set weight.helpful=1.5" in merged["command"]
    heard = [a for name, told in events if name == "heard" for a in told["answers"]]
    assert {a["version"] for a in heard} == {"base", "helpful", "honest", "harmless", "merge"}
    assert all(a["finish"] in ("", "stop", "length") and a["tokens"] <= 5 for a in heard)


def test_the_mini_set_is_scored_with_progress(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="scores need lm-eval")
    from triune.evals.benchmark import BENCHMARKS
    from triune.studio import score

    monkeypatch.setattr(score, "members", lambda group: [BENCHMARKS["arc_easy"], BENCHMARKS["selfaware"]])
    events = page.events("/api/score", {"point": POINT, "version": "merge"})
    rows = [told for name, told in events if name == "scored"]
    assert [r["benchmark"] for r in rows] == ["arc_easy", "selfaware"]
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 and r["n"] >= 1 for r in rows)
    progress = [told for name, told in events if name == "progress" and told["phase"] == "score"]
    assert progress
    assert all(p["done"] <= p["total"] for p in progress)


def test_a_recipe_and_a_model_are_kept_and_nothing_is_overwritten(page: Any, adapters: Any, load: Any) -> None:
    status, _, text = page.ask("/api/save", {"point": POINT, "name": "mine"})
    assert status == 200
    path = Path(json.loads(text)["path"])
    assert path == adapters.out / "mine.yaml"
    assert "weight: 1.5" in path.read_text()
    status, _, text = page.ask("/api/save", {"point": POINT, "name": "mine"})
    assert status == 422
    assert "is there already. Choose another name." in text
    events = page.events("/api/write", {"point": POINT, "name": "model"})
    assert events[-1][0] == "written"
    assert load(adapters.out / "model")
    events = page.events("/api/write", {"point": POINT, "name": "model"})
    assert events == [("failed", {"error": f"{adapters.out / 'model'} is there already. Choose another name."})]


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", "..", ".hidden", "", "a" * 65, "a\x00b", "a\n", 3])
def test_names_lead_nowhere_else(name: Any, page: Any, adapters: Any) -> None:
    before = sorted(adapters.out.parent.rglob("*"))
    for path in ("/api/save", "/api/write"):
        status, _, text = page.ask(path, {"point": POINT, "name": name})
        assert status == 422 or '"error"' in text
    assert sorted(adapters.out.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "/static/../session.py", "/static/..%2fsession.py", "/static/%2e%2e%2fserver.py", "/static//etc/passwd",
        "/static/....//server.py", "/static/studio.js%00.html", "/..%2f..%2fetc%2fpasswd", "/static/", "/session.py",
    ],
)  # fmt: skip
def test_only_the_pages_own_files_are_served(path: str, page: Any) -> None:
    host, port = page.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:  # a client that tidies no path
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.split(b" ")[1] in (b"404", b"400"), answer[:200]
    assert b"def " not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:7860"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_other_sites_are_refused(headers: dict[str, str], status: int, page: Any) -> None:
    for path in POSTS:
        found, seal, text = page.ask(path, {"point": POINT}, headers)
        assert found == status, text
        assert seal["content-security-policy"]
    if "Host" in headers:
        assert page.ask("/api/session", None, headers)[0] == status


def test_the_page_itself_is_no_other_site(page: Any) -> None:
    port = page.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert page.ask("/api/merge", {"point": POINT}, headers)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "The body is not JSON"),
        (b"[" * 60_000, 400, "The body is not JSON"),
        (b"[]", 400, "an object with a point"),
        ({"point": 3}, 400, "an object with a point"),
        (b"x" * 70_000, 413, "more than 65,536 bytes"),
        ({"point": {**POINT, "method": "tsmv"}}, 422, "There is no merge method 'tsmv'. Did you mean tsvm?"),
        (
            {"point": {**POINT, "method": "ties", "parameters": {"density": 2}}},
            422,
            "density must lie in [0, 1], got 2.",
        ),
    ],
)
def test_a_wrong_body_is_answered_with_a_sentence(body: Any, status: int, sentence: str, page: Any) -> None:
    for path in POSTS:
        found, _, text = page.ask(path, body)
        assert (found, sentence in json.loads(text)["error"]) == (status, True), text


@pytest.mark.parametrize("asked", [{"prompt": " "}, {}, {"prompt": "a" * 400}, {"prompt": "a", "max_tokens": 10**9}])
def test_a_wrong_prompt_is_answered_with_a_sentence(asked: dict[str, Any], page: Any) -> None:
    status, _, text = page.ask("/api/answer", {"point": POINT, **asked})
    assert status == 422
    assert json.loads(text)["error"].endswith(".")


def test_a_sentence_says_where_on_the_page_it_belongs(page: Any) -> None:
    def refused(point: dict[str, Any], **asked: Any) -> dict[str, Any]:
        status, _, text = page.ask("/api/answer", {"point": {**POINT, **point}, "prompt": "Who?", **asked})
        assert status == 422
        found: dict[str, Any] = json.loads(text)
        del found["error"]
        return found

    ties = {"method": "ties", "strength": 1}
    assert refused({**ties, "parameters": {"density": 2}}) == {"point": True, "parameter": "density"}
    assert refused({**ties, "parameters": {"lambda": "x"}}) == {"point": True, "parameter": "lambda"}
    assert refused({"parameters": {"seed": -1}}) == {"point": True, "parameter": "seed"}
    assert refused({"shares": [0, 0, 0]}) == {"point": True}
    assert refused({}, prompt="a" * 400) == {}
    assert refused({}, max_tokens=0) == {}


@pytest.mark.parametrize("most", [0, 1025, 2.5, "many", True])
def test_a_number_of_tokens_is_called_as_on_the_page(most: Any, page: Any) -> None:
    _, _, text = page.ask("/api/answer", {"point": POINT, "prompt": "Who?", "max_tokens": most})
    assert json.loads(text)["error"] == f"tokens must be a whole number from 1 to 1,024, got {most!r}."


def test_who_leaves_frees_the_model(page: Any) -> None:
    host, port = page.url.removeprefix("http://").split(":")
    body = json.dumps({"point": POINT, "prompt": "Who?", "max_tokens": 200})
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /api/answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        line.recv(100)
    assert page.events("/api/answer", {"point": POINT, "prompt": "You?", "max_tokens": 2})[-1][0] == "done"


def test_a_merge_to_disk_leaves_answers_their_cores(adapters: Any) -> None:
    """A thread begins with the number of cores that any thread has asked for last."""
    from triune.studio.server import Server

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    server = Server(adapters)
    lane = threading.Thread(target=torch.set_num_threads, args=(1,))
    lane.start()
    lane.join()

    async def told() -> str:
        return "".join([text async for text in server._events(lambda send, _: send("n", torch.get_num_threads()))])

    try:
        with ThreadPoolExecutor(1) as apart:  # tests of pages leave a loop running in this one
            assert apart.submit(asyncio.run, told()).result() == "event: n\ndata: 3\n\n"
    finally:
        torch.set_num_threads(before)


def test_an_address_of_all_is_asked_for_by_number() -> None:
    from triune.studio.gate import Gate

    gate = Gate(None, "0.0.0.0", 7860)
    assert gate.knows("192.168.1.5:7860")
    assert gate.knows("localhost:7860")
    assert not gate.knows("evil.example:7860")
    assert not gate.knows("192.168.1.5:80")


# ---- the command


def test_the_usual_port_is_left_out_by_browsers() -> None:
    from triune.studio.gate import Gate

    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert Gate(None, "127.0.0.1", 80).knows(host)
        assert Gate(None, "127.0.0.1", 80).knows(f"{host}:80")
        assert not Gate(None, "127.0.0.1", 7860).knows(host)
    assert not Gate(None, "127.0.0.1", 80).knows("evil.example")
    assert not Gate(None, "127.0.0.1", 80).knows("")


def begin(start: Any, *args: str | Path) -> tuple[subprocess.Popen[str], str]:
    process = start("studio", "--no-browser", "--port", "0", *args)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("triune studio: http://127.0.0.1:"), line + process.communicate()[1]
    return process, line.split()[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_while_it_answers(number: signal.Signals, start: Any, toys: Any, tmp_path: Path) -> None:
    process, url = begin(start, *toys.flags, "--out", tmp_path / "kept")
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    body = json.dumps({"point": POINT, "prompt": "Who?", "max_tokens": 200})
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /api/answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert line.recv(12) == b"HTTP/1.1 200"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert err.endswith("Stopped.\n")
    assert not (tmp_path / "kept").exists()  # nothing was kept, so nothing is there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_while_it_loads(number: signal.Signals, start: Any, toys: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start("studio", "--no-browser", "--port", str(port), *toys.flags, "--out", tmp_path / "kept")
    for _ in range(3000):  # it listens before it loads
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "Stopped.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_stop_is_lost(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """One that comes while Python lets no exception out, as in callbacks of its imports."""
    from triune.cli.studio import _until_stopped

    class Callback:
        def __del__(self) -> None:
            signal.raise_signal(number)
            time.sleep(0)  # here the interrupt is raised, and ignored

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM)]
    with _until_stopped():
        Callback()
        time.sleep(30)
        raise AssertionError("the signal was lost")
    assert capsys.readouterr().err == "Stopped.\n"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM)] == handlers


def test_a_taken_port_is_a_sentence(triune: Any, toys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = triune("studio", "--no-browser", "--port", str(other.getsockname()[1]), *toys.flags)
    assert done.code == 2
    assert "Address already in use. Name another --port; 0 takes a free one." in done.err


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "a" * 70])
def test_a_host_of_no_machine_or_of_another_is_a_sentence(host: str, triune: Any, toys: Any) -> None:
    done = triune("studio", "--no-browser", "--port", "0", "--host", host, *toys.flags)
    assert done.code == 2
    assert f"--host {host}: " in done.err
    assert "Name another --host, an address of this machine." in done.err
    assert "--port" not in done.err


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_is_no_place_to_keep_things(inside: str, triune: Any, toys: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    done = triune("studio", "--no-browser", "--port", "0", *toys.flags, "-o", file / inside)
    assert done.code == 2
    assert f"{file} is no folder. Name another --out." in done.err


def test_adapters_are_not_what_it_writes(triune: Any, toys: Any) -> None:
    done = triune("studio", "--no-browser", "--port", "0", *toys.flags, "--set", "output=lora")
    assert done.code == 2
    assert "output=lora: the studio keeps whole models." in done.err


def test_one_expert_is_a_sentence(triune: Any, toys: Any) -> None:
    done = triune("studio", "--no-browser", "--port", "0", *toys.flags[:4])
    assert done.code == 2
    assert "The studio moves between experts: name at least two with -e, got 1." in done.err


def test_no_base_is_a_sentence(triune: Any, toys: Any) -> None:
    experts = [p for e in toys.experts("full") for p in ("-e", e)]
    done = triune("studio", "--no-browser", "--port", "0", "-m", "linear", *experts)
    assert done.code == 2
    assert "Add --base MODEL." in done.err


def test_a_missing_package_is_a_sentence(triune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else found(name, *a))
    done = triune("studio")
    assert done.code == 2
    assert 'This needs uvicorn, which is not installed. Run: pip install "triune[studio]"' in done.err
