# Every target makes the virtual environment that it needs. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/separability/compare

.PHONY: help install demo test bench lint notebooks clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: .venv/installed  ## Make .venv and install the package with what its tests need

demo: .venv/installed  ## Train, test and picture four SAEs on the separability data (under a minute)
	$(BIN)/sae-lightning fit -c configs/separability/compare.yaml --overwrite true
	$(BIN)/sae-lightning test -c configs/separability/compare.yaml --ckpt_path $(RUN)/checkpoints/last.ckpt

test: .venv/installed  ## Run the test suite, doctests included
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

bench: .venv/installed  ## Time a training step of every architecture against the dense product
	$(BIN)/python tests/benchmarks/step.py

lint: .venv/installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: .venv/installed  ## Execute the notebooks in place
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean:  ## Remove the environment and all runs
	rm -rf .venv runs
