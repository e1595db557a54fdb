# make play    set up, then the guided run: what selecting does on this machine
# make test    set up, then all tests but the slow ones
# The rest: test-full, lint, gate, bench, setup, clean.

PYTHON ?= python3
VENV := $(abspath $(or $(VIRTUAL_ENV),.venv))
BIN := $(VENV)/bin
READY := $(VENV)/.triselect-ready

# A GPU that answers gets the CUDA build of torch, every other machine the CPU build.
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
CONSTRAINTS := constraints/$(DEVICE).txt
# Where torch comes from if the package index that pip is set up with does not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: play test test-full lint gate bench setup clean

play: setup
	$(BIN)/triselect play

# Triton's interpreter must be switched on before a kernel is defined: a process of its own. It takes
# one core; the rest runs meanwhile, and its output follows.
LOG := $(VENV)/test.log
test: setup
	@$(BIN)/pytest -m "not slow and not interpret and not compile_gate" >$(LOG) 2>&1 & rest=$$!; \
	  TRITON_INTERPRET=1 $(BIN)/pytest -m "interpret and not slow"; interpreted=$$?; \
	  tail -n +1 -f --pid=$$rest $(LOG) 2>/dev/null; shown=$$?; wait $$rest; code=$$?; \
	  test $$shown = 0 || cat $(LOG); \
	  test $$code = 0 && exit $$interpreted

test-full: setup gate
	TRITON_INTERPRET=1 HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -q -m interpret
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -q -m "not interpret and not compile_gate"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')
	$(BIN)/mypy

gate: setup
	$(BIN)/pytest -q -m compile_gate tests/gate

bench: setup
	$(BIN)/triselect bench

setup: $(READY)

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard kernels/*/*.cpp kernels/*/*.h)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 needs its venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) with the $(DEVICE) build of torch (a few minutes the first time)"
	@$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/pip install -q -c $(CONSTRAINTS) torch 2>/dev/null || \
	  $(BIN)/pip install -c $(CONSTRAINTS) --extra-index-url $(TORCH_INDEX) torch
	$(BIN)/pip install -q "setuptools>=77" wheel ninja
	$(BIN)/pip install -q -c $(CONSTRAINTS) --no-build-isolation -e '.[all]'
	@touch $@

clean:
	rm -rf build dist .venv python/*.egg-info python/triselect/_native_torch_*.so
