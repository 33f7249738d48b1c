"""The model card (README.md) and the recipe beside a merged model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from triune.output import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from triune.output.vocabulary import Parent

HUB_ID = re.compile(r"([\w.-]+)/([\w.-]+)")
LOADING = {
    "full": """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/or/hub-id/of/this/model"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")""",
    "lora": """from peft import AutoPeftModelForCausalLM

folder = "path/or/hub-id/of/this/adapter"
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")""",
}


class Licence(NamedTuple):
    """As stated in the front matter of a model card."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None

    @property
    def name(self) -> str:
        return self.license_name or self.license or "not stated"

    def __str__(self) -> str:
        return f"[{self.name}]({self.license_link})" if self.license_link else self.name


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML block at the top of the folder's README.md; empty where there is none, or none that can be read."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    block = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        content = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        content = None
    return content if isinstance(content, dict) else {}


def licence_of(folder: Path) -> Licence:
    """The licence that the folder's own card states, without asking the hub."""
    found = front_matter(folder)

    def text(key: str) -> str | None:
        value = found.get(key)
        joined = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
        return " ".join(joined.split()) or None

    return Licence(text("license"), text("license_name"), text("license_link"))


def licences_of(parent: Parent) -> list[Licence]:
    """Of an adapter and of its base, as far as they are stated: both hold for what is made from them."""
    return [found for f in parent.folders if any(found := licence_of(f))] or [Licence()]


def hub_id(reference: str, folder: Path) -> str | None:
    """The hub's name of a model, or None for a local one.

    >>> from pathlib import Path
    >>> hub_id("org/helpful@v2", Path("/cache/models--org--helpful/snapshots/12ab"))
    'org/helpful'
    >>> hub_id("./helpful", Path("helpful")) is hub_id("runs/helpful", Path("/home/me/runs/helpful")) is None
    True
    """
    name = reference.split("@")[0]
    if not (parts := HUB_ID.fullmatch(name)) or parts[1] in (".", ".."):
        return None
    local = folder.parts[-2:] == (parts[1], parts[2]) or folder.absolute().parts[-2:] == (parts[1], parts[2])
    return None if local else name


def base_models(parents: Sequence[Parent]) -> list[str]:
    """Hub names of all parents. A local one stands for the models that its own files say it was made from."""
    found: list[str] = []
    for parent in parents:
        model, _, last = parent.reference.rpartition("+")
        parts = [(last, parent.adapter or parent.folder), *([(model, parent.folder)] if model else [])]
        for reference, folder in parts:
            if name := hub_id(reference, folder):
                found.append(name)
                continue
            recorded = front_matter(folder).get("base_model") or []
            names = [recorded] if isinstance(recorded, str) else list(recorded)
            if (folder / "adapter_config.json").is_file():
                names.append(json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path"))
            found += [name for name in names if isinstance(name, str) and hub_id(name, folder)]
    return list(dict.fromkeys(found))


def write_recipe(out: Path, text: str) -> None:
    """The recipe exactly as typed, under the name that readers of mergekit's models look for."""
    atomic.write_text(out / "mergekit_config.yml", text)


def write_card(
    out: Path,
    *,
    method_title: str,
    method_summary: str,
    method_name: str,
    paper: str,
    base: Parent,
    experts: Sequence[Parent],
    recipe_text: str,
    merged_by: str,
    semantics: str | None,
    seed: int,
    gate_lines: Sequence[str],
    output: str,
    figure: str = "",
) -> None:
    """Write README.md.

    Args:
        merged_by: program and version, e.g. ``triune 0.1.0``.
        semantics: ``mergekit`` or ``paper``, for methods that have both readings.
        gate_lines: one sentence for each check of the result.
        output: ``full`` or ``lora``.
        figure: a file beside it that shows how far each layer moved; none if empty.
    """
    parents = list({(p.reference, p.folder, p.adapter): p for p in (base, *experts)}.values())
    licences = [licences_of(p) for p in parents]
    stated = {licence for each in licences for licence in each}
    head: dict[str, Any] = {"base_model": base_models(parents), "base_model_relation": "merge"}
    head |= {"library_name": "peft" if output == "lora" else "transformers", "pipeline_tag": "text-generation"}
    head["tags"] = ["merge", "triune"]
    if len(stated) == 1:
        head |= {key: value for key, value in next(iter(stated))._asdict().items() if value}
    else:
        head |= {"license": "other", "license_name": "licences-of-the-parents"}
    front = yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False, allow_unicode=True)

    rows = ["| model | role | licence |", "|---|---|---|"]
    for parent, each in zip(parents, licences, strict=True):
        # A local path says more about its owner than about the model.
        local = parent.reference.startswith((".", "/", "~")) or "\\" in parent.reference
        shown = parent.name if local else parent.reference
        role = "base" if parent is parents[0] else "expert (adapter)" if parent.adapter else "expert"
        rows.append("| " + " | ".join(s.replace("|", "\\|") for s in (shown, role, ", ".join(map(str, each)))) + " |")
    terms = "All parents state the same licence."
    if len(stated) > 1:
        terms = "The parents' licences differ or are not all stated. Each of them holds for this model."
    elif stated == {Licence()}:
        terms = "None of the parents states a licence. Ask their authors before you share this model."
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe_text)), default=0))
    checks = [f"- {line}" for line in gate_lines] or ["The result was not checked."]
    source = f" ({paper})" if paper else ""
    blocks = (
        f"---\n{front}---",
        f"# {out.absolute().name}",
        f"A merge of {len(experts)} models by **{method_title}**{source}, made with {merged_by}. {method_summary}",
        f"Method `{method_name}`{f' with {semantics} semantics' if semantics else ''}, seed {seed}.",
        *([f"![How far each layer moved from the base]({figure})"] if figure else []),
        "## Parents and licences",
        "\n".join(rows),
        terms,
        "## How to load",
        f"```python\n{LOADING[output]}\n```",
        "## Recipe",
        f"{fence}yaml\n{recipe_text.rstrip()}\n{fence}",
        "## Checks of the result",
        "\n".join(checks),
    )
    atomic.write_text(out / "README.md", "\n\n".join(blocks) + "\n")
