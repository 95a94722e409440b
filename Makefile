# Everything happens in the project's own virtual environment; a machine with python3 (>= 3.11, with venv), make and
# git needs nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
UV := $(BIN)/uv
SYNCED := $(VENV)/.synced
SOURCES := worker supervisor scripts tests
# A fleet is many processes, each of which would compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Most tests wait for processes, but fleets of several: two cores carry two at once in time. What needs the cores for
# itself is marked `alone`.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lock bench bench-full guard clean

help: ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SYNCED) ## Install everything into .venv

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "millhand needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 has no venv module; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(SYNCED): requirements.lock pyproject.toml | $(UV)
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(SYNCED) ## Run the whole thing on sample events, with embedded Valkey and model
	@$(BIN)/python scripts/demo.py

test: $(SYNCED) ## Run all tests (starts its own servers)
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup

check: $(SYNCED) ## Format, lint, types and import rules
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

format: $(SYNCED) ## Rewrite the sources in the project's format
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)

bench: $(SYNCED) ## Measure speed beside three of what one would take instead: seven minutes
	@$(BIN)/python -m scripts.bench.run

bench-full: $(SYNCED) ## The same with everybody, on every kind of server: with memory, latency and the rest: an hour
	@$(BIN)/python -m scripts.bench.run --full

guard: $(SYNCED) ## Print what an event costs against what was recorded
	@$(BIN)/python -m scripts.bench.guard

lock: $(UV) ## Resolve pyproject.toml anew into requirements.lock
	@$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade \
	  --extra embedded --group dev --group model --custom-compile-command 'make lock' \
	  --output-file requirements.lock pyproject.toml

clean: ## Remove what make made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .demo .bench
