"""``python -m benchmarks.accuracy``: how far TSVM is from Algorithm 1 in float64, beside what SVDs in float32 give.

Three experts of several kinds, at full rank share. Float32 SVDs are what fusion_bench and the authors' code make. Relative
errors of the merged delta, in the Frobenius norm; directions below 1e-5 of the largest are dropped everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from triune.methods import find
from triune.methods.tsvm import equal_share

EXPERTS = 3
DROPPED = 1e-5


def kinds(n: int) -> Mapping[str, Callable[[], Sequence[torch.Tensor]]]:
    """Deltas by what makes them easy or hard."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def falling(values: torch.Tensor) -> torch.Tensor:
        left, right = (torch.linalg.qr(random(n, n).double()).Q for _ in range(2))
        return ((left * values.double()) @ right.T).float()

    def similar(apart: float) -> list[torch.Tensor]:
        common = random(n, n)
        return [common + apart * random(n, n) for _ in range(EXPERTS)]

    def spiked() -> torch.Tensor:
        delta = random(n, n)
        delta[0, 5] += 1e4
        return delta

    def three(make: Callable[[], torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        return lambda: [make() for _ in range(EXPERTS)]

    index = torch.arange(1, n + 1)
    return {
        "random, square": three(lambda: random(n, n)),
        "random, 4 to 1": three(lambda: random(4 * n, n)),
        "singular values 1 / i": three(lambda: falling(1 / index)),
        "singular values 1 / i^2": three(lambda: falling(1 / index**2)),
        "32 directions above noise": three(lambda: random(n, 32) @ random(32, n) + 0.01 * random(n, n)),
        "alike but for a tenth": lambda: similar(0.1),
        "alike but for a thousandth": lambda: similar(1e-3),
        "the same huge entry": three(spiked),
    }


def by_svd(deltas: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Algorithm 1 by full SVDs in one precision."""
    rank = equal_share(tuple(deltas[0].shape), len(deltas))
    parts = [(u, s, v, rank(s)) for u, s, v in (torch.linalg.svd(d.to(dtype), full_matrices=False) for d in deltas)]
    cut = [(u[:, :k], s[:k], v[:k].T) for u, s, v, k in parts]
    left, values, right = (torch.cat(x, -1) for x in zip(*cut, strict=True))
    return (_polar(left) * values) @ _polar(right).T


def _polar(a: torch.Tensor) -> torch.Tensor:
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    keep = s > DROPPED * s[0]
    return u[:, keep] @ v[keep]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Compare TSVM with float64.")
    parser.add_argument("--side", type=int, default=768, metavar="N", help="of the matrices, default 768")
    given = parser.parse_args(arguments)
    tsvm = find("tsvm")
    print("| deltas | triune | SVDs in float32 |\n|---|---|---|")
    for name, make in kinds(given.side).items():
        deltas = make()
        exact = by_svd(deltas, torch.float64)
        errors = (tsvm(torch.stack(list(deltas)), weight=1.0), by_svd(deltas, torch.float32))
        cells = (f"{float((x - exact).norm() / exact.norm()):.1e}" for x in errors)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
