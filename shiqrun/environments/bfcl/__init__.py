"""BFCL multi-turn: samples, the gate for a model's text, backends in a confined process, episodes, corruptions."""
