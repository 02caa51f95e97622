"""Creates the pictures of the pages on recordings and on labels, which show the effect of options of `dymn tag`.

python benchmarks/recordings.py examples/audio docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dymn import Tagger
from dymn.audio import reading
from dymn.audio.settings import ReadSettings
from dymn.inference.selection import TagSettings
from dymn.native.log_mel import array_log_mel
from dymn.plots.style import INK, SOFT, draw_spectrogram, new_figure, save_figure
from dymn.runtime.vocabulary import read_groups, relabel

GROUPS = Path(__file__).parents[1] / "examples" / "groups.toml"


def draw_readings(tagger: Tagger, audio: Path, path: Path) -> None:
    """Draw an inverted and a quiet recording as they are heard without and with the option that helps."""
    rate = tagger.sample_rate
    dog, frogs = (reading.read(audio / name, rate) for name in ("dog.ogg", "frogs.ogg"))
    panels = [
        ("two channels, one inverted", np.stack([dog, -0.99 * dog]), ReadSettings()),
        ("--channel left", np.stack([dog, -0.99 * dog]), ReadSettings(channel="left")),
        ("at -60 dBFS", frogs * np.float32(1e-3 / np.abs(frogs).max()), ReadSettings()),
        ("--gain auto", frogs * np.float32(1e-3 / np.abs(frogs).max()), ReadSettings(gain="auto")),
    ]
    figure = new_figure(9, 4.9)
    front_end = tagger.card.front_end
    for number, (title, samples, settings) in enumerate(panels):
        heard = reading.from_array(samples, rate, rate, settings=settings)
        best = tagger.tag(heard, rate, top_k=1)[0]
        axes = figure.add_subplot(2, 2, number + 1)
        draw_spectrogram(axes, array_log_mel(front_end)(heard)[0], front_end, len(heard) / rate)
        axes.set_title(f"{title}: {best.label} {best.score:.2f}", color=INK, loc="left", fontsize=12)
        axes.tick_params(labelsize=9, colors=SOFT)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.94, bottom=0.06, hspace=0.34, wspace=0.2)
    save_figure(figure, path, 100)


def draw_labels(tagger: Tagger, audio: Path, path: Path) -> None:
    """Draw the labels of one recording: those of the model, the most specific ones, a level, groups."""
    levels, groups = (
        Tagger(relabel(tagger.backend, level=1)),
        Tagger(relabel(tagger.backend, None, read_groups(GROUPS))),
    )
    panels = [
        ("dymn tag", tagger, TagSettings(6)),
        ("--specific", tagger, TagSettings(6, specific=True)),
        ("--level 1", levels, TagSettings(6)),
        ("--groups groups.toml", groups, TagSettings(6)),
    ]
    figure = new_figure(9, 4.5, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, hspace=0.06)
    for number, (title, used, settings) in enumerate(panels):
        (found,) = used.tag_files([audio / "dog.ogg"], settings)
        axes = figure.add_subplot(2, 2, number + 1)
        rows = np.arange(len(found.tags))
        axes.barh(rows, [tag.score for tag in found.tags], color="C0")
        axes.set_yticks(rows, [tag.label for tag in found.tags], fontsize=10, color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(title, color=INK, loc="left", fontsize=12)
        axes.tick_params(labelsize=9, colors=SOFT)
    save_figure(figure, path, 100)


def main() -> None:
    """Draw both pictures."""
    audio, images = map(Path, sys.argv[1:])
    tagger = Tagger.from_pretrained("dymn04_open", "cpu")
    draw_readings(tagger, audio, images / "recordings.png")
    draw_labels(tagger, audio, images / "labels.png")


if __name__ == "__main__":
    main()
