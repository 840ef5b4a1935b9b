"""Jobs that wait, against a list that is searched from its beginning."""

import random

import pytest

from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from sweeps.job import Job
from sweeps.waiting import Waiting


def job(key: str, role: str = "student", needs: tuple[str, ...] = (), **searched: object) -> Job:
    """One that learns from the networks with these ids."""
    refs = tuple(TeacherRef(id=each, model="resnet14") for each in needs)
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=9), student="resnet8",
        method=MethodRef(name="vanilla"), teacher=refs[0] if refs else None, assistants=refs[1:] or None,
    )  # fmt: skip
    return Job(
        id=key, role=role, trial=trial, where=Where(), results="r", source={}, keeps_weights=False, searched=searched
    )


def drained(waiting: Waiting) -> list[str]:
    found = []
    while (each := waiting.pop()) is not None:
        found.append(each.key)
    return found


class Slow:
    """The same by looking at all jobs each time."""

    def __init__(self, jobs: list[Job], weights: dict[str, float]) -> None:
        roles = ["teacher", "student", "probe"]
        self.jobs = sorted(jobs, key=lambda job: (roles.index(job.role), -weights[job.key]))
        self.trained: set[str] = set()

    def pop(self) -> Job | None:
        for each in self.jobs:
            if each.requirements <= self.trained:
                self.jobs.remove(each)
                return each
        return None

    def give_up(self, failed: str) -> set[str]:
        lost = {failed}
        while found := {each.id for each in self.jobs if each.requirements & lost} - lost:
            lost |= found
        self.jobs = [each for each in self.jobs if each.id not in lost]
        return lost - {failed}


@pytest.mark.parametrize("seed", range(20))
def test_jobs_leave_as_from_a_list_that_is_searched_from_its_beginning(seed):
    draw = random.Random(seed)
    jobs: list[Job] = []
    for i in range(60):
        role = draw.choice(["teacher", "student", "student", "probe"])
        teachers = [each.id for each in jobs if each.role == "teacher"]
        jobs.append(job(str(i), role, tuple(draw.sample(teachers, min(len(teachers), draw.randrange(4))))))
    weights = {each.key: float(draw.randrange(4)) for each in jobs}
    waiting, slow = Waiting(jobs, [], weights), Slow(jobs, weights)
    under_way: list[Job] = []
    while True:
        each, expected = waiting.pop(), slow.pop()
        assert each == expected
        assert len(waiting) == len(slow.jobs)
        if each is not None:
            under_way.append(each)
        if each is None or draw.random() < 0.3:
            if not under_way:
                break
            ended = under_way.pop(draw.randrange(len(under_way)))
            if draw.random() < 0.15:
                assert {other.job.id for other in waiting.give_up(ended)} == slow.give_up(ended.id)
            else:
                waiting.train(ended.id)
                slow.trained.add(ended.id)
    assert len(waiting) == 0


def test_weights_of_what_a_search_has_chosen_are_those_of_what_was_to_be_chosen():
    jobs = [job("p", phase="search", study="s"), job("q", phase="confirm", study="s"), job("r"), job("u")]
    weights = {"search s 0": 2.0, "confirm s 0": 5.0, "student r": 3.0}
    assert drained(Waiting(jobs, [], weights)) == ["student q", "student r", "student p", "student u"]


def test_points_that_wait_for_a_teacher_are_counted_by_study():
    point = {"phase": "search", "number": 0}
    jobs = [job("a", needs=("t",), study="s", **point), job("b", needs=("t",), study="s", **point)]
    jobs += [job("c", study="s", **point), job("d", needs=("u",), study="z", **point), job("e", needs=("t",))]
    waiting = Waiting(jobs, [], {})
    assert [waiting.held_points[study] for study in "sz"] == [2, 1]
    waiting.train("t")
    assert [waiting.held_points[study] for study in "sz"] == [0, 1]
    waiting.give_up(job("u", "teacher"))
    assert [waiting.held_points[study] for study in "sz"] == [0, 0]


def test_those_that_need_a_failed_network_say_which_in_the_order_of_the_plan():
    teacher = job("t", "teacher")
    waiting = Waiting([job("b", needs=("a",)), job("a", "teacher", needs=("t",)), job("c", needs=("t",))], [], {})
    blocked = waiting.give_up(teacher)
    assert [(other.job.id, other.by) for other in blocked] == [(key, "teacher resnet8") for key in ("a", "c", "b")]
    assert drained(waiting) == []


def test_nothing_waits_any_more_once_it_is_cleared():
    waiting = Waiting([job("a"), job("b", needs=("t",))], [], {})
    waiting.clear()
    assert len(waiting) == 0
    waiting.train("t")
    assert drained(waiting) == []
