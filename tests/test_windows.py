import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dymn.audio.windows import FILLS, cut, fill


def samples(n):
    return np.arange(1, n + 1, dtype=np.float32)


def blocks(array, size):
    return [array[i : i + size] for i in range(0, len(array), size)]


@given(n=st.integers(0, 300), length=st.integers(1, 60), hop=st.integers(1, 90), size=st.integers(1, 100))
def test_windows_are_slices_that_miss_and_repeat_nothing_they_should_not(n, length, hop, size):
    array = samples(n)
    windows = list(cut(blocks(array, size), length, hop))
    joined = length // 10
    assert [window.start for window in windows] == [i * hop for i in range(len(windows))]
    for window in windows:
        np.testing.assert_array_equal(window.samples, array[window.start : window.start + len(window.samples)])
    assert all(len(window.samples) == length for window in windows[:-1])
    if n == 0:
        assert windows == []
        return
    assert 1 <= len(windows[-1].samples) <= length + joined
    if len(windows) > 1:
        assert len(windows[-1].samples) > joined
    end = windows[-1].start + len(windows[-1].samples)
    if hop <= length:
        assert end == n
        assert len(windows) == 1 or n - (windows[-2].start + length) > joined, "the last window has something new"
    else:
        assert n - end <= max(hop - length, 0) + joined


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (5, [(0, 5)]),
        (10, [(0, 10)]),
        (10.03, [(0, 10.03)]),
        (11, [(0, 11)]),
        (11.5, [(0, 10), (10, 11.5)]),
        (25, [(0, 10), (10, 20), (20, 25)]),
        (20.5, [(0, 10), (10, 20.5)]),
    ],
)
def test_a_small_rest_joins_the_window_before_it(seconds, expected):
    rate = 100
    spans = [
        (window.start / rate, (window.start + len(window.samples)) / rate)
        for window in cut(blocks(samples(round(seconds * rate)), 77), 10 * rate, 10 * rate)
    ]
    assert spans == expected


def test_windows_come_while_the_stream_goes_on():
    taken = []

    def stream():
        for i in range(100):
            taken.append(i)
            yield np.zeros(100, np.float32)

    first = next(cut(stream(), 200, 100))
    assert len(first.samples) == 200
    assert len(taken) < 5


def test_fills():
    array = samples(3)
    assert set(FILLS) == {"repeat", "pad", "bare"}
    assert fill(array, 7, "repeat").tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert fill(array, 5, "pad").tolist() == [1, 2, 3, 0, 0]
    assert fill(array, 5, "bare").tolist() == [1, 2, 3]
    for how in FILLS:
        assert fill(array, 3, how) is array
        assert fill(array, 2, how) is array
        assert fill(array, 9, how).dtype == np.float32
