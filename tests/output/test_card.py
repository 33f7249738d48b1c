from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from triune.output.beside import Parent
from triune.output.card import Licence, base_models, front_matter, licence_of, write_card, write_recipe

from .conftest import save

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Parent]

APACHE = "---\nlicense: apache-2.0\n---\n# Model\n"
LLAMA = "---\nlicense: other\nlicense_name: llama3\nlicense_link: https://example.org/l\nbase_model: meta/Base\n---\n"
RECIPE = "merge_method: ties  # as typed\nmodels: [{model: org/one}]\n\n"


def write(out: Path, base: Parent, *experts: Parent, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "method_title": "TIES", "method_summary": "It trims, elects and averages.", "method_name": "ties",
        "paper": "Yadav et al., 2023", "recipe_text": RECIPE, "merged_by": "triune 0.1.0",
        "semantics": "paper", "seed": 7, "gate_lines": ["Perplexity is 12.", "All finite."],
        "output": "full", **changes,
    }  # fmt: skip
    out.mkdir(exist_ok=True)
    write_card(out, base=base, experts=experts, **settings)
    return (out / "README.md").read_text(encoding="utf-8")


def test_licences_are_read_from_the_front_matter(make: Make, tmp_path: Path) -> None:
    assert licence_of(make("a", card=APACHE).folder) == ("apache-2.0", None, None)
    assert licence_of(make("b", card=LLAMA).folder) == ("other", "llama3", "https://example.org/l")
    for text in ("", "# no front matter", "---\n: [\n---\n", "---\n- list\n---\n", "---\nlicense:\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(tmp_path) == Licence()
    assert licence_of(tmp_path / "absent") == Licence()


def test_the_card_by_hand(make: Make, tmp_path: Path) -> None:
    text = write(tmp_path / "3h-model", make("base", card=APACHE), make("one", card=APACHE))
    head = yaml.safe_load(text.split("---\n")[1])
    # The fixture's folders end otherwise than org/base: these are hub references.
    assert head == {
        "base_model": ["org/base", "org/one"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "triune"],
        "license": "apache-2.0",
    }
    assert front_matter(tmp_path / "3h-model") == head
    for part in (
        "# 3h-model\n",
        "A merge of 1 models by **TIES** (Yadav et al., 2023), made with triune 0.1.0. It trims, elects and averages.",
        "Method `ties` with paper semantics, seed 7.",
        "| org/base | base | apache-2.0 |\n| org/one | expert | apache-2.0 |",
        "All parents state the same licence.",
        "AutoModelForCausalLM.from_pretrained(folder",
        f"```yaml\n{RECIPE.rstrip()}\n```",
        "- Perplexity is 12.\n- All finite.",
    ):
        assert part in text


def test_different_licences_are_listed(make: Make, tmp_path: Path) -> None:
    text = write(tmp_path / "out", make("base", card=LLAMA), make("one", card=APACHE), output="lora")
    head = front_matter(tmp_path / "out")
    assert (head["license"], head["license_name"]) == ("other", "licences-of-the-parents")
    assert head["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in text
    assert "| org/base | base | [llama3](https://example.org/l) |" in text
    assert "Each of them holds for this model." in text


def test_one_named_licence_keeps_its_name_and_link(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "out", make("base", card=LLAMA), make("one", card=LLAMA))
    head = front_matter(tmp_path / "out")
    assert [head[k] for k in ("license", "license_name", "license_link")] == [
        "other",
        "llama3",
        "https://example.org/l",
    ]


def test_no_licence_is_said_so(make: Make, tmp_path: Path) -> None:
    text = write(tmp_path / "out", make("base"), make("one"))
    assert "license" not in front_matter(tmp_path / "out")
    assert "None of the parents states a licence." in text


def test_local_parents_stand_for_what_their_files_name(make: Make, tmp_path: Path) -> None:
    local = replace(make("one", card=LLAMA), reference=str(tmp_path / "one"))
    save(tmp_path / "lora" / "adapter_config.json", {"base_model_name_or_path": "org/made-from"})
    lora = replace(make("two"), reference="org/two@main+./lora", name="lora", adapter=tmp_path / "lora")
    private = tmp_path / "private"
    save(private / "adapter_config.json", {"base_model_name_or_path": "/home/me/base"})
    hidden = Parent(str(private), "private", make("three").folder, private)
    assert base_models([local, lora, hidden]) == ["meta/Base", "org/made-from", "org/two"]
    text = write(tmp_path / "out", local, lora, hidden)
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    assert "| one | base |" in text


def test_fences_and_bars_in_the_input_do_no_harm(make: Make, tmp_path: Path) -> None:
    recipe = "chat_template: '```'\n"
    base = make("base", card="---\nlicense: a|b\n---\n")
    text = write(tmp_path / "out", base, recipe_text=recipe, gate_lines=[])
    assert "````yaml\nchat_template: '```'\n````" in text
    assert "| org/base | base | a\\|b |" in text
    assert "The result was not checked." in text


def test_the_recipe_is_kept_as_typed(tmp_path: Path) -> None:
    write_recipe(tmp_path, RECIPE)
    assert (tmp_path / "mergekit_config.yml").read_text() == RECIPE
