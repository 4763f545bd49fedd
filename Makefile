# One command each; every target sets up its own virtual environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Waiting threads sleep: two cores serve many processes here (see README, Why).
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint bench gpu-check from-wheels fuzz audit clean

$(STAMP): pyproject.toml configs/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt --editable '.[train,dashboard,dev,gpu-rtx]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/assayline demo --json runs/demo/report.json

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/assayline bench all

# An hour of faults; CHAOS="--minutes 30 --seed 7" for another, "--resume" to go on with the last.
.PHONY: chaos mutants
chaos: $(STAMP)
	$(BIN)/python -m tests.faults.chaos $(CHAOS)

# Each safeguard of the delivery broken once; some test must fail each time.
mutants: $(STAMP)
	$(BIN)/python -m tests.faults.mutants

# A line flat out over 200,000 frames: does anything grow? SOAK="--frames 20000 --minutes 10" for less.
.PHONY: soak
soak: $(STAMP)
	$(BIN)/python -m tests.soak $(SOAK)

# On a machine without network: make gpu-check WHEELS=folder; its GPU libraries may be missing.
gpu-check: $(if $(WHEELS),from-wheels,$(STAMP))
	$(BIN)/assayline gpu-check $(if $(WHEELS),--wheels '$(WHEELS)')

from-wheels:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-index --find-links '$(WHEELS)' --editable '.[train,dev]'

# A million cases over every decoder, from where it was left; FUZZ="--jobs 2 --minutes 30" for more.
fuzz: $(STAMP)
	nice $(BIN)/python -m tests.fuzz $(FUZZ)

# Everything that comes from others: pinned, as tested, with its licence; nothing that runs data.
audit: $(STAMP)
	$(BIN)/python -m pytest -n 0 tests/test_dependencies.py

clean:
	rm -rf $(VENV) runs
