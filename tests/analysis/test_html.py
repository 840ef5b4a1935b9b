import json
import re
from html.parser import HTMLParser

from plotly.offline import get_plotlyjs

from analysis.html import render
from sweeps.store import Store

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Counts elements, keeps attributes and the text of scripts; checks that elements are closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.scripts = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def sweep_with_figures(results):
    results.add_teacher()
    for seed in (1, 2):
        for fraction in (0.2, 1.0):
            results.add(seed=seed, fraction=fraction, curve=[10.0, 20.0])
            results.add(seed=seed, fraction=fraction, method="fitnet+kd", curve=[10.0, 20.0])
    return render(results.path, ["demo"])


def test_everything_is_inside(results):
    page = sweep_with_figures(results)
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert not re.search(r"https?://", own)
    assert not re.search(r"@import|url\(", own)
    for tag, attributes in Page(own).elements:
        assert tag != "link"
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_what_is_shown(results):
    page = sweep_with_figures(results)
    shown = Page(page)
    assert shown.count("figure") == 3  # two of epochs, one of fractions
    assert sum("data-plot" in attributes for _, attributes in shown.elements) == 3
    assert sum(attributes.get("aria-sort") == "none" for _, attributes in shown.elements) == 11
    for heading in ("Leaderboard", "Table", "Accuracy over epochs", "Provenance", "Teachers"):
        assert f">{heading}</h" in page
    assert "paper 70.70 ± 0.24 (CID Table 2)" in page
    assert 'title="competitor + KD loss (CID Sec. 4.2)"' in page


def test_data_cannot_inject(results):
    results.add(method=EVIL, host=EVIL, student=EVIL, curve=[10.0])
    results.add(seed=2, status="failed", error_type="E", error=f"Traceback\nE: {EVIL}")
    Store(results.path, "demo").write_bytes(EVIL.encode(), "spec.toml")
    page = Page(render(results.path, ["demo"]))
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    # The figure's data, plotly.js and the report's own script, and no other.
    assert len(page.scripts) == 3
    assert json.loads(page.scripts[0])["data"][0]["name"].startswith("&lt;/script&gt;")


def test_failures_and_spec(results):
    results.add(status="failed", error_type="OSError", error="Traceback\nOSError: disk full")
    Store(results.path, "demo").write_bytes(b'name = "demo"', "spec.toml")
    page = render(results.path, ["demo"])
    assert "no completed trial yet: 1 failed" in page
    assert "OSError: disk full" in page
    assert "name = &#34;demo&#34;" in page


def test_no_trial_has_ended(results):
    results.add_epochs("c" * 16, test=[1.0])
    page = render(results.path, ["demo"])
    assert "no completed trial yet: 1 under way" in page
    assert Page(page).count("table") == 0
    assert get_plotlyjs() not in page


def test_several_sweeps(results):
    results.add("one", curve=[10.0])
    results.add("two", curve=[10.0])
    page = render(results.path, ["one", "two"])
    assert page.count(get_plotlyjs()) == 1
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
