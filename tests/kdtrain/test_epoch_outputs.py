"""A trial sees the same of its teacher whether the outputs are computed, read from a file or lost in between."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from kdtrain import data, methods, models
from kdtrain.batches import Batches
from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.draws import Stream
from kdtrain.epoch_outputs import EpochOutputs, identity, rounded
from kdtrain.loop import Training
from kdtrain.models.outputs import Outputs
from kdtrain.views import apply, draw

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("mini")
PARAMS = {"dgkd": {"assistants": ["resnet8"]}, "cid": {"layers": "all", "sr_loss": "mse"}}
# Of every kind: logits, pooled vectors, digests, a stage before the epochs, assistants, two methods together.
CACHED = ("kd", "ipwd", "cid", "crd", "at", "fsp", "dgkd", "kd+at")


def config(method="kd", seed=0, val_size=10, view_seed=None, **recipe):
    ref = MethodRef(name=method, params=PARAMS.get(method, {}))
    assistants = tuple(TeacherRef(model=model, id=model) for model in methods.assistants(ref))
    return TrialConfig(
        data=DataConfig(dataset="mini", val_size=val_size),
        train=Recipe(**{"epochs": 4, "batch_size": 16, "lr": 0.01, **recipe}),
        teacher=TeacherRef(model="resnet14", id="resnet14"),
        assistants=assistants or None,
        student="resnet8",
        method=ref,
        seed=seed,
        view_seed=view_seed,
    )


def where(weights, trial, cache=None, shared=(), **fields):
    return Where(
        teacher_weights=str(weights / "resnet14"),
        assistant_weights=tuple(str(weights / ref.model) for ref in trial.assistants or ()),
        cache=cache and str(cache),
        shared=tuple(shared) or (("logits",) if cache else ()),
        device="cpu",
        **fields,
    )


@pytest.fixture
def run(outcome):
    """A function: train a trial; all that must be equal bit for bit, and how many epochs the teacher was asked for."""

    def found(trial, place):
        training = Training(trial, place)
        while not training.done:
            training.run_epoch()
        result, records, student = outcome(training)
        asked = result.pop("teacher_epochs")
        alike = [{key: value for key, value in record.items() if key != "teacher_epochs"} for record in records]
        return (result, alike, student), asked

    return found


def files(cache):
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("method", CACHED)
class TestSameTrial:
    def test_live_first_and_second_reader(self, run, weights, tmp_path, method):
        trial = config(method)
        live, asked = run(trial, where(weights, trial))
        first, made = run(trial, where(weights, trial, tmp_path))
        second, read = run(trial, where(weights, trial, tmp_path))
        assert first == live
        assert second == live
        assert asked == made > 0
        assert read == 0

    def test_files_evicted_or_damaged_on_the_way(self, run, weights, tmp_path, method):
        trial = config(method)
        live, _ = run(trial, where(weights, trial))
        run(trial, where(weights, trial, tmp_path))
        stored = files(tmp_path)
        stored[0].unlink()
        for path, flipped in zip(stored[1:], (0, 9, -1), strict=False):
            found = bytearray(path.read_bytes())
            found[flipped] ^= 1
            path.write_bytes(found)
        again, made = run(trial, where(weights, trial, tmp_path))
        assert again == live
        assert made > 0
        assert run(trial, where(weights, trial, tmp_path)) == (live, 0)

    def test_no_room_and_no_folder(self, run, weights, tmp_path, method):
        trial = config(method)
        live, asked = run(trial, where(weights, trial))
        assert run(trial, where(weights, trial, tmp_path, cache_gb=1e-6)) == (live, asked)
        assert files(tmp_path) == []
        (tmp_path / "file").write_text("")
        place = where(weights, trial, tmp_path / "file")
        assert run(trial, place) == (live, asked)


def test_a_folder_that_cannot_be_used_is_told_once_and_the_trial_goes_on(run, weights, tmp_path):
    (tmp_path / "file").write_text("")
    trial = config("kd")
    training = Training(trial, where(weights, trial, tmp_path / "file"))
    assert training.teachers.problem is None
    while not training.done:
        training.run_epoch()
    assert "(Not a directory): each trial computes its own." in training.teachers.problem


def test_methods_share_what_all_of_them_need(run, weights, tmp_path):
    names = ("logits", "pooled", "at:0:28", "at:1:14", "at:2:7")
    for method in ("kd", "cid", "at"):
        trial = config(method).model_copy(update={"method": MethodRef(name=method)})
        live, asked = run(trial, where(weights, trial))
        assert run(trial, where(weights, trial, tmp_path, names)) == (live, asked if method == "kd" else 0)
    assert len(files(tmp_path)) == 4
    for path in files(tmp_path):
        with safe_open(path, "pt") as stored:
            assert set(stored.keys()) == set(names)


def test_a_method_that_needs_more_than_was_planned_makes_the_files_anew(run, weights, tmp_path):
    kd, cid = config("kd"), config("cid").model_copy(update={"method": MethodRef(name="cid")})
    run(kd, where(weights, kd, tmp_path, ["logits"]))
    assert run(cid, where(weights, cid, tmp_path, ["logits"])) == run(cid, where(weights, cid))
    assert run(kd, where(weights, kd, tmp_path, ["logits"]))[1] == 0


@pytest.mark.parametrize("what", ["seed", "view_seed", "val_size", "precision", "teacher"])
def test_trials_that_see_something_else_share_nothing(what):
    trial = config()
    other = {
        "seed": config(seed=1),
        "view_seed": config(view_seed=7),
        "val_size": config(val_size=20),
        "precision": config(precision="bf16"),
        "teacher": trial.model_copy(update={"teacher": TeacherRef(model="resnet14", id="another")}),
    }[what]
    assert identity(trial, trial.teacher) != identity(other, other.teacher)


def test_trials_that_see_the_same_share_their_files():
    trials = [config(), config("cid"), config(lr=0.1, batch_size=8, epochs=9), config(seed=1, view_seed=0)]
    assert len({str(identity(trial, trial.teacher)) for trial in trials}) == 1
    plain = [config(augment=False), config(seed=1, augment=False)]  # there is one view
    assert len({str(identity(trial, trial.teacher)) for trial in plain}) == 1


def test_without_augmentation_all_epochs_share_one_file(run, weights, tmp_path):
    trial = config("kd", augment=False)
    live, asked = run(trial, where(weights, trial))
    assert run(trial, where(weights, trial, tmp_path)) == (live, 1)
    assert asked == 4
    assert len(files(tmp_path)) == 1


class TestValues:
    """Against the teacher itself, asked for one image at a time."""

    @pytest.fixture
    def batches(self):
        trial = config()
        return Batches(data.load(trial.data, Where(), CPU), trial)

    @pytest.fixture
    def teacher(self, weights):
        model = models.build("resnet14", 10, 1)
        with safe_open(weights / "resnet14", "pt") as stored:
            model.load_state_dict({key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
        return model.eval()

    def test_rows_are_the_images_views_of_the_epoch(self, batches, teacher):
        outputs = EpochOutputs(teacher, batches, ("logits", "pooled", "at:1:7"))
        outputs.begin(3, 3)
        indices = batches.train[[5, 0, 41]]
        found = outputs.of(indices)
        source = batches.images.train
        views = draw(0, 3, len(source.labels), 28, CPU, Stream.VIEWS)
        for row, index in enumerate(indices):
            image = apply(source.images, index[None], views, source.info.mean, source.info.std)
            with torch.no_grad():
                expected = methods.digested(["at:1:7"], teacher(image))
            for mine, its in (
                (found.logits[row], expected.logits[0]),
                (found.pooled[row], expected.pooled[0]),
                (found.digests["at:1:7"][row], expected.digests["at:1:7"][0]),
            ):
                assert mine.dtype == torch.float32
                torch.testing.assert_close(mine, its, rtol=2**-10, atol=2**-20)
                assert torch.equal(mine, mine.half().float())  # what a file holds

    def test_epochs_have_other_views(self, batches, teacher):
        outputs = EpochOutputs(teacher, batches, ("logits",))
        found = []
        for number in (1, 2, 1):
            outputs.begin(number, number)
            found.append(outputs.of(batches.train).logits)
        assert torch.equal(found[0], found[2])
        assert not torch.equal(found[0], found[1])

    def test_rounded_is_what_a_file_gives(self):
        values = torch.tensor([[1.0, 1 / 3, 1e-9, 70000.0]])
        outputs = rounded(Outputs(values, values + 1, values, (values,), (), {"at:0:1": values / 2}))
        expected = torch.tensor([[1.0, 0.333251953125, 0.0, float("inf")]])
        assert torch.equal(outputs.logits, expected)
        assert torch.equal(outputs.digests["at:0:1"], torch.tensor([[0.5, 0.1666259765625, 0.0, 35008.0]]))
        assert outputs.stages == ()


TRIAL = """
import sys
from kdtrain.config import TrialConfig, Where
from kdtrain.loop import Training
training = Training(TrialConfig.model_validate_json(sys.argv[1]), Where.model_validate_json(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
while not training.done:
    training.run_epoch()
result = training.result()
print(result.test_nll.hex(), result.teacher_epochs)
"""


def test_two_trials_that_race_compute_each_epoch_once_and_get_what_they_would_alone(run, weights, tmp_path):
    trials = [
        config(name).model_copy(update={"data": DataConfig(dataset="fashion_mini", fraction=0.02), "method": ref})
        for name, ref in (("kd", MethodRef(name="kd")), ("cid", MethodRef(name="cid")))
    ]
    shared = ("logits", "pooled")
    alone = [Training(trial, where(weights, trial)) for trial in trials]
    for training in alone:
        while not training.done:
            training.run_epoch()
    commands = [
        [sys.executable, "-c", TRIAL, trial.model_dump_json(),
         where(weights, trial, tmp_path, shared).model_dump_json()]
        for trial in trials
    ]  # fmt: skip
    racers = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for each in commands]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=300)[0].split() for racer in racers]
    assert [found for found, _ in outputs] == [training.result().test_nll.hex() for training in alone]
    assert sum(int(asked) for _, asked in outputs) == 4


@pytest.mark.parametrize("method", ["kd", "cid", "at"])
def test_images_that_are_read_anew_each_time_are_shown_to_the_teacher_in_each_step(
    run, weights, tmp_path, monkeypatch, method
):
    trial = config(method)
    (known, _, _), _ = run(trial, where(weights, trial))
    monkeypatch.setitem(data.DATASETS, "mini", replace(data.DATASETS["mini"], in_memory=False))
    training = Training(trial, where(weights, trial, tmp_path))
    batch, _ = next(training.batches.epoch(1, 1))
    seen, assistants = training.teachers.of(batch)
    assert assistants == ()
    for values in (seen.logits, seen.pooled, *seen.digests.values()):
        assert torch.equal(values, values.half().float())  # rounded as a file would be
    while not training.done:
        training.run_epoch()
    result = training.result()
    assert (result.teacher_epochs, files(tmp_path)) == (0, [])
    assert result.test_nll == pytest.approx(known["test_nll"], rel=0.02)  # outputs of other batches differ a little
