# The two commands of the README are `make demo` and `make test`; each sets up what it needs by itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiled beforehand, Python files that nobody imports would take 0.2 GB.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test check lint fuzz docs experiments-test test-lowest clean

# The core alone: no extra is needed to fit a grader and to use it.
demo: $(VENV)/.core
	$(BIN)/petm demo -o runs/demo --overwrite

# Two workers on two cores: a process of a test that took a thread for each core would slow both.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: lint test

# Every reader against damaged and hostile files; a file that fails is kept in runs/fuzz.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests/helpers $(BIN)/python tests/helpers/fuzzing.py --seconds $(FUZZ_SECONDS)

experiments-test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile experiments/tests

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site in runs/site: no warning, and nothing from the network.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The suite on the lowest versions that pyproject.toml admits, in an environment of its own, which takes 6 GB.
test-lowest: $(VENV)-lowest/.dev
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist loadfile

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) -c constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/$(INSTALL) -c constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/$(INSTALL) -c constraints.txt --editable '.[docs]'
	touch $@

$(VENV)-lowest/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/$(INSTALL) uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest runs
