"""The program that shows whether written code works, for :func:`triune.evals.sandbox.run_python`, and pass@k.

Programs are put together as the data sets' authors do (openai/human-eval ``execution.py``, google-research/mbpp), with
MBPP's ``test_setup_code`` after the solution: the one set-up that there is needs a class of the solution.

Which code of a chat answer is meant is not in those papers, so this is our own reading. Code is taken out of an answer
and never mended, with two exceptions: a body gets back the indentation that chats lose, and prose behind code that has
no fence is cut off, as is then a broken end.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from triune.errors import UserError

_BLOCK = re.compile(
    r"^(?P<margin>[ \t]*)(?P<fence>`{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^(?P=margin)? {0,3}(?P=fence)`*[ \t]*$|\Z)",  # deeper fences belong to docstrings
    re.MULTILINE | re.DOTALL,
)
_PYTHON = ("", "python", "python3", "py")
_START = re.compile(r"^(?:import|from|def|async def|class|@)\b.*", re.MULTILINE | re.DOTALL)
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)


def extract(answer: str, prompt: str = "") -> str:
    """The code of a chat answer, or of a plain completion.

    Python as it stands is left alone. Else it is the first fenced block of Python that defines what is asked for, or
    the first at all; what stands before a closing fence, if the opening one was part of the prompt; or, with no fence,
    all from the first import or definition on that is Python.

    Args:
        answer: as the model wrote it.
        prompt: the beginning of the function that it completes, or tests that call it; either says what is asked for.

    >>> extract("Sure!\\n```python\\ndef one():\\n    return 1\\n```\\nIt returns 1.")
    'def one():\\n    return 1\\n'
    >>> extract("return 1", "def one():\\n")
    '    return 1'
    """
    text = answer.replace("\r\n", "\n")
    begun = re.findall(r"^def (\w+)", prompt, re.MULTILINE)[-1:]
    names = begun or re.findall(r"(\w+) *\(", prompt)
    stem = prompt if begun else ""
    code = text if _is_python(text) or _is_python(stem + text) else _found(text, stem, names)
    return _as_body(code, stem) if begun and not _defines(code, begun) else code


def humaneval(row: Mapping[str, Any], completion: str) -> str:
    """Prompt, completion, tests, and the call that runs them. An answer may repeat the function: the second counts."""
    code = extract(completion, row["prompt"])
    between = "\n" if _defines(code, [row["entry_point"]]) else ""
    program = f"{row['prompt']}{between}{code}\n\n{row['test']}\n\ncheck({row['entry_point']})\n"
    return "".join(_FUTURE.findall(program)) + _FUTURE.sub("", program)  # they must come first


def mbpp(row: Mapping[str, Any], completion: str) -> str:
    """Code, set-up and the three asserts. The paper's marks ``[BEGIN]`` and ``[DONE]`` may still be around the code."""
    tests = "\n".join(row["test_list"])
    code = extract(completion.partition("[DONE]")[0].rpartition("[BEGIN]")[2], tests)
    return f"{code}\n\n{row['test_setup_code']}\n\n{tests}\n"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k samples hold a right one, unbiased, from n samples of which c are right.

    Source: Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1; here in whole numbers, so nothing overflows.

    Raises:
        UserError: k samples cannot be drawn from n, or c is no number of them.

    >>> pass_at_k(n=4, c=1, k=2)  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    0.5
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise UserError(f"pass@{k} of {n} samples, {c} of them right: needs 1 <= k <= n and 0 <= c <= n.")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def _found(text: str, stem: str, names: Collection[str]) -> str:
    fenced = [*_BLOCK.finditer(text)]
    if not fenced:
        start = _START.search(text) if _defines(text, names) and not _is_indented(text) else None
        return _up_to_prose(start[0]) if start else text
    before = text[: fenced[0].start()]
    if before.strip() and (_defines(before, names) or _is_indented(before)) and _is_python(stem + before):
        return before
    blocks = [re.sub(f"^{b['margin']}", "", b["code"], flags=re.MULTILINE) for b in _of_python(fenced)]
    return next((block for block in blocks if _defines(block, names)), blocks[0])


def _of_python(blocks: list[re.Match[str]]) -> list[re.Match[str]]:
    return [b for b in blocks if b["language"].lower() in _PYTHON] or blocks


def _defines(code: str, names: Collection[str]) -> bool:
    """Whether a function, class or variable of one of the names is made; with no names, any function or class."""
    name = "|".join(map(re.escape, names)) or r"\w+"
    made = rf"^(?:(?:async )?def|class) +(?:{name})\b"
    return re.search(made + (rf"|^(?:{name}) *=[^=]" if names else ""), code, re.MULTILINE) is not None


def _as_body(code: str, stem: str) -> str:
    """Indented as the body of the function that was begun, if all of it or its first line is not."""
    if _is_indented(code):
        return code
    candidates = (textwrap.indent(code, "    "), "    " + code.lstrip())
    return next((body for body in candidates if _is_python(stem + body)), code)


def _is_indented(code: str) -> bool:
    """Whether the first line that does something is."""
    lines = (line for line in code.split("\n") if line.strip() and not line.lstrip().startswith("#"))
    return next(lines, " ")[0] in " \t"


def _up_to_prose(code: str) -> str:
    lines = code.split("\n")
    while lines and (wrong := _wrong_line("\n".join(lines))) is not None:
        del lines[min(wrong, len(lines)) - 1 :]
    return "\n".join(lines)


def _is_python(code: str) -> bool:
    return _wrong_line(code) is None


def _wrong_line(code: str) -> int | None:
    """The first line that is no Python, counted from 1, or nothing. The code is not run."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(code)
    except SyntaxError as error:
        return max(error.lineno or 1, 1)
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None
