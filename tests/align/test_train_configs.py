"""The configs in examples/ and the published schema say what triune accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from triune.align.config import TrainConfig
from triune.align.json_schema import train_json_schema
from triune.align.losses import LOSSES
from triune.cli.main import COMMANDS
from triune.config import load_config, parse_config
from triune.data.pairs import Message
from triune.data.schemas import schema_of

ROOT = Path(__file__).parents[2]
CONFIGS = [
    p
    for p in sorted((ROOT / "examples").glob("*.yaml"))
    if re.search("^models:$", p.read_text(), re.MULTILINE) and not p.name.startswith("bench-")
]
CONFIGS = [p for p in CONFIGS if "merge_method" not in p.read_text()]
BIG = [p for p in CONFIGS if p.name.startswith(("llama", "mistral"))]

jsonschema = pytest.importorskip("jsonschema")


def test_there_are_configs() -> None:
    assert {"llama-3-8b-instruct.yaml", "mistral-7b-instruct-v0.2.yaml", "train-smollm2.yaml"} <= {
        p.name for p in CONFIGS
    }
    assert len(BIG) == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_config_loads(path: Path) -> None:
    config = load_config(path, TrainConfig)
    dimensions = {entry.dimension for entry in config.models.values() if entry.dimension}
    assert dimensions == {"helpfulness", "honesty", "harmlessness"}
    assert all(source.licence for source in config.data.sources), "a licence is missing"


@pytest.mark.parametrize("path", BIG, ids=lambda p: p.name)
def test_the_variants_in_the_comments_load(path: Path) -> None:
    """Each block of ``--set`` in a comment is a variant; all steps can be shared out over 1 and 8 devices."""
    text = path.read_text()
    blocks = re.findall(r"(?:--set \S+\s*)+", re.sub(r"\n#\s*", " ", text.replace("\\\n", "\n")))
    variants = [re.findall(r"--set (\S+)", block) for block in blocks]
    assert len(variants) >= 2
    for settings in ([], *variants):
        config = load_config(path, TrainConfig, settings)
        assert config.training.batch % (8 * config.training.device_batch) == 0
        assert config.budget.pairs % config.training.batch == 0
        assert config.budget.pairs // 3 <= 1016, "Truthy-DPO has so many pairs, and a mixture wants a third from it"
    full = load_config(path, TrainConfig, variants[0])
    assert full.training.tuning == "full"
    assert 3e-7 <= full.training.rate <= 1e-6
    assert "not run at this size by us" in re.sub(r"\n# ", " ", text)


@pytest.mark.parametrize("path", BIG, ids=lambda p: p.name)
def test_truthy_dpo_keeps_its_system_prompts(path: Path) -> None:
    (source,) = [s for s in load_config(path, TrainConfig).data.sources if "truthy" in s.path]
    row = {"id": "1", "source": "made", "system": "Be honest.", "prompt": "Is it?", "chosen": "No.", "rejected": "Yes."}
    prompt = schema_of(row, source.format).read(row, source.dimension).prompt
    assert prompt == (Message("system", "Be honest."), Message("user", "Is it?"))


def test_the_accelerate_config_asks_for_what_was_tried() -> None:
    """Read by accelerate itself, as ``accelerate launch`` reads it; these are the settings of tests/align/fsdp_on_cpu.py."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = ROOT / "examples" / "accelerate-8gpu.yaml"
    assert load_config_from_file(str(path)).num_processes == 8
    args, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "-m", "triune"])
    )
    environment = prepare_multi_gpu_env(args)
    assert (
        environment.items()
        >= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
        }.items()
    )


def test_the_page_about_training() -> None:
    """Its config is one, its commands are ours, and its table of losses is the table in the code."""
    page = (ROOT / "docs" / "training.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)
    (config,) = [text for kind, text in blocks if kind == "yaml"]
    assert len(parse_config(config, TrainConfig).models) == 6
    commands = [line.split() for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    assert all(words[words.index("triune") + 1] in COMMANDS for words in commands)
    rows = re.findall(r"^\| (`.*`) \|", page.partition("## Losses")[2].partition("## ")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"training"} == set(LOSSES)


# --- the schema -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = train_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


def test_the_published_copy_is_current() -> None:
    """Else: ``make schema``."""
    published = ROOT / "docs" / "train.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(train_json_schema()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_schema_accepts_the_examples(validator: Any, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"sede": 1},
        {"training": {"loss": "dop"}},
        {"training": {"batch": 0}},
        {"training": {"lora": {"rnak": 1}}},
        {"data": {"sources": []}},
        {"models": {}},
        {"budget": {}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_one_key_shows(validator: Any, change: dict[str, Any]) -> None:
    good = {
        "base_model": "b",
        "data": {"sources": [{"path": "x"}]},
        "budget": {"pairs": 1},
        "models": {"a": {"dimension": "d"}},
    }
    validator.validate(good)
    assert not validator.is_valid(good | change)


def test_every_loss_is_in_the_schema(validator: Any) -> None:
    assert validator.schema["$defs"]["Training"]["properties"]["loss"]["enum"] == list(LOSSES)


def test_every_setting_is_described() -> None:
    """Editors show the sentence while one types."""
    schema = train_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = [(name, entry) for section in sections for name, entry in section["properties"].items()]
    assert [name for name, entry in keys if "description" not in entry and "$ref" not in entry] == []
