"""Utilities without a layer above them: atomic files, confidence intervals, the Hugging Face Hub, shell quoting."""
