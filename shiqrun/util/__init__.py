"""Utilities know nothing of training: atomic files, locks, JSON lines, intervals, the Hugging Face Hub, quoting."""
