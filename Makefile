# Two commands do it all: `make cram` trains a small model here, `make test` checks everything. `make help` lists the rest.

ARGS ?=
PYTEST_ARGS ?= -n 2
PYTHON ?=

BIN := .venv/bin
READY := .venv/.complete
OLDEST := .venv-oldest
CRAM := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),cram-gpu.yaml,cram-cpu.yaml)

.PHONY: help setup cram test test-all test-oldest test-services lint docs lock clean
.DEFAULT_GOAL := help

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

$(READY): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON='$(PYTHON)' sh scripts/setup.sh

setup: $(READY) ## build .venv from requirements.lock, if it is missing or out of date

cram: $(READY) ## train for ten minutes, on the GPU if there is one, on embedded text: make cram ARGS="budget=60s"
	$(BIN)/cram train yamls/$(CRAM) $(ARGS)

test: lint ## lint, types and tests; choose tests: make test PYTEST_ARGS="tests/budget -k ledger"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: lint ## the same and the slow tests, which takes twice as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m ""

test-oldest: $(READY) $(OLDEST)/.complete ## run the tests on the oldest supported versions, in an environment of their own
	OMP_NUM_THREADS=1 CRAM_OTHER_PYTHON='$(CURDIR)/$(BIN)/python' $(OLDEST)/bin/python -m pytest $(PYTEST_ARGS)

# --no-config: without the overrides of pyproject.toml, as pip resolves.
$(OLDEST)/.complete: requirements-oldest.txt pyproject.toml | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --no-config --python $(OLDEST)/bin/python -c requirements-oldest.txt -e '.[dev]'
	@touch $@

test-services: $(READY) ## run the tests that need Slurm and other services; what is not installed is skipped by name
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m services -rs -n 2 --dist loadfile tests/services

lint: $(READY) ## ruff (style and format) and mypy (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## build the documentation into site/; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(READY) ## resolve pyproject.toml into requirements.lock; newer versions: make lock ARGS=--upgrade
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet $(ARGS) --output-file requirements.lock

clean: ## remove the environment and the caches that make created; runs/ and your data stay
	@if [ -e .venv/.made-by-setup ]; then rm -rf .venv; fi
	rm -rf $(OLDEST) .pytest_cache .mypy_cache .ruff_cache build site cram_composer.egg-info
