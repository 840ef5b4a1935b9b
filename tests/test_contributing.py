"""The diff in CONTRIBUTING.md is what the repository has."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_diff_of_the_smallest_method_is_true():
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    hunks = re.split(r"^--- .*\n\+\+\+ (.*)\n", diff, flags=re.MULTILINE)[1:]
    added = {
        name: [line[1:] for line in hunk.splitlines() if line.startswith("+")]
        for name, hunk in zip(hunks[::2], hunks[1::2], strict=True)
    }
    assert list(added) == ["kdtrain/methods/ls.py", "kdtrain/methods/__init__.py", "tests/kdtrain/test_ls.py"]
    assert added["kdtrain/methods/ls.py"] == (ROOT / "kdtrain/methods/ls.py").read_text(encoding="utf-8").splitlines()
    registry = (ROOT / "kdtrain/methods/__init__.py").read_text(encoding="utf-8").splitlines()
    assert len(added["kdtrain/methods/__init__.py"]) == 2
    assert set(added["kdtrain/methods/__init__.py"]) <= set(registry)


def test_the_smallest_method_is_the_one_shown():
    files = {path.stem: len(path.read_text(encoding="utf-8")) for path in (ROOT / "kdtrain/methods").glob("*.py")}
    methods = {name: size for name, size in files.items() if name not in {"__init__", "base", "composed", "maps"}}
    assert sorted(methods, key=lambda name: methods[name])[:2] == ["vanilla", "ls"]
