"""Our tasks as lm-eval runs them: :class:`Plain` ones never see the chat template, :class:`Chat` ones demand it.

The YAML files in ``tasks/`` name one of these classes. Beside lm-eval's own keys they hold ``dataset_kwargs`` with

- ``file``: the rows, see :mod:`triune.evals.rows`;
- ``where``: only rows with these values in these columns;
- ``shots``: the file of the examples, the split ``shots``;
- ``alike``: a column; the examples of a row are those with the same value in it.

A run may set, as lm-eval's ``--metadata``, ``data`` (a folder or ``hub``) and ``half`` (``tune`` or ``report``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import Message

from triune.errors import UserError
from triune.evals.rows import HUB, MINI, Row, rows, selected, source
from triune.evals.sandbox import run_python


class OurTask(ConfigurableTask):  # type: ignore[misc]
    """Rows of ours, and a number of examples that no flag changes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={k: v for k, v in config.items() if k != "class"})
        self.shots: int = self.config.num_fewshot

    def download(self, dataset_kwargs: Mapping[str, Any]) -> None:
        """Called by lm-eval when it makes the task."""
        from datasets import Dataset

        run = self.config.metadata
        data, shots = run.get("data"), dataset_kwargs.get("shots")
        found = selected(dataset_kwargs["file"], data, where=dataset_kwargs.get("where"), half=run.get("half"))
        try:
            test = Dataset.from_list(found)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{dataset_kwargs['file']}: the rows make no table: {error}. Give each column one type in all rows."
            ) from None
        self.dataset: dict[str, Any] = {"test": test, "shots": rows(shots, data) if shots else []}
        self.alike: str | None = dataset_kwargs.get("alike")
        folder = source(data)
        run["data"] = "built-in smoke test" if folder == MINI else str(folder or HUB)

    def build_all_requests(self, **how: Any) -> None:
        if self.config.num_fewshot != self.shots:
            raise UserError(
                f"{self.config.task} has {self.shots} examples, got {self.config.num_fewshot}. Leave out --num_fewshot."
            )
        if self.config.unsafe_code:
            run_python("")  # a missing wall should not show only when the model has worked for an hour
        super().build_all_requests(**how | {"cache_requests": False})  # lm-eval's key does not know which rows

    def fewshot_context(self, doc: Row, num_fewshot: int, **how: Any) -> Any:
        if num_fewshot:
            shots, column = self.dataset["shots"], self.alike
            pool = [s for s in shots if s[column] == doc[column]] if column else shots
            if len(pool) < num_fewshot:
                whose = f" with {column} {doc[column]}" if column else ""
                raise UserError(
                    f"{self.config.task} needs {num_fewshot} examples{whose}, but there are {len(pool)}. Add them to the "
                    "file of its examples."
                )
            self.sampler.replace_df(pool)
        return super().fewshot_context(doc, num_fewshot=num_fewshot, **how)


class Plain(OurTask):
    """Bare text, as the benchmark's authors have it, even where the run applies a chat template."""

    def build_all_requests(self, **how: Any) -> None:
        bare = {"apply_chat_template": False, "fewshot_as_multiturn": False, "chat_template": None}
        super().build_all_requests(**how | bare)


class Chat(OurTask):
    """A conversation in the model's own template; the examples are turns of it.

    Raises:
        UserError: when requests are built without the template.
    """

    def build_all_requests(self, **how: Any) -> None:
        if not how.get("apply_chat_template"):
            raise UserError(
                f"{self.config.task} is a conversation and needs the model's chat template: add --apply_chat_template "
                "(in Python: apply_chat_template=True). Tasks that want bare text do not use it even so."
            )
        super().build_all_requests(**how | {"fewshot_as_multiturn": True})


class Transcript(Chat):
    """Earlier turns stand in the prompt, each after an empty line and ``Human:`` or ``Assistant:``."""

    def build_qa_turn(self, *, q: str, **how: Any) -> Any:
        first, *later = re.split(r"\s*\n\n(Human|Assistant):\s*", q)
        turns = [Message("user", first)]
        for who, text in zip(later[::2], later[1::2], strict=True):
            turns.append(Message("user" if who == "Human" else "assistant", text))
        return [*turns[:-1], *super().build_qa_turn(q=turns[-1].content, **how)]


class SecondTurn(Chat):
    """Goes on where the answers to ``turns[0]`` ended: they are an example of their own row.

    They are read from lm-eval's logged samples of the first task, which the run names as the metadata ``first_turn``.
    """

    def download(self, dataset_kwargs: Mapping[str, Any]) -> None:
        from datasets import Dataset

        super().download(dataset_kwargs)
        said = _first_answers(self.config.metadata.get("first_turn"), self.config.task)
        # Without an answer there would be no turn of the assistant, and most templates want one.
        found = [{**row, "said": said[row["id"]] or " "} for row in self.dataset["test"] if row["id"] in said]
        if not found:
            raise UserError(f"{self.config.task}: first_turn has no answer to any of its rows. Use the same data.")
        self.dataset |= {"test": Dataset.from_list(found), "shots": found}


def _first_answers(path: str | None, task: str) -> dict[str, str]:
    """Row id -> answer."""
    if path is None:
        raise UserError(
            f"{task} needs the answers to the first turn: run triune_mt_bench with --log_samples first, and name its "
            "samples_triune_mt_bench_*.jsonl by --metadata first_turn=FILE."
        )
    try:
        samples = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
        return {s["doc"]["id"]: s["filtered_resps"][0] for s in samples}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: these are no samples of lm-eval: {error!r}. Name the file of triune_mt_bench."
        ) from None
