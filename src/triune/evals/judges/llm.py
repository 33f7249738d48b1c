"""A language model behind a URL as a judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triune.evals.judges import Rubric
from triune.evals.judges.http import Client, Endpoint
from triune.evals.judges.reply import Body, Judge

SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1024}


def language_model(endpoint: Endpoint, settings: Mapping[str, Any] | None = None) -> Judge:
    """The judge ``llm:NAME``.

    It is known to the cache by the model's name and not by the URL, so that a server that has moved need not judge again.

    Args:
        settings: of each request besides :data:`SETTINGS`, which they change; None takes one out.
    """

    def body(question: str, rubric: Rubric) -> Body:
        chosen = {**SETTINGS, **(rubric.request or {}), **(settings or {})}
        kept = {name: value for name, value in chosen.items() if value is not None}
        return {**kept, "messages": [{"role": "user", "content": question}]}

    return Judge(f"llm:{endpoint.model}", f"llm:{endpoint.model}", endpoint.url, body, Client(endpoint).answer)
