"""The docstring of each method is its manual: complete, and with examples that run."""

from __future__ import annotations

import doctest
import re

import pytest
import torch

from triune.methods import METHODS, find
from triune.methods._spec import Method

SECTIONS = ("Args:", "Returns:", "Cost:", "Example:")


def arguments(method: Method) -> dict[str, str]:
    """The entries of the section Args."""
    body = method.doc.split("\nArgs:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.split(r"^    (\w+): ", body, flags=re.MULTILINE)[1:]
    return dict(zip(entries[::2], entries[1::2], strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_sections(name: str) -> None:
    doc = find(name).doc
    at = [doc.find(f"\n{section}") for section in SECTIONS]
    assert -1 not in at, f"{name} lacks one of {SECTIONS}"
    assert at == sorted(at)
    assert find(name).summary.endswith(".")
    assert len(find(name).summary) <= 110


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_described(name: str) -> None:
    """Under Args, in the order of the signature; ``semantics`` where the implementations part ways, with both values."""
    method = find(name)
    names = [p.name for p in method.parameters]
    described = list(arguments(method))
    assert described == [method.takes, *(n for n in names if n != "semantics")]
    if "semantics" in names:
        ways = method.doc.split("here implementations part ways", 1)[1].split("\nArgs:\n")[0]
        assert "``semantics: mergekit``" in ways
        assert "paper``" in ways


@pytest.mark.parametrize("name", METHODS)
def test_examples_run(name: str) -> None:
    """Methods are objects, which doctest does not collect by itself."""
    method = find(name)
    names = {**method.function.__globals__, "torch": torch, name: method}  # type: ignore[attr-defined]
    test = doctest.DocTestParser().get_doctest(method.doc, names, name, None, None)
    assert test.examples
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=output.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)
