# `make demo` and `make test` install what they need into .venv, and are quick the second time.
# `make check` is what CI runs. Another Python: `make demo PYTHON=python3.13`.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := .venv/installed-demo
INSTALLED := .venv/installed
PIP_INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
COVERAGE := --cov=search --cov=trainables --cov=spaces

.PHONY: demo test coverage test-long check lint faults cluster-test cluster-speed fuzz mutants clean

demo: $(DEMO)
	$(BIN)/python -m search.run

# Two processes in parallel.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not long and not alone"

# The same tests with line coverage of the packages.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not long and not alone" $(COVERAGE) --cov-report=
	$(BIN)/python -m pytest -m alone $(COVERAGE) --cov-append

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# What `make test` leaves out, to be run before a change of what it covers: slow tests, and those
# that need the machine to themselves.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m "long or alone"

# Searches broken in twenty-two ways and resumed; the full disk needs root and is skipped without it.
faults: $(INSTALLED)
	$(BIN)/python -m tests.system.faults.injection

# Searches on three hosts made of network namespaces; root needed; about 30 minutes on 2 cores.
cluster-test: $(INSTALLED)
	$(BIN)/python -m tests.system.cluster.scenarios
	$(BIN)/python -m tests.system.cluster.places

# A search on two of these hosts with a core each, against one; 15 minutes with nothing else running.
cluster-speed: $(INSTALLED)
	$(BIN)/python -m tests.system.cluster.two_hosts

# 10,000 damaged bodies against a running server, atheris on the readers, and names, run files and
# images of any shape: about 25 minutes.
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.system.fuzz.bodies
	$(BIN)/python -m tests.system.fuzz.readers image -runs=20000
	$(BIN)/python -m tests.system.fuzz.readers model -runs=5000
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/system/fuzz/test_inputs.py

# Small mistakes put into copies of the code, each of which tests must notice; 15 minutes on 2 cores.
mutants: $(INSTALLED)
	$(BIN)/python -m tests.system.mutants

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) .
	@touch $@

$(INSTALLED): $(DEMO)
	$(PIP_INSTALL) '.[dev,fuzz,dashboard,export,serve,heif,mlflow,wandb]'
	@touch $@

clean:
	rm -rf .venv .coverage .mypy_cache .ruff_cache .pytest_cache *.egg-info
