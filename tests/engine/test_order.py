"""In which order lanes begin their jobs."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Barrier
from typing import Any

import pytest

from triune.engine.executors.local import LocalExecutor


@dataclass(frozen=True)
class Task:
    traffic: int
    nbytes: int = 10


TASKS = [Task(1), Task(5), Task(3), Task(5, nbytes=9)]


@pytest.mark.parametrize(
    ("executor", "lanes", "found"),
    [
        (LocalExecutor(2, 20), {"cpu": 2}, [5, 5, 3, 1]),  # the largest two, 10 and 10, fit
        (LocalExecutor(2, 19), {"cpu": 2}, [1, 5, 3, 5]),  # they do not: one lane would wait for the other
        (LocalExecutor(3, 29), {"cpu": 3}, [1, 5, 3, 5]),  # 10 + 10 + 10
        (LocalExecutor(1, 1000), {"cpu": 1}, [1, 5, 3, 5]),
        (LocalExecutor(4, 1000, {"cuda:0": 20, "cuda:1": 20}), {"cuda:0": 2, "cuda:1": 2}, [5, 5, 3, 1]),
        (LocalExecutor(4, 1000, {"cuda:0": 20, "cuda:1": 19}), {"cuda:0": 2, "cuda:1": 2}, [1, 5, 3, 5]),
        (LocalExecutor(1, 1000, {"cuda:0": 9}), {"cuda:0": 1, "cpu": 1}, [5, 5, 3, 1]),  # one fits there
    ],
)
def test_the_longest_come_first_where_they_have_room(
    executor: LocalExecutor, lanes: dict[str, int], found: list[int]
) -> None:
    """Equal ones stay in order."""
    ordered = executor.longest_first(TASKS, lanes)
    assert [task.traffic for task in ordered] == found
    assert ordered.index(TASKS[1]) < ordered.index(TASKS[3])


def test_lanes_begin_with_them() -> None:
    begun: list[int] = []
    pair = Barrier(2, timeout=30)

    def work(task: Task, lane: Any) -> None:
        begun.append(task.traffic)
        pair.wait()  # both have noted theirs before either goes on

    LocalExecutor(2, 20).run(TASKS, work)
    assert (sorted(begun[:2]), sorted(begun[2:])) == ([5, 5], [1, 3])
