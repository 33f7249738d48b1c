"""LoRA adapters: which base tensor changes, by how much, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from triune.checkpoint.index import open_checkpoint
from triune.checkpoint.lora import (
    FOLLOWED,
    IGNORED,
    REFUSED,
    Adapter,
    Target,
    check_base,
    check_base_name,
    is_adapter,
    open_adapter,
)
from triune.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from triune.checkpoint.index import TensorInfo
    from triune.checkpoint.source import Factors

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
]

Q, V = (f"model.layers.0.self_attn.{p}_proj" for p in "qv")
P = "base_model.model."
TOKENS = torch.arange(8)[None]


def read(info: TensorInfo) -> torch.Tensor:
    with safe_open(info.file, framework="pt") as file:
        return file.get_tensor(info.name).float()


def dense(factors: Factors) -> torch.Tensor:
    delta = factors.scale * (read(factors.b) @ read(factors.a))
    return delta.T if factors.transposed else delta


def llama(folder: Path, tied: bool = False, vocab: int = 40, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    layers = {"num_hidden_layers": 2, "vocab_size": vocab, "tie_word_embeddings": tied}
    LlamaForCausalLM(LlamaConfig(**{**sizes, **layers, **config})).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def gpt2(folder: Path, **config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 16, "tie_word_embeddings": False}
    GPT2LMHeadModel(GPT2Config(**{**sizes, **config})).save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


def train(model: Any, folder: Path, **config: Any) -> PeftModel:
    """An adapter as PEFT saves it, with noise for training."""
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(1)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 4
    peft.save_pretrained(folder)
    return peft


def result(adapter: Adapter, base: Path) -> dict[str, torch.Tensor]:
    """Base plus adapter by our records alone."""
    weights = {n: read(t) for n, t in open_checkpoint(base, "base").tensors.items()}
    weights |= {n: read(t) for n, t in adapter.replaced.items()}
    for name, factors in adapter.deltas.items():
        weights[name] = weights[name] + dense(factors)
    return weights


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, new: Callable[[str], str]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({new(n): t for n, t in load_file(path).items()}, path)


def by_hand(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """An adapter on ``model.layers.0.self_attn.q_proj``: A is 2x16, B is 16x2, both all ones."""
    folder.mkdir(exist_ok=True)
    ones = {
        f"base_model.model.{Q}.lora_A.weight": torch.ones(2, 16),
        f"base_model.model.{Q}.lora_B.weight": torch.ones(16, 2),
    }
    save_file({**ones, **(tensors or {})}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama(folder)
    return folder


def opened(folder: Path, base: Path) -> Adapter:
    return open_adapter(folder, "org/adapter", open_checkpoint(base, "org/base"))


# By hand


def test_scale_by_hand(tmp_path: Path, base: Path) -> None:
    """alpha 6, rank 2: scale 3; ones(16, 2) @ ones(2, 16) is 2 everywhere, so the delta is 6."""
    adapter = opened(by_hand(tmp_path / "a", base_model_name_or_path="org/base"), base)
    assert is_adapter(tmp_path / "a")
    assert not is_adapter(base)
    assert list(adapter.deltas) == [f"{Q}.weight"]
    factors = adapter.deltas[f"{Q}.weight"]
    assert (factors.scale, factors.rank, factors.shape, factors.transposed) == (3.0, 2, (16, 16), False)
    assert torch.equal(dense(factors), torch.full((16, 16), 6.0))
    assert (adapter.rank, adapter.base_name, adapter.replaced) == (2, "org/base", {})
    assert adapter.targets == {f"{Q}.weight": Target(Q)}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"self_attn.q_proj": 10, "q_proj": 20}}, 5.0),  # the first that matches
        ({"alpha_pattern": {"_proj": 10}}, 3.0),  # no dot before it
        ({"alpha_pattern": {r".*\.0\..*q_proj": 10}}, 5.0),
        ({"alpha_pattern": {f"^{Q}": 10}}, 5.0),
        ({"alpha_pattern": {"^layers.0.self_attn.q_proj": 10}}, 3.0),
        ({"r": 16, "rank_pattern": {"q_proj": 2}}, 3.0),
        ({"rank_pattern": None, "alpha_pattern": None}, 3.0),
    ],
)
def test_scale_rules(tmp_path: Path, base: Path, config: dict[str, Any], scale: float) -> None:
    assert opened(by_hand(tmp_path / "a", **config), base).deltas[f"{Q}.weight"].scale == scale


def test_old_keys_with_adapter_name(tmp_path: Path, base: Path) -> None:
    e = f"{P}model.embed_tokens.lora_embedding_"
    folder = by_hand(tmp_path / "a", {f"{e}A": torch.ones(2, 40), f"{e}B": torch.ones(16, 2)})
    new = opened(folder, base)
    rename(folder, lambda n: f"{n}.default" if n.startswith(e) else n.replace(".weight", ".default.weight"))
    assert set(opened(folder, base).deltas) == set(new.deltas) == {f"{Q}.weight", "model.embed_tokens.weight"}


def test_needs_no_torch() -> None:
    code = "import sys, triune.checkpoint.lora, triune.output.adapter; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_harmless_starts(tmp_path: Path, base: Path, start: object) -> None:
    assert opened(by_hand(tmp_path / "a", init_lora_weights=start), base).deltas


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "layers."])
def test_other_prefix(tmp_path: Path, base: Path, prefix: str) -> None:
    """The module is ``model.layers...`` on disk; a vision model or a bare decoder calls it otherwise."""
    folder = by_hand(tmp_path / "a")
    rename(folder, lambda n: n.replace("model.layers.", prefix if prefix == "layers." else f"{prefix}layers."))
    adapter = opened(folder, base)
    assert list(adapter.deltas) == [f"{Q}.weight"]
    assert adapter.targets[f"{Q}.weight"].module.startswith(prefix.split(".")[0])


@pytest.mark.parametrize(
    ("recorded", "reference", "same"),
    [
        (None, "org/m", True),
        ("", "org/m", True),
        ("org/m", "org/m", True),
        ("org/m", "org/m@abc", True),
        ("org/m@abc", "org/m", True),
        ("ORG/M", "other/m@refs/pr/1", True),
        ("/home/me/m/", "org/m", True),
        ("org/m2", "org/m", False),
        ("org/m-bnb-4bit", "org/m", False),
        (".", "org/m", False),
        ("@", "org/m", False),
    ],
)
def test_base_names(tmp_path: Path, recorded: str | None, reference: str, same: bool) -> None:
    assert check_base_name(recorded, reference, tmp_path / "1a2b") is same


def test_base_name_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_base_name(str(tmp_path / "link"), "whatever", tmp_path / "real")


def test_check_base(tmp_path: Path, base: Path) -> None:
    adapter = opened(by_hand(tmp_path / "a", base_model_name_or_path="org/other"), base)
    checkpoint = open_checkpoint(base, "org/base")
    with pytest.raises(CheckpointError) as error:
        check_base(adapter, checkpoint, "org/base")
    assert str(error.value) == (
        "Adapter org/adapter was trained on org/other, the base is org/base. "
        "If they are the same weights, write org/base+org/adapter."
    )
    check_base(adapter, checkpoint, "you/Other@main")


# Against PEFT


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ALL, "r": 3, "lora_alpha": 7},
        {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_rslora": True},
        {
            "target_modules": ALL,
            "rank_pattern": {r"1\..*": 2, "layers.1.mlp.*": 5, "q_proj": 3},
            "alpha_pattern": {r"model.layers.0.*": 5, "^model.layers.1.self_attn.v_proj": 9},
        },
        {
            "target_modules": ["q_proj"],
            "use_rslora": True,
            "rank_pattern": {".*0.self_attn.q_proj": 5},
            "alpha_pattern": {"q_proj": 3},
        },
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]},
        {"target_modules": ["q_proj", "embed_tokens"], "r": 3, "lora_alpha": 5},
        {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [1],
            "init_lora_weights": "gaussian",
            "lora_dropout": 0.5,
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica", "r": 4},
    ],
)
def test_llama_agrees_with_merge_and_unload(tmp_path: Path, config: dict[str, Any]) -> None:
    peft = train(llama(tmp_path / "base"), tmp_path / "a", **config)
    ours = result(opened(tmp_path / "a", tmp_path / "base"), tmp_path / "base")
    theirs = peft.merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("config", "square"),
    [
        ({"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, True),
        ({"target_modules": ["c_proj", "lm_head"], "fan_in_fan_out": True}, True),
        ({"target_modules": [r"attn.c_proj"], "fan_in_fan_out": True}, True),
        ({"target_modules": ["wte", "wpe", "c_attn"], "fan_in_fan_out": True}, False),
    ],
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
def test_gpt2_agrees_with_merge_and_unload(tmp_path: Path, config: dict[str, Any], square: bool, known: bool) -> None:
    """Weights stored as [in, out]; ``attn.c_proj`` is square, so its shape does not tell."""
    peft = train(gpt2(tmp_path / "base"), tmp_path / "a", r=2, **config)
    if not known:  # as for a family that we have never heard of
        path = tmp_path / "base/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "unheard-of"}))
        if "lm_head" in config["target_modules"]:  # PEFT wraps the head last, and saves its fan_in_fan_out
            with pytest.raises(CheckpointError, match=r"mlp\.c_proj changes a weight of shape \[8, 32\], the base's"):
                opened(tmp_path / "a", tmp_path / "base")
            return
    adapter = opened(tmp_path / "a", tmp_path / "base")
    ours = result(adapter, tmp_path / "base")
    theirs = peft.merge_and_unload().state_dict()
    assert ("transformer.h.0.attn.c_proj.weight" in adapter.deltas) is square
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
def test_gpt2_with_a_square_head(tmp_path: Path) -> None:
    """As many tokens as channels: the head alone is stored as [out, in], and the shape does not tell."""
    peft = train(gpt2(tmp_path / "base", vocab_size=8), tmp_path / "a", target_modules=["c_proj", "lm_head"])
    adapter = opened(tmp_path / "a", tmp_path / "base")
    assert not adapter.deltas["lm_head.weight"].transposed
    theirs = peft.merge_and_unload().state_dict()
    for name, tensor in result(adapter, tmp_path / "base").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6, msg=name)


def test_gpt2_without_its_prefix(tmp_path: Path) -> None:
    """The files of GPT-2 on the hub say ``h.0``, PEFT says ``transformer.h.0``."""
    train(gpt2(tmp_path / "base"), tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    path = tmp_path / "base/model.safetensors"
    save_file({n.removeprefix("transformer."): t for n, t in load_file(path).items()}, path)
    adapter = opened(tmp_path / "a", tmp_path / "base")
    assert adapter.targets == {"h.0.attn.c_attn.weight": Target("transformer.h.0.attn.c_attn", transposed=True)}


def test_square_weight_of_a_mixed_model(tmp_path: Path, base: Path) -> None:
    """q_proj is 16x16; v_proj is stored as [out, in], so the flag cannot hold for both."""
    folder = by_hand(tmp_path / "a", fan_in_fan_out=True)
    assert opened(folder, base).deltas[f"{Q}.weight"].transposed
    v = {f"{P}{V}.lora_A.weight": torch.ones(2, 16), f"{P}{V}.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(CheckpointError) as error:
        opened(by_hand(folder, v, fan_in_fan_out=True), base)
    assert str(error.value) == (
        f"org/adapter: {Q}.weight is square, and fan_in_fan_out does not hold for all modules. {MERGE}"
    )


def test_swapped_weight_is_refused(tmp_path: Path, base: Path) -> None:
    v = {f"{P}{V}.lora_A.weight": torch.ones(2, 8), f"{P}{V}.lora_B.weight": torch.ones(16, 2)}
    with pytest.raises(CheckpointError, match=r"v_proj changes a weight of shape \[16, 8\], the base's"):
        opened(by_hand(tmp_path / "a", v), base)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_tied_and_trained_tied(tmp_path: Path, config: dict[str, Any]) -> None:
    """Compared with the model as trained: merge_and_unload would add the delta to the one tensor twice."""
    peft = train(llama(tmp_path / "base", tied=True), tmp_path / "a", ensure_weight_tying=True, **config)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    ours = result(opened(tmp_path / "a", tmp_path / "base"), tmp_path / "base")
    assert not merged.load_state_dict(ours, strict=False).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, peft.eval()(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_grown_vocabulary(tmp_path: Path, tied: bool) -> None:
    """PEFT saves grown embeddings unasked; they come out as replaced, with their own number of rows."""
    model = llama(tmp_path / "base", tied=tied)
    model.resize_token_embeddings(44)
    train(model, tmp_path / "a", target_modules=["q_proj"])
    replaced = opened(tmp_path / "a", tmp_path / "base").replaced
    names = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {n: t.shape for n, t in replaced.items()} == dict.fromkeys(names, (44, 16))


def test_old_infixes(tmp_path: Path) -> None:
    """PEFT once saved ``lm_head.modules_to_save.default`` and the base's own head beside it."""
    train(llama(tmp_path / "base"), tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    for infix in ("modules_to_save.default", "modules_to_save"):
        head = "base_model.model.lm_head"
        old = {n: t for n, t in tensors.items() if "lm_head" not in n}
        old[f"{head}.{infix}.weight"] = tensors[f"{head}.weight"]
        old[f"{head}.original_module.weight"] = torch.zeros(40, 16)
        save_file(old, tmp_path / "a/adapter_model.safetensors")
        replaced = opened(tmp_path / "a", tmp_path / "base").replaced
        assert {n: t.name for n, t in replaced.items()} == {"lm_head.weight": f"{head}.{infix}.weight"}


def test_every_field_of_peft_is_decided() -> None:
    """A new version of PEFT with a new field fails here, where somebody reads what the field does."""
    fields = set(LoraConfig.__dataclass_fields__) - {"runtime_config"}
    assert fields <= FOLLOWED | IGNORED | set(REFUSED)
    assert not FOLLOWED & IGNORED
    assert not (FOLLOWED | IGNORED) & set(REFUSED)


# Refusals

MERGE = (
    "Turn it into a full checkpoint first: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)."
)
NEVER = "PEFT cannot merge it into a checkpoint, so neither can triune: train a plain LoRA adapter instead."
FIELDS: dict[str, tuple[object, str]] = {
    "use_dora": (True, f"True: DoRA also rescales the base's weights, which is not a low-rank change. {MERGE}"),
    "bias": ("lora_only", f"'lora_only': the adapter also changes biases. {MERGE}"),
    "lora_bias": (True, f"True: the adapter also changes biases. {MERGE}"),
    "target_parameters": (
        ["experts.gate_up_proj"],
        "['experts.gate_up_proj']: the adapter changes bare parameters, whose layout is not that of a matrix. " + MERGE,
    ),
    "trainable_token_indices": (
        {"embed_tokens": [1]},
        "{'embed_tokens': [1]}: the adapter also replaces single rows of the embeddings. " + MERGE,
    ),
    "velora_config": ({"num_groups": 2}, "{'num_groups': 2}: VeLoRA stores more than two factors per module. " + MERGE),
    "monteclora_config": ({}, "{}: Monteclora stores more than two factors per module. " + MERGE),
    "kasa_config": ({}, "{}: KaSA first removes a part of the base's weights. " + MERGE),
    "use_bdlora": ({"nblocks": 2}, "{'nblocks': 2}: BD-LoRA's factors are block-diagonal. " + MERGE),
    "layer_replication": (
        [[0, 2], [1, 3]],
        f"[[0, 2], [1, 3]]: the adapter's model repeats layers that the base has once. {MERGE}",
    ),
    "megatron_config": (
        {"tp": 2},
        "{'tp': 2}: the adapter was trained on Megatron's layers, whose names and shapes differ. " + MERGE,
    ),
    "alora_invocation_tokens": ([5, 6], f"[5, 6]: aLoRA acts on some tokens of a text only. {NEVER}"),
    "arrow_config": ({"top_k": 3}, "{'top_k': 3}: Arrow picks adapters for each token. " + NEVER),
    "use_qalora": (True, f"True: QALoRA's factors act on pooled inputs of a quantised model. {NEVER}"),
}


def test_every_refused_field_has_its_text_tested() -> None:
    assert set(FIELDS) == set(REFUSED)


@pytest.mark.parametrize("field", FIELDS)
def test_refused_fields(tmp_path: Path, base: Path, field: str) -> None:
    value, text = FIELDS[field]
    with pytest.raises(CheckpointError) as error:
        opened(by_hand(tmp_path / "a", **{field: value}), base)
    assert str(error.value) == f"org/adapter: adapter_config.json sets {field} to {text}"


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_refused_starts(tmp_path: Path, base: Path, start: str) -> None:
    with pytest.raises(CheckpointError) as error:
        opened(by_hand(tmp_path / "a", init_lora_weights=start), base)
    assert str(error.value) == (
        f"org/adapter: adapter_config.json sets init_lora_weights to '{start}': such factors are a change to a base "
        "that was itself changed, not to the one on disk. Save the adapter again from the training script with "
        f"save_pretrained(folder, path_initial_model_for_weight_conversion=...), where PEFT offers it. {MERGE}"
    )


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"peft_type": "IA3"}, f"this is an adapter of type IA3; triune merges LoRA. {MERGE}"),
        (
            {"use_future_lora": True},
            "adapter_config.json sets use_future_lora to True, which triune does not know and which may change the "
            f"weights. {MERGE} If it does not change them, remove the line.",
        ),
        ({"r": 4}, f"{Q} has rank 2, but adapter_config.json says 4. Fetch the adapter again."),
        ({"r": "two"}, "adapter_config.json: r must be a number, got 'two'."),
        ({"lora_alpha": math.inf}, "adapter_config.json: lora_alpha must be a number, got inf."),
        (
            {"alpha_pattern": {"q_proj": None}},
            "adapter_config.json: alpha_pattern['q_proj'] must be a number, got None.",
        ),
        ({"rank_pattern": [2]}, "adapter_config.json: rank_pattern must be an object, got [2]."),
        (
            {"rank_pattern": {"(": 2}},
            "adapter_config.json: rank_pattern has '(', no regular expression "
            "(missing ), unterminated subpattern at position 7).",
        ),
    ],
)
def test_refused_configurations(tmp_path: Path, base: Path, config: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        opened(by_hand(tmp_path / "a", **config), base)
    assert str(error.value) == f"org/adapter: {text}"


KNOWN = "which is no part of a LoRA that triune knows"
OTHER = (
    "the adapter was trained on another base than org/base, or on one saved under other names. "
    "Write base+adapter with the base it was trained on."
)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({f"{P}{V}.lora_A.weight": (2, 16)}, f"{V} has A but not the other factor. Fetch the adapter again."),
        (
            {f"{P}{V}.lora_A.weight": (2, 16), f"{P}{V}.lora_B.weight": (8, 3)},
            f"the factors of {V} have shapes [2, 16] and [8, 3]; triune reads matrices [rank, in] and "
            f"[out, rank]. {MERGE}",
        ),
        (
            {f"{P}{V}.lora_A.weight": (2, 3, 1, 1), f"{P}{V}.lora_B.weight": (8, 2, 1, 1)},
            f"the factors of {V} have shapes [2, 3, 1, 1] and [8, 2, 1, 1]; triune reads matrices [rank, in] and "
            f"[out, rank]. {MERGE}",
        ),
        (
            {f"{P}{V}.lora_A.weight": (2, 12), f"{P}{V}.lora_B.weight": (8, 2)},
            f"{V} changes a weight of shape [8, 12], the base's {V}.weight is [8, 16]: {OTHER}",
        ),
        (
            {f"{P}model.embed_tokens.lora_embedding_A": (2, 99), f"{P}model.embed_tokens.lora_embedding_B": (16, 2)},
            "model.embed_tokens changes a weight of shape [99, 16], the base's model.embed_tokens.weight is [40, 16]: "
            f"{OTHER}",
        ),
        (
            {f"{P}gpt.h.7.lora_A.weight": (2, 16), f"{P}gpt.h.7.lora_B.weight": (8, 2)},
            f"it changes gpt.h.7.weight [8, 16], which the base does not have: {OTHER}",
        ),
        (
            {f"{P}{Q}.lora_A.other.weight": (2, 16)},
            f"{P}{Q}.lora_A.other.weight and {P}{Q}.lora_A.weight are of two adapters. Save one of them.",
        ),
        (
            {
                f"{P}layers.0.self_attn.q_proj.lora_A.weight": (2, 16),
                f"{P}layers.0.self_attn.q_proj.lora_B.weight": (16, 2),
            },
            f"layers.0.self_attn.q_proj and {Q} are both {Q}.weight in the base. {MERGE}",
        ),
        ({f"{P}{Q}.lora_magnitude_vector": (16,)}, f"the file has {P}{Q}.lora_magnitude_vector, {KNOWN}. {MERGE}"),
        ({f"{P}{Q}.lora_B.bias": (16,)}, f"the file has {P}{Q}.lora_B.bias, {KNOWN}. {MERGE}"),
        ({"prompt_embeddings": (3, 3)}, f"the file has prompt_embeddings, {KNOWN}. {MERGE}"),
        ({f"{P}{Q}.bias": (16,)}, f"the file has {P}{Q}.bias, which modules_to_save does not name. {MERGE}"),
        (
            {
                f"{P}model.embed_tokens.lora_embedding_A": (2, 40),
                f"{P}model.embed_tokens.lora_embedding_B": (16, 2),
                f"{P}model.embed_tokens.base_layer.weight": (44, 16),
            },
            f"{P}model.embed_tokens.base_layer.weight has shape [44, 16], the base's model.embed_tokens.weight is "
            f"[40, 16]: {OTHER}",
        ),
        (
            {f"{P}lm_head.weight": (44, 12)},
            f"{P}lm_head.weight has shape [44, 12], the base's lm_head.weight is [40, 16]: {OTHER}",
        ),
    ],
)
def test_refused_files(tmp_path: Path, base: Path, tensors: dict[str, tuple[int, ...]], text: str) -> None:
    folder = by_hand(tmp_path / "a", {n: torch.ones(shape) for n, shape in tensors.items()})
    with pytest.raises(CheckpointError, match=r"^org/adapter: ") as error:
        opened(folder, base)
    # Which of two names comes first depends on their bytes' order in the file.
    assert sorted(str(error.value).split()) == sorted(f"org/adapter: {text}".split())


def test_new_head_is_refused(tmp_path: Path, base: Path) -> None:
    folder = by_hand(
        tmp_path / "a",
        {f"{P}score.weight": torch.ones(2, 16)},
        modules_to_save=["score"],
        base_model_name_or_path="x/y",
    )
    with pytest.raises(CheckpointError) as error:
        opened(folder, base)
    assert str(error.value) == (
        "org/adapter: it changes score.weight [2, 16], which the base does not have: the adapter was trained on "
        "another base than org/base, or on one saved under other names. It says x/y: write base+adapter with the base "
        "it was trained on."
    )


def test_dtype_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora_A.weight is F64; triune reads F32, F16, BF16\. "):
        opened(by_hand(tmp_path / "a", {f"{P}{Q}.lora_A.weight": torch.ones(2, 16, dtype=torch.float64)}), base)


def test_pickle_and_missing_file(tmp_path: Path, base: Path) -> None:
    folder = by_hand(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"^org/adapter: adapter_model\.bin is a pickle, which can run code"):
        opened(folder, base)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors\. Fetch the adapter again\.$"):
        opened(folder, base)


@pytest.mark.parametrize(
    ("config", "module", "side"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head", "the head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens", "the input embedding"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head", "the head"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
            "model.embed_tokens",
            "the input embedding",
        ),
    ],
)
def test_one_side_of_a_tie_is_refused(tmp_path: Path, config: dict[str, Any], module: str, side: str) -> None:
    train(llama(tmp_path / "base", tied=True), tmp_path / "a", **config)
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path / "a", tmp_path / "base")
    assert str(error.value) == (
        f"org/adapter: {module} changes {side} alone, but in org/base embedding and head are one tensor, "
        "model.embed_tokens.weight, which cannot hold the result. Train with ensure_weight_tying=True, or without this "
        "module."
    )


def test_a_tie_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    train(
        llama(tmp_path / "base", tied=True), tmp_path / "a", target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    edit(tmp_path / "a", alpha_pattern={"lm_head": 3})
    with pytest.raises(
        CheckpointError, match=r"lm_head is model\.embed_tokens\.weight in the base, which the file does not"
    ):
        opened(tmp_path / "a", tmp_path / "base")


def test_half_of_a_tied_replacement_is_refused(tmp_path: Path) -> None:
    config = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    train(llama(tmp_path / "base", tied=True), tmp_path / "a", **config)
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "embed_tokens" not in n}, path)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight is model\.embed_tokens\.weight in the base, which the file"
    ):
        opened(tmp_path / "a", tmp_path / "base")
