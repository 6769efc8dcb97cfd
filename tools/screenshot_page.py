"""Make the picture of the live page in the documentation: run the street example, and take a screenshot in Chromium.

.venv/bin/python tools/make_street_example.py
.venv/bin/python tools/screenshot_page.py [BUNDLE] [--browser chromium]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

_ROOT = Path(__file__).resolve().parent.parent
_BUNDLE = _ROOT / "out" / "street" / "bundle"
_PICTURE = _ROOT / "docs" / "live-page.jpg"
_WARM_UP_S = 8.0
"""Seconds that the run has before the picture is taken."""
_SIZE = "1100,830"


def main() -> None:
    """Run the example, and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, default=_BUNDLE)
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    command = [Path(sys.executable).parent / "gemel-run", options.bundle.relative_to(Path.cwd()), "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run, tempfile.TemporaryDirectory() as profile:
        assert run.stdout is not None
        found = next(match for line in run.stdout if (match := re.search(r"http://\S+", line)))
        time.sleep(_WARM_UP_S)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        shot = Path(profile) / "page.png"
        flags += [f"--window-size={_SIZE}", "--virtual-time-budget=5000", f"--screenshot={shot}"]
        subprocess.run([options.browser, *flags, found.group()], check=True, capture_output=True)
        run.terminate()
        # As a PNG, the three photographs take four times the bytes.
        picture = cv2.imread(str(shot))
        assert picture is not None
        cv2.imwrite(str(_PICTURE), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(f"{_PICTURE} is written")


if __name__ == "__main__":
    main()
