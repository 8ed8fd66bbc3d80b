# Two commands do all the set-up: `make demo` and `make test`. Each installs what it needs into
# .venv, and is quick the second time. `make check` is what CI runs.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check lint faults clean

demo: $(INSTALLED)
	$(BIN)/python -m search.run

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Searches broken at random moments and carried on: about half an hour on 2 cores.
faults: $(INSTALLED)
	$(BIN)/python tests/faults/injection.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
