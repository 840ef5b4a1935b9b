import io

import pandas as pd
import pytest

from analysis.render import latex, long_csv, markdown, text


@pytest.fixture
def three(results, tables):
    """KD fails once, SP + KD is best, CID has one seed of two; SP + KD has a number in the CID paper."""
    results.add_teacher()
    for seed, kd, sp in ((1, 70.0, 72.0), (2, None, 74.0)):
        results.add(seed=seed, test_top1=kd or 0.0, status="completed" if kd else "failed", error_type="E", error="E")
        results.add(seed=seed, test_top1=sp, method="sp+kd")
        results.add(seed=seed, test_top1=71.0, method="my_own")
    results.add(seed=1, test_top1=73.0, method="cid")
    return tables(results)


def test_text(three):
    assert text.render(three).splitlines() == [
        "CIFAR-100: test top-1 accuracy (%), mean ± sample standard deviation (number of trials). "
        "Sweep demo: 6 completed, 1 failed.",
        "",
        "         ResNet-56 → ResNet-20",
        "───────  ────────────────────────────────────",
        "Teacher  72.34 (1)",
        "         paper 72.34 (CID Table 2)",
        "         paper 72.34 (IPWD Table 2)",
        "KD       70.00 (1/2), 1 failed",
        "         paper 70.66 ± 0.24 (CID Table 2)",
        "         paper 70.66 (IPWD Table 2)",
        "SP + KD  73.00 ± 1.41 (2) *",
        "         paper 70.66 ± 0.12 (CID Table 2) [a]",
        "CID      73.00 (1/2)",
        "         paper 71.90 ± 0.27 (CID Table 2)",
        "my_own   71.00 ± 0.00 (2) +",
        "",
        "* best, + second",
        "[a] competitor + KD loss (CID Sec. 4.2)",
    ]


def test_text_for_a_terminal(three):
    lines = text.render(three, ansi=True).splitlines()
    assert "SP + KD  \x1b[1m73.00 ± 1.41\x1b[0m (2)" in lines
    assert "my_own   \x1b[4m71.00 ± 0.00\x1b[0m (2)" in lines


def test_text_is_cut_into_blocks_that_fit(results, tables):
    for depth in (20, 32, 44):
        results.add(student=f"resnet{depth}", teacher="resnet56")
    lines = text.render(tables(results), width=60).splitlines()
    assert [line for line in lines if "→" in line] == [
        "    ResNet-56 → ResNet-20  ResNet-56 → ResNet-32",
        "    ResNet-56 → ResNet-44",
    ]


def test_text_does_not_steer_the_terminal(results, tables):
    results.add(method="\x1b[2Jkd")
    assert "\x1b" not in text.render(tables(results))


def test_markdown(three):
    lines = markdown.render(three).splitlines()
    assert lines[2:4] == ["| Method | ResNet-56 → ResNet-20 |", "| :-- | --: |"]
    assert "| SP + KD | **73.00 ± 1.41** (2)<br>paper 70.66 ± 0.12 (CID Table 2)<sup>a</sup> |" in lines
    assert r"| my\_own | <u>71.00 ± 0.00</u> (2) |" in lines
    assert "<sup>a</sup> competitor + KD loss (CID Sec. 4.2)" in lines


def test_markdown_escapes(results, tables):
    results.add(method="a|b*<i>")
    assert r"| a\|b\*&lt;i> |" in markdown.render(tables(results))


def test_latex(three):
    lines = latex.render(three).splitlines()
    assert lines[0] == r"% Needs \usepackage{booktabs}."
    assert r"\toprule" in lines
    assert r"\bottomrule" in lines
    assert r"my\_own & \underline{71.00 $\pm$ 0.00} (2) \\" in lines
    assert r"SP + KD & \textbf{73.00 $\pm$ 1.41} (2) \\" in lines
    assert r" & {\footnotesize paper 70.66 $\pm$ 0.12 (CID Table 2)\textsuperscript{a}} \\" in lines
    assert r"{\footnotesize \textsuperscript{a} competitor + KD loss (CID Sec. 4.2)}" in lines


def test_latex_heading_with_fractions(results, tables):
    results.add(fraction=0.2)
    results.add(fraction=0.4)
    lines = latex.render(tables(results)).splitlines()
    assert r"Method & \multicolumn{2}{c}{ResNet-56 $\rightarrow$ ResNet-20} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    assert r" & 20 \% & 40 \% \\" in lines


def test_latex_escapes(results, tables):
    results.add(method="a_b&c%d#e{f}~^\\")
    assert r"a\_b\&c\%d\#e\{f\}\textasciitilde{}\textasciicircum{}\textbackslash{} & " in latex.render(tables(results))


def test_csv(three):
    frame = pd.read_csv(io.StringIO(long_csv.render(three)), keep_default_na=False, na_values=[""])
    sp = frame[frame["method"] == "sp+kd"].iloc[0]
    assert (sp["pair"], sp["fraction"], sp["metric"]) == ("resnet56/resnet20", 1.0, "test_top1")
    assert (sp["mean"], sp["std"], sp["n"], sp["mark"]) == (73.0, pytest.approx(2**0.5), 2, "best")
    assert (sp["cid"], sp["cid_std"], sp["cid_table"]) == (70.66, 0.12, 2)
    assert pd.isna(sp["ipwd"])
    assert frame["n_failed"].tolist() == [0, 1, 0, 0, 0]
    assert frame["n_missing"].tolist() == [0, 0, 0, 1, 0]


def test_csv_of_a_student_without_a_pair(results, tables):
    results.add(method="vanilla", teacher=None, status="diverged")
    frame = pd.read_csv(io.StringIO(long_csv.render(tables(results))))
    assert frame["pair"].tolist() == ["resnet20"]
    assert frame["mean"].isna().all()


def test_a_cell_with_nothing_is_a_dash(results, tables):
    results.add(method="kd")
    results.add(method="cid", teacher="resnet110")
    assert "| KD | – | 70.00 (1) |" not in markdown.render(tables(results))
    assert "| KD | 70.00 (1) | – |" in markdown.render(tables(results))


@pytest.mark.parametrize(
    ("render", "content"),
    [
        (text.render, "Sweep demo: no completed trial yet: 1 under way.\n"),
        (markdown.render, "Sweep demo: no completed trial yet: 1 under way.\n"),
        (latex.render, "% Needs \\usepackage{booktabs}.\n% Sweep demo: no completed trial yet: 1 under way.\n"),
        (long_csv.render, ",".join(long_csv.FIELDS) + "\n"),
    ],
)
def test_no_trial_has_ended(results, tables, render, content):
    results.add_epochs("c" * 16, test=[1.0])
    assert render(tables(results)) == content
