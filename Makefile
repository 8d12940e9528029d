# `make demo` and `make test` each work first on a fresh machine: Python 3.11 and pip are all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# The versions that the tests were last seen to pass with. `make CONSTRAINTS=/dev/null ...` takes the newest that pyproject.toml admits.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-slow check torture benchmarks multifaceted clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        a real study on this machine, minutes"
	@echo "make test        everything that can run here: style, types, fast and slow tests"
	@echo "make test-fast   tests without Ray and without a server, under a minute"
	@echo "make check       style and types"
	@echo "make multifaceted  the studies of docs/multifaceted.md, its tables and figures; 75 minutes on 2 cores"
	@echo "make torture     twenty kill -9 at random moments of a study, each resumed and compared"
	@echo "make clean       remove the virtual environment and what tools left"

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[demo,test]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/raystudy demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow and not gpu and not torture"

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -v -n 2 --dist loadscope -m "(slow or gpu) and not torture" --durations 20

# One after the other also under `make -j`: they share two cores.
test:
	$(MAKE) check
	$(MAKE) test-fast
	$(MAKE) test-slow

torture: $(READY)
	$(BIN)/pytest -m torture --timeout 3600

benchmarks: $(READY)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/trial_time.py

multifaceted: $(READY)
	$(BIN)/python benchmarks/multifaceted.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
