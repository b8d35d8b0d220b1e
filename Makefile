# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo hh bfcl spo-offline spo test test-all check format clean \
	bench bench-kernel bench-step bench-gen bench-start bench-loop bench-growth \
	bench-sandbox

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with shiqrun and all that the tests use

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peft,ray]' mpmath
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps bfcl-eval
	touch $(STAMP)

DEMO_OUT ?= outputs/demo
SEED     ?= 0

demo: export OMP_NUM_THREADS ?= 1 # products this small take twice as long on two threads
demo: install ## make a reference, train it with ShiQ, show how far it is from the exact optimum
	rm -rf $(DEMO_OUT)
	$(BIN)/shiqrun train experiment=demo_reference seed=$(SEED) run_dir=$(DEMO_OUT)/reference
	$(BIN)/shiqrun train experiment=demo seed=$(SEED) model.path=$(DEMO_OUT)/reference/policy run_dir=$(DEMO_OUT)/shiq

HH_OUT   ?= outputs/hh
HH_DATA  ?= $(or $(SHIQRUN_TEST_DATA),../shared/data)
HH_FILE  ?= $(HH_DATA)/hh_harmless_test_train4of5.jsonl.gz
HH_MODEL ?= $(HH_DATA)/stories260K
HH_ALGOS ?= shiq,shiq_init,shiq_ms,shiq_tk,copg,dpo,dro
HH_BETAS ?= 0.01,0.03,0.1,0.3
HH_SEEDS ?= 1,2,3
HH_LOGGER ?= none
HH_JOBS  ?= 2
HH_GRID   = experiment=hh_small algo.beta=$(HH_BETAS) seed=$(HH_SEEDS) data.path=$(HH_OUT)/scored/scored.jsonl \
	model.path=$(HH_OUT)/sft/policy eval.reward=$(HH_OUT)/reward/reward_model sweep.parallel=$(HH_JOBS) logger=$(HH_LOGGER)
HH_ANCHOR = algo.anchor=10 algo.anchor_tokens=4 algo.anchor_from=policy algo.reference=frozen

comma := ,
# A sweep that is there goes on; one of which a job failed still lets the report be written.
hh-sweep = if test -e $(HH_OUT)/$(1)/sweep.json; \
	then $(BIN)/shiqrun sweep sweep.resume=$(HH_OUT)/$(1) sweep.parallel=$(HH_JOBS) || test $$? -eq 1; \
	else $(BIN)/shiqrun sweep $(HH_GRID) $(2) run_dir=$(HH_OUT)/$(1) || test $$? -eq 1; fi

hh: install ## the text experiment: sft, reward model, scores, every method over betas and seeds, report (under an hour)
	@test -e $(HH_FILE) && test -d $(HH_MODEL) || { echo "no $(HH_FILE) or $(HH_MODEL): set HH_FILE, HH_MODEL"; exit 2; }
	test -e $(HH_OUT)/sft/summary.json || $(BIN)/shiqrun train experiment=hh_small_sft \
		data.path=$(HH_FILE) model.path=$(HH_MODEL) logger=$(HH_LOGGER) run_dir=$(HH_OUT)/sft
	test -e $(HH_OUT)/reward/summary.json || $(BIN)/shiqrun train experiment=hh_small_reward \
		data.path=$(HH_FILE) model.path=$(HH_OUT)/sft/policy logger=$(HH_LOGGER) run_dir=$(HH_OUT)/reward
	test -e $(HH_OUT)/scored/summary.json || $(BIN)/shiqrun score data=hh data.path=$(HH_FILE) data.val_fraction=0.2 \
		reward=$(HH_OUT)/reward/reward_model run_dir=$(HH_OUT)/scored
	$(call hh-sweep,methods,algo=$(HH_ALGOS))
	$(call hh-sweep,anchored,algo=shiq$(comma)copg $(HH_ANCHOR))
	$(BIN)/shiqrun report $(HH_OUT)/methods $(HH_OUT)/anchored

BFCL_OUT   ?= outputs/bfcl
BFCL_BETAS ?= 0.1,0.3,1
BFCL_SEEDS ?= 1,2,3
BFCL_JOBS  ?= 2
BFCL_LOGGER ?= none
BFCL_GRID   = experiment=bfcl_small seed=$(BFCL_SEEDS) model.path=$(BFCL_OUT)/sft/policy \
	sweep.parallel=$(BFCL_JOBS) logger=$(BFCL_LOGGER)
bfcl-sweep = if test -e $(BFCL_OUT)/$(1)/sweep.json; \
	then $(BIN)/shiqrun sweep sweep.resume=$(BFCL_OUT)/$(1) sweep.parallel=$(BFCL_JOBS) || test $$? -eq 1; \
	else $(BIN)/shiqrun sweep $(BFCL_GRID) $(2) run_dir=$(BFCL_OUT)/$(1) || test $$? -eq 1; fi

bfcl: export OMP_NUM_THREADS ?= 1 # the runs are small and two go side by side
bfcl: install ## function calling over several turns, on a shortened BFCL: warm start, methods, ablations, two reports (an hour)
	$(BIN)/shiqrun eval data=bfcl data.split=all eval.policy=ground_truth run_dir=$(BFCL_OUT)/ground_truth
	test -e $(BFCL_OUT)/sft/summary.json || $(BIN)/shiqrun train experiment=bfcl_small_sft logger=$(BFCL_LOGGER) \
		run_dir=$(BFCL_OUT)/sft
	$(call bfcl-sweep,others,algo=copg$(comma)dpo algo.beta=$(BFCL_BETAS))
	$(call bfcl-sweep,shiq,algo=shiq algo.beta=$(BFCL_BETAS))
	$(call bfcl-sweep,ablations,algo=shiq_init$(comma)shiq_ms$(comma)shiq_tk algo.beta=0.3)
	$(call bfcl-sweep,slower,algo=shiq$(comma)copg$(comma)dpo algo.beta=0.3 trainer.learning_rate=1e-4)
	$(BIN)/shiqrun report $(BFCL_OUT)/shiq $(BFCL_OUT)/others --out $(BFCL_OUT)/methods.html
	$(BIN)/shiqrun report $$(ls -d $(BFCL_OUT)/shiq/*_algo.beta=0.3_* 2>/dev/null || echo $(BFCL_OUT)/shiq) \
		$(BFCL_OUT)/ablations --out $(BFCL_OUT)/ablations.html

SPO_OUT   ?= outputs/spo-offline
SPO_SEEDS ?= 1,2,3
SPO_JOBS  ?= 2
SPO_LOGGER ?= none
SPO_REF    = model=hf model.path=$(SPO_OUT)/sft/policy
SPO_GRID   = experiment=spo_offline seed=$(SPO_SEEDS) model.path=$(SPO_OUT)/sft/policy \
	algo.values=$(SPO_OUT)/values/values.jsonl sweep.parallel=$(SPO_JOBS) logger=$(SPO_LOGGER)
SPO_MC     = algo.targets=$(SPO_OUT)/pivotal/pivotal.jsonl algo.monte_carlo
SPO_ROLLS  = data=jsonl data.path=$(SPO_OUT)/pivotal/rollouts.jsonl data.val_path=$(SPO_OUT)/values/trajectories_val.jsonl \
	data.distinct=true
# Around 0 the warped loss has an eighth of the squared one's curvature.
SPO_EIGHTH = algo.anchor=12.5
SPO_LINKS  = algo.link=square$(comma)cross_entropy
spo-sweep = if test -e $(SPO_OUT)/$(1)/sweep.json; \
	then $(BIN)/shiqrun sweep sweep.resume=$(SPO_OUT)/$(1) sweep.parallel=$(SPO_JOBS) || test $$? -eq 1; \
	else $(BIN)/shiqrun sweep $(SPO_GRID) $(2) run_dir=$(SPO_OUT)/$(1) || test $$? -eq 1; fi

spo-offline: export OMP_NUM_THREADS ?= 1 # the runs are small and two go side by side
spo-offline: install ## SPO on logged programs: reference, prompt values, pivotal tokens, the ablations, a picture (an hour)
	test -e $(SPO_OUT)/sft/summary.json || $(BIN)/shiqrun train experiment=programs_sft logger=$(SPO_LOGGER) \
		run_dir=$(SPO_OUT)/sft
	test -e $(SPO_OUT)/values/summary.json || $(BIN)/shiqrun values data=programs reward=programs $(SPO_REF) \
		values.max_new_tokens=12 values.batch_size=2560 run_dir=$(SPO_OUT)/values
	test -e $(SPO_OUT)/pivotal/summary.json || $(BIN)/shiqrun pivotal data=programs reward=programs $(SPO_REF) \
		pivotal.max_new_tokens=12 pivotal.batch_size=2560 pivotal.max_trajectories=4000 run_dir=$(SPO_OUT)/pivotal
	$(call spo-sweep,losses,algo=spo$(comma)spo_nonterminal $(SPO_LINKS))
	$(call spo-sweep,advantage,algo=spo_advantage $(SPO_EIGHTH))
	$(call spo-sweep,targets,algo=spo$(comma)spo_nonterminal algo.link=cross_entropy $(SPO_MC)=1)
	$(call spo-sweep,targets_square,algo=spo$(comma)spo_nonterminal algo.link=square $(SPO_MC)=0.1)
	$(call spo-sweep,targets_advantage,algo=spo_advantage $(SPO_EIGHTH) $(SPO_MC)=0.1)
	$(call spo-sweep,rollouts,algo=spo $(SPO_LINKS) $(SPO_ROLLS))
	$(call spo-sweep,free,algo=spo $(SPO_LINKS) algo.anchor=0)
	$(call spo-sweep,free_advantage,algo=spo_advantage algo.anchor=0)
	$(BIN)/python -m bench.programs $(SPO_OUT)
	$(BIN)/shiqrun report $(SPO_OUT)/losses $(SPO_OUT)/advantage $(SPO_OUT)/targets $(SPO_OUT)/targets_square \
		$(SPO_OUT)/targets_advantage $(SPO_OUT)/rollouts $(SPO_OUT)/free $(SPO_OUT)/free_advantage --out $(SPO_OUT)/report.html

ONLINE_OUT   ?= outputs/spo
ONLINE_SEEDS ?= 1,2,3
ONLINE_JOBS  ?= 2
ONLINE_LOGGER ?= none
ONLINE_GRID  = experiment=spo_programs seed=$(ONLINE_SEEDS) model.path=$(ONLINE_OUT)/sft/policy sweep.parallel=$(ONLINE_JOBS) \
	logger=$(ONLINE_LOGGER)
ONLINE_SPO   = algo.values=$(ONLINE_OUT)/values/values.jsonl
ONLINE_CE    = $(ONLINE_SPO) algo.link=cross_entropy algo.anchor=0
# The SPO paper's behaviour temperatures tell the others little: drawn cold, two completions of a prompt are often the same.
ONLINE_WARM  = algo.beta=0.0868589 rollout.temperature=[1,1] rollout.top_p=1
# Monte-Carlo targets have a cross-entropy, and rollout.losses no weights: they are mixed with cross-entropies alone.
ONLINE_AGAIN = $(ONLINE_WARM) algo.reference=frozen rollout.sources.logged=0 rollout.sources.replay=1
ONLINE_MC    = algo.targets=$(ONLINE_OUT)/pivotal/pivotal.jsonl rollout.sources.annotated=1 rollout.losses.annotated=monte_carlo
online-sweep = if test -e $(ONLINE_OUT)/$(1)/sweep.json; \
	then $(BIN)/shiqrun sweep sweep.resume=$(ONLINE_OUT)/$(1) sweep.parallel=$(ONLINE_JOBS) || test $$? -eq 1; \
	else $(BIN)/shiqrun sweep $(ONLINE_GRID) $(2) run_dir=$(ONLINE_OUT)/$(1) || test $$? -eq 1; fi

spo: export OMP_NUM_THREADS ?= 1 # the runs are small and two go side by side
spo: install ## learning while sampling: SPO, PPO, CoPG, ShiQ from one reference, SPO's parts half online, pictures (two hours)
	test -e $(ONLINE_OUT)/sft/summary.json || $(BIN)/shiqrun train experiment=programs_sft logger=$(ONLINE_LOGGER) \
		run_dir=$(ONLINE_OUT)/sft
	test -e $(ONLINE_OUT)/values/summary.json || $(BIN)/shiqrun values data=programs reward=programs model=hf \
		model.path=$(ONLINE_OUT)/sft/policy values.max_new_tokens=12 values.batch_size=2560 run_dir=$(ONLINE_OUT)/values
	test -e $(ONLINE_OUT)/pivotal/summary.json || $(BIN)/shiqrun pivotal data=programs reward=programs model=hf \
		model.path=$(ONLINE_OUT)/sft/policy pivotal.max_new_tokens=12 pivotal.batch_size=2560 \
		pivotal.max_trajectories=4000 run_dir=$(ONLINE_OUT)/pivotal
	$(call online-sweep,half,$(ONLINE_CE))
	$(call online-sweep,online,$(ONLINE_CE) rollout.offline=0)
	$(call online-sweep,ppo,algo=ppo algo.anchor=0 rollout.offline=0 rollout.model_update_interval=1 $(ONLINE_WARM))
	$(call online-sweep,copg,algo=copg algo.anchor=0 rollout.samples_per_prompt=2 $(ONLINE_AGAIN))
	$(call online-sweep,shiq,algo=shiq algo.anchor=10 algo.reward_offset=mean $(ONLINE_AGAIN))
	$(call online-sweep,half_warm,$(ONLINE_CE) $(ONLINE_WARM))
	$(call online-sweep,online_warm,$(ONLINE_CE) $(ONLINE_WARM) rollout.offline=0)
	$(call online-sweep,updates,$(ONLINE_CE) rollout.model_update_interval=1$(comma)50)
	$(call online-sweep,square,$(ONLINE_SPO))
	$(call online-sweep,nonterminal,algo=spo_nonterminal algo.reference=frozen $(ONLINE_CE))
	$(call online-sweep,advantage,algo=spo_advantage algo.reference=frozen $(SPO_EIGHTH) $(ONLINE_SPO))
	$(call online-sweep,targets,$(ONLINE_CE) $(ONLINE_MC))
	$(call online-sweep,rollouts,$(ONLINE_CE) rollout.sources.further=1 rollout.path=$(ONLINE_OUT)/pivotal/rollouts.jsonl)
	$(BIN)/python -m bench.spo $(ONLINE_OUT)
	$(BIN)/shiqrun report $(addprefix $(ONLINE_OUT)/,half online ppo copg shiq) --out $(ONLINE_OUT)/methods.html

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

BENCH_OUT ?= bench/out
DEVICE    ?= cpu
QUICK     ?=
BENCH_TRL  = $(BIN)/python -c 'import trl' 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'

bench: bench-kernel bench-step bench-gen bench-start ## timings and memory against peers, about two hours; QUICK=--quick shortens; no test

bench-kernel: install ## scoring alone against dense and against TRL's
	@$(BENCH_TRL)
	$(BIN)/python -m bench.kernel --device $(DEVICE)

bench-step: install ## training steps against TRL's DPO trainer, equal losses first; table, JSON and picture in bench/out
	@$(BENCH_TRL)
	$(BIN)/python -m bench.step --device $(DEVICE) --out $(BENCH_OUT) $(QUICK)

bench-gen: install ## generation against transformers' generate
	$(BIN)/python -m bench.gen --device $(DEVICE)

bench-start: install ## start-up over the bare interpreter
	$(BIN)/python -m bench.start --out $(BENCH_OUT)

bench-loop: install ## what the training loop costs beside its products, and what torch.compile buys
	$(BIN)/python -m bench.loop
	$(BIN)/python -m bench.compiled

bench-growth: install ## time and memory over tokens, vocabulary, completions, rows and sweep length
	$(BIN)/python -m bench.growth --out $(BENCH_OUT) $(QUICK)

bench-sandbox: install ## programs a second in each sandbox that works here
	$(BIN)/python -m bench.sandbox

clean: ## remove the environment and every run
	rm -rf $(VENV) outputs/*
