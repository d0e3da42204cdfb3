# Three commands: `make demo` shows what it does, `make quick` is the fast loop for changing it, `make test` runs what CI runs.
# PYTHON chooses the interpreter (3.11 or newer), VENV the place of the virtual environment, PYTEST_ARGS goes to pytest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export NO_MKDOCS_2_WARNING := 1
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Imported by the tests, but their own requirements contradict ours (numpy 1 and a Python before 3.12; pandas 2);
# what they are used for does not mind.
NO_DEPS := configilm stackstac
# A process per core, each with whole files, in the order of tests/conftest.py: the longest first.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# No S3 server, no browser, and nothing slow; CONTRIBUTING.md says what that is.
QUICK := $(PARALLEL) -m "not slow and not s3 and not browser"

.PHONY: demo quick test lint types docs notebooks coverage system floors pythons containers clean

demo: $(VENV)/.demo-installed
	$(BIN)/reben-cloud demo

test: $(VENV)/.test-installed system lint types
	$(BIN)/python -m pytest -q $(PARALLEL) $(PYTEST_ARGS)

# Installs no torch; the tests that need it run where it is installed already.
quick: $(VENV)/.quick-installed
	$(BIN)/python -m pytest -q $(QUICK) $(PYTEST_ARGS)

# Which lines the quick tests run, torch's included; `make coverage QUICK=` takes all tests.
coverage: $(VENV)/.test-installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(QUICK) $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

# The quick tests with the oldest releases that pyproject.toml allows, to be run on the oldest Python.
floors: VENV := $(VENV)-floors
floors:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct -e '.[test]'
	$(BIN)/python -m pytest -q $(QUICK) $(PYTEST_ARGS)

# The quick tests on a Python that only a newer Debian has: make pythons SUITE=sid PYTHON=python3.14
pythons:
	infra/pythons.sh $(SUITE) $(PYTHON)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/mypy

docs: $(VENV)/.test-installed
	$(BIN)/mkdocs build --strict --quiet

# Runs the notebooks and keeps what they show.
notebooks: $(VENV)/.test-installed system
	$(BIN)/python -m tests.notebooks

# Builds the image and runs it as the compose file says, with Debian's podman and buildah; not part of `make test`.
containers: $(VENV)/.test-installed system
	$(BIN)/python infra/containers.py

system:
	infra/test-packages.sh

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) ..."
	$(PIP) install -c constraints.txt -e '.[lmdb]'
	@touch $@

$(VENV)/.quick-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) ..."
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.demo-installed

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) ..."
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps --ignore-requires-python $(NO_DEPS)
	@touch $@ $(VENV)/.demo-installed $(VENV)/.quick-installed

clean:
	rm -rf $(VENV) site build dist demo htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
