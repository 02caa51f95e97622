"""The memory of feature maps, and the receptive field of convolutions, both computed from shapes."""

from __future__ import annotations

from dataclasses import dataclass

from dymn.architectures import reads_context
from dymn.config import BlockConfig, FrontEndConfig, check
from dymn.profiling.counting import Map, place_names
from dymn.profiling.networks import Network, resolve

BYTES_PER_VALUE = 4  # float32


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of feature maps that must be held at once for one spectrogram, at the place where most are.

    `plain` holds input and output of one layer, and the block input where it is added at the end; batch norm and
    activation work in place. `in_place` uses what MobileNets allow at inference: a block's expanded channels are
    filtered and projected a few at a time, so that they are never held together, as long as nothing in the block must
    see all of them first.
    """

    plain: int
    plain_place: str
    in_place: int
    in_place_place: str


def peak_memory(
    model: Network, n_mels: int = 128, n_frames: int = 1000, bytes_per_value: int = BYTES_PER_VALUE
) -> PeakMemory:
    """Work out the peak of activation memory for one spectrogram [1, n_mels, n_frames].

    Raises:
        ConfigError: if a size is below 1; and as `resolve` does.
    """
    check(
        min(n_mels, n_frames, bytes_per_value) >= 1,
        f"n_mels, n_frames are {n_mels}, {n_frames}; both must be at least 1.",
    )
    config = resolve(model)
    places = place_names(config)
    spectrogram = Map(1, n_mels, n_frames)
    size = spectrogram.after(config.blocks[0].c_in, 2)
    plain, in_place = {places[0]: spectrogram.values + size.values}, {places[0]: spectrogram.values + size.values}
    for place, block in zip(places[1:-2], config.blocks, strict=True):
        plain[place], in_place[place] = _block_memory(block, size)
        size = size.after(block.c_out, *block.strides)
    last = size.after(config.c_last, 1)
    plain["last"] = size.values + last.values
    # each channel is averaged at once
    in_place["last"] = size.values + config.c_last if config.head == "mlp" else plain["last"]
    worst, tricked = max(plain, key=plain.__getitem__), max(in_place, key=in_place.__getitem__)
    return PeakMemory(plain[worst] * bytes_per_value, worst, in_place[tricked] * bytes_per_value, tricked)


def _block_memory(block: BlockConfig, x: Map) -> tuple[int, int]:
    """Return how many values a block holds at most, without and with the tricks."""
    expanded, filtered = x.after(block.c_exp, 1), x.after(block.c_exp, *block.strides)
    out = x.after(block.c_out, *block.strides)
    kept = x.values if block.has_residual else 0  # the input waits for the addition
    has_expansion = block.c_exp != block.c_in
    steps = [
        kept + (expanded.values if has_expansion else x.values * (not kept)) + filtered.values,
        kept + filtered.values + out.values,
    ]
    if has_expansion:
        steps.append(x.values + expanded.values)
    pools_expanded = block.attention is not None and not reads_context(block.attention)
    if block.is_dynamic and block.context == "own":  # the context of each part is taken from all its channels
        return max(steps), max(steps)
    one_channel = x.places + filtered.places
    if pools_expanded:
        return max(steps), max(x.values + filtered.values + one_channel, kept + filtered.values + out.values)
    return max(steps), x.values + out.values + one_channel


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a value of the last feature map through convolutions; contexts see the whole clip."""

    bands: int
    frames: int
    seconds: float


def receptive_field(model: Network, front_end: FrontEndConfig | None = None) -> ReceptiveField:
    """Return the receptive field of the convolutions; errors are those of `resolve`."""
    front_end = front_end or FrontEndConfig()
    reach, step = [3, 3], [2, 2]  # of the stem, along frequency and time
    for block in resolve(model).blocks:
        for axis in range(2):
            reach[axis] += (block.span - 1) * step[axis]
            step[axis] *= block.strides[axis]
    bands, frames = reach
    samples = (frames - 1) * front_end.hop_length + front_end.win_length
    return ReceptiveField(bands, frames, samples / front_end.sample_rate)
