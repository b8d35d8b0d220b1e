"""The rules of settings: every rule finds what it is for, in a config that is otherwise accepted, and nothing else."""

from functools import cache

import pytest
from hydra import compose, initialize_config_module

from shiqrun.commands.train import plan
from shiqrun.config.compose import as_hydra_overrides
from shiqrun.errors import InputError
from shiqrun.training import checks, checks_reference, checks_rollout
from tests.support.online_words import ONLINE, PROBLEMS, STEPS, TINY

LIVE = ("algo.reference=frozen", *ONLINE)
PLAYS = ("data=jsonl", "data.path=x", "data._target_=tests.environments.echoing.Echoing", LIVE[0], "rollout=local")
REPLAY = ("rollout.sources.replay=1",)
RAY = ("rollout=ray", "rollout.waiting=8")
NO_HYPERPARAMETERS = ("~algo.beta", "~algo.link", "~algo.top", "~algo.eps")
BROKEN = {
    "sharded_weights_can_be_sharded": (
        "shiq",
        ["hardware=fsdp", "model=hf", "model.path=x", "model.lora_r=4", "model.quantize=nf4"],
        "hardware=fsdp cannot cut 4-bit weights; set model.quantize=null, or hardware=ddp",
    ),
    "tested_prompts_are_evaluated": (
        "shiq",
        ["eval.test_prompts=3", "eval.every=0"],
        "eval.test_prompts=3, but eval.every=0 evaluates nothing; set eval.every=50, or leave the test out",
    ),
    "loss_on_samples_has_a_rollout": (
        "ppo",
        ["algo.reference=frozen"],
        "set rollout=local (or ray, vllm) and eval.reward",
    ),
    "adapter_reference_has_an_adapter": (
        "shiq",
        ["algo.reference=adapter"],
        "set model.lora_r=16, or reference=",
    ),
    "quantization_has_a_gpu": (
        "shiq",
        ["model=hf", "model.path=x", "model.quantize=nf4", "model.lora_r=4"],
        "model.quantize=nf4 needs a CUDA GPU; set hardware=gpu",
    ),
    "rewards_of_prompt_values_are_unshifted": (
        "spo",
        ["algo.reward_offset=mean", "eval.reward=programs"],
        "algo.reward_offset=mean: prompt values are of rewards as they are; set it to none",
    ),
    "prompt_values_have_a_beta": (
        "spo",
        [*NO_HYPERPARAMETERS, "algo._target_=tests.support.own_losses.without_beta", "algo.values=x"],
        "algo=spo needs the value of every prompt, a value at a beta; give its loss a keyword beta",
    ),
    "prompt_values_have_an_origin": (
        "spo",
        [],
        "algo=spo needs what the reference earns on every prompt: give algo.values=FILE",
    ),
    "monte_carlo_has_weight_and_targets": (
        "spo",
        ["algo.values=x", "algo.monte_carlo=1"],
        "algo.monte_carlo=1, algo.targets=None: the Monte-Carlo term needs both a weight and a file of estimates",
    ),
    "prompt_value_settings_have_a_reader": ("shiq", ["+algo.values=x"], "are for methods with prompt values, not shiq"),
    "loss_has_its_reference": (
        "shiq",
        ["algo.reference=none"],
        "algo.reference=none is for algo=sft; shiq needs cached, frozen or adapter",
    ),
    "value_settings_have_a_reader": (
        "shiq",
        ["+algo.value=head"],
        "are for methods with a value function; shiq has",
    ),
    "updates_have_a_proximal_policy": ("shiq", ["+algo.epochs=3"], "algo.epochs=3: several updates on a batch are for"),
    "anchor_has_a_reference": ("sft", ["+algo.anchor=1"], "algo.anchor holds logits at a reference's, and sft has"),
    "anchor_tokens_are_cached": (
        "shiq",
        ["algo.anchor=1", "algo.anchor_from=policy"],
        "draws new tokens at each step, which no cache has; set algo.reference=frozen",
    ),
    "vocabulary_kl_has_a_live_reference": (
        "oreo",
        ["algo.reference=cached"],
        "algo=oreo weighs the KL over the vocabulary (algo.kl_reg), and no cache has the logits of all tokens",
    ),
    "moving_reference_is_a_copy": (
        "shiq",
        ["algo.reference_every=5"],
        "algo.reference_every=5: no cache has the scores of a reference that moves; set algo.reference=frozen",
    ),
    "moving_reference_is_whole": (
        "shiq",
        ["algo.reference_every=5", "algo.reference=frozen", "hardware=fsdp"],
        "algo.reference_every=5: ranks that share weights do not move the reference's; set hardware=ddp",
    ),
    "moving_reference_has_no_estimates": (
        "spo",
        ["algo.reference_every=5", "algo.reference=frozen", "algo.values=x"],
        "algo.reference_every=5: algo=spo reads what the first reference earns",
    ),
    "decay_has_a_move": (
        "shiq",
        ["algo.reference_decay=0.5", "algo.reference=frozen"],
        "algo.reference_decay=0.5, but the reference never moves; set algo.reference_every=N",
    ),
    "training_has_an_end": (
        "shiq",
        ["trainer.max_steps=null", "trainer.max_epochs=null"],
        "trainer.max_steps and trainer.max_epochs are both",
    ),
    "stop_metric_is_measured": (
        "shiq",
        ["trainer.stop_metric=val/reward", "eval.every=0"],
        "trainer.stop_metric=val/reward, but eval.every=0 evaluates nothing; set eval.every=50",
    ),
    "temperatures_are_ordered": (
        "shiq",
        [*LIVE, "rollout.temperature=[0.8,0.1]"],
        "rollout.temperature=[0.8, 0.1]: expected [least, greatest]",
    ),
    "staleness_covers_the_update_interval": (
        "shiq",
        [*LIVE, "rollout.max_staleness=3"],
        "rollout.max_staleness=3: weights are up to 4 steps old before new ones come",
    ),
    "offline_share_has_sources": (
        "shiq",
        [*LIVE, "rollout.sources.logged=0"],
        "names nothing to fill it with; set rollout.sources.logged=1, or rollout.offline=0",
    ),
    "further_source_has_a_file": (
        "shiq",
        [*LIVE, "rollout.path=a.jsonl"],
        "rollout.path is the file of rollout.sources.further: set both or none",
    ),
    "method_learns_from_samples": ("sft", ONLINE, "algo=sft learns nothing from the policy's own samples"),
    "method_pairs_no_samples": (
        "kto",
        LIVE,
        "rollout: algo=kto puts logged completions behind other prompts, not sampled; set rollout=none",
    ),
    "data_can_be_sampled": (
        "shiq",
        [*LIVE, "data=treasure", "data.maps=20", "data.val_maps=2"],
        "rollout: data=treasure is solved exactly and never sampled; set rollout=none, or see data=programs",
    ),
    "episodes_need_no_prompt_values": (
        "spo",
        ["algo.values=x", *PLAYS],
        "algo=spo reads what the reference earns on each prompt by single completions, but data=jsonl answers back "
        "over several turns; choose shiq, oreo, copg, ppo, grpo or rloo",
    ),
    "samples_have_a_reward": ("shiq", [*LIVE, "eval.reward=null"], "what is sampled needs a reward; set eval.reward"),
    "reference_scores_samples": ("shiq", ONLINE, "algo.reference=cached: no cache has the tokens that are sampled"),
    "number_of_steps_is_set": (
        "shiq",
        [*LIVE, "trainer.max_steps=null"],
        "rollout: sampling has no epochs; set",
    ),
    "shared_weights_score_no_served_samples": (
        "shiq",
        [*LIVE, "rollout=vllm", "hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu"],
        "rollout=vllm: hardware=fsdp leaves no process the whole policy",
    ),
    "all_losses_train_the_value": (
        "dro_v",
        [*LIVE, "hardware.devices=2", "rollout.losses.logged=dro"],
        "rollout.losses.logged=dro does not train the value function of algo=dro_v",
    ),
    "step_samples_something": (
        "shiq",
        [*LIVE, "rollout.offline=1"],
        "rollout.offline=1 leaves none of trainer.batch_size=16 trajectories to sample (in groups of 1)",
    ),
    "every_source_gives_something": (
        "shiq",
        [*LIVE, "rollout.sources.logged=3", *REPLAY, "rollout.samples_per_prompt=4", "trainer.batch_size=12"],
        "rollout.sources.replay: less than one of trainer.batch_size=12 trajectories (in groups of 4)",
    ),
    "groups_fill_the_batch": (
        "shiq",
        [*LIVE, "rollout.samples_per_prompt=2", "rollout.offline=0", "trainer.batch_size=7"],
        "trainer.batch_size=7 is not a multiple of rollout.samples_per_prompt=2",
    ),
    "groups_can_be_compared": ("copg", LIVE, "algo=copg compares completions of a prompt: set rollout.samples_per_pro"),
    "policy_gradient_reads_samples_alone": ("ppo", LIVE, "algo=ppo learns from samples alone: set rollout.offline=0"),
    "reference_is_the_sampler": (
        "oapl",
        [*LIVE, "rollout.offline=0", "rollout.samples_per_prompt=4"],
        "set algo.reference_every=5 (rollout.model_update_interval) and algo.reference_decay=0",
    ),
    "group_mean_leaves_rewards": (
        "shiq",
        [*LIVE, "algo.reward_offset=group_mean"],
        "with rollout.samples_per_prompt=1 all rewards would be 0",
    ),
    "every_source_has_a_share": (
        "shiq",
        [*LIVE, *REPLAY, "rollout.offline=0"],
        "rollout.sources.replay=1, but rollout.offline=0 leaves it no share",
    ),
    "replay_pool_holds_a_step": (
        "shiq",
        [*LIVE, *REPLAY, "rollout.sources.logged=0", "rollout.replay_size=7"],
        "rollout.replay_size=7: a step replays 8; keep at least as many",
    ),
    "staleness_allows_replay": (
        "shiq",
        [*LIVE, *REPLAY, "rollout.max_staleness=0", "rollout.model_update_interval=1"],
        "rollout.max_staleness=0 lets nothing be replayed",
    ),
    "ray_is_installed": ("shiq", [*LIVE, *RAY], "Ray is missing; pip install 'shiqrun[ray]', or set rollout=local"),
    "queue_holds_a_step": ("shiq", [*LIVE, "rollout=ray", "rollout.waiting=7"], "rollout.waiting=7: a step takes 8"),
    "annotated_rows_have_targets": (
        "spo",
        [*LIVE, "rollout.sources.annotated=1"],
        "rollout.sources.annotated needs value targets of actions; set algo.targets=FILE",
    ),
    "source_loss_exists": (
        "shiq",
        [*LIVE, "rollout.losses.online=copgg"],
        "rollout.losses.online=copgg: no such loss; did you mean copg?",
    ),
    "source_with_a_loss_has_a_share": (
        "shiq",
        [*LIVE, "rollout.losses.replay=shiq_ms"],
        "rollout.losses.replay: no trajectory comes from there",
    ),
    "source_loss_needs_no_more": (
        "shiq",
        [*LIVE, "rollout.losses.online=spo"],
        "rollout.losses.online=spo needs prompt_value, which algo=shiq does not",
    ),
    "monte_carlo_source_has_targets": (
        "spo",
        [*LIVE, "rollout.losses.online=monte_carlo", "algo.targets=x"],
        "rollout.losses.online=monte_carlo: none of these trajectories has a target",
    ),
}
"""Method, settings beside those of a small run, and what the rule says of them."""

FINE = [
    ("shiq", []),
    ("sft", []),
    ("spo", ["eval.reward=programs"]),
    ("spo", ["algo.values=x", "algo.monte_carlo=1", "algo.targets=x"]),
    ("shiq", ["algo.anchor=1"]),
    ("shiq", LIVE),
    ("copg", [*LIVE, "rollout.samples_per_prompt=2", *REPLAY]),
    ("ppo", [*LIVE, "rollout.offline=0", "algo.epochs=3"]),
    ("grpo", [*LIVE, "rollout.offline=0", "rollout.samples_per_prompt=4", "algo.epochs=3"]),
    ("oapl", [*LIVE, "rollout.offline=0", "rollout.samples_per_prompt=4", "algo.reference_every=5"]),
    ("rloo", [*LIVE, "rollout.sources.logged=0", *REPLAY, "rollout.samples_per_prompt=2"]),
    ("spo", [*LIVE, "rollout.sources.annotated=1", "rollout.losses.annotated=monte_carlo", "algo.targets=x"]),
    ("shiq", [*LIVE, *RAY]),
    ("shiq", [*LIVE, *RAY, "hardware.devices=2"]),
    ("shiq", [*LIVE, "hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu"]),
    ("ppo", [*LIVE, "rollout.offline=0", "algo.epochs=3", "hardware.devices=2"]),
    ("dro_v", [*LIVE, "hardware.devices=2", "rollout.losses.logged=dro_v"]),
    ("shiq", PLAYS),
    ("ppo", [*PLAYS, "rollout=ray", "rollout.offline=0"]),
    ("oreo", ["algo.reference=cached", "algo.kl_reg=0"]),
    ("kto", []),
    ("kto", ["algo.reference=frozen", "algo.reference_every=5", "algo.reference_decay=0.9"]),
    ("a2po", ["algo.values=x"]),
]
RULES = {rule.__name__: rule for rule in (*checks.RULES, *checks_rollout.RULES)}


@cache
def planned(algo, words):
    """The plan of a small run with such settings; nothing is loaded."""
    model = () if "model=hf" in words else TINY
    data = ("logger=none",) if any(word.startswith("data=") for word in words) else PROBLEMS
    words = [f"algo={algo}", *data, *model, *STEPS, *words]
    with initialize_config_module("shiqrun.conf", version_base="1.3"):
        config = compose("train", as_hydra_overrides([*words, "run_dir=run", "cache_dir=cache"]))
    return plan(config, "run")


def verdict(name, made):
    """What a rule says of a plan."""
    if RULES[name] in checks.RULES:
        return RULES[name](made)
    return None if made.rollout is None else RULES[name](made, made.rollout)


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(checks_rollout, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("algo", "words", "told"),
    [
        ("shiq", ["algo.reference=adapter", "model.lora_r=4"], "the policy without its adapter cannot move"),
        ("sft", [], "algo=sft has no reference; leave it out"),
        (
            "shiq",
            ["algo.reference=frozen", "algo.reference_decay=0.9", "hardware.weights=bf16", "hardware.precision=bf16"],
            "bfloat16 weights lose the small steps of an average",
        ),
        (
            "shiq",
            ["algo.reference=frozen", "model=hf", "model.path=x", "model.quantize=nf4", "model.lora_r=4"],
            "a reference of 4-bit weights does not move",
        ),
    ],
)
def test_a_reference_that_cannot_move_is_named(algo, words, told):
    made = planned(algo, ("algo.reference_every=5", *words))
    said = [rule(made) for rule in checks_reference.RULES]
    assert any(told in one for one in said if one)


def test_every_rule_has_a_case():
    assert BROKEN.keys() == RULES.keys()


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_finds_what_it_is_for(name, request):
    if name == "ray_is_installed":
        request.getfixturevalue("without_ray")
    algo, words, told = BROKEN[name]
    made = planned(algo, tuple(words))
    assert told in verdict(name, made)
    if name != "queue_holds_a_step":  # where Ray is not there, that is said first
        with pytest.raises(InputError) as error:
            checks.check_settings(made)
        assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        (
            "step_samples_something",
            ["trainer.batch_size=3", "rollout.samples_per_prompt=4"],
            "leaves none of trainer.batch_size=3 trajectories to sample (in groups of 4)",
        ),
        (
            "every_source_gives_something",
            ["trainer.batch_size=12", "rollout.samples_per_prompt=4", *REPLAY, "rollout.sources.replay=2"],
            "rollout.sources.logged: less than one of trainer.batch_size=12 trajectories;",
        ),
        (
            "groups_fill_the_batch",
            ["trainer.batch_size=9", "rollout.samples_per_prompt=2", *REPLAY, "rollout.sources.logged=0"],
            "trainer.batch_size=9 is not a multiple of rollout.samples_per_prompt=2",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_is_found_for_every_reason(name, words, told):
    assert told in verdict(name, planned("shiq", (*LIVE, *words)))


@pytest.mark.parametrize(("algo", "words"), FINE)
def test_settings_that_can_be_break_no_rule(algo, words, monkeypatch):
    monkeypatch.setattr(checks_rollout, "find_spec", lambda name: object())  # as if Ray were there
    made = planned(algo, tuple(words))
    assert {name: told for name in RULES if (told := verdict(name, made))} == {}
    checks.check_settings(made)


def test_a_plan_has_the_hyperparameters_that_its_loss_has_by_default():
    own = "algo._target_=tests.support.own_losses.defaulted"
    made = planned("spo", (*NO_HYPERPARAMETERS, own, "algo.values=x", "algo.anchor=1"))
    assert made.loss.keywords == {}
    assert (made.beta, made.link, made.top) == (0.3, "cross_entropy", 2.0)
    checks.check_settings(made)
    assert planned("spo", (own, "algo.beta=0.7", "algo.values=x")).beta == 0.7


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("reward", "trainer.stop_metric=reward: expected the name of a logged metric: val/..., train/... or rollout/"),
        ("rollout/reward", "but nothing is sampled; set rollout=local"),
        ("val/entropy", "its name does not say what is better; set trainer.stop_mode=max or min"),
    ],
)
def test_a_stop_metric_that_cannot_work_is_refused_before_anything_is_loaded(metric, message):
    with pytest.raises(InputError) as error:
        checks.check_settings(planned("shiq", ("eval.every=5", f"trainer.stop_metric={metric}")))
    assert message in str(error.value)
