# Two commands: `make demo` shows what it does, `make test` runs what CI runs.
# PYTHON chooses the interpreter (3.11 or newer), VENV the place of the virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export NO_MKDOCS_2_WARNING := 1
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Imported by the tests, but its own requirements contradict ours (it wants numpy 1); its readers do not mind.
NO_DEPS := configilm

.PHONY: demo test lint types docs system clean

demo: $(VENV)/.demo-installed
	$(BIN)/reben-cloud demo

test: $(VENV)/.test-installed system lint types
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/mypy

docs: $(VENV)/.test-installed
	$(BIN)/mkdocs build --strict --quiet

system:
	infra/test-packages.sh

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) ..."
	$(PIP) install -c constraints.txt -e '.[lmdb]'
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) ..."
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps $(NO_DEPS)
	@touch $@ $(VENV)/.demo-installed

clean:
	rm -rf $(VENV) site build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
