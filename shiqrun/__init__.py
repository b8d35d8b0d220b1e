"""The package shiqrun runs experiments in RL fine-tuning of language models from logged data, token by token.

This module stays empty of imports, so that `shiqrun --help` costs nothing.
"""

__version__ = "0.1.0"
