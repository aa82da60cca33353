"""What Vigil says about a run, in words and tables."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import report, view, words
from state.contract import Outcome, Output, Result
from state.forecast import Forecast
from state.machine import Status
from state.snapshot import Fact, Intent, Running, RunState, StageState, Succeeded
from state.workspace import Workspace

HOST = {
    "memory_used_bytes": 12_000_000_000,
    "memory_total_bytes": 64_000_000_000,
    "disks": [{"path": "/home/run", "free_bytes": 412_000_000_000, "total_bytes": 1}],
    "gpus": [
        {
            "name": "RTX",
            "load_percent": 97.0,
            "temperature_c": None,
            "memory_used_bytes": 14_200_000_000,
            "memory_total_bytes": 16_000_000_000,
        }
    ],
}
SHAPE = {
    "run": {
        "id": str, "pipeline": str, "started_at": str, "finished_at": str | None, "paused": bool, "disk_hold": str,
        "daemon_running": bool | None,
    },
    "stage": {
        "name": str, "status": str, "resource": str, "optional": bool, "attempts": int, "progress": float | None,
        "step": int | None, "steps": int | None, "metrics": dict,
        "checkpoint": int | None, "eta_s": float | None, "reason": str | None,
    },
}  # fmt: skip
"""What docs/status-json.md promises: scripts rely on it."""


def fact(kind: str, text: str = "", stage: str | None = None, at: float = 1_770_919_200.0, **more: Any) -> Fact:
    return Fact(id="1", at=at, kind=kind, text=text, stage=stage, **more)


def with_states(run: RunState, **states: Any) -> RunState:
    """`run` finished, every stage SUCCEEDED but those given."""
    done = [StageState(name=s.name, status=states.get(s.name, Succeeded(at=1.0))) for s in run.stages]
    return msgspec.structs.replace(run, stages=tuple(done), finished_at=2.0)


# -- status


@pytest.mark.parametrize("which", ["mid_workspace", "finished_workspace"])
def test_the_status_object_keeps_its_shape(which: str, request: pytest.FixtureRequest) -> None:
    """Exactly these names, in this order, of these types, at any point of a run: scripts rely on it."""
    seen = view.read(request.getfixturevalue(which))
    found = msgspec.json.decode(msgspec.json.encode(report.status_object(seen, HOST, 1_770_923_000.0)))
    assert list(found) == ["run", "stages", "host", "forecast"]
    assert found["forecast"] is None
    for name, value, kinds in [
        ("run", found["run"], SHAPE["run"]),
        *(("stage", stage, SHAPE["stage"]) for stage in found["stages"]),
    ]:
        assert list(value) == list(kinds), name
        for key, kind in kinds.items():
            assert isinstance(value[key], kind) or (kind == float | None and isinstance(value[key], int)), (name, key, value[key])
    assert [stage["name"] for stage in found["stages"]] == [stage.name for stage in seen.run.pipeline.stages]
    assert {stage["status"] for stage in found["stages"]} <= {str(status) for status in Status}
    assert all(stage["progress"] is None or 0 <= stage["progress"] <= 1 for stage in found["stages"])


def test_the_status_object_tells_the_forecast(mid_workspace: Workspace) -> None:
    """Instants in UTC, and whether the deadline holds."""
    plan = Forecast(at=1_770_923_000.0, p50_at=1_770_926_600.0, p80_at=1_770_930_200.0, deadline_at=1_770_930_000.0)
    found = report.status_object(view.read(mid_workspace), HOST, 1_770_923_000.0, plan)["forecast"]
    assert found == {
        "at": "2026-02-12T19:03:20Z", "p50_at": "2026-02-12T20:03:20Z", "p80_at": "2026-02-12T21:03:20Z",
        "deadline_at": "2026-02-12T21:00:00Z", "fits": False,
    }  # fmt: skip


def test_the_status_object_tells_what_the_files_say(mid_workspace: Workspace) -> None:
    """A golden object: the stage that was training when the lights went out."""
    found = report.status_object(view.read(mid_workspace), HOST, 1_770_923_000.0)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert found["run"] == {
        "id": "20260212-180000",
        "pipeline": "Vigil demo",
        "started_at": "2026-02-12T18:00:00Z",
        "finished_at": None,
        "paused": False,
        "disk_hold": "",
        "daemon_running": False,
    }
    assert stages["train_marian"] == {
        "name": "train_marian",
        "status": "RUNNING",
        "resource": "gpu",
        "optional": False,
        "attempts": 2,
        "progress": 0.625,
        "step": 100,
        "steps": 160,
        "metrics": stages["train_marian"]["metrics"],
        "checkpoint": None,
        "eta_s": None,
        "reason": None,
    }
    assert set(stages["train_marian"]["metrics"]) == {"loss", "learning_rate", "dev_loss"}
    assert stages["train_whisper"]["reason"] == "killed by signal 9"
    assert (stages["evaluate_12b"]["attempts"], stages["evaluate_12b"]["optional"]) == (0, True)
    assert found["host"] == HOST


def test_status_fits_a_terminal(finished_workspace: Workspace) -> None:
    """80 columns are enough for every line, with the status words in capitals."""
    lines = report.status_lines(view.read(finished_workspace), HOST, 1_770_923_000.0, columns=80, zone=UTC)
    assert max(len(line) for line in lines) <= 80
    text = "\n".join(lines)
    assert "Vigil demo: run 20260212-180000, started Thu 12 Feb 18:00, finished after" in lines[0]
    assert "FAILED" in text
    assert "SKIPPED" in text
    assert lines[-1] == "disk 412 GB free (/home/run) · RAM 12 GB of 64 GB · RTX 97 % 14 GB of 16 GB"
    said = ["MarianMT is better than before: chrF++ +13.25; better in gospels; on general sentences worse: chrF++ −0.84."]
    worth = report.status_lines(view.read(finished_workspace), HOST, 1_770_923_000.0, columns=80, zone=UTC, verdicts=said)
    assert worth == [
        *lines[:-1],
        "MarianMT is better than before: chrF++ +13.25; better in gospels; on general",
        "  sentences worse: chrF++ −0.84.",
        "",
        lines[-1],
    ]


def test_a_dead_daemon_is_told(mid_workspace: Workspace) -> None:
    """Neither a stage nor the run looks alive when nobody is at work."""
    text = "\n".join(report.status_lines(view.read(mid_workspace), HOST, 1_770_923_000.0, columns=120, zone=UTC))
    assert "Vigil is not running" in text
    assert "its process is gone" in text
    assert "s/step" not in text


def test_what_a_waiting_stage_waits_for(mid_workspace: Workspace) -> None:
    """Only what is not settled yet; then the resource."""
    seen = view.read(mid_workspace)
    configs = {stage.name: stage for stage in seen.run.pipeline.stages}
    assert report.waits_for(configs["evaluate_after"], seen.run) == "after train_whisper, train_marian, train_gemma_4b"
    assert report.waits_for(configs["train_gemma_4b"], seen.run) == "waits for the gpu"


def test_a_stage_that_is_being_stopped_says_why(mid_workspace: Workspace) -> None:
    """The owner's skip shows before the stage has left."""
    seen = view.read(mid_workspace)
    marian = next(stage for stage in seen.stages if stage.config.name == "train_marian")
    intent = Intent(skip=True, reason="skipped by the owner (cli)", at=0, due_monotonic_s=0, boot="")
    state = msgspec.structs.replace(marian.state, status=Running(since=0, intent=intent))
    assert report.reason(state) == "skipped by the owner (cli)"


@pytest.mark.parametrize(("gpus", "text"), [(None, "GPU does not answer"), ([], ""), ([{"name": "RTX"}], "RTX")])
def test_a_silent_gpu_is_not_an_idle_one(gpus: Any, text: str) -> None:
    """None: it does not answer. Empty: there is none. What it does not tell is left out."""
    assert report.host_line({"gpus": gpus}) == text


# -- how it ended


def test_the_verdict_counts_every_stage(finished_workspace: Workspace) -> None:
    """A bonus that failed is counted and does not fail the run; a required one is named."""
    run = view.read(finished_workspace).run
    assert report.verdict(run) == "Finished: 9 of 11 stages succeeded, 1 bonus failed, 1 skipped."
    assert report.verdict(with_states(run)) == "Finished: all 11 stages succeeded."
    failed = with_states(run, train_marian=run.stage("train_gemma_12b").status)
    assert report.verdict(failed) == "Finished: 10 of 11 stages succeeded. Failed: train_marian."


def test_the_summary_lists_what_was_delivered(finished_workspace: Workspace) -> None:
    """The original's list of outputs, with sizes; failures first, with their reasons."""
    run = view.read(finished_workspace).run
    text = report.summary(run, view.results(finished_workspace, run))
    lines = text.splitlines()
    assert lines[1].startswith("  train_gemma_12b failed: out of memory")
    assert ["fine_tuned_marian_mi", "1.2", "MB", "MarianMT", "full", "model"] in [line.split() for line in lines]
    assert lines[-2:] == ["  logs/  all logs of the stages", "  report/index.html  the report"]
    assert "fine_tuned_gemma_mi_B" not in text


def test_the_latest_receipt_of_a_path_counts() -> None:
    """Two stages that deliver the same folder give one line."""
    results = {
        name: Result(stage=name, attempt=1, at=0, outputs=(Output(path="metrics", size_bytes=size, sha256=name),))
        for name, size in (("one", 1), ("two", 2_000))
    }
    assert report.output_rows(results) == [("metrics", "2.0 kB", "scores and translations", "two")]


# -- progress.log, read as the original's


def test_progress_log_reads_like_the_originals(finished_workspace: Workspace) -> None:
    """Header block, `Stage N: title...`, `Stage N complete.`, and the closing block, with the date as `date` prints it."""
    run = view.read(finished_workspace).run

    def lines(kind: str, stage: str | None = None, **more: Any) -> list[str]:
        return report.progress_lines(run, fact(kind, stage=stage, **more), UTC)

    rule = "=" * 40
    assert lines("run.started") == [rule, "Vigil demo — Thu Feb 12 18:00:00 UTC 2026", rule]
    assert lines("stage.started", "preprocess", attempt=1) == ["[18:00] Stage 2: Audio preprocessing..."]
    assert lines("stage.started", "preprocess", attempt=3) == ["[18:00] Stage 2: Audio preprocessing (attempt 3)..."]
    assert lines("stage.succeeded", "preprocess", text="preprocess succeeded: 14 chunks") == ["[18:00] Stage 2 complete."]
    assert lines("stage.failed", "train_gemma_12b", text="train_gemma_12b failed: OOM") == [
        "[18:00] Stage 10 failed. See log. train_gemma_12b failed: OOM"
    ]
    assert lines("attempt.noted", "preprocess", text="counted") == []
    assert lines("attempt.noted", "preprocess", text="strange", level="warning") == ["[18:00] Stage 2: strange"]


def test_all_stages_complete_is_only_said_when_they_are(finished_workspace: Workspace) -> None:
    """The original says it whatever happened; here the line names what is missing."""
    run = view.read(finished_workspace).run
    end = fact("run.finished")
    assert report.progress_lines(with_states(run), end, UTC)[1] == "ALL STAGES COMPLETE — Thu Feb 12 18:00:00 UTC 2026"
    bonus = report.progress_lines(run, end, UTC)[1]
    assert bonus.startswith("ALL OTHER STAGES COMPLETE (train_gemma_12b FAILED, evaluate_12b SKIPPED) — ")
    failed = with_states(run, train_marian=run.stage("train_gemma_12b").status)
    assert report.progress_lines(failed, end, UTC)[1].startswith("RUN ENDED WITH FAILURES (train_marian FAILED) — ")


@pytest.mark.parametrize(
    "kind", ["stage.started", "stage.succeeded", "stage.failed", "stage.skipped", "stage.backed_off", "run.resumed", "x.y"]
)
@pytest.mark.parametrize("stage", [None, "preprocess", "gone"])
def test_no_fact_breaks_the_log(kind: str, stage: str | None, mid_workspace: Workspace) -> None:
    """Also a fact of a stage that the pipeline no longer has, or of a kind that a later Vigil tells."""
    run = view.read(mid_workspace).run
    for line in report.progress_lines(run, fact(kind, "text", stage, level="warning"), UTC):
        assert line.startswith("[18:00] ")


# -- the journal


def test_troubles_are_what_went_wrong_and_what_was_done(finished_workspace: Workspace) -> None:
    """Warnings, errors, waits and resumes, in order of time; what went well is not among them."""
    found = report.troubles(view.read(finished_workspace).facts)
    kinds = [one.kind for one in found]
    assert kinds == ["attempt.noted", "stage.backed_off", "run.resumed", "stage.failed", "stage.skipped"]
    assert [one.at for one in found] == sorted(one.at for one in found)


def test_bad_attempts_name_every_one_that_did_not_succeed(finished_workspace: Workspace) -> None:
    """With its outcome, whatever became of the stage in the end."""
    found = report.bad_attempts(view.read(finished_workspace).run)
    assert [(stage, attempt.outcome) for stage, attempt in found] == [
        ("train_whisper", Outcome.CRASHED),
        ("train_marian", Outcome.INTERRUPTED),
        ("train_gemma_12b", Outcome.OUT_OF_MEMORY),
    ]


def test_a_fact_names_its_stage_once() -> None:
    """Warnings and errors are marked."""
    assert report.fact_line(fact("x", "corpus started", "corpus"), UTC) == "12 Feb 18:00:00  corpus started"
    assert report.fact_line(fact("x", "odd", "corpus", level="warning"), UTC) == "12 Feb 18:00:00  ! corpus: odd"


@pytest.mark.parametrize(
    ("ok", "alive", "text"),
    [
        (True, True, "train_marian is skipped"),
        (False, True, "Refused: train_marian is skipped"),
        (None, True, "`skip train_marian` is queued; Vigil has not answered yet. Look again with `vigil log`."),
        (None, False, "Vigil is not running here: `skip train_marian` is queued and carried out when the run goes on."),
    ],
)
def test_an_unanswered_command_is_not_called_done(ok: bool | None, alive: bool, text: str) -> None:
    """Done, refused, queued: each is said for what it is."""
    assert list(report.answer_lines("skip train_marian", ok, "train_marian is skipped", alive)) == [text]


def test_every_known_output_fits_its_line() -> None:
    """80 columns, whatever a run delivers."""
    outputs = tuple(Output(path=path, size_bytes=999_000_000, sha256="") for path in report.OUTPUTS)
    rows = report.output_rows({"s": Result(stage="s", attempt=1, at=0, outputs=outputs)})
    assert max(len(line) for line in words.table([row[:3] for row in rows], right=(1,))) <= 78


def test_status_tells_whether_the_deadline_holds(mid_workspace: Workspace) -> None:
    """One line under the head, and the choice; within 80 columns; nothing without a deadline."""
    seen, at = view.read(mid_workspace), 1_770_919_200.0
    due = at + 4 * 86_400
    fits = Forecast(at=at, p50_at=due - 9 * 3600, p80_at=due - 3 * 3600, deadline_at=due)
    late = msgspec.structs.replace(fits, p50_at=due + 60, p80_at=due + 3 * 3600, choice="Without the 12B it fits.")
    shown = [report.status_lines(seen, {}, at, zone=UTC, forecast=one) for one in (fits, late)]
    assert shown[0][2] == "Deadline Mon 18:00: fits (80 %: Mon 15:00)"
    assert shown[1][2:4] == ["Deadline Mon 18:00: late by 3 h (80 %: Mon 21:00)", "Without the 12B it fits."]
    assert all(len(line) <= 80 for lines in shown for line in lines)
    without = msgspec.structs.replace(fits, deadline_at=None)
    assert report.status_lines(seen, {}, at, zone=UTC, forecast=without) == report.status_lines(seen, {}, at, zone=UTC)


def test_where_the_page_is() -> None:
    """Its path; under WSL also the one that Windows' Explorer and browsers take."""
    page = Path("/home/me/seattle/report/index.html")
    assert report.page_lines(page, {}) == [f"The report: {page}"]
    assert report.page_lines(page, {"WSL_DISTRO_NAME": "Ubuntu-24.04"}) == [
        f"The report: {page}",
        r"in Windows: \\wsl.localhost\Ubuntu-24.04\home\me\seattle\report\index.html",
    ]
