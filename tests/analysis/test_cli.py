import sys
from pathlib import Path

import pytest

from analysis.__main__ import main


@pytest.fixture
def report(monkeypatch, capsys):
    """Run kd-report: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kd-report", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


def test_table_to_the_terminal(results, report):
    results.add()
    status, out, err = report("table", f"{results.path}/demo")
    assert (status, err) == (0, "")
    assert "KD  70.00 (1)" in out


@pytest.mark.parametrize(
    ("name", "content"), [("t.txt", "KD  "), ("t.md", "| KD |"), ("t.tex", "\\toprule"), ("t.csv", ",kd,")]
)
def test_the_suffix_names_the_form(results, report, tmp_path, name, content):
    results.add()
    status, out, err = report("table", results.path, "-o", str(tmp_path / "new" / name))
    assert (status, out) == (0, "")
    assert err == f"wrote {tmp_path / 'new' / name}\n"
    assert content in (tmp_path / "new" / name).read_text(encoding="utf-8")


def test_format_and_metric(results, report):
    results.add(test_ece=5.25)
    _, out, _ = report("table", results.path, "--format", "csv", "--metric", "test_ece")
    assert "demo,cifar100,resnet56/resnet20,1.0,kd,,test_ece,5.25,,1," in out


def test_html_stands_in_the_folder(results, report):
    results.add()
    status, _, _ = report("html", f"{results.path}/demo")
    assert status == 0
    assert (Path(results.path) / "demo" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_html_of_a_uri_needs_a_file(results, report, tmp_path):
    results.add()
    assert report("html", f"file://{results.path}")[::2] == (
        2,
        f"error: -o FILE is needed where the results are at a URI, but got only file://{results.path}.\n",
    )
    assert report("html", f"file://{results.path}", "-o", str(tmp_path / "r.html"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "RESULTS/none"], "sweeps in RESULTS: demo."),
        (["html", "RESULTS/none"], "sweeps in RESULTS: demo."),
        (["table", "RESULTS", "--metric", "acc"], "unknown metric 'acc'; known: test_top1, "),
        (["table", "RESULTS", "-o", "t.pdf"], "the suffix of -o must be one of .txt, .md, .tex, .csv"),
        (["table", "s3:"], "is neither the folder of a sweep nor of results"),
        (["table", "nowhere://bucket/x"], "cannot open nowhere://bucket"),
    ],
)
def test_errors_are_one_line(results, report, arguments, message):
    results.add()
    status, out, err = report(*(part.replace("RESULTS", results.path) for part in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.replace("RESULTS", results.path) in err


def test_a_truncated_file_is_named(results, report):
    trial = results.add()
    file = Path(results.path) / "demo" / "trials" / f"{trial}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    status, _, err = report("table", results.path)
    assert status == 2
    assert err.startswith(f"error: {file} is not a whole Parquet file")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["table", "html"])
def test_help_has_an_example(report, verb):
    status, out, _ = report(verb, "--help")
    assert status == 0
    assert f"Example: kd-report {verb} results/demo" in out
