"""PURE: the memory ladder. Each rung keeps the effective batch, so that the result stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from state.contract import BatchPlan


def next_rung(plan: BatchPlan, settings: dict[str, Any], fits: Mapping[str, int] | None = None) -> BatchPlan | None:
    """The rung below `plan` for a stage with these settings and memory fits; None below the last.

    A training stage (one with an effective batch) halves its micro-batch down to 1, and with it its evaluation batch; then it
    recomputes activations (gradient checkpointing), then pages its optimizer. Any other halves its batch down to 1.
    """
    effective = settings.get("effective_batch")
    if effective is None and "epochs" not in settings:
        return _halve_evaluation(plan, settings)
    planned = plan.micro_batch or settings.get("micro_batch") or effective or 32
    micro_batch = min([planned, *(fits or {}).values()])
    if micro_batch > 1:
        return replace(plan, micro_batch=micro_batch // 2, eval_batch=micro_batch // 2)
    if not (plan.gradient_checkpointing or settings.get("gradient_checkpointing")):
        return replace(plan, gradient_checkpointing=True)
    if not (plan.paged_optimizer or settings.get("paged_optimizer")):
        return replace(plan, paged_optimizer=True)
    return None


def _halve_evaluation(plan: BatchPlan, settings: dict[str, Any]) -> BatchPlan | None:
    batch = plan.eval_batch or settings.get("batch_size") or 32
    return replace(plan, eval_batch=batch // 2) if batch > 1 else None
