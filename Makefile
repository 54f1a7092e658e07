# Each target does all it needs on a fresh machine: the environment first, then the job.
#   make repro         the whole pipeline (dvc repro)         make test    all tests
#   make tiny-weights  the embedded base weights, again        make quick   lint and the tests that take seconds
#   make lisa-weights  those of the preset lisa-tiny          make lint    ruff (rules and format) and the type checker
#   make docs          the pages of docs/ as a site, in site/ (installs mkdocs-material)
#   make mutants       do the tests notice a changed line? The listed faults, and a sample of mutants (docs/testing.md)
# VENV=/some/where uses (and fills) a virtual environment elsewhere; PYTHON=python3.12 builds it with another interpreter.

VENV   ?= .venv
PYTHON ?= python3
SAM2   := sam2==1.1.0

# The stamp is named by what is installed, not dated: a new clone or a branch switch touches files without changing them.
STAMP := $(VENV)/.installed-$(shell (echo $(SAM2); cat requirements.lock) | sha256sum | cut -c1-16)
# Without bytecode of all files: a fifth of them is ever imported, and Python compiles those then. It must be allowed to keep that: with
# this variable, which images of containers often set, each process would compile all that it imports, 9 s of its 16.
unexport PYTHONDONTWRITEBYTECODE
PIP   := $(VENV)/bin/python -m pip -qq --disable-pip-version-check --no-input install --no-compile
# DVC starts `python -m stages.x` from PATH.
RUN   := PATH="$(abspath $(VENV))/bin:$$PATH"

.PHONY: repro test quick lint docs mutants mutants-full tiny-weights lisa-weights env

repro: env
	@if $(RUN) dvc status -q 2> /dev/null; then echo "Nothing has changed since the last run."; \
		else $(RUN) python -m ans plan && $(RUN) dvc repro; fi
	@echo "Results: reports/report.html (everything on one page), reports/summary.md, models/variants/. To commit: git add dvc.lock reports"

test: env
	@$(RUN) python -m pytest

lint: env
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) pyrefly check

quick: lint
	@$(RUN) python -m pytest -m "not slow and not second"

docs: env
	@$(VENV)/bin/python -c 'import material, mkdocstrings' 2> /dev/null || $(PIP) 'mkdocs-material==9.8.2' 'mkdocstrings[python]==1.0.8'
	@$(RUN) python -m mkdocs build --quiet
	@echo "site/index.html"

mutants: env
	@$(RUN) python -m tests.mutants

mutants-full: env
	@$(RUN) python -m tests.mutants --all

tiny-weights: env
	@$(RUN) python -m stages.tiny_weights tiny

lisa-weights: env
	@$(RUN) python -m stages.tiny_weights lisa-tiny

env: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	@echo "Installing the packages of requirements.lock into $(VENV): minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.lock
	@# sam2 asks for torchvision, which this project does not use and which has no build for every torch; hence --no-deps.
	@SAM2_BUILD_CUDA=0 $(PIP) --no-deps --no-build-isolation $(SAM2)
	@$(VENV)/bin/python -c 'import logging; logging.disable(); import dvc.cli, matplotlib.pyplot, pandas, peft'
	@touch $@
