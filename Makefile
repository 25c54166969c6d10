# Everything a fresh machine needs is made here: `make demo` and `make test` set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all check format clean

setup: .venv/.ready

# torch first and exactly: a range could take a newer, larger build
.venv/.ready: pyproject.toml
	@echo "installing into .venv (about 2 GB; one to four minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q torch==2.13.0
	@$(BIN)/python -m pip install -q -e ".[dev,java]"
	@touch $@

demo: setup
	@$(BIN)/atlas-ray demo

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# also what needs the extras that compile: TextWorld (GPLv2 parts) and ALFWorld's planner (GPLv3)
test-all: setup
	@$(BIN)/python -m pip install -q -e ".[dev,java,textworld,alfworld]"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ""

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs
