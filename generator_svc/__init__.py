"""The generator service: per-document token log-probabilities from BART and T5."""
