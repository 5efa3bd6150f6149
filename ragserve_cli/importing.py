"""`ragserve import-checkpoint`: from a Hugging Face checkpoint to a model directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from ragserve_cli import console


class Precision(StrEnum):
    """Precisions of the query encoder besides float32. An enumeration: typer takes no list of literals."""

    INT8 = "int8"
    FLOAT16 = "float16"


DirectoryOption = Path | None
QuestionEncoderOption = Annotated[
    DirectoryOption,
    typer.Option(metavar="DIR", help="Question encoder: DPR, BERT and its relatives, or sentence-transformers."),
]
PrecisionsOption = Annotated[
    list[Precision] | None,
    typer.Option(help="Write the query encoder in this precision too: int8 for CPUs, float16 for GPUs."),
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin (tensors only), if you trust its source.")
]
KindOption = Annotated[
    Literal["rag-token", "rag-sequence", "pair"] | None, typer.Option(help="Unset: what the checkpoint says.")
]
PoolingOption = Annotated[
    Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] | None,
    typer.Option(help="Pooling of an encoder that does not say; unset: cls."),
]
QueryPromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Put before each question, as E5's 'query: '; unset: what config_sentence_transformers.json says.",
    ),
]
PassagePromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Put before each passage, as E5's 'passage: '; unset: what config_sentence_transformers.json says.",
    ),
]


def import_command(  # noqa: PLR0913
    src: Annotated[
        Path, typer.Argument(help="A RAG composite, or one half of a pair: an encoder or a BART or T5 generator.")
    ],
    out: Annotated[Path, typer.Argument(help="Model directory to make.")],
    *,
    question_encoder: QuestionEncoderOption = None,
    generator: Annotated[DirectoryOption, typer.Option(metavar="DIR", help="Generator: BART or T5.")] = None,
    passage_encoder: Annotated[
        DirectoryOption,
        typer.Option(metavar="DIR", help="Encoder of passages, such as DPR's; unset: the question encoder."),
    ] = None,
    kind: KindOption = None,
    score_scale: Annotated[
        float, typer.Option(help="Factor on inner products before the prior's softmax; 1 for DPR.")
    ] = 1.0,
    pooling: PoolingOption = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1; unset: as it says.")
    ] = None,
    query_prompt: QueryPromptOption = None,
    passage_prompt: PassagePromptOption = None,
    encoder_precision: PrecisionsOption = None,
    allow_pickle: PickleOption = False,
) -> None:
    """Turn a Hugging Face RAG checkpoint, or an encoder and a generator, into what the services load."""
    from checkpoint_import import ImportOptions, import_checkpoint  # noqa: PLC0415  (slow to import)

    options = ImportOptions(
        kind=kind,
        question_encoder=question_encoder,
        generator=generator,
        passage_encoder=passage_encoder,
        allow_pickle=allow_pickle,
        score_scale=score_scale,
        pooling=pooling,
        normalize=normalize,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        encoder_precisions=tuple(precision.value for precision in encoder_precision or ()),
    )
    with console.progress_bar("reading") as bar:
        made = import_checkpoint(
            src, out, options, progress=lambda step, done, total: bar.update(done, total, f"exporting: {step}")
        )
    for warning in made.warnings:
        console.warn(warning)
    console.note(f"{out}: {made.manifest.kind}, {len(made.manifest.files)} files; serve it with 'ragserve up --model'")


def quantize_command(
    model: Annotated[Path, typer.Argument(help="Model directory, written by 'ragserve import-checkpoint'.")],
    *,
    precision: Annotated[Precision, typer.Option(help="int8 for CPUs, float16 for GPUs.")],
) -> None:
    """Write a model's query encoder in a smaller precision too; the retriever's encoder_precision chooses it."""
    from checkpoint_import.precision import add_precision  # noqa: PLC0415  (slow to import)

    path = add_precision(model, precision.value)
    console.note(f"{path}; serve it with the retriever's encoder_precision {precision.value}")
