"""Serving Retrieval-Augmented Generation: shared code, client and generated stubs."""
