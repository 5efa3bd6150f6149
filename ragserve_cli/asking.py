"""`ragserve ask`, `score`, `retrieve` and `info`: questions to running services."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ragserve.errors import InvalidInputError
from ragserve.options import Sampling
from ragserve_cli import choices, console
from ragserve_cli.choices import DEFAULT_TARGET, DEFAULT_TIMEOUT
from ragserve_cli.filtering import parse_filters
from ragserve_cli.reach import reached

EARLY_STOPPING: dict[choices.EarlyStopping, bool | str] = {"heuristic": False, "first": True, "never": "never"}
SAME_NAME = (  # as options of `ask` and as keywords of the client
    *("mode", "docs", "knowledge_version", "search_kind", "decoding", "beams", "max_length", "min_length"),
    *("max_new_tokens", "min_new_tokens", "length_penalty", "repetition_penalty"),
    *("question_form", "truncation", "max_context_tokens"),
)
SAMPLING = ("temperature", "top_k", "top_p", "seed")


def ask(  # noqa: PLR0913
    question: choices.Question,
    *,
    target: choices.TargetOption = DEFAULT_TARGET,
    timeout: choices.TimeoutOption = DEFAULT_TIMEOUT,
    mode: choices.ModeOption = None,
    docs: choices.DocsOption = None,
    knowledge_version: choices.VersionOption = None,
    filters: choices.FilterOption = None,
    search_kind: choices.SearchKindOption = None,
    decoding: choices.DecodingOption = None,
    beams: choices.BeamsOption = None,
    returns: choices.ReturnsOption = None,
    max_length: choices.MaxLengthOption = None,
    min_length: choices.MinLengthOption = None,
    max_new_tokens: choices.MaxNewOption = None,
    min_new_tokens: choices.MinNewOption = None,
    length_penalty: choices.LengthPenaltyOption = None,
    early_stopping: choices.EarlyStoppingOption = None,
    no_repeat_ngram: choices.NgramOption = None,
    repetition_penalty: choices.RepetitionOption = None,
    bad_words: choices.BadWordsOption = None,
    sample: choices.SampleOption = False,
    temperature: choices.TemperatureOption = None,
    top_k: choices.TopKOption = None,
    top_p: choices.TopPOption = None,
    seed: choices.SeedOption = None,
    question_form: choices.QuestionFormOption = None,
    truncation: choices.TruncationOption = None,
    max_context_tokens: choices.ContextTokensOption = None,
    stream: choices.StreamOption = False,
    as_json: choices.JsonOption = False,
    explain: choices.ExplainOption = None,
    verbose: choices.VerboseOption = False,
) -> None:
    """Ask a question and show the answer with the passages it comes from."""
    asked = locals()
    from ragserve_cli.answering import Output, answer  # noqa: PLC0415  (slow to import)

    output = Output(stream=stream, as_json=as_json, explain=explain, verbose=verbose)
    answer(question, target, timeout, keywords(asked), output)


def score(  # noqa: PLR0913
    question: choices.Question,
    answer: Annotated[str, typer.Argument(help="The answer whose probability is wanted.")],
    *,
    target: choices.TargetOption = DEFAULT_TARGET,
    timeout: choices.TimeoutOption = DEFAULT_TIMEOUT,
    mode: choices.ModeOption = None,
    docs: choices.DocsOption = None,
    knowledge_version: choices.VersionOption = None,
    filters: choices.FilterOption = None,
    search_kind: choices.SearchKindOption = None,
    as_json: choices.JsonOption = False,
    verbose: choices.VerboseOption = False,
) -> None:
    """Say how probable an answer is: log p(answer | question), marginalized over the passages."""
    from ragserve.client import Client  # noqa: PLC0415  (slow to import)
    from ragserve_cli import answers  # noqa: PLC0415

    with reached(target, timeout=timeout), Client(target, timeout_seconds=timeout) as client:
        found = client.score(
            question,
            answer,
            mode=mode,
            docs=docs,
            knowledge_version=knowledge_version,
            filter=parse_filters(filters),
            search_kind=search_kind,
        )
    if as_json:
        console.print_json(found.to_dict())
    else:
        answers.show_score(found, verbose=verbose)


def retrieve(  # noqa: PLR0913
    question: choices.Question,
    *,
    target: choices.TargetOption = DEFAULT_TARGET,
    timeout: choices.TimeoutOption = DEFAULT_TIMEOUT,
    docs: choices.DocsOption = None,
    knowledge_version: choices.VersionOption = None,
    filters: choices.FilterOption = None,
    search_kind: choices.SearchKindOption = None,
    as_json: choices.JsonOption = False,
    verbose: choices.VerboseOption = False,
) -> None:
    """Show the passages that a question retrieves, with their priors."""
    from ragserve.client import Client  # noqa: PLC0415  (slow to import)
    from ragserve_cli import answers  # noqa: PLC0415

    with reached(target, timeout=timeout), Client(target, timeout_seconds=timeout) as client:
        found = client.retrieve(
            question,
            docs=docs,
            knowledge_version=knowledge_version,
            filter=parse_filters(filters),
            search_kind=search_kind,
        )
    if as_json:
        console.print_json(found.to_dict())
    else:
        answers.show_retrieval(found, verbose=verbose)


def info(
    *,
    retriever: Annotated[str, typer.Option(metavar="HOST:PORT", help="The retriever.")] = "127.0.0.1:50061",
    generator: Annotated[str, typer.Option(metavar="HOST:PORT", help="The generator.")] = "127.0.0.1:50062",
    timeout: choices.TimeoutOption = 5.0,
    as_json: choices.JsonOption = False,
) -> None:
    """Show what the retriever and the generator have loaded."""
    from ragserve_cli.services_info import read_info  # noqa: PLC0415  (slow to import)

    with reached(retriever, generator, options="--retriever or --generator", timeout=timeout):
        found = read_info(retriever, generator, timeout)
    if as_json:
        console.print_json(found)
        return
    for service, values in found.items():
        console.out.print(f"[bold]{service}[/]")
        for key, value in values.items():
            console.out.print(f"  {key:<24} {value}", markup=False, soft_wrap=True)


def keywords(asked: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the client's `generate` from the options of `ask`; what was not given is None."""
    found = {name: asked[name] for name in SAME_NAME}
    found["filter"] = parse_filters(asked["filters"])
    found["num_return_sequences"] = asked["returns"]
    found["no_repeat_ngram_size"] = asked["no_repeat_ngram"]
    early = asked["early_stopping"]
    found["early_stopping"] = EARLY_STOPPING[early] if early else None
    found["bad_words"] = [_token_ids(ids) for ids in asked["bad_words"]] if asked["bad_words"] else None
    sampling = {name: asked[name] for name in SAMPLING}
    if asked["sample"] or any(value is not None for value in sampling.values()):
        found["sampling"] = Sampling(**sampling)
    return found


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError("--bad-words", f"{text!r} is not a list of token ids such as 12,7") from error
