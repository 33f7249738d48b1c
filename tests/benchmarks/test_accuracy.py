"""The table of TSVM's errors, on small matrices."""

from __future__ import annotations

import pytest

from benchmarks import accuracy


def test_triune_is_exact_on_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy.main(["--side", "48"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _, _ in rows] == [*accuracy.kinds(48)]
    for name, ours, svds in rows:
        assert float(ours) < (float(svds) if name == "alike but for a thousandth" else 2e-6), name
