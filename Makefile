# Everything is a make target: `make help`. Needs python3 (3.11 or newer, with venv), make and a shell.

# The distribution's own first, which is built with profile-guided optimisation and a fifth faster than what pyenv
# builds unless told otherwise; see docs/performance.md.
PYTHON ?= $(shell sh tools/find_python.sh)
# Processes that run tests at the same time.
WORKERS ?= 3
BIN := .venv/bin
PROTOS := $(shell find protos -mindepth 1) tools/build_protos.py tools/protoc_gen_interface.py
SOURCES := services tests tools bench samples
# Where `make check-breaking` compares to.
BASE ?= main

export PYTHONPATH := .:gen

.DEFAULT_GOAL := help
.PHONY: help setup protos run test matrix unit chaos check lint format bench lock check-breaking docs task-model clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
		| awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'

setup: gen/omnihub.binpb ## Make .venv from the hashed requirements, generate code from the contracts
	@:

protos: gen/omnihub.binpb ## Generate code from protos/, if it changed
	@:

run: setup ## Serve everything in one process, in the foreground (PORT=8080)
	@exec $(BIN)/python -m services serve

test: setup ## Run all tests; installs what they need where it can
	@sh tools/install_test_dependencies.sh
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
	@$(BIN)/python -m pytest -q -m alone tests/performance tests/integration/chat

matrix: setup ## Run the adapter test matrix and print it: every row for every adapter
	@$(BIN)/python -m tests.support.matrix -n $(WORKERS) --dist loadgroup

unit: setup ## Run the tests that need nothing but Python
	@$(BIN)/python -m pytest -q tests/unit tests/architecture

chaos: setup ## Kill workers, broker and database again and again under load: the long forms of the crash tests
	@sh tools/install_test_dependencies.sh
	@$(BIN)/python -m pytest -q -s -m chaos --timeout 1800 tests/chaos

check: lint ## Format, lint, types, imports, contracts, unit tests; under a minute
	$(BIN)/python -m pytest -q -n $(WORKERS) tests/unit tests/architecture

lint: setup ## The part of `make check` that runs no tests
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint ../gen/omnihub.binpb

format: setup ## Format the code and fix what the linter can fix
	$(BIN)/ruff check --fix-only $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

bench: setup ## Measure the request path beside Envoy and its rivals, 35 minutes; bench/results/
	@$(BIN)/python -m bench

check-breaking: setup ## Compare the contracts with BASE (reported) and the last release (must be compatible)
	@$(BIN)/python tools/check_breaking.py $(BASE)

docs: setup ## Write the documents that come from the contracts
	@$(BIN)/python tools/document_errors.py

task-model: setup ## Train the router's task classifier anew, and measure it on prompts it never saw
	@$(BIN)/python tools/train_tasks.py

lock: .setup/uv/bin/uv ## Pin the requirements anew, keeping versions that still fit (UPGRADE=1 takes the newest)
	$(COMPILE) requirements/runtime.in --output-file requirements/runtime.txt
	$(COMPILE) requirements/development.in --output-file requirements/development.txt

clean: ## Remove everything made here; data in .omnihub stays
	rm -rf .venv .setup gen gen.new build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find services tests tools bench samples -name __pycache__ -prune -exec rm -rf {} +

COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" .setup/uv/bin/uv pip compile --quiet --generate-hashes \
	--python-version 3.11 $(if $(UPGRADE),--upgrade)

.setup/python: requirements/runtime.txt requirements/development.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -m venv .venv || { echo 'Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Installing the pinned packages into .venv (a minute, once)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
		-r requirements/runtime.txt -r requirements/development.txt
	@printf '#!/bin/sh\nPYTHONPATH="%s:%s/gen" exec "%s/.venv/bin/python" -m services "$$@"\n' \
		"$(CURDIR)" "$(CURDIR)" "$(CURDIR)" > $(BIN)/omnihub && chmod +x $(BIN)/omnihub
	@mkdir -p .setup && touch $@

gen/omnihub.binpb: .setup/python $(PROTOS)
	@echo 'Generating code from protos/'
	@$(BIN)/python tools/build_protos.py

.setup/uv/bin/uv:
	@$(PYTHON) -m venv .setup/uv
	@.setup/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
