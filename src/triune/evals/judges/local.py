"""A guard in this process, through transformers; or its tokenizer here and its weights behind a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from triune.checkpoint.identity import identity
from triune.checkpoint.quiet import quiet
from triune.checkpoint.ref import resolve_reference
from triune.errors import UserError
from triune.evals.judges.guards import Writer, find_format
from triune.evals.judges.http import Client, Endpoint
from triune.evals.judges.reply import Body, Judge, Outcome, Problem, Reply

BATCH = 8


def guard(reference: str, form: str, *, endpoint: Endpoint | None = None, device: str = "auto") -> Judge:
    """The judge ``guard:NAME``.

    Args:
        reference: a folder or ``org/name@revision``. With an endpoint only its small files are needed here.
        form: its format, a key of :data:`triune.evals.judges.guards.FORMATS`.
        endpoint: where the guard is served (``/completions``), instead of in this process.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.

    Raises:
        UserError: there is no such model or format, or the model is not of it.
    """
    from transformers import AutoTokenizer

    found, known = resolve_reference(reference), find_format(form)
    if found.folder is None or found.adapter is not None:
        raise UserError(f"{reference}: a guard is a full model, and this is an adapter. Merge it into its base first.")
    folder = found.folder
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises anything where files are missing or damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{reference}: its tokenizer cannot be loaded: {reason} Is it all there?") from None
    revision = found.hub[1] if found.hub else identity(folder)[:16]
    name = found.hub[0] if found.hub else folder.name
    writer = Writer(known, tokenizer, folder)
    if endpoint is not None:
        where, answer = endpoint.url, Client(endpoint).answer
    else:
        where, answer = "this machine", LocalModel(found.fetch, folder, tokenizer, device).answer
    return Judge(f"guard:{name}", f"guard:{form}:{name}@{revision}", where, writer, answer)


class LocalModel:
    """Answers requests of token ids, greedily. The model loads with the first."""

    def __init__(self, fetch: Callable[[], None], folder: Path, tokenizer: Any, device: str) -> None:
        self._fetch, self._folder, self._tokenizer, self._device = fetch, folder, tokenizer, device
        self._model: Any = None

    def answer(self, bodies: Sequence[Body]) -> Iterator[tuple[int, Outcome]]:
        """Batches hold requests of like length, the longest first, so that too little memory shows at once."""
        if bodies and self._model is None:
            self._load()
        order = sorted(range(len(bodies)), key=lambda i: len(bodies[i]["prompt"]), reverse=True)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            yield from zip(places, self._generate([bodies[i] for i in places]), strict=True)

    def _load(self) -> None:
        import torch
        import transformers

        self._fetch()
        device = self._device if self._device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        with quiet():
            config = transformers.AutoConfig.from_pretrained(self._folder)
            kind = getattr(transformers, config.architectures[0])  # Llama Guard 4 is no plain causal model
            dtype = torch.float32 if device == "cpu" else "auto"  # bfloat16 crawls on many CPUs
            self._model = kind.from_pretrained(self._folder, dtype=dtype).eval().to(device)

    def _generate(self, bodies: Sequence[Body]) -> list[Outcome]:
        """One batch."""
        import torch
        from transformers import GenerationConfig

        model, tokenizer = self._model, self._tokenizer
        prompts, most = [list(b["prompt"]) for b in bodies], max(b["max_tokens"] for b in bodies)
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        width = max(map(len, prompts))
        if width + most > room:
            if len(bodies) == 1:
                return [Problem(f"it has {width} tokens, and with its reply the guard takes {room}", lasting=True)]
            return [outcome for body in bodies for outcome in self._generate([body])]
        end = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id} | set(end if isinstance(end, list) else [end])
        pad = tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        greedy = GenerationConfig(
            max_new_tokens=most, do_sample=False, eos_token_id=sorted(ends - {None}), pad_token_id=pad
        )
        with torch.no_grad(), quiet():
            rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)[:, width:].tolist()
        replies: list[Outcome] = []
        for prompt, row in zip(prompts, rows, strict=True):
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            said = row[:stop]
            text = tokenizer.decode(said, skip_special_tokens=True)
            finish = "length" if stop is None else "stop"
            replies.append(Reply(text, finish, None, len(prompt), len(said), self._folder.name))
        return replies
