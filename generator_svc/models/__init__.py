"""BART and T5, written for decoding: packed encoder, cached decoder, cross-attention once per document."""
