"""Our model class gives the answers of lm-eval's, in smaller batches and fewer steps."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from triune.evals.choices import Row, lay_out
from triune.evals.harness import hushed
from triune.evals.lm import Ended, FrugalLM
from triune.testing.chat import LETTERS, toy_tokenizer

if TYPE_CHECKING:
    from conftest import Chats


@pytest.fixture(scope="module")
def model(chats: Chats) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chats.base, dtype=torch.float32).eval()


@pytest.fixture
def ours(model: Any) -> Iterator[FrugalLM]:
    with hushed():
        yield FrugalLM(model, toy_tokenizer())


@pytest.fixture
def theirs(model: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=toy_tokenizer(), batch_size=1)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    metadata = ("task", 0, 1)
    return [Instance(kind, {}, a, n, metadata=metadata) for n, a in enumerate(arguments)]


def texts(count: int, longest: int, seed: str) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(LETTERS[1:], k=chance.randint(1, longest))) for _ in range(count)]


# --- choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 150, 10_000], ids="at most {} tokens at once".format)
def test_likelihoods_are_those_of_lm_eval(ours: FrugalLM, theirs: HFLM, tokens: int) -> None:
    """Prompts of 1 to 120 tokens, each with choices of one token, which share a pass, and of many."""
    ours.tokens = tokens
    prompts, choices = texts(12, 120, "prompts"), ["A", "B", *texts(3, 9, "choices")]
    requests = asked("loglikelihood", *((p, c) for p in prompts for c in choices))
    with hushed():
        mine, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in wanted]
    assert len({round(ll, 3) for ll, _ in mine}) == len(requests)  # no two of them by mistake the same


def test_a_true_token_that_looks_like_padding(ours: FrugalLM, theirs: HFLM) -> None:
    """lm-eval pads with 0, which is the toy's <unk>, and é is one."""
    requests = asked("loglikelihood", ("short", "éé"), ("é", "é"), ("a prompt that is longer than the others", "yes"))
    assert ours.tok_encode("é") == [0]
    with hushed():
        mine, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in wanted], abs=1e-3)


def test_logits_are_made_of_what_is_needed(ours: FrugalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 30 + 2 and 10 + 2 tokens, less the last: 20 of padding and 2 of the choice make 22 positions."""
    kept: list[int] = []
    forward = ours.model.forward

    def watched(ids: Any, **how: Any) -> Any:
        kept.append(how["logits_to_keep"])
        return forward(ids, **how)

    monkeypatch.setattr(ours.model, "forward", watched)
    with hushed():
        ours.loglikelihood(asked("loglikelihood", ("p" * 30, "ab"), ("q" * 10, "ab")))
    assert kept == [22]  # one choice each: nothing to share


def test_a_prompt_is_read_once(ours: FrugalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 tokens and three choices of 4, whose last is only predicted: 30 + 3 * 3 tokens, and not 3 * 33."""
    read: list[tuple[int, ...]] = []
    forward = ours.model.forward

    def watched(input_ids: Any, **how: Any) -> Any:
        read.append(tuple(input_ids.shape))
        return forward(input_ids, **how)

    monkeypatch.setattr(ours.model, "forward", watched)
    prompts = ["p" * 30, "q" * 20]
    with hushed():
        ours.loglikelihood(asked("loglikelihood", *((p, c) for p in prompts for c in ("abcd", "efgh", "ijkl"))))
    trial = [(3, 33), (1, 39)]  # the longest row both ways, to see whether they agree
    assert read == [*trial, (2, 39)]


def family(kind: str) -> Any:
    """Small models in which a token's place is known in other ways, or in which it sees less."""
    import transformers as t

    torch.manual_seed(0)
    form = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 112}
    form |= {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
    if kind == "gpt2":  # learned places, other names
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=112, n_positions=256))
    elif kind == "mistral":
        model = t.MistralForCausalLM(t.MistralConfig(**form, sliding_window=8))
    elif kind == "gemma3":  # a window in every other layer
        kinds = ["sliding_attention", "full_attention"]
        model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**form, head_dim=8, sliding_window=8, layer_types=kinds))
    else:
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**form, head_dim=8))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.4)
    return model.eval()


@pytest.mark.parametrize(("kind", "at_once"), [("gpt2", True), ("qwen3", True), ("mistral", False), ("gemma3", False)])
def test_other_families(kind: str, at_once: bool) -> None:
    """What reads a row in one pass as it reads it in several is let; what does not is asked in lm-eval's way."""
    with hushed():
        model = family(kind)
        ours, theirs = FrugalLM(model, toy_tokenizer()), HFLM(pretrained=model, tokenizer=toy_tokenizer())
        requests = asked("loglikelihood", *((p, c) for p in texts(6, 90, kind) for c in texts(4, 20, "choices")))
        mine, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests)
        assert len({round(ll, 3) for ll, _ in mine}) == len(requests)
        prompt, *choices = map(ours.tok_encode, ("p" * 90, *texts(4, 20, "choices")))
        assert ours._agrees(Row(prompt, choices)) is at_once
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in wanted]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), min_size=1, max_size=9),
            st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_choice_sees_its_prompt_and_itself(rows: list[tuple[list[int], list[list[int]]]]) -> None:
    """Followed back along the mask, the token before any of a choice's is the prompt and the choice so far, in order."""
    batch = lay_out([Row(*row) for row in rows])
    width = batch.ids.shape[1]
    for b, (prompt, choices) in enumerate(rows):
        at = 0
        for choice in choices:
            for n in range(len(choice)):
                column = width - batch.kept + (0 if n == 0 else at + n)
                seen = batch.seen[b, 0, column].nonzero()[:, 0]
                assert batch.ids[b, seen].tolist() == [*prompt, *choice[:n]]
                assert batch.positions[b, seen].tolist() == list(range(len(prompt) + n))
            at += len(choice) - 1


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40), tokens=st.integers(1, 300))
def test_no_batch_is_too_large(lengths: list[int], tokens: int) -> None:
    """Each row counts as the longest of its batch; a row that is too long by itself is alone."""
    requests = [(("", ""), [1] * (n - 1), [1]) for n in lengths]
    lm = SimpleNamespace(tokens=tokens, first=0)
    ordered = Collator(requests, sort_fn=lambda r: -len(r[1]))
    batches = list(ordered.get_batched(batch_fn=lambda i, rows: FrugalLM._batch_scheduler(lm, i, rows)))
    sizes = [[len(prompt) + len(choice) for _, prompt, choice in batch] for batch in batches]
    assert sorted(n for batch in sizes for n in batch) == sorted(lengths)
    for batch, following in zip(sizes, [*sizes[1:], None], strict=True):
        assert len(batch) == 1 or max(batch) * len(batch) <= tokens
        assert following is None or max(batch) * (len(batch) + 1) > tokens  # nor smaller than it could be


# --- answers ----------------------------------------------------------------------------------------------------


def until(*stop: str, tokens: int = 24) -> dict[str, Any]:
    return {"until": list(stop), "max_gen_toks": tokens, "do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize("stop", [(), ("o", "P"), ("h", "b", "Zq")], ids=str)
def test_answers_are_those_of_lm_eval(ours: FrugalLM, theirs: HFLM, stop: tuple[str, ...]) -> None:
    """Of no letter in the name of a control token: that ends lm-eval's answers if they are asked one by one."""
    requests = asked("generate_until", *((p, until(*stop)) for p in texts(20, 60, "prompts")))
    with hushed():
        mine, wanted = ours.generate_until(requests), theirs.generate_until(requests)
    assert mine == wanted
    assert len(set(mine)) > 10
    if stop:
        assert not any(s in answer for s in stop for answer in mine)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "mistral", "gemma3"])
def test_a_shared_beginning_is_read_once(kind: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 tokens that all prompts share, and 1 to 30 of their own: the longest row after the shared ones is read."""
    model = model if kind == "llama" else family(kind)
    with hushed():
        ours, theirs = FrugalLM(model, toy_tokenizer()), HFLM(pretrained=model, tokenizer=toy_tokenizer())
    read: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, a, k: read.append((*a, k.get("input_ids"))[0].shape), with_kwargs=True)
    prompts = ["x" * 40 + text for text in texts(8, 30, "own")]
    requests = asked("generate_until", *((p, until("o", tokens=12)) for p in prompts))
    with hushed():
        mine = ours.generate_until(requests)
        first = [tuple(shape) for shape in read[:2]]
        wanted = theirs.generate_until(requests)
    assert mine == wanted
    assert len(set(mine)) > 4
    own = max(map(len, prompts)) - 40
    assert first == ([(1, 40), (8, own)] if kind in ("llama", "gpt2", "qwen3") else [(8, own + 40), (8, 1)])


def test_a_batch_ends_with_its_last_answer(ours: FrugalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two answers one says the first stop string and the other the second: lm-eval would go on to the limit."""
    free = until(tokens=16)
    prompts = texts(30, 30, "prompts")
    with hushed():
        said = ours.generate_until(asked("generate_until", *((p, free) for p in prompts)))
    first = next(i for i, answer in enumerate(said) if len(set(answer[:4])) == 4)
    second = next(i for i, a in enumerate(said) if a[0] != said[first][0] and said[first][1] not in a and i != first)
    lengths: list[int] = []
    generate = ours.model.generate

    def watched(**how: Any) -> torch.Tensor:
        out: torch.Tensor = generate(**how)
        lengths.append(out.shape[1] - how["input_ids"].shape[1])
        return out

    monkeypatch.setattr(ours.model, "generate", watched)
    stop = until(said[first][1], said[second][0], tokens=16)
    with hushed():
        ours.generate_until(asked("generate_until", (prompts[first], stop), (prompts[second], stop)))
    assert lengths[0] < 16


def test_how_an_answer_ended(ours: FrugalLM) -> None:
    """With its stop string or EOS, or where it was cut."""
    prompts, heard = texts(40, 60, "prompts"), dict[str, str]()
    ours.set_cache_hook(SimpleNamespace(add_partial=lambda k, r, a: heard.update({r[0]: ours.ends.pop(0)})))

    def say(*stop: str) -> tuple[list[str], list[str]]:
        with hushed():
            said = ours.generate_until(asked("generate_until", *((p, until(*stop, tokens=8)) for p in prompts)))
        return said, [heard[p] for p in prompts]

    free, ends = say()
    stop = next(a[2] for a, end in zip(free, ends, strict=True) if end == "length")
    cut, ends_with_stop = say(stop)
    expected = ["stop" if stop in a else end for a, end in zip(free, ends, strict=True)]
    assert ends_with_stop == expected
    assert {*expected} == {"stop", "length"}
    assert cut == [a.split(stop)[0] for a in free]


def test_stop_strings_by_hand() -> None:
    """a b | c: the first row says "bc" only with its last token, the second has said it three tokens ago."""
    tokenizer = toy_tokenizer()
    ended = Ended(tokenizer, ["bc", ""], start=2)

    def seen(*rows: str) -> list[bool]:
        ids = torch.tensor([tokenizer.encode(r, add_special_tokens=False) for r in rows])
        found: list[bool] = ended(ids, None).tolist()
        return found

    assert seen("bcb", "bcx") == [False, False]  # the prompt's own does not count
    assert seen("bcbc", "bcbc") == [True, True]
    assert seen("bcbcxxxxxxx", "bcbcxxxxxxx") == [True, True]
    assert ended.tail == 4


def test_control_tokens_end_an_answer_and_their_letters_do_not() -> None:
    """<|im_end|> is one token that text leaves out; the stop string "im" is not in it."""
    tokenizer = toy_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = torch.tensor([[*tokenizer.encode("a", add_special_tokens=False), end]])
    assert Ended(tokenizer, ["im"], start=0)(ids, None).tolist() == [False]
    assert Ended(tokenizer, ["<|im_end|>"], start=0)(ids, None).tolist() == [True]
    assert Ended(tokenizer, ["<|im_end|>"], start=2)(ids, None).tolist() == [False]


def test_prompts_that_are_cut_are_counted(ours: FrugalLM) -> None:
    ours._max_length = 40
    with hushed():
        ours.generate_until(asked("generate_until", ("p" * 33, until(tokens=8)), ("p" * 32, until(tokens=8))))
        assert ours.cut == 1  # 40 - 8 = 32 are read
        ours.loglikelihood(asked("loglikelihood", ("p" * 40, "ab"), ("p" * 40, "cd"), ("p" * 39, "ab")))
    assert ours.cut == 2  # 40 + 1 tokens: the last of them is not read; both choices are of one prompt


def test_memory_of_a_batch_is_limited(model: Any) -> None:
    """2^27 logits of 4 bytes are 0.5 GB: 1,198,372 tokens for 112 words."""
    with hushed():
        lm = FrugalLM(model, toy_tokenizer())
    assert lm.tokens == math.floor(2**27 / 112)
    assert lm.batch_size == "auto"
    with hushed():
        assert FrugalLM(model, toy_tokenizer(), 3).batch_size == 3


def test_nothing_is_printed(ours: FrugalLM, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with hushed():
        ours.generate_until(asked("generate_until", ("p", until(tokens=2))))
        ours.loglikelihood(asked("loglikelihood", ("p", "a")))
    assert capfd.readouterr() == ("", "")
