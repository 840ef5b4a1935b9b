import pytest

from analysis.figures import epoch_figures, fraction_figures
from analysis.groups import group_students
from analysis.load import load, load_epochs


def figures(results):
    sweep = load(results.path, "demo")
    return epoch_figures(group_students(sweep), load_epochs(results.path, "demo", sweep.trials["trial_id"]), "demo")


def test_mean_and_band_over_epochs(results):
    results.add(seed=1, curve=[10.0, 30.0])
    results.add(seed=2, curve=[20.0, 50.0])
    (figure,) = figures(results)
    band, line = figure.plot.data
    assert (list(line.x), list(line.y), line.name) == ([1, 2], [15.0, 40.0], "KD (n=2)")
    assert (list(band.x), list(band.y)) == ([1, 2, 2, 1], [20.0, 50.0, 30.0, 10.0])
    assert "ResNet-56 → ResNet-20, 100 % of CIFAR-100" in figure.caption
    assert figure.caption.endswith("Sweep demo.")


def test_validation_accuracy_where_only_the_last_epoch_is_tested(results):
    trial = results.add()
    results.add_epochs(trial, test=[None, 60.0], val=[40.0, 50.0])
    (figure,) = figures(results)
    (line,) = figure.plot.data
    assert (list(line.y), line.name) == ([40.0, 50.0], "KD (validation, n=1)")


def test_stage_before_the_recipes_epochs_is_not_drawn(results):
    results.add_epochs(results.add(), test=[10.0, 30.0], pretrain=3)
    (figure,) = figures(results)
    (line,) = figure.plot.data
    assert (list(line.x), list(line.y)) == ([1, 2], [10.0, 30.0])


def test_failed_trials_are_not_drawn(results):
    results.add(status="failed", curve=[10.0])
    assert figures(results) == []


def test_one_epoch_is_a_point(results):
    results.add(curve=[10.0])
    (figure,) = figures(results)
    assert figure.plot.data[0].mode == "markers"


def test_names_are_escaped(results):
    results.add(method="<b>", curve=[10.0])
    (figure,) = figures(results)
    assert figure.plot.data[0].name == "&lt;b&gt; (n=1)"


def test_accuracy_over_fractions(results):
    results.add(seed=1, fraction=0.2, test_top1=50.0)
    results.add(seed=2, fraction=0.2, test_top1=52.0)
    results.add(seed=1, fraction=0.4, test_top1=60.0)
    results.add(teacher="resnet110")  # a pair with one fraction
    (figure,) = fraction_figures(group_students(load(results.path, "demo")), "demo")
    (line,) = figure.plot.data
    assert (list(line.x), list(line.y), line.name) == ([20.0, 40.0], [51.0, 60.0], "KD (n=1–2)")
    assert list(line.error_y.array) == [pytest.approx(2**0.5), 0.0]
