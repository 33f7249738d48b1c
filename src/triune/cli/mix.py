"""``triune mix``"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from triune.cli._cluster import Address, Executor, executor_of
from triune.cli._options import AsJson, Quiet


def mix(
    rule: Annotated[str, typer.Argument(help="heuristic, armorm or hummer; docs/mixtures.md says what they do.")],
    sources: Annotated[list[str], typer.Argument(help="Files, folders or hub datasets of preference pairs.")],
    budget: Annotated[int, typer.Option("--budget", "-B", help="Pairs to choose.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write, NAME.jsonl; NAME.manifest.json goes beside it.")
    ],
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another sample.")] = 0,
    dimension: Annotated[
        list[str] | None,
        typer.Option("--dimension", "-d", help="Choose from this dimension; repeat. All if not given."),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option("--scorer", help="implicit, armorm, or precomputed if the pairs have rewards already.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", "-b", help="implicit: what the specialists were trained from. match_tokens: whose tokens."
        ),
    ] = None,
    specialist: Annotated[
        list[str] | None, typer.Option("--specialist", help="implicit: DIMENSION=MODEL; one for each dimension.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="armorm: the reward model, if not the usual one.")
    ] = None,
    rewards: Annotated[Path | None, typer.Option("--rewards", help="precomputed: JSONL with id and rewards.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Folder that keeps the scores for other runs; NAME.scores if not given."),
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Tokens that a scorer reads.")] = None,
    broken: Annotated[str, typer.Option("--broken", help="Rows that are no pairs: stop there, or skip them.")] = "stop",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="KEY=VALUE: a parameter of the rule, such as kappa=1; repeat."),
    ] = None,
    executor: Executor = "local",
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choose preference pairs for a balanced data mixture.

    `triune mix heuristic pairs/ --budget 600 -o mix.jsonl` takes as many of each dimension. armorm and hummer choose by
    rewards, which the pairs have or a scorer gives:

    `triune mix armorm pairs/ -B 600 -o mix.jsonl --base demo:base --specialist honesty=demo:honest ...`

    The same command gives the same bytes. Scoring that was stopped continues.
    """
    import json

    from triune.cli._show import Bar, console
    from triune.errors import ParameterError, UserError
    from triune.mixtures import find
    from triune.mixtures.manifest import read_manifest, write_mixture
    from triune.mixtures.mixture import candidates
    from triune.mixtures.mixture import mix as choose

    parameters = _settings(setting or [])
    find(rule).check(rule, parameters)
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: the output is a file of JSON Lines. Let its name end with .jsonl.")
    if broken not in ("stop", "skip"):
        raise UserError(f"--broken must be stop or skip, got {broken!r}.")
    pool, skipped, inputs = _read(sources, broken)
    groups = candidates(pool, rule, budget=budget, dimensions=dimension, **parameters)
    pairs = [pair for group in groups.values() for pair in group]
    used: str | None = None
    if find(rule).needs_rewards:
        used = scorer or ("implicit" if specialist or not (rewards or all(p.rewards for p in pairs)) else "precomputed")
        kept = scores or out.with_suffix(".scores")
        score = _scorer(used, base, specialist or [], model, rewards, max_length, kept)
        if used == "precomputed" and executor != "local":
            raise UserError(
                "The pairs have their rewards already: there is nothing for --executor to do. Leave it out."
            )
        with executor_of(executor, address, kept, alone=True) as runs, Bar(quiet) as bar:
            scored = score(pairs, bar, **({"executor": runs, "device": runs.device} if runs else {}))
    else:
        if executor != "local" or scorer or specialist or rewards:
            raise ParameterError(
                f"The rule {rule} needs no rewards. Drop --scorer, --specialist, --rewards and --executor."
            )
        scored = pairs
        if "match_tokens" in parameters and base:
            parameters["tokens"] = _tokens(base, pairs)
    left_out = len(pairs) - len(scored)
    mixture = choose(scored, rule, budget=budget, seed=seed, **parameters)
    write_mixture(mixture, out, scorer=used, inputs=inputs, broken=len(skipped), too_long=left_out)
    if as_json:
        print(json.dumps({"out": str(out), **read_manifest(out)}))
    elif not quiet:
        if skipped:
            told = (
                f"{len(skipped)} rows are no pairs and were left out. First: {skipped[0].place}: {skipped[0].sentence}"
            )
            console.print(told, soft_wrap=True, markup=False)
        if left_out:
            console.print(f"{left_out} of {len(pairs)} pairs are too long to score and were left out.")
        shares = ", ".join(f"{n} of {mixture.pool_counts[d]} {d}" for d, n in mixture.counts.items())
        console.print(f"{out}: {len(mixture.pairs)} pairs by {rule}: {shares}.", soft_wrap=True, markup=False)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """``kappa=1`` and ``ratios.honesty=2`` to parameters."""
    from triune.errors import ParameterError
    from triune.recipes.yaml import read_yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, inner = key.partition(".")
        if not name or not equals or (dot and not (inner and isinstance(found.setdefault(name, {}), dict))):
            raise ParameterError(f"--set {text}: write key=value, as in --set kappa=1 or --set ratios.honesty=2.")
        parsed = read_yaml(value, f"--set {key}").tree
        if dot:
            found[name][inner] = parsed
        else:
            found[name] = parsed
    return found


def _read(sources: Sequence[str], broken: str) -> tuple[list[Any], list[Any], list[tuple[str, str]]]:
    """The pairs of all sources; the rows that are none; and what they were read from with its hash: files, or the pairs of a
    hub dataset.
    """
    from triune.data.load import Source, read, refuse_doubles, stopped_by
    from triune.data.pairs import Pair, digest, to_bytes
    from triune.data.rows import TIE, files_of

    refuse_doubles([Source(path) for path in sources])
    pool: list[Any] = []
    skipped: list[Any] = []
    inputs: list[tuple[str, str]] = []
    for path in sources:
        pairs = []
        for one in read(Source(path)):
            if isinstance(one, Pair):
                pairs.append(one)
            elif one.kind != TIE:
                if broken == "stop":
                    raise stopped_by(one)
                skipped.append(one)
        files = files_of(path)
        inputs += [(f.name, digest(f.read_bytes())) for f in files] if files else [(path, digest(to_bytes(pairs)))]
        pool += pairs
    return pool, skipped, inputs


def _scorer(
    name: str,
    base: str | None,
    specialists: Sequence[str],
    model: str | None,
    rewards: Path | None,
    max_length: int | None,
    kept: Path,
) -> Callable[..., list[Any]]:
    """The scorer with what the flags say about it, as a function of pairs, a listener, and what says where it runs."""
    from triune.errors import UserError
    from triune.scorers import find

    score = find(name)
    flags = {
        "--specialist": (specialists, "implicit"),
        "--model": (model, "armorm"),
        "--rewards": (rewards, "precomputed"),
    }
    if unread := [flag for flag, (value, reader) in flags.items() if value and reader != name]:
        raise UserError(f"{unread[0]} says nothing to the scorer {name}. Drop it, or choose another with --scorer.")
    if name == "precomputed":
        return lambda pairs, listener: list(score(pairs, rewards=rewards))
    settings: dict[str, Any] = {"journal": kept} | ({"max_length": max_length} if max_length else {})
    if name == "armorm":
        settings |= {"model": model} if model else {}
    else:
        if not base or not specialists:
            raise UserError(
                "This rule chooses by rewards, which the pairs do not have. Give --base MODEL and one --specialist "
                "DIMENSION=MODEL for each dimension, --scorer armorm, or --rewards FILE."
            )
        named = [text.partition("=") for text in specialists]
        if bad := [text for text, (d, _, ref) in zip(specialists, named, strict=True) if not d or not ref]:
            raise UserError(f"--specialist {bad[0]}: write DIMENSION=MODEL, as in honesty=demo:honest.")
        settings |= {"base": base, "specialists": {d: ref for d, _, ref in named}}
    return lambda pairs, listener, **where: list(score(pairs, listener=listener, **where, **settings))


def _tokens(base: str, pairs: Sequence[Any]) -> dict[str, int]:
    """Pair id -> the tokens that a training step reads."""
    from triune.data.tokens import load_encoder

    encoder = load_encoder(base)
    return {pair.id: encoder(pair).tokens for pair in pairs}
