"""What the caller knows the fields of the other services' requests as."""

from __future__ import annotations

from ragserve.errors import InvalidInputError, RagserveError

# Fields of the other services' requests, and what the caller knows them as, with all that is in them.
CALLER_FIELDS = (
    ("k", "n_docs"),
    ("queries", "question"),
    ("open.question", "question"),
    ("open.documents", "documents"),
    ("open.prefixes", "options.num_beams"),
    ("open.max_hypotheses", "options.num_beams"),
    ("open.max_new_tokens", "options.max_new_tokens"),
    ("advance.hypotheses", "options.num_beams"),
    # The generator's limit of messages is below the orchestrator's.
    ("open.candidates", "server.max_message_bytes"),
    ("advance.candidates", "server.max_message_bytes"),
    ("widen.hypotheses", "server.max_message_bytes"),
    ("score.targets", "answer"),
)
# Fields that the caller's request has too, at another place.
CALLER_PLACES = (
    ("options.", "search."),
    ("nprobe", "search.nprobe"),
    ("ef_search", "search.ef_search"),
)


def for_caller(error: RagserveError) -> RagserveError:
    """With the caller's name of the field at fault."""
    name = _callers_name(error.field)
    if name is None:
        return error
    subject, *rest = error.message.split(" ", 1)
    message = " ".join([_callers_name(subject) or subject, *rest])
    if isinstance(error, InvalidInputError):
        return InvalidInputError(name, message)
    return type(error)(message, field=name, retry_after_seconds=error.retry_after_seconds)


def _callers_name(field: str) -> str | None:
    """What the caller knows a field as; None for what has the same name, or is in no request."""
    for theirs, ours in CALLER_FIELDS:
        if field == theirs or field.startswith((f"{theirs}.", f"{theirs}[")):
            return ours
    return next((ours + field.removeprefix(theirs) for theirs, ours in CALLER_PLACES if field.startswith(theirs)), None)
