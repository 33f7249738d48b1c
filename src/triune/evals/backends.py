"""Where models run: transformers here, vLLM here, or an OpenAI-compatible endpoint. Each lends lm-eval a model at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from triune.checkpoint.index import Checkpoint, open_checkpoint
from triune.checkpoint.lora import open_adapter
from triune.checkpoint.ref import ModelRef
from triune.checkpoint.swap import swapped
from triune.engine.cores import pick_device
from triune.errors import UserError, did_you_mean
from triune.evals.harness import hushed
from triune.evals.models import Candidate, Weights

NAMES = ("hf", "vllm", "openai")

VARIES: tuple[str, ...] = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
VARIES += ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a config.json that change nothing in what a loaded model computes."""


class Backend(Protocol):
    """What lends models."""

    name: str
    dtype: str
    chat_only: bool
    """Whether it takes conversations only: no bare text, no likelihoods."""

    def opened(self, candidate: Candidate, weights: Weights | None) -> AbstractContextManager[Any]:
        """lm-eval's view of a model, for as long as the block lasts.

        Args:
            weights: where they are by now; None at an endpoint.
        """
        ...


def make(
    name: str,
    *,
    device: str = "auto",
    batch: int | None = None,
    seed: int = 0,
    url: str | None = None,
    remote: bool = False,
) -> Backend:
    """
    Args:
        remote: the device is another machine's, and is not looked for here.

    Raises:
        UserError: there is no such back end, or the device or the URL does not go with it.
    """
    if name not in NAMES:
        raise UserError(f"--backend must be one of {', '.join(NAMES)}, got {name!r}.{did_you_mean(name, NAMES)}")
    if (url is None) == (name == "openai"):
        rule = "needs --url, such as http://localhost:8000/v1/completions" if url is None else "takes no --url"
        raise UserError(f"--backend {name} {rule}.")
    if name == "openai":
        assert url is not None
        return Endpoint(url, batch, seed)
    return Vllm(batch, seed) if name == "vllm" else Transformers(device if remote else pick_device(device), batch)


class Transformers:
    """One model in memory; others of its shapes, and adapters, are swapped in. float32 on a CPU, bfloat16 on a GPU."""

    name = "hf"
    chat_only = False

    def __init__(self, device: str, batch: int | None) -> None:
        self.device, self.batch = device, batch
        self.dtype = "float32" if device == "cpu" else "bfloat16"
        self.model: Any = None
        self.base: Checkpoint | None = None
        """Of the model in memory."""

    @contextmanager
    def opened(self, candidate: Candidate, weights: Weights | None) -> Iterator[Any]:
        from transformers import AutoTokenizer, GenerationConfig

        from triune.evals.lm import FrugalLM

        assert weights is not None
        name = candidate.model.name
        wanted = open_checkpoint(weights.folder, name)
        if self.base is None or not _alike(self.base, wanted):
            self._load(wanted)
        assert self.base is not None
        with ExitStack() as stack:
            if wanted.folder != self.base.folder:
                stack.enter_context(swapped(self.model, self.base, wanted.folder, name))
            if weights.adapter is not None:
                stack.enter_context(swapped(self.model, wanted, weights.adapter, name))
            with hushed():
                if (wanted.folder / "generation_config.json").exists():
                    self.model.generation_config = GenerationConfig.from_pretrained(wanted.folder)
                else:
                    self.model.generation_config = GenerationConfig.from_model_config(self.model.config)
                tokenizer = AutoTokenizer.from_pretrained(wanted.folder)
                lm = FrugalLM(self.model, tokenizer, self.batch)
            yield lm

    def _load(self, wanted: Checkpoint) -> None:
        import torch

        from triune.scorers.logprobs import load_weights
        from triune.scorers.memory import memory_advice, release

        self.model = self.base = None
        release()
        with memory_advice(
            f"Out of memory while {wanted.reference} was loaded", "Take a smaller model or --device cpu."
        ):
            model = load_weights(ModelRef(wanted.reference, wanted.folder), getattr(torch, self.dtype))
            self.model = model.to(self.device).eval()
        self.base = wanted


def _alike(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether one model computes as the other once it has its weights."""

    def form(model: Checkpoint) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        config = {key: value for key, value in model.config.items() if key not in VARIES}
        return config, {name: info.shape for name, info in model.tensors.items()}

    return form(one) == form(other)


class Vllm:
    """A vLLM engine for each model; an adapter runs on its base's."""

    name = "vllm"
    dtype = "bfloat16"
    chat_only = False

    def __init__(self, batch: int | None, seed: int) -> None:
        self.batch, self.seed = batch, seed

    @contextmanager
    def opened(self, candidate: Candidate, weights: Weights | None) -> Iterator[Any]:
        assert weights is not None
        lora: dict[str, Any] = {}
        if weights.adapter is not None:
            base = open_checkpoint(weights.folder, candidate.reference)
            rank = open_adapter(weights.adapter, candidate.reference, base).rank
            lora = {"lora_local_path": str(weights.adapter), "max_lora_rank": max(16, rank)}
        with hushed():
            lm = _lm_eval_model("vllm", "vllm")(
                pretrained=str(weights.folder),
                dtype=self.dtype,
                batch_size=self.batch or "auto",
                seed=self.seed,
                **lora,
            )
        try:
            yield lm
        finally:
            del lm
            gc.collect()


class Endpoint:
    """``/v1/completions``, or ``/v1/chat/completions`` for conversations only. The key is ``OPENAI_API_KEY``."""

    name = "openai"
    dtype = "as served"

    def __init__(self, url: str, batch: int | None, seed: int) -> None:
        self.url, self.batch, self.seed = url, batch, seed
        self.chat_only = url.rstrip("/").endswith("/chat/completions")
        if not url.startswith(("http://", "https://")) or not url.rstrip("/").endswith("/completions"):
            raise UserError(f"--url must end in /v1/completions or /v1/chat/completions, got {url}.")

    @contextmanager
    def opened(self, candidate: Candidate, weights: Weights | None) -> Iterator[Any]:
        kind = "local-chat-completions" if self.chat_only else "local-completions"
        with hushed():
            lm = _lm_eval_model(kind, "tenacity")(
                model=candidate.reference,
                base_url=self.url,
                num_concurrent=self.batch or 8,
                seed=self.seed,
                max_retries=5,
            )
        yield lm


def _lm_eval_model(kind: str, package: str) -> Any:
    from importlib.util import find_spec

    from lm_eval.api.registry import get_model

    if find_spec(package) is None:
        extra = "vllm" if package == "vllm" else "api"
        raise UserError(f'This needs {package}, which is not installed. Run: pip install "lm-eval[{extra}]"')
    return get_model(kind)
