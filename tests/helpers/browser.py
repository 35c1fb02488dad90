"""Pictures of a page by headless Chromium, where it is installed.

``PYTHONPATH=tests/helpers python -m browser out/demo/report.html docs/`` makes those of the documentation.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHROMIUM = shutil.which("chromium")
SIZES = {"light": (1100, 2060), "dark": (1100, 2060), "phone": (390, 1480)}


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


def main() -> None:
    """The pictures of a report: light, dark, and as on a phone."""
    from PIL import Image

    page, folder = map(Path, sys.argv[1:3])
    for name, (width, height) in SIZES.items():
        out = folder / f"report-{name}.png"
        picture(page, out, width, height, name == "dark")
        Image.open(out).convert("RGB").quantize(96).save(out, optimize=True)


if __name__ == "__main__":
    main()
