"""Every loss under the name that `algo=` knows; pure functions of a batch and two models' scores."""

from shiqrun.losses.shifted_q import shiq, shiq_init, shiq_ms, shiq_tk
from shiqrun.losses.supervised import sft

__all__ = ["sft", "shiq", "shiq_init", "shiq_ms", "shiq_tk"]
