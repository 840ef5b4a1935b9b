import pytest

from kdtrain.config import MethodRef
from kdtrain.methods import params

CID = ("76.55 ± 0.19", "CID Table 2")  # of cid, wrn_40_2 -> wrn_16_2, CIFAR-100
WRN = {"teacher": "wrn_40_2", "student": "wrn_16_2"}


@pytest.fixture
def teacher(results):
    results.add_teacher(student="wrn_40_2", test_top1=75.7)


def printed(tables, results, method, metric="test_top1"):
    """What stands beside our cells of a method: a list of (number, source)."""
    rows = [row for table in tables(results, metric) for row in table.rows if row.method == method]
    return [(number.text, number.source) for row in rows for cell in row.cells for number in cell.published]


def test_the_same_experiment(results, tables, teacher):
    results.add(method="cid", **WRN)
    assert printed(tables, results, "cid") == [CID]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 200},
        {"batch_size": 128},
        {"lr_milestones": [150, 180]},
        {"lr_gamma": 0.2},
        {"momentum": 0.8},
        {"weight_decay": 1e-4},
        {"augment": False},
        {"val_size": 5000},
        {"lr": 0.01},
        {"fraction": 0.2},
        {"dataset": "cifar10"},
        {"teacher": "wrn_40_4"},  # not what the store says of its id
        {"student": "wrn_40_1"},
        {"method": "cid+kd"},
        {"teacher_id": "b" * 16},  # not in the store
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_difference_and_the_number_vanishes(results, tables, teacher, change):
    results.add(**{"method": "cid", **WRN, **change})
    assert printed(tables, results, change.get("method", "cid")) == []


@pytest.mark.parametrize(
    "change",
    [{"epochs": 30}, {"fraction": 0.5}, {"lr": 0.1}, {"dataset": "cifar10"}, {"method": "ls"}],
    ids=lambda change: next(iter(change)),
)
def test_the_teacher_must_agree_too(results, tables, change):
    results.add_teacher(student="wrn_40_2", **change)
    results.add(method="cid", **WRN)
    assert printed(tables, results, "cid") == []
    assert printed(tables, results, "teacher") == []


@pytest.mark.parametrize(("accuracy", "numbers"), [(75.71, [CID]), (75.51, [CID]), (75.72, []), (75.50, [])])
def test_weights_from_elsewhere_are_the_papers_if_as_accurate_as_printed(results, tables, accuracy, numbers):
    results.add_published("wrn_40_2.pth", student="wrn_40_2", test_top1=accuracy)  # printed: 75.61
    results.add(method="cid", **WRN)
    assert printed(tables, results, "cid") == numbers
    assert bool(printed(tables, results, "teacher")) == bool(numbers)


def test_weights_from_elsewhere_are_compared_with_teachers_of_their_architecture_and_data(results, tables):
    results.add_published("wrn_40_2.pth", student="wrn_40_2", test_top1=72.34)  # printed of resnet56
    results.add(method="cid", **WRN)
    results.add_published("resnet56.pth", "b" * 16, dataset="cifar10", test_top1=72.34)
    results.add(teacher_id="b" * 16)
    assert printed(tables, results, "cid") == printed(tables, results, "kd") == []


def test_probes_have_no_printed_number(results, tables):
    results.add_teacher(student="wrn_40_2", test_top1=75.6)
    results.add_probe(results.add(method="cid", **WRN), method="cid", **WRN)
    results.add_probe(results.teacher_id, method="vanilla", teacher=None, student="wrn_40_2")
    probes = tables(results)[-1]
    assert [row.name for row in probes.rows] == ["Teacher", "CID"]
    assert [cell.published for row in probes.rows for cell in row.cells] == [(), ()]


def test_both_papers_print_kd_and_the_teacher(results, tables):
    results.add_teacher()
    results.add(method="kd")
    assert printed(tables, results, "kd") == [("70.66 ± 0.24", "CID Table 2"), ("70.66", "IPWD Table 2")]
    assert printed(tables, results, "teacher") == [("72.34", "CID Table 2"), ("72.34", "IPWD Table 2")]


def test_competitors_carry_kd_in_cid_and_stand_alone_in_ipwd(results, tables):
    results.add_teacher()
    results.add(method="fitnet+kd")
    results.add(method="fitnet")
    assert printed(tables, results, "fitnet+kd") == [("70.70 ± 0.24", "CID Table 2")]
    assert printed(tables, results, "fitnet") == [("69.06", "IPWD Table 2")]


def test_students_that_need_the_small_learning_rate(results, tables):
    results.add_teacher(student="resnet50_cifar")
    results.add(method="cid", teacher="resnet50_cifar", student="mobilenet_v2", lr=0.01)
    assert [source for _, source in printed(tables, results, "cid")] == ["CID Table 2"]
    results.add(method="kd", teacher="resnet50_cifar", student="mobilenet_v2", lr=0.05)
    assert printed(tables, results, "kd") == []


def test_data_limited(results, tables):
    results.add_teacher(student="vgg13")
    results.add(method="cid", teacher="vgg13", student="vgg8", fraction=0.2)
    assert printed(tables, results, "cid") == [("62.13", "CID Table 6")]


def test_vanilla_has_no_teacher_to_agree(results, tables):
    results.add(method="vanilla", teacher=None, student="wrn_16_2")
    # The paper prints 73.26 for both teachers of WRN-16-2; without a pair it is shown once.
    assert ("73.26", "CID Table 2") in printed(tables, results, "vanilla")
    assert len(printed(tables, results, "vanilla")) == len(set(printed(tables, results, "vanilla")))


def test_other_metrics(results, tables):
    results.add_teacher(student="wrn_40_2", dataset="tiny_imagenet")
    results.add(method="cid", dataset="tiny_imagenet", **WRN)
    top1, top5 = (printed(tables, results, "cid", metric) for metric in ("test_top1", "test_top5"))
    assert [source for _, source in top1 + top5] == ["CID Table 3", "CID Table 3"]
    assert top1 != top5
    assert printed(tables, results, "cid", "test_nll") == []


# As the papers print them: CIFAR-100, resnet56 -> resnet20. FitNet and AT are IPWD's misprints.
NUMBERS = {
    "fitnet": ("69.06", "IPWD Table 2"),
    "at": ("69.21", "IPWD Table 2"),
    "sp": ("69.67", "IPWD Table 2"),
    "cc": ("69.63", "IPWD Table 2"),
    "vid": ("70.38", "IPWD Table 2"),
    "rkd": ("69.61", "IPWD Table 2"),
    "pkt": ("70.34", "IPWD Table 2"),
    "ab": ("69.47", "IPWD Table 2"),
    "ft": ("69.84", "IPWD Table 2"),
    "nst": ("69.60", "IPWD Table 2"),
    "kd": ("70.66", "IPWD Table 2"),
    "crd": ("71.16", "IPWD Table 2"),
    "wsld": ("71.53", "IPWD Table 2"),
    "ipwd": ("71.32", "IPWD Table 2"),
    "fitnet+kd": ("70.70 ± 0.24", "CID Table 2"),
    "at+kd": ("71.08 ± 0.34", "CID Table 2"),
    "sp+kd": ("70.66 ± 0.12", "CID Table 2"),
    "cc+kd": ("71.30 ± 0.31", "CID Table 2"),
    "vid+kd": ("71.18 ± 0.09", "CID Table 2"),
    "rkd+kd": ("70.93 ± 0.25", "CID Table 2"),
    "pkt+kd": ("71.53 ± 0.26", "CID Table 2"),
    "crd+kd": ("71.63 ± 0.15", "CID Table 2"),
    "srrl+kd": ("71.44 ± 0.18", "CID Table 2"),
    "cskd+kd": ("71.30 ± 0.26", "CID Table 2"),
    "cid": ("71.90 ± 0.27", "CID Table 2"),
}


@pytest.mark.parametrize("method", NUMBERS)
def test_defaults_of_every_method_are_those_of_the_papers(results, tables, method):
    results.add_teacher()
    results.add(method=method, params=params(MethodRef(name=method)))
    assert NUMBERS[method] in printed(tables, results, method)


def test_ab_carries_kd_in_cids_table_of_cifar10(results, tables):
    results.add_teacher(dataset="cifar10")
    results.add(method="ab+kd", dataset="cifar10", student="resnet8", params=params(MethodRef(name="ab+kd")))
    assert printed(tables, results, "ab+kd") == [("88.85 ± 0.18", "CID Table 1")]


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("at", {"beta": 1.0}),
        ("at", {"variant": "paper"}),
        ("cc", {"beta": 0.003}),
        ("cc", {"variant": "paper"}),
        ("crd", {"negatives": 4096}),
        ("crd", {"replacement": True}),
        ("fitnet", {"variant": "paper"}),
        ("ft", {"pretrain_lr": 0.1}),
        ("rkd", {"angle": 25.0}),
        ("wsld", {"teacher_bn": "eval"}),
        ("ipwd", {"tau": 4.0}),
    ],
)
def test_other_parameters_of_the_other_methods(results, tables, method, change):
    results.add_teacher()
    results.add(method=method, params=params(MethodRef(name=method, params=change)))
    assert printed(tables, results, method) == []


def test_rows_that_differ_in_parameters_have_none_where_neither_is_the_papers(results, tables, teacher):
    results.add(method="sp+kd", params={"sp": {"beta": 1.0}}, **WRN)
    results.add(method="sp+kd", params={"sp": {"beta": 2.0}}, **WRN)
    assert printed(tables, results, "sp+kd") == []


def test_methods_that_the_papers_lack_have_none(results, tables):
    results.add_teacher()
    results.add(method="kd+sp", params={"kd": {"alpha": 1.0}, "sp": {}})
    assert printed(tables, results, "kd+sp") == []


def test_of_rows_that_differ_in_parameters_the_papers_has_it(results, tables, teacher):
    results.add(method="cid", params={"alpha": 1.0}, **WRN)
    results.add(method="cid", **WRN)
    assert printed(tables, results, "cid") == [CID]


@pytest.mark.parametrize(
    "params",
    [{"alpha": 10.0}, {"beta": 2.0}, {"tau": 1.0}, {"sr": False}, {"cr": False}, {"inv": False}, {"sr_loss": "mse"}],
    ids=lambda params: next(iter(params)),
)
def test_other_parameters_are_another_experiment(results, tables, teacher, params):
    results.add(method="cid", params=params, **WRN)
    assert printed(tables, results, "cid") == []


def test_parameters_of_the_parts_count_too(results, tables, teacher):
    results.add(method="fitnet+kd", params={"kd": {"gamma": 0.1, "alpha": 0.5, "tau": 4.0}}, **WRN)
    assert printed(tables, results, "fitnet+kd") == []


def test_rows_that_differ_in_the_recipe_have_it_where_it_agrees(results, tables, teacher):
    results.add(method="cid", **WRN)
    results.add(method="cid", lr=0.1, **WRN)
    assert printed(tables, results, "cid") == [CID]


def test_notes(results, tables):
    results.add_teacher()
    results.add(method="fitnet+kd")
    results.add(method="cid")
    (table,) = tables(results)
    assert table.notes == ("competitor + KD loss (CID Sec. 4.2)",)


@pytest.mark.parametrize(
    ("point", "numbers"),
    [
        ({"alpha": 65.0, "beta": 1.0}, [CID]),  # found what the paper has
        ({"alpha": 64.0, "beta": 1.0}, []),
        ({"alpha": 65.0}, [CID]),
    ],
)
def test_a_confirmed_point_has_the_number_where_it_is_the_papers(results, tables, teacher, point, numbers):
    results.add_search(point, 70.0, **WRN)
    results.add_confirmed(point, **WRN)
    assert printed(tables, results, "cid") == numbers


@pytest.mark.parametrize(("point", "numbers"), [({"train.lr": 0.05}, [CID]), ({"train.nesterov": False}, [])])
def test_a_recipe_that_a_search_chose_is_the_papers_where_that_tells_it(results, tables, teacher, point, numbers):
    results.add_confirmed(point, parameters=(), **WRN)
    assert printed(tables, results, "cid") == numbers


def test_weights_that_the_paper_does_not_tell_are_not_found_by_a_search(results, tables):
    own = {"dataset": "tiny_imagenet", **WRN}
    results.add_teacher(student="wrn_40_2", dataset="tiny_imagenet")
    results.add_confirmed({"alpha": 55.0}, params={"alpha": 55.0}, **own)
    assert printed(tables, results, "cid") == []
    results.add(method="cid", **own)
    assert [source for _, source in printed(tables, results, "cid")] == ["CID Table 3"]


def test_only_one_of_several_confirmed_points_has_the_number(results, tables, teacher):
    for number, alpha in enumerate((65.0, 30.0)):
        results.add_search({"alpha": alpha}, 70.0 + number, number=number, **WRN)
        results.add_confirmed({"alpha": alpha}, number=number, **WRN)
    (table,) = tables(results)
    found = {row.name: len(row.cells[0].published) for row in table.rows}
    assert found == {"Teacher": 1, "CID": 0, "CID (point=2nd best)": 1}
