# Two commands matter: make demo, make test. Both set themselves up.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.14 3.13 3.12 3.11,$(shell command -v python$(v) 2>/dev/null)) $(shell command -v python3 2>/dev/null))
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
STATES ?= 20000
SEEDS ?= 200
NAME ?= ingest

.PHONY: setup demo test check bench crash simulate kill clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "python3.11 or newer is missing: install the package python3 (Debian, Ubuntu) or python3.11"; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version)"; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "the venv module is missing: install the package python3-venv"; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/ebbgate demo $(DEMO_ARGS)

test: setup
	$(BIN)/python -m pytest tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.$(subst -,_,$(NAME))

crash: setup
	$(BIN)/python -m tests.crash.run --states $(STATES)

simulate: setup
	$(BIN)/python -m tests.simulation.run --seeds $(SEEDS)

kill: setup
	$(BIN)/python -m pytest tests/kill -m slow

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
