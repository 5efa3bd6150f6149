"""The hot-swap experiment of the paper (arXiv 2005.11401, section 4.5): other knowledge, other answers."""
