"""PURE: whose turn it is. One rule for the policy, which starts stages, and for the forecast, which plays the plan through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from state.contract import Outcome
from state.pipeline import Resource, StageConfig
from state.snapshot import BackingOff, StageState


def next_in_line(
    stages: Iterable[StageConfig],
    taken: dict[Resource, str],
    ready: Callable[[StageConfig], bool],
    admitted: Callable[[StageConfig], bool] = lambda _stage: True,
) -> Iterator[StageConfig]:
    """In listed order, every stage that is ready and whose resource is free, or kept by its own wait; each takes its resource.

    `admitted` is asked last, of a stage that would start now; one that is turned away leaves its resource to the next.
    """
    for stage in stages:
        if taken.get(stage.resource, stage.name) == stage.name and ready(stage) and admitted(stage):
            taken[stage.resource] = stage.name
            yield stage


def cleared(stage: StageConfig, succeeded: Callable[[str], bool], settled: Callable[[str], bool]) -> bool:
    """Whether nothing that the stage `needs` or comes `after` is open."""
    return all(succeeded(need) for need in stage.needs) and all(settled(other) for other in stage.after)


def keeps_resource(stage: StageState) -> bool:
    """A short wait keeps the resource, lest a 26-hour stage slips in; a wait for the world does not."""
    return isinstance(stage.status, BackingOff) and stage.status.outcome not in (Outcome.TRANSIENT, Outcome.DISK_FULL)
