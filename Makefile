# make demo: a first sweep, end to end.   make test: all tests.   Both make the environment they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kdsweep-installed

.PHONY: demo test check docs bench bench-methods bench-search clean

demo: $(STAMP)
	$(BIN)/kd-sweep run sweeps/specs/demo.toml
	$(BIN)/kd-report table results/demo
	$(BIN)/kd-report html results/demo -o results/demo/report.html

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/kd-train methods --markdown > docs/methods.md.tmp
	mv docs/methods.md.tmp docs/methods.md

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-methods: $(STAMP)
	$(BIN)/python -m benchmarks methods

bench-search: $(STAMP)
	$(BIN)/python -m benchmarks search

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
