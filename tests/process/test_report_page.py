"""The report in a real browser: it is shown whole, on a desk and on a phone, and asks nobody for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.results import page
from state.workspace import Workspace
from tests.process.browser import CHROMIUM, browse
from tests.unit.daemon.full_scores import enriched

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PROBE = """
<script>
const box = (e) => e.getBoundingClientRect();
const wide = [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll') && !e.closest('svg') && box(e).right > innerWidth + 1);
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
document.body.dataset.probe = JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth, dark,
  sections: [...document.querySelectorAll('section')].map((e) => [e.id, Math.round(box(e).height)]),
  plots: [...document.querySelectorAll('figure svg')].map((e) => [Math.round(box(e).width), Math.round(box(e).height)]),
  text: [...document.querySelectorAll('figure svg text')].map((e) => parseFloat(getComputedStyle(e).fontSize) * box(e.ownerSVGElement).width / e.ownerSVGElement.viewBox.baseVal.width),
  segments: [...document.querySelectorAll('.segment')].filter((e) => box(e).width > 1).length,
  tracks: [...new Set([...document.querySelectorAll('.track')].map((e) => Math.round(box(e).left)))],
  wide: wide.map((e) => e.className || e.tagName), paper: getComputedStyle(document.body).backgroundColor,
  asked: performance.getEntriesByType('resource').map((e) => e.name),
});
</script>
"""  # noqa: E501  read by a browser, not by people


SCORES_PROBE = """
<script>
document.documentElement.style.width = 'WIDTHpx';
const all = (what) => [...document.querySelectorAll('#scores ' + what)];
const folded = all('details:not([open])').length;
all('details').forEach((e) => { e.open = true; });
document.body.dataset.probe = JSON.stringify({
  folded, shown: document.body.getBoundingClientRect().width, tables: all('.scroll').length,
  over: all('.scroll').filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => [e.clientWidth, e.scrollWidth, e.innerText]),
  verdicts: all('.verdicts strong').map((e) => e.innerText),
});
</script>
"""


@pytest.mark.parametrize("width", [1200, 800, 500])
def test_the_page_is_shown_whole(width: int, finished_workspace: Workspace, tmp_path: Path) -> None:
    """Every section and plot has a size, all bars start at one line, nothing hangs over the edge, nothing is asked for."""
    page.write(finished_workspace)
    seen = browse(finished_workspace.report / "index.html", PROBE, tmp_path, width)
    assert seen["scroll"] <= seen["inner"]
    assert seen["wide"] == []
    assert [name for name, _height in seen["sections"]] == ["scores", "story", "plan", "losses", "samples", "next", "outputs"]
    assert all(height > 60 for _name, height in seen["sections"])
    assert len(seen["plots"]) == 4
    assert all(w > 250 and h > 120 for w, h in seen["plots"])
    assert min(seen["text"]) >= 7.5, "the words in a plot can be read"
    assert seen["segments"] == 12
    assert len(seen["tracks"]) == 1
    assert seen["asked"] == []


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_the_scores_fit_the_page(width: int, finished_workspace: Workspace, tmp_path: Path) -> None:
    """Whatever the evaluation found stands in tables that need no scrolling, also what is folded away at first."""
    enriched(finished_workspace)
    page.write(finished_workspace)
    html = finished_workspace.report / "index.html"
    seen = browse(html, SCORES_PROBE.replace("WIDTH", str(width)), tmp_path, max(width, 500))  # no window of it is narrower
    assert seen["shown"] == width
    assert seen["over"] == []
    assert seen["tables"] == 8
    assert seen["verdicts"] == ["MarianMT", "TranslateGemma-4B"]
    assert seen["folded"] == 5


def test_the_page_follows_light_and_dark(finished_workspace: Workspace, tmp_path: Path) -> None:
    """The background changes with the reader's preference."""
    page.write(finished_workspace)
    light = browse(finished_workspace.report / "index.html", PROBE, tmp_path, 1200, "--blink-settings=preferredColorScheme=1")
    dark = browse(finished_workspace.report / "index.html", PROBE, tmp_path, 1200, "--blink-settings=preferredColorScheme=0")
    assert (light["dark"], dark["dark"]) == (False, True)
    assert light["paper"] != dark["paper"]


def test_a_run_that_has_not_begun_has_a_page(example: Any, tmp_path: Path) -> None:
    """Every section is there, empty and said so."""
    page.write(example.save())
    seen = browse(example.workspace.report / "index.html", PROBE, tmp_path, 1200)
    assert len(seen["sections"]) == 7
    assert (seen["plots"], seen["segments"], seen["wide"]) == ([], 0, [])
