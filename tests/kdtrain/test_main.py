"""kd-train as a person meets it: one trial from a file, resumed, refused, interrupted."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch

from kdtrain import checkpoint, models
from kdtrain.__main__ import main
from kdtrain.weights import identity

TRIAL = """
student = "resnet8"
seed = 1
[data]
dataset = "fashion_mini"
fraction = 0.01
[train]
epochs = 2
precision = "bf16"
[method]
name = "vanilla"
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Call kd-train on the text of a trial; (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(text: str, *args: str) -> tuple[int, str, str]:
        (tmp_path / "trial.toml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["kd-train", "run", "trial.toml", "--cpus", "1", *args])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def teacher_file(tmp_path) -> str:
    """[teacher] with the weights of a network that nobody has trained."""
    packed = checkpoint.pack_weights(models.build("resnet8", 10, 1).state_dict(), {}, "0" * 16)
    (tmp_path / "teacher.safetensors").write_bytes(packed)
    return "[teacher]\nmodel = 'resnet8'\nweights = 'teacher.safetensors'\n"


def test_teacher_then_student_then_only_shown(call, tmp_path):
    code, out, err = call(TRIAL, "-o", "teacher")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]
    ended = json.loads(out)
    assert identity("teacher/model.safetensors") == ended["trial_id"]
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == ["model.safetensors", "result.json"]

    student = TRIAL.replace('"vanilla"', '"kd"\nalpha = 0.5') + "[teacher]\nmodel = 'resnet8'\nweights = '{}'\n"
    student = student.format("teacher/model.safetensors")
    code, out, err = call(student)
    assert code == 0
    assert " kd " in err
    code, again, err = call(student)
    assert (code, again, err) == (0, out, "")


DGKD = """
[teacher]
model = "resnet8"
weights = "teacher/model.safetensors"
"""
ASSISTANT = """
[[assistant]]
model = "wrn_10_1"
weights = "assistant/model.safetensors"
"""


def test_teacher_then_assistant_then_student(call, tmp_path):
    text = TRIAL.replace("epochs = 2", "epochs = 1")
    assert call(text, "-o", "teacher")[0] == 0
    assistant = text.replace("resnet8", "wrn_10_1").replace('"vanilla"', '"dgkd"\npupil = true') + DGKD
    assert call(assistant, "-o", "assistant")[0] == 0
    code, _, err = call(text.replace('"vanilla"', '"dgkd"\nassistants = ["wrn_10_1"]') + DGKD + ASSISTANT)
    assert (code, [line.split(":")[0] for line in err.splitlines()]) == (
        0,
        ["teacher resnet8", "teacher wrn_10_1", "epoch 1"],
    )
    # Files serve several methods: what a method does not look at is no part of its trial.
    vanilla = json.loads(call(text, "-o", "teacher")[1])["trial_id"]
    with_all = json.loads(call(text + DGKD + ASSISTANT, "-o", "teacher")[1])["trial_id"]
    assert vanilla == with_all


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("", "error: method 'dgkd' needs the assistants wrn_10_1, but got none."),
        ("[[assistant]]\nmodel = 'wrn_10_1'\n", "error: assistant[0].weights is required."),
        (
            "[[assistant]]\nmodel = 'wrn_10_1'\nweights = 'absent'\n",
            "error: assistant[0].weights must be a file of weights, but got 'absent'",
        ),
        ("[[assistant]]\nmodel = 'wrn_10_1'\nweights = 'x'\nid = 1\n", "error: unknown key 'id' at assistant[0].id."),
        ("[assistant]\nmodel = 'wrn_10_1'\nweights = 'x'\n", "error: assistant should be a valid "),
    ],
)
def test_bad_assistant_is_one_line_and_status_2(call, teacher_file, tables, message):
    code, out, err = call(TRIAL.replace('"vanilla"', '"dgkd"\nassistants = ["wrn_10_1"]') + teacher_file + tables)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def test_stage_before_the_recipes_epochs_has_lines_of_its_own(call, teacher_file):
    code, _, err = call(TRIAL.replace('"vanilla"', '"fsp"') + teacher_file)
    assert code == 0
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["teacher resnet8", "pretrain epoch 1", "epoch 1", "epoch 2"]
    assert ("%" in lines[1], "%" in lines[2]) == (False, True)
    assert "  " not in lines[1]


@pytest.mark.parametrize(("expected", "within", "code"), [(None, 0.1, 0), (10.0, 90.0, 0), (99.9, 0.05, 2)])
def test_teacher_is_measured_and_must_be_as_accurate_as_said(call, tmp_path, teacher_file, expected, within, code):
    wanted = "" if expected is None else f"expect_top1 = {expected}\nwithin = {within}\n"
    text = TRIAL.replace('"vanilla"', '"kd"') + teacher_file + wanted
    ended, out, err = call(text, "-o", "student")
    assert ended == code
    assert err.startswith("teacher resnet8: ")
    known = json.loads((tmp_path / "student" / "teacher_0.json").read_text())
    if code:
        assert re.search(r"error: teacher resnet8 \(.*\) on fashion_mini must have a top-1 of 99\.9 ± 0\.05, but", err)
        assert out == ""
    else:
        told = json.loads(out)
        assert told["teacher_top1"] == known["test_top1"]
        assert f"teacher resnet8: {known['test_top1']:.2f} %" in err


@pytest.mark.parametrize(
    ("method", "own"),
    [("cid", {"centres", "classifier.weight", "classifier.bias"}), ("ipwd", set())],
)
def test_weights_hold_the_student_and_what_its_prediction_needs(call, teacher_file, tmp_path, method, own):
    assert call(TRIAL.replace('"vanilla"', f'"{method}"') + teacher_file, "-o", "out")[0] == 0
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    student = set(models.build("resnet8", 10, 1).state_dict())
    assert set(found) == student | {f"method.{name}" for name in own}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", "error: unknown key 'epoch' at train.epoch. Did you mean 'epochs'?"),
        ('"vanilla"', '"kd"', "error: method 'kd' needs a teacher (its logits), but got none."),
        ('"vanilla"', '"kdd"', "error: unknown method 'kdd' at method.name. Did you mean 'kd'?"),
        ('"resnet8"', '"resnet9"', "error: "),
        ("0.01", "0.0", "error: data.fraction should be greater than 0, but got 0.0."),
        ("[method]", "[teacher]\nmodel = 'resnet8'\nweights = 'absent'\n[method]\n", "error: unknown key"),
        ("[data]", "[data", "error: trial.toml is not TOML"),
    ],
)
def test_bad_trial_is_one_line_and_status_2(call, old, new, message):
    text = TRIAL.replace(old, new, 1)
    if "absent" in new:
        text, message = text.replace('"vanilla"', '"kd"'), "error: teacher.weights must be a file of weights"
    code, out, err = call(text)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def test_missing_trial_file_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kd-train", "run", "absent.toml"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "error: cannot read the trial absent.toml: No such file or directory.\n"


def test_folder_of_another_trial_is_refused(call):
    assert call(TRIAL, "-o", "out")[0] == 0
    code, _, err = call(TRIAL.replace("seed = 1", "seed = 2"), "-o", "out")
    assert code == 2
    assert err.startswith("error: out holds another trial")


def test_half_done_trial_of_another_file_is_refused(call, tmp_path):
    (tmp_path / "out").mkdir()
    state = {"trial_id": "0" * 16, "student": {}, "method": {}, "optimizer": {}, "records": []}
    (tmp_path / "out" / "checkpoint.pt").write_bytes(checkpoint.pack_state(state))
    code, _, err = call(TRIAL, "-o", "out")
    assert code == 2
    assert err.startswith("error: the checkpoint must be of the trial")


def test_divergence_is_told(call):
    code, _, err = call(TRIAL.replace("[train]", "[train]\nlr = 1e30"))
    assert code == 1
    assert err.splitlines()[-1].startswith("diverged: the loss term 'ce' became")


def test_interrupted_trial_goes_on_and_ends_as_if_it_had_not_been(tmp_path, call):
    whole = json.loads(call(TRIAL.replace("epochs = 2", "epochs = 4"), "-o", "whole")[1])
    command = [sys.executable, "-m", "kdtrain", "run", "trial.toml", "--cpus", "1", "-o", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: run the same command again")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("going on after epoch")
    resumed = json.loads(done.stdout)
    times = {"train_seconds": 0.0, "teacher_seconds": 0.0}
    assert {**resumed, **times} == {**whole, **times}
