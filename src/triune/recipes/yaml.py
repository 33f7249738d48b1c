"""YAML that remembers on which line each value stood.

PyYAML's ``SafeLoader`` reads the text into nodes; we walk them ourselves to keep the lines, to refuse a key that stands
twice (YAML would silently keep the last), and to stay safe with a recipe from a stranger: it can neither build Python
objects nor grow without bound through aliases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from triune.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Keys = tuple[str | int, ...]
"""The way to a value: ``("models", 1, "parameters", "density")``."""

MOST_VALUES = 100_000
"""More than any recipe needs, few enough to stop a "billion laughs" file."""


@dataclass(frozen=True)
class Document:
    """A recipe's values, and the place each came from."""

    tree: Any
    origin: str
    lines: Mapping[Keys, int] = field(default_factory=dict)
    flags: Mapping[Keys, str] = field(default_factory=dict)
    """Values that did not come from the file but from a flag, as typed."""

    def line(self, keys: Keys) -> str:
        """``recipe.yml:7``, or the flag: the nearest place that is known."""
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.flags:
                return self.flags[keys[:end]]
            if keys[:end] in self.lines:
                return f"{self.origin}:{self.lines[keys[:end]]}"
        return self.origin

    def place(self, keys: Keys) -> str:
        """``recipe.yml:7, models[1] org/math, parameters.density``."""
        line = self.line(keys)
        if keys[:1] != ("models",) or len(keys) < 2:
            return ", ".join(filter(None, (line, spell(keys))))
        model = self.tree["models"][keys[1]]
        reference = model.get("model", "") if isinstance(model, dict) else ""
        named = f"{spell(keys[:2])} {reference}" if isinstance(reference, str) else spell(keys[:2])
        return ", ".join(filter(None, (line, named.strip(), spell(keys[2:]))))


def spell(keys: Iterable[str | int]) -> str:
    """The way to a value as people write it.

    >>> spell(("models", 1, "parameters", "density"))
    'models[1].parameters.density'
    """
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).removeprefix(".")


def read_yaml(text: str, origin: str) -> Document:
    """Text to values with lines; what is not YAML is refused in a sentence.

    >>> read_yaml("seed: 3\\nmodels: [{model: a}]", "recipe.yml").place(("models", 0, "model"))
    'recipe.yml:2, models[0] a, model'
    >>> read_yaml("seed: 3\\nseed: 4", "recipe.yml")
    Traceback (most recent call last):
    ...
    triune.errors.RecipeError: recipe.yml:2: 'seed' stands twice, first in line 1. Keep one.
    """
    lines: dict[Keys, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        tree = None if root is None else _Walk(loader, origin, lines).value(root, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        why = ", ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{where}: this is not readable YAML: {why}. Look at this line and the one above.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        what = f"it holds the unprintable character U+{error.character:04X}"
        raise RecipeError(f"{origin}:{line}:{column}: this is not readable YAML: {what}. Remove it.") from None
    except RecursionError:
        raise RecipeError(f"{origin}: brackets are nested too deeply for a recipe. Flatten it.") from None
    return Document(tree, origin, lines)


def write_yaml(tree: Any, comment: str = "") -> str:
    """Values to text, keys in the order given."""
    head = f"# {comment}\n" if comment else ""
    text = str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=2**20))
    if set(text) & set("\x85\u2028\u2029"):  # line breaks to YAML, which PyYAML forgets to escape
        text = str(yaml.safe_dump(tree, sort_keys=False, width=2**20))
    return head + text


@dataclass
class _Walk:
    loader: yaml.SafeLoader
    origin: str
    lines: dict[Keys, int]
    seen: int = 0

    def value(self, node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...]) -> Any:
        self.seen += 1
        line = node.start_mark.line + 1
        if node in above:
            raise RecipeError(f"{self.origin}:{line}: this alias contains itself. Write its value out.")
        if self.seen > MOST_VALUES:
            raise RecipeError(f"{self.origin}:{line}: more than {MOST_VALUES} values: this is no recipe.")
        self.lines.setdefault(keys, line)
        inside = (*above, node)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, keys, inside)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, (*keys, i), inside) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise RecipeError(f"{self.origin}:{line}: {node.tag!r} has no meaning in a recipe. Remove the tag.")
        try:
            # An unknown tag raises here, as in SafeLoader.
            return self.loader.construct_object(node)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"{self.origin}:{line}:{node.start_mark.column + 1}"
            raise RecipeError(f"{where}: cannot read {node.value!r}: {error}. If it is text, quote it.") from None

    def mapping(self, node: yaml.MappingNode, keys: Keys, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                # `<<: *anchor`, or a list of them, of which the first wins.
                given = self.value(value, (*keys, key.value), above)
                for source in reversed(given if isinstance(given, list) else [given]):
                    merged |= source if isinstance(source, dict) else {"<<": source}
        result = merged
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self.origin}:{line}: a key must be one word, not a list or a mapping.")
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in own:
                under = f" under {spell(keys)}" if keys else ""
                first = f"first in line {own[key.value]}"
                raise RecipeError(f"{self.origin}:{line}: {key.value!r} stands twice{under}, {first}. Keep one.")
            own[key.value] = line
            self.lines[(*keys, key.value)] = line
            result[key.value] = self.value(value, (*keys, key.value), above)
        return result
