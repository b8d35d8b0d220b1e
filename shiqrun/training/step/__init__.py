"""This package takes one optimiser step: the LightningModule, the mixed loss, metrics, and the optimiser."""
