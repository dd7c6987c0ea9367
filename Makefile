# Everything runs in .venv, which these targets make and keep up to date. A fresh machine needs only Python 3.11+ and make.
#
#   make test ARGS="-k retry -x"        arguments for the program that a target runs
#   make test PYTHON=python3.13         the interpreter that .venv is made from (`make clean` first, to change it)

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
LOCK := requirements/dev.lock
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
TYPED := src scripts $(wildcard tests/typing)
SUBMAKE := $(MAKE) --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-peers soak mutants clean docs generate lint types imports size fix lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(CORE) ## see it work, in a minute
	@$(BIN)/actionqueue demo $(ARGS)

test: $(DEV) ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

check: lint types docs size imports ## run what CI runs: every static check, then the tests
	@$(SUBMAKE) test

bench: $(DEV) ## measure, against this machine's own floor and the last recorded run
	@$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(DEV) ## measure beside other task queues
	@$(BIN)/python -m benchmarks.peers $(ARGS)

soak: $(DEV) ## run the tests that take minutes under load
	@$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0 $(ARGS)

mutants: $(DEV) ## break the engine in one place after another and see that a test notices
	@$(BIN)/python -m scripts.mutants $(ARGS)

docs: $(DEV) ## check the documentation's links and code
	@$(BIN)/python scripts/check_docs.py

generate: $(DEV) ## write the generated parts of the documentation anew
	@$(BIN)/python -m scripts.state_diagram
	@$(BIN)/python -m scripts.reference
	@$(BIN)/python scripts/scenario_index.py

lint: $(DEV) ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(DEV) ## mypy and pyright, both strict
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(DEV) ## the architecture's import directions
	@$(BIN)/python -m pytest -q tests/test_import_direction.py

size: $(DEV) ## report files and functions that grew too long
	@$(BIN)/python scripts/size_report.py $(ARGS)

fix: $(DEV) ## apply ruff's fixes and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock: ## write requirements/dev.lock anew, from the newest versions that pyproject.toml allows
	@rm -rf $(VENV)-lock
	@$(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev,integration]'
	@{ echo '# Written by `make lock`: the versions that development and CI use.'; \
	   $(VENV)-lock/bin/python -m pip --disable-pip-version-check freeze --exclude-editable; } > $(LOCK)
	@rm -rf $(VENV)-lock

clean: ## remove everything that these targets made
	rm -rf $(VENV) $(VENV)-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The library with its own dependencies, nothing else: what a user gets, at the versions that we test.
$(CORE): pyproject.toml $(LOCK)
	@command -v "$(PYTHON)" > /dev/null || { \
	   echo "No '$(PYTHON)' here. ActionQueue needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	   echo "ActionQueue needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." \
	        "Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Preparing $(VENV) with $$("$(PYTHON)" --version) ..."
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP_INSTALL) --constraint $(LOCK) --editable .
	@touch $@

$(DEV): $(CORE)
	@echo "Installing the development tools ..."
	@$(PIP_INSTALL) --requirement $(LOCK)
	@touch $@
