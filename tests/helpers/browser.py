"""Pictures of a page by headless Chromium, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = shutil.which("chromium")


def picture(page: Path, out: Path, width: int, height: int, dark: bool = False) -> str:
    """Write a picture of ``page`` to ``out``; returns what the browser said."""
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme),
                *("--enable-logging=stderr", f"--user-data-dir={profile}", f"--window-size={width},{height}"),
                *(f"--screenshot={out}", page.absolute().as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    return done.stderr
