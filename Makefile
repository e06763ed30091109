# `make demo` and `make test` do everything on a fresh machine; they need Python 3.11 or later, make and a package index.

PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together, since they share what they built. Two processes with a thread each do not wait for
# each other; with two threads each they would, at every barrier.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
DEMO_NAME := smollm2-135m-instruct

.PHONY: setup demo test quick lint clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and "slmpack: found Python " + v + "; expected 3.11 or later; install one and type: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	@touch $@

demo: setup
	@$(BIN)/slmpack package
	@echo '> What is the capital of France?'
	@$(BIN)/slmpack chat models:/$(DEMO_NAME)@cpu-int4 'What is the capital of France?'
	@echo 'The model is in mlflow.db and mlruns/, its work files in ~/.cache/slmpack. See it: $(BIN)/mlflow ui'
	@echo 'See the runs: $(BIN)/prefect server start'
	@echo 'Package Phi-3: $(BIN)/slmpack package hf://microsoft/Phi-3-mini-4k-instruct'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

quick: lint
	$(PYTEST) -m 'not slow and not hub and not gpu'

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
