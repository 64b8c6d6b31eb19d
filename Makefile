# One command each: every target that needs the environment makes it first, from pyproject.toml and the pins in
# constraints.txt, with nothing but Python >= 3.11 (with venv), git and make.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
CORES ?= 2
CHAPTER ?=
EXTRAS := book,test,export

# Nothing may depend on a home folder: caches go under build/, and one torch thread per process keeps two
# processes on two cores from treading on each other.
RUN := env MPLCONFIGDIR="$(CURDIR)/build/cache/matplotlib" XDG_CACHE_HOME="$(CURDIR)/build/cache" \
	IPYTHONDIR="$(CURDIR)/build/cache/ipython" OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PYTHONHASHSEED=0

.DEFAULT_GOAL := help
.PHONY: help setup book test bench lab figures lint clean distclean

help:  ## Show what you can type
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup:  ## Make the environment in .venv (done by the other targets, too)
	@sh tools/setup.sh "$(VENV)" "$(EXTRAS)"

book: setup  ## Execute every chapter at smoke scale and build the book in build/html
	@$(RUN) $(PY) tools/book.py --cores $(CORES)

test: setup  ## Run the tests; ARGS="-m sweep" for the long sweeps
	@mkdir -p build/cache
	@$(RUN) $(PY) -m pytest -n $(CORES) --dist worksteal $(ARGS)

bench: setup  ## Measure speed as ratios against baselines in one run; ARGS=--quick for a minute
	@$(RUN) $(PY) -m benchmarks $(ARGS)

lab: setup  ## Open the chapters in JupyterLab
	@$(PY) -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

figures: setup  ## Draw the figures again from finished runs; trains nothing
	@$(RUN) $(PY) -m slimnb figures
	@$(PY) tools/readme.py

lint: setup  ## Check the style of the code
	@$(PY) -m ruff check .
	@$(VENV)/bin/lint-imports

clean:  ## Delete what was built (environment, data sets and runs stay)
	@rm -rf build .snakemake .pytest_cache .ruff_cache .hypothesis *.egg-info examples/*/*.egg-info
	@find slimnb tests tools benchmarks notebooks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## Delete the environment, too
	@rm -rf $(VENV)
