"""The paper's operating points against transformers: `python -m bench.operating_points`.

Lewis et al. (arXiv 2005.11401, appendix A) report open-domain QA greedily: RAG-token with 15 documents, and
RAG-sequence with 50, thorough, so that each document has one beam. Contexts have 160 tokens, about 100 words; 20 new
tokens. transformers is unpadded and in float32, with one repeat: it encodes all documents again for every candidate.
All sides take turns, and float32 must give the same tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from bench import options, report
from bench.generator import PEERS, Measured, ours, theirs, timed, timed_ours
from bench.peers import HuggingFace
from bench.report import CaseResult
from bench.system import Ragserve
from bench.workload import SHAPES, Workload, model_directory

POINTS = {"token": Workload(n_docs=15), "sequence": Workload(n_docs=50)}
SCORED_ROWS = 250  # candidates times documents of a pass of transformers: 1 GB of logits
WARM_UP = Workload(new_tokens=2)
NOTE = (
    f"transformers scores RAG-sequence's candidates in passes of at most {SCORED_ROWS} of them times the documents. "
    "All in one, as it comes, needs memory for 2,500."
)


def measure(systems: Sequence[Ragserve], peer: HuggingFace, mode: str, repeats: int) -> list[CaseResult]:
    """One point: ours `repeats` times in turns, transformers once."""
    case = Measured(mode, 1, POINTS[mode])
    for system in systems:
        timed(Measured(mode, 1, WARM_UP), system.precision, ours(system, Measured(mode, 1, WARM_UP)), keep=False)
    for _ in range(repeats):
        for system in systems:
            timed_ours(system, case)
    timed(case, PEERS[0], theirs(peer, case, padded=False))
    return [replace(result, case=f"{case.workload.n_docs} documents, {result.case}") for result in case.results()]


def run(chosen: argparse.Namespace) -> list[CaseResult]:
    """All points on the same services."""
    model = model_directory(SHAPES[chosen.shape])
    results: list[CaseResult] = []
    with ExitStack() as stack:
        placed: dict[str, Any] = {"threads": chosen.threads}
        systems = [Ragserve(model, WARM_UP, options.logs(), **placed, precision=name) for name in chosen.precisions]
        for system in systems:
            stack.callback(system.close)
        for system in systems:
            system.wait_healthy()
        for mode in chosen.points:
            peer = HuggingFace(model, POINTS[mode], **placed, scored_rows=SCORED_ROWS)
            results += measure(systems, peer, mode, chosen.repeats)
    return results


def about(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    workload = POINTS["token"]
    tokens = {"document_tokens": workload.document_tokens, "new_tokens": workload.new_tokens}
    what = {"part": "operating_points", "shape": chosen.shape, "repeats": chosen.repeats}
    return {**what, **tokens, "scored_rows": SCORED_ROWS, **report.environment(chosen.threads)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("operating_points", __doc__)
    parser.add_argument("--points", nargs="+", choices=list(POINTS), default=list(POINTS), help="default: both")
    parser.add_argument("--repeats", type=int, default=1, help="of ours (default 1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append; 1 where float32 gives other tokens than transformers."""
    chosen = arguments(argv)
    environment = about(chosen)
    results = run(chosen)
    text = f"{report.table(results)}\n{NOTE}\n"
    print(f"\n{text}")
    if not chosen.no_save:
        print(f"appended to {report.append_run(text, [asdict(result) for result in results], environment)}")
    differing = [one.case for one in results if one.case.endswith("float32") and not one.same_tokens]
    for case in differing:
        print(f"OTHER TOKENS than transformers: {case}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
