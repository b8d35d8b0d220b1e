"""The experience store keeps every sampled trajectory on disk and leases it to one optimiser step."""
