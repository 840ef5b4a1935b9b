"""Reports of a sweep do not change when its files are merged."""

from analysis.html import render
from analysis.load import load, load_epochs, resolve
from analysis.provenance import build_provenance
from sweeps.store import TEACHERS, Store


def test_tables_report_and_searches_are_those_of_the_small_files(confirmed, tables):
    confirmed.add_teacher()
    trial_id = confirmed.add(curve=[50.0, 60.0, 70.0])
    confirmed.add_epochs("f" * 16, test=[10.0])  # under way
    before = tables(confirmed), build_provenance(load(confirmed.path, "demo")), render(confirmed.path, ["demo"])
    for name in ("demo", TEACHERS):
        store = Store(confirmed.path, name)
        for kind in ("trials", "epochs"):
            store.merge(kind, store.ids("trials"))
        assert not store.ages("trials")
    after = tables(confirmed), build_provenance(load(confirmed.path, "demo")), render(confirmed.path, ["demo"])
    assert before[:2] == after[:2]
    assert before[2] == after[2]
    assert load(confirmed.path, "demo").under_way == 1
    assert resolve(confirmed.path) == (confirmed.path, ["demo"])
    assert load_epochs(confirmed.path, "demo", [trial_id])["test_acc"].tolist() == [50.0, 60.0, 70.0]
