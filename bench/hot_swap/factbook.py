"""Who held which office, read from an edition of the CIA's World Factbook in JSON."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = {"chief of state": "head of state", "head of government": "head of government"}
TITLES = ("President", "Prime Minister", "Chancellor", "Premier", "King", "Emperor", "Amir")
# `President of the Swiss Confederation Guy PARMELIN (since 1 January 2026)`; what follows is about other people.
HOLDER = re.compile(
    r"(?:(?:Interim|Acting|Transition(?:al)?|Caretaker) )?"
    rf"(?P<title>{'|'.join(TITLES)})(?: of the (?:Republic|Swiss Confederation))? "
    r"(?P<name>(?!of |and )[^(;,]+?(?:, Jr\.)?) \(since (?P<since>[^),;]*\b(?:19|20)\d\d)[),;]"
)
RANK = re.compile(r"^(?:(?:Sr|Lt|Maj|Brig|Gen|Col|Capt|Dr)\. ?|(?:Sir|Crown Prince|Ratu) )+")
NICKNAME = re.compile(r'"[^"]*" ?')
NUMERAL = re.compile(r"[IVX]+\.?")
ARTICLE = re.compile(r"Republic|Kingdom|States|Islands|Emirates|Philippines|Netherlands|Maldives|Comoros|Seychelles")
# Short forms that the Factbook itself has wrong.
COUNTRY_NAMES = {"The Dominican": "Dominican Republic"}


@dataclass(frozen=True)
class Holder:
    """A person in an office: `surnames` are the parts that the Factbook prints in capitals, in lower case here."""

    name: str
    surnames: frozenset[str]
    since: str  # as the Factbook writes it: `12 December 2019`

    @property
    def since_year(self) -> int:
        """The year of `since`."""
        return int(self.since[-4:])


@dataclass(frozen=True)
class Office:
    """An office of a country, with who held it in one edition."""

    key: str  # the country's GEC code and the role: `ag-head-of-state`
    title: str  # `prime minister`
    country: str  # within a sentence: `the Netherlands`
    roles: tuple[str, ...]  # `head of state`, `head of government`
    holder: Holder


def read_edition(directory: Path) -> dict[str, Office]:
    """The offices of sovereign countries by key; entries not of the form `Title NAME (since DATE)` are left out.

    directory: a folder for each region, in it a JSON file for each country, named by its GEC code.
    """
    files = sorted(directory.glob("*/*.json"), key=lambda path: path.stem)
    offices = (office for path in files for office in _offices(path.stem, json.loads(path.read_text("utf-8"))))
    return {office.key: office for office in offices}


def parse_holder(text: str) -> tuple[str, Holder] | None:
    """Title in lower case and holder of an entry of the executive branch, or None where it has another form."""
    found = HOLDER.match(plain(text))
    if found is None:
        return None
    printed = NICKNAME.sub("", RANK.sub("", found["name"]))
    surnames = {re.sub(r"\W", "", word).lower() for word in printed.split() if _is_surname(word)}
    first, *others = printed.split()
    name = " ".join([_cased(first), *(word if NUMERAL.fullmatch(word) else _cased(word) for word in others)])
    return found["title"].lower(), Holder(name, frozenset(surnames), found["since"])


def plain(text: str) -> str:
    """Without mark-up, accents (as the Factbook writes most names) and repeated white space."""
    decomposed = unicodedata.normalize("NFD", html.unescape(re.sub(r"<[^>]+>", " ", text)).replace("\u2019", "'"))
    return " ".join("".join(letter for letter in decomposed if not unicodedata.combining(letter)).split())


def country_name(names: dict[str, Any]) -> str:
    """How a country is called within a sentence: its short form, or the long one where there is no plain short one."""
    short, long = (plain(names.get(f"conventional {form} form", {}).get("text", "")) for form in ("short", "long"))
    short = COUNTRY_NAMES.get(short, short)
    name = long if short in ("", "none") or short.isupper() or "(" in short else short
    name = re.sub(r"^The ", "the ", name)
    return f"the {name}" if ARTICLE.search(name) and not name.startswith("the ") else name


def _offices(code: str, country: dict[str, Any]) -> Iterator[Office]:
    government = country.get("Government", {})
    if "Dependency status" in government or "Country name" not in government:
        return
    name, roles = country_name(government["Country name"]), dict[tuple[str, Holder], list[str]]()
    for entry, role in ROLES.items():
        found = parse_holder(government.get("Executive branch", {}).get(entry, {}).get("text", ""))
        if found is not None:
            roles.setdefault(found, []).append(role)
    for (title, holder), held in roles.items():
        yield Office(f"{code}-{held[0].replace(' ', '-')}", title, name, tuple(held), holder)


def _is_surname(word: str) -> bool:
    letters = re.sub(r"\W|^(?:al|el)-", "", word)
    return letters.isupper() and len(letters) > 1 and not NUMERAL.fullmatch(letters)


def _cased(word: str) -> str:
    """`SASSOU-Nguesso` as `Sassou-Nguesso`, `O'NEILL` as `O'Neill`, `TUILA'EPA` as `Tuila'epa`."""
    return re.sub(r"[A-Z]{2,}(?:'[A-Z]+)*", lambda found: found.group().capitalize(), word.removeprefix("'"))
