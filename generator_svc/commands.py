"""What goes into the engine and what comes out: frozen dataclasses, no protobuf, no torch.

Shapes by name: n_hypotheses, n_docs (1 in sequence mode: the hypothesis' own document), n_candidates (M).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ragserve.serving.metrics import StageTiming

Mode = Literal["token", "sequence"]
Truncation = Literal["passage", "right"]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A retrieved passage with log p(z|x)."""

    title: str
    text: str
    log_prior: float = 0.0


@dataclass(frozen=True)
class StepControl:
    """Tokens the next step may not choose, and tokens it must show."""

    banned: tuple[int, ...] = ()
    requested: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prefix:
    """A hypothesis to start from; `document` is meant in sequence mode only."""

    token_ids: tuple[int, ...] = ()
    document: int = 0
    control: StepControl = StepControl()


@dataclass(frozen=True)
class OpenCommand:
    """Start a session; `max_context_tokens` 0 means the checkpoint's, the other two at 0 that they are not known."""

    question: str
    documents: tuple[Document, ...]
    mode: Mode
    candidates: int
    max_context_tokens: int = 0
    truncation: Truncation = "passage"
    prefixes: tuple[Prefix, ...] = ()
    control: StepControl = StepControl()
    encode_only: bool = False
    max_hypotheses: int = 0
    max_new_tokens: int = 0
    independent_hypotheses: bool = False
    skip_unknown_tokens: bool = False


@dataclass(frozen=True)
class NextHypothesis:
    """One hypothesis of the next step: its parent in the previous step and the token that extends it."""

    parent: int
    token: int
    control: StepControl = StepControl()


@dataclass(frozen=True)
class AdvanceCommand:
    """Extend hypotheses by one token each, and guess at most `max_drafts` tokens after the only one (token mode)."""

    hypotheses: tuple[NextHypothesis, ...]
    candidates: int
    max_drafts: int = 0


@dataclass(frozen=True)
class WidenCommand:
    """Ask for more candidates of the present step."""

    hypotheses: tuple[int, ...]
    candidates: int


@dataclass(frozen=True)
class ScoreCommand:
    """Targets to score: token ids, or text to tokenize as a target."""

    targets: tuple[tuple[int, ...] | str, ...]


@dataclass(frozen=True)
class RenderCommand:
    """Token sequences to turn into text."""

    sequences: tuple[tuple[int, ...], ...]


Command = OpenCommand | AdvanceCommand | WidenCommand | ScoreCommand | RenderCommand


@dataclass(frozen=True)
class StepOutput:
    """Candidates of one step, by falling marginal, ties by rising id; id -1 and -inf where fewer are allowed."""

    token_ids: Ids  # [n_hypotheses, n_candidates]
    log_probs: Floats  # [n_hypotheses, n_docs, n_candidates]
    requested: tuple[Floats, ...]  # for each hypothesis [n_docs, number of its requested tokens]
    allowed_log_mass: Floats  # [n_hypotheses]
    log_normalizers: Floats  # [n_hypotheses, n_docs]: logit less log-probability
    drafted: tuple[int, ...] = ()  # hypothesis i + 1 extends hypothesis i by drafted[i]


@dataclass(frozen=True)
class OpenOutput:
    """Answer to `OpenCommand`."""

    context_tokens: tuple[int, ...]
    step: StepOutput | None
    truncated_tokens: tuple[int, ...]
    document_tokens: tuple[int, ...]
    question_characters: int
    question_unknown_characters: int
    unknown_tokens: tuple[str, ...]  # the first left out of each document, "" where none was; empty: none was at all


@dataclass(frozen=True)
class TargetScore:
    """Log-probability of each token of a target under each document."""

    token_ids: tuple[int, ...]
    log_probs: Floats  # [n_docs, n_tokens]


@dataclass(frozen=True)
class RenderedSequence:
    """The text of a sequence without special tokens, and what each token adds to it."""

    text: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Reply(Generic[T]):
    """An output with the stages of the work that made it."""

    output: T
    timings: tuple[StageTiming, ...] = ()
