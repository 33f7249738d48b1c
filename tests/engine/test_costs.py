"""What a plan says it will compute: by hand on small shapes, and adding up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from triune.methods._cost import elementwise, factored, polar_factors, spectral

if TYPE_CHECKING:
    from conftest import Models, Run


def test_elementwise() -> None:
    assert elementwise("task_arithmetic", 3, 1000) == {"passes": 24_000}  # (4 of its own + 4 to read) * 3 * 1000


def test_polar_factors() -> None:
    # U [4, 2] and V [8, 2]: m + n = 12
    assert polar_factors(2, (4, 8)) == {
        "gemm64": 60 + 32 + 96,  # Gram: 5/8 * 2 * 12 * 2^2; inverse roots: 2 * (2 * 2^3); applied: 2 * 12 * 2^2
        "eigh": 144,  # 2 * 9 * 2^3
    }


def test_spectral() -> None:
    # T = 2, m = 4, n = 8: r = 4, l = 8, k = 2, K = 4
    gram = 2 * 160  # 5/8 * 2 * 8 * 4^2
    project, orthonormal = 2 * 128, 2 * 128  # 2 * 8 * 4 * 2, and twice 2 * 8 * 2^2
    polar = 240 + 256 + 384  # 5/8 * 2 * 12 * 4^2, 4 * 4^3 and 2 * 12 * 4^2
    assert spectral(2, (4, 8)) == {
        "passes": 256,  # 4 * 2 * 32
        "eigh": 2 * 576 + 1152,  # 9 * 4^3 each, and 2 * 9 * 4^3
        "gemm64": gram + project + polar,
        "gemm32": orthonormal + 256,  # and the product 2 * 4 * 8 * 4
    }
    assert spectral(2, (8, 4)) == spectral(2, (4, 8))
    assert spectral(2, (4, 8), damped_passes=1)["passes"] == 320  # 5 * 2 * 32


def test_factored() -> None:
    # ranks 1 and 2 on 4 x 8: QR 4 * 12 * (1 + 4), SVD 22 * (1 + 8), polar of R = 3: 2 * 9 * 27
    assert factored([1, 2], (4, 8))["eigh"] == 240 + 198 + 486
    dense, thin = factored([1, 2], (4, 8)), factored([1, 2], (4, 8), dense=False)
    assert dense["gemm32"] - thin["gemm32"] == 192  # 2 * 4 * 8 * 3


def test_a_plan_adds_up(models: Models, triune: Run) -> None:
    plan = json.loads(triune("plan", *models.flags, "--method", "tsvm", "--json", "--time", "--threads", "2").out)
    groups = plan["classes"]
    assert sum(c["count"] for c in groups) == len(plan["tensors"])
    assert sum(c["bytes"] for c in groups) == plan["read_bytes"] + plan["write_bytes"]
    assert sum(c["flops"] for c in groups) == plan["flops"] == sum(sum(c["cost"].values()) for c in groups)
    assert abs(sum(c["seconds"] for c in groups) - plan["seconds"]) < 1e-9
    rates, q = plan["rates"], next(c for c in groups if c["projection"] == "self_attn.q_proj")
    alone = q["bytes"] / rates["bytes"] + sum(n / rates[kind] for kind, n in q["cost"].items())
    assert abs(q["seconds"] - alone / 2) < 1e-9  # two lanes
    assert (q["count"], q["route"]) == (2, "dense")


def test_no_time_unless_asked(models: Models, triune: Run) -> None:
    plan = json.loads(triune("plan", *models.flags, "--json").out)
    assert "seconds" not in plan
    assert "rates" not in plan
    assert "seconds" not in plan["classes"][0]
    told = triune("plan", *models.flags, "--time").out
    assert "self_attn.q_proj" in told
    assert "seconds" in told
