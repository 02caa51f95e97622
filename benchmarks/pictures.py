"""Creates the pictures of the documentation that depend on the weights of dymn04_open.

    make page
    python benchmarks/pictures.py ESC10 docs/images
    python benchmarks/pictures.py ESC10 docs/images --only map found

ESC10 is a folder as for `zero_shot.py`. Plots are drawn by the commands and the Python code on the pages; screenshots
of pages are taken in Chromium with playwright. All pictures get a palette of 256 colours. `OTHERS` lists the sources of
the remaining pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dymn.fitting.labelled import read_labelled
from dymn.plots.reliability import plot_reliability
from dymn.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
MODEL = "dymn04_open"
OTHERS = {
    "curves": "dymn train esc10 --data ESC10 --model dymn04_open --fold 1",
    "dymn04_open_reliability": "python benchmarks/distilled.py CORPORA --model FILE --offset 0.2 --calibrate FILE "
    "--plot FILE",
    "probe_esc10": "dymn probe ESC10 --model mn04_as --plot FILE, which does not depend on these weights",
    "replication-curves": "python benchmarks/replicate.py report RESULTS, which trains networks of its own",
    "replication-kernels": "python benchmarks/replicate.py report RESULTS, which trains networks of its own",
    "replication-macs": "python benchmarks/replicate.py report RESULTS, which trains networks of its own",
    "trade-off": "dymn profile --plot FILE, which needs no weights",
    "where": "python benchmarks/where.py --plot FILE, which needs no weights",
}
"""Pictures that are not made here, and how to make them."""
FIVE = ("chainsaw", "crying_baby", "dog", "rain", "sneezing")
MANY = 20  # clips of each of the five that teach
PYTHON = re.compile(r"(?<!-->\n)^```python\n(.*?)^```$", re.M | re.S)
POINT = 0.45  # how far to the right the chosen point of the map is


def dymn(desk: Path, words: str) -> None:
    """Run a command at the desk."""
    subprocess.run([sys.executable, "-m", "dymn", *words.split(), "--quiet"], cwd=desk, check=True)


def code_of(desk: Path, page: str) -> None:
    """Run the Python code that a page shows, apart from what its tests do not run either."""
    code = "\n".join(PYTHON.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    subprocess.run([sys.executable, "-c", code], cwd=desk, check=True, env={**os.environ, "MPLBACKEND": "agg"})


@contextmanager
def photographed(address: str, path: Path, width: int = 1000) -> Iterator[Page]:
    """Open a page in Chromium, and write a picture of it once it is as it should be.

    The page's policy is set aside, since it forbids to wait for an expression.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as steered:
        browser = steered.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [], timeout=120_000
        )
        page = browser.new_page(
            viewport={"width": width, "height": 600}, bypass_csp=True
        )  # wait_for_function evaluates
        page.set_default_timeout(120_000)
        page.goto(address)
        yield page
        page.screenshot(path=path, full_page=True)
        browser.close()


def set_up(esc10: Path, desk: Path) -> None:
    """Put the example recordings and the clips of ESC-10, in a folder a class, on the desk."""
    shutil.copytree(ROOT / "examples", desk / "examples")
    taught: dict[str, int] = {}
    with (esc10 / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, label, held = row["filename"], row["category"], row["fold"] in "45"
            places = [desk / "esc" / label]
            if label in FIVE and held:
                places.append(desk / "held")
            elif label in FIVE and taught.get(label, 0) < MANY:
                taught[label] = taught.get(label, 0) + 1
                places.append(desk / "clips" / label)
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
                (place / name).symlink_to((esc10 / "audio" / name).resolve())


def fit(desk: Path) -> None:
    if not (desk / "mine.safetensors").exists():
        dymn(desk, f"fit clips --model {MODEL} --output mine.safetensors --plot fit.png")


def review(desk: Path) -> None:
    fit(desk)
    dymn(desk, "review mine.safetensors held --output review.html --count 12")
    with photographed((desk / "review.html").as_uri(), desk / "review.png") as page:
        page.keyboard.press("y")
        page.keyboard.press("n")
        page.wait_for_function("at('audio').currentTime > 0.3")
        page.keyboard.press(" ")


def index(desk: Path) -> None:
    if not (desk / "sounds.index").exists():
        dymn(desk, f"index esc --model {MODEL} --output sounds.index")


def found(desk: Path) -> None:
    index(desk)
    dymn(desk, "search esc/dog/1-100032-A-0.ogg --index sounds.index --top-k 4 --output found.html")
    with photographed((desk / "found.html").as_uri(), desk / "found.png") as page:
        page.wait_for_function("at('query').duration > 0")


def sound_map(desk: Path) -> None:
    index(desk)
    dymn(desk, "map --index sounds.index --output map.html")
    with photographed((desk / "map.html").as_uri(), desk / "map.png") as page:
        page.evaluate(f"go(across[Math.round(across.length * {POINT})])")
        page.wait_for_function("player.currentTime > 0.2")
        page.evaluate("player.pause()")


def page(desk: Path) -> None:
    served = [sys.executable, "-m", "dymn", "serve", "--model", MODEL, "--port", "0", "--quiet"]
    with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            with photographed(address, desk / "page.png", 960) as opened:
                opened.wait_for_selector("body[data-ready]")
                assert opened.locator("#in-browser").is_checked(), "make page has not installed the page's files"
                for name in ("rain", "dog"):  # the first warms the network up
                    opened.set_input_files("#file", desk / "examples" / "audio" / f"{name}.ogg")
                    opened.get_by_text(re.compile("^Done.*" + name, re.I)).wait_for()
        finally:
            server.terminate()


def reliability(desk: Path, esc10: Path) -> None:
    from fit import calibrated

    classes = json.loads((esc10 / "audioset_map.json").read_text(encoding="utf-8"))["classes"]
    result = calibrated(open_checkpoint(MODEL), read_labelled(esc10), classes)
    plot_reliability(result.before, result.after, desk / "reliability.png")


def selections(desk: Path) -> None:
    dymn(
        desk,
        f"events examples/audio/dog.ogg examples/audio/speech.ogg --model {MODEL} --labels Bark,Speech "
        "--threshold 0.35 --off-threshold 0.2 --format raven --output two.txt",
    )
    code_of(desk, "annotation")


def of_recordings(desk: Path) -> None:
    """Draw recordings.png and labels.png."""
    subprocess.run(
        [sys.executable, Path(__file__).with_name("recordings.py"), "examples/audio", "."], cwd=desk, check=True
    )


def pictures(esc10: Path) -> dict[str, Callable[[Path], None]]:
    """Return what makes each picture at a desk."""
    dog = f"examples/audio/dog.ogg --model {MODEL}"
    return {
        "timeline": lambda desk: dymn(desk, f"tag {dog} --plot timeline.png"),
        "explain": lambda desk: dymn(desk, f"explain {dog} --output explain.png"),
        "events": lambda desk: code_of(desk, "events"),
        "listen": lambda desk: code_of(desk, "live"),
        "selections": selections,
        "recordings": of_recordings,
        "labels": of_recordings,
        "fit": fit,
        "review": review,
        "found": found,
        "map": sound_map,
        "page": page,
        "reliability": lambda desk: reliability(desk, esc10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, help="The folder of ESC-10.")
    parser.add_argument("images", type=Path, help="The folder of the pictures.")
    parser.add_argument("--only", nargs="+", help="Create only these.")
    options = parser.parse_args()
    made = pictures(options.esc10.resolve())
    if unknown := set(options.only or ()) - set(made):
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(made)}")
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        set_up(options.esc10, desk)
        for name in options.only or made:
            if not (desk / f"{name}.png").exists():
                made[name](desk)
            with Image.open(desk / f"{name}.png") as picture:
                smaller = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            smaller.save(options.images / f"{name}.png", optimize=True)
            print(options.images / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
