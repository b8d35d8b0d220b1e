"""shiqrun: experiments in RL fine-tuning of language models from logged data, at the level of tokens.

This module stays empty of imports, so that `shiqrun --help` costs nothing.
"""

__version__ = "0.1.0"
