"""Example runs, seen while their daemon is at work, for the tests of what the phone shows."""

from __future__ import annotations

import pytest

from daemon import scores, view
from daemon.phone.standing import More
from daemon.view import View
from state.workspace import Workspace
from tests.conftest import ExampleRun, finished_run, mid_run
from tests.unit.daemon.phone_views import live


@pytest.fixture(scope="module")
def mid(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Marian trains, Whisper waits, seen while the daemon is at work."""
    return live(view.read(mid_run(ExampleRun(tmp_path_factory.mktemp("mid") / "run"))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return finished_run(ExampleRun(tmp_path_factory.mktemp("done") / "run"))


@pytest.fixture(scope="module")
def done(finished: Workspace) -> View:
    """The finished run."""
    return live(view.read(finished))


@pytest.fixture(scope="module")
def measured(finished: Workspace) -> More:
    return More(scores=scores.read(finished.eval_results))
