# Needs Linux on x86-64, Python 3.11 to 3.13, make. To name a Python: make run PYTHON=python3.12
PYTHON ?= python3
.PHONY: run test soak lab check install notebooks lock bench

run: install     ## set up, run every notebook on the stub backend, print a summary
	.venv/bin/course run $(ARGS)

test: install    ## set up, run every test
	.venv/bin/python -m pytest $(ARGS)

soak: install    ## developers: set up, run the tests that take minutes (about 15)
	.venv/bin/python -m pytest -m soak $(ARGS)

lab: install     ## set up, open JupyterLab at the first notebook
	.venv/bin/course lab -- $(ARGS)

check: install   ## say what works on this machine and what to do about the rest
	.venv/bin/course check

install:         ## make .venv from requirements.lock; does nothing when that is done
	@$(PYTHON) install.py

notebooks: install  ## developers: run the notebooks and keep their outputs, to be committed
	.venv/bin/python tests/refresh_notebooks.py

lock:            ## developers: resolve pyproject.toml into requirements.lock
	@$(PYTHON) tests/make_lock.py

bench: install   ## developers: measure the stub backend beside PEFT, transformers and vLLM on this machine (about 20 minutes)
	.venv/bin/python tests/bench.py $(ARGS)
