"""Errors of the services in the words of the Python clients: a keyword in place of the field that it sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ragserve.errors import KEYWORDS, RagserveError, names

# Fields whose keyword has another name, by the full name of the service; all others lose their group alone.
RETRIEVER = "ragserve.v1.RetrieverService"
RENAMED: Mapping[str, Mapping[str, str]] = {
    "ragserve.v1.RagService": KEYWORDS,
    RETRIEVER: {"options.kind": "search_kind"},
}
# A field in a message, as a path or with an underscore; not a part of a file's name.
_FIELD = re.compile(
    r"(?<![\w/.'\"-])((?:options|search)(?:\.\w+)+|passages\[\d+\]\.passage(?:\.\w+)+|n_docs|num_beams)(?![\w/-])"
)
# A condition of a filter, whose key the retriever says: the caller of a client knows it by that.
_CONDITION = re.compile(r"filter\[\d+\](?:\.(?:any_of|none_of|range))? \(key (.+?)\)(?= has )", re.DOTALL)
_PASSAGE = re.compile(r"^(passages\[\d+\])\.passage\.(\w+?)(?:_json)?$")

E = TypeVar("E", bound=RagserveError)


def in_keywords(error: E, service: str) -> E:
    """The same error, its message in keywords; `field` stays, and `sent` keeps the message as it came."""
    renamed = RENAMED.get(service)
    if renamed is None:
        return error
    argument = _keyword(error.field, renamed)
    message = _FIELD.sub(lambda found: _keyword(found[1], renamed), error.message)
    message, conditions = _CONDITION.subn(r"filter[\1]", message)
    if (argument, message) == (error.field, error.message):
        return error
    if not conditions and not names(message, argument):
        message = f"{argument}: {message}"
    error.sent, error.message, error.args = error.message, message, (message,)
    return error


def _keyword(field: str, renamed: Mapping[str, str]) -> str:
    if field in renamed:
        return renamed[field]
    group, _, rest = field.partition(".")
    return rest if rest and group in ("options", "search") else _PASSAGE.sub(r"\1.\2", field)
