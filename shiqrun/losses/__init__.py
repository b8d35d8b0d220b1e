"""Each loss is a pure function of a batch and of policy and reference scores, under the name that `algo=` knows.

docs/math.md has the formula, unit, value estimate and source of each. Arguments are the same everywhere: `batch` is a
`Trajectories`, `policy` and `reference` are `ActionScores`, and hyperparameters are keywords. A loss returns
`LossTerms`, a sum and a count of units.
"""

from shiqrun.losses.contrastive import copg
from shiqrun.losses.derivation import direct, soft_q
from shiqrun.losses.group_gradient import grpo, rloo
from shiqrun.losses.offline_reasoning import oreo
from shiqrun.losses.policy_gradient import ppo
from shiqrun.losses.preference import dpo, ipo, reward_model
from shiqrun.losses.prospect import kto
from shiqrun.losses.quantile import qrpo
from shiqrun.losses.regression import dro, dro_v, oapl
from shiqrun.losses.shifted_q import shiq, shiq_init, shiq_ms, shiq_tk, tbrm
from shiqrun.losses.soft_policy import spo, spo_advantage, spo_nonterminal
from shiqrun.losses.supervised import sft

__all__ = [
    "copg",
    "direct",
    "dpo",
    "dro",
    "dro_v",
    "grpo",
    "ipo",
    "kto",
    "oapl",
    "oreo",
    "ppo",
    "qrpo",
    "reward_model",
    "rloo",
    "sft",
    "shiq",
    "shiq_init",
    "shiq_ms",
    "shiq_tk",
    "soft_q",
    "spo",
    "spo_advantage",
    "spo_nonterminal",
    "tbrm",
]
