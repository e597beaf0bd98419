PYTHON ?= python3
PIP := .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-all check

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/.setup  ## install into .venv

quickstart: .venv/.setup  ## train, sample and score a toy system on this machine
	.venv/bin/python -m open_kandinsky.quickstart

test: .venv/.setup-dev  ## the quick tests
	.venv/bin/python -m pytest

test-all: .venv/.setup-dev  ## the slow tests too
	.venv/bin/python -m pytest -m "not gpu"

check: .venv/.setup-dev  ## lint, format and types
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m pyright --pythonpath .venv/bin/python

# A stamp is touched last, so that an install that was cut off is not taken for done.
.venv/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "open-kandinsky needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/.setup-dev: .venv/.setup
	$(PIP) -e ".[dev]"
	@touch $@
