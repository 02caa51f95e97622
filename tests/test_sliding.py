"""Windows that share frames have the spectrograms that they have alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn.audio.windows import FILLS, cut, fill
from dymn.config import FrontEndConfig
from dymn.native.log_mel import ArrayLogMel, array_log_mel
from dymn.runtime.sliding import SlidingLogMel

FRONT_ENDS = (
    FrontEndConfig(),
    FrontEndConfig(hop_length=160, n_mels=40),
    FrontEndConfig(sample_rate=8_000, n_fft=256, win_length=255, hop_length=48, n_mels=16, f_max=4_000.0),
    FrontEndConfig(n_fft=512, win_length=512, hop_length=600),
    FrontEndConfig(n_fft=1000, win_length=800),  # not compiled
)


class Counted(ArrayLogMel):
    """Counts the frames that are computed."""

    frames_done = 0

    def __init__(self):
        super().__init__(FrontEndConfig())

    def columns(self, frames, n_threads=1):
        self.frames_done += len(frames)
        return super().columns(frames)


def recording(n, seed):
    """A tone with noise, loud and soft by turns: quiet bands of loud frames show every rounding."""
    random = np.random.default_rng(seed)
    loudness = np.repeat(10.0 ** random.integers(-5, 1, n // 500 + 1), 500)[:n]
    return (loudness * (np.sin(np.arange(n) * random.uniform(0.01, 1)) + 0.01 * random.normal(size=n))).astype(
        np.float32
    )


def sliding_log_mels(front_end, blocks, length, hop, how="repeat"):
    sliding = SlidingLogMel(front_end, hop)
    for _, samples in cut(blocks, length, hop):
        yield sliding(fill(samples, length, how), len(samples))


def in_blocks(samples, size):
    return [samples[i : i + size] for i in range(0, len(samples), size)]


@settings(deadline=None, max_examples=60)
@given(
    which=st.integers(0, len(FRONT_ENDS) - 1), n=st.integers(1, 20_000), length=st.integers(100, 9_000),
    frames=st.integers(1, 12), off=st.sampled_from([0, 0, 0, 1, 37]), size=st.integers(500, 20_000),
    how=st.sampled_from(sorted(FILLS)), seed=st.integers(0, 9),
)  # fmt: skip
def test_equal_to_the_direct_path(which, n, length, frames, off, size, how, seed):
    front_end = array_log_mel(FRONT_ENDS[which])
    samples = recording(n, seed)
    hop = max(frames * front_end.config.hop_length + off, length // 20)
    hop = hop // front_end.config.hop_length * front_end.config.hop_length + off
    windows = list(cut(in_blocks(samples, size), length, hop))
    heard = list(sliding_log_mels(front_end, in_blocks(samples, size), length, hop, how))
    for window, expected in zip(heard, windows, strict=True):
        direct = front_end(fill(expected.samples, length, how))
        assert window.shape == direct.shape
        assert np.abs(window - direct).max() <= 1e-6


@pytest.mark.parametrize("hop", [32_000, 64_000])
def test_no_frame_is_computed_twice_but_those_at_the_ends(hop):
    front_end = Counted()
    length, n = 160_000, 32_000 * 17
    windows = list(sliding_log_mels(front_end, [recording(n, 0)], length, hop))
    frames = n // 320
    assert len(windows) == 1 + (n - length) // hop
    edges = 3 * (len(windows) - 1)  # 0, 1 and the last
    assert front_end.frames_done <= frames + edges
    assert sum(window.shape[2] for window in windows) > 2 * frames


def test_a_hop_between_frames_shares_nothing():
    front_end = Counted()
    windows = list(sliding_log_mels(front_end, [recording(64_000, 0)], 32_000, 16_001))
    assert front_end.frames_done == sum(window.shape[2] for window in windows)
