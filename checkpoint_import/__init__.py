"""Imports Hugging Face checkpoints into model directories (needs torch and transformers)."""
