"""The page `rehearsal/ready.html`: one file that needs nothing but itself, for a desk and for a phone."""

from __future__ import annotations

from pathlib import Path

from daemon import words
from daemon.before_leaving import rehearse_result
from daemon.before_leaving.rehearse_result import Ready
from daemon.results.page import TEMPLATES
from state.durable import write_atomically
from state.workspace import Workspace


def write(workspace: Workspace, ready: Ready) -> Path:
    """Write the page by rename, and say where.

    Raises:
        OSError: it cannot be written.
    """
    import jinja2  # late: a run without a rehearsal does not pay for it

    loader = jinja2.FileSystemLoader(TEMPLATES)
    page = jinja2.Environment(
        autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    rows = [
        {"found": one, "cells": dict(zip(rehearse_result.HEAD, row, strict=True))}
        for one, row in zip(ready.stages, rehearse_result.rows(ready), strict=True)
    ]
    whole = page.get_template("ready.html.j2").render(
        ready=ready,
        rows=rows,
        head=rehearse_result.HEAD,
        plan=rehearse_result.plan_lines(ready),
        figures=figures(ready),
        made=words.date_line(ready.at),
    )
    target = workspace.rehearsal / "ready.html"
    write_atomically(target, whole)
    return target


def figures(ready: Ready) -> list[tuple[str, str]]:
    """The numbers at the top."""
    done = sum(one.state == "rehearsed" for one in ready.stages)
    killed = [one.resumed for one in ready.stages if one.resumed is not None]
    memory, gpu = (
        max((taken for one in ready.stages if one.measured and (taken := getattr(one.measured, name))), default=0)
        for name in ("memory_bytes", "gpu_bytes")
    )
    return [
        ("stages rehearsed", f"{done} of {len(ready.stages)}"),
        ("killed and resumed", f"{sum(killed)} of {len(killed)}"),
        ("most memory", f"{words.size(memory)} of {words.size(ready.machine.memory_bytes)}" if memory else words.NOT_MEASURED),
        ("most GPU memory", f"{words.size(gpu)} of {words.size(ready.machine.gpu_bytes or 0)}" if gpu else "no GPU"),
    ]
