"""Which part of triune may import which: arrows point inward, and heavy libraries load only where they are used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import triune

ROOT = Path(triune.__file__).parent
INSIDE = ("errors", "_lazy", "progress", "__init__")
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "_lazy": (),
    "progress": (),
    "methods": (*INSIDE, "methods"),
    "checkpoint": (*INSIDE, "checkpoint", "methods._lowrank"),  # the reader hands out low-rank deltas
    "recipes": (*INSIDE, "recipes", "methods"),
    "output": (*INSIDE, "output", "checkpoint", "methods._lowrank"),
    "engine": (*INSIDE, "engine", "recipes", "checkpoint", "methods", "output"),
    "testing": (*INSIDE, "testing", "methods"),
    "data": (*INSIDE, "data", "checkpoint.ref", "output.atomic"),
    "mixtures": (*INSIDE, "mixtures", "data", "output.atomic"),
    "scorers": (*INSIDE, "scorers", "data", "checkpoint", "engine.executors", "output.atomic"),
    "config": (*INSIDE, "recipes.yaml"),
    "align": (
        *INSIDE,
        "align",
        "config",
        "scorers",
        "mixtures",
        "data",
        "engine",
        "recipes",
        "checkpoint",
        "methods",
        "output",
    ),
    "evals": (
        *INSIDE,
        "evals",
        "config",
        "scorers.logprobs",  # loads a model with its mistakes as sentences
        "scorers.memory",
        "engine",
        "recipes",
        "checkpoint",
        "methods",
        "output",
    ),
    "reports": (
        *INSIDE,
        "reports",
        "evals.benchmark",
        "evals.leaderboard",
        "evals.notes",
        "evals.result",
        "evals.store",
        "evals.tables",
        "diagnostics.records",
        "diagnostics.advice",
        "align.card",
        "align.summary",
        "output.atomic",
        "output.card",
        "output.gate",
        "output.strip",
    ),
    "diagnostics": (*INSIDE, "diagnostics", "engine", "recipes", "methods", "output"),
    "studio": (
        *INSIDE,
        "studio",
        "evals.answers",
        "evals.benchmark",
        "evals.harness",
        "evals.lm",
        "evals.result",
        "evals.rows",
        "reports.colours",
        "scorers.logprobs",
        "scorers.memory",
        "engine",
        "recipes",
        "checkpoint",
        "methods",
        "output.atomic",
    ),
    "cli": (
        *INSIDE,
        "cli",
        "studio",
        "reports",
        "diagnostics",
        "config",
        "align",
        "data",
        "mixtures",
        "scorers",
        "evals",
        "engine",
        "recipes",
        "checkpoint",
        "methods",
        "output",
    ),
    "__init__": (
        *INSIDE,
        "align",
        "data",
        "diagnostics",
        "evals",
        "mixtures",
        "engine",
        "recipes",
        "methods",
        "reports",
    ),
    "__main__": (*INSIDE, "cli"),
}
HEAVY = ("torch", "transformers", "trl", "peft", "numpy", "ray")


def imports(source: str, *, top_level: bool = False) -> set[str]:
    """Modules that a source imports when it runs; only those that it needs to be imported itself with ``top_level``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def wrong_arrows(package: str, source: str) -> list[str]:
    ours = {m.removeprefix("triune.") for m in imports(source) if m.startswith("triune.")}
    # Of `from triune.a import b` both triune.a and triune.a.b are listed: the longer one says what is meant.
    ours = {m for m in ours if not any(other.startswith(f"{m}.") for other in ours)}
    allowed = tuple(f"{a}." for a in ALLOWED[package])
    return sorted(m for m in ours if not m.startswith("__version__") and not f"{m}.".startswith(allowed))


def heavy(source: str) -> list[str]:
    roots = {m.partition(".")[0] for m in imports(source, top_level=True)}
    return sorted(roots & set(HEAVY))


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_further_in(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert wrong_arrows(package, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    found = heavy(path.read_text(encoding="utf-8"))
    assert found == [] or path.relative_to(ROOT).parts[0] == "testing"


def test_every_package_has_its_row() -> None:
    assert {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("methods", "from triune.recipes import Recipe"),
        ("checkpoint", "from triune.methods import find"),
        ("checkpoint", "import triune.engine.plan"),
        ("recipes", "def f():\n    from triune.engine.merge import merge"),
        ("engine", "from triune.cli import main"),
        ("output", "from triune.methods.ties import ties"),
        ("errors", "from triune.methods import find"),
    ],
)
def test_a_wrong_arrow_is_seen(package: str, source: str) -> None:
    assert wrong_arrows(package, source)


def test_a_heavy_import_is_seen() -> None:
    assert heavy("import torch.nn") == ["torch"]
    assert heavy("try:\n    from transformers import AutoModel\nexcept ImportError:\n    pass") == ["transformers"]
    assert heavy("def f():\n    import torch") == []
    assert heavy("if TYPE_CHECKING:\n    import torch\nelse:\n    import peft") == ["peft"]
