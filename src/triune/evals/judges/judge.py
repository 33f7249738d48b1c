"""The pass itself: samples to requests, replies from the cache or the judge, scores from the replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triune.errors import Interrupted, UserError
from triune.evals.judges import Rubric
from triune.evals.judges.cache import Cache, key_of
from triune.evals.judges.reply import Body, Judge, Problem, Reply, Usage, usage
from triune.evals.judges.samples import Sample
from triune.progress import Advanced, Finished, Listener, Started, silent

GIVE_UP = 3
"""So many requests in a row that fail after all tries: the judge is gone."""

Requests = Mapping[str, Sequence[tuple[str, Body]]]
"""Sample id -> its requests, each with its key in the cache."""


@dataclass(frozen=True)
class Pass:
    """What is to be judged: samples of one benchmark, the rubric for them, and where replies are kept."""

    samples: Sequence[Sample]
    rubric: Rubric
    judge: Judge
    cache: Cache

    def requests(self) -> Requests:
        """Of each sample, with the keys of the cache."""
        found = {}
        for sample in self.samples:
            bodies = [self.judge.body(question, self.rubric) for question in self.rubric.ask(sample)]
            found[sample.id] = [(key_of(self.judge.key, self.rubric.version, body), body) for body in bodies]
        return found

    def missing(self, requests: Requests) -> dict[str, tuple[str, Body]]:
        """What the judge has not answered yet: key -> (a sample's id, the request)."""
        return {key: (name, body) for name, row in requests.items() for key, body in row if key not in self.cache}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of a pass."""

    scores: Mapping[str, float]
    """Sample id -> score in [0, 1], of those with a verdict."""
    unparsed: tuple[str, ...]
    """Samples of which a reply holds no verdict."""
    refused: Mapping[str, str]
    """Samples that the server would not judge, and why: a content filter, or too long."""
    failed: Mapping[str, str]
    """Samples that got no reply after all tries, and why: another run asks again."""
    requests: int
    """Sent by this run."""
    spent: Usage
    """By this run."""
    usage: Usage
    """By all runs whose replies count here."""
    models: tuple[str, ...]
    """Who answered, by their own account."""


def judge(todo: Pass, listener: Listener = silent) -> Judged:
    """Ask what is not known yet, keep each reply as it comes, and score.

    A run that was killed at any point continues where it was: its replies are in the cache.

    Raises:
        UserError: the judge will not serve any request.
        Interrupted: it has stopped answering; what it said is kept.
    """
    requests = todo.requests()
    missing, fresh = todo.missing(requests), 0
    problems: dict[str, Problem] = {}
    spent: list[Reply] = []
    if missing:
        total = len({key for row in requests.values() for key, _ in row})
        listener(Started("judge", total=total, done=total - len(missing), unit="requests"))
        keys, in_a_row = list(missing), 0
        for place, outcome in todo.judge.answer([body for _, body in missing.values()]):
            name = missing[keys[place]][0]
            fresh += 1
            if isinstance(outcome, Reply):
                todo.cache.add(
                    keys[place], outcome, {"id": name, "judge": todo.judge.name, "version": todo.rubric.version}
                )
                spent.append(outcome)
                in_a_row = 0
            else:
                problems[keys[place]] = outcome
                in_a_row = 0 if outcome.lasting else in_a_row + 1
                _give_up(todo.judge, outcome, in_a_row, len(problems), len(spent))
            listener(Advanced(1, f"{usage(spent).tokens_in + usage(spent).tokens_out:,} tokens"))
        listener(Finished("judge"))
    return _judged(todo, requests, problems, fresh, spent)


def _give_up(judge: Judge, problem: Problem, in_a_row: int, problems: int, replies: int) -> None:
    """Stop where going on is no use."""
    if in_a_row >= GIVE_UP:
        raise Interrupted(
            f"The judge at {judge.where} has failed {in_a_row} requests in a row, the last with {problem.sentence}. All "
            "replies before are kept: run the same command again to continue."
        )
    if problem.lasting and not replies and problems >= GIVE_UP:
        raise UserError(f"The judge at {judge.where} refuses all requests, the last with {problem.sentence}.")


def _judged(
    todo: Pass, requests: Requests, problems: Mapping[str, Problem], fresh: int, spent: Sequence[Reply]
) -> Judged:
    scores, unparsed = {}, []
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, row in requests.items():
        found = [problems[key] for key, _ in row if key in problems]
        if found:
            passing = [p for p in found if not p.lasting]
            (failed if passing else refused)[name] = (passing or found)[0].sentence
            continue
        score = todo.rubric.score([todo.cache[key] for key, _ in row])
        if score is None:
            unparsed.append(name)
        else:
            scores[name] = score
    keys = {key for row in requests.values() for key, _ in row}
    replies = [todo.cache[key] for key in sorted(keys) if key in todo.cache]
    return Judged(
        scores=scores,
        unparsed=tuple(unparsed),
        refused=refused,
        failed=failed,
        requests=fresh,
        spent=usage(spent),
        usage=usage(replies),
        models=tuple(sorted({r.model for r in replies} - {""})),
    )
