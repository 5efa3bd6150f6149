"""What a checkpoint says about building contexts."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from checkpoint_import.source import Source
from ragserve.checkpoint import RagSettings, first_reason
from ragserve.errors import FailedPreconditionError


def rag_settings(source: Source) -> RagSettings:
    """How contexts are built: from the composite's configuration, with the prefix of the generator's.

    transformers reads the prefix from the generator's configuration only (`RagTokenForGeneration.generate`).

    Raises:
        FailedPreconditionError: a value has the wrong type.
    """
    top = source.composite or {}
    names = ("n_docs", "max_combined_length", "title_sep", "doc_sep")
    given = {name: top[name] for name in names if top.get(name) is not None}
    prefix = source.generator.config.get("prefix")
    if prefix is not None:
        given["prefix"] = prefix
    try:
        return TypeAdapter(RagSettings).validate_python(given, strict=False)
    except ValidationError as error:
        path = (source.composite_directory or source.generator.directory) / "config.json"
        raise FailedPreconditionError(f"{path}: {first_reason(error)}", field=str(path)) from error
