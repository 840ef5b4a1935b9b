import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pyarrow as pa
import pytest
import typer
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from typer.testing import CliRunner

from kdtrain.config import ConfigError
from sweeps import cli_study, optuna_studies
from sweeps.export_studies import export, told
from sweeps.schema import TRIALS
from sweeps.store import Store, StoreError

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SPACE = {
    "alpha": {"low": 1.0, "high": 100.0, "log": True},
    "hint": {"low": 1.0, "high": 4.0, "int": True},
    "loss": {"choices": ["mse", "nm_mse"]},
    "power": {"low": 0.0, "high": 1.0, "step": 0.25, "when": {"loss": "mse"}},
}
EMPTY = {pa.string(): "", pa.int64(): 0, pa.float64(): 0.0, pa.bool_(): False}
POINTS = [  # point, status, val_acc
    ({"alpha": 10.0, "hint": 2, "loss": "nm_mse"}, "completed", 71.5),
    ({"alpha": 2.0, "hint": 4, "loss": "mse", "power": 0.75}, "completed", 73.25),
    ({"alpha": 50.0, "hint": 1, "loss": "nm_mse"}, "stopped", 40.0),
    ({"alpha": 99.0, "hint": 1, "loss": "mse", "power": 0.0}, "diverged", None),
    ({"alpha": 98.0, "hint": 1, "loss": "nm_mse"}, "failed", None),
]


def row(number, point, status="completed", val_acc=None, seed=1, **columns):
    """A row of a search; its trial's id tells its number and its seed."""
    empty = {field.name: None if field.nullable else EMPTY.get(field.type) for field in TRIALS}
    own = {
        "trial_id": f"{number:015x}{seed}",
        "role": "student",
        "dataset": "cifar100",
        "fraction": 0.2,
        "teacher": "resnet56",
        "student": "resnet20",
        "method": "cid",
        "seed": seed,
        "phase": "search",
        "study": "5" * 16,
        "objectives": ["val_acc"],
        "seeds": [1],
        "space": json.dumps(SPACE),
        "point": json.dumps(point),
        "number": number,
        "origin": "sampler",
        "status": status,
        "val_acc": val_acc,
        "sweep": "demo",
        "cpus": 1,
        "started_at": START + timedelta(hours=number),
        "ended_at": START + timedelta(hours=number, minutes=30),
    }
    return {**empty, **own, **columns}


def epoch(trial_id, number, val_acc, stage="train"):
    own = {"lr": 0.1, "terms": {}, "train_acc": None, "test_acc": None, "seconds": 1.0}
    return {"trial_id": trial_id, "stage": stage, "epoch": number, "val_acc": val_acc, **own}


def study_of(rows, epochs=()):
    (search,) = optuna_studies.searches(rows)
    return optuna_studies.study(search, epochs)


def five_points():
    return [row(number, *each) for number, each in enumerate(POINTS)]


def test_rows_become_a_study_with_their_values():
    stopped = f"{2:015x}1"
    epochs = [epoch(stopped, 1, 30.0, "pretrain"), epoch(stopped, 1, 35.0), epoch(stopped, 2, 40.0)]
    study = study_of([*five_points(), row(9, {}, phase="confirm"), row(9, {}, phase=None)], epochs)
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL,
    ]  # fmt: skip
    assert [trial.values for trial in study.trials] == [[71.5], [73.25], None, None, None]
    assert [trial.params for trial in study.trials] == [point for point, _, _ in POINTS]
    assert study.trials[2].intermediate_values == {1: 35.0, 2: 40.0}
    assert study.trials[1].distributions == {
        "alpha": FloatDistribution(1.0, 100.0, log=True),
        "hint": IntDistribution(1, 4),
        "loss": CategoricalDistribution(["mse", "nm_mse"]),
        "power": FloatDistribution(0.0, 1.0, step=0.25),
    }
    assert study.trials[3].user_attrs == {
        "trial_ids": [f"{3:015x}1"],
        "number": 3,
        "origin": "sampler",
        "status": "diverged",
        "method": "cid",
        "pair": "resnet56/resnet20",
    }
    assert study.trials[3].duration == timedelta(minutes=30)
    assert study.best_params == POINTS[1][0]
    assert study.metric_names == ["val_acc"]


def test_a_point_is_the_mean_over_its_seeds():
    several = {"seeds": [3, 5, 8]}
    rows = [row(0, {"alpha": 2.0}, val_acc=70.0 + seed, seed=seed, **several) for seed in (8, 3, 5)]
    rows += [row(1, {"alpha": 3.0}, val_acc=60.0, seed=seed, **several) for seed in (3, 5)]  # one is to come
    rows += [row(2, {"alpha": 4.0}, val_acc=61.0, seed=5, **several)]
    rows += [row(2, {"alpha": 4.0}, "stopped", 50.0, seed=8, **several)]
    rows += [row(3, {"alpha": 5.0}, "diverged", seed=5, **several), row(3, {"alpha": 5.0}, "failed", seed=3, **several)]
    study = study_of(rows)
    assert [trial.user_attrs["number"] for trial in study.trials] == [0, 2, 3]
    assert study.trials[0].values == [pytest.approx(70.0 + 16 / 3)]
    assert study.trials[0].user_attrs["trial_ids"] == [f"{0:015x}{seed}" for seed in (3, 5, 8)]
    assert study.trials[1].state is TrialState.PRUNED
    assert study.trials[1].intermediate_values == {1: 61.0, 2: 50.0}
    assert study.trials[2].user_attrs["status"] == "failed"


def test_objectives_in_their_order():
    more = {"objectives": ["val_acc", "params", "latency_ms"], "student_params": 1000, "latency_ms": 2.5}
    stopped = row(1, {"alpha": 3.0}, "stopped", 40.0, **more)
    study = study_of([row(0, {"alpha": 2.0}, val_acc=70.0, **more), stopped], [epoch(stopped["trial_id"], 1, 40.0)])
    assert study.trials[0].values == [70.0, 1000, 2.5]
    assert [each.name for each in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert study.trials[1].intermediate_values == {}  # Optuna has none for several objectives


def test_what_completed_before_an_objective_was_weighed_has_no_values():
    more = {"objectives": ["val_acc", "latency_ms"]}
    study = study_of(
        [row(0, {"alpha": 2.0}, val_acc=70.0), row(1, {"alpha": 3.0}, val_acc=71.0, latency_ms=2.5, **more)]
    )
    assert [(trial.state, trial.values, trial.user_attrs["status"]) for trial in study.trials] == [
        (TrialState.FAIL, None, "completed"),
        (TrialState.COMPLETE, [71.0, 2.5], "completed"),
    ]


@pytest.mark.parametrize(
    ("dims", "values", "expected"),
    [
        ([{"low": 1.0, "high": 5.0}, {"low": 0.5, "high": 2.0}], [3], FloatDistribution(0.5, 5.0)),
        ([{"low": 1.0, "high": 5.0}], [7.0], FloatDistribution(1.0, 7.0)),
        ([{"low": 1.0, "high": 5.0, "log": True}, {"low": 0.0, "high": 1.0}], [], FloatDistribution(0.0, 5.0)),
        ([{"low": 0.0, "high": 1.0, "step": 0.5}], [0.5], FloatDistribution(0.0, 1.0, step=0.5)),
        ([{"low": 0.0, "high": 1.0, "step": 0.5}], [0.3], FloatDistribution(0.0, 1.0)),
        ([{"low": 0.0, "high": 1.0, "step": 0.4}], [], FloatDistribution(0.0, 0.8, step=0.4)),
        ([{"low": 8.0, "high": 20.0, "step": 6.0, "int": True}], [14], IntDistribution(8, 20, step=6)),
        ([{"low": 8.0, "high": 20.0, "step": 6.0, "int": True}], [9], IntDistribution(8, 20)),
        ([{"low": 1.0, "high": 9.0, "int": True, "log": True}], [3], IntDistribution(1, 9, log=True)),
        ([{"low": 1.0, "high": 9.0, "int": True}, {"low": 0.5, "high": 2.0}], [1.5], FloatDistribution(0.5, 9.0)),
        ([{"choices": ["b", "c"]}, {"choices": ["a", "b"]}], ["d"], CategoricalDistribution(["b", "c", "a", "d"])),
        ([{"choices": [1, True]}], [], CategoricalDistribution([1, True])),
        ([{"choices": [["a", "b"], None]}], [], CategoricalDistribution(['["a", "b"]', None])),
        ([{"low": 1.0, "high": 2.0}, {"choices": ["auto"]}], [1.5, "auto"], CategoricalDistribution(["auto", 1.5])),
        ([{"low": 1.0, "high": 2.0}, {"choices": [4.0, 3.0]}], [3.0], FloatDistribution(1.0, 3.0)),
        ([], [2.0], CategoricalDistribution([2.0])),
    ],
)
def test_one_distribution_holds_all_that_was_ever_searched(dims, values, expected):
    assert optuna_studies.distribution(dims, values) == expected


def test_a_changed_space_keeps_old_points():
    old, new = {"loss": {"choices": ["mse", "l1"]}}, {"loss": {"choices": ["nm_mse", "mse"]}}
    study = study_of(
        [
            row(0, {"loss": "l1"}, val_acc=70.0, space=json.dumps(old)),
            row(1, {"loss": "nm_mse"}, val_acc=71.0, space=json.dumps(new)),
        ]
    )
    both = CategoricalDistribution(["nm_mse", "mse", "l1"])  # the newest row's first
    assert [trial.distributions["loss"] for trial in study.trials] == [both, both]


@pytest.fixture
def results(tmp_path):
    return str(tmp_path / "results")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def write(results, rows, sweep="demo"):
    store = Store(results, sweep)
    for each in rows:
        store.write_trial(each)
        if each["status"] == "stopped":
            store.write_epochs(each["trial_id"], [epoch(each["trial_id"], 1, 35.0), epoch(each["trial_id"], 2, 40.0)])


@contextmanager
def opened(url):
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def stored(url):
    """Of each study by name: the trials' states and values."""
    with opened(url) as storage:
        return {
            study.study_name: [(trial.state.name, trial.values) for trial in storage.get_all_trials(study._study_id)]
            for study in storage.get_all_studies()
        }


NAME = f"demo/cid/resnet56-resnet20/0.2/{'5' * 16}"


def test_export_adds_what_is_not_there(results, url):
    write(results, five_points()[:3])
    (written,) = export(f"{results}/demo", url)
    assert (written.name, written.trials, written.new, written.changed) == (NAME, 3, 3, 0)
    write(results, five_points())
    (written,) = export(f"{results}/demo", url)
    assert (written.trials, written.new) == (5, 2)
    (written,) = export(f"{results}/demo", url)
    assert (written.trials, written.new) == (5, 0)
    assert stored(url) == {
        NAME: [("COMPLETE", [71.5]), ("COMPLETE", [73.25]), ("PRUNED", None), ("FAIL", None), ("FAIL", None)]
    }


def test_a_trial_that_ended_otherwise_is_told(results, url):
    write(results, [row(0, {"alpha": 2.0}, "failed")])
    export(results, url)
    write(results, [row(0, {"alpha": 2.0}, val_acc=70.0)])
    assert [(each.new, each.changed) for each in export(results, url)] == [(0, 1)]


def test_each_search_has_a_name_of_its_own_and_others_are_left_alone(results, url):
    with opened(url) as storage:
        storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "mine")
    own = {"study": "b" * 16, "trial_id": "b" * 16}
    write(results, [row(0, {"alpha": 2.0}, val_acc=70.0), row(0, {"alpha": 2.0}, val_acc=70.0, **own)])
    other = {"study": "c" * 16, "trial_id": "c" * 16, "method": "vanilla", "teacher": None, "student": "vgg8"}
    write(results, [row(0, {"alpha": 2.0}, val_acc=70.0, **other)], "other")
    export(results, url)
    assert {name: len(trials) for name, trials in stored(url).items()} == {
        "mine": 0,
        f"demo/cid/resnet56-resnet20/0.2/{'5' * 16}": 1,
        f"demo/cid/resnet56-resnet20/0.2/{'b' * 16}": 1,
        f"other/vanilla/vgg8/0.2/{'c' * 16}": 1,
    }


def test_a_namesake_that_comes_later_leaves_the_first_its_name_and_its_trials(results, url):
    write(results, [row(0, {"alpha": 2.0}, val_acc=70.0)])
    export(results, url)
    write(results, [row(0, {"alpha": 2.0}, val_acc=71.0, study="b" * 16, trial_id="b" * 16)])
    assert [(each.name[-16:], each.new) for each in export(results, url)] == [("5" * 16, 0), ("b" * 16, 1)]
    assert {name: len(trials) for name, trials in stored(url).items()} == {
        f"demo/cid/resnet56-resnet20/0.2/{'5' * 16}": 1,
        f"demo/cid/resnet56-resnet20/0.2/{'b' * 16}": 1,
    }


def test_a_student_that_teaches_itself_does_not_name_the_study(results, url):
    space = json.dumps({"family": {"choices": ["resnet"]}, "resnet.depth": {"choices": [8, 14]}})
    for number, depth in enumerate((8, 14)):  # each point has another teacher
        name, point = f"resnet{depth}", {"family": "resnet", "resnet.depth": depth}
        own = {"teacher": name, "student": name, "self_taught": True, "method": "tf_kd", "space": space}
        write(results, [row(number, point, val_acc=70.0, **own)])
        export(results, url)
    assert {name: len(trials) for name, trials in stored(url).items()} == {f"demo/tf_kd/*/0.2/{'5' * 16}": 2}


def occupy(url, direction="maximize", attrs=(), **choices):
    with opened(url) as storage, optuna_studies.quiet():
        study = optuna.create_study(storage=storage, study_name=NAME, direction=direction)
        for key, value in attrs:
            study.set_user_attr(key, value)
        dists = {name: CategoricalDistribution(values) for name, values in choices.items()}
        params = {name: values[0] for name, values in choices.items()}
        study.add_trial(optuna.create_trial(value=1.0, params=params, distributions=dists))


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"direction": "minimize"}, f"the study {NAME} must maximize val_acc, but is there to minimize in "),
        ({}, f"the study {NAME} must be of the search {'5' * 16}, but is of another program in "),
        ({"attrs": [("kdsweep_study", "6" * 16)]}, f"must be of the search {'5' * 16}, but is of {'6' * 16} in "),
        (
            {"attrs": [("kdsweep_study", "5" * 16)], "loss": ["l1"]},
            r"must have loss from CategoricalDistribution\(choices=\('mse', 'nm_mse'\)\), but has it from .*'l1'",
        ),
    ],
)
def test_a_study_in_the_way_is_one_error_and_nothing_is_written(results, url, there, message):
    occupy(url, **there)
    write(results, five_points())
    with pytest.raises(ConfigError, match=rf"{message}.*; export to another database, or delete the study there\."):
        export(results, url)
    assert {name: len(trials) for name, trials in stored(url).items()} == {NAME: 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("secret", "but got what is no URL."),
        ("mystore://me:secret@host:hidden/db", "but got what is no URL."),  # the port must be a number
        ("sqlite:////nowhere/at/all.db", "but got sqlite:////nowhere/at/all.db: unable to open database file."),
        ("mystore://me:secret@host/db", r"but got mystore://me:\*\*\*@host/db: Can't load plugin"),
    ],
)
def test_a_bad_url_is_one_error(results, bad, message):
    write(results, five_points())
    with pytest.raises(ConfigError, match=f"--storage must be the URL of a database .*{message}") as caught:
        export(results, bad)
    assert "\n" not in str(caught.value)
    assert not {word for word in ("secret", "hidden") if word in str(caught.value)}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///results/study.db", "sqlite:///results/study.db"),
        ("mysql+pymysql://me:secret@host:3306/db", "mysql+pymysql://me:***@host:3306/db"),
        ("postgresql://me:se:cr/et@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se%40cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=***&password=***"),
        ("mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc://?odbc_connect=***"),
        ("me:secret@host/db", "what is no URL"),
    ],
)
def test_a_url_is_told_without_passwords(url, expected):
    assert told(url) == expected


def test_no_search_is_one_error(results, url, tmp_path):
    write(results, [row(0, {}, phase=None)])
    for where in (results, f"{results}/demo", str(tmp_path / "none")):
        with pytest.raises(ConfigError, match=rf"RESULTS must hold trials of a \[search\], but got {where}, where"):
            export(where, url)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot list .*file: Not a directory\."):
        export(str(tmp_path / "file"), url)
    assert not (tmp_path / "study.db").exists()


def test_the_command_says_what_it_wrote(results, url):
    write(results, five_points())
    app = typer.Typer()
    app.add_typer(cli_study.app, name="study")
    app.command("other")(lambda: None)
    done = CliRunner().invoke(app, ["study", "export", results, "--storage", url], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == f"{NAME}: 5 trials, 5 of them new\nlook at them: optuna-dashboard {url}\n"
    write(results, [row(4, POINTS[4][0], val_acc=70.0)])
    done = CliRunner().invoke(app, ["study", "export", results, "--storage", url], catch_exceptions=False)
    assert f"{NAME}: 1 have ended differently since they were written" in done.stdout


def test_names_in_the_rows_do_not_steer_the_terminal(results, url):
    write(results, [row(0, {"alpha": 2.0}, "failed", method="x\x1b[2J\n")])
    app = typer.Typer()
    app.command()(cli_study.export_command)
    done = CliRunner().invoke(app, [results, "--storage", url], catch_exceptions=False)
    assert done.stdout.startswith(f"demo/x?[2J?/resnet56-resnet20/0.2/{'5' * 16}: 1 trials, 1 of them new\n")
    write(results, [row(0, {"alpha": 2.0}, val_acc=70.0, method="x\x1b[2J\n")])
    done = CliRunner().invoke(app, [results, "--storage", url], catch_exceptions=False)
    assert "ended differently" in done.stdout
    assert "\x1b" not in done.stdout


def get(address):
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.load(answer)


@contextmanager
def dashboard(url):
    """The real optuna-dashboard on a free port; its address."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), url, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--server", "wsgiref"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def answer_of(address, seconds=60):
    """What the address answers once there is somebody."""
    end = time.monotonic() + seconds
    while True:
        try:
            return get(address)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_the_real_dashboard_shows_the_studies(results, url):
    more = {"objectives": ["val_acc", "params"], "student_params": 1000, "study": "6" * 16, "method": "kd"}
    write(results, [*five_points(), row(7, {"alpha": 3.0}, val_acc=68.0, **more)])
    both_name = f"demo/kd/resnet56-resnet20/0.2/{'6' * 16}"
    export(results, url)
    with dashboard(url) as address:
        found = {each["study_name"]: each for each in answer_of(f"{address}/api/studies")["study_summaries"]}
        assert {name: each["directions"] for name, each in found.items()} == {
            NAME: ["maximize"],
            both_name: ["maximize", "minimize"],
        }
        study = get(f"{address}/api/studies/{found[NAME]['study_id']}")
        both = get(f"{address}/api/studies/{found[both_name]['study_id']}")
    assert [trial["state"] for trial in study["trials"]] == ["Complete", "Complete", "Pruned", "Fail", "Fail"]
    assert [trial.get("values") for trial in study["trials"][:2]] == [[71.5], [73.25]]
    assert study["trials"][2]["intermediate_values"] == [{"step": 1, "value": 35.0}, {"step": 2, "value": 40.0}]
    assert {each["name"]: each["param_external_value"] for each in study["trials"][1]["params"]} == {
        "alpha": "2.0", "hint": "4", "loss": "mse", "power": "0.75",
    }  # fmt: skip
    assert [trial["number"] for trial in study["best_trials"]] == [1]
    assert [trial["values"] for trial in both["trials"]] == [[68.0, 1000.0]]
