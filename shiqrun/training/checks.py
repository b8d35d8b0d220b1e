"""`check_settings` checks the settings of a run against rules before any data or model is loaded.

A rule is a function of the plan that returns what is wrong and what to set instead, or None. To add one, write the
function, append it to `RULES` here or in `checks_rollout.py`, and give it a case in `tests/training/test_checks.py`.
Rules about loaded data are in `checks_data.py`.
"""

from shiqrun.errors import InputError
from shiqrun.training import checks_reference, checks_rollout
from shiqrun.training.plan import Plan
from shiqrun.util.metric_directions import direction_of


def check_settings(plan: Plan) -> None:
    """Check a plan against every rule; the rules on sampling apply only where the run samples.

    Raises:
        InputError: the message of the first rule that the plan breaks.
    """
    for sampling_rule in checks_rollout.RULES:
        if plan.rollout is not None and (wrong := sampling_rule(plan, plan.rollout)):
            raise InputError(wrong)
    for rule in RULES:
        if wrong := rule(plan):
            raise InputError(wrong)


def training_has_an_end(plan: Plan) -> str | None:
    """Training needs a number of optimiser steps or of epochs."""
    if plan.trainer.max_steps is None and plan.trainer.max_epochs is None:
        return "trainer.max_steps and trainer.max_epochs are both null; set one"
    return None


def loss_on_samples_has_a_rollout(plan: Plan) -> str | None:
    """A loss that reads the log-probabilities of sampling needs a run that samples."""
    if "behaviour" in plan.needs and plan.rollout is None:
        plays = plan.source.environment() is not None
        return (
            f"algo={plan.name} learns from the policy's own samples, whose log-probabilities logged data do not have: "
            f"set rollout=local {'(or ray)' if plays else '(or ray, vllm) and eval.reward=NAME'}"
        )
    return None


def adapter_reference_has_an_adapter(plan: Plan) -> str | None:
    """The reference `adapter` is the policy without its LoRA adapter, so the policy needs one."""
    if plan.algo.reference == "adapter" and not plan.model.lora_r:
        return "algo.reference=adapter needs a LoRA adapter to switch off; set model.lora_r=16, or reference=cached"
    return None


def quantization_has_a_gpu(plan: Plan) -> str | None:
    """Quantized weights are computed with on CUDA GPUs only."""
    quantize = getattr(plan.choice, "quantize", None)
    if quantize and plan.hardware.device().type != "cuda":
        return f"model.quantize={quantize} needs a CUDA GPU; set hardware=gpu"
    return None


def rewards_of_prompt_values_are_unshifted(plan: Plan) -> str | None:
    """Prompt values are estimated from rewards as they are, so that no offset may be taken from them."""
    if plan.reads_values and plan.algo.reward_offset != "none":
        return f"algo.reward_offset={plan.algo.reward_offset}: prompt values are of rewards as they are; set it to none"
    return None


def prompt_values_have_a_beta(plan: Plan) -> str | None:
    """A prompt's soft value depends on the KL temperature beta."""
    if "prompt_value" in plan.needs and plan.beta is None:
        return f"algo={plan.name} needs the value of every prompt, a value at a beta; give its loss a keyword beta"
    return None


def prompt_values_have_an_origin(plan: Plan) -> str | None:
    """Prompt values are read from a file, or estimated with a reward."""
    if plan.reads_values and plan.algo.values is None and plan.reward is None:
        return (
            f"algo={plan.name} needs what the reference earns on every prompt: give algo.values=FILE, made by `shiqrun "
            "values`, or eval.reward=NAME to have the reference's completions scored first"
        )
    return None


def monte_carlo_has_weight_and_targets(plan: Plan) -> str | None:
    """The Monte-Carlo term needs a weight and targets, unless a source is trained by it alone."""
    algo = plan.algo
    by_source = plan.rollout is not None and "monte_carlo" in plan.rollout.losses.values()
    half = bool(algo.monte_carlo) != (algo.targets is not None)
    if "prompt_value" in plan.needs and half and not (by_source and algo.targets):
        return (
            f"algo.monte_carlo={algo.monte_carlo:g}, algo.targets={algo.targets}: the Monte-Carlo term needs both a "
            "weight and a file of estimates, which `shiqrun pivotal` makes"
        )
    return None


def prompt_value_settings_have_a_reader(plan: Plan) -> str | None:
    """Settings of prompt values and value targets are for methods that read prompt values."""
    algo, terms = plan.algo, plan.algo.monte_carlo or plan.algo.targets or plan.algo.value_beta
    if ("prompt_value" not in plan.needs and terms) or (not plan.reads_values and algo.values):
        settings = "algo.values, algo.value_beta, algo.targets and algo.monte_carlo"
        return f"{settings} are for methods with prompt values, not {plan.name}"
    if algo.value_beta is not None and (algo.monte_carlo or algo.targets):
        return f"algo.value_beta={algo.value_beta:g}: the Monte-Carlo term's targets are values at algo.beta; set null"
    return None


def loss_has_its_reference(plan: Plan) -> str | None:
    """Every loss but those of `sft` and of reward models reads a reference."""
    if plan.algo.reference == "none" and plan.needs and "score" not in plan.needs:
        return f"algo.reference=none is for algo=sft; {plan.name} needs cached, frozen or adapter"
    return None


def value_settings_have_a_reader(plan: Plan) -> str | None:
    """Settings of a value function are for methods that have one."""
    if "value" not in plan.needs and (plan.algo.value or plan.algo.value_lr_ratio):
        return f"algo.value and algo.value_lr_ratio are for methods with a value function; {plan.name} has none"
    return None


def updates_have_a_proximal_policy(plan: Plan) -> str | None:
    """Several updates on one batch need a loss with a proximal policy."""
    if "proximal" not in plan.needs and plan.algo.epochs > 1:
        return f"algo.epochs={plan.algo.epochs}: several updates on a batch are for grpo, ppo and rloo, not {plan.name}"
    return None


def anchor_has_a_reference(plan: Plan) -> str | None:
    """The anchor holds logits at those of a reference, in units of beta."""
    if plan.algo.anchor and (plan.algo.reference == "none" or plan.beta is None):
        return f"algo.anchor holds logits at a reference's, and {plan.name} has none"
    return None


def anchor_tokens_are_cached(plan: Plan) -> str | None:
    """A cache of reference scores knows the logits of tokens that are fixed before training only."""
    if plan.algo.anchor and plan.algo.anchor_from == "policy" and plan.algo.reference == "cached":
        return (
            "algo.anchor_from=policy draws new tokens at each step, which no cache has; set algo.reference=frozen "
            "(or adapter), or algo.anchor_from=uniform"
        )
    return None


def vocabulary_kl_has_a_live_reference(plan: Plan) -> str | None:
    """A KL over the vocabulary needs the reference's logits of all tokens, and a model that every rank has whole."""
    if "vocabulary_kl" not in plan.needs:
        return None
    what = f"algo={plan.name} weighs the KL over the vocabulary (algo.kl_reg)"
    if plan.algo.reference == "cached":
        return f"{what}, and no cache has the logits of all tokens; set algo.reference=frozen (or adapter), or kl_reg=0"
    if plan.hardware.strategy == "fsdp":
        return f"{what}, which is not computed of sharded weights; set algo.kl_reg=0, or hardware=ddp"
    return None


def stop_metric_is_measured(plan: Plan) -> str | None:
    """A metric that stops a run is one of those that the run logs, and it is known whether more of it is better."""
    trainer, metric = plan.trainer, plan.trainer.stop_metric
    if metric is None:
        return None
    kind = metric.partition("/")[0]
    if kind not in ("val", "train", "rollout") or kind == metric:
        return f"trainer.stop_metric={metric}: expected the name of a logged metric: val/..., train/... or rollout/..."
    if kind == "val" and not plan.eval.every:
        return f"trainer.stop_metric={metric}, but eval.every=0 evaluates nothing; set eval.every=50, or train/loss"
    if kind == "rollout" and plan.rollout is None:
        return f"trainer.stop_metric={metric}, but nothing is sampled; set rollout=local, or a metric of val/ or train/"
    if trainer.stop_mode == "auto" and direction_of(metric) is None:
        return f"trainer.stop_metric={metric}: its name does not say what is better; set trainer.stop_mode=max or min"
    return None


def tested_prompts_are_evaluated(plan: Plan) -> str | None:
    """The test split is evaluated as the validation split is, after the last step."""
    asked = f"eval.test_prompts={plan.eval.test_prompts}"
    if plan.eval.test_prompts and not plan.eval.every:
        return f"{asked}, but eval.every=0 evaluates nothing; set eval.every=50, or leave the test out"
    if plan.eval.test_prompts and "score" in plan.needs:
        return f"{asked}: a reward model answers no prompt; leave it out"
    return None


def sharded_weights_can_be_sharded(plan: Plan) -> str | None:
    """Ranks share weights and moments that torch can cut, which those of `bitsandbytes` are not."""
    if plan.hardware.strategy != "fsdp":
        return None
    if getattr(plan.choice, "quantize", None):
        return "hardware=fsdp cannot cut 4-bit weights; set model.quantize=null, or hardware=ddp"
    if plan.trainer.optimizer != "adamw":
        return f"hardware=fsdp cannot cut the moments of trainer.optimizer={plan.trainer.optimizer}; set it to adamw"
    return None


RULES = (
    sharded_weights_can_be_sharded,
    loss_on_samples_has_a_rollout,
    adapter_reference_has_an_adapter,
    quantization_has_a_gpu,
    rewards_of_prompt_values_are_unshifted,
    prompt_values_have_a_beta,
    prompt_values_have_an_origin,
    monte_carlo_has_weight_and_targets,
    prompt_value_settings_have_a_reader,
    loss_has_its_reference,
    value_settings_have_a_reader,
    updates_have_a_proximal_policy,
    anchor_has_a_reference,
    anchor_tokens_are_cached,
    vocabulary_kl_has_a_live_reference,
    training_has_an_end,
    stop_metric_is_measured,
    tested_prompts_are_evaluated,
    *checks_reference.RULES,
)
"""The rules of every run, in the order in which they are checked."""
