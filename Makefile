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
.PHONY: help reproduce test slow check kernels-gate bench gpu figures clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# dequantisers of AutoGPTQ's and AutoAWQ's heirs, which tests load file by file: beside the environment, as their
# dependencies would change it
.venv/.oracles: .venv/.test
	test -d .venv/oracles || $(BIN)/python -m pip install --no-deps --target .venv/oracles autoawq==0.2.9 gptqmodel==7.7.0
	@touch $@

# every version of Triton the gate compiles with, where it is not the environment's own, beside the environment
.venv/.tritons: kernels/gate/targets.py .venv/.run
	@set -e; versions=$$($(BIN)/python -c "from rgpu.kernels.gate.targets import VERSIONS; print(*VERSIONS)"); \
	for v in $$versions; do \
	    $(BIN)/python -c "import sys, triton; sys.exit(triton.__version__ != '$$v')" 2>/dev/null \
	    || test -d .venv/triton-$$v/triton \
	    || $(BIN)/python -m pip install --no-deps --target .venv/triton-$$v triton==$$v; done
	@touch $@

reproduce: .venv/.run ## the whole study on the shipped model and traces -> results/reproduce/report.html (QUICK=1: short)
	$(OFFLINE) $(BIN)/rgpu reproduce $(quick) $(ARGS)

test: .venv/.test .venv/.oracles ## all tests (ARGS="-k name" for some)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

slow: .venv/.test .venv/.oracles ## slow tests and mutation testing of the policies (ARGS="modules=lru sample=20 budget_s=600")
	$(OFFLINE) $(BIN)/python -m pytest -m "slow and not gpu"
	$(OFFLINE) $(BIN)/python -m tests.mutation.run $(ARGS)

check: .venv/.test ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels-gate: .venv/.tritons ## GPU kernels compiled without a GPU against the table (full=1: all, update=1: write it)
	$(BIN)/python -m rgpu.kernels.gate.gate $(if $(full),full=$(full)) $(if $(update),update=$(update)) $(ARGS)

bench: .venv/.test ## speed, as rows in benchmarks/results/
	@set -e; for file in $(filter-out benchmarks/gpu%.py,$(wildcard benchmarks/*.py)); do echo "$$file"; $(OFFLINE) $(BIN)/python $$file $(ARGS); done

gpu: ## GPU kernels, transfers and live decode checked and measured -> results/gpu/<date>/ (GPU_PYTHON=python3 with CUDA's torch)
	@out=results/gpu/$$(date -u +%Y-%m-%d-%H%M%S); code=0; \
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py --budget 190 --out $$out $(ARGS) || code=$$?; \
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu_engine.py --budget 300 --out $$out || code=$$?; exit $$code

figures: .venv/.run ## draw the figures again from the rows of the last 'make reproduce'
	$(OFFLINE) $(BIN)/rgpu plot rows=results/reproduce/rows.parquet out=results/reproduce/figures $(ARGS)

clean: ## remove what the targets above made, .venv and results/ included
	rm -rf .venv results outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
