"""Tabular studies of the losses that training uses: small problems whose optimum is known exactly."""
