# Every target makes the virtual environment that it needs. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/separability/compare

.PHONY: help install demo test test-all bench lint notebooks clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt $(wildcard tests/requirements*.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' -r tests/requirements.txt
	$(BIN)/pip install --quiet --no-deps -r tests/requirements-no-deps.txt
	@touch $@

install: .venv/installed  ## Make .venv and install the package with what its tests need

demo: .venv/installed  ## Train, test and picture four SAEs on the separability data (under a minute)
	$(BIN)/sae-lightning fit -c configs/separability/compare.yaml --overwrite true
	$(BIN)/sae-lightning test -c configs/separability/compare.yaml --ckpt_path $(RUN)/checkpoints/last.ckpt

# one thread in each of two processes: the tests' matrices are small; what shares a fixture stays together
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile

test: .venv/installed  ## Run the quick tests and doctests (some minutes on two cores)
	$(PYTEST) -m 'not slow and not reproduction'

test-all: test  ## Run the quick tests, then the slow ones, the paper's experiments among them
	$(PYTEST) -m 'slow or reproduction'

# torch stays the pinned build; what asks for more than training imports comes without its dependencies
.venv-bench/installed: pyproject.toml constraints.txt $(wildcard benchmarks/requirements*.txt)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --constraint constraints.txt --editable . -r benchmarks/requirements.txt
	.venv-bench/bin/pip install --quiet --no-deps -r benchmarks/requirements-no-deps.txt
	@touch $@

bench: .venv-bench/installed  ## Time training steps against other libraries, in .venv-bench; writes docs/benchmarks.*
	.venv-bench/bin/python -m benchmarks --output docs

lint: .venv/installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: .venv/installed  ## Execute the notebooks in place
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean:  ## Remove the environments and all runs
	rm -rf .venv .venv-bench runs
