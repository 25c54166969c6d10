# Everything a fresh machine needs is made here: `make demo` and `make test` set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev,science,serve,gateway
# a file of tests stays in one process, so that its tests share what they set up; three, since many of them wait
WORKERS ?= 3
UV_VERSION := 0.13.9
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -rs --durations=20
# the tested versions of everything; a package that is not in it may have any version
PIP := $(BIN)/python -m pip install -q --no-compile -c requirements.lock
# in half of pip's time, and pip where it fails: uv knows nothing of an index or a proxy in pip's own configuration
UV := $(BIN)/uv pip install -q --python $(BIN)/python -c requirements.lock
# what nearly every process imports: a quarter of the modules that are installed
IMPORTED := torch, transformers, peft, ray.data, ray.train.torch, ray.tune, ray.rllib.algorithms.dqn, scipy.stats, \
  matplotlib.pyplot, minigrid

# every process would compile all of it again, and Ray starts many
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all check format docs lock dist release-check clean

setup: .venv/.ready

# torch first and exactly: a range could take a newer, larger build
.venv/.ready: pyproject.toml requirements.lock
	@echo "installing into .venv (about 2 GB; one to three minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0 uv==$(UV_VERSION)
	@$(UV) -e ".[$(EXTRAS)]" || $(PIP) -e ".[$(EXTRAS)]"
	@$(BIN)/python -c "import $(IMPORTED)"  # else the first processes would all compile them at once
	@touch $@

demo: setup
	@$(BIN)/atlas-ray demo

test: setup
	@$(PYTEST)

# also what needs the extras that compile: TextWorld (GPLv2 parts) and ALFWorld's planner (GPLv3)
test-all: setup
	@$(PIP) -e ".[dev,jobs,science,serve,gateway,postgres,textworld,alfworld]"
	@$(PYTEST) -m ""

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python .ci/words.py
	@$(BIN)/python docs/evidence/tables.py --check

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# the site, in build/site: a link that leads nowhere, or anything from another host, ends it
docs: setup
	@$(PIP) -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/site/index.html"

LOCKED := dev browser docs notebook jobs serve gateway gateway-ray openenv postgres science textworld alfworld gguf minilm track clients

# the newest versions that pyproject.toml allows, for Python 3.11 to 3.13 at once; vLLM and its CPU build replace each other,
# and want an older setuptools and numpy than all others, so they stay out
lock:
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --upgrade --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(foreach extra,$(LOCKED),--extra $(extra)) \
	  --output-file requirements.lock

dist: setup
	@$(BIN)/python -m pip install -q build==1.6.1
	@$(BIN)/python -m build --outdir dist .

# what is published, from fresh environments of each Python that is here: .ci/release_check.py says what is looked at
release-check: docs
	@$(BIN)/python .ci/release_check.py

clean:
	rm -rf .venv runs dist build
