"""Which trials share the outputs of their teachers."""

from collections.abc import Iterable
from typing import Any

import pytest

from kdtrain.build import teacher_numbers
from sweeps.cost import NOTHING_KNOWN, Cost
from sweeps.plan import Plan, expand
from sweeps.searches import searches
from sweeps.sharing import ALONE, Choice, Sharing, key, share
from sweeps.spec import parse_text
from sweeps.store import Store

TEXT = """
[sweep]
name = "shared"
[data]
dataset = "fashion_mini"
[train]
epochs = 4
[run]
[grid]
pair = ["resnet14/resnet8"]
method = ["kd", "cid", "ipwd"]
seed = [1, 2]
"""
# fashion_mini has 6000 images of 28 x 28 in 10 classes, resnet14 64 pooled features, and a number takes 2 bytes.
# So 10 logits of an epoch are 120 kB, with the 64 features 888 kB, and those of 4 epochs 3.552 MB.
LOGITS = "an epoch takes 120 kB, all 480 kB"
BOTH = "an epoch takes 888 kB, all 4 MB"


def chosen(text: str, cost: Cost = NOTHING_KNOWN) -> tuple[Sharing, Plan]:
    spec = parse_text(text)
    plan = expand(spec)
    return share(spec, plan, searches(spec, plan, Store("/nowhere", "none"), []), cost), plan


def changed(*pairs: tuple[str, str]) -> str:
    text = TEXT
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def methods(*names: str) -> tuple[str, str]:
    return '["kd", "cid", "ipwd"]', f"[{', '.join(names)}]"


def stored(sharing: Sharing, plan: Plan) -> dict[tuple[str, int], tuple[str, ...]]:
    """What is stored of the outputs that trials with a teacher see, by method and seed."""
    trials = [*plan.trials.values(), *plan.teachers.values()]
    return {(trial.method.name, trial.seed): sharing.names(trial) for trial in trials if trial.teacher}


def test_methods_share_by_seed():
    sharing, plan = chosen(TEXT)
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, True, f"3 see the same views; {BOTH}")]
    assert set(stored(sharing, plan)) == {(method, seed) for method in ("kd", "cid", "ipwd") for seed in (1, 2)}
    assert set(stored(sharing, plan).values()) == {("logits", "pooled")}


def test_with_one_view_seed_all_seeds_share():
    sharing, _ = chosen(changed(("[train]", "view_seed = 7\n[train]")))
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, True, f"6 see the same views; {BOTH}")]


def test_without_augmentation_all_seeds_share_one_epoch():
    sharing, _ = chosen(changed(("epochs = 4", "epochs = 4\naugment = false"), methods('"kd"')))
    why = "2 see the same views; an epoch takes 120 kB, all 120 kB"
    assert sharing.choices == [Choice("resnet14", ("kd",), 2, True, why)]


@pytest.mark.parametrize("epochs", [[4, 2], [2, 4]])
def test_all_epochs_are_those_of_the_longest_trial(epochs):
    sharing, _ = chosen(changed(methods('"kd"'), ("seed = [1, 2]", f"seed = [1]\nepochs = {epochs}")))
    assert sharing.choices == [Choice("resnet14", ("kd",), 2, True, f"2 see the same views; {LOGITS}")]


def test_only_what_is_looked_at_is_stored():
    sharing, plan = chosen(changed(methods('"kd"', '"ipwd"')))
    assert sharing.choices == [Choice("resnet14", ("kd", "ipwd"), 4, True, f"2 see the same views; {LOGITS}")]
    assert set(stored(sharing, plan).values()) == {("logits",)}
    pooled, plan = chosen(changed(methods('"rkd"', '"pkt"')))
    assert set(stored(pooled, plan).values()) == {("pooled",)}


def test_a_trial_that_sees_its_views_alone_is_live():
    sharing, plan = chosen(changed(methods('"vanilla"', '"kd"')))
    assert sharing.choices == [Choice("resnet14", ("kd",), 2, False, "no other trial sees the same views")]
    assert stored(sharing, plan) == {("kd", 1): (), ("kd", 2): ()}
    assert sharing.names(plan.trials[plan.cells[0].trial_id]) == ()  # has no teacher


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("fitnet", "it looks at whole maps"),
        ("kd+fitnet", "it looks at whole maps"),
        ("ofd", "the teacher is in train mode"),
        ("nkd", "the teacher is in train mode"),
        ("sskd", "images are turned"),
    ],
)
def test_what_changes_from_step_to_step_or_is_too_much_is_live(method, why):
    sharing, plan = chosen(changed(methods(f'"{method}"', '"kd"', '"dkd"')))
    assert list(sharing.choices) == [
        Choice("resnet14", (method,), 2, False, why),
        Choice("resnet14", ("kd", "dkd"), 4, True, f"2 see the same views; {LOGITS}"),
    ]
    assert stored(sharing, plan)[method, 1] == ()
    assert stored(sharing, plan)["kd", 1] == ("logits",)


def test_parameters_decide_whether_a_method_is_live():
    sharing, plan = chosen(changed(methods('"nkd"', '{ name = "nkd", teacher_bn = "eval" }', '"kd"')))
    assert [(choice.methods, choice.trials, choice.shared) for choice in sharing.choices] == [
        (("nkd",), 2, False), (("nkd", "kd"), 4, True)
    ]  # fmt: skip
    trials = [trial for trial in plan.trials.values() if trial.method.name == "nkd" and trial.seed == 1]
    names = {trial.method.params.get("teacher_bn", "train"): sharing.names(trial) for trial in trials}
    assert names == {"train": (), "eval": ("logits",)}


def test_nothing_is_shared_without_room_for_it():
    sharing, plan = chosen(changed(("[run]", "[run]\ncache_gb = 0")))
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, False, "run.cache_gb is 0")]
    assert set(stored(sharing, plan).values()) == {()}


def test_an_epoch_that_has_no_room_is_live():
    sharing, plan = chosen(changed(("[run]", "[run]\ncache_gb = 8e-4")))
    why = "an epoch takes 888 kB, more than run.cache_gb = 0.0008"
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, False, why)]
    assert set(stored(sharing, plan).values()) == {()}


def test_an_epoch_that_has_room_where_not_all_have_is_shared():
    sharing, _ = chosen(changed(("[run]", "[run]\ncache_gb = 1e-3")))
    why = f"3 see the same views; {BOTH}, more than run.cache_gb = 0.001: some are computed again"
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, True, why)]


# The attention maps of resnet14 are 28 x 28, 14 x 14 and 7 x 7: 1029 numbers, and with the logits 1039.
MAPS = ("at:0:28", "at:1:14", "at:2:7")


def test_digests_are_shared_where_they_have_room():
    sharing, plan = chosen(changed(methods('"at"', '"kd"')))
    why = "2 see the same views; an epoch takes 12 MB, all 50 MB"  # 12,468,000 and 49,872,000
    assert sharing.choices == [Choice("resnet14", ("at", "kd"), 4, True, why)]
    assert set(stored(sharing, plan).values()) == {(*MAPS, "logits")}


def test_digests_that_leave_no_room_are_live_while_others_share():
    sharing, plan = chosen(changed(methods('"at"', '"kd"', '"dkd"'), ("[run]", "[run]\ncache_gb = 0.049")))
    too_much = "with what it looks at all epochs would take 50 MB, more than run.cache_gb = 0.049"
    assert list(sharing.choices) == [
        Choice("resnet14", ("at",), 2, False, too_much),
        Choice("resnet14", ("kd", "dkd"), 4, True, f"2 see the same views; {LOGITS}"),
    ]
    assert stored(sharing, plan) == {
        **{("at", seed): () for seed in (1, 2)},
        **{(method, seed): ("logits",) for method in ("kd", "dkd") for seed in (1, 2)},
    }


def measured(computing: float, reading: float) -> Cost:
    """From two rows of kd on all images: one computed the outputs of 4 epochs, the other read them."""
    both = {
        "dataset": "fashion_mini", "fraction": 1.0, "val_size": 0, "image_size": None, "student": "resnet8",
        "teacher": "resnet14", "method": "kd", "precision": "fp32", "cpus": 1, "device": "cpu", "n_train": 6000,
        "epochs": 4, "train_seconds": 100.0, "assistant_ids": None, "source_id": None, "replayed": None,
        "status": "completed",
    }  # fmt: skip
    made = {"teacher_seconds": 4 * computing, "shared_seconds": 0.1, "teacher_epochs": 4}
    read = {"teacher_seconds": 0.0, "shared_seconds": 4 * reading, "teacher_epochs": 0}
    return Cost([{**both, **made}, {**both, **read}])


def test_reading_that_takes_longer_than_computing_is_left_out():
    sharing, plan = chosen(TEXT, measured(computing=0.5, reading=75.0))
    why = "reading takes 1 min 15 s an epoch, computing 0.5 s"
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, False, why)]
    assert set(stored(sharing, plan).values()) == {()}


def test_what_computing_takes_is_told():
    sharing, _ = chosen(TEXT, measured(computing=2.5, reading=0.1))
    why = f"3 see the same views; {BOTH}; computing takes 2.5 s an epoch"
    assert sharing.choices == [Choice("resnet14", ("kd", "cid", "ipwd"), 6, True, why)]


SEARCH = """
[search]
sampler = "random"
trials = 5
[confirm]
top = 2
seed = [11, 12, 13]
"""


def test_searches_count_their_points_and_confirmations():
    text = changed(methods('"vanilla"', '"kd"', '"cid"'), ("[train]", "val_size = 1000\n[train]"),
                   ("seed = [1, 2]", "seed = [1]")) + SEARCH  # fmt: skip
    sharing, plan = chosen(text)
    # 5 points of each method on 5000 images: 740 kB an epoch and 2.96 MB. 2 winners of each with each new seed on all.
    assert list(sharing.choices) == [
        Choice("resnet14", ("kd", "cid"), 10, True, "10 see the same views; an epoch takes 740 kB, all 3 MB"),
        Choice("resnet14", ("kd", "cid"), 12, True, f"4 see the same views; {BOTH}"),
    ]
    point = {"alpha": 2.0, "tau": 3.0}
    cell = plan.studies[1].cell
    assert sharing.names(cell.trial(point, 1)[0]) == ("logits", "pooled")
    assert sharing.names(cell.confirmation(point, 13)[0]) == ("logits", "pooled")
    assert sharing.names(cell.confirmation(point, 14)[0]) == ()


def test_a_search_of_several_seeds_shares_by_seed():
    text = changed(methods('"kd"'), ("[train]", "val_size = 1000\n[train]")) + SEARCH.partition("[confirm]")[0]
    sharing, plan = chosen(text.replace("trials = 5", 'trials = 5\nscore = "mean_over_seeds"'))
    why = "5 see the same views; an epoch takes 100 kB, all 400 kB"
    assert sharing.choices == [Choice("resnet14", ("kd",), 10, True, why)]
    names = [sharing.names(plan.studies[0].cell.trial({"alpha": 2.0, "tau": 3.0}, seed)[0]) for seed in (1, 2, 3)]
    assert names == [("logits",), ("logits",), ()]


def test_images_that_are_read_from_the_disk_are_live():
    text = changed(("fashion_mini", "imagenet"), ("resnet14/resnet8", "resnet34/resnet18"), methods('"kd"', '"dkd"'))
    sharing, plan = chosen(text)
    why = "images are read from the disk each time"
    assert sharing.choices == [Choice("resnet34", ("kd", "dkd"), 4, False, why)]
    assert set(stored(sharing, plan).values()) == {()}


def test_assistants_share_among_themselves_what_their_teacher_shows():
    # Both assistants are trained with seed 0. What is seen of assistants is not counted.
    text = changed(("resnet14/resnet8", "resnet32/resnet8"),
                   methods('{ name = "dgkd", assistants = ["resnet20", "resnet14"] }', '"kd"'))  # fmt: skip
    sharing, plan = chosen(text)
    assert sharing.choices == [Choice("resnet32", ("dgkd", "kd"), 6, True, f"2 see the same views; {LOGITS}")]
    assert {trial.student for trial in plan.teachers.values() if sharing.names(trial)} == {"resnet20", "resnet14"}
    assert set(stored(sharing, plan).values()) == {("logits",)}


def test_another_teacher_fraction_or_precision_is_not_shared():
    text = changed(methods('"kd"'), ("seed = [1, 2]", "seed = [1]\nfraction = [0.5, 1]\nprecision = ['bf16', 'fp32']"),
                   ('["resnet14/resnet8"]', '["resnet14/resnet8", "resnet20/resnet8"]'))  # fmt: skip
    sharing, _ = chosen(text)
    assert [(choice.teacher, choice.trials, choice.why) for choice in sharing.choices] == [
        (teacher, 4, "no other trial sees the same views") for teacher in ("resnet14", "resnet20")
    ]


def test_students_share_a_teacher():
    text = changed(methods('"kd"'), ('["resnet14/resnet8"]', '["resnet14/resnet8", "resnet14/resnet20"]'))
    sharing, _ = chosen(text)
    assert sharing.choices == [Choice("resnet14", ("kd",), 4, True, f"2 see the same views; {LOGITS}")]


def union(trials: Iterable[Any], sharing: Sharing) -> dict[str, set[str]]:
    """By what outputs depend on: the names of all that is looked at by those that share."""
    found: dict[str, set[str]] = {}
    for trial in trials:
        if sharing.names(trial):
            found.setdefault(key(trial), set()).update(teacher_numbers(trial))
    return found


@pytest.mark.parametrize("cache_gb", [0.001, 0.049, 0.2, 20])
def test_stored_is_exactly_what_those_that_share_look_at(cache_gb):
    pair = "resnet14/resnet8", "resnet20/resnet8"
    text = changed(methods('"kd"', '"at"', '"fsp"', '"cid"', '"fitnet"', '"kd+at"'),
                   ("[run]", f"[run]\ncache_gb = {cache_gb}"), ('["resnet14/resnet8"]', str(list(pair))))  # fmt: skip
    sharing, plan = chosen(text)
    trials = list(plan.trials.values())
    expected = union(trials, sharing)
    assert expected
    for trial in trials:
        names = sharing.names(trial)
        assert names == () or set(names) == expected[key(trial)]
        assert len(set(names)) == len(names)
    counted = {(choice.teacher, choice.shared): 0 for choice in sharing.choices}
    for choice in sharing.choices:
        counted[choice.teacher, choice.shared] += choice.trials
    for teacher, shared in counted:
        alike = [trial for trial in trials if trial.teacher and trial.teacher.model == teacher]
        assert counted[teacher, shared] == sum(bool(sharing.names(trial)) is shared for trial in alike)


def test_nobody_shares_where_no_plan_says_so():
    _, plan = chosen(TEXT)
    assert {ALONE.names(trial) for trial in plan.trials.values()} == {()}
