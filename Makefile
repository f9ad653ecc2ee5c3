# Two commands matter: `make run` (set-up and the main job) and `make test` (set-up and the tests).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test train lint types reference parity parity-table clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "smoljax needs Python 3.11 or newer; set PYTHON=python3.12, say" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(RUNS): $(BIN)/python pyproject.toml
	@echo "installing smoljax into $(VENV) (once; under a minute)"
	@$(BIN)/python -m pip install --quiet --editable '.[gguf]'
	@touch $@

$(READY): $(RUNS)
	@echo "installing the tools for tests into $(VENV) (once; under a minute)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

run: $(RUNS)  ## set up; the bundled model looks at a picture: describes, answers, reads, points, finds
	@$(BIN)/python -m experiments.first_run

test: $(READY)  ## set up and run the default tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not parity'

lint: $(READY)  ## ruff: rules and formatting
	@$(BIN)/ruff check smoljax experiments tests notebooks
	@$(BIN)/ruff format --check smoljax experiments tests notebooks

types: $(READY)  ## basedpyright
	@$(BIN)/basedpyright --level error

reference: $(READY)  ## add PyTorch and transformers, which the parity suite compares with
	@$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	@$(BIN)/python -m pip install --quiet --editable '.[reference]'

# glibc returns large blocks to the kernel and faults them in again at every step unless told not to.
MALLOC := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 \
  MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

train: $(READY)  ## train the bundled model from nothing (about 3 hours on two cores; the same call goes on)
	@$(MALLOC) $(BIN)/smoljax train experiments/scenes/dense.py --workdir runs/dense
	@$(MALLOC) $(BIN)/smoljax train experiments/scenes/nano.py --workdir runs/nano
	@$(MALLOC) $(BIN)/smoljax train experiments/scenes/answers.py --workdir runs/answers
	@$(BIN)/python -m experiments.scenes.publish

parity: reference  ## the slow tests and the comparison with PyTorch
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'slow or parity'

parity-table: reference  ## every comparison at full size; writes docs/parity.md (about 20 minutes)
	@$(BIN)/python -m experiments.parity.table

clean:  ## remove what make made
	rm -rf $(VENV) .pytest_cache .ruff_cache
