"""A seeded campaign of damage and kills against real run directories: `python -m tests.campaign --trials 300`."""
