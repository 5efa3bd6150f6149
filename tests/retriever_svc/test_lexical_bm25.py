from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever_svc.lexical import Bm25Index, Bm25Parameters, TextIndex, indexed_text
from retriever_svc.lexical import bm25 as bm25_module
from retriever_svc.lexical import postings as postings_module
from retriever_svc.lexical.analysis import STOP_WORDS, stem, terms_of, words_of
from tests.tiny import tiny_passages

WORDS = ["queen", "Queens", "the", "of", "lake", "lakes", "King's", "moon", "café", "cafe", "1990", "x"]


def plain_terms(text: str) -> list[str]:
    """The analysis in other words: decompose the whole text, then find words with a regular expression."""
    decomposed = unicodedata.normalize("NFKD", text.replace("'", ""))
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return [stem(word) for word in re.findall(r"[^\W_]+", bare.casefold()) if word not in STOP_WORDS]


def plain_scores(query: str, rows: Mapping[int, str], k1: float = 0.9, b: float = 0.4) -> dict[int, float]:
    """The definition of BM25, row by row, for rows that hold a term of the query."""
    counts = {row: Counter(plain_terms(text)) for row, text in rows.items()}
    lengths = {row: sum(found.values()) for row, found in counts.items()}
    average = sum(lengths.values()) / max(len(rows), 1) or 1.0
    scores: dict[int, float] = {}
    for term in plain_terms(query):
        df = sum(term in found for found in counts.values())
        for row, found in counts.items():
            if tf := found[term]:
                idf = math.log(1 + (len(rows) - df + 0.5) / (df + 0.5))
                saturation = tf / (tf + k1 * (1 - b + b * lengths[row] / average))
                scores[row] = scores.get(row, 0.0) + idf * saturation
    return scores


def build(rows: Mapping[int, str], parameters: Bm25Parameters | None = None) -> Bm25Index:
    block = (np.array(list(rows), dtype=np.int64), list(rows.values()))
    return Bm25Index.build([block], parameters) if parameters else Bm25Index.build([block])


def found(index: TextIndex, query: str, k: int = 1000) -> list[tuple[int, float]]:
    ids, scores = index.search(query, k)
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def rows() -> dict[int, str]:
    """Three hundred passages under ids that are no positions."""
    return {7 * n + 3: indexed_text(*passage) for n, passage in enumerate(_texts(300))}


def _texts(n: int) -> list[tuple[str, str]]:
    return [(passage.title, passage.text) for passage in tiny_passages(n, seed=5)]


QUERIES = ["great river city", "who wrote the book of the queen?", "moon moon moon sun", "nothing-known", "the of"]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (1.2, 0.0)])
def test_scores_are_those_of_the_definition(rows: dict[int, str], query: str, k1: float, b: float) -> None:
    index = build(rows, Bm25Parameters(k1, b))
    expected = plain_scores(query, rows, k1, b)
    ranked = found(index, query)
    assert dict(ranked) == pytest.approx(expected, abs=1e-4)
    assert [row for row, _ in ranked] == sorted(dict(ranked), key=lambda row: (-dict(ranked)[row], row))
    assert index.scores(query, np.array(sorted(rows))) == pytest.approx(
        [expected.get(row, 0.0) for row in sorted(rows)], abs=1e-4
    )


def test_k_cuts_the_same_list_short_and_ties_go_by_id() -> None:
    index = build({9: "red apple", 4: "red apple", 7: "red apple", 1: "green apple", 2: "blue sky"})
    whole = found(index, "red apple")
    assert [row for row, _ in whole] == [4, 7, 9, 1]
    for k in range(1, 5):
        assert found(index, "red apple", k) == whole[:k]


def test_an_index_of_nothing_finds_nothing() -> None:
    index = build({})
    assert (index.size, found(index, "queen")) == (0, [])
    assert index.scores("queen", np.array([3])).tolist() == [0.0]
    assert found(index.updated(np.array([1]), np.array([5]), ["queen"]), "queen") == found(build({5: "queen"}), "queen")


def test_what_holds_no_term_is_not_found() -> None:
    index = build({1: "the of and", 2: "", 3: "queen"})
    assert [row for row, _ in found(index, "the queen")] == [3]
    assert index.size == 3  # all the same, it counts


def test_only_allowed_rows_are_found_with_unchanged_scores(
    rows: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25_module, "FIRST_CANDIDATES", 2)
    index = build(rows)
    everything = found(index, "great river city")
    for divisor in (2, 5, 50, 10_000):
        ids, scores = index.search("great river city", 4, lambda row_ids, divisor=divisor: row_ids % divisor == 0)
        expected = [(row, score) for row, score in everything if row % divisor == 0][:4]
        assert list(zip(ids.tolist(), scores.tolist(), strict=True)) == expected


def test_blocks_and_order_make_no_difference(rows: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings_module, "BLOCK_ROWS", 16)
    shuffled = list(rows.items())
    random.Random(1).shuffle(shuffled)
    blocks = [shuffled[:1], shuffled[1:100], shuffled[100:]]
    index = Bm25Index.build((np.array([row for row, _ in block]), [text for _, text in block]) for block in blocks)
    for query in QUERIES:
        assert found(index, query) == found(build(rows), query)


TEXT = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
IDS = st.integers(0, 12)
UPDATE = st.tuples(st.sets(IDS, max_size=4), st.dictionaries(IDS, TEXT, max_size=4))


@pytest.fixture(scope="module", autouse=True)
def few_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25_module, "MAX_SEGMENTS", 3)
        yield


@given(st.dictionaries(IDS, TEXT, max_size=8), st.lists(UPDATE, max_size=5), TEXT)
@settings(max_examples=100, deadline=None)
def test_after_updates_everything_is_as_in_a_fresh_index(
    start: dict[int, str], updates: list[tuple[set[int], dict[int, str]]], query: str
) -> None:
    index, live = build(start), dict(start)
    for removed, added in updates:
        before = found(index, query)
        successor = index.updated(np.array(sorted(removed), np.int64), np.array(list(added)), list(added.values()))
        assert found(index, query) == before  # the one that was updated stays as it was
        index = successor
        live = {**{row: text for row, text in live.items() if row not in removed}, **added}
    fresh, everyone = build(live), np.arange(14)
    for same in (index, index.compacted()):
        assert (same.size, same.average_length) == (len(live), fresh.average_length)
        assert found(same, query) == found(fresh, query)
        assert same.scores(query, everyone).tolist() == fresh.scores(query, everyone).tolist()
    assert dict(found(fresh, query)) == pytest.approx(plain_scores(query, live), abs=1e-4)
    assert (index.compacted().dead_rows, index.compacted().updated_rows) == (0, 0)


def test_updates_hold_bounded_memory(rows: dict[int, str]) -> None:
    index = build(rows)
    text = "an entirely new passage of words"
    for _ in range(100):
        index = index.updated(np.array([3]), np.array([1000]), [text])
    assert (index.size, index.updated_rows, index.dead_rows) == (300, 1, 1)
    assert index.size_bytes < build(rows).size_bytes + 2000


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Shakespeare's plays", ["shakespeare", "play"]),
        ("CAFÉ Café cafe\u0301 cafés", ["cafe"] * 4),
        ("don’t re-enter U.S.", ["dont", "re", "enter", "u", "s"]),
        ("ﬁnance ²x Ⅻ", ["finance", "2x", "xii"]),
        ("東京, Αθήνα! 12,5%", ["東京", "αθηνα", "12", "5"]),
        ("The Who and the The", ["who"]),
        ("cities buses glass bus ladies' shoes ties", ["city", "buse", "glass", "bus", "lady", "shoes", "ty"]),
        ("a_b\tc\nd", ["b", "c", "d"]),
        ("", []),
        ("日本の首都は東京です。", ["日本", "の", "首都", "は", "東京", "です"]),
        ("中国的首都是北京。", ["中国", "的", "首都", "是", "北京"]),
        ("ประเทศไทยมีน้ำตาล ๒๕๖๗", ["ประเทศไทย", "มี", "น้ำตาล", "2567"]),
        ("น\u0e49\u0e4d\u0e32ตาล", ["น้ำตาล"]),  # its last vowel in two pieces
        ("ພາສາລາວ ភាសាខ្មែរ မြန်မာစာ", ["ພາສາ", "ລາວ", "ភាសាខ្មែរ", "မြန်မာ", "စာ"]),
        ("コンピューター ｺﾝﾋﾟｭｰﾀ コンヒ\u309aュータ", ["コンピュータ"] * 3),
        ("カギ カキ", ["カギ", "カキ"]),
        ("東京都にiPhone15を、２０２４年", ["東京", "都", "に", "iphone15", "を", "2024", "年"]),
        ("株式会社の政治家", ["株式会社", "株式", "式会", "会社", "の", "政治家", "政治", "治家"]),
        ("⽇本 豈 𠮷野", ["日本", "豈", "𠮷", "野"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),
        ("தமிழ் மொழி, 한국어", [unicodedata.normalize("NFKD", word) for word in ("தமிழ்", "மொழி", "한국어")]),
        ("שָׁלוֹם مُحَمَّد", ["שלום", "محمد"]),
        ("İstanbul ISPARTA ısparta", ["istanbul", "isparta", "isparta"]),
        ("ΟΔΥΣΣΕΥΣ Ὀδυσσεύς", ["οδυσσευσ"] * 2),
        ("Straße STRASSE STRAẞE", ["strasse"] * 3),
        ("Ｔｏｋｙｏ co\u00adoperate ❤\ufe0f", ["tokyo", "cooperate"]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert terms_of(words_of(text)) == terms


@given(st.text(st.sampled_from("abçÉéß'’ ,.-_1²ﬁs\u0301ЖΑΣ\n"), max_size=20))
def test_terms_are_those_of_another_reading(text: str) -> None:
    assert terms_of(words_of(text)) == plain_terms(text.replace("’", "'"))
