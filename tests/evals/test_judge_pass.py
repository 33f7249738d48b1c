"""The pass over samples: what is asked once is kept, what fails is told, and a killed run continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, Asked, Script, Server, serving, until

from triune.errors import Interrupted, UserError
from triune.evals.judges import RUBRICS, pairs
from triune.evals.judges.cache import Cache, key_of
from triune.evals.judges.http import Endpoint
from triune.evals.judges.judge import Judged, Pass, judge
from triune.evals.judges.llm import language_model
from triune.evals.judges.reply import Body, Judge, Outcome, Problem, Reply, Usage
from triune.evals.judges.samples import Sample, read_samples
from triune.progress import Advanced, Event, Finished, Started


def samples(n: int, benchmark: str = "or_bench") -> list[Sample]:
    return [Sample(f"{benchmark}-{i}", benchmark, (f"question {i}",), (f"answer {i}",)) for i in range(n)]


def by(url: str, **settings: Any) -> Judge:
    return language_model(Endpoint(url=url, model="toy", **{"backoff": 0.01, "tries": 2, "timeout": 5.0, **settings}))


def run(server: Server, todo: Sequence[Sample], cache: Cache | None = None, **settings: Any) -> Judged:
    return judge(Pass(todo, RUBRICS["or_bench"], by(server.url, **settings), cache or Cache()))


def on(words: dict[str, Answer | str], otherwise: str = "[[direct_answer]]") -> Script:
    """Answers to requests that hold a text."""
    return lambda asked: next((answer for text, answer in words.items() if text in asked.text), otherwise)


# --- counts -----------------------------------------------------------------------------------------------------


def test_scores_and_counts(tmp_path: Path) -> None:
    refused = Answer(status=400, content=b'{"error": {"message": "content filter"}}')
    broken = Answer(status=500, content=b"oops")
    script = on(
        {
            "answer 1": "He refuses: [[direct_refusal]]",
            "answer 2": "Hm.",
            "answer 3": refused,
            "answer 4": broken,
            "answer 5": Answer("[[direct_answer]], or", finish="length"),
        }
    )
    with serving(script) as server:
        found = run(server, samples(7), Cache(tmp_path / "replies.jsonl"), concurrency=1)
        assert found.scores == {"or_bench-0": 0.0, "or_bench-1": 1.0, "or_bench-6": 0.0}
        assert found.unparsed == ("or_bench-2", "or_bench-5")
        assert found.refused == {"or_bench-3": "HTTP 400: content filter"}
        assert found.failed == {"or_bench-4": "HTTP 500: oops"}
        assert found.requests == 7
        read = sum(len(asked.text.split()) for asked in server.asked if not {3, 4} & set_of(asked))
        assert found.spent == found.usage == Usage(read, 1 + 3 + 1 + 2 + 1)  # words, as the server counts
        assert found.models == ("toy-0101",)


def set_of(asked: Asked) -> set[int]:
    """Which answers are shown."""
    return {i for i in range(9) if f"\nanswer {i}\n" in asked.text}


def test_what_was_said_is_not_asked_again_and_what_failed_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "replies.jsonl"
    with serving(on({"answer 1": Answer(status=500), "answer 2": "no verdict"})) as server:
        first = run(server, samples(4), Cache(path))
        assert set(first.failed) == {"or_bench-1"}
        server.script = on({})
        before = len(server.asked)
        second = run(server, samples(4), Cache(path))
        assert [asked.text.count("answer 1") for asked in server.asked[before:]] == [1]
        assert second.requests == 1
        assert second.unparsed == ("or_bench-2",)  # a verdict is not asked for until there is one
        assert not second.failed
        assert second.usage.tokens_out == first.usage.tokens_out + second.spent.tokens_out
        third = run(server, samples(4), Cache(path))
        assert (third.requests, third.spent, third.scores) == (0, Usage(), second.scores)


def test_another_judge_another_setting_and_another_answer_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    rubric = RUBRICS["or_bench"]
    with serving(on({})) as server:
        for settings, expected in (({}, 2), ({}, 0), ({"max_tokens": 9}, 2), ({"temperature": None}, 2)):
            todo = Pass(
                samples(2), rubric, language_model(Endpoint(url=server.url, model="toy"), settings), Cache(path)
            )
            assert judge(todo).requests == expected
        assert "temperature" not in server.asked[-1].body
        assert server.asked[-3].body["max_tokens"] == 9
        other = language_model(Endpoint(url=server.url, model="other"))
        assert judge(Pass(samples(2), rubric, other, Cache(path))).requests == 2
        assert judge(Pass(samples(3), rubric, other, Cache(path))).requests == 1


def test_equal_requests_are_sent_once() -> None:
    twins = [Sample(str(i), "or_bench", ("same",), ("same",)) for i in range(5)]
    with serving(on({})) as server:
        found = run(server, twins)
    assert len(server.asked) == 1
    assert found.scores == {str(i): 0.0 for i in range(5)}


def test_half_a_pair_is_no_verdict() -> None:
    """With the rival shown first one request fails, one is refused, and of one the reply is no verdict."""

    def script(asked: Asked) -> Answer | str:
        if asked.text.index("\nrival") > asked.text.index("\nanswer "):
            return "[[A]]"
        (number,) = set_of(asked)
        return (Answer(status=500), Answer(status=400), "?", "[[B]]")[number]

    todo = samples(4, "instruct_open")
    with serving(script) as server:
        rubric = pairs({sample.id: "rival" for sample in todo}, "base")
        found = judge(Pass(todo, rubric, by(server.url), Cache()))
    assert set(found.failed) == {"instruct_open-0"}
    assert set(found.refused) == {"instruct_open-1"}
    assert found.unparsed == ("instruct_open-2",)
    assert found.scores == {"instruct_open-3": 1.0}


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    path = tmp_path / "replies.jsonl"
    with serving(on({})) as server:
        run(server, samples(1), Cache(path))
        judge(Pass(samples(3), RUBRICS["or_bench"], by(server.url), Cache(path)), told.append)
        again: list[Event] = []
        judge(Pass(samples(3), RUBRICS["or_bench"], by(server.url), Cache(path)), again.append)
    assert told[0] == Started("judge", total=3, done=1, unit="requests")
    assert [type(event) for event in told[1:]] == [Advanced, Advanced, Finished]
    assert isinstance(told[2], Advanced)
    assert told[2].note.endswith("tokens")
    assert again == []


# --- giving up --------------------------------------------------------------------------------------------------


def test_a_judge_that_is_gone_is_not_asked_a_thousand_times(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    script: Script = lambda asked: "[[direct_answer]]" if asked.number < 4 else Answer(status=503, content=b"down")  # noqa: E731
    with serving(script) as server:
        with pytest.raises(Interrupted, match=r"failed 3 requests in a row, the last with HTTP 503: down"):
            run(server, samples(1000), Cache(path), concurrency=2)
        assert len(server.asked) < 20
        server.script = on({})
        assert run(server, samples(20), Cache(path)).requests == 16


def test_a_judge_that_refuses_everything_is_a_mistake_of_the_user() -> None:
    answer = Answer(status=400, content=b'{"error": {"message": "max_tokens is not supported"}}')
    with serving(lambda asked: answer) as server:
        with pytest.raises(
            UserError, match="refuses all requests, the last with HTTP 400: max_tokens is not supported"
        ):
            run(server, samples(100), concurrency=1)
        assert len(server.asked) <= 4


def test_refusals_among_replies_are_counted() -> None:
    """A content filter strikes often on harmful prompts: no reason to stop."""
    script: Script = lambda asked: "[[direct_answer]]" if "answer 0\n" in asked.text else Answer(status=403)  # noqa: E731
    with serving(script) as server:
        found = run(server, samples(9), concurrency=1)
    assert len(found.refused) == 8
    assert found.scores == {"or_bench-0": 0.0}


# --- the file of replies ----------------------------------------------------------------------------------------

REPLY = Reply("[[yes]] \u00fc \U0001f600", "stop", {"m": -0.5}, 3, 4, "toy")


def test_replies_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "replies.jsonl"
    Cache(path).add("k", REPLY, {"id": "1"})
    found = Cache(path)
    assert "k" in found
    assert found["k"] == REPLY
    assert json.loads(path.read_text(encoding="utf-8"))["id"] == "1"
    assert "\u00fc" in path.read_text(encoding="utf-8")  # for people


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    Cache(tmp_path / "r").add("k", Reply("\ud800!"), {})
    assert Cache(tmp_path / "r")["k"].text == "\ud800!"


@pytest.mark.parametrize("torn", [b'{"key": "b", "te', b"\x00\x00\x00", b"[]", b'{"key": "b"}', b'{"id": 3}\n\n'])
def test_a_torn_line_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "replies.jsonl"
    Cache(path).add("a", REPLY, {})
    with path.open("ab") as file:
        file.write(torn)
    Cache(path).add("c", REPLY, {})
    found = Cache(path)
    assert ("a" in found, "b" in found, "c" in found) == (True, False, True)


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    program = (
        "import sys; from pathlib import Path; from triune.evals.judges.cache import Cache\n"
        "from triune.evals.judges.reply import Reply\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for i in range(100): cache.add(f'{sys.argv[2]}-{i}', Reply('x' * 5000), {})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = Cache(path)
    assert all(f"{name}-{i}" in found for name in "abc" for i in range(100))


def test_the_key_knows_judge_version_and_request() -> None:
    body: Body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
    keys = {
        key_of("a", "1", body),
        key_of("b", "1", body),
        key_of("a", "2", body),
        key_of("a", "1", {**body, "temperature": 1}),
        key_of("a", "1", {**body, "messages": []}),
    }
    assert len(keys) == 5
    assert key_of("a", "1", dict(reversed(body.items()))) == key_of("a", "1", body)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Cache(tmp_path / "file" / "replies.jsonl").add("k", REPLY, {})
    with pytest.raises(UserError, match="cannot be read"):
        Cache(tmp_path)


# --- a killed run -----------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from triune.evals.judges import RUBRICS
from triune.evals.judges.cache import Cache
from triune.evals.judges.http import Endpoint
from triune.evals.judges.judge import Pass, judge
from triune.evals.judges.llm import language_model
from triune.evals.judges.samples import Sample
todo = [Sample(f"or_bench-{i}", "or_bench", (f"question {i}",), (f"answer {i}",)) for i in range(40)]
by = language_model(Endpoint(url=sys.argv[1], model="toy", concurrency=4))
found = judge(Pass(todo, RUBRICS["or_bench"], by, Cache(Path(sys.argv[2]))))
print(len(found.scores), found.requests)
"""


def test_a_run_that_is_killed_continues(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with serving(lambda asked: Answer("[[direct_answer]]", wait=0.05)) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(path)]
        with subprocess.Popen(command) as first:
            until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 10)
            first.send_signal(signal.SIGKILL)
        kept = path.read_bytes().count(b"\n")
        assert 10 <= kept < 40
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    scores, requests = map(int, done.stdout.split())
    assert scores == 40
    assert requests == 40 - len(Cache(path)._replies.keys() & set(kept_keys(path, kept)))


def kept_keys(path: Path, first: int) -> Iterator[str]:
    """Of the first lines of the file."""
    for line in path.read_text(encoding="utf-8").splitlines()[:first]:
        yield str(json.loads(line)["key"])


# --- samples ----------------------------------------------------------------------------------------------------


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROW = {"id": "1", "benchmark": "or_bench", "prompt": "Hi?", "answer": "Hello."}


@pytest.mark.parametrize(
    ("change", "sample"),
    [
        ({}, Sample("1", "or_bench", ("Hi?",), ("Hello.",))),
        ({"id": 7, "extra": [1]}, Sample("7", "or_bench", ("Hi?",), ("Hello.",))),
        ({"answer": ""}, Sample("1", "or_bench", ("Hi?",), ("",))),
        ({"reference": None, "category": None}, Sample("1", "or_bench", ("Hi?",), ("Hello.",))),
        ({"reference": "Yo", "category": "x"}, Sample("1", "or_bench", ("Hi?",), ("Hello.",), ("Yo",), "x")),
        ({"prompt": [{"role": "user", "content": "Hi?"}]}, Sample("1", "or_bench", ("Hi?",), ("Hello.",))),
        (
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi?"}]},
            Sample("1", "or_bench", ("system: S\n\nuser: Hi?",), ("Hello.",)),
        ),
        (
            {
                "prompt": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))],
                "answer": ["b", "d"],
            },
            Sample("1", "or_bench", ("a", "c"), ("b", "d")),
        ),
    ],
)
def test_samples_are_read(tmp_path: Path, change: dict[str, Any], sample: Sample) -> None:
    assert read_samples(write(tmp_path / "s.jsonl", {**ROW, **change})) == [sample]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no samples"),
        ([{**ROW, "answer": None}], "s.jsonl:1: this sample has no answer"),
        ([{"id": "1"}], "no benchmark"),
        ([ROW, ROW], "s.jsonl:2: the id 1 stands here for the second time"),
        ([{**ROW, "answer": 3}], "answer must be a text or a list of texts"),
        ([{**ROW, "answer": ["a", "b"]}], "1 turns of the user, 2 answers and 0 references"),
        ([{**ROW, "reference": ["a", "b"]}], "1 answers and 2 references"),
        ([{**ROW, "prompt": [{"role": "user"}]}], "prompt must be a text, or messages"),
        ([{**ROW, "prompt": []}], "prompt must be a text, or messages"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_samples(write(tmp_path / "s.jsonl", *rows))


@pytest.mark.parametrize(("text", "words"), [("{", "s.jsonl:1: this line is not JSON"), ("[]", "must be an object")])
def test_lines_that_are_no_samples(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        read_samples(tmp_path / "s.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")


def test_a_line_separator_within_an_answer_is_no_end_of_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({**ROW, "answer": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert read_samples(path)[0].answers == ("a\u2028b\x85c",)


def test_a_judge_may_be_any_function() -> None:
    """What is needed of a judge is small: no server, no model."""

    def answer(bodies: Sequence[Body]) -> Iterator[tuple[int, Outcome]]:
        yield from ((i, Reply("[[direct_answer]]") if i else Problem("no", lasting=True)) for i, _ in enumerate(bodies))

    own = Judge("llm:own", "own", "here", lambda question, _: {"messages": question}, answer)
    found = judge(Pass(samples(3), RUBRICS["or_bench"], own, Cache()))
    assert (len(found.scores), found.refused) == (2, {"or_bench-0": "no"})
