"""What errors say, and that they survive being sent to another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from ragserve import errors
from ragserve.serving.status import CODE_OF


@pytest.mark.parametrize(
    ("field", "message", "text"),
    [
        ("n_docs", "must be at least 1", "n_docs: must be at least 1"),
        ("n_docs", "n_docs must be at least 1", "n_docs must be at least 1"),
        ("k", "the book has no k of this size", "the book has no k of this size"),
        ("k", "the kind is unknown", "k: the kind is unknown"),
        ("options.num_beams", "num_beams is 0", "num_beams is 0"),
        ("options.num_beams", "beams is 0", "options.num_beams: beams is 0"),
        ("passages[1].id", "passages[1].id is empty", "passages[1].id is empty"),
        ("passages[1]", "passages[1].id is empty", "passages[1]: passages[1].id is empty"),
        ("passages[1].id", "id is empty", "passages[1].id: id is empty"),
        ("filter['a']", "filter['a'] is nan", "filter['a'] is nan"),
        ("", "something is wrong", "something is wrong"),
    ],
)
def test_the_text_has_field_and_message_once(field: str, message: str, text: str) -> None:
    assert str(errors.InvalidInputError(field, message)) == text
    assert str(errors.NotFoundError(message, field=field)) == text


def every_error() -> list[errors.RagserveError]:
    made: list[errors.RagserveError] = [errors.InvalidInputError("field", "message")]
    others = [cls for cls in CODE_OF if cls is not errors.InvalidInputError]
    return [*made, *(cls("message", field="field", retry_after_seconds=1.5) for cls in others)]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_can_be_copied_and_pickled(error: errors.RagserveError) -> None:
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert (str(again), again.args) == (str(error), error.args)


def test_subclasses_with_another_signature_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(OwnError(3)))
    assert (type(again), again.message, again.count) == (OwnError, "3 are too many", 3)


class OwnError(errors.NotFoundError):
    def __init__(self, count: int) -> None:
        super().__init__(f"{count} are too many")
        self.count = count
