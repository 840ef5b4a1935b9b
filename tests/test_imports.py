"""Imports go one way: analysis -> sweeps.{store,schema,points,optuna_studies}; sweeps -> kdtrain.

Each layer is imported in a fresh process.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RAY_FILES = {"sweeps/scheduler.py", "sweeps/search.py", "sweeps/trainable.py", "sweeps/progress.py", "sweeps/run.py"}


def modules_after(statement: str) -> set[str]:
    """The names in sys.modules of a fresh process that ran `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed", "forbidden"),
    [
        ("import kdtrain.cli", {"torch"}, {"ray", "pyarrow", "sweeps", "analysis"}),
        ("import sweeps.store", {"pyarrow"}, {"ray", "torch", "kdtrain", "analysis"}),
        ("import sweeps.cli", {"torch", "pyarrow"}, {"ray", "optuna", "analysis"}),  # plan and status start at once
        ("import sweeps.optuna_studies", {"optuna"}, {"ray", "torch", "kdtrain", "analysis"}),
        ("import analysis.cli, analysis.html", {"pyarrow"}, {"ray", "torch", "kdtrain", "sweeps.spec", "optuna"}),
        ("import analysis.search_page", {"optuna", "plotly"}, {"ray", "torch", "kdtrain", "sweeps.spec"}),
    ],
)
def test_layer_loads_only_what_it_may(statement, allowed, forbidden):
    loaded = modules_after(statement)
    assert allowed <= loaded
    assert not forbidden & loaded


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_only_these_files_import_ray():
    files = [path for package in ("kdtrain", "sweeps", "analysis") for path in (ROOT / package).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in files if "ray" in imported(path)} == RAY_FILES


def test_analysis_imports_only_the_leaves_of_sweeps():
    found = set()
    for path in (ROOT / "analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "sweeps":
                found |= {f"sweeps.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sweeps."):
                found.add(node.module)
    assert found == {"sweeps.schema", "sweeps.store", "sweeps.points", "sweeps.optuna_studies"}


@pytest.mark.parametrize(
    ("package", "command", "absent", "extra"),
    [
        ("kdtrain", "kd-train", "torch", "train"),
        ("sweeps", "kd-sweep", "torch", "sweep"),
        ("analysis", "kd-report", "pandas", "report"),
    ],
)
def test_missing_extra_is_one_line_that_says_how_to_install_it(package, command, absent, extra):
    code = f"import sys; sys.modules['{absent}'] = None; sys.argv = ['x', 'table', '.']; import runpy; "
    code += f"runpy.run_module('{package}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {command} needs {absent}: pip install 'kdsweep[{extra}]'.\n"
