"""The same recipe, word for word, through mergekit 0.1.5 and through triune, on a toy Llama in float32."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from safetensors.torch import load_file

import triune
from triune.testing import perturbed, toy_llama, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Tensors = Mapping[str, torch.Tensor]
    Merge = Callable[[str], Tensors]

WANTED = "0.1.5"
try:
    INSTALLED = version("mergekit")
except PackageNotFoundError:
    INSTALLED = "none"

pytestmark = [
    pytest.mark.skipif(INSTALLED != WANTED, reason=f"compares with mergekit {WANTED}, installed is {INSTALLED}"),
    # What mergekit and the libraries that it brings along warn about is none of our business; triune's modules stay strict.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:mergekit"),
]

EXPERTS = ("helpful", "honest", "harmless")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes merge faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether the embeddings are tied: a folder with a base and three experts."""
    made = {}
    for tied in (False, True):
        folder = made[tied] = tmp_path_factory.mktemp("tied" if tied else "untied")
        shape = {"hidden": 64, "intermediate": 96, "layers": 3, "vocabulary": 128, "tied": tied}
        base = toy_llama(folder / "base", **shape)  # type: ignore[arg-type]
        config = yaml.safe_load((folder / "base" / "config.json").read_text())
        for seed, name in enumerate(EXPERTS, start=1):
            write_checkpoint(folder / name, perturbed(base, seed), config)
    return made


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, folders: dict[bool, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def untied(folders: dict[bool, Path]) -> Path:
    return folders[False]


def recipe(folder: Path, text: str) -> str:
    """Names of models in capitals become paths."""
    for name in ("base", *EXPERTS):
        text = text.replace(name.upper(), str(folder / name))
    return text


def by_mergekit(text: str, out: Path, seed: int | None = None) -> Tensors:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return tensors_in(out)


def by_triune(text: str, out: Path) -> Tensors:
    triune.merge(triune.parse_recipe(text), out, gate=False, threads=1)
    return tensors_in(out)


def tensors_in(folder: Path) -> Tensors:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    assert {t.dtype for t in (*ours.values(), *theirs.values())} == {torch.float32}
    off = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    worst = max(off, key=off.__getitem__)
    assert off[worst] <= 1e-6, f"{worst} differs by {off[worst]:g}"


def task(
    method: str, parameters: str = "", weights: tuple[float, float, float] = (0.5, 0.3, 0.4), own: str = ""
) -> str:
    """A recipe for a method that works on deltas. ``own`` is added to each expert's parameters."""
    entries = "".join(
        f"  - model: {name.upper()}\n    parameters: {{weight: {weight}{own and ', ' + own}}}\n"
        for name, weight in zip(EXPERTS, weights, strict=True)
    )
    shared = f"parameters: {{{parameters}}}\n" if parameters else ""
    return f"models:\n{entries}base_model: BASE\nmerge_method: {method}\n{shared}dtype: float32\n"


def linear(parameters: str = "", weights: tuple[float, float, float] = (0.5, 0.3, 0.4)) -> str:
    return task("linear", parameters, weights).replace("base_model: BASE\n", "")


def stock(parameters: str = "") -> str:
    models = "".join(f"  - model: {name.upper()}\n" for name in EXPERTS)
    shared = f"parameters: {{{parameters}}}\n" if parameters else ""
    return f"models:\n{models}base_model: BASE\nmerge_method: model_stock\n{shared}dtype: float32\n"


BASE_LISTED = """\
models:
  - model: BASE
  - model: HELPFUL
    parameters: {weight: 0.6, density: 0.5}
  - model: HONEST
    parameters: {weight: 0.4, density: 0.3}
base_model: BASE
merge_method: ties
dtype: float32
"""
BASE_AVERAGED = """\
models:
  - model: BASE
    parameters: {weight: 0.2}
  - model: HELPFUL
    parameters: {weight: 0.5}
  - model: HARMLESS
    parameters: {weight: 0.3}
base_model: BASE
merge_method: linear
dtype: float32
"""
BASE_IN_STOCK = stock().replace("models:\n", "models:\n  - model: BASE\n")
EVERYTHING_AT_ONCE = """\
models:
  - model: HELPFUL
    parameters:
      density: [0.2, 0.9, 0.4]
      weight:
        - filter: mlp
          value: [0.1, 0.9]
        - value: 0.4
  - model: HONEST
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: HARMLESS
    parameters:
      weight:
        - filter: self_attn
          value: 0.8
base_model: BASE
merge_method: ties
parameters:
  weight: 0.25
  density:
    - filter: down_proj
      value: 0.7
    - filter: "*"
      value: 0.35
  lambda: 0.9
  normalize:
    - filter: q_proj
      value: false
    - value: true
dtype: float32
"""

RECIPES = {
    "linear": linear(),
    "linear, uneven weights": linear(weights=(1, 2, 4)),
    "linear, not normalized": linear("normalize: false"),
    "linear, zero and negative weight": linear(weights=(1, 0, -0.25)),
    "linear, weight for all": "models: [{model: HELPFUL}, {model: HONEST}]\nmerge_method: linear\n"
    "parameters: {weight: 1.0}\ndtype: float32\n",
    "linear, gradient": "models: [{model: HELPFUL, parameters: {weight: [0, 1]}}, {model: HONEST, parameters: "
    "{weight: [1, 0]}}]\nmerge_method: linear\ndtype: float32\n",
    "linear, base listed": BASE_AVERAGED,
    "task_arithmetic": task("task_arithmetic"),
    "task_arithmetic, lambda": task("task_arithmetic", "lambda: 0.4"),
    "task_arithmetic, normalized": task("task_arithmetic", "normalize: true, lambda: 1.5"),
    "task_arithmetic, weights that cancel, normalized": task("task_arithmetic", "normalize: true", (1, 0.5, -1.5)),
    "task_arithmetic, weight 0": task("task_arithmetic", weights=(1, 0, 0)),
    "task_arithmetic, negative": task("task_arithmetic", weights=(1, -0.5, 0.3)),
    "ties": task("ties"),
    "ties, density 0.3": task("ties", "density: 0.3"),
    "ties, density 0.5, sum": task("ties", "density: 0.5, normalize: false"),
    "ties, lambda, int8": task("ties", "density: 0.3, lambda: 0.7, int8_mask: true"),
    "ties, density 1.0": task("ties", "density: 1.0"),
    "ties, density 0": task("ties", "density: 0"),
    "ties, a density each": task("ties", own="density: 0.2"),
    "ties, next to nothing kept": task("ties", "density: 0.00001"),
    "ties, negative weight": task("ties", "density: 0.5", (1, -0.4, 0.3)),
    "ties, weight 0": task("ties", "density: 0.5", (1, 0, 0.5)),
    "ties, numbers as text": task("ties", "density: 3e-1, lambda: 9e-1"),
    "ties, base listed": BASE_LISTED,
    "ties, gradients and filters": EVERYTHING_AT_ONCE,
    "model_stock": stock(),
    "model_stock, by row": stock("filter_wise: true"),
    "model_stock, base listed": BASE_IN_STOCK,
    "breadcrumbs": task("breadcrumbs"),
    "breadcrumbs, density": task("breadcrumbs", "density: 0.4"),
    "breadcrumbs, density and gamma": task("breadcrumbs", "density: 0.6, gamma: 0.1, lambda: 0.8"),
    "breadcrumbs, gamma 0": task("breadcrumbs", "density: 0.3, gamma: 0"),
    "breadcrumbs, gamma beyond density": task("breadcrumbs", "density: 0.9, gamma: 0.3, normalize: true"),
    "breadcrumbs_ties": task("breadcrumbs_ties", "density: 0.6, gamma: 0.1"),
    "breadcrumbs_ties, gamma 0": task("breadcrumbs_ties", "density: 0.3, gamma: 0, lambda: 0.8"),
    "breadcrumbs_ties, normalized": task("breadcrumbs_ties", "normalize: true", own="density: 0.5, gamma: 0.02"),
    "dare_linear, density 1.0": task("dare_linear", "density: 1.0, lambda: 0.5"),
    "dare_linear, density 0": task("dare_linear", "density: 0"),
    "dare_linear, normalized": task("dare_linear", "normalize: true"),
    "dare_ties, density 1.0": task("dare_ties", "density: 1.0"),
    "dare_ties, normalized": task("dare_ties", "normalize: true, rescale: false"),
    "della_linear, density 1.0": task("della_linear", "density: 1.0, epsilon: 0.1"),
    "della_linear, density 0": task("della_linear", "density: 0"),
    "della, density 1.0": task("della", "density: 1.0"),
    "della, density 0": task("della", "density: 0"),
    "della, sum": task("della", "normalize: false, lambda: 1.1"),
}
TIED = ("linear", "ties, density 0.3", "model_stock", "breadcrumbs, density", "ties, gradients and filters")


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_is_the_same(name: str, untied: Path, tmp_path: Path) -> None:
    text = recipe(untied, RECIPES[name])
    assert_equal(by_triune(text, tmp_path / "triune"), by_mergekit(text, tmp_path / "mergekit"))


@pytest.mark.parametrize("name", TIED)
def test_tied_embeddings_are_merged_once(name: str, folders: dict[bool, Path], tmp_path: Path) -> None:
    text = recipe(folders[True], RECIPES[name])
    ours = by_triune(text, tmp_path / "triune")
    assert "lm_head.weight" not in ours
    assert_equal(ours, by_mergekit(text, tmp_path / "mergekit"))


# ---- random masks: not the same entries, but the same law

RANDOM = {
    "dare_linear": "density: 0.4",
    "dare_ties": "density: 0.4",
    "della_linear": "density: 0.4, epsilon: 0.2",
    "della": "density: 0.4, epsilon: 0.2",
}
ONE = """\
models: [{model: HELPFUL, parameters: {weight: 1.0}}]
base_model: BASE
merge_method: %s
parameters: {%s}
dtype: float32
"""


def deltas(merged: Tensors, folder: Path) -> tuple[Tensors, Tensors]:
    """What one merged model, and what its expert, adds to the base."""
    base, expert = tensors_in(folder / "base"), tensors_in(folder / "helpful")
    return {n: merged[n] - base[n] for n in base}, {n: expert[n] - base[n] for n in base}


@pytest.mark.parametrize("method", RANDOM)
def test_masks_keep_as_many_and_as_much(method: str, untied: Path, tmp_path: Path) -> None:
    """Both keep a fraction of 0.4, up to five standard deviations, and scale survivors so that each tensor's sum of
    magnitudes stays what it was. Merged and base are rounded to float32, which moves each entry by up to 2^-25 of 1.
    """
    text = recipe(untied, ONE % (method, RANDOM[method]))
    merged = [by_triune(text, tmp_path / "triune"), by_mergekit(text, tmp_path / "mergekit", seed=3)]
    for tensors in merged:
        found, expert = deltas(tensors, untied)
        for name, delta in expert.items():
            before, after = float(delta.double().abs().sum()), float(found[name].double().abs().sum())
            assert after == pytest.approx(before, abs=1e-4 * before + delta.numel() * 2**-24), name
        entries = sum(d.numel() for d in found.values())
        kept = sum(int((d != 0).sum()) for d in found.values()) / entries
        assert abs(kept - 0.4) < 5 * (0.4 * 0.6 / entries) ** 0.5


@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_della_keeps_large_entries_more_often_in_both(method: str, untied: Path, tmp_path: Path) -> None:
    """Density 0.5 and epsilon 0.3: of the lower half of each row 0.35 survive on average, of the upper half 0.65."""
    text = recipe(untied, ONE % (method, "density: 0.5, epsilon: 0.3, rescale: false"))
    for tensors in (by_triune(text, tmp_path / "triune"), by_mergekit(text, tmp_path / "mergekit", seed=3)):
        found, expert = deltas(tensors, untied)
        counts = torch.zeros(2)
        total = 0
        for name, delta in expert.items():
            if delta.dim() < 2:
                continue
            half = delta.shape[1] // 2
            order = delta.abs().argsort(dim=1)
            kept = (found[name] != 0).gather(1, order).float()
            counts += torch.stack([kept[:, :half].sum(), kept[:, half:].sum()])
            total += delta.numel() // 2
        assert (counts / total).tolist() == pytest.approx([0.35, 0.65], abs=5 * 0.5 / total**0.5)


# ---- where we part ways on purpose


def test_linear_ignores_a_base_that_is_not_listed(untied: Path, tmp_path: Path) -> None:
    """mergekit adds the base to the models, asks for its weight, and stops; we average what is listed."""
    listed = recipe(untied, linear())
    with_base = f"{listed}base_model: {untied / 'base'}\n"
    with pytest.raises(Exception, match="weight"):
        by_mergekit(with_base, tmp_path / "mergekit")
    assert_equal(by_triune(with_base, tmp_path / "with"), by_triune(listed, tmp_path / "without"))
