# Needs Linux on x86-64, Python 3.11 to 3.13, make. To name a Python: make run PYTHON=python3.12
# On a machine with an NVIDIA GPU: make run GPU=1. That environment is .venv-gpu, from requirements-gpu.lock.
PYTHON ?= python3
BIN := $(if $(GPU),.venv-gpu,.venv)/bin
.PHONY: run test soak lab check install notebooks lock bench

run: install     ## set up, run every notebook on the stub backend, print a summary
	$(BIN)/course run $(ARGS)

test: install    ## set up, run every test
	$(BIN)/python -m pytest $(ARGS)

soak: install    ## developers: set up, run the tests that take minutes each
	$(BIN)/python -m pytest -m soak $(ARGS)

lab: install     ## set up, open JupyterLab at the first notebook
	$(BIN)/course lab -- $(ARGS)

check: install   ## say what works on this machine and what to do about the rest
	$(BIN)/course check

install:         ## make .venv from requirements.lock; does nothing when that is done
	@$(PYTHON) install.py $(if $(GPU),--gpu)

notebooks: install  ## developers: run the notebooks and keep their outputs, to be committed
	$(BIN)/python tests/refresh_notebooks.py $(ARGS)

lock:            ## developers: resolve pyproject.toml into requirements.lock and requirements-gpu.lock
	@$(PYTHON) tests/make_lock.py

bench: install   ## developers: measure the stub backend beside PEFT, transformers and vLLM on this machine (20 to 27 minutes)
	$(BIN)/python tests/bench.py $(ARGS)
