"""Runs one search on a session, as the pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields

import numpy as np

from orchestrator.options import Resolved
from orchestrator.requests import Decoding, GenerationOptions, GeneratorInfo, Mode
from orchestrator.search.beam import EarlyStopping
from orchestrator.search.decoder import Decoder, Finished
from orchestrator.search.inference import Inference
from orchestrator.search.loop import Search, Widening
from orchestrator.search.room import Room
from orchestrator.search.rows import RowBuilder
from ragserve.serving.channel import MAX_MESSAGE_BYTES
from ragserve.token_rules import TokenRules

START, EOS = 0, 1


def generator_info(vocab: int, **changes: object) -> GeneratorInfo:
    """`changes` are fields of the info, or token rules of both modes by their names."""
    names = {field.name for field in fields(TokenRules)} & changes.keys()
    given = {"decoder_start_token_id": START, "eos_token_id": (EOS,), **{name: changes.pop(name) for name in names}}
    rules = TokenRules(**given)  # type: ignore[arg-type]
    settings = {
        "trained_mode": None,
        "vocab_size": vocab,
        "token_rules": rules,
        "sequence_rules": rules,
        "bos_token_id": None,
        "max_target_tokens": 64,
        "max_context_tokens": 256,
        "max_documents": 64,
        "max_hypotheses": 512,
        "defaults": GenerationOptions(),
        "default_n_docs": None,
    }
    return GeneratorInfo(**{**settings, **changes})  # type: ignore[arg-type]


def resolved(**changes: object) -> Resolved:
    settings = {
        "mode": Mode.TOKEN,
        "decoding": Decoding.THOROUGH,
        "num_beams": 1,
        "num_return_sequences": 1,
        "max_length": 10,
        "min_length": 0,
        "min_new_tokens": 0,
        "length_penalty": 1.0,
        "early_stopping": EarlyStopping.HEURISTIC,
        "no_repeat_ngram_size": 0,
        "bad_words": (),
        "repetition_penalty": 1.0,
        "sampling": None,
    }
    return Resolved(**{**settings, **changes})  # type: ignore[arg-type]


@dataclass
class Run:
    groups: Sequence[Decoder]
    widenings: list[tuple[str, int]] = field(default_factory=list)
    settled: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def found(self) -> list[Finished]:
        return self.groups[0].results()


async def search(
    session: Inference,
    options: Resolved,
    info: GeneratorInfo,
    log_prior: np.ndarray,
    candidates: int = 4,
    factor: int = 4,
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> Run:
    """`candidates` is the least M; the vocabulary size makes the search dense."""
    token_mode = options.mode is Mode.TOKEN
    groups = [options.decoder(info, candidates) for _ in range(1 if token_mode else len(log_prior))]
    run = Run(groups)
    builder = RowBuilder(
        log_prior if token_mode else np.zeros(1),
        options.filter_chain(info),
        info.vocab_size,
        on_logits=not token_mode and options.num_beams == 1,
    )
    room = Room(max_bytes, builder.log_prior.size)
    widening = Widening(
        candidates, factor, info.vocab_size, room, lambda reason, rows: run.widenings.append((reason, rows))
    )
    async for _ in Search(session, groups, builder, widening, nullcontext).run():
        run.settled.append(groups[0].settled())
    return run
