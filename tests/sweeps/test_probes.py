"""The probes of a sweep: which there are, what they wait for, and that they run."""

import pytest

from kdtrain.config import ConfigError
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

TEXT = """
[sweep]
name = "transfer"
[data]
dataset = "fashion_mini"
[train]
epochs = 1
precision = "bf16"
[teacher]
fraction = 0.02
[grid]
pair = ["resnet8/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1]
[[probe]]
dataset = "fashion_mini"
fraction = 0.05
epochs = 5
"""


@pytest.fixture
def text(tmp_path) -> str:
    return TEXT.replace("[grid]", f"[run]\nresults = '{tmp_path}'\ngpus = 0\n[grid]")


@pytest.fixture
def spec(text):
    return parse_text(text)


@pytest.fixture
def plan(spec):
    return expand(spec)


def split(trials):
    """Trials that train a student, and probes, each by id."""
    students = {key: trial for key, trial in trials.items() if trial.probe is None}
    return students, {key: trial for key, trial in trials.items() if trial.probe is not None}


def test_every_student_and_teacher_is_probed(plan):
    students, probes = split(plan.trials)
    assert len(students) == 2
    assert {trial.probe.source for trial in probes.values()} == students.keys() | plan.teachers.keys()
    for trial in probes.values():
        source = {**students, **plan.teachers}[trial.probe.source]
        assert (trial.method, trial.student, trial.teacher) == (source.method, source.student, source.teacher)
        assert (trial.data.dataset, trial.data.fraction) == ("fashion_mini", 0.05)
        assert trial.probe.lrs == (0.01, 0.1, 1.0)
        assert (trial.train.epochs, trial.train.batch_size, trial.train.weight_decay) == (5, 128, 0)
        assert trial.train.milestones == [3, 4]


def test_images_have_the_size_and_the_statistics_of_the_students_unless_told_otherwise(text):
    target = text.replace('dataset = "fashion_mini"\nfraction = 0.05', 'dataset = "stl10"')
    for extra, size, mean in (
        ("", 28, (0.2860,)),
        ("image_size = 32\n", 32, (0.2860,)),
    ):
        _, probes = split(expand(parse_text(target + extra)).trials)
        for trial in probes.values():
            assert (trial.data.image_size, trial.data.channels, trial.data.mean) == (size, 1, mean), extra
    _, probes = split(expand(parse_text(text + 'normalise = "target"\n')).trials)
    assert {trial.data.mean for trial in probes.values()} == {None}
    with pytest.raises(ConfigError, match=r"probe\.normalise must be 'source' for grey students, .*of stl10"):
        expand(parse_text(target + 'normalise = "target"\n'))


def test_a_sweep_without_probes_is_the_same_trials(text):
    students, _ = split(expand(parse_text(text)).trials)
    assert expand(parse_text(text[: text.index("[[probe]]")])).trials == students


def test_probes_come_last_and_wait_for_their_student(spec, text, plan):
    jobs = missing(spec, text, plan, retry_failed=False).jobs
    assert [job.role for job in jobs] == ["teacher", "student", "student", "probe", "probe", "probe"]
    ids = {job.id: job for job in jobs}
    for job in jobs[3:]:
        (source,) = job.requirements
        assert ids[source].keeps_weights
        assert not job.keeps_weights


def test_students_keep_weights_only_if_asked_or_probed(text):
    plain = text[: text.index("[[probe]]")]
    for extra, kept in (("", False), ("keep_weights = true\n", True)):
        new = plain.replace("gpus = 0\n", f"gpus = 0\n{extra}")
        spec = parse_text(new)
        jobs = missing(spec, new, expand(spec), retry_failed=False).jobs
        assert {job.keeps_weights for job in jobs if job.role == "student"} == {kept}
        assert {job.keeps_weights for job in jobs if job.role == "teacher"} == {True}


def test_a_student_that_ended_without_weights_is_trained_again_for_its_probe(spec, text, plan, tmp_path, end):
    students, _ = split(plan.trials)
    own = Store(str(tmp_path), "transfer")
    for trial in students.values():
        end(own, trial, "student", Status.COMPLETED)
    with_weights, without = students
    own.write_bytes(b"weights", "models", f"{with_weights}.safetensors")
    todo = missing(spec, text, plan, retry_failed=False)
    assert [job.id for job in todo.jobs if job.role == "student"] == [without]
    assert todo.trained == {with_weights}
    assert todo.done == 1


def test_probes_of_a_failed_student_are_blocked(spec, text, plan, tmp_path, end):
    students, probes = split(plan.trials)
    failed = next(iter(students))
    end(Store(str(tmp_path), "transfer"), students[failed], "student", Status.FAILED)
    todo = missing(spec, text, plan, retry_failed=False)
    (blocked,) = todo.blocked
    assert probes[blocked.job.id].probe.source == failed
    assert blocked.job.id not in {job.id for job in todo.jobs}


def test_plan_does_not_take_probes_for_known_times(text, tmp_path, cli):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    out = cli("plan", path).out
    assert "5 trials and 1 teacher to run; how long they take is known once a trial has ended" in out
    assert "kd -> fashion_mini" in out


def test_unknown_targets_and_twice_the_same_are_refused(text):
    with pytest.raises(ConfigError, match=r"unknown data set 'stl11' at probe\[0\]\.dataset\..*Did you mean 'stl10'"):
        parse_text(text.replace('dataset = "fashion_mini"\nfraction', 'dataset = "stl11"\nfraction'))
    with pytest.raises(ConfigError, match=r"probe\[1\] repeats probe\[0\]"):
        parse_text(text + '[[probe]]\ndataset = "fashion_mini"\nfraction = 0.05\n')


def test_a_sweep_with_probes_end_to_end(text, tmp_path, sweep):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    first = sweep("run", path)
    assert first.code == 0, first.err
    own, teachers = Store(str(tmp_path), "transfer"), Store(str(tmp_path), TEACHERS)
    rows = {row["trial_id"]: row for row in own.read_trials().to_pylist()}
    probes = [row for row in rows.values() if row["role"] == "probe"]
    sources = rows | {row["trial_id"]: row for row in teachers.read_trials().to_pylist()}
    assert len(rows) == 5
    assert len(probes) == 3
    for row in probes:
        assert (row["status"], row["source_dataset"], row["epochs_done"]) == ("completed", "fashion_mini", 5)
        assert row["lr"] in (0.01, 0.1, 1.0)
        assert 10 < row["test_top1"] <= 100  # a tenth is chance
        assert row["n_train"] == 300
        assert (row["method"], row["seed"]) == tuple(sources[row["source_id"]][key] for key in ("method", "seed"))
    assert "5 completed, of 5 trials" in first.out
    again = sweep("run", path)
    assert again.code == 0
    assert own.read_trials().to_pylist() == list(rows.values())
