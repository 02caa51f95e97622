"""Speed of the network of the web page in a browser, as the page reports it: windows of ten seconds in sequence.

    make page MODEL=dymn04_open
    python benchmarks/page.py

Needs Chromium and playwright. The first recording is a warm-up and is not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Browser, sync_playwright

RATE = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=120, help="length of the recording (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"), help="(%(default)s)"
    )
    given = parser.parse_args()
    served = [sys.executable, "-m", "dymn", "serve", "--model", "dymn04_open", "--port", "0", "--quiet"]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as server:
        recording = Path(folder) / "noise.wav"
        soundfile.write(recording, 0.1 * np.random.default_rng(0).standard_normal(given.seconds * RATE), RATE)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            with sync_playwright() as steered:
                browser = steered.chromium.launch(
                    executable_path=given.chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
                )
                times = measure(browser, address, recording, given.runs)
                browser.close()
        finally:
            server.terminate()
    median = statistics.median(times)
    print(
        f"{given.seconds} s of audio took {median:.2f} s, the median of {len(times)} ({min(times):.2f} to "
        f"{max(times):.2f})"
    )


def measure(browser: Browser, address: str, recording: Path, runs: int) -> list[float]:
    """Return the seconds that the network took for the recording in each run."""
    times = []
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    assert page.is_checked("#in-browser"), "make page has not been there"
    threads = page.evaluate("self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1")
    print(f"{page.inner_text('#browser-model')}, Chromium {browser.version}, {threads} threads")
    for run in range(runs + 1):
        page.evaluate("delete document.getElementById('speed').dataset.milliseconds")
        page.set_input_files("#file", recording)
        page.wait_for_selector("#speed[data-milliseconds]", timeout=600_000)
        if run:
            times.append(float(page.get_attribute("#speed", "data-milliseconds") or 0) / 1000)
    return times


if __name__ == "__main__":
    main()
