"""Settings of one generation: what the request says, then the checkpoint, then the service; and their limits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from typing import TypeVar

from orchestrator.defaults import Defaults, fit_beams, fit_greatest_length, fit_least_lengths
from orchestrator.requests import (
    Decoding,
    GenerateAsk,
    GenerationOptions,
    GeneratorInfo,
    Mode,
)
from orchestrator.search import filters
from orchestrator.search.beam import Beam, BeamRules, EarlyStopping
from orchestrator.search.decoder import Decoder, Greedy, Limits
from orchestrator.search.sampling import Sampling, SamplingRules
from orchestrator.settings import OrchestratorSettings
from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from ragserve.printable import counted
from ragserve.search_settings import LARGEST_LENGTH_PENALTY

SEED_BITS = 63

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved:
    """Settings of one generation, complete and checked."""

    mode: Mode
    decoding: Decoding
    num_beams: int
    num_return_sequences: int
    max_length: int
    min_length: int
    min_new_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    no_repeat_ngram_size: int
    bad_words: tuple[tuple[int, ...], ...]
    repetition_penalty: float
    sampling: SamplingRules | None
    warnings: tuple[str, ...] = ()  # what the checkpoint asks for and is not allowed

    def hypotheses(self, n_docs: int) -> int:
        """How many a step has at most: in sequence mode each document is searched alone."""
        width = self.num_beams if self.sampling is None else self.num_return_sequences
        return width * (n_docs if self.mode is Mode.SEQUENCE else 1)

    def decoder(self, info: GeneratorInfo, sampling_candidates: int) -> Decoder:
        """A fresh decoder for one group of hypotheses."""
        limits = Limits(info.rules(self.mode).eos_token_id, self.max_length)
        if self.sampling is not None:
            return Sampling(self.sampling, limits, sampling_candidates)
        if self.num_beams == 1:
            return Greedy(limits)
        return Beam(BeamRules(self.num_beams, self.length_penalty, self.early_stopping, limits))

    def filter_chain(self, info: GeneratorInfo) -> filters.FilterChain:
        """The filters in Hugging Face's order."""
        rules = info.rules(self.mode)
        eos = rules.eos_token_id
        chain: list[filters.Filter] = []
        if self.repetition_penalty != 1.0:
            chain.append(filters.RepetitionPenalty(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            chain.append(filters.NoRepeatNgram(self.no_repeat_ngram_size))
        if self.bad_words:
            chain.append(filters.BadWords(self.bad_words, eos))
        if self.min_length:
            chain.append(filters.MinLength(self.min_length, eos))
        if self.min_new_tokens:
            chain.append(filters.MinNewTokens(self.min_new_tokens, eos))
        if rules.forced_bos_token_id is not None:
            chain.append(filters.ForcedBos(rules.forced_bos_token_id))
        if rules.forced_eos_token_id:
            chain.append(filters.ForcedEos(rules.forced_eos_token_id, self.max_length))
        if rules.exponential_decay_length_penalty is not None and eos:
            chain.append(filters.ExponentialDecay(*rules.exponential_decay_length_penalty, eos))
        if rules.suppress_tokens:
            chain.append(filters.Suppress(rules.suppress_tokens))
        if rules.begin_suppress_tokens:
            begin = 1 if rules.forced_bos_token_id is None else 2
            chain.append(filters.SuppressAtBegin(rules.begin_suppress_tokens, begin))
        return filters.FilterChain(rules.decoder_start_token_id, tuple(chain))


def resolve(ask: GenerateAsk, info: GeneratorInfo, settings: OrchestratorSettings, n_docs: int) -> Resolved:
    """Fill in what the request does not say. Raises InvalidInputError naming the request's field.

    What the checkpoint says adapts to the limits, with a warning.
    """
    said = ask.options
    mode = resolve_mode(said.mode, info)
    defaults = fit_beams(Defaults(info.defaults), said, mode, info, settings, n_docs)
    defaults = fit_greatest_length(defaults, said, info)
    max_length = _max_length(said, defaults.options, info, settings)
    defaults = fit_least_lengths(defaults, said, max_length)
    merged = _merge(said, defaults.options)
    min_length, min_new_tokens = _least_lengths(said, merged, mode)
    sampling = _sampling(said, mode)
    num_beams = 1 if sampling else _or(merged.num_beams, 1)
    resolved = Resolved(
        mode=mode,
        decoding=_decoding(said.decoding, said.mode, mode),
        num_beams=num_beams,
        num_return_sequences=_or(said.num_return_sequences, 1),
        max_length=max_length,
        min_length=min_length,
        min_new_tokens=min_new_tokens,
        length_penalty=_or(merged.length_penalty, 1.0),
        early_stopping=_or(merged.early_stopping, EarlyStopping.HEURISTIC),
        no_repeat_ngram_size=_or(merged.no_repeat_ngram_size, 0),
        bad_words=_or(merged.bad_words, ()),
        repetition_penalty=_or(merged.repetition_penalty, 1.0),
        sampling=sampling,
        warnings=defaults.warnings,
    )
    _check_search(resolved, said, info, settings, n_docs)
    _check_lengths(resolved)
    _check_penalties(resolved, said)
    _check_bad_words(said.bad_words or (), info, settings)
    return resolved


def resolve_mode(said: Mode | None, info: GeneratorInfo) -> Mode:
    """The mode asked for, else the one the checkpoint was trained for, else RAG-Token."""
    return said or info.trained_mode or Mode.TOKEN


def mode_warnings(mode: Mode, info: GeneratorInfo) -> tuple[str, ...]:
    """Warns of a mode that the checkpoint was not trained for."""
    if info.trained_mode is None or info.trained_mode is mode:
        return ()
    return (
        f"You asked for {mode.value} mode. This checkpoint was trained as RAG-{info.trained_mode.value.capitalize()}; "
        f"in {mode.value} mode its probabilities are not calibrated.",
    )


def pair_warnings(info: GeneratorInfo, query_encoder: str) -> tuple[str, ...]:
    """Warns of a generator that was imported with another query encoder than the retriever's; "" is not known."""
    if not info.query_encoder or not query_encoder or info.query_encoder == query_encoder:
        return ()
    return (
        f"The generator was imported with another query encoder ({info.query_encoder}) than the retriever serves "
        f"({query_encoder}): they may not belong together. Serve both from one model directory, or import the "
        "generator with the retriever's encoder.",
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _merge(said: GenerationOptions, defaults: GenerationOptions) -> GenerationOptions:
    chosen = {f.name: _or(getattr(said, f.name), getattr(defaults, f.name)) for f in fields(GenerationOptions)}
    return GenerationOptions(**chosen)


def _max_length(
    said: GenerationOptions, defaults: GenerationOptions, info: GeneratorInfo, settings: OrchestratorSettings
) -> int:
    """Tokens, decoder start token included. What the request says is checked."""
    limit = info.max_target_tokens or settings.default_max_length
    longest = f"the generator's answers have at most {limit} tokens, the start token included"
    if said.max_new_tokens is not None:
        check_range("options.max_new_tokens", said.max_new_tokens, 1, limit - 1, why=longest)
        return said.max_new_tokens + 1
    if said.max_length is not None:
        check_range("options.max_length", said.max_length, 2, limit, why=longest)
        return said.max_length
    if defaults.max_new_tokens is not None:
        return defaults.max_new_tokens + 1
    return _or(defaults.max_length, min(settings.default_max_length, limit))


def _least_lengths(said: GenerationOptions, merged: GenerationOptions, mode: Mode) -> tuple[int, int]:
    """`min_length` and `min_new_tokens`, 0 where they do not apply.

    In token mode both apply, as in `RagTokenForGeneration.generate`. In sequence mode `min_new_tokens` replaces
    `min_length`, as in the `generate` of the generator, which `RagSequenceForGeneration` calls. What the request says
    comes before what the checkpoint says.
    """
    min_length, min_new_tokens = _or(merged.min_length, 0), merged.min_new_tokens
    if mode is Mode.TOKEN or min_new_tokens is None:
        return min_length, _or(min_new_tokens, 0)
    if said.min_length is not None and said.min_new_tokens is None:
        return min_length, 0
    return 0, min_new_tokens


def _of_mode(said: Mode | None, mode: Mode) -> str:
    """Who has chosen the mode."""
    return f"this request asks for {mode.value} mode" if said else f"the checkpoint works in {mode.value} mode"


def _decoding(said: Decoding | None, asked: Mode | None, mode: Mode) -> Decoding:
    if said is not None and mode is Mode.TOKEN:
        raise InvalidInputError(
            "options.decoding",
            f"{said.value.capitalize()} decoding works only in sequence mode; {_of_mode(asked, mode)}. Leave it out.",
        )
    return said or Decoding.THOROUGH


def _sampling(asked: GenerationOptions, mode: Mode) -> SamplingRules | None:
    said = asked.sampling
    if said is None:
        return None
    if mode is Mode.SEQUENCE:
        problem = f"Sampling works only in token mode; {_of_mode(asked.mode, mode)}."
        raise InvalidInputError("options.sampling", problem)
    temperature, top_p = _or(said.temperature, 1.0), _or(said.top_p, 1.0)
    greedy = "without sampling, the most probable token is taken each time"
    check_range("options.sampling.temperature", temperature, above=0, why=greedy)
    check_range("options.sampling.top_p", top_p, above=0, most=1, why="it is a probability; 1 samples from all tokens")
    seed = secrets.randbits(SEED_BITS) if said.seed is None else said.seed
    return SamplingRules(seed, asked.num_return_sequences or 1, temperature, _or(said.top_k, 0), top_p)


def _check_search(
    resolved: Resolved, said: GenerationOptions, info: GeneratorInfo, settings: OrchestratorSettings, n_docs: int
) -> None:
    beams, answers = resolved.num_beams, resolved.num_return_sequences
    if resolved.sampling and said.num_beams not in (None, 1):
        problem = f"options.num_beams is {said.num_beams}, and sampling has no beams; leave num_beams out, or at 1"
        raise InvalidInputError("options.num_beams", problem)
    limit = f"the limit of the service (max_beams) is {settings.max_beams}"
    check_range("options.num_beams", beams, 1, settings.max_beams, why=limit)
    if resolved.sampling:
        check_range("options.num_return_sequences", answers, 1, settings.max_beams, why=limit)
    else:
        found = f"the search has {counted(beams, 'beam')} (num_beams)"
        check_range("options.num_return_sequences", answers, 1, beams, why=found)
    field = "options.num_return_sequences" if resolved.sampling else "options.num_beams"
    width, hypotheses = resolved.hypotheses(1), resolved.hypotheses(n_docs)
    if info.max_hypotheses and hypotheses > info.max_hypotheses:
        each = f" for each of {n_docs} documents" if hypotheses > width else ""
        most = counted(info.max_hypotheses, "hypothesis", "hypotheses")
        limit = f"the generator has at most {most} in a session (max_hypotheses)"
        raise InvalidInputError(field, f"{field} is {width}{each}; {limit}")
    if info.max_rows and width * n_docs > info.max_rows:
        taken = f"which with {counted(n_docs, 'document')} takes {width * n_docs} rows"
        limit = f"the generator has {info.max_rows} (max_rows). Lower {field} or n_docs"
        raise InvalidInputError(field, f"{field} is {width}, {taken}; {limit}")


def _check_lengths(resolved: Resolved) -> None:
    most = resolved.max_length
    why = f"the longest answer of this request has {most} tokens, the start token included; or raise max_new_tokens"
    check_range("options.min_length", resolved.min_length, most=most, why=why)
    check_range("options.min_new_tokens", resolved.min_new_tokens, most=most - 1, why=why)


def _check_penalties(resolved: Resolved, said: GenerationOptions) -> None:
    penalty = resolved.length_penalty
    check_range("options.length_penalty", penalty, -LARGEST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY)
    if resolved.early_stopping is EarlyStopping.NEVER and penalty < 0:
        why = "every further token would improve a hypothesis, so the search would not end early"
        if said.length_penalty is None:
            problem = f"options.early_stopping is never, and the checkpoint's length_penalty is {penalty:.7g}: {why}"
            raise InvalidInputError("options.early_stopping", problem)
        check_range("options.length_penalty", penalty, least=0, why=f"early_stopping is never, and {why}")
    check_range("options.repetition_penalty", resolved.repetition_penalty, above=0, why="1 changes nothing")


def _check_bad_words(
    bad_words: tuple[tuple[int, ...], ...], info: GeneratorInfo, settings: OrchestratorSettings
) -> None:
    if len(bad_words) > settings.max_bad_words:
        limit = f"the service allows {settings.max_bad_words} (max_bad_words)"
        raise InvalidInputError("options.bad_words", f"options.bad_words has {len(bad_words)} entries; {limit}")
    for index, words in enumerate(bad_words):
        field = f"options.bad_words[{index}]"
        if not words:
            raise InvalidInputError(field, f"{field} is empty; give at least one token id")
        why = f"the vocabulary has the ids 0 to {info.vocab_size - 1}"
        if max(words) >= info.vocab_size:
            raise InvalidInputError(field, f"{field} has the token id {max(words)}; {why}")
