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
    ("executor", "found"),
    [
        (LocalExecutor(2, 20), [5, 5, 3, 1]),  # the largest two, 10 and 10, fit
        (LocalExecutor(2, 19), [1, 5, 3, 5]),  # they do not: one lane would wait for the other
        (LocalExecutor(3, 29), [1, 5, 3, 5]),  # 10 + 10 + 10
        (LocalExecutor(1, 1000), [1, 5, 3, 5]),
        (LocalExecutor(4, 1000, {"cuda:0": 20, "cuda:1": 20}), [5, 5, 3, 1]),  # two lanes for each GPU
        (LocalExecutor(4, 1000, {"cuda:0": 20, "cuda:1": 19}), [1, 5, 3, 5]),
        (LocalExecutor(2, 1000, {"cuda:0": 9}), [5, 5, 3, 1]),  # of those that fit there, one has room
    ],
)
def test_the_longest_come_first_where_they_have_room(executor: LocalExecutor, found: list[int]) -> None:
    assert [task.traffic for task in executor.in_order(TASKS)] == found


def test_equal_ones_stay_in_order() -> None:
    assert LocalExecutor(2, 100).in_order(TASKS)[:2] == [TASKS[1], TASKS[3]]


def test_lanes_begin_with_them() -> None:
    begun: list[int] = []
    pair = Barrier(2, timeout=30)

    def work(task: Task, lane: Any) -> None:
        begun.append(task.traffic)
        pair.wait()  # both have noted theirs before either goes on

    LocalExecutor(2, 20).run(TASKS, work)
    assert (sorted(begun[:2]), sorted(begun[2:])) == ([5, 5], [1, 3])
