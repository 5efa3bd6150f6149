"""Makes shards on Ray Data: actors that hold the encoder, read their part of the staged Lance dataset and write Lance.

Only shard numbers go through Ray; passages and vectors go from Lance to Lance in the actor. On a cluster of several
machines the directory of the knowledge base and the model must therefore be on storage that all of them share.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ragserve.errors import FailedPreconditionError, InvalidInputError, RagserveError
from ragserve.printable import counted
from retriever_svc.build.shards import ShardPlan, write_shard
from retriever_svc.device import CUDA_PROVIDER, onnx_providers

_QUIET: Final = {"log_to_driver": False, "logging_level": logging.ERROR}


class ShardWriter:
    """The actor: one encoder, one shard after the other."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan, self._embedder = plan, plan.embedder()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the one shard whose number this is; its passages, or what went wrong."""
        try:
            passages = write_shard(self._plan, int(batch["shard"][0]), self._embedder, lambda _done: None)
        except RagserveError as error:
            return _row(0, error.message, error.field, isinstance(error, InvalidInputError))
        return _row(passages)


def _row(passages: int, error: str = "", field: str = "", invalid: bool = False) -> dict[str, Any]:
    row = {"passages": passages, "error": error, "field": field, "invalid": invalid}
    return {name: np.array([value]) for name, value in row.items()}


def write_shards_with_ray(plan: ShardPlan, shards: Sequence[int], workers: int) -> Iterator[int]:
    """Write shards with `workers` actors (0: as many as the cluster has room for); yields the passages of each.

    Uses the Ray that this process is connected to or RAY_ADDRESS names; else starts one on this machine.

    Raises:
        FailedPreconditionError: Ray is not installed, has too little room or failed, or a shard could not be written.
        InvalidInputError: a vector is too large for the precision.
    """
    ray = _import_ray()
    with _connected(ray, workers):
        gpu = _use_gpu(ray, plan)
        room = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        size = min(workers or room, len(shards))
        if not 0 < size <= room:
            kind = "GPU" if gpu else "CPU"
            problem = f"Ray has {counted(room, kind)} for {counted(size, 'worker')}, and each needs one: lower workers"
            raise FailedPreconditionError(problem, field="workers")
        data = importlib.import_module("ray.data")
        numbers = data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        written = numbers.map_batches(
            ShardWriter,
            fn_constructor_args=(_for_actor(plan),),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=size),
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
        )
        yield from _results(ray, written)


def _results(ray: Any, written: Any) -> Iterator[int]:
    """The passages of each shard as it is finished; an error as its actor raised it."""
    try:
        for row in written.iter_rows():
            message, field = str(row["error"]), str(row["field"])
            if message:
                raise (
                    InvalidInputError(field, message)
                    if row["invalid"]
                    else FailedPreconditionError(message, field=field)
                )
            yield int(row["passages"])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FailedPreconditionError(f"Ray could not embed the passages: {reason}", field="engine") from error


def _for_actor(plan: ShardPlan) -> ShardPlan:
    """An actor is given one core, so it computes with one thread unless told otherwise; files by their full names."""
    vectors = plan.staged.vectors
    staged = replace(
        plan.staged,
        directory=plan.staged.directory.absolute(),
        vectors=vectors and replace(vectors, path=vectors.path.absolute()),
    )
    return replace(
        plan,
        journal=replace(plan.journal, directory=plan.journal.directory.absolute()),
        staged=staged,
        model=plan.model.absolute(),
        options=replace(plan.options, threads=plan.options.threads or 1),
    )


def _import_ray() -> Any:
    """Ray, set up before it reads its environment: one that starts here answers only who has this process's token."""
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
        # Ray listens on every interface, and runs what it is sent.
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise FailedPreconditionError(
            f"engine 'ray' needs Ray Data, which is not installed: pip install 'ragserve[ray]' ({error})",
            field="engine",
        ) from error


@contextmanager
def _connected(ray: Any, workers: int) -> Iterator[None]:
    """Ray for as long as it is needed; one that was there already stays."""
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell how it works, between our own lines
    context = importlib.import_module("ray.data").DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    """Connect to RAY_ADDRESS, or start a Ray on this machine."""
    with warnings.catch_warnings():
        # Ray starts its processes by fork and exec: nothing of Lance runs between the two.
        warnings.filterwarnings("ignore", message="lance is not fork-safe", category=UserWarning)
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**_QUIET)
            return
        _start_here(ray, workers)


def _start_here(ray: Any, workers: int) -> None:
    """Start a Ray on this machine; once more if one of its processes does not come up in Ray's time."""
    for is_last in (False, True):
        try:
            ray.init(num_cpus=workers or None, include_dashboard=False, **_QUIET)
        except (TypeError, ValueError):
            raise
        except Exception as error:
            _kill_half_started(error)
            if is_last:
                raise FailedPreconditionError(
                    f"Ray did not start on this machine: {error}. Its logs are in the newest folder of Ray's temporary "
                    "directory (/tmp/ray). Start one with `ray start --head` and set RAY_ADDRESS, "
                    "or leave --engine ray out",
                    field="engine",
                ) from error
        else:
            return


def _kill_half_started(error: Exception) -> None:
    """Ray leaves running what it had started when its start fails; only the failed call knows the node it is of."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node: Any = frame.f_locals.get("self")
        if hasattr(node, "kill_all_processes"):
            node.kill_all_processes(check_alive=False, wait=True)


def _use_gpu(ray: Any, plan: ShardPlan) -> bool:
    """Whether actors get a GPU each: when texts are encoded and the device is CUDA, or may be and is there."""
    if plan.staged.vectors or plan.options.device == "cpu":
        return False
    if plan.options.device == "cuda":
        return True
    return CUDA_PROVIDER in onnx_providers("auto") and ray.cluster_resources().get("GPU", 0) >= 1
