"""The orchestrator service: exact marginal decoding over retrieved passages."""
