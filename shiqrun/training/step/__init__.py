"""One optimiser step: the LightningModule, the loss by source, extra terms, metrics, gradient sums, the optimiser."""
