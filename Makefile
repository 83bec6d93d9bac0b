# nestcoder: make help
LAYER ?= 8
DEVICE ?= auto
MODEL ?=
CONFIG ?= pipeline.yaml
ARGS ?=
BENCH ?= cache harvest step waiting evaluate
PYTHON ?= python3.11
VENV ?= .venv

bin := $(VENV)/bin
layers := $(foreach layer,$(LAYER),--layer '$(layer)')
nestcoder := $(bin)/python -m nestcoder --config $(CONFIG) $(if $(MODEL),--model '$(MODEL)')

# A new pip first: that of Python 3.11 takes three times as long to choose versions.
# pip would compile all 19,000 modules, of which nestcoder imports a fifth: Python compiles these on their first import.
pip_install := $(bin)/python -m pip install --quiet --no-compile --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo harvest train eval test interop interop-clt interop-features pytest lint format bench bench-gpu lock wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */  make \1\t/p' Makefile | expand -t 20
	@echo "  variables: LAYER=$(LAYER) DEVICE=$(DEVICE) MODEL=$(or $(MODEL),that of $(CONFIG)) CONFIG=$(CONFIG) ARGS=$(ARGS)"

setup: $(VENV)/.ready  ## create the environment (python3.11 and this file are all it needs)
setup-dev: $(VENV)/.ready-dev  ## the same with the tests' tools

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(pip_install) pip
	$(pip_install) --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(pip_install) --editable '.[dev]'
	touch $@

demo: harvest train eval  ## harvest, train and evaluate the shipped pipeline.yaml; ends with the table

harvest: setup  ## harvest layers in one pass: make harvest LAYER=8, LAYER="4 8 12" or LAYER=all
	$(nestcoder) harvest $(layers) --device '$(DEVICE)' $(ARGS)

train: setup  ## train on its cache: make train LAYER=8, LAYER="4 8 12" or LAYER=all
	$(nestcoder) train $(layers) --device '$(DEVICE)' $(ARGS)

eval: setup  ## evaluate every trained layer, one table
	$(nestcoder) evaluate --device '$(DEVICE)' $(ARGS)

test: lint pytest  ## run the linters, the type checker and the tests

pytest: setup-dev  ## the tests alone
	$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup-dev  ## the linters and the type checker alone
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-cache
	$(bin)/pyright

format: setup-dev  ## rewrite the code in the project's format
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

interop: setup-dev  ## other tools' own loaders on our files, each in an environment of its own below .interop: make interop ARGS="saelens"
	PYTHONPATH=. $(bin)/python tests/interop/run.py --layer '$(LAYER)' $(if $(MODEL),--model '$(MODEL)') $(ARGS)

interop-clt: setup-dev  ## circuit-tracer's own loader on a cross-layer transcoder of all layers: make interop-clt ARGS="--name clt"
	PYTHONPATH=. $(bin)/python tests/interop/run_clt.py $(if $(MODEL),--model '$(MODEL)') $(ARGS)

interop-features: setup-dev  ## other tools' own readers on feature evidence (node is needed): make interop-features ARGS="delphi"
	PYTHONPATH=. $(bin)/python tests/interop/run_pages.py --layer '$(LAYER)' $(if $(MODEL),--model '$(MODEL)') $(ARGS)

bench: setup-dev  ## side-by-side benchmarks: make bench BENCH=step ARGS="--peers DIR"
	for name in $(BENCH); do echo "== $$name"; $(bin)/python -m bench.$$name $(ARGS) || exit 1; done

bench-gpu:  ## all that is measured on a GPU, in five minutes; PYTHON must have PyTorch for CUDA: make bench-gpu ARGS="--json gpu.json"
	$(PYTHON) -m bench.gpu $(ARGS)

lock: setup-dev  ## renew uv.lock and constraints.txt from pyproject.toml: make lock ARGS=--upgrade
	$(bin)/uv lock $(ARGS)
	$(bin)/uv export --quiet --frozen --all-extras --no-emit-project --no-hashes --no-annotate --no-header --output-file constraints.txt

wheel: setup-dev  ## a wheel whose packages live under nestcoder.*
	$(bin)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove the environment and caches of tools, never runs/
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
