"""Searches as text: their plan and how far they are."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kdtrain.record import TrialResult
from sweeps import show_search
from sweeps.ended import end
from sweeps.job import Job, maker
from sweeps.plan import expand
from sweeps.points import Tried
from sweeps.schema import Status
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

TEXT = """
[sweep]
name = "tuned"
[data]
dataset = "fashion_mini"
val_size = 100
[train]
epochs = 4
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1]
[search]
sampler = "random"
trials = 4
[scheduler]
name = "asha"
[confirm]
top = 2
seed = [11, 12]
"""


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "spec.toml"
    file.write_text(TEXT + f"[run]\nresults = '{tmp_path}/results'\n")
    return file


@pytest.fixture
def job(file) -> Callable[..., Job]:
    """The job of a point of kd, or of a confirmation of one."""
    text = file.read_text()
    spec = parse_text(text)
    plan = expand(spec)
    search = searches(spec, plan, Store(spec.run.results, "tuned"), [])[1]

    def job(alpha: float, number: int, seed: int = 1, phase: str = "search") -> Job:
        cell, point = search.study.cell, {"alpha": alpha, "tau": 4.0}
        trial, _ = (cell.trial if phase == "search" else cell.confirmation)(point, seed)
        return maker(spec, text, ())("student", trial, search.columns(Tried(number, point, "start"), phase))

    return job


def leave(job: Job, status: Status = Status.COMPLETED, acc: float | None = None) -> None:
    result = TrialResult(
        test_top1=60.0, test_top5=90.0, test_nll=1.0, test_ece=1.0, test_aurc=1.0, test_eaurc=1.0,
        class_recall=(60.0,) * 10, val_acc=acc, best_epoch=4, best_acc=60.0, best_split="val", n_train=118,
        student_params=1000, train_seconds=60.0,
    )  # fmt: skip
    end(
        job, status, epochs_done=4, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        result=result if status == Status.COMPLETED else None,
    )  # fmt: skip


def shown(text: str) -> list[str]:
    """Lines without what depends on the machine or is tested elsewhere: ids, costs and times."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "ID", text)
    text = re.sub(r"takes at most .* multiply-adds", "takes at most N multiply-adds", text)
    return [re.sub(r", \d+ s ago$", ", T ago", line.rstrip()) for line in text.splitlines()]


def test_plan_of_a_search(cli, file):
    ended = cli("plan", file)
    assert (ended.code, ended.err) == (0, "")
    # Of vanilla there is one point, which both seeds confirm; kd has 4, of which 2 are confirmed with 2 seeds.
    assert shown(ended.out) == [
        "tuned: 11 trials of fashion_mini",
        "method   pair              fraction  points  confirmed",
        "vanilla  resnet14/resnet8  0.02      0/1     0/2",
        "kd       resnet14/resnet8  0.02      0/4     0/4",
        "space of vanilla: nothing to search",
        "space of kd: alpha 0.1..10 log, tau 1..20 log",
        "Points are chosen by random for val_acc, stopped early by asha, and the best 2 trained again on all images "
        "with the seeds 11 12.",
        "teacher resnet14 without 100 held-out images (ID): to train",
        "teacher resnet14 (ID): to train",
        "0 of 11 trials are done.",
        "Training all of it takes at most N multiply-adds.",
        # 10 logits of 2 bytes for 0.02 of the 5900 images that are not held out, or of 6000, in 4 epochs.
        "outputs of resnet14 for kd (4 trials): shared, as 4 see the same views; an epoch takes 3 kB, all 10 kB",
        "outputs of resnet14 for kd (4 trials): shared, as 2 see the same views; an epoch takes 3 kB, all 10 kB",
        "11 trials and 2 teachers to run; how long they take is known once a trial has ended.",
    ]
    assert not (file.parent / "results").exists()


def test_plan_and_status_of_a_search_that_is_under_way(cli, file, job):
    leave(job(1.0, 0), acc=40.0)
    leave(job(2.0, 1), acc=52.5)
    leave(job(3.0, 2), Status.STOPPED)
    begun = job(4.0, 3)
    begun.store.write_bytes(begun.model_dump_json().encode(), "asked", f"{begun.id}.json")
    epoch = {
        "trial_id": begun.id, "stage": "train", "epoch": 2, "lr": 0.1, "terms": {}, "train_acc": 1.0, "val_acc": 33.3,
        "test_acc": None, "seconds": 1.0,
    }  # fmt: skip
    begun.store.write_epochs(begun.id, [epoch])
    plan = shown(cli("plan", file).out)
    assert plan[2:4] == [
        "vanilla  resnet14/resnet8  0.02      0/1     0/2",
        "kd       resnet14/resnet8  0.02      3/4     0/4",
    ]
    assert "3 of 11 trials are done." in plan
    assert plan[-1].startswith("8 trials and 2 teachers to run: at most ")
    assert shown(cli("status", file).out) == [
        "0 of 2 teachers have ended: 2 not begun.",
        "vanilla resnet14/resnet8 fraction 0.02: 0/1 points.",
        "kd resnet14/resnet8 fraction 0.02: 3/4 points (2 completed, 1 stopped, 1 under way), "
        "best val_acc 52.5 at alpha=2.0 tau=4.0.",
        "  ID kd alpha=4.0 tau=4.0 resnet14/resnet8 fraction 0.02 seed 1: epoch 2/4, 33.3 %, T ago",
    ]


def test_plan_and_status_of_confirmations(cli, file, job):
    for number, acc in enumerate((40.0, 52.5, 30.0, 20.0)):
        leave(job(1.0 + number, number), acc=acc)
    leave(job(2.0, 1, seed=11, phase="confirm"))
    assert shown(cli("plan", file).out)[3] == "kd       resnet14/resnet8  0.02      4/4     1/4"
    line = "kd resnet14/resnet8 fraction 0.02: 4/4 points (4 completed), best val_acc 52.5 at alpha=2.0 tau=4.0"
    assert shown(cli("status", file).out)[2] == f"{line}, 3 confirmations left."
    for alpha, number, seed in ((2.0, 1, 12), (1.0, 0, 11), (1.0, 0, 12)):
        leave(job(alpha, number, seed=seed, phase="confirm"))
    assert shown(cli("status", file).out)[2] == f"{line}, confirmed."
    assert "8 of 11 trials are done." in cli("plan", file).out


def test_teachers_that_are_needed_no_more(cli, file, job):
    for number in range(4):
        leave(job(1.0 + number, number), acc=40.0 + number)
    plan = shown(cli("plan", file).out)
    assert "teacher resnet14 without 100 held-out images (ID): not needed, or failed" in plan
    assert "teacher resnet14 (ID): to train" in plan


def test_failed_teacher_gives_up_its_search(cli, file):
    text = file.read_text()
    spec = parse_text(text)
    (trial, _) = expand(spec).teachers.values()
    teacher = maker(spec, text, ())("teacher", trial)
    end(
        teacher, Status.FAILED, epochs_done=0, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        error=("Error", "Error: broken"),
    )  # fmt: skip
    assert Store(f"{file.parent}/results", TEACHERS).ids("trials") == {teacher.id}
    plan = shown(cli("plan", file).out)
    assert plan[0] == "tuned: 11 trials of fashion_mini"
    assert plan[-1].startswith("3 trials and 0 teachers to run")


def how(**tables: Any) -> str:
    text = TEXT
    for old, new in tables.values():
        assert old in text
        text = text.replace(old, new)
    return show_search.how(parse_text(text))


def test_how_points_are_chosen_judged_stopped_and_confirmed():
    assert how(
        seeds=("seed = [1]", "seed = [1, 2, 3, 4, 5, 6]"),
        score=("trials = 4", 'trials = 4\nscore = "mean_over_seeds"\nprior = "old"'),
        scheduler=('"asha"', '"wilcoxon"'),
    ) == (
        "Points are chosen by random for val_acc, mean over the seeds 1 2 3 4 5 6, after the best of old, "
        "stopped early by wilcoxon, and the best 2 trained again on all images with the seeds 11 12."
    )
    assert how(
        method=('["vanilla", "kd"]', '["kd"]'),
        pair=("resnet14/resnet8", "resnet14/*"),
        scheduler=('[scheduler]\nname = "asha"\n[confirm]\ntop = 2\nseed = [11, 12]\n', ""),
        search=("trials = 4", 'trials = 4\nobjectives = ["val_acc", "params"]\nlimits = { macs = 1e6 }\n'
                "[search.space.student]\nresnet = { depth = [8, 14] }\n[run]\nreplay = 'grid'"),
    ) == (
        "Points are chosen by random for val_acc, params, within macs <= 1e+06, replayed from grid: nothing is trained."
    )  # fmt: skip


def test_students_that_are_searched_have_a_line_of_their_own(tmp_path):
    text = TEXT.replace("resnet14/resnet8", "resnet14/*")
    text += "[search.space.student]\nresnet = { depth = [8, 14], width = [1, 2] }\n"
    text += "wrn = { depth = [10, 16], width = [1] }\n"
    spec = parse_text(text)
    found = searches(spec, expand(spec), Store(str(tmp_path), "tuned"), [])
    assert list(show_search.spaces(found)) == [
        "space of vanilla: nothing to search",
        "students of resnet14/*: family [resnet, wrn], resnet.depth [8, 14], resnet.width [1, 2], wrn.depth [10, 16], "
        "wrn.width [1]",
        "space of kd: alpha 0.1..10 log, tau 1..20 log",
    ]
