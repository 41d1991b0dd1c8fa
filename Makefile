# The list of things one can do. `make` prints it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
TASK ?=
PRESET ?=
SEED ?=
SEEDS ?=
ACTORS ?=
SHARDS ?=
GPUS_PER_SEED ?=
NAME ?=
DETACH ?=
CHAOS_SEED ?= 0
MINUTES ?= 1
ARGS ?=

CLUSTER = $(strip $(if $(PRESET),--preset $(PRESET)) $(if $(TASK),--task $(TASK)) $(if $(SEEDS),--seeds $(SEEDS)) \
  $(if $(ACTORS),--actors $(ACTORS)) $(if $(SHARDS),--shards $(SHARDS)) $(if $(NAME),--name $(NAME)) \
  $(if $(GPUS_PER_SEED),--gpus-per-seed $(GPUS_PER_SEED)) $(if $(DETACH),--detach))

.DEFAULT_GOAL := help
.PHONY: help install train train-cluster suite offline-suite twm-suite generalist-suite smoke test test-cluster test-learning test-damage test-gpu test-lowest lock audit chaos bench monitor docs lint format clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make the virtual environment in .venv (the others do it when needed)

# torch first and by version: a CPU-only wheel at hand is then taken as it is; with a GPU the same command brings CUDA's.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else f"want Python 3.11 or 3.12 (MuJoCo and dm_control have no other packages), got {sys.version.split()[0]}; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[all,dev]'
	touch $@

train: $(VENV)/installed ## train on this machine: TASK=dmc/reacher-easy PRESET=laptop SEED=0 ARGS='--max-minutes 5'
	$(BIN)/qttdm train $(if $(PRESET),--preset $(PRESET)) $(if $(SEED),--seed $(SEED)) $(if $(TASK),--task $(TASK)) $(ARGS)

train-cluster: $(VENV)/installed ## train on the Ray cluster: TASK= PRESET= SEEDS=0,1 ACTORS=1 SHARDS=1 GPUS_PER_SEED= NAME= DETACH=1
	$(BIN)/qttdm cluster train $(CLUSTER) $(ARGS)

suite: $(VENV)/installed ## run what is missing of the benchmark and report it: SEEDS= PRESET= NAME= ARGS='--screening'
	$(BIN)/qttdm suite $(strip $(if $(TASK),--tasks $(TASK)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(PRESET),--preset $(PRESET)) \
	  $(if $(NAME),--name $(NAME))) $(ARGS)

offline-suite: $(VENV)/installed ## learning from logs: what it must show, measured; ARGS='search goals' for some of it
	$(BIN)/python -m qttdm.deploy.suite.offline $(ARGS)

twm-suite: $(VENV)/installed ## learning in imagination: what it must show, measured; ARGS='bandit acting' for some of it
	$(BIN)/python -m qttdm.deploy.suite.twm $(ARGS)

generalist-suite: $(VENV)/installed ## one model of many bodies: what it must show, measured; ARGS='specialist --seeds 1 2'
	$(BIN)/python -m qttdm.deploy.suite.generalist $(ARGS)

smoke: $(VENV)/installed ## the whole system in under a minute
	$(BIN)/qttdm train --preset debug $(ARGS)

test: $(VENV)/installed ## the test suite: CPU, no GPU, a few minutes
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not learning and not gpu and not ray' $(ARGS)

test-cluster: $(VENV)/installed ## the tests that start Ray: three at a time, since they wait more than they compute
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m ray $(or $(ARGS),tests/remote)

test-learning: $(VENV)/installed ## train for real and assert the return: half an hour
	$(BIN)/python -m pytest -m learning $(ARGS)

test-damage: $(VENV)/installed ## 1,200 flips and cuts in the files of a run, 100,000 mutated messages: some minutes
	QTTDM_DAMAGE=1200 QTTDM_MESSAGES=100000 $(BIN)/python -m pytest tests/deploy/runs/test_damage.py \
	  tests/planner_service/serving/test_fuzz.py $(ARGS)

test-gpu: $(VENV)/installed ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

LOWEST := .venv-lowest
test-lowest: ## a part of the test suite with the lowest versions that are allowed, in .venv-lowest
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet torch==2.13.0 uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[all,dev]'
	$(LOWEST)/bin/python -m pytest tests/common tests/replay tests/deploy/cli tests/deploy/screens tests/deploy/runs \
	  tests/planner_service/serving -n auto --maxprocesses 8 -m 'not learning and not gpu and not ray' $(ARGS)

lock: $(VENV)/installed ## write the versions in .venv to .ci/lock.txt, which CI installs
	$(BIN)/pip freeze --exclude-editable > .ci/lock.tmp
	sed -i -e 's/+cpu$$//' -e "1i $$(head -1 .ci/lock.txt)" .ci/lock.tmp
	mv .ci/lock.tmp .ci/lock.txt

audit: $(VENV)/installed ## look these versions up in the database of known vulnerabilities: needs pypi.org
	$(PYTHON) -m venv build/pip-audit
	build/pip-audit/bin/pip install --quiet pip-audit
	build/pip-audit/bin/pip-audit --no-deps --disable-pip --requirement .ci/lock.txt

chaos: $(VENV)/installed ## attack a real run by a seeded schedule, then audit what is left: CHAOS_SEED=0 MINUTES=1
	$(BIN)/python -m qttdm.deploy.chaos --seed $(CHAOS_SEED) --minutes $(MINUTES)

bench: $(VENV)/installed ## decision and update times against this machine's own matrix-product rate
	$(BIN)/python -m qttdm.deploy.bench.models $(ARGS)

monitor: $(VENV)/installed ## Prometheus and Grafana for the runs of this machine or cluster: ARGS='--target 127.0.0.1:9108'
	$(BIN)/qttdm monitor $(ARGS)

docs: $(VENV)/installed ## write what is made from the program: docs/metrics.md, Grafana's dashboards, the pages in site/
	$(BIN)/python -m qttdm.deploy.monitoring.metrics_page
	$(BIN)/python -m qttdm.deploy.monitoring.grafana.boards
	$(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/installed ## formatter, linter and type checker, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and caches, not the runs
	rm -rf $(VENV) $(LOWEST) site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
