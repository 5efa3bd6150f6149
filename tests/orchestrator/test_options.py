"""Where settings come from, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.options import mode_warnings, resolve, resolve_mode
from orchestrator.requests import (
    ContextOptions,
    Decoding,
    Document,
    GenerateAsk,
    GenerationOptions,
    Mode,
    QuestionForm,
    SamplingOptions,
    Sources,
)
from orchestrator.search import filters
from orchestrator.search.beam import Beam, EarlyStopping
from orchestrator.search.decoder import Greedy
from orchestrator.search.sampling import Sampling
from orchestrator.settings import OrchestratorSettings
from orchestrator.validation import DocCount, check_context, check_sources, fit_hypotheses, resolve_n_docs
from ragserve.errors import InvalidInputError
from ragserve.filters import SearchOptions
from tests.orchestrator.driving import generator_info

SETTINGS = OrchestratorSettings()
INFO = generator_info(100)
ONE = Document("", "x", 0.0)
ONE_AND_A_TENTH = float(np.float32(1.1))  # as it comes from a request
# rag-token-nq and rag-sequence-nq carry these.
PUBLISHED = generator_info(
    100,
    trained_mode=Mode.SEQUENCE,
    default_n_docs=5,
    defaults=GenerationOptions(num_beams=4, max_length=50, min_length=1, bad_words=((0, 0),)),
)


def ask(**options: object) -> GenerateAsk:
    return GenerateAsk(Sources("who?"), GenerationOptions(**options))  # type: ignore[arg-type]


def test_without_any_word_it_is_greedy_token_mode() -> None:
    found = resolve(ask(), INFO, SETTINGS, 5)
    assert (found.mode, found.num_beams, found.max_length) == (Mode.TOKEN, 1, SETTINGS.default_max_length)
    assert isinstance(found.decoder(INFO, 128), Greedy)
    assert found.filter_chain(INFO).filters == ()


def test_a_published_checkpoint_is_honoured() -> None:
    found = resolve(ask(), PUBLISHED, SETTINGS, 5)
    assert (found.mode, found.num_beams, found.max_length, found.min_length) == (Mode.SEQUENCE, 4, 50, 1)
    assert isinstance(found.decoder(PUBLISHED, 128), Beam)
    assert found.filter_chain(PUBLISHED).filters == (filters.BadWords(((0, 0),), (1,)), filters.MinLength(1, (1,)))
    assert resolve_n_docs(Sources("who?"), PUBLISHED, SETTINGS) == DocCount(5, chosen=False)


def test_the_request_wins() -> None:
    found = resolve(ask(mode=Mode.TOKEN, num_beams=2, max_length=9, bad_words=()), PUBLISHED, SETTINGS, 5)
    assert (found.mode, found.num_beams, found.max_length, found.bad_words) == (Mode.TOKEN, 2, 9, ())


def test_max_new_tokens_wins_over_max_length() -> None:
    assert resolve(ask(max_length=30, max_new_tokens=4), PUBLISHED, SETTINGS, 5).max_length == 5


def test_max_new_tokens_of_the_checkpoint() -> None:
    info = replace(PUBLISHED, defaults=replace(PUBLISHED.defaults, max_new_tokens=6, min_new_tokens=2))
    found = resolve(ask(), info, SETTINGS, 5)
    assert (found.max_length, found.min_new_tokens) == (7, 2)
    assert resolve(ask(max_length=9), info, SETTINGS, 5).max_length == 9
    assert resolve(ask(), replace(info, max_target_tokens=5), SETTINGS, 5).max_length == 5


@pytest.mark.parametrize(
    ("mode", "options", "lengths"),
    [
        (Mode.SEQUENCE, {"min_length": 12, "min_new_tokens": 2}, (0, 2)),
        (Mode.TOKEN, {"min_length": 12, "min_new_tokens": 2}, (12, 2)),
        (Mode.SEQUENCE, {"min_length": 12}, (12, 0)),
        (Mode.SEQUENCE, {}, (0, 3)),
        (Mode.TOKEN, {}, (1, 3)),
    ],
    ids=str,
)
def test_min_new_tokens_replaces_min_length_in_sequence_mode(mode, options, lengths) -> None:
    """What the request says comes first: its min_length is not replaced by the checkpoint's min_new_tokens."""
    info = replace(PUBLISHED, defaults=replace(PUBLISHED.defaults, min_new_tokens=3))
    found = resolve(ask(mode=mode, **options), info, SETTINGS, 5)
    assert (found.min_length, found.min_new_tokens) == lengths


def test_defaults_are_cut_to_the_model() -> None:
    assert resolve(ask(), replace(PUBLISHED, max_target_tokens=20), SETTINGS, 5).max_length == 20


def test_sampling_leaves_the_beams_of_the_checkpoint() -> None:
    info = replace(PUBLISHED, trained_mode=Mode.TOKEN)
    found = resolve(ask(sampling=SamplingOptions(), num_return_sequences=3), info, SETTINGS, 5)
    assert found.num_beams == 1
    assert isinstance(found.decoder(info, 128), Sampling)
    other = resolve(ask(sampling=SamplingOptions()), info, SETTINGS, 5)
    assert found.sampling is not None
    assert other.sampling is not None
    assert found.sampling.seed != other.sampling.seed


def test_forced_tokens_of_the_checkpoint() -> None:
    info = generator_info(100, forced_bos_token_id=0, forced_eos_token_id=(1,))
    chain = resolve(ask(max_length=7), info, SETTINGS, 5).filter_chain(info)
    assert chain.filters == (filters.ForcedBos(0), filters.ForcedEos((1,), 7))


def test_mode_warnings() -> None:
    assert mode_warnings(Mode.SEQUENCE, PUBLISHED) == ()
    assert mode_warnings(Mode.SEQUENCE, INFO) == ()
    (warning,) = mode_warnings(Mode.TOKEN, PUBLISHED)
    assert "trained as RAG-Sequence" in warning
    assert resolve_mode(None, PUBLISHED) is Mode.SEQUENCE


@pytest.mark.parametrize(
    ("field", "options", "said"),
    [
        (
            "num_beams",
            {"num_beams": 0},
            "is 0; it must be between 1 and 32: the limit of the service (max_beams) is 32",
        ),
        ("num_beams", {"num_beams": 100}, "is 100; it must be between 1 and 32: "),
        ("num_beams", {"num_beams": 2, "sampling": SamplingOptions()}, "is 2, and sampling has no beams"),
        ("num_return_sequences", {"num_return_sequences": 0}, "is 0; it must be 1: the search has 1 beam (num_beams)"),
        (
            "num_return_sequences",
            {"num_beams": 2, "num_return_sequences": 3},
            "is 3; it must be between 1 and 2: the search has 2 beams (num_beams)",
        ),
        (
            "num_return_sequences",
            {"num_return_sequences": 33, "sampling": SamplingOptions()},
            "is 33; it must be between 1 and 32: the limit of the service (max_beams) is 32",
        ),
        ("max_length", {"max_length": 1}, "is 1; it must be between 2 and 64: the generator's answers have at most 64"),
        ("max_length", {"max_length": 65}, "is 65; it must be between 2 and 64"),
        ("max_new_tokens", {"max_new_tokens": 0}, "is 0; it must be between 1 and 63"),
        ("max_new_tokens", {"max_new_tokens": 64}, "is 64; it must be between 1 and 63"),
        ("min_length", {"min_length": 12, "max_length": 11}, "is 12; it must be at most 11: the longest answer"),
        ("min_new_tokens", {"min_new_tokens": 11, "max_length": 11}, "is 11; it must be at most 10: the longest"),
        (
            "length_penalty",
            {"length_penalty": -1.5, "early_stopping": EarlyStopping.NEVER},
            "is -1.5; it must be at least 0: early_stopping is never, and every further token",
        ),
        ("length_penalty", {"length_penalty": float("nan")}, "is nan; it must be between -10 and 10"),
        ("length_penalty", {"length_penalty": 1000.0}, "is 1000; it must be between -10 and 10"),
        ("length_penalty", {"length_penalty": -10.5}, "is -10.5; it must be between -10 and 10"),
        ("repetition_penalty", {"repetition_penalty": 0.0}, "is 0; it must be above 0"),
        ("repetition_penalty", {"repetition_penalty": float("inf")}, "is inf; it must be above 0"),
        ("sampling.temperature", {"sampling": SamplingOptions(temperature=0.0)}, "is 0; it must be above 0: without"),
        ("sampling.temperature", {"sampling": SamplingOptions(temperature=float("nan"))}, "is nan; it must be above 0"),
        ("sampling.top_p", {"sampling": SamplingOptions(top_p=0.0)}, "is 0; it must be above 0 and at most 1"),
        ("sampling.top_p", {"sampling": SamplingOptions(top_p=ONE_AND_A_TENTH)}, "is 1.1; it must be above 0"),
        ("sampling.top_p", {"sampling": SamplingOptions(top_p=1.00000001)}, "is 1.00000001; it must be above 0"),
        ("bad_words[1]", {"bad_words": ((3,), ())}, "is empty"),
        ("bad_words[0]", {"bad_words": ((3, 100),)}, "has the token id 100; the vocabulary has the ids 0 to 99"),
        ("bad_words", {"bad_words": ((3,),) * 1001}, "has 1001 entries; the service allows 1000 (max_bad_words)"),
    ],
    ids=str,
)
def test_what_is_refused_is_named_with_its_value(field, options, said) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve(ask(**options), INFO, SETTINGS, 5)
    assert caught.value.field == f"options.{field}"
    assert caught.value.message.startswith(f"options.{field} {said}")


@pytest.mark.parametrize(
    ("field", "options", "said"),
    [
        (
            "options.sampling",
            {"mode": Mode.SEQUENCE, "sampling": SamplingOptions()},
            "Sampling works only in token mode; this request asks for sequence mode.",
        ),
        (
            "options.sampling",
            {"sampling": SamplingOptions()},
            "Sampling works only in token mode; the checkpoint works in sequence mode.",
        ),
        (
            "options.decoding",
            {"mode": Mode.TOKEN, "decoding": Decoding.FAST},
            "Fast decoding works only in sequence mode; this request asks for token mode. Leave it out.",
        ),
    ],
)
def test_what_another_mode_has_is_refused(field, options, said) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve(ask(**options), PUBLISHED, SETTINGS, 5)
    assert (caught.value.field, caught.value.message) == (field, said)


@pytest.mark.parametrize(
    ("defaults", "options", "found", "warnings"),
    [
        ({"num_beams": 64}, {}, {"num_beams": 32}, ["64 beams; this service allows 32 (max_beams)."]),
        ({"num_beams": 64}, {"num_beams": 3}, {"num_beams": 3}, []),
        ({"num_beams": 64}, {"sampling": SamplingOptions()}, {"num_beams": 1}, []),
        ({"num_beams": 32}, {"mode": Mode.SEQUENCE}, {"num_beams": 20}, ["20 for each of 5 documents."]),
        ({"max_length": 900}, {}, {"max_length": 64}, ["up to 900 tokens", "the generator allows 64"]),
        ({"max_new_tokens": 64}, {}, {"max_length": 64}, ["up to 65 tokens", "(max_new_tokens)"]),
        ({"max_new_tokens": 63}, {}, {"max_length": 64}, []),
        ({"max_length": 900}, {"max_length": 9}, {"max_length": 9}, []),
        ({"min_length": 4}, {"max_length": 3}, {"min_length": 3}, ["at least 4 tokens (min_length)", "has 3."]),
        ({"min_new_tokens": 4}, {"max_length": 3}, {"min_new_tokens": 2}, ["at least 4 tokens (min_new_tokens)"]),
        ({"min_length": 90, "max_length": 9}, {}, {"min_length": 9}, ["at least 90 tokens"]),
        ({"bad_words": ((3,),) * 1001}, {}, {}, []),
    ],
    ids=str,
)
def test_what_the_checkpoint_asks_for_adapts_to_the_limits(defaults, options, found, warnings) -> None:
    info = replace(INFO, defaults=GenerationOptions(**defaults), max_hypotheses=100)
    resolved = resolve(ask(**options), info, SETTINGS, 5)
    assert {name: getattr(resolved, name) for name in found} == found
    assert len(resolved.warnings) == bool(warnings)
    for part in warnings:
        assert part in resolved.warnings[0]


@pytest.mark.parametrize(
    ("options", "n_docs", "beams", "documents"),
    [
        ({}, None, 4, 3),  # the beams of the checkpoint stay, and the service's number of documents adapts
        ({}, 5, 2, 5),
        ({}, 12, 1, 12),
        ({"mode": Mode.SEQUENCE}, 5, 2, 5),
        ({"num_beams": 6}, None, 6, 2),
        ({"num_beams": 2}, 6, 2, 6),
        ({"sampling": SamplingOptions(), "num_return_sequences": 5}, None, 1, 2),
    ],
    ids=str,
)
def test_defaults_fit_the_rows_of_the_generator(options, n_docs, beams, documents) -> None:
    info = replace(INFO, defaults=GenerationOptions(num_beams=4), max_rows=12)
    docs = DocCount(5, chosen=False) if n_docs is None else DocCount(n_docs, chosen=True)
    found = resolve(ask(**options), info, SETTINGS, docs.count if docs.chosen else 1)
    docs = fit_hypotheses(docs, found, info)
    assert (found.num_beams, docs.count) == (beams, documents)
    warnings = [*found.warnings, *docs.warnings]
    assert len(warnings) == ((beams, documents) != (2, 6))
    assert all("at most 12 rows (max_rows)" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("options", "n_docs", "said"),
    [
        ({"num_beams": 3}, 5, "options.num_beams is 3, which with 5 documents takes 15 rows; the generator has 12"),
        ({"num_beams": 13}, 1, "options.num_beams is 13, which with 1 document takes 13 rows; the generator has 12"),
        ({}, 13, "options.num_beams is 1, which with 13 documents takes 13 rows; the generator has 12 (max_rows)."),
    ],
    ids=str,
)
def test_more_rows_than_the_generator_has(options, n_docs, said) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve(ask(**options), replace(INFO, max_rows=12), SETTINGS, n_docs)
    assert caught.value.message.startswith(said)
    assert caught.value.message.endswith("Lower options.num_beams or n_docs")


def test_an_early_stopping_that_does_not_go_with_the_checkpoint() -> None:
    info = replace(INFO, defaults=GenerationOptions(length_penalty=-1.0))
    with pytest.raises(InvalidInputError, match="checkpoint's length_penalty") as caught:
        resolve(ask(early_stopping=EarlyStopping.NEVER), info, SETTINGS, 5)
    assert caught.value.field == "options.early_stopping"


def test_more_hypotheses_than_the_generator_has() -> None:
    info = replace(INFO, max_hypotheses=16)
    resolve(ask(num_beams=4, mode=Mode.SEQUENCE), info, SETTINGS, 4)
    with pytest.raises(
        InvalidInputError, match=r"is 4 for each of 5 documents; the generator has at most 16 hypotheses"
    ):
        resolve(ask(num_beams=4, mode=Mode.SEQUENCE), info, SETTINGS, 5)


@pytest.mark.parametrize(
    ("field", "said", "sources"),
    [
        ("question", "is empty", Sources("")),
        ("question", "is empty", Sources(" \n")),
        ("question", "has 100000 characters; the service takes at most 10000", Sources("x" * 100_000)),
        ("n_docs", "is 0; it must be between 1 and 100: leave n_docs out", Sources("who?", n_docs=0)),
        ("n_docs", "is 9999; it must be between 1 and 100: the limit of", Sources("who?", n_docs=9999)),
        ("n_docs", "is 2, and documents has 1; leave n_docs out", Sources("who?", n_docs=2, documents=(ONE,))),
        ("documents", "has 101 entries; the limit of the service", Sources("who?", documents=(ONE,) * 101)),
        ("documents[1].text", "has 600000 bytes", Sources("who?", documents=(ONE, Document("", "x" * 600_000, 0)))),
        ("documents[0].title", "holds the control", Sources("who?", documents=(Document("a\0", "x", 0),))),
        (
            "documents[1].log_prior",
            "is nan; it must be a finite number",
            Sources("who?", documents=(ONE, Document("", "y", float("nan")))),
        ),
        ("knowledge_version", "is 3, but documents", Sources("who?", knowledge_version=3, documents=(ONE,))),
        (
            "search",
            "options are given, but documents",
            Sources("who?", search=SearchOptions(nprobe=3), documents=(ONE,)),
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_refused_sources(field, said, sources) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_sources(sources, SETTINGS)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field} {said}")


def test_refused_contexts() -> None:
    given = Sources("who?", documents=(Document("", "x", 0.0),))
    with pytest.raises(InvalidInputError, match="question_form is decoded") as caught:
        check_context(ContextOptions(QuestionForm.DECODED), given, INFO, "options.")
    assert caught.value.field == "options.question_form"
    for tokens in (7, 257):
        said = f"max_context_tokens is {tokens}; it must be between 8 and 256: question and passage share it"
        with pytest.raises(InvalidInputError, match=said) as caught:
            check_context(ContextOptions(max_tokens=tokens), given, INFO, "")
        assert caught.value.field == "max_context_tokens"


def test_more_documents_than_the_generator_takes() -> None:
    with pytest.raises(InvalidInputError, match="n_docs is 65; the generator takes at most 64 documents") as caught:
        resolve_n_docs(Sources("who?", n_docs=65), INFO, SETTINGS)
    assert caught.value.field == "n_docs"


def test_a_default_number_of_documents_fits_the_limits() -> None:
    many = replace(INFO, default_n_docs=200)
    found = resolve_n_docs(Sources("who?"), many, SETTINGS)
    assert found.count == 64
    assert found.warnings == (
        "A request has at most 100 documents (max_n_docs); this request uses 100 instead of 200.",
        "The generator takes at most 64 documents; this request uses 64 instead of 100.",
    )
    few = replace(INFO, max_hypotheses=16)
    sequence = resolve(ask(num_beams=4, mode=Mode.SEQUENCE), few, SETTINGS, 1)
    fitting = fit_hypotheses(DocCount(5, chosen=False), sequence, few)
    assert fitting.count == 4
    assert fitting.warnings[0].endswith("; this request uses 4 instead of 5.")
    chosen = DocCount(5, chosen=True)
    assert fit_hypotheses(chosen, sequence, few) is chosen
    token = resolve(ask(num_beams=4), few, SETTINGS, 1)
    assert fit_hypotheses(DocCount(5, chosen=False), token, few) == DocCount(5, chosen=False)
