"""Augmentation: what each part does, what it leaves as it is, and that the same chance gives the same result."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn.config import FrontEndConfig
from dymn.data import Batch
from dymn.errors import ConfigError
from dymn.models import frontend
from dymn.models.frontend import LogMel, mel_basis
from dymn.training import augment
from dymn.training.augment import (
    Crossing,
    Mixing,
    _played,
    blend_waveforms,
    change_speed,
    colour,
    cross,
    cut_short,
    draw_mixing,
    gain,
    mix_styles,
    mix_waveforms,
    reverberate,
    roll,
    spec_augment,
)
from dymn.training.losses import mix
from dymn.training.settings import AugmentSettings, OptimSettings, TeacherSettings, TrainConfig
from dymn.training.step import Share, Step

quick = settings(deadline=None, max_examples=40)


def waveforms(n=4, samples=50, seed=0):
    return torch.randn(n, samples, generator=torch.Generator().manual_seed(seed)) + 0.5


def test_roll_shifts_each_clip_around_its_end():
    x = torch.arange(10.0).repeat(3, 1)
    rolled = roll(x, np.array([2, -3, 0]))
    assert rolled[0].tolist() == [8, 9, 0, 1, 2, 3, 4, 5, 6, 7] and rolled[1].tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert torch.equal(rolled[2], x[2])


@quick
@given(st.lists(st.integers(-200, 200), min_size=4, max_size=4))
def test_roll_loses_nothing_and_can_be_undone(shifts):
    x = waveforms()
    rolled = roll(x, np.array(shifts))
    assert torch.equal(rolled.sort(dim=1).values, x.sort(dim=1).values)
    assert torch.equal(roll(rolled, -np.array(shifts)), x)


def test_a_clip_cut_short_is_silent_after_its_share():
    x = waveforms(3, 10)
    short = cut_short(x, np.array([0.25, 1.0, 0.6]))
    assert torch.equal(short[0, :3], x[0, :3]) and not short[0, 3:].any()
    assert torch.equal(short[1], x[1])
    assert torch.equal(short[2, :6], x[2, :6]) and not short[2, 6:].any()


def test_gain_in_decibels():
    x = waveforms(3)
    louder = gain(x, np.array([0.0, 20.0, -6.0206]))
    assert torch.equal(louder[0], x[0]) and louder.dtype == x.dtype
    torch.testing.assert_close(louder[1], 10 * x[1])
    torch.testing.assert_close(louder[2], x[2] / 2, rtol=1e-5, atol=1e-6)


@quick
@given(n=st.integers(1, 40), alpha=st.floats(0.05, 5), probability=st.floats(0, 1), seed=st.integers(0, 1000))
def test_mixing_keeps_at_least_half_and_permutes(n, alpha, probability, seed):
    first, again = (draw_mixing(n, alpha, np.random.default_rng(seed), probability) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sorted(first.partner.tolist()) == list(range(n))
    assert (first.share >= 0.5).all() and (first.share <= 1).all() and first.share.dtype == torch.float32


def test_how_often_clips_are_mixed():
    never, half, always = (draw_mixing(4000, 2.0, np.random.default_rng(0), p).share < 1 for p in (0.0, 0.5, 1.0))
    assert not never.any() and always.all() and 0.46 < half.float().mean() < 0.54


def test_strength_of_the_paper():
    """Beta(0.3, 0.3): shares near 1 are the most common; Beta(2, 2): near a half."""
    strong = draw_mixing(4000, 2.0, np.random.default_rng(0)).share
    weak = draw_mixing(4000, 0.3, np.random.default_rng(0)).share
    assert (weak > 0.9).float().mean() > 0.4 > 0.1 > (strong > 0.9).float().mean()


def test_mixed_waveforms_have_no_mean():
    x = waveforms()
    mixing = draw_mixing(4, 2.0, np.random.default_rng(1))
    mixed = mix_waveforms(x, mixing)
    assert mixed.mean(dim=1).abs().max() < 1e-6
    centred = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(mixed, mix(centred, mixing.partner, mixing.share), atol=1e-6, rtol=1e-5)


def test_spec_augment_covers_one_stripe_in_each_direction_with_the_mean():
    x = torch.randn(6, 1, 16, 30, generator=torch.Generator().manual_seed(0))
    chances = np.random.default_rng(2).random((6, 4))
    masked = spec_augment(x, 5, 8, chances)
    assert torch.equal(masked, spec_augment(x, 5, 8, chances)) and not torch.equal(masked, x)
    for before, after in zip(x[:, 0], masked[:, 0], strict=True):
        changed = before != after
        bands, frames = changed.all(dim=1), changed.all(dim=0)
        assert torch.equal(changed, bands[:, None] | frames[None, :])
        assert (after[changed] == before.mean()).all() or not changed.any()
        for stripe, longest in ((bands, 5), (frames, 8)):
            places = stripe.nonzero().flatten().tolist()
            assert len(places) <= longest and (not places or places == list(range(places[0], places[-1] + 1)))


@quick
@given(
    frequency=st.integers(0, 40),
    time=st.integers(0, 60),
    chances=st.lists(st.floats(0, 0.999999), min_size=4, max_size=4),
)
def test_spec_augment_within_any_size(frequency, time, chances):
    x = torch.arange(12 * 20.0).view(1, 1, 12, 20)
    masked = spec_augment(x, frequency, time, np.array([chances]))
    changed = masked != x
    assert masked.shape == x.shape and masked.dtype == x.dtype
    assert changed.all(dim=3).sum() <= max(min(frequency, 12), 12 * (time >= 20))
    if frequency == 0 and time == 0:
        assert torch.equal(masked, x)


def test_spec_augment_reaches_its_ends():
    x = torch.arange(12 * 20.0).view(1, 1, 12, 20)
    low = spec_augment(x, 3, 0, np.array([[0.999, 0.0, 0.0, 0.0]]))
    high = spec_augment(x, 3, 0, np.array([[0.999, 0.999, 0.0, 0.0]]))
    assert (low != x)[0, 0].all(dim=1).nonzero().flatten().tolist() == [0, 1, 2]
    assert (high != x)[0, 0].all(dim=1).nonzero().flatten().tolist() == [9, 10, 11]
    assert (spec_augment(x, 99, 0, np.array([[0.999, 0.5, 0.0, 0.0]])) == x.mean()).all()


def test_jitter_moves_the_filters_within_its_range():
    front_end = LogMel(FrontEndConfig())
    first, again, other = (front_end.jittered_basis(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == front_end.basis.shape
    tops = [
        int(front_end.jittered_basis(torch.Generator().manual_seed(seed)).any(dim=0).nonzero().max())
        for seed in range(40)
    ]
    lowest, highest = (
        int(mel_basis(front_end.config, 0.0, f_max).any(dim=0).nonzero().max()) for f_max in (14_001.0, 16_000.0)
    )
    assert lowest <= min(tops) < max(tops) <= highest
    still = LogMel(FrontEndConfig(f_min_range=1, f_max_range=1))
    assert torch.equal(still.jittered_basis(torch.Generator().manual_seed(3)), still.basis)


@quick
@given(
    world=st.sampled_from([1, 2, 3, 4]), per_process=st.integers(1, 6), bad=st.integers(0, 2), seed=st.integers(0, 99)
)
def test_every_process_takes_its_part_of_what_is_drawn(world, per_process, bad, seed):
    """All that is drawn for a batch is used once; clips are mixed with those of the same process."""
    size = world * per_process
    values = np.random.default_rng(seed).random(size)
    mixing = draw_mixing(size, 2.0, np.random.default_rng(seed))
    shares = [Share(rank, world) for rank in range(world)]
    assert sorted(np.concatenate([share.of(values, per_process) for share in shares])) == sorted(values)
    n = max(1, per_process - bad)
    for share in shares:
        part = share.of_mixing(mixing, n, torch.device("cpu"))
        assert sorted(part.partner.tolist()) == list(range(n)) and torch.equal(
            part.share, mixing.share[share.rank :: world][:n]
        )
    if world == 1:
        whole = shares[0].of_mixing(mixing, size, torch.device("cpu"))
        assert torch.equal(whole.partner, mixing.partner) and torch.equal(whole.share, mixing.share)


def test_another_speed_is_another_pitch_and_one_is_none():
    seconds = torch.arange(8000.0, dtype=torch.float64) / 8000
    x = torch.sin(2 * torch.pi * 400 * seconds).float().repeat(3, 1)
    played = change_speed(x, np.array([1.0, 1.25, 0.8]))
    assert torch.equal(played[0], x[0])
    assert torch.fft.rfft(played).abs().argmax(dim=1).tolist() == [400, 500, 320]
    expected = torch.sin(2 * torch.pi * 400 * (seconds * 1.25)).float()
    torch.testing.assert_close(played[1, 10:6000], expected[10:6000], atol=2e-3, rtol=0)


@given(n=st.integers(1, 40), factors=st.lists(st.floats(0.05, 20), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_clip_at_another_speed_is_interpolated_and_repeats_beyond_its_end(n, factors, seed):
    x = waveforms(len(factors), n, seed)
    played = change_speed(x, np.array(factors)).numpy()
    together = _played(x, np.array(factors)).numpy()  # as on a GPU
    assert np.array_equal(np.where(np.array(factors)[:, None] == 1, x, together), played)
    for clip, own, factor in zip(x.numpy().astype(np.float64), played, factors, strict=True):
        place = np.arange(n) * factor
        first, t = np.floor(place).astype(int), place % 1
        a, b, c, d = (clip[(first + i) % n] for i in (-1, 0, 1, 2))
        expected = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        np.testing.assert_allclose(own, clip if factor == 1 else expected, atol=1e-4)


def test_a_filter_changes_octaves_as_it_says():
    rate, n = 8000, 8000
    tones = torch.stack([torch.sin(2 * torch.pi * f * torch.arange(n) / rate) for f in (2000, 1000, 500)])
    decibels = np.tile([0.0, 6.0, -12.0, 3.0], (3, 1))
    level = colour(tones, decibels).square().mean(dim=1) / tones.square().mean(dim=1)
    torch.testing.assert_close(10 * level.log10(), torch.tensor([6.0, -12.0, 3.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(colour(tones, np.zeros((3, 4))), tones, atol=1e-5, rtol=0)


def test_a_room_follows_each_sound_and_decays():
    x = torch.zeros(2, 4000)
    x[:, 100] = 1.0
    heard = reverberate(x, np.array([1000.0, 1000.0]), np.array([0.5, 0.0]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(heard[1], x[1], atol=1e-6, rtol=0)
    echo = heard[0] - x[0]
    assert float(echo.square().sum()) == pytest.approx(0.25, rel=1e-3)
    assert echo[100:350].square().sum() > 20 * echo[600:850].square().sum() and echo[1200:].abs().max() < 1e-3


def test_blended_clips_keep_their_level_and_have_the_ratio_that_was_drawn():
    x = waveforms(3, 1000) * torch.tensor([[0.1], [1.0], [0.0]])
    blended, share = blend_waveforms(x, torch.tensor([1, 0, 1]), np.array([6.0, np.inf, 0.0]))
    assert torch.equal(blended[1], x[1]) and share[1] == 1
    level = x.square().mean(dim=1).sqrt()
    other = x[1] / level[1] * level[0] * 10 ** (-6 / 20)
    torch.testing.assert_close(blended[0], (x[0] + other) / (1 + 10 ** (-12 / 20)) ** 0.5, atol=1e-5, rtol=1e-4)
    assert float(share[0]) == pytest.approx(1 / (1 + 10 ** (-6 / 20)), rel=1e-5)
    assert blended.isfinite().all() and blended[2].abs().max() < 0.01


@pytest.mark.parametrize("range_", [1, 2, 500, 1001])
def test_jitter_is_centred_whatever_its_range(range_, monkeypatch):
    front_end, drawn = LogMel(FrontEndConfig(f_min_range=1, f_max_range=range_)), []
    monkeypatch.setattr(frontend, "mel_basis", lambda c, low, high: drawn.append(high) or front_end.basis)
    for seed in range(200):
        front_end.jittered_basis(torch.Generator().manual_seed(seed))
    lowest, highest = 15_000 + range_ // 2 - (range_ - 1), 15_000 + range_ // 2
    assert lowest <= min(drawn) <= max(drawn) <= highest
    assert max(drawn) - min(drawn) >= 0.9 * (range_ - 1) and abs(np.mean(drawn) - 15_000) <= 0.1 * range_ + 1


def inputs_of(batch, **augment):
    config = TrainConfig(augment=AugmentSettings(jitter=False, **augment), optim=OptimSettings(batch_size=4))
    step = Step(config, "bce", LogMel(n_mels=64), None, 1.0, Share())
    return step.inputs(batch, np.random.default_rng(3))


def batch_of(labels, mask):
    n = len(labels)
    nothing = torch.zeros(n, labels.shape[1])
    return Batch(waveforms(n, 32_000), labels, nothing, torch.zeros(n, dtype=torch.bool), mask, list("abcd"))


def test_the_public_order_of_masks_and_mixup():
    """EfficientAT: before the mixup, one mask for all clips, a log-mel of 0, which is 0.9 after the normalisation."""
    batch = batch_of(torch.ones(4, 2), torch.ones(4, 2))
    public, _ = inputs_of(batch, masking="public", frequency_mask=24, time_mask=40, spec_mixup=0.3)
    unmasked, _ = inputs_of(batch)
    masked = torch.isclose(public, torch.tensor(0.9), atol=1e-6)
    bands, frames = masked.all(dim=3), masked.all(dim=2)
    assert bands.any() and frames.any() and not bands.all() and not frames.all() and unmasked.shape == public.shape
    assert (bands == bands[:1]).all() and (frames == frames[:1]).all()
    own, _ = inputs_of(batch, frequency_mask=24, time_mask=40)
    assert not (own == unmasked).eq((own == unmasked)[:1]).all()  # each clip has stripes of its own


def test_the_public_rule_for_annotations():
    """EfficientAT on OpenMIC: united and rounded after the waveform mixup, the clip's own after the spectrogram's."""
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    batch = batch_of(torch.ones(4, 2), mask)
    _, united = inputs_of(batch, spec_mixup=0.3)
    _, public = inputs_of(batch, spec_mixup=0.3, annotation="public")
    assert torch.equal(public.mask, mask) and not torch.equal(united.mask, mask)
    assert torch.equal(public.labels, united.labels)
    _, united = inputs_of(batch, wave_mixup=1.0)
    _, public = inputs_of(batch, wave_mixup=1.0, annotation="public")
    assert torch.equal(public.mask, united.mask) and torch.equal(public.labels, (united.labels > 0.5).float())
    assert ((united.labels > 0) & (united.labels < 1)).any()
    with pytest.raises(ConfigError, match=r"augment\.annotation is 'other'; allowed: united, public"):
        AugmentSettings(annotation="other")


def test_a_temperature_softens_the_teacher():
    batch = batch_of(torch.ones(4, 2), torch.ones(4, 2))._replace(
        teacher=torch.full((4, 2), 3.0), has_teacher=torch.ones(4, dtype=torch.bool)
    )
    config = TrainConfig(optim=OptimSettings(batch_size=4), teacher=TeacherSettings(table="x", temperature=2.0))
    _, targets = Step(config, "bce", LogMel(), None, 1.0, Share()).inputs(batch, np.random.default_rng(0))
    assert targets.teacher.tolist() == torch.full((4, 2), 1.5).sigmoid().tolist()


def spectrograms(n=4, bands=32, frames=50):
    """Clips that differ in level and slope over bands, and in how they change over time."""
    x = torch.randn(n, 1, bands, frames, generator=torch.Generator().manual_seed(3)) * 0.1
    clip = torch.arange(float(n))[:, None, None, None]
    return x + clip * torch.linspace(-1, 1, bands)[:, None] + 0.5 * clip * torch.linspace(1, -1, frames)


def crossed(part, x, amount=1.0, edge=0.5):
    n = len(x)
    return cross(x, torch.arange(n).roll(1), np.full(n, part), np.full(n, amount), np.full(n, edge))


def test_a_crossed_clip_takes_a_part_of_another():
    x = 0.2 * spectrograms()
    other = x.roll(1, dims=0)
    assert torch.equal(crossed(Crossing.NOTHING, x), x)
    lower, upper = crossed(Crossing.LOWER_BANDS, x), crossed(Crossing.UPPER_BANDS, x)
    torch.testing.assert_close(lower + upper, x + other)
    apart = (x - other).abs().mean()
    for mixed, taken, kept in ((lower, slice(8), slice(-8, None)), (upper, slice(-8, None), slice(8))):
        assert (mixed - other)[:, :, taken].abs().mean() < 0.05 * apart
        assert (mixed - x)[:, :, kept].abs().mean() < 0.05 * apart

    spectrum = crossed(Crossing.SPECTRUM, x)
    inner = slice(8, -8)  # where the average over bands is complete, and the floor is not reached
    torch.testing.assert_close(spectrum.mean(dim=3)[1:, :, inner], other.mean(dim=3)[1:, :, inner], atol=0.02, rtol=0)
    change = spectrum[1] - x[1]
    usual = change.median(dim=2, keepdim=True).values
    assert ((change - usual).abs() > 1e-5).sum() <= 1  # the quietest value, which is taken for silence
    level = crossed(Crossing.LEVEL, x)[2]
    wanted = (other[2] - other[2].mean()).mean(dim=1)[0]  # [T]
    change = torch.where(level > x[2].amin(), level - x[2], wanted)  # where the floor is not reached
    torch.testing.assert_close(change[..., 4:-4], wanted[4:-4].expand_as(change[..., 4:-4]), atol=0.02, rtol=0)


def test_a_crossed_clip_takes_no_more_than_its_amount_and_leaves_silence():
    x = spectrograms()
    x[:, :, :, 40:] = x.amin() - 1.0  # silence after the sound
    for part in (Crossing.SPECTRUM, Crossing.LEVEL):
        changes = [(crossed(part, x, amount) - x)[:, :, :, :40] for amount in (0.1, 0.2)]
        torch.testing.assert_close(2 * changes[0], changes[1], atol=1e-5, rtol=0)
        assert changes[1].abs().amax() > 0.05
        assert (crossed(part, 100 * x) - 100 * x).abs().amax() == pytest.approx(augment.MOST, abs=1e-3)
        assert torch.equal(crossed(part, x)[:, :, :, 40:], x[:, :, :, 40:])


def test_crossed_and_reversed_batches():
    sound = torch.randn(4, 8_000, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 1, 8_000)
    batch = batch_of(torch.ones(4, 2), torch.ones(4, 2))._replace(waveform=sound)

    def made(**augment):
        config = TrainConfig(
            augment=AugmentSettings(jitter=False, **augment),
            optim=OptimSettings(batch_size=4),
            teacher=TeacherSettings(models=("mn04_as",), label_weight=0.0),
        )
        return Step(config, "bce", LogMel(), None, 1.0, Share()).inputs(batch, np.random.default_rng(0))[0]

    plain, backwards = made(), made(reverse=1.0)
    torch.testing.assert_close(backwards, LogMel()(sound.flip(1)))
    never, always = made(cross=1e-9), made(cross=1.0)
    assert torch.equal(never, plain) and torch.equal(made(cross=1.0), always)
    assert not any(torch.equal(a, b) for a, b in zip(always, plain, strict=True))


@pytest.mark.parametrize("teacher", [{}, {"models": ("mn04_as",)}, {"table": "logits.csv", "label_weight": 0.0}])
def test_only_an_online_teacher_labels_crossed_clips(teacher):
    with pytest.raises(ConfigError, match=r"augment\.cross .* teacher\.models"):
        TrainConfig(augment=AugmentSettings(cross=0.1), teacher=TeacherSettings(**teacher))


def test_mixed_styles_are_those_of_the_bands():
    x = (
        torch.randn(3, 1, 8, 200, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]
        + torch.arange(8.0)[:, None]
    )
    mixing = Mixing(torch.tensor([1, 2, 0]), torch.tensor([0.25, 1.0, 0.0]))
    mixed = mix_styles(x, mixing)
    torch.testing.assert_close(mixed[1], x[1], atol=1e-5, rtol=1e-5)  # a share of 1 keeps the clip
    for statistic in (torch.mean, torch.std):
        own, found = (statistic(values, dim=(1, 3)) for values in (x, mixed))
        torch.testing.assert_close(found[2], own[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[0], 0.25 * own[0] + 0.75 * own[1], atol=1e-4, rtol=1e-4)
    never, always = (inputs_of(batch_of(torch.ones(4, 2), torch.ones(4, 2)), mixstyle=p)[0] for p in (1e-9, 1.0))
    plain, _ = inputs_of(batch_of(torch.ones(4, 2), torch.ones(4, 2)))
    torch.testing.assert_close(never, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(always, plain, atol=1e-3)
