"""A policy's answers to fixed prompts: sampled, scored, and how far they are from the reference's."""
