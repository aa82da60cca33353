"""The page of a rehearsal in a real browser: shown whole, on a desk and on a phone, asking nobody for anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.before_leaving import rehearse_page
from state.workspace import Workspace
from tests.process.browser import CHROMIUM, browse
from tests.unit.daemon.before_leaving.test_rehearse_result import Outcome, ready, rehearsed

PROBE = """
<script>
const box = (e) => e.getBoundingClientRect();
document.body.dataset.probe = JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches,
  wide: [...document.querySelectorAll('main *')].filter((e) => box(e).right > innerWidth + 1).map((e) => e.tagName),
  sections: [...document.querySelectorAll('section')].map((e) => [e.id, Math.round(box(e).height)]),
  paper: getComputedStyle(document.body).backgroundColor, asked: performance.getEntriesByType('resource').map((e) => e.name),
});
</script>
"""
REASON = "one example alone does not fit beside <google>/translategemma-12b-it on NVIDIA RTX 5080: CUDA out of memory"


def written(folder: Path) -> Path:
    """A page with a failed bonus and a stage that needs it."""
    bad = {"train_gemma_12b": (Outcome.OUT_OF_MEMORY, REASON), "evaluate_12b": (Outcome.MISCONFIGURED, "x")}
    return rehearse_page.write(Workspace(folder), ready(rehearsed(bad)))


def test_the_page_says_it_all(tmp_path: Path) -> None:
    """Verdict, every stage, the reason as text and not as markup, and the commands; nothing is fetched from elsewhere."""
    page = written(tmp_path).read_text()
    assert "Ready to leave, with 1 warning." in page
    assert "&lt;google&gt;/translategemma-12b-it" in page
    assert "needs train_gemma_12b" in page
    assert "./vigil rehearse p.toml --workspace w --stage train_gemma_12b" in page
    assert page.count("rehearsed in 1 min") == 9
    assert set(re.findall(r"(?:src|href)=(\S+?)>", page)) == {'"data:,"'}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_is_shown_whole(tmp_path: Path) -> None:
    """On a desk and on a phone, light and dark: nothing hangs over the edge, every section has a size."""
    page = written(tmp_path)
    desk = browse(page, PROBE, tmp_path, 1200, "--blink-settings=preferredColorScheme=1")
    phone = browse(page, PROBE, tmp_path, 500, "--blink-settings=preferredColorScheme=0")
    assert (desk["dark"], phone["dark"]) == (False, True)
    assert desk["paper"] != phone["paper"]
    for seen in (desk, phone):
        assert seen["scroll"] <= seen["inner"]
        assert seen["wide"] == []
        assert [name for name, _height in seen["sections"]] == ["advice", "stages", "plan"]
        assert all(height > 60 for _name, height in seen["sections"])
        assert seen["asked"] == []
