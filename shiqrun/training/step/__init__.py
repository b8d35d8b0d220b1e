"""One optimiser step: the LightningModule, losses by source, extra terms, metrics, device sums, the optimiser."""
