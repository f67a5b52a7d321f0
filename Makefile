# The two commands of the README are `make demo` and `make test`; each sets up what it needs by itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint experiments-test clean

demo: $(VENV)/.installed
	$(BIN)/petm demo -o runs/demo --overwrite

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: lint test

experiments-test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile experiments/tests

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
