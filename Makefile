# `make quickstart` and `make test` do everything, each on its own, on a machine with Python 3.11+.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Where an image of a container sets it, every process would compile torch and transformers anew: 18 s each.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-long lint links env assets clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

env: $(STAMP)  ## the environment alone (.venv)

assets: $(STAMP)  ## the embedded encoder, photographs, digits and typefaces
	$(BIN)/workbench assets

quickstart: $(STAMP)  ## environment, assets, a real ablation, its report
	$(BIN)/workbench quickstart

# A process a core, each with one thread: the models of the tests are too small to share out.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(STAMP)  ## environment and the default tests
	$(PYTEST) -m 'not long'

test-long: $(STAMP)  ## every test, the long ones too
	$(PYTEST)

# The package as it is imported (fusion_workbench.*), for tools that read files: a tree of links to the folders.
LINKS := build/links/fusion_workbench

links:  ## build/links: the package for mypy, import-linter and editors
	@rm -rf $(LINKS) && mkdir -p $(LINKS)
	@ln -s $(foreach part,$(wildcard workbench/[a-z]*) workbench/__init__.py workbench/__main__.py modules datamodules sweeps reports,$(CURDIR)/$(part)) $(LINKS)/

lint: $(STAMP) links  ## ruff, mypy, and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=build/links $(BIN)/lint-imports --no-cache

clean:  ## remove the environment and caches (never the workspace)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
