"""RESULTS.md: the tables, and what one must know to read them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from benchmarks.cases import CASES
from benchmarks.models import SIZES
from benchmarks.results import Measured, table
from benchmarks.tools import PEERS

INTRODUCTION = """\
# Results

Written by `python -m benchmarks --report` from the files in `benchmarks/results` (`--results`), one for each row, none
edited. Whole processes, from start to exit: wall time, processor time of all threads, peak resident memory as
`/usr/bin/time -v` gives it. The tools of a row take turns, in another order each round; a cell is a median, with
[smallest, largest] and the number of runs. Ratios above 1 are in our favour, except triune / floor.

- Compare inside a row, never between rows: other work ran on the machine in some of them (see the load averages), and then
  processor time tells more than wall time.
- **floor** reads every input once and writes one output of the base's size, with fsync. triune writes with fsync, too, and
  hashes all that it reads and writes; mergekit and fusion_bench do neither.
- **Inputs** are a base and three experts in bfloat16, made by `benchmarks/models.py`, in the page cache as far as it holds
  them.
- **mergekit** ({mergekit}) reads through a memory map, and the pages that it has touched count as resident memory. It
  computes in the recipe's bfloat16, triune in float32.
- **fusion_bench** ({fusion_bench}) loads all models; both decompose the same matrices and average the embeddings.
- **of adapters**: three LoRA adapters of rank 16 become one, against the dense route on full experts, which have the same
  low-rank deltas and noise besides.
- triune runs with `--no-gate`, as the others check nothing.
- Aims were set for models as wide as an 8B (`slice8b`). In smaller ones the start of Python and torch, one to two
  seconds, weighs more: it is most of a merge of adapters.
- The dense route beside adapters is that of the same method, or of `tsvm` where the row has none.
"""


AGAINST_PEER = {"ties": 8, "della": 8, "breadcrumbs": 8, "dare_ties": 3, "linear": 1, "task_arithmetic": 1, "tsvm": 4}
AGAINST_DENSE = 100
ABOVE_FLOOR = 2
"""What we aim for: so many times faster than the other program, than the dense route, and no slower than so many floors."""

BOUNDS = """\
## What bounds merges

On a slower day of this machine a core spent 6 to 9 ns an entry on SHA-256 of what is read and written, 3 to 5 on a reading
of four tensors into float32 deltas (methods that look for a threshold or rescale read twice); the rest are passes of torch
or NumPy over blocks, one for each step of the method (`python -m benchmarks.tensor CASE --profile`). The floor does none
of this, and small models add one to two seconds for the start of Python and torch. `della` sorts every row of every
expert. Fewer passes need kernels that do several steps at once, which neither library has.

`tsvm` spends most of its time on eigendecompositions in float64, five for each matrix of three experts, and most of the
rest on products in float64. fusion_bench makes SVDs in float32, which are at least ten times less exact
(`python -m benchmarks.accuracy`). Its aim is out of reach of LAPACK's full decompositions, in float32, too: of a
4096 x 4096 matrix an eigendecomposition took 4.4 s where an SVD took 14.3, without any product (`docs/lab-log.md`).
"""


def aims(measured: Sequence[Measured]) -> str:
    """Each aim beside what was measured, of one size."""
    rows = ["| case | aim | measured | |", "|---|---|---|---|"]
    dense = next((wall for m in measured if m.case.startswith("tsvm") and (wall := m.wall("triune"))), None)
    for m in measured:
        ours, peer, *_ = CASES[m.case].tools
        wanted = AGAINST_PEER.get(m.case, AGAINST_DENSE)
        other = "the dense route" if peer == "triune" else peer
        theirs = m.wall(peer) or (dense if peer == "triune" else None)
        rows.append(_aim(m.case, f"{wanted}x as fast as {other}", theirs, m.wall(ours), wanted, least=True))
        if "mergekit" in CASES[m.case].tools:
            within = f"within {ABOVE_FLOOR}x of the floor"
            rows.append(_aim(m.case, within, m.wall(ours), m.wall("floor"), ABOVE_FLOOR, least=False))
    return "\n".join(rows)


def _aim(case: str, aim: str, above: float | None, below: float | None, wanted: float, *, least: bool) -> str:
    if above is None or below is None:
        return f"| {case} | {aim} | not measured | |"
    found = above / below
    met = found >= wanted if least else found <= wanted
    return f"| {case} | {aim} | {found:.2g}x | {'met' if met else '**missed**'} |"


def report(measured: Sequence[Measured]) -> str:
    """All results as Markdown, the sizes in their order."""
    parts = [INTRODUCTION.format(**PEERS)]
    order = list(SIZES)
    known = sorted(measured, key=lambda m: order.index(m.size))
    for size, group in groupby(known, key=lambda m: m.size):
        cases = list(group)
        parts.append("\n\n".join([f"## {size}: {_measures(size)}", table(cases), aims(cases), _machines(cases)]))
    return "\n".join([*parts, BOUNDS])


def _measures(size: str) -> str:
    shape = SIZES[size]
    entries = sum(_product(s) for s in shape.tensors().values())
    return f"{entries / 1e6:.0f} M parameters, {shape.layers} layers, hidden {shape.hidden}"


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _machines(cases: Sequence[Measured]) -> str:
    """Each machine that these rows are from, and how busy it was with other work."""
    lines = []
    for case in cases:
        loads = [r.load for r in case.runs]
        where = "; ".join(f"{key} {value}" for key, value in case.machine.items() if key != "disk")
        lines.append(f"{where}; {case.machine['disk'].partition(',')[0]}; {case.date}")
        lines += [f"{case.case}: {tool} did not run: {reason}" for tool, reason in case.absent.items()]
        if loads:
            lines.append(f"{case.case}: load average before the runs {min(loads):.1f} to {max(loads):.1f}")
    return "".join(f"- {line}\n" for line in dict.fromkeys(lines))
