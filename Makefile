# `make cram` trains a small model, `make test` runs all checks, `make help` lists the other targets.

ARGS ?=
PYTEST_ARGS ?= -n 2
PYTHON ?=

BIN := .venv/bin
READY := .venv/.complete

.PHONY: help setup cram test test-all lint lock clean
.DEFAULT_GOAL := help

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

$(READY): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON='$(PYTHON)' sh scripts/setup.sh

setup: $(READY) ## build .venv from requirements.lock if it is missing or out of date

cram: $(READY) ## train for ten minutes on two CPU cores on bundled text; overrides: make cram ARGS="budget=60s"
	$(BIN)/composer train.py yamls/cram-cpu.yaml $(ARGS)

test: lint ## lint, types and tests; select tests: make test PYTEST_ARGS="tests/budget -k ledger"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: lint ## `make test` with the slow tests; takes twice as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m ""

lint: $(READY) ## ruff (style and format) and mypy (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(READY) ## resolve pyproject.toml into requirements.lock; upgrade: make lock ARGS=--upgrade
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet $(ARGS) --output-file requirements.lock

clean: ## remove the environment and caches that make created; keep runs/ and data
	@if [ -e .venv/.made-by-setup ]; then rm -rf .venv; fi
	rm -rf .pytest_cache .mypy_cache .ruff_cache build cram_composer.egg-info
