"""Code of chat answers and plain completions, the programs made of it, and pass@k."""

from __future__ import annotations

import ast
import json
import os
import textwrap
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.errors import UserError
from triune.evals.graders.code import extract, humaneval, mbpp, pass_at_k
from triune.evals.sandbox import Outcome, isolation, run_many

PROMPT = """from typing import List


def total(xs: List[int]) -> int:
    ''' Add them up.
    >>> total([1, 2])
    3
    '''
"""
BODY = "    result = 0\n    for x in xs:\n        result += x\n    return result\n"
WHOLE = "def total(xs):\n" + BODY
ROW = {
    "prompt": PROMPT,
    "entry_point": "total",
    "test": "def check(f):\n    assert f([]) == 0\n    assert f([1, 2]) == 3\n",
}
TESTS = {"test_list": ["assert total([]) == 0", "assert total([1, 2]) == 3"], "test_setup_code": ""}


@pytest.fixture(scope="module")
def run() -> Any:
    """Programs to outcomes, in the sandbox."""
    try:
        if isolation().missing:
            pytest.skip("this machine lacks a wall")
    except UserError as error:
        pytest.skip(str(error))
    return lambda programs: run_many(programs, workers=2, seconds=20.0)


def indented(text: str) -> str:
    return textwrap.indent(text, "   ")


RIGHT = {
    "plain completion": BODY,
    "plain completion after a blank line": "\n" + BODY,
    "comment at the margin first": "# add\n" + BODY,
    "stripped": BODY.strip(),
    "dedented": textwrap.dedent(BODY),
    "one line": "return sum(xs)",
    "with what the prompt has": PROMPT + BODY,
    "function again, bare": WHOLE,
    "function again, prose around": f"Here it is:\n\n{WHOLE}\nIt adds up all numbers, doesn't it?",
    "fence": f"```python\n{WHOLE}```",
    "fence with no language": f"Sure! Here:\n\n```\n{WHOLE}```\nHope this helps.",
    "fence with another name": f"```Python3\n{WHOLE}\n```",
    "fence with a title": f'```python title="total.py"\n{WHOLE}\n```',
    "fence of four": f"````python\n{WHOLE}\n````",
    "fence in a list": f"1. First:\n\n   ```python\n{indented(WHOLE)}   ```\n2. Done.",
    "fence with Windows line ends": f"Sure!\n```python\n{WHOLE}```\n".replace("\n", "\r\n"),
    "fence around the body": f"The body is:\n```python\n{BODY}```",
    "fence around a dedented body": f"```python\n{textwrap.dedent(BODY)}```",
    "fence around a stripped body": f"```python\n{BODY.strip()}\n```",
    "unfinished fence": f"Sure!\n```python\n{WHOLE}",
    "fence opened by the prompt": f"{BODY}```\n\nThis works in linear time.",
    "function in a fence opened by the prompt": f"{WHOLE}```\n\nThis works:\n```python\nprint(1 / 0)\n```",
    "solution, then its use": f"```python\n{WHOLE}```\nFor example:\n```python\nassert total([1]) == 2\n```",
    "shell first": f"```bash\npip install add\n```\n```python\n{WHOLE}```",
    "helper first": f"```python\ndef add(a, b):\n    return a + b\n```\nThen:\n```python\n{WHOLE}```",
    "two solutions": f"```python\n{WHOLE}```\nOr, shorter:\n```python\ndef total(xs): return 1 / 0\n```",
    "named by lambda": "```python\ntotal = lambda xs: sum(xs)\n```",
    "fence in a docstring": f"```python\ndef total(xs):\n    '''\n    ```\n    total([1])\n    ```\n    '''\n{BODY}```",
    "future first": f"```python\nfrom __future__ import annotations\n\n{WHOLE}```",
    "helper after the body": "    return add(xs)\n\n\ndef add(xs):\n    return sum(xs)\n",
    "warned of by Python": f"    '\\d'\n    assert 1 is 1\n{BODY}",
}
WRONG = {
    "empty": "",
    "blank": " \n\n",
    "word": "Sure",
    "prose": "I cannot write this function, as it's too hard.",
    "empty fence": "```python\n```",
    "fence and nothing": "```",
    "wrong": "    return 0\n",
    "broken": "    return (\n",
    "broken in a fence": "```python\ndef total(xs)\n    return sum(xs)\n```",
    "another language": "```javascript\nfunction total(xs) { return xs.reduce((a, b) => a + b, 0) }\n```",
    "null byte": "    return sum(xs)\0",
    "half a character": "    return '\ud800'\n",
    "deep": "    return " + "(" * 10000,
    "exits": "    import sys; sys.exit(0)\n",
    "exits at once": "    import os; os._exit(0)\n",
    "function again, after a wrong body and before a broken one": f"    return 0\n\n{WHOLE}\ndef more(",
    "another check": "    return 0\n\n\ndef check(f):\n    pass\n",
    "tests in an answer": "```python\ndef check(f): pass\n```",
}


def test_right_answers_pass_in_whatever_dress(run: Any) -> None:
    outcomes = run([humaneval(ROW, answer) for answer in RIGHT.values()])
    assert {name: o.stderr for name, o in zip(RIGHT, outcomes, strict=True) if not o.passed} == {}


def test_wrong_answers_fail_in_whatever_dress(run: Any) -> None:
    outcomes = run([humaneval(ROW, answer) for answer in WRONG.values()])
    assert [name for name, o in zip(WRONG, outcomes, strict=True) if o.passed] == []


BODIES = [name for name, answer in RIGHT.items() if "def total" not in answer and "total =" not in answer]


def test_right_answers_to_mbpp_pass_if_they_are_whole(run: Any) -> None:
    names = [name for name in RIGHT if name not in BODIES]
    assert len(names) > 15
    answers = [RIGHT[name] for name in names] + [f"[BEGIN]\n{WHOLE}[DONE]\nYou are", f"\n{WHOLE}\n[DONE]"]
    outcomes = run([mbpp(TESTS, answer) for answer in answers])
    assert [o for o in outcomes if not o.passed] == []


def test_wrong_answers_to_mbpp_fail(run: Any) -> None:
    answers = [*WRONG.values(), *(RIGHT[name] for name in BODIES), "def total(xs): return 0"]
    assert [o for o in run([mbpp(TESTS, answer) for answer in answers]) if o.passed] == []


def test_the_set_up_of_mbpp_comes_between_code_and_tests(run: Any) -> None:
    row = {"test_setup_code": "pair = Pair(1, 2)", "test_list": ["assert first(pair) == 1"]}
    code = "class Pair:\n    def __init__(self, a, b): self.a = a\ndef first(p): return p.a"
    assert mbpp(row, code) == f"{code}\n\npair = Pair(1, 2)\n\nassert first(pair) == 1\n"
    assert run([mbpp(row, code)])[0].passed


def test_a_plain_completion_makes_the_program_of_the_paper() -> None:
    assert humaneval(ROW, BODY) == f"{PROMPT}{BODY}\n\n{ROW['test']}\n\ncheck(total)\n"


def test_the_first_block_is_taken_where_nothing_says_what_is_asked_for() -> None:
    answer = "```text\nplan\n```\n```python\nx = 1\n```\n```python\ndef f(): pass\n```"
    assert extract(answer) == "def f(): pass\n"
    assert extract(answer, "def g():\n") == "    x = 1\n"
    assert extract("```text\nplan\n```") == "plan\n"


def test_a_broken_answer_is_not_mended() -> None:
    answer = "```python\ndef total(xs):\n    return sum(xs\n```\n"
    assert extract(answer, PROMPT) == "def total(xs):\n    return sum(xs\n"


def test_prose_is_cut_where_python_ends() -> None:
    """Line 1 of what starts with the import is Python, as are 2 to 5; line 6 is not."""
    code = "import math\n\ndef f(x):\n    return math.sqrt(x)\n"
    assert extract(f"Let us see.\n{code}\nThat is all, folks.\ndef g(): pass").strip() == code.strip()


NAMES = st.sampled_from(["a", "b", "f", "total"])
LINES = st.one_of(
    st.builds("{} = {}".format, NAMES, st.integers()),
    st.builds("def {}(x):\n    return {}".format, NAMES, NAMES),
    st.builds("import {}  # {}".format, NAMES, NAMES),
    st.builds("'''\n```{}\n'''".format, NAMES),
    st.just(""),
)
CODE = st.lists(LINES, max_size=5).map("\n".join)


@given(CODE)
def test_python_is_left_alone(code: str) -> None:
    assert extract(code) == code


@given(CODE.filter(lambda code: "```" not in code), st.sampled_from(["", "python", "py"]))
def test_code_comes_out_of_a_fence_as_it_went_in(code: str, language: str) -> None:
    assert extract(f"Here you are:\n```{language}\n{code}\n```\nIt's easy.") == f"{code}\n"


@given(st.text(), st.text())
def test_no_text_at_all_is_an_error(answer: str, prompt: str) -> None:
    assert isinstance(extract(answer, prompt), str)
    assert isinstance(extract(f"```\n{answer}", f"def f():\n{prompt}"), str)


@pytest.mark.parametrize(
    "piece", ["-", "a.", "not ", "lambda:", "1 if 1 else ", "x=", "f(", "```\n", "def f():\n", "y y\n"]
)
def test_no_answer_takes_python_down(piece: str) -> None:
    assert isinstance(extract(piece * 5000, PROMPT), str)


# pass@k --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int) -> None:
    """All ways to draw k of n samples, counted one by one."""
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = [any(sample < c for sample in draw) for draw in combinations(range(n), k)]
            assert pass_at_k(n, c, k) == sum(draws) / len(draws)


def test_pass_at_k_by_hand() -> None:
    """n = 5, c = 2, k = 3: one draw of C(5, 3) = 10 holds the three wrong ones only, so 9 / 10."""
    assert pass_at_k(5, 2, 3) == 0.9
    assert pass_at_k(200, 50, 1) == 0.25
    assert pass_at_k(10_000, 1, 5_000) == 0.5


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_pass_at_k_of_what_cannot_be_is_told(n: int, c: int, k: int) -> None:
    with pytest.raises(UserError, match=f"pass@{k} of {n} samples, {c} of them right: needs"):
        pass_at_k(n, c, k)


# All reference solutions ---------------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, Any]]:
    folder = Path(os.environ.get("TRIUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = folder / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"needs {name}.jsonl in TRIUNE_DATA")
    return [json.loads(line) for line in file.read_text().splitlines()]


def failures(run: Any, programs: dict[str, str]) -> dict[str, Outcome]:
    return {name: o for name, o in zip(programs, run([*programs.values()]), strict=True) if not o.passed}


def test_all_humaneval_reference_solutions_pass(run: Any) -> None:
    programs = {row["id"]: humaneval(row, row["canonical_solution"]) for row in rows("humaneval")}
    assert len(programs) == 164
    assert failures(run, programs) == {}


def test_all_mbpp_reference_solutions_pass(run: Any) -> None:
    programs = {row["id"]: mbpp(row, row["code"]) for row in rows("mbpp")}
    assert len(programs) == 200
    assert failures(run, programs) == {}


def test_no_humaneval_prompt_passes_on_its_own(run: Any) -> None:
    programs = {row["id"]: humaneval(row, "") for row in rows("humaneval")[::8]}
    assert failures(run, programs).keys() == programs.keys()


def test_all_humaneval_solutions_survive_every_dress() -> None:
    for row in rows("humaneval"):
        prompt, body = row["prompt"], row["canonical_solution"]
        meant = ast.dump(ast.parse(prompt + body))
        assert extract(body, prompt) == body
        assert extract(f"Sure!\n\n```python\n{prompt}{body}```\nIt's easy.", prompt) == prompt + body
        assert extract(f"{body}```\nThat's it.", prompt) == body
        for lost in (body.strip(), textwrap.dedent(body), f"```\n{textwrap.dedent(body)}```"):
            assert ast.dump(ast.parse(prompt + extract(lost, prompt))) == meant, row["id"]


def test_all_mbpp_solutions_survive_a_fence() -> None:
    for row in rows("mbpp"):
        code = f"{row['code']}\n".replace("\r\n", "\n")
        answer = f"Sure!\n```python\n{code}```\nFor example:\n```python\nprint(1)\n```\n"
        assert extract(answer, "\n".join(row["test_list"])) == code
