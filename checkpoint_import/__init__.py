"""Turns Hugging Face checkpoints into the model directory that the services load."""

from __future__ import annotations

from checkpoint_import.importer import ImportedModel, ImportOptions, import_checkpoint

__all__ = ["ImportOptions", "ImportedModel", "import_checkpoint"]
