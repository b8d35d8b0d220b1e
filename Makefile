# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with shiqrun and all that the tests use

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peft,ray]'
	touch $(STAMP)

DEMO_OUT ?= outputs/demo
SEED     ?= 0

demo: install ## make a reference, train it with ShiQ, show how far it is from the exact optimum
	rm -rf $(DEMO_OUT)
	$(BIN)/shiqrun train experiment=demo_reference seed=$(SEED) run_dir=$(DEMO_OUT)/reference
	$(BIN)/shiqrun train experiment=demo seed=$(SEED) model.path=$(DEMO_OUT)/reference/policy run_dir=$(DEMO_OUT)/shiq

test: install ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

test-all: install ## every test
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist worksteal

check: install ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## timings and peak memory; never part of the tests
	$(BIN)/python -m bench.scoring
	$(BIN)/python -m bench.start

clean: ## remove the environment and every run
	rm -rf $(VENV) outputs/*
