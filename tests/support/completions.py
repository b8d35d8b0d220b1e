"""Prompts and samples by hand."""

import numpy as np

from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import SampledCompletion
from shiqrun.settings import SamplingSettings


def prompt(name, text="hello"):
    tokens = np.array([1, 3, 4], np.int64)
    return Prompt(name, f"id of {name}", [{"role": "user", "content": text}], tokens, None, f"file:{name}")


def sample(name, index=0, *, text="", length=1, ended=True, reward=None, kl=None, entropy=None):
    """A sample of that many tokens."""
    return SampledCompletion(prompt(name), index, text, np.full(length, 9), ended, reward, kl, entropy)


def sampling(**options):
    """SamplingSettings, by default one completion of the whole distribution."""
    plain = {"max_prompts": 100, "samples_per_prompt": 1, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0}
    return SamplingSettings(**(plain | {"batch_size": 16, "seed": 0} | options))
