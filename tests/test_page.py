"""The page in a browser: a file or the microphone through the network in the browser, the answer that of the command
line.

Needs Chromium, the package playwright to steer it, and the files that `make page` installs.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

import uvicorn
from playwright import sync_api as playwright
from typer.testing import CliRunner
from websockets.sync.client import connect

from dymn.audio import reading
from dymn.cli import app
from dymn.inference.tagger import Tagger
from dymn.serve.app import create_app
from dymn.serve.assets import find_assets, runs_in_browser
from dymn.serve.settings import ServeSettings

AUDIO = Path(__file__).parents[1] / "examples" / "audio"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
NEEDS_FILES = pytest.mark.skipif(
    not runs_in_browser(find_assets()), reason="`make page` has not installed the page's files"
)
PICTURES = os.environ.get("DYMN_PAGE_PICTURES")
"""A folder for pictures of the page, to be looked at."""
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ),
]
TOKEN = "0123456789abcdef-secret"
pytestmark = NEEDS_CHROMIUM


@contextlib.contextmanager
def serving(app):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws_max_size=2**20))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def tagger():
    return Tagger.from_pretrained("dymn04_open", device="cpu")


@pytest.fixture(scope="module")
def address(tagger):
    with serving(create_app({"dymn04_open": tagger}, ServeSettings())) as found:
        yield found


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """What the browser's microphone hears: a recording, over and over."""
    path = tmp_path_factory.mktemp("microphone") / "heard.wav"
    samples = reading.read(AUDIO / "dog.ogg", 48_000)
    soundfile.write(path, np.resize(samples, 48_000 * 30), 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory, microphone):
    with playwright.sync_playwright() as steered:
        one = steered.chromium.launch(
            executable_path=CHROMIUM,
            headless=True,
            args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"],
            timeout=120_000,
        )
        yield one
        one.close()


@pytest.fixture
def page(browser):
    """A page that notes what it asks for and what goes wrong in it."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, permissions=["microphone"])
    context.set_default_timeout(120_000)
    one = context.new_page()
    one.asked, one.wrong = [], []
    one.on("request", lambda request: one.asked.append((request.method, request.url)))
    one.on("pageerror", lambda error: one.wrong.append(str(error)))
    one.on("console", lambda message: one.wrong.append(message.text) if message.type == "error" else None)
    yield one
    context.close()


def ready(page, address):
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def picture(page, name):
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def tags(page):
    return dict(
        zip(
            page.locator("#tags .label").all_inner_texts(),
            map(float, page.locator("#tags .score").all_inner_texts()),
            strict=True,
        )
    )


def says(page, where, pattern):
    playwright.expect(page.locator(where)).to_have_text(re.compile(pattern), timeout=60_000)


def done(page):
    says(page, "#status", "^Done")


@NEEDS_FILES
@pytest.mark.parametrize("name", ["dog.ogg", "rain.ogg"])
def test_a_file_gets_the_tags_of_the_command_and_stays_here(page, address, tagger, name):
    ready(page, address)
    assert page.locator("#in-browser").is_checked()
    page.set_input_files("#file", AUDIO / name)
    done(page)
    expected = {tag.label: tag.score for tag in tagger.tag(AUDIO / name, top_k=10)}
    found = tags(page)
    assert next(iter(found)) == next(iter(expected))
    for label in list(expected)[:5]:
        assert found[label] == pytest.approx(expected[label], abs=0.02)  # the browser resamples in its own way
    assert all(method == "GET" and (url.startswith((address, "blob:", "data:"))) for method, url in page.asked)
    assert page.wrong == []
    picture(page, f"file-{name}")


@NEEDS_FILES
def test_a_long_file_has_a_timeline(page, address, tagger, tmp_path):
    samples = [reading.read(AUDIO / name) for name in sorted(os.listdir(AUDIO)) if name.endswith(".ogg")]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.resize(np.concatenate(samples), 32_000 * 34), 32_000)
    ready(page, address).set_input_files("#file", path)
    done(page)
    assert next(iter(tags(page))) == tagger.tag(path, top_k=1)[0].label
    assert page.locator("#timeline thead th").count() == len({tag.start for tag in tagger.timeline(path, top_k=1)})
    picture(page, "long")


def hours(tmp_path, seconds):
    """Write a recording of many windows: noise, with a dog in one of them."""
    samples = 0.01 * np.random.default_rng(0).standard_normal(32_000 * seconds).astype(np.float32)
    dog = reading.read(AUDIO / "dog.ogg")[: 10 * 32_000]
    samples[200 * 32_000 : 200 * 32_000 + len(dog)] = dog
    path = tmp_path / "a, long one.flac"
    soundfile.write(path, samples, 32_000)
    return path


@pytest.mark.parametrize("width", [1200, 360])
def test_many_windows_are_a_picture_in_which_a_click_seeks(browser, address, tagger, tmp_path, width):
    path = hours(tmp_path, 300)
    context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
    context.set_default_timeout(120_000)
    page = ready(context.new_page(), address)
    page.check("#on-server")
    page.set_input_files("#file", path)
    done(page)
    assert not page.locator("#timeline").is_visible() and page.locator("#strip-canvases canvas").count() == 6
    assert page.locator("#strip-ticks span").all_text_contents() == ["0 s", "1:00", "2:00", "3:00", "4:00", "5:00"]
    wide = page.locator("#strip-canvases").bounding_box()["width"]
    page.locator("#strip-canvases").hover(position={"x": wide * 0.68, "y": 5})
    assert re.match(r"3:2\d · (Dog|Animal|Bark)", page.locator("#pointed").inner_text().replace("  ", " "))
    until(page, "document.getElementById('player').duration > 0")
    for name, share in (("#log-mel", 0.25), ("#strip-canvases", 0.75)):
        box = page.locator(name).bounding_box()
        page.locator(name).click(position={"x": box["width"] * share, "y": box["height"] / 2})
        assert page.evaluate("document.getElementById('player').currentTime") == pytest.approx(300 * share, abs=2)
    until(page, "Math.abs(parseFloat(document.querySelector('.head').style.left) - 75) < 1")
    picture(page, f"strips-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not overlaps(page, "#frequencies span") and not overlaps(page, "#strip-ticks span")
    assert saved(page, "csv").startswith('file,start,end,label,score\r\n"a, long one.flac",0.000,10.000,')
    found = json.loads(saved(page, "json"))
    expected = tagger.timeline(path, top_k=1)
    assert [window["start"] for window in found["windows"]] == pytest.approx(sorted({tag.start for tag in expected}))
    assert found["model"] == "dymn04_open" and found["seconds"] == pytest.approx(300)
    best = {tag.start: tag for tag in expected}
    for window in found["windows"]:
        assert window["tags"][0]["score"] == pytest.approx(best[window["start"]].score, abs=1e-3)
    context.close()


def overlaps(page, selector):
    """Return whether texts lie over each other, among those that are shown."""
    boxes = [box for box in (one.bounding_box() for one in page.locator(selector).all()) if box]
    return any(
        a["x"] < b["x"] + b["width"]
        and b["x"] < a["x"] + a["width"]
        and a["y"] < b["y"] + b["height"]
        and b["y"] < a["y"] + a["height"]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


@pytest.mark.parametrize("width", [1200, 1051, 380])
def test_the_page_of_explain_can_be_read(browser, explained, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(explained.as_uri())
    heads = page.locator("#kernels tr:first-child th")
    assert heads.all_text_contents() == ["", "expand", "depthwise", "project"]
    assert heads.evaluate_all("heads => heads.every(head => head.scrollWidth <= head.clientWidth)")
    figures = page.locator("#labels i")
    assert figures.count() == 6 and all(re.fullmatch(r"0\.\d\d", text) for text in figures.all_inner_texts())
    edge = page.locator("#sound").bounding_box()["x"]
    assert all(box["x"] + box["width"] <= edge for box in (one.bounding_box() for one in figures.all()))
    for axis, canvas in (("#labels", "#tags"), ("#rows", "#time"), ("#kilohertz", "#sound")):  # side by side
        assert page.locator(axis).bounding_box()["y"] == pytest.approx(page.locator(canvas).bounding_box()["y"], abs=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture(page, f"explained-{width}")
    context.close()


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page that `dymn explain` writes of the dog, whose third label is long."""
    path = tmp_path_factory.mktemp("explained") / "dog.html"
    done = CliRunner().invoke(app, ["explain", str(AUDIO / "dog.ogg"), "-m", "dymn04_open", "-o", str(path)])
    assert done.exit_code == 0, done.output
    return path


def until(page, holds):
    """Wait for a condition; `page.wait_for_function` evaluates text in the page, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    raise AssertionError(holds)


def saved(page, ending):
    """Return the text of the file that a button saves."""
    with page.expect_download() as download:
        page.click(f"#save-{ending}")
    assert download.value.suggested_filename == f"a, long one.flac.tags.{ending}"
    return Path(download.value.path()).read_bytes().decode()


def test_the_axis_shows_a_tone_at_its_frequency(page, address, tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 2000 * np.arange(64_000) / 32_000), 32_000)
    ready(page, address).check("#on-server")
    page.set_input_files("#file", path)
    done(page)
    brightest = page.evaluate(
        "(canvas => { const context = canvas.getContext('2d');"
        " const pixels = context.getImageData(canvas.width / 2 | 0, 0, 1, canvas.height).data;"
        " const light = Array.from({length: canvas.height}, (_, y) => pixels[4 * y] + pixels[4 * y + 1]);"
        " return 1 - (light.indexOf(Math.max(...light)) + 0.5) / canvas.height; })(document.getElementById('log-mel'))"
    )
    tick = page.locator("#frequencies span", has_text=re.compile("^2$"))
    place = tick.evaluate("tick => parseFloat(tick.style.bottom)")
    assert brightest == pytest.approx(place / 100, abs=0.01)


@NEEDS_FILES
def test_the_microphone(page, address, tagger, microphone):
    ready(page, address)
    page.click("#mic")
    says(page, "#from", "^5 s")
    says(page, "#status", "^Detected")
    page.wait_for_timeout(1500)
    picture(page, "microphone")
    expected = {tag.label for tag in tagger.tag(microphone, top_k=3)}
    assert next(iter(tags(page))) in expected
    page.keyboard.press("Enter")  # the button has the focus
    assert page.locator("#mic").inner_text() == "Use the microphone"
    assert not [url for method, url in page.asked if method != "GET" or url.startswith("ws")]
    assert page.wrong == []


def test_the_server_listens_too(page, address, tagger):
    ready(page, address)
    page.check("#on-server")
    page.set_input_files("#file", AUDIO / "dog.ogg")
    done(page)
    expected = {tag.label: round(tag.score, 2) for tag in tagger.tag(AUDIO / "dog.ogg", top_k=10)}
    assert tags(page) == pytest.approx(expected, abs=0.011)
    page.on("websocket", lambda socket: socket.on("framesent", lambda sent: frames.append(sent)))
    frames = []
    page.click("#mic")
    says(page, "#status", "^Detected")
    page.click("#mic")
    assert page.wrong == []
    # a second stands for those before it, which nobody heard
    first = [sent for sent in frames if isinstance(sent, bytes)][:6]
    assert len(first) == 6 and len(set(first)) == 1


def test_a_server_that_takes_no_more_is_said_and_asked_again(page, tagger):
    with serving(create_app({"dymn04_open": tagger}, ServeSettings(live=1))) as address:
        ready(page, address)
        page.check("#on-server")
        with connect(address.replace("http", "ws") + "/v1/live") as other:
            other.send(json.dumps({"sample_rate": 16_000}))
            assert "ready" in other.recv()
            page.click("#mic")
            says(page, "#problem", "live connections .1. is reached.*not analysed.*tries again")
            assert page.locator("#mic").inner_text() == "Stop the microphone"
            picture(page, "overloaded")
        says(page, "#status", "^Detected")
        says(page, "#problem", "^$")
        assert page.wrong == []


def test_sound_that_a_slow_server_does_not_hear_is_said(page, tagger, monkeypatch):
    quick = threading.Event()
    run = type(tagger.backend).run
    with serving(create_app({"dymn04_open": tagger}, ServeSettings())) as address:
        ready(page, address)
        page.check("#on-server")
        monkeypatch.setattr(type(tagger.backend), "run", lambda *arguments: quick.wait(60) and run(*arguments))
        page.click("#mic")
        says(page, "#problem", "too slow.*not analysed")
        quick.set()
        says(page, "#status", "^Detected")
        says(page, "#problem", "^$")
        page.click("#mic")
        assert page.wrong == []


def test_a_token_is_asked_for(page, tagger):
    with serving(create_app({"dymn04_open": tagger}, ServeSettings(token=TOKEN))) as address:
        ready(page, address)
        page.check("#on-server")
        page.fill("#token", TOKEN)
        page.click("#token-use")
        says(page, "#status", "accepts the token")
        page.set_input_files("#file", AUDIO / "dog.ogg")
        done(page)
        assert TOKEN not in page.content() and not [url for _, url in page.asked if TOKEN in url]


def test_hostile_names_are_text(page, tagger, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(32_000), 32_000)

    class Hostile(Tagger):
        @property
        def backend(self):
            return self._backend

        @backend.setter
        def backend(self, value):
            import copy
            import dataclasses

            self._backend = copy.copy(value)
            labels = [f"<b onclick=alert({i})>{name}\u202e".replace("\u202e", "") for i in range(len(value.labels))]
            self._backend.card = dataclasses.replace(value.card, labels=tuple(labels))

    with serving(create_app({"hostile": Hostile(tagger.backend)}, ServeSettings())) as address:
        ready(page, address).check("#on-server")
        page.set_input_files("#file", path)
        done(page)
        assert page.locator("#title").inner_text() == f"{name}.wav"
        assert page.locator("main img, main b[onclick]").count() == 0
        assert "<b onclick" in next(iter(tags(page)))


def test_what_is_no_recording_is_said(page, address, tmp_path):
    path = tmp_path / "letter.wav"
    path.write_text("Dear reader")
    ready(page, address).check("#on-server")
    page.set_input_files("#file", AUDIO / "dog.ogg")
    done(page)
    page.set_input_files("#file", path)
    says(page, "#problem", "^letter.wav is not a recording that can be decoded")
    assert not page.locator("#answer").is_visible() and page.locator("#status").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_it_fits_and_can_be_used_with_keys(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 760}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    page = ready(context.new_page(), address)
    assert keys(page, 4) == [
        "in-browser" if page.locator("#in-browser").is_enabled() else "on-server",
        "file",
        "mic",
        "A",
    ]
    page.set_input_files("#file", AUDIO / "dog.ogg")
    done(page)
    page.wait_for_timeout(400)
    picture(page, f"{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.activeElement.id") == "title"  # where those who do not see are told of the answer
    assert keys(page, 1) == ["player"]
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, canvas, audio, a')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length"
    )
    assert unnamed == 0
    assert contrasts(page) >= 4.5
    context.close()


def keys(page, count):
    """Return what the tabulator key reaches; all of it shows that it is reached."""
    reached = []
    for _ in range(count):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        shown = (
            "document.activeElement.id === 'file' ? document.activeElement.nextElementSibling : document.activeElement"
        )
        assert page.evaluate(f"getComputedStyle({shown}).outlineStyle") != "none", reached
    return reached


def contrasts(page):
    """Return the least contrast of the page's colours for text with the ground they stand on."""
    colours = page.evaluate(
        "(names => { const style = getComputedStyle(document.documentElement);"
        " return Object.fromEntries(names.map(name => [name, style.getPropertyValue('--' + name).trim()])) })"
        "(['ground', 'panel', 'ink', 'soft', 'accent', 'on-accent', 'problem', 'heat'])"
    )

    def light(name):
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(text, "panel") for text in ("ink", "soft", "accent", "problem")] + [
        ("soft", "ground"),
        ("on-accent", "accent"),
        ("ink", "heat"),
    ]
    levels = [sorted((light(a), light(b))) for a, b in pairs]
    assert re.fullmatch(r"#[0-9a-f]{6}", colours["ink"])
    return min((high + 0.05) / (low + 0.05) for low, high in levels)
