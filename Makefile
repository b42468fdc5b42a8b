# Every target does its own set-up: a private .venv, filled once; after that nothing needs a network.
# PYTHON=... picks the interpreter (3.11 to 3.13), QUICK=1 makes `reproduce` short, ARGS=... is handed on.
FITS    := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
             $$p -c '$(FITS)' 2>/dev/null && command -v $$p && break; done)
BIN     := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
TORCH   := torch==2.13.0
quick   := $(if $(filter 1 true yes,$(QUICK)),quick=true)

.DEFAULT_GOAL := help
.PHONY: help reproduce test check bench gpu figures clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.torch:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 found; give PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by itself: asked for with everything else, pip may choose a build with gigabytes of GPU libraries
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH) \
	    || $(BIN)/python -m pip install "torch>=2.11"
	@touch $@

.venv/.run: pyproject.toml .venv/.torch
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/.test: pyproject.toml .venv/.torch
	$(BIN)/python -m pip install -e ".[test]"
	@touch $@ .venv/.run

reproduce: .venv/.run ## the whole study on the shipped model and traces -> results/reproduce/report.html (QUICK=1: short)
	$(OFFLINE) $(BIN)/rgpu reproduce $(quick) $(ARGS)

test: .venv/.test ## all tests (ARGS="-k name" for some)
	$(OFFLINE) $(BIN)/python -m pytest $(ARGS)

check: .venv/.test ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.test ## speed, as rows in benchmarks/results/
	@set -e; for file in benchmarks/*.py; do echo "$$file"; $(OFFLINE) $(BIN)/python $$file $(ARGS); done

gpu: ## GPU benchmarks
	@echo "No GPU benchmark exists yet: there is no GPU kernel to measure. 'make bench' measures the CPU."

figures: .venv/.run ## draw the figures again from the rows of the last 'make reproduce'
	$(OFFLINE) $(BIN)/rgpu plot rows=results/reproduce/rows.parquet out=results/reproduce/figures $(ARGS)

clean: ## remove what the targets above made, .venv and results/ included
	rm -rf .venv results outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
