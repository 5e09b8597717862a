# Two commands matter: make demo, make test. Both set themselves up.
SHELL := /bin/bash
# the newest python that really runs and is 3.11 or newer
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
WORKERS ?= 3
STATES ?= 20000
SEED ?= 0
MUTANTS_ARGS ?=
SEEDS ?= 100
HOURS ?= 48
MINUTES ?= 30
CYCLES ?= 500
CUTS ?= 500
RUNS ?= 200
READINGS ?= 1000000000
INPUTS ?= 100000
NAME ?= ingest

BENCH_NAMES := ingest commit block segment wear recovery query drain latency opcua-subscribe opcua-read modbus-read modbus-plan

.PHONY: setup demo test check bench bench-all bench-data bench-peers bench-report billion crash mutants model simulate plant soak fuzz kill kill-ring faults clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: install the package python3 (Debian 12, Ubuntu 24.04) or python3.11"; exit 3; }
	@command -v git >/dev/null || { echo "git is missing: install the package git"; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "the venv module is missing: install the package python3-venv"; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/ebbgate demo $(DEMO_ARGS)

test: setup  # most tests wait for servers and clocks: three at a time are right for two cores
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.$(subst -,_,$(NAME))

# everything again, kept in benchmarks/results, then docs/benchmarks.md: about an hour on a quiet machine
bench-all: setup bench-peers bench-data
	@for name in $(BENCH_NAMES); do $(BIN)/python -m benchmarks.$${name//-/_} --save || true; done
	$(MAKE) bench-report

# an hour and 4 bytes of disk a reading; goes on where it was stopped
billion: setup
	$(BIN)/python -m benchmarks.billion --readings $(READINGS) --save
	$(MAKE) bench-report

bench-report: setup
	$(BIN)/python -m benchmarks.report

# stores to compare with that pip has; PostgreSQL 15 and redis-server come from the distribution
bench-peers: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt

bench-data: setup
	$(BIN)/python -m benchmarks.data

crash: setup
	$(BIN)/python -m tests.crash.run --states $(STATES) --seed $(SEED)

mutants: setup
	$(BIN)/python -m tests.mutants.run $(MUTANTS_ARGS)

model: setup
	$(BIN)/python -m tests.model.run

simulate: setup
	$(BIN)/python -m tests.simulation.run --seeds $(SEEDS)

plant: setup  # days of a plant on virtual time
	$(BIN)/python -m tests.simulation.hours --hours $(HOURS)

soak: setup  # real processes, 20,000 readings a second
	$(BIN)/python -m tests.soak.run --minutes $(MINUTES)

fuzz: setup
	$(BIN)/python -m tests.fuzz.run --inputs $(INPUTS) --seed $(SEED)

kill: setup
	$(BIN)/python -m pytest tests/kill -m slow

kill-ring: setup  # kill -9 of a process that writes a ring, at named points and random moments
	$(BIN)/python -m tests.faults.kill --cycles $(CYCLES)

faults: kill-ring  # a real disk that fails: also power cuts under ext4, refused system calls
	$(BIN)/python -m tests.faults.power_cut --states $(CUTS)
	$(BIN)/python -m tests.faults.inject --runs $(RUNS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
