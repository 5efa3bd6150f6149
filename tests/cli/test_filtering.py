"""Filters as the command line says them."""

from __future__ import annotations

import pytest

from ragserve.errors import InvalidInputError
from ragserve.filters import Condition
from ragserve_cli.filtering import parse_filters


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("lang=en", Condition("lang", equals="en")),
        ("lang==en", Condition("lang", equals="en")),
        ("kind = a , b", Condition("kind", any_of=("a", "b"))),
        ("kind!=app", Condition("kind", none_of=("app",))),
        ("kind != a,b", Condition("kind", none_of=("a", "b"))),
        ("day>2020-01-01", Condition("day", above="2020-01-01")),
        ("day<=2021-01-01", Condition("day", at_most="2021-01-01")),
        ('day>="Smith, John"', Condition("day", at_least="Smith, John")),
        ("day<12:30 and more", Condition("day", below="12:30 and more")),
        ("empty=", Condition("empty", equals="")),
        ('kind!=""', Condition("kind", none_of=("",))),
        ('eq="a=b>c"', Condition("eq", equals="a=b>c")),
        ("path=~/a!", Condition("path", equals="~/a!")),
        ('quote=5" disk', Condition("quote", equals='5" disk')),
        ('title="Paris, Texas", b', Condition("title", any_of=("Paris, Texas", "b"))),
        (r'title="say \"yes\", \u00e9"', Condition("title", equals='say "yes", é')),
        ('sign="=x"', Condition("sign", equals="=x")),
        ('"a=b!"!=c', Condition("a=b!", none_of=("c",))),
        ("Schlüssel eins.zwei/drei-vier=c", Condition("Schlüssel eins.zwei/drei-vier", equals="c")),
        ("c++=1\n2", Condition("c++", equals="1\n2")),
    ],
)
def test_each_form(text: str, condition: Condition) -> None:
    assert parse_filters([text]) == (condition,)


@pytest.mark.parametrize(
    ("text", "separate"),
    [
        ("year>=1950 year<1970", "--filter 'year>=1950' --filter 'year<1970'"),
        ("year>=1950 and year<1970", "--filter 'year>=1950' --filter 'year<1970'"),
        ("year >= 1950, year < 1970", "--filter 'year>=1950' --filter 'year<1970'"),
        ("year>1950<1960", "--filter 'year>1950' --filter 'year<1960'"),
        ("year>=1950 AND <=1960", "--filter 'year>=1950' --filter 'year<=1960'"),
        ("kind=a,b year>=3", "--filter kind=a,b --filter 'year>=3'"),
        ("lang!=en&&year>3 kind=a", "--filter 'lang!=en' --filter 'year>3' --filter kind=a"),
    ],
)
def test_two_conditions_in_one_option_are_refused(text: str, separate: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_filters([text])
    said = f"Cannot read the filter {text!r}. --filter takes one condition. Write: {separate}. If "
    assert caught.value.message.startswith(said)


@pytest.mark.parametrize("text", ["year>1950,1960", "year<=0,5"])
def test_a_bound_with_a_comma_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"takes one value\. Write decimals with a point, as 0\.5\.") as caught:
        parse_filters([text])
    quoted = text.replace("=", '="').replace("1950", '"1950') + '"'
    assert caught.value.message.endswith(
        f"If the comma belongs to the value, put the value in double quotes: --filter {quoted!r}."
    )
    assert len(parse_filters([quoted]) or ()) == 1


def test_conditions_on_one_key_go_together() -> None:
    texts = ["year>=1990", "lang=en", "year<2000", "year!=1995", "year!=1996,1997", "lang!=de"]
    assert parse_filters(texts) == (
        Condition("year", at_least="1990", below="2000"),
        Condition("lang", equals="en"),
        Condition("year", none_of=("1995", "1996", "1997")),
        Condition("lang", none_of=("de",)),
    )
    assert parse_filters(None) is parse_filters([]) is None


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["foo"], "Cannot read the filter 'foo'. Write KEY=VALUE, KEY=A,B or KEY>=VALUE."),
        (["kind:app"], "Cannot read the filter 'kind:app'"),
        ([""], "Cannot read the filter ''"),
        (["=en"], "Name a key"),
        ([">=3"], "Name a key"),
        (['""=3'], "Name a key"),
        (["a=<3"], "Write <= instead of =<."),
        (["a=>3"], "Write >= instead of =>."),
        (["a<>3"], "Write != instead of <>."),
        (["!a=3"], "Write != instead of !."),
        (["a! =3"], "Write != instead of !."),
        (["a>>3"], ">> is not one of = != >= > <= <."),
        (["a~=3"], "A key that ends in ~"),
        (["a:=3"], "A key that ends in :"),
        (["a>="], "Write a value after >=."),
        (["a=x,"], "An alternative is empty."),
        (['a="x'], "double quotes"),
        (['a="x" y'], "double quotes"),
        (["a=\udcff"], "not UTF-8"),
        ([r'a="\ud800"'], "not UTF-8"),
        (["a=1", "a=2"], "The filter 'a=2' contradicts another one on 'a'."),
        (["a>1", "a>2"], "The filter 'a>2' gives 'a' a second bound with >."),
    ],
)
def test_what_cannot_be_read_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_filters(texts)
    assert caught.value.field == "--filter"
    assert said in caught.value.message
    assert repr(texts[-1]) in caught.value.message
