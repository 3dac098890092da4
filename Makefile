# One verb per task. Everything stands on `install`, which does nothing while .venv is newer than pyproject.toml.
# PYTHON=... chooses the interpreter; pip's own settings (PIP_INDEX_URL, pip.conf) are respected.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXTRAS := api,cli,pycrdt,sync,libp2p,test,dev,fuzz
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3)
SOURCES := $(wildcard deltalog audit sync tests benchmarks)

CRASH_ROUNDS ?= 1000
POWERCUT_ROUNDS ?= 2000
FUZZ_TARGETS ?= codec sync
FUZZ_S ?= 60
SIMULATION_SEEDS ?= 10000
PYTEST_ARGS ?=
# Processes of tests; more than two cores, since a third of the time a test waits for something.
JOBS ?= 3

.PHONY: help install demo test coverage lint types floors docs check bench crash powercut simulation fuzz nightly format clean

help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 12

install: $(STAMP)  ## make .venv with every extra and development tool

$(STAMP): pyproject.toml
	@python=; \
	for candidate in $(PYTHONS); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11 or later among: $(PYTHONS). Install one (Debian 12: apt-get install python3 python3-venv) or say PYTHON=/path/to/python." >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$python cannot make virtual environments: it has no ensurepip. On Debian: apt-get install python3-venv (for the python3 of the system) or python3.N-venv." >&2; exit 1; \
	fi; \
	echo "$(VENV): installing deltalog[$(EXTRAS)] with $$python"; \
	"$$python" -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' && \
	rm -rf $(VENV)/lib/python3.*/site-packages/trio-stubs && \
	touch $@  # libp2p brings stubs of an old trio, which would hide the types that trio has itself

demo: $(STAMP)  ## the story the README tells, in under 30 seconds
	@$(BIN)/python -m deltalog.app demo
	@$(BIN)/python -m deltalog.app demo audit
	@$(BIN)/python -m deltalog.app demo sync

test: $(STAMP)  ## all tests but the nightly programmes
	@$(BIN)/python -m compileall -q $(SOURCES)  # hundreds of children read it, also where Python may not write it
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

coverage: $(STAMP)  ## the same tests, with the branches they miss
	@$(BIN)/python -m coverage run -m pytest $(PYTEST_ARGS)
	@$(BIN)/python -m coverage report

lint: $(STAMP)  ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)  ## mend what of it a machine can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict
	@$(BIN)/mypy $(SOURCES)

floors: $(STAMP)  ## who may import whom
	@$(BIN)/lint-imports --no-cache

docs: $(STAMP)  ## build/docs, warnings are errors
	@$(BIN)/sphinx-build -q -W --keep-going -n -E -b html docs build/docs && echo "build/docs/index.html"

check: lint types floors docs  ## all that needs no run

bench: $(STAMP)  ## the figures, as JSON and a table
	@$(BIN)/python -m benchmarks

crash: $(STAMP)  ## processes killed with SIGKILL, CRASH_ROUNDS=1000
	@$(BIN)/python -m pytest -m crash --rounds $(CRASH_ROUNDS) $(PYTEST_ARGS)

powercut: $(STAMP)  ## simulated power cuts, POWERCUT_ROUNDS=2000
	@$(BIN)/python -m pytest -m powercut --rounds $(POWERCUT_ROUNDS) $(PYTEST_ARGS)

simulation: $(STAMP)  ## clusters under faults, deterministic, SIMULATION_SEEDS=10000
	@$(BIN)/python -m tests.simulation 0 $(SIMULATION_SEEDS)

fuzz: $(STAMP)  ## atheris on the decoders, FUZZ_S=60 seconds each
	@$(BIN)/python -c 'import atheris' 2>/dev/null || { echo "make: atheris has no wheel for this machine (it needs Linux on x86-64)" >&2; exit 1; }
	@set -e; for target in $(FUZZ_TARGETS); do $(BIN)/python -m tests.fuzz.$$target -max_total_time=$(FUZZ_S); done

nightly: $(STAMP)  ## the long form of every programme, and the tests marked slow
	@$(BIN)/python -m pytest --nightly -m "" $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory fuzz FUZZ_S=3600

clean:  ## back to a fresh clone
	rm -rf $(VENV) build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
