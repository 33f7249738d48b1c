"""A report in Markdown, for papers and model cards: figures are images beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from triune.reports.figures.figure import Figure, Table
from triune.reports.inputs import Answers
from triune.reports.sections import Block, Code, Ranking, Section, Text

SPECIAL = {c: f"\\{c}" for c in "\\|*_<`[]"}


def markdown(title: str, sections: Sequence[Section], notes: Sequence[str], images: str, origin: str) -> str:
    """The text; ``images`` is the folder of the figures, as it is linked."""
    parts = [f"# {escape(title)}", escape(origin), *(f"> {escape(note)}" for note in notes)]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        for block in section.blocks:
            parts += _block(block, images)
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown leaves alone, on one line.

    >>> escape("a_b <script>")
    'a\\\\_b \\\\<script>'
    """
    return "".join(SPECIAL.get(c, c) for c in " ".join(text.split()))


def _block(block: Block, images: str) -> Iterator[str]:
    if isinstance(block, Text):
        if block.title:
            yield f"### {block.title}"
        yield (
            "\n".join(f"- {escape(s)}" for s in block.sentences)
            if len(block.sentences) > 1
            else escape(block.sentences[0])
        )
    elif isinstance(block, Code):
        fence = "`" * 3
        while fence in block.text:
            fence += "`"
        yield f"### {block.title}"
        yield f"{fence}yaml\n{block.text}\n{fence}"
    elif isinstance(block, Table):
        yield f"### {block.caption}"
        yield _table(block.heads, block.shown())
    elif isinstance(block, Figure):
        yield f"### {escape(block.title)}"
        yield f"![{escape(block.title)}]({quote(images)}/{block.key}.png)"
        yield escape(block.see)
    elif isinstance(block, Ranking):
        yield block.markdown.replace("\n### ", "\n#### ").replace("## ", "### ", 1).rstrip()
    elif isinstance(block, Answers):
        for asked in block.prompts:
            yield f"### {escape(asked.prompt)}"
            yield _table(("model", "answer"), [[name, text] for name, text in asked.answers.items()])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(escape, heads))} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape, row))} |" for row in rows)])
