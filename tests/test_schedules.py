"""Learning rate and temperature at named epochs of the paper's two schedules, and what holds for any."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dymn.training.schedules import learning_rate_factor, temperature

PRE_TRAINING = {"warm_up": 8, "ramp_start": 80, "ramp_length": 95, "floor": 0.01}  # 200 epochs
FINE_TUNING = {"warm_up": 10, "ramp_start": 10, "ramp_length": 65, "floor": 0.01}  # 80 epochs


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, math.exp(-5 * (1 - 0.5 / 8) ** 2)),  # 0.0124
        (1, math.exp(-5 * (7 / 8) ** 2)),
        (4, math.exp(-1.25)),
        (7, math.exp(-5 / 64)),
        (8, 1.0),
        (50, 1.0),
        (80, 1.0),
        (81, 1 - 0.99 / 95),
        (127.5, 0.505),
        (174, 0.01 + 0.99 / 95),
        (175, 0.01),
        (199, 0.01),
    ],
)
def test_pre_training(epoch, factor):
    assert learning_rate_factor(epoch, **PRE_TRAINING) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, math.exp(-5 * 0.95**2)),
        (5, math.exp(-1.25)),
        (9, math.exp(-0.05)),
        (10, 1.0),
        (11, 1 - 0.99 / 65),
        (42.5, 0.505),
        (75, 0.01),
        (79, 0.01),
    ],
)
def test_fine_tuning(epoch, factor):
    assert learning_rate_factor(epoch, **FINE_TUNING) == pytest.approx(factor, rel=1e-12)


def test_the_last_25_and_the_last_5_epochs_are_at_the_floor():
    assert sum(learning_rate_factor(epoch, **PRE_TRAINING) == pytest.approx(0.01) for epoch in range(200)) == 25
    assert sum(learning_rate_factor(epoch, **FINE_TUNING) == pytest.approx(0.01) for epoch in range(80)) == 5


@pytest.mark.parametrize(("epoch", "tau"), [(0, 30), (1, 29), (10, 20), (28, 2), (29, 1), (30, 1), (199, 1)])
def test_temperature_from_30_to_1_in_the_first_30_epochs(epoch, tau):
    assert temperature(epoch, start=30, end=1, epochs=30) == pytest.approx(tau, rel=1e-12)


def test_no_warm_up_no_ramp_no_annealing():
    plain = {"warm_up": 0, "ramp_start": 100, "ramp_length": 0, "floor": 0.1}
    assert [learning_rate_factor(epoch, **plain) for epoch in (0, 1, 100)] == [1, 1, 1]
    assert learning_rate_factor(101, **plain) == pytest.approx(0.1)
    assert [temperature(epoch, start=30, end=1, epochs=n) for epoch, n in ((0, 1), (0, 0), (5, 1))] == [1, 1, 1]


schedules = st.fixed_dictionaries(
    {
        "warm_up": st.floats(0, 50),
        "ramp_start": st.floats(50, 100),
        "ramp_length": st.floats(0, 100),
        "floor": st.floats(0, 1),
    }
)


@given(schedule=schedules, a=st.floats(0, 300), b=st.floats(0, 300))
def test_rises_then_falls_within_bounds(schedule, a, b):
    early, late = sorted((a, b))
    first, second = learning_rate_factor(early, **schedule), learning_rate_factor(late, **schedule)
    assert all(min(schedule["floor"], math.exp(-5)) - 1e-12 <= factor <= 1 for factor in (first, second))
    if late <= schedule["ramp_start"]:
        assert first <= second
    if early >= schedule["warm_up"]:
        assert first >= second - 1e-12
    if early >= schedule["ramp_start"] + schedule["ramp_length"] and early > schedule["ramp_start"]:
        assert first == pytest.approx(schedule["floor"], abs=1e-12)


@given(start=st.floats(0.1, 100), end=st.floats(0.1, 100), epochs=st.integers(0, 100), epoch=st.integers(0, 200))
def test_temperature_goes_one_way_and_stays(start, end, epochs, epoch):
    here, there = (temperature(e, start=start, end=end, epochs=epochs) for e in (epoch, epoch + 1))
    assert min(start, end) - 1e-9 <= here <= max(start, end) + 1e-9
    assert abs(there - end) <= abs(here - end) + 1e-9
    if epoch >= epochs - 1:
        assert here == end
    elif epoch == 0:
        assert here == start


def test_the_public_schedule_of_the_temperature_is_the_papers_at_its_defaults():
    """EfficientAT: the higher of 30 - e and of a slow slope of 0.02 that meets it at 1, at least 1."""
    for epoch in range(200):
        public = max(30 - epoch, 1 + 0.02 * 29 - 0.02 * epoch, 1)
        assert temperature(epoch, start=30, end=1, epochs=30) == pytest.approx(public)
