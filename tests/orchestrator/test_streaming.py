"""What is streamed is never taken back."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.marginal import log_normalize
from orchestrator.requests import TokensFinal
from orchestrator.search.sampling import SamplingRules
from orchestrator.streaming import TextStream
from ragserve.clean_up import clean_up
from tests.orchestrator.driving import generator_info, resolved, search
from tests.orchestrator.toy import PrunedSession, Toy


def test_text_comes_in_whole_characters() -> None:
    stream = TextStream()
    assert stream.advance((5,), "caf�") == TokensFinal((5,), "caf")
    assert stream.advance((5, 6), "café") == TokensFinal((6,), "é")
    assert not stream.has_new((5, 6))
    assert stream.advance((5, 6, 2), "café", last=True) == TokensFinal((2,), "")


def test_text_that_changed_waits_for_the_end() -> None:
    stream = TextStream()
    stream.advance((1,), "a b")
    assert stream.advance((1, 2), "ab").text == ""
    assert stream.advance((1, 2, 3), "a b c", last=True) == TokensFinal((3,), " c")


def test_text_that_really_ends_in_a_broken_character() -> None:
    assert TextStream().advance((1,), "x�", last=True).text == "x�"


@settings(max_examples=500, deadline=None)
@given(st.text(" '.,?n tmsvreax", max_size=14))
@example("the king ' s , don n't , x n ' t ' . y")
def test_text_that_is_cleaned_up_comes_whole(text: str) -> None:
    stream = TextStream()
    parts = [stream.advance(tuple(range(end)), clean_up(text[:end])).text for end in range(1, len(text) + 1)]
    last = stream.advance(tuple(range(len(text) + 1)), clean_up(text), last=True)
    assert "".join([*parts, last.text]) == clean_up(text)


@settings(max_examples=60, deadline=None)
@given(
    toy=st.builds(Toy, st.sampled_from(["zipf", "disagree", "peaked"]), st.just(50), st.integers(0, 9999)),
    how=st.sampled_from([{}, {"num_beams": 2}, {"num_beams": 4}, {"sampling": SamplingRules(seed=1, samples=1)}]),
)
def test_settled_tokens_only_grow_and_begin_the_answer(toy, how) -> None:
    prior = log_normalize(np.zeros(3))
    run = asyncio.run(search(PrunedSession(toy, prior), resolved(**how), generator_info(50), prior))
    answer = run.found[0].hypothesis.tokens
    for before, after in zip(run.settled, [*run.settled[1:], answer], strict=True):
        assert after[: len(before)] == before


def test_of_several_samples_nothing_is_settled() -> None:
    prior = log_normalize(np.zeros(3))
    options = resolved(sampling=SamplingRules(seed=1, samples=2))
    run = asyncio.run(search(PrunedSession(Toy("zipf", 50), prior), options, generator_info(50), prior))
    assert set(run.settled) == {()}
