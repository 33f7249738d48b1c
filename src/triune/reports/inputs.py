"""What ``triune report`` is given: recognised by content, and read whether or not it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triune.diagnostics.records import SCHEMA, Diagnosis, header_of, tensor_of
from triune.errors import UserError
from triune.evals import store
from triune.evals.result import Result
from triune.output.card import front_matter

ACCEPTED = (
    "a merged folder (triune.lock.json), a diagnosis (triune diagnose -o FILE), a run folder of triune eval or triune bench "
    "or its results.db, a folder of triune train or triune align, or answers of triune demo"
)
ANSWERS = "triune-answers/1"
"""Schema of a file of answers: ``{"schema", "models": [..], "prompts": [{"prompt", "topic", "answers": {model: text}}]}``"""
PARTIAL = ".partial"
"""At the end of the name of a diagnosis that is not finished."""
ROWS = 4
"""Of each benchmark, whose answers are shown side by side."""
LONGEST = 700
"""Characters of a prompt or an answer."""


@dataclass(frozen=True)
class Merged:
    """A folder that ``triune merge`` writes or wrote."""

    name: str
    lock: Mapping[str, Any]
    """Empty while the merge is not finished."""
    recipe: str
    card: Mapping[str, Any]
    """The front matter of README.md."""


@dataclass(frozen=True)
class Store:
    """Results, to be compared with each other."""

    name: str
    results: Sequence[Result]


@dataclass(frozen=True)
class Asked:
    """One prompt and what several models answered."""

    prompt: str
    topic: str
    answers: Mapping[str, str]
    """Model -> answer."""
    scores: Mapping[str, str] = field(default_factory=dict)
    """Model -> how the answer was scored, where it was."""


@dataclass(frozen=True)
class Answers:
    """Answers side by side."""

    name: str
    models: tuple[str, ...]
    prompts: tuple[Asked, ...]


@dataclass(frozen=True)
class Training:
    """Models of one training run."""

    name: str
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """Model -> a record for each step."""
    records: Mapping[str, Mapping[str, Any]]
    """Model -> ``triune.training.json``."""


@dataclass(frozen=True)
class Experiment:
    """A run of ``triune align``."""

    name: str
    summary: Mapping[str, Any]
    """``summary.json``; of an unfinished run only ``accuracy``, from the journal."""
    finished: bool


@dataclass
class Material:
    """Everything that a report is made of."""

    merges: list[Merged] = field(default_factory=list)
    diagnoses: list[tuple[str, Diagnosis]] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What was given, as it is told apart: no path of this machine."""
    notes: list[str] = field(default_factory=list)
    """What is not finished yet, or could not be read."""


def read(paths: Sequence[Path]) -> Material:
    """Recognise and read inputs, in the order given.

    Raises:
        UserError: a path is missing, or nothing that a report can show.
    """
    if not paths:
        raise UserError(f"There is nothing to report on. Give {ACCEPTED}.")
    found = Material()
    for path in dict.fromkeys(_begun(p.resolve()) for p in paths):
        if not path.exists():
            raise UserError(f"There is no {path}. Give {ACCEPTED}.")
        readers = FOLDERS if path.is_dir() else FILES
        if not sum(reader(path, found) for reader in readers):
            if path.suffix == PARTIAL:
                raise UserError(f"{path} is not finished and shows nothing yet: run the same `triune diagnose` again.")
            raise UserError(f"{path} is nothing that a report can show. Give {ACCEPTED}.")
        found.names.append(f"{path.parent.name}/{path.name}" if path.name == store.NAME else path.name)
    return found


def _begun(path: Path) -> Path:
    """``FILE.partial`` where FILE is asked for and only its beginning is there."""
    partial = path.with_name(path.name + PARTIAL) if path.name else path
    return partial if partial.is_file() and not path.exists() else path


# --- folders: each reader says whether it found something ---------------------------------------------------------


def _merged(folder: Path, found: Material) -> bool:
    begun = (folder / ".triune" / "plan.json").is_file()
    lock = _json(folder / "triune.lock.json")
    if not lock and not begun:
        return False
    if not lock:
        told = _json(folder / ".triune" / "plan.json").get("description", "a merge")
        done = len(_lines(folder / ".triune" / "journal.jsonl"))
        found.notes.append(f"{folder.name}: the merge is not finished ({told}; {done} tensors are written so far).")
    recipe = _text(folder / "mergekit_config.yml")
    found.merges.append(Merged(folder.name, lock, recipe, front_matter(folder)))
    return True


def _run(folder: Path, found: Material) -> bool:
    """A run folder of eval or bench: its store, and some of its samples."""
    models = {p.parent: str(_json(p).get("name", p.parent.name)) for p in sorted(folder.glob("*/model.json"))}
    there = _store(folder / store.NAME, found) if (folder / store.NAME).is_file() else False
    if models and not there:
        found.notes.append(f"{folder.name}: no benchmark is finished yet.")
    if prompts := tuple(_samples(models)):
        found.answers.append(Answers(folder.name, tuple(dict.fromkeys(models.values())), prompts))
    return there or bool(models)


def _gaps(name: str, folder: Path, results: Iterable[Result]) -> Iterator[str]:
    """Models of which fewer benchmarks are measured than of all together; settings that were only tried do not count."""
    names, measured, tried = dict[str, str](), dict[str, set[str]](), set[str]()
    for r in results:
        names[r.model.fingerprint] = r.model.name
        if r.split == "tune":
            tried.add(r.model.fingerprint)
        else:
            measured.setdefault(r.model.fingerprint, set()).add(r.benchmark)
    for told in map(_json, sorted(folder.glob("*/model.json"))):  # begun, and perhaps without a result
        if (fingerprint := str(told.get("fingerprint"))) not in tried:
            names.setdefault(fingerprint, str(told.get("name")))
            measured.setdefault(fingerprint, set())
    whole = len(set().union(*measured.values()))
    for fingerprint, own in measured.items():
        if len(own) < whole:
            yield f"{name}: {names[fingerprint]}: {len(own)} of {whole} benchmarks are measured."


def _samples(models: Mapping[Path, str]) -> Iterator[Asked]:
    """The first rows of each benchmark that was answered in words."""
    for benchmark in dict.fromkeys(p.stem for folder in models for p in sorted(folder.glob("samples/*.jsonl"))):
        rows: dict[str, dict[str, Any]] = {}
        for folder, name in models.items():
            for sample in _lines(folder / "samples" / f"{benchmark}.jsonl"):
                if isinstance(sample.get("answer"), str):
                    rows.setdefault(str(sample.get("id")), {})[name] = sample
        for same in list(rows.values())[:ROWS]:
            prompt = _short(_prompt(next(iter(same.values())).get("prompt")))
            answers = {name: _short(s["answer"]) for name, s in same.items()}
            yield Asked(prompt, benchmark, answers, {name: _scored(s) for name, s in same.items()})


def _prompt(prompt: Any) -> str:
    """Bare text, or what the user said last."""
    if isinstance(prompt, list):
        said = [str(m.get("content", "")) for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
        return said[-1] if said else ""
    return str(prompt)


def _scored(sample: Mapping[str, Any]) -> str:
    scores = sample.get("scores")
    return ", ".join(f"{k} {v:g}" for k, v in scores.items()) if isinstance(scores, dict) else ""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} […]"


def _training(folder: Path, found: Material) -> bool:
    """A model of ``triune train``, a folder of them, or a run that has not finished one yet."""
    own = [folder] if (folder / "triune.training.json").is_file() else []
    models = own or sorted(p.parent for p in folder.glob("*/triune.training.json"))
    if models:
        records = {str(_json(p / "triune.training.json").get("name", p.name)): p for p in models}
        curves = {name: _lines(p / "training.jsonl") for name, p in records.items()}
        told = {name: _json(p / "triune.training.json") for name, p in records.items()}
        name = f"{folder.parent.name}/train" if folder.name == "train" else folder.name
        found.trainings.append(Training(name, curves, told))
    elif begun := (folder / "work" / "lock").exists():
        found.notes.append(f"{folder.name}: no model of this training is finished yet.")
        return begun
    return bool(models)


def _experiment(folder: Path, found: Material) -> bool:
    summary, lines = _json(folder / "summary.json"), _lines(folder / "journal.jsonl")
    if "paradigm" not in summary and not ((folder / "lock.json").is_file() and (folder / "config.yaml").is_file()):
        return False
    finished = "paradigm" in summary
    if not finished:
        summary = {"accuracy": {str(i["stage"]): i["accuracy"] for i in lines if i.get("accuracy")}}
        found.notes.append(f"{folder.name}: the experiment is not finished; {len(lines)} of its stages are.")
    found.experiments.append(Experiment(folder.name, summary, finished))
    if (folder / "train").is_dir():
        _training(folder / "train", found)
    return True


def _beside(folder: Path, found: Material) -> bool:
    """Diagnoses and answers that lie in a folder."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".jsonl", PARTIAL) and p.is_file()]
    return sum(_diagnosis(p, found) or _answers(p, found) for p in files) > 0


# --- files --------------------------------------------------------------------------------------------------------


def _store(path: Path, found: Material) -> bool:
    with path.open("rb") as file:
        if file.read(15) != b"SQLite format 3":
            return False
    results = store.read(path)
    name = path.parent.name if path.name == store.NAME else path.stem
    if results:
        found.stores.append(Store(name, results))
        found.notes += _gaps(name, path.parent if path.name == store.NAME else path, results)
    else:
        found.notes.append(f"{name}: the results store is still empty.")
    return True


def _diagnosis(path: Path, found: Material) -> bool:
    """Whole, or ``FILE.partial`` of a diagnosis that is running or was stopped."""
    header, *tensors = _lines(path) if _starts(path, SCHEMA) else [{}]
    if header.get("schema") != SCHEMA:
        return False
    try:
        read_so_far = Diagnosis(header_of(header), tuple(tensor_of(t) for t in tensors))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is a damaged diagnosis. Run `triune diagnose` again.") from None
    if len(tensors) < read_so_far.header.tensors:
        found.notes.append(
            f"{path.name}: the diagnosis is not finished; {len(tensors)} of {read_so_far.header.tensors} tensors are. Run "
            "the same `triune diagnose` again to go on."
        )
    if tensors:
        found.diagnoses.append((path.name, read_so_far))
    return True


def _answers(path: Path, found: Material) -> bool:
    tree = _json(path) if _starts(path, ANSWERS) else {}
    if tree.get("schema") != ANSWERS:
        return False
    try:
        prompts = tuple(
            Asked(str(p["prompt"]), str(p["topic"]), {str(m): _short(str(a)) for m, a in p["answers"].items()})
            for p in tree["prompts"]
        )
        found.answers.append(Answers(path.parent.name or path.stem, tuple(map(str, tree["models"])), prompts))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is a damaged file of answers. Run `triune demo` again.") from None
    return True


Reader = Callable[[Path, Material], bool]
FOLDERS: tuple[Reader, ...] = (_merged, _run, _experiment, _training, _beside)
FILES: tuple[Reader, ...] = (_store, _diagnosis, _answers)


# --- files that may be in the making ------------------------------------------------------------------------------


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    """An object; empty where there is none that can be read."""
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON Lines up to the first that is cut off."""
    found: list[dict[str, Any]] = []
    for line in _text(path).split("\n"):  # not splitlines: an answer may hold any of its other line ends
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
    return found


def _starts(path: Path, schema: str) -> bool:
    """Whether a file names the schema at its beginning: a tokenizer beside it is not read to the end for that."""
    with path.open("rb") as file:
        return schema.encode() in file.read(4000)
