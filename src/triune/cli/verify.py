"""``triune verify``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triune.cli._options import AsJson, Quiet, Threads


def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a finished merge.")],
    sample: Annotated[int, typer.Option(min=0, help="How many tensors to recompute from the inputs.")] = 8,
    every: Annotated[bool, typer.Option("--all", help="Recompute every tensor.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that a merged folder is what its lock file says.

    Compares the hashes of all files and tensors, and recomputes a sample of tensors from the inputs if those are at hand.
    """
    import json
    from dataclasses import asdict

    from triune.cli._show import Bar, console
    from triune.engine.verify import verify as check
    from triune.errors import CheckFailed

    with Bar(quiet) as bar:
        found = check(out, sample=None if every else sample, threads=threads, listener=bar)
    if as_json:
        print(json.dumps(asdict(found)))
    elif not quiet:
        tensors = f" and {_count(found.tensors, 'tensor')}" if found.tensors else ""  # an adapter's are in its file
        console.print(
            f"{out}: {_count(found.files, 'file')}{tensors} compared, {_count(found.recomputed, 'tensor')} recomputed, "
            f"{_count(len(found.problems), 'difference')}."
        )
        if found.note:
            console.print(found.note)
    if found.problems:
        more = f" And {len(found.problems) - 5} more." if len(found.problems) > 5 else ""
        raise CheckFailed(f"{out} is not what its lock file says. {' '.join(found.problems[:5])}{more}")


def _count(n: int, thing: str) -> str:
    """
    >>> _count(1, "file"), _count(2, "file")
    ('1 file', '2 files')
    """
    return f"{n} {thing}{'' if n == 1 else 's'}"
