# `make demo` and `make test` do everything on a fresh machine; they need Python 3.11 or later, make and a package index.

PYTHON ?= python3
# `make setup HARDWARE=cuda` on a machine that is to prove targets for NVIDIA GPUs.
HARDWARE ?= cpu
BIN := .venv/bin
SETUP_LOG := .venv/setup.log
# A file's tests stay together, since they share what they built; files begin in the order of their folders, whole runs
# first (tests/conftest.py). Two processes with a thread each do not wait for each other; with two threads each they
# would, at every barrier.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
# A line with MAKE in parentheses is run by `make -n` as well.
AGAIN := $(MAKE)
DEMO_NAME := smollm2-135m-instruct
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
IMAGE ?= slmpack-serve
# A browser for the dashboard's form, a database for several machines, a tracer for what commands write and ask the
# network. Tests that miss theirs are skipped.
SYSTEM := chromium postgresql strace

# Those of tests that need servers, a browser, several workers, kills, every family or a real retraining.
END_TO_END := tests/end_to_end

.PHONY: setup demo stack deploy image system test quick acceptance lint clean

setup: .venv/ready

# uv installs in a third of pip's time, and looks where pip is set up to look; what it cannot do, pip does.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-color --progress-bar off -c constraints.txt
WHAT = -c constraints.txt -e '.[$(HARDWARE),dev]'

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and "slmpack: found Python " + v + "; expected 3.11 or later; install one and type: make PYTHON=/path/to/python3.11")'
	@echo 'Setting up .venv by uv, or by pip, which takes some minutes; what they say is in $(SETUP_LOG)'
	@$(PYTHON) -m venv .venv
	@{ $(PIP) uv pydantic && PYTHONPATH=. $(BIN)/python -P -m slmpack.machine.uv_install $(WHAT); } > $(SETUP_LOG) 2>&1 || \
	  $(PIP) $(WHAT) >> $(SETUP_LOG) 2>&1 || { \
	  grep -E '^ *(ERROR|error): ' $(SETUP_LOG) | head -n 3 >&2; \
	  echo 'slmpack: pip cannot install what constraints.txt lists; expected a package index that has it;' \
	    'set pip to one, and type the same again; all that pip said is in $(CURDIR)/$(SETUP_LOG)' >&2; exit 1; }
	@touch $@

demo: setup
	@$(BIN)/slmpack package
	@echo
	@echo '> What is the capital of France?'
	@$(BIN)/slmpack chat models:/$(DEMO_NAME)@cpu-int4 'What is the capital of France?'
	@echo 'The model is in mlflow.db and mlruns/, its work files in ~/.cache/slmpack. See it: $(BIN)/mlflow ui'
	@echo 'Have runs, schedules and both dashboards: make stack'
	@echo 'Package Phi-3: $(BIN)/slmpack package hf://microsoft/Phi-3-mini-4k-instruct'

# MLflow, Prefect and a worker on this machine, until Ctrl-C.
stack: setup
	@$(BIN)/python -m flows.stack --mlflow-port $(MLFLOW_PORT) --prefect-port $(PREFECT_PORT)

# What prefect.yaml says, on the server that PREFECT_API_URL names.
deploy: setup
	@$(BIN)/python -m flows.deploy

# What the slow tests need of Debian, as root.
system:
	@command -v apt-get > /dev/null || { echo 'slmpack: found no apt-get; expected Debian; install $(SYSTEM) as this system does' >&2; exit 1; }
	@missing=$$(for each in $(SYSTEM); do dpkg -s $$each 2> /dev/null | grep -q '^Status: .* installed$$' || echo $$each; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "slmpack: found no" $$missing "; expected to be root; type: sudo make system" >&2; exit 1; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing > /dev/null

# The image of `slmpack serve`, by whichever engine answers.
image:
	@for engine in docker podman; do \
	  if $$engine info > /dev/null 2>&1; then exec $$engine build --file deploy/Dockerfile --tag $(IMAGE) .; fi; \
	done; \
	echo 'slmpack: found no docker or podman that answers; expected one to build the image; install or start it,' \
	  'and type the same again' >&2; exit 1

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

# For every save: format, types, layers, and the tests of single modules.
quick: lint
	$(PYTEST) --ignore=$(END_TO_END) -m 'not slow and not hub and not gpu'

# Before every commit: all that quick does, and every promise with small real parts, one real model among them. Types
# take a processor for a minute, of which the tests have two: both begin at once, and what fails says so at once.
test: setup
	@$(AGAIN) --no-print-directory lint & checks=$$!; \
	$(PYTEST) --ignore=$(END_TO_END); tests=$$?; \
	wait $$checks && exit $$tests

# By CI; before a release with ALL=1, which adds what takes minutes and shows at full size what the rest shows with
# small parts. One part of it: make acceptance ONLY=crashes
acceptance: setup
	$(PYTEST) $(if $(ONLY),$(END_TO_END)/test_$(ONLY).py,$(END_TO_END) $(if $(ALL),,-m 'not release and not hub and not gpu'))

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
