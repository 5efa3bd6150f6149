"""What errors say, and that they survive being sent to another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from ragserve import errors
from ragserve.boundary import ending_of
from ragserve.keywords import RETRIEVER, in_keywords
from ragserve.serving.status import CODE_OF


@pytest.mark.parametrize(
    ("field", "message", "text"),
    [
        ("n_docs", "it is 0", "n_docs: it is 0"),
        ("n_docs", "n_docs is 0; it must be at least 1", "n_docs is 0; it must be at least 1"),
        ("k", "the book has no k of this size", "the book has no k of this size"),
        ("k", "the kind is unknown", "k: the kind is unknown"),
        ("model", "cannot read /a/model/x", "model: cannot read /a/model/x"),
        ("options.num_beams", "num_beams is 0", "num_beams is 0"),
        ("options.num_beams", "beams is 0", "beams is 0"),
        ("n_docs", "docs is '3'", "docs is '3'"),
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
    assert ending_of(errors.NotFoundError(message, field=field)).text == text


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


@pytest.mark.parametrize(
    ("field", "message", "said"),
    [
        ("n_docs", "n_docs is 0; leave n_docs out", "docs is 0; leave docs out"),
        ("options.num_beams", "options.num_beams is 40", "beams is 40"),
        ("options.num_return_sequences", "it is above num_beams", "num_return_sequences: it is above beams"),
        ("search.kind", "set search.kind to dense.", "set search_kind to dense."),
        ("search.filter[0].range", "search.filter[0].range has both.", "filter[0].range has both."),
        ("search.filter[0].any_of", "search.filter[0].any_of (key 'a') has 0 values", "filter['a'] has 0 values"),
        ("search.filter[1].range", "search.filter[1].range (key 'a') has both", "filter['a'] has both"),
        (
            "search.filter[1].range.above",
            "search.filter[1].range (key 'a') has above '3' and below '2'",
            "filter['a'] has above '3' and below '2'",
        ),
        ("options.sampling.top_p", "options.sampling.top_p is 2", "sampling.top_p is 2"),
        ("documents[0].text", "is too long", "documents[0].text: is too long"),
        ("", "cannot read /a/n_docs/num_beams.json", "cannot read /a/n_docs/num_beams.json"),
        ("server.max_message_bytes", "is 3", "server.max_message_bytes: is 3"),
    ],
)
def test_errors_of_the_service_name_keywords(field: str, message: str, said: str) -> None:
    error = in_keywords(errors.InvalidInputError(field, message), "ragserve.v1.RagService")
    assert str(error) == said
    assert error.field == field
    assert (error.sent or error.message) == message
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_errors_of_the_retriever_name_keywords() -> None:
    for field, said in (
        ("options.kind", "search_kind is bad"),
        ("passages[3].passage.text", "passages[3].text is bad"),
        ("passages[3].passage.metadata_json", "passages[3].metadata is bad"),
    ):
        assert str(in_keywords(errors.InvalidInputError(field, f"{field} is bad"), RETRIEVER)) == said
