"""A page in a real browser, and what a script in it found."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def browse(page: Path, probe: str, folder: Path, width: int, *more: str) -> dict[str, Any]:
    """What `probe`, put at the end of the page, leaves in `document.body.dataset.probe` at `width` pixels; `more` are options."""
    probed = folder / f"probed-{width}.html"
    probed.write_text(page.read_text().replace("</body>", probe + "</body>"))
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--no-first-run", f"--user-data-dir={folder / f'profile-{width}'}", f"--window-size={width},900"),
        *(*more, "--dump-dom", probed.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(html.unescape(found[1]))
    return answer
