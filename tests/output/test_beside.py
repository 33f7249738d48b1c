from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from triune.errors import CheckpointError, RecipeError, UserError
from triune.output.beside import BUILT_IN_TEMPLATES, Beside, Parent, plan_beside, write_beside

from .conftest import CHATML, WORDS, save, tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Parent]

N = len(WORDS)
TALK = [
    {"role": "user", "content": "bread"},
    {"role": "assistant", "content": "water"},
    {"role": "user", "content": "?"},
]


def plan(base: Parent, *experts: Parent, **settings: Any) -> Beside:
    given = {"tokenizer_source": None, "chat_template": None, "dtype": "bfloat16", **settings}
    return plan_beside(base, experts, **given)


def generation(beside: Beside) -> dict[str, Any]:
    return dict(json.loads(beside.texts["generation_config.json"]))


def edit(parent: Parent, name: str, **changes: Any) -> None:
    path = parent.folder / name
    save(path, {**json.loads(path.read_text()), **changes})


def test_importing_and_planning_need_no_torch() -> None:
    code = (
        "import sys, triune.output.beside, triune.output.card, triune.output.gate;"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# config.json


def test_the_config_is_the_bases_with_the_outputs_dtype(make: Make, tmp_path: Path) -> None:
    base, out = make("base"), tmp_path / "out"
    written = write_beside(plan(base, make("one", config={"torch_dtype": "float16"})), out)
    config = json.loads((out / "config.json").read_text())
    before = json.loads((base.folder / "config.json").read_text())
    del before["_name_or_path"]
    assert config == {**before, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    assert written == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in out.iterdir()) == written
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base.folder / name).read_bytes()


def test_the_engine_may_correct_the_vocabulary_size(make: Make, tmp_path: Path) -> None:
    beside = plan(make("base", config={"text_config": {"vocab_size": 9, "dtype": "float32"}}))
    write_beside(beside, tmp_path / "out", vocabulary_size=64)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["text_config"]) == (64, {"vocab_size": 64, "dtype": "bfloat16"})
    assert beside.config["vocab_size"] == N, "writing must not change the plan"


def test_another_architecture_is_refused(make: Make) -> None:
    with pytest.raises(CheckpointError) as error:
        plan(make("base"), make("one", config={"num_attention_heads": 4}))
    assert str(error.value) == (
        "num_attention_heads is 4 in org/one but 2 in org/base (config.json). Only models of one architecture can be "
        "merged."
    )


def test_silent_differences_are_warned_of(make: Make) -> None:
    beside = plan(make("base"), make("one", config={"rms_norm_eps": 1e-6}))
    assert beside.warnings == (
        "rms_norm_eps is 1e-06 in org/one but 1e-05 in org/base; the output keeps 1e-05, which the other's weights "
        "were not trained with.",
    )


def test_quantised_models_are_refused(make: Make) -> None:
    one = make("one", config={"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(CheckpointError, match=r"org/one is quantised .*, quant_method gptq\).* Dequantise it first"):
        plan(make("base"), one)


def test_a_missing_config_is_refused(make: Make) -> None:
    one = make("one")
    (one.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"org/one has no config.json in .*\. Fetch the whole model"):
        plan(make("base"), one)


def test_custom_code_is_copied_with_what_it_imports(make: Make) -> None:
    auto = {"AutoConfig": "conf.C", "AutoModel": "model.M", "AutoTokenizer": ["../x.T", None], "Auto": "org/a--far.F"}
    base = make("base", config={"auto_map": auto})
    for name, text in (
        ("conf", ""),
        ("model", "from .layers import L\n"),
        ("layers", "raise SystemExit"),
        ("other", ""),
    ):
        (base.folder / f"{name}.py").write_text(text)
    assert sorted(n for n in plan(base).copies if n.endswith(".py")) == ["conf.py", "layers.py", "model.py"]


# generation_config.json


def test_every_parents_stop_tokens_are_kept(make: Make) -> None:
    """Base stops at 1 (config), one at 4 and 5, two at 6 in generation_config: 1, 4, 5, 6."""
    base = make("base", generation={"temperature": 0.5, "eos_token_id": 1, "_from_model_config": True})
    merged = generation(plan(base, make("one", eos=[4, 5]), make("two", generation={"eos_token_id": 6})))
    assert merged == {"temperature": 0.5, "eos_token_id": [1, 4, 5, 6]}


def test_it_is_made_of_the_config_where_there_is_none(make: Make) -> None:
    assert generation(plan(make("base"), make("one"))) == {"bos_token_id": 0, "eos_token_id": 1}


def test_the_templates_end_of_turn_token_stops(make: Make) -> None:
    base = make("base", added=["<|im_start|>", "<|im_end|>"])
    assert generation(plan(base, chat_template="chatml"))["eos_token_id"] == [1, N + 1]


def test_the_tokenizers_eos_token_stops(make: Make) -> None:
    base = make("base", added=["<eot>"])
    edit(base, "tokenizer_config.json", eos_token={"content": "<eot>"})
    assert generation(plan(base))["eos_token_id"] == [1, N]


def test_a_template_whose_end_is_no_token_is_warned_of(make: Make) -> None:
    assert "ends a turn with <|im_end|>" in plan(make("base"), chat_template="chatml").warnings[0]


def test_stop_tokens_follow_a_new_vocabulary(make: Make) -> None:
    """helpful's order: </s> is 0 and <s> is 1, the other way round than in the base."""
    turned = ["</s>", "<s>", *WORDS[2:]]
    base, helpful = (
        make("base", generation={"eos_token_id": 1, "bos_token_id": 0}),
        make("helpful", words=turned, eos=0),
    )
    beside = plan(base, helpful, tokenizer_source="helpful")
    assert generation(beside) == {"eos_token_id": 0, "bos_token_id": 1}
    assert (beside.config["bos_token_id"], beside.config["eos_token_id"]) == (1, 0)
    assert beside.copies["tokenizer.json"].parent == helpful.folder


def test_a_dropped_stop_token_is_warned_of(make: Make) -> None:
    beside = plan(make("base"), make("one", added=["<eot>"], eos=N), tokenizer_source="base")
    assert beside.warnings == (f"org/one stops at token {N}, which the output's vocabulary lacks.",)


def test_transformers_agrees(make: Make, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    base, one = make("base", template=CHATML), make("one", eos=[1, 4], added=["<|im_end|>"])
    beside = plan(base, one, tokenizer_source="union", chat_template="chatml")
    write_beside(beside, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 4, N]
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == N + 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nbread<|im_end|>\n<|im_start|>assistant\n"
    )


# Chat template


def test_one_template_is_written_as_a_file(make: Make) -> None:
    base = make("base")
    edit(base, "tokenizer_config.json", chat_template=CHATML)
    beside = plan(base, make("one", template=CHATML + "\n"), make("bare"))
    assert beside.texts["chat_template.jinja"] == CHATML
    assert beside.copies["tokenizer_config.json"] == base.folder / "tokenizer_config.json"


def test_the_experts_template_serves_a_base_without_one(make: Make) -> None:
    beside = plan(make("base"), make("one", template=CHATML))
    assert beside.texts["chat_template.jinja"] == CHATML
    assert beside.report == ("The chat template is that of org/one; org/base has none.",)


def test_different_templates_are_refused(make: Make) -> None:
    with pytest.raises(UserError) as error:
        plan(make("base", template=CHATML), make("one", template="{{ 1 }}"), make("two", template=CHATML))
    assert str(error.value) == (
        "The chat templates differ: org/one do not use the one of org/base. A model answers badly in a format it was "
        "not trained in, so choose: chat_template: auto (the most common), a model's name (base, one, two), a built-in "
        "(chatml, llama3, mistral, alpaca), or the Jinja text itself."
    )


def test_auto_takes_the_most_common(make: Make) -> None:
    experts = [make("one", template="{{ 1 }}"), make("two", template="{{ 1 }}\n")]
    beside = plan(make("base", template=CHATML), *experts, chat_template="auto")
    assert beside.texts["chat_template.jinja"] == "{{ 1 }}"
    assert beside.report == ("The chat template is that of org/one, as in 2 of 3 models.",)
    assert "chat_template.jinja" not in plan(make("bare"), chat_template="auto").texts


def test_another_template_replaces_an_embedded_one(make: Make, tmp_path: Path) -> None:
    base = make("base")
    edit(base, "tokenizer_config.json", chat_template=CHATML)
    beside = plan(base, make("one", template="{{ 1 }}"), chat_template="org/one")
    write_beside(beside, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 1 }}"
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_named_templates_survive(make: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = make("base")
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ 2 }}"}]
    edit(base, "tokenizer_config.json", chat_template=named)
    write_beside(plan(base), tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == {"default": CHATML, "tool_use": "{{ 2 }}"}


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_built_in_templates_render(make: Make, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    write_beside(plan(make("base"), chat_template=name), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    system = {"role": "system", "content": "quiet"}
    text = tokenizer.apply_chat_template([system, *TALK], tokenize=False, add_generation_prompt=True)
    assert (
        text
        == {
            "chatml": "<|im_start|>system\nquiet<|im_end|>\n<|im_start|>user\nbread<|im_end|>\n"
            "<|im_start|>assistant\nwater<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n",
            "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nquiet<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nbread<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nwater<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "mistral": "<s>[INST] quiet\n\nbread [/INST] water</s>[INST] ? [/INST]",
            "alpaca": "quiet\n\n### Instruction:\nbread\n\n### Response:\nwater</s>\n\n"
            "### Instruction:\n?\n\n### Response:\n",
        }[name]
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            "chatlm",
            r"chat_template must be one of auto, chatml, .*, or Jinja text .*, got 'chatlm'. Did you mean chatml\?",
        ),
        (
            "exaone",
            "chat_template: exaone is a built-in of mergekit that triune does not have. Give the Jinja text itself",
        ),
        ("{% for %}", r"chat_template is not valid Jinja: .* \(its line 1\)"),
        ("one", "chat_template: one names a model that has no chat template. Models that have one: base."),
    ],
)
def test_bad_templates_are_refused(make: Make, wanted: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        plan(make("base", template=CHATML), make("one"), chat_template=wanted)
    assert wanted in ("one",) or isinstance(error.value, RecipeError)


def test_jinja_text_is_taken_as_it_is(make: Make) -> None:
    text = "{% generation %}{{ messages }}{% endgeneration %}"
    assert plan(make("base"), chat_template=text).texts["chat_template.jinja"] == text


# Adapters


def test_what_an_adapter_lacks_is_its_bases(make: Make, tmp_path: Path) -> None:
    base = make("base", template=CHATML)
    save(tmp_path / "lora" / "adapter_config.json", {})
    lora = replace(base, reference="org/lora", name="lora", adapter=tmp_path / "lora")
    assert plan(base, lora) == plan(base)
    save(tmp_path / "lora" / "tokenizer.json", tokenizer_json(WORDS))
    (tmp_path / "lora" / "chat_template.jinja").write_text("{{ 1 }}")
    with pytest.raises(UserError, match="The chat templates differ: org/lora"):
        plan(base, lora)
    beside = plan(base, lora, tokenizer_source="lora", chat_template="lora")
    assert beside.copies["tokenizer.json"].parent == tmp_path / "lora"


def test_other_ways_to_cut_text_are_warned_of(make: Make) -> None:
    base, one = make("base"), make("one")
    edit(one, "tokenizer.json", normalizer={"type": "Lowercase"})
    assert "org/one has the vocabulary of org/base but cuts text differently" in plan(base, one).warnings[0]
