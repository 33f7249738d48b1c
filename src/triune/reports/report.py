"""``triune report``: records in, one page out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from triune.errors import UserError, did_you_mean
from triune.output.atomic import write_bytes, write_text
from triune.reports.figures.figure import Figure
from triune.reports.inputs import Material, read
from triune.reports.sections import Section, sections_of

EXTRA = ("altair", "vl_convert")


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
        UserError: an input is nothing that a report can show, ``out`` cannot be written, or altair is not installed.
    """
    out = Path(out)
    style = style or {".html": "html", ".htm": "html", ".md": "md", "": "png"}.get(out.suffix, out.suffix[1:])
    if style not in STYLES:
        raise UserError(f"There is no format {style!r}; there are {', '.join(STYLES)}.{did_you_mean(style, STYLES)}")
    require()
    found = read([Path(p) for p in inputs])
    sections = sections_of(found, split=split, reference=reference)
    name = title or ", ".join([m.name for m in found.merges] or [Path(inputs[0]).resolve().stem])
    try:
        return STYLES[style](out, name, sections, found)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}. Name another place.") from None


def require() -> None:
    """Say at once what is not installed."""
    if any(find_spec(name) is None for name in EXTRA):
        raise UserError('A report needs altair and vl-convert. Run: pip install "triune[report]"')


def _html(out: Path, title: str, sections: Sequence[Section], found: Material) -> Path:
    from triune.reports.page import html

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html(title, sections, found.notes))
    return out


def _md(out: Path, title: str, sections: Sequence[Section], found: Material) -> Path:
    from triune.reports.markdown import markdown

    images = out.with_name(f"{out.stem}-figures")
    _png(images, title, sections, found)
    write_text(out, markdown(title, sections, found.notes, images.name))
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
