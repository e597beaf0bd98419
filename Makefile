PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup quickstart coco eval-needs eval-coco eval-priors eval-selfcheck bench house memory test test-all test-gpu check

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.setup  ## install into .venv

quickstart: $(VENV)/.setup  ## train, sample and score a toy system on this machine
	$(RUN) -m open_kandinsky.quickstart

PROTOCOL ?= coco30k_default
OUT ?= runs/eval/$(PROTOCOL)
PRIORS ?= [prior],[prior_linear],[prior_residual],[prior_none]
SCALES ?= 1,2,3,4,6,8
define EVAL_USAGE
printf '%s\n' \
	'make $(MAKECMDGOALS) WEIGHTS=... COCO=... [PROTOCOL=$(PROTOCOL)] [OUT=$(OUT)] [ARGS="limit=1000 device=cuda"]' \
	'' \
	'  WEIGHTS  a run folder of a system, a folder of Kandinsky 2.1 or 2.2, or a hub id where there is a network' \
	'  COCO     a folder of captions_val2014.json and val2014/; `make coco COCO=data/coco` fetches both (13 GB)' \
	'' \
	'The same code on forty toy pictures, after `make quickstart`:' \
	'' \
	'  make eval-coco PROTOCOL=smoke WEIGHTS=runs/quickstart COCO=runs/quickstart/shapes/coco' >&2
endef

eval-needs:
	@$(if $(and $(WEIGHTS),$(COCO)),true,$(EVAL_USAGE); exit 2)

coco: $(VENV)/.setup  ## fetch COCO's val2014 and its captions into COCO=data/coco, 13 GB
	$(RUN) -m open_kandinsky.coco $(if $(COCO),to='$(COCO)')

eval-coco: eval-needs $(VENV)/.setup  ## FID and CLIP score on COCO-30K: WEIGHTS=... COCO=... [PROTOCOL= OUT= ARGS=]
	$(RUN) -m open_kandinsky.evaluate protocol=$(PROTOCOL) weights='$(WEIGHTS)' coco='$(COCO)' out='$(OUT)' $(ARGS)

eval-priors: eval-needs $(VENV)/.setup  ## the paper's Table 3 and its FID-CLIP curve: as eval-coco, [PRIORS= SCALES=]
	$(RUN) -m open_kandinsky.evaluate -m protocol=$(PROTOCOL) weights='$(WEIGHTS)' coco='$(COCO)' \
		priors='$(PRIORS)' scale='$(SCALES)' table='$(OUT)' out='$(OUT)/$${priors.0}-$${scale}' $(ARGS)

eval-selfcheck: $(VENV)/.setup  ## needs a network: published pictures score as published
	$(RUN) -m open_kandinsky.selfcheck $(ARGS)

bench: $(VENV)/.setup-dev  ## every claim of speed, measured: [ONLY=loader QUICK=1 GATE=1]
	$(RUN) benchmarks/bench.py $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(GATE),--gate)

house: $(VENV)/.setup-dev  ## how large the code is, and how many modules one picture goes through
	$(RUN) benchmarks/house.py

memory: $(VENV)/.setup  ## what a training costs, counted: ARGS="experiment=kandinsky21/decoder_256 ..."
	$(RUN) benchmarks/cost.py $(ARGS)

test: $(VENV)/.setup-dev  ## the quick tests
	$(RUN) -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.setup-dev  ## the slow tests too
	$(RUN) -m pytest -n 2 -m "not gpu"

test-gpu: $(VENV)/.setup-dev  ## the tests that need a GPU
	$(RUN) -m pytest -n 4 -m gpu

check: $(VENV)/.setup-dev  ## lint, format and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright --pythonpath $(RUN)

# A stamp is touched last, so that an install that was cut off is not taken for done.
$(VENV)/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "open-kandinsky needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(PIP) -e ".[dev]"
	@touch $@
