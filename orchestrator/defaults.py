"""Lowers a checkpoint's search settings to the limits of the services, with a warning in the reply.

A request is not refused for settings that its caller did not choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.requests import GenerationOptions, GeneratorInfo, Mode
from orchestrator.settings import OrchestratorSettings
from ragserve.printable import counted


@dataclass(frozen=True)
class Defaults:
    """The checkpoint's settings, and warnings about those that were lowered."""

    options: GenerationOptions
    warnings: tuple[str, ...] = ()

    def adapt(self, asked: str, allowed: str, **values: object) -> Defaults:
        """A copy with other values, and a warning that says what the checkpoint asks for and what is allowed."""
        warning = f"The checkpoint asks for {asked}; {allowed}."
        return Defaults(replace(self.options, **values), (*self.warnings, warning))  # type: ignore[arg-type]


def fit_beams(
    defaults: Defaults,
    said: GenerationOptions,
    mode: Mode,
    info: GeneratorInfo,
    settings: OrchestratorSettings,
    n_docs: int,
) -> Defaults:
    """Lowers num_beams to the limits of both services. In sequence mode each document has beams of its own.

    `n_docs` is 1 where nobody chose the number of documents, which then adapts to the beams.
    """
    beams = defaults.options.num_beams
    if beams is None or said.num_beams is not None or said.sampling is not None:
        return defaults
    if beams > settings.max_beams:
        allowed = f"this service allows {settings.max_beams} (max_beams)"
        defaults = defaults.adapt(f"{beams} beams", allowed, num_beams=settings.max_beams)
        beams = settings.max_beams
    groups = n_docs if mode is Mode.SEQUENCE else 1
    hypotheses = f"{counted(info.max_hypotheses, 'hypothesis', 'hypotheses')} in a session"
    rows = f"{counted(info.max_rows, 'row')} (max_rows)"
    for limit, documents, what in ((info.max_hypotheses, groups, hypotheses), (info.max_rows, n_docs, rows)):
        most = max(1, limit // documents)
        if limit and beams > most:
            each = f", {most} for each of {documents} documents" if documents > 1 else ""
            defaults = defaults.adapt(f"{beams} beams", f"the generator has at most {what}{each}", num_beams=most)
            beams = most
    return defaults


def fit_greatest_length(defaults: Defaults, said: GenerationOptions, info: GeneratorInfo) -> Defaults:
    """Lowers max_length and max_new_tokens to the generator's limit."""
    given, limit = defaults.options, info.max_target_tokens
    if said.max_length is not None or said.max_new_tokens is not None or not limit:
        return defaults
    name = "max_length" if given.max_new_tokens is None else "max_new_tokens"
    length = given.max_length if given.max_new_tokens is None else given.max_new_tokens + 1
    if length is None or length <= limit:
        return defaults
    asked = f"answers of up to {length} tokens with the start token ({name})"
    allowed = f"the generator allows {limit} (max_target_tokens)"
    return defaults.adapt(asked, allowed, max_length=limit, max_new_tokens=None)


def fit_least_lengths(defaults: Defaults, said: GenerationOptions, max_length: int) -> Defaults:
    """Lowers min_length and min_new_tokens to the greatest length. transformers then generates up to that length."""
    given = defaults.options
    for name, asked, length, most in (
        ("min_length", said.min_length, given.min_length, max_length),
        ("min_new_tokens", said.min_new_tokens, given.min_new_tokens, max_length - 1),
    ):
        if asked is None and length is not None and length > most:
            allowed = f"the longest answer of this request has {most}"
            defaults = defaults.adapt(f"answers of at least {length} tokens ({name})", allowed, **{name: most})
    return defaults
