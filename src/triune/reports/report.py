"""``triune report``: records in, one page out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from triune import __version__
from triune.errors import UserError, did_you_mean
from triune.evals.store import NAME
from triune.output.atomic import write_bytes, write_text
from triune.reports.figures.figure import Figure
from triune.reports.inputs import Material, read
from triune.reports.sections import Section, sections_of

EXTRA = ("altair", "vl_convert")
LOCKS = ("triune.lock.json", ".triune", "triune.training.json", "lock.json", ".lock", NAME)
"""Files of folders that triune keeps its own records in."""
OURS: Mapping[str, str] = {"html": '<meta name="generator" content="triune', "md": "<!-- triune report"}
"""What says that a file may be written again."""


def report(
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    style: str | None = None,
    title: str | None = None,
    split: str | None = None,
    reference: str | None = None,
) -> Path:
    """Show what merges, measurements and trainings have left behind.

    Args:
        inputs: folders and files of triune, in any order, finished or not; see :data:`triune.reports.inputs.ACCEPTED`.
        out: an HTML file, a Markdown file (its images go to a folder beside it), or a folder for images.
        style: ``html``, ``md`` or ``png``; by the ending of ``out`` if not given.
        title: what the report is called; by what it shows if not given.
        split: which results count: report, tune or all; report where there are any if not given.
        reference: the model that others are compared with on the same rows; the base if not given.

    Returns:
        What was written.

    Raises:
        UserError: an input is nothing that a report can show, ``out`` cannot be written or is no report, or altair is not
            installed.
    """
    out = Path(out)
    style = style or {".html": "html", ".htm": "html", ".md": "md", "": "png"}.get(out.suffix, out.suffix[1:])
    if style not in STYLES:
        raise UserError(f"There is no format {style!r}; there are {', '.join(STYLES)}.{did_you_mean(style, STYLES)}")
    require()
    _check_place(out, style, [Path(p).resolve() for p in inputs])
    found = read([Path(p) for p in inputs])
    sections = sections_of(found, split=split, reference=reference)
    name = title or _title(found.names)
    try:
        return STYLES[style](out, name, sections, found)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}. Name another place.") from None


def origin(found: Material) -> str:
    """What a report is made of, and how new its results are.

    >>> origin(Material(names=["merged", "d.jsonl"]))
    'Made of merged, d.jsonl.'
    """
    newest = max((r.when for s in found.stores for r in s.results), default=None)
    return f"Made of {', '.join(found.names)}." + (f" Newest result: {newest:%Y-%m-%d}." if newest else "")


def require() -> None:
    """Say at once what is not installed."""
    if any(find_spec(name) is None for name in EXTRA):
        raise UserError('A report needs altair and vl-convert. Run: pip install "triune[report]"')


def _title(names: Sequence[str]) -> str:
    """What a report of these is called.

    >>> _title(["merged"]), _title(["merged", "d.jsonl"]), _title(["merged", "bench", "d.jsonl", "train"])
    ('merged', 'merged and d.jsonl', 'merged, bench and 2 more')
    """
    first, last = (names[:-1], names[-1]) if len(names) < 4 else (names[:2], f"{len(names) - 2} more")
    return f"{', '.join(first)} and {last}" if first else last


def _check_place(out: Path, style: str, inputs: Sequence[Path]) -> None:
    """Refuse to write into what triune made, and over what it did not.

    Raises:
        UserError: the folder of images is an input, or has a lock; or a file is there that is no report.
    """
    folder = {"png": out, "md": _beside(out)}.get(style)
    for place in (out, folder or out):
        if place.resolve() in inputs:
            raise UserError(f"{place} is an input of this report. Name another place with -o, as report.html.")
    if folder and (lock := next((name for name in LOCKS if (folder / name).exists()), None)):
        raise UserError(
            f"{folder} holds a {lock} and is no folder for images. Name another place with -o, as report.html."
        )
    if style != "png" and out.is_file():
        text = out.read_text(encoding="utf-8", errors="replace")
        if OURS[style] not in (text[:4000] if style == "html" else text[-400:]):
            raise UserError(f"{out} is there and is no report of triune. Name another file with -o, or move it away.")


def _beside(out: Path) -> Path:
    """The folder of the images of a Markdown report."""
    return out.with_name(f"{out.stem}-figures")


def _html(out: Path, title: str, sections: Sequence[Section], found: Material) -> Path:
    from triune.reports.page import html

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html(title, sections, found.notes, origin(found)))
    return out


def _md(out: Path, title: str, sections: Sequence[Section], found: Material) -> Path:
    from triune.reports.markdown import markdown

    images = _beside(out)
    _png(images, title, sections, found)
    text = markdown(title, sections, found.notes, images.name, origin(found))
    write_text(out, f"{text}\n{OURS['md']} {__version__} -->\n")
    return out


def _png(out: Path, title: str, sections: Sequence[Section], found: Material) -> Path:
    from triune.reports.images import png

    figures = [b for s in sections for b in s.blocks if isinstance(b, Figure)]
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        write_bytes(out / f"{figure.key}.png", png(figure))
    return out


STYLES: Mapping[str, Callable[[Path, str, Sequence[Section], Material], Path]] = {
    "html": _html,
    "md": _md,
    "png": _png,
}
"""Format -> what writes it."""
