"""The network of Table I; DyMN and MN are two settings of it (Sec. III)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dymn.architectures import HEADS, model_config
from dymn.config import ModelCard, ModelConfig, check, check_choice
from dymn.errors import ConfigError, WeightsError
from dymn.models.blocks import InvertedResidual
from dymn.models.heads import FrameHead as FrameHead
from dymn.models.heads import FullyConvolutionalHead, smoothed
from dymn.models.heads import MLPHead as MLPHead
from dymn.models.heads import Output as Output
from dymn.models.layers import DynamicConv2d
from dymn.models.layers.context import BatchNorm2d
from dymn.models.layers.norm import normalised
from dymn.models.pretrained import Pretrained, as_array
from dymn.system.arrays import Array
from dymn.system.devices import resolve_device
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.efficientat import read_efficientat
from dymn.weights.efficientsed import read_efficientsed
from dymn.weights.files import DownloadProgress
from dymn.weights.format import Stored
from dymn.weights.labels import labels_for, numbered_labels
from dymn.weights.registry import EFFICIENTSED_FRONT_END

PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


class ConvNormAct(nn.Sequential):
    """Static convolution, batch norm, hard swish: the first and the last convolution of Table I."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(c_out)
        self.activation = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F', T']."""
        return normalised(self.conv(x), self.norm, self.activation)


class MobileNet(Pretrained):
    """The network of Table I. The config defines which blocks are dynamic; `forward` is the same for all networks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_choice("head", config.head, HEADS)
        self.config = config
        self.stem = ConvNormAct(config.in_chans, config.blocks[0].c_in, kernel_size=3, stride=2)
        self.blocks = nn.Sequential(*(InvertedResidual(block) for block in config.blocks))
        self.last = ConvNormAct(config.blocks[-1].c_out, config.c_last, kernel_size=1, stride=1)
        self.head = HEADS[config.head](config)
        self.temperature = config.temperature

    def features(self, log_mel: Tensor) -> Tensor:
        """Return the last feature map [B, D, F', T'] of log-mel spectrograms [B, in_chans, F, T]."""
        return self.last(self.blocks(self.stem(log_mel)))  # type: ignore[no-any-return]

    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of log-mel spectrograms [B, in_chans, n_mels, frames] of any size.

        Raises:
            ConfigError: if the input does not have four dimensions with the network's number of channels (by default,
                one).
        """
        check_log_mel(log_mel, self.config.in_chans)
        return self.head.output(self.features(log_mel))  # type: ignore[no-any-return]

    def frame_logits(self, features: Tensor, smoothing: int = 1) -> Tensor:
        """Return logits [B, T', C] of the frames of the last feature map, averaged over `smoothing` (odd) frames."""
        return self.head.frames(smoothed(features, smoothing))  # type: ignore[no-any-return]

    def scores(self, features: Tensor, embedding: Tensor, smoothing: int = 1) -> tuple[Tensor, Tensor]:
        """Return `frame_logits` and the logits [B, C] of clips, from the last feature map and its mean."""
        return self.head.scores(features, embedding, smoothed(features, smoothing))  # type: ignore[no-any-return]

    @property
    def time_stride(self) -> int:
        """Number of frames of the spectrogram per frame of the last feature map."""
        return self.config.time_stride

    def check_clips(self) -> None:
        """Reject a frame-wise network whose head for clips has not been trained, so that its `logits` are meaningless.

        Raises:
            ConfigError: naming the model.
        """
        sequence = self.config.sequence
        check(
            sequence is None or sequence.scores == "clip",
            f"{self.card.name or 'This network'} scores frames; its head for clips has not been trained. Use it with "
            "dymn events or dymn tag.",
        )

    def feature_maps(self, log_mel: Tensor) -> list[Tensor]:
        """Return the outputs of the first convolution, of each block and of the last convolution, each [B, C, F', T'].

        There are 17 for the networks of Table I: block i of 15 is number i + 1, the last is what `features` returns.
        """
        maps = [log_mel]
        for layer in (self.stem, *self.blocks, self.last):
            maps.append(layer(maps[-1]))
        return maps[1:]

    @property
    def temperature(self) -> float:
        """The temperature of the kernel attention (eq. 2). Setting it changes every block and the config."""
        return self.config.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.config = dataclasses.replace(self.config, temperature=float(value))
        for module in self.modules():
            if isinstance(module, DynamicConv2d):
                module.temperature = float(value)

    def reset_classifier(self, classes: int | Sequence[str], *, generator: torch.Generator | None = None) -> MobileNet:
        """Replace the last layer by a randomly initialised one for other classes, and return the network.

        Configuration and card are updated; the card's metrics and provenance are removed, because they belong to other
        weights.

        Args:
            classes: names of the classes, or their number (class_0, class_1 ...).
            generator: generator of the random weights; by default, PyTorch's global one.

        Raises:
            ConfigError: if there are no classes.

        Example:
            >>> model = dymn.load_model("dymn04_open").reset_classifier(["dog", "cat"])
            >>> model.card.labels
            ('dog', 'cat')
        """
        labels = numbered_labels(classes) if isinstance(classes, int) else tuple(classes)
        check(len(labels) > 0, "A network needs at least one class.")
        check(
            self.config.sequence is None,
            "A frame-wise network keeps its classes. For others, start from an architecture such as fmn04.",
        )
        fresh = MobileNet(dataclasses.replace(self.config, num_classes=len(labels))).initialise(generator)
        fresh.to(next(self.parameters()).device)
        self.config, self.head.classifier = fresh.config, fresh.head.classifier
        if isinstance(self.head, FullyConvolutionalHead):
            self.head.norm = cast(FullyConvolutionalHead, fresh.head).norm
        self.head.train(self.training)
        self.card = dataclasses.replace(self.card, labels=labels, metrics={}, provenance={})
        return self

    def reset_input(self, in_chans: int) -> MobileNet:
        """Adapt the first convolution to another number of input channels; return the network.

        From one channel to N, the kernel is divided by N and repeated for each channel, so that equal spectrograms in
        all channels give the original output. From N channels to one, the kernels are added. The card's metrics and
        provenance are removed, because they belong to other weights.

        Raises:
            ConfigError: if neither number is one.

        Example:
            >>> model = dymn.load_model("dymn04_open").reset_input(2)
            >>> model(torch.zeros(1, 2, 128, 1000)).logits.shape
            torch.Size([1, 527])
        """
        now = self.config.in_chans
        if in_chans == now:
            return self
        check(1 in (now, in_chans), f"in_chans is {now} and cannot be changed to {in_chans}; one of the two must be 1.")
        self.config = dataclasses.replace(self.config, in_chans=in_chans)
        conv, kernel = self.stem.conv, self.stem.conv.weight.detach()
        conv.in_channels = in_chans
        shared = kernel.sum(dim=1, keepdim=True) / in_chans
        conv.weight = nn.Parameter(shared.repeat(1, in_chans, 1, 1), requires_grad=conv.weight.requires_grad)
        self.card = dataclasses.replace(self.card, metrics={}, provenance={})
        return self

    def initialise(self, generator: torch.Generator | None = None) -> MobileNet:
        """Initialise the weights: convolutions Kaiming normal (fan out, per kernel), linear layers N(0, 0.01)."""
        for module in self.modules():
            if isinstance(module, DynamicConv2d):
                for kernel in module.weight.data:
                    nn.init.kaiming_normal_(kernel, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return self


def check_log_mel(log_mel: Tensor, in_chans: int) -> None:
    """Raise a `ConfigError` unless an input is [B, in_chans, n_mels, frames]."""
    if log_mel.ndim != 4 or log_mel.shape[1] != in_chans:
        raise ConfigError(f"log_mel has shape {list(log_mel.shape)}; it must be [B, {in_chans}, n_mels, frames].")


def create_model(
    name: str, num_classes: int = 527, *, generator: torch.Generator | None = None, **overrides: Any
) -> MobileNet:
    """Build a randomly initialised network, such as `create_model("dymn10", num_classes=50, n_kernels=2)`.

    Args:
        name: an architecture, see `architectures`; "dymn_s", "dymn_m" and "dymn_l" are the paper's sizes.
        num_classes: number of classes.
        generator: generator of the random weights; by default, PyTorch's global one.
        overrides: settings of `Variant`, by name, such as in_chans=2 for spectrograms of two channels.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is not allowed.
    """
    return MobileNet(model_config(name, num_classes=num_classes, **overrides)).initialise(generator)


def load_model(
    name_or_path: str | Path,
    *,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = "cpu",
    progress: DownloadProgress | None = None,
) -> MobileNet:
    """Load a model with its weights, in evaluation mode.

    `.card` contains front end, labels, metrics and the file's SHA-256.

    Args:
        name_or_path: a name, a file, a folder or a repository of the Hub, as in `dymn.weights.open_checkpoint`.
        num_classes: number of classes of another task; the last layer is then replaced by a randomly initialised one
            (see `MobileNet.reset_classifier`).
        labels: names of these classes.
        in_chans: number of input channels; the first convolution is adapted by `MobileNet.reset_input`.
        device: device of the model, such as "cpu" or "cuda:0"; by default, the first CUDA device, otherwise the CPU.
        progress: called during a download with the number of bytes received and the total, which is None if unknown.

    Raises:
        WeightsError: if there is no such model, or it cannot be downloaded or read, or does not fit its network.
        ConfigError: if the device cannot be used, or the numbers of classes and labels differ.

    Example:
        >>> dymn.load_model("dymn04_open").card.labels[0]
        'Speech'
    """
    place = resolve_device(device)
    if labels is not None:
        check(
            num_classes in (None, len(labels)),
            f"num_classes is {num_classes}, but there are {len(labels)} labels. Leave num_classes out.",
        )
    model = MobileNet.from_stored(open_checkpoint(name_or_path, progress=progress))
    wanted: int | Sequence[str] | None = num_classes if labels is None else tuple(labels)
    if wanted not in (None, model.config.num_classes, model.card.labels):
        model.reset_classifier(wanted)
    if in_chans is not None:
        model.reset_input(in_chans)
    return model.to(place)


def import_efficientat(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    *,
    temperature: float = 1.0,
    strides: Sequence[int] = (2, 2, 2, 2),
    attention: str | None = "ca",
    dilated: bool = False,
) -> MobileNet:
    """Build the network of a published state dict, with its weights, in evaluation mode.

    The file determines width, classes, head, K, M, the sizes of contexts and r of Squeeze-and-Excitation, but not
    temperature, strides, dilation, and whether Coordinate Attention is applied, which are arguments. With wrong values,
    the network runs but its results are wrong. The same applies to the front end (hop and number of mel bands) in the
    card.

    Args:
        path_or_state_dict: a file saved by `torch.save`, read without executing pickled code, or the mapping itself.
        temperature: temperature of the kernel attention: 1 for AudioSet models, 30 for ImageNet models.
        strides: strides of blocks 2, 4, 7 and 13; (2, 2, 2, 1) for files named "s2221".
        attention: attention of the dynamic blocks: "ca", or None (or "none") for a DyMN trained with `no_ca`, whose
            file nevertheless contains the tensors of the attention.
        dilated: whether the network is an MN with dilated kernels in its last three blocks (`dilated`).

    Raises:
        WeightsError: if the file cannot be read, or does not fit; the message names missing and extra tensors.
        ConfigError: if `temperature`, `strides`, `attention` or `dilated` are not allowed.

    Example:
        >>> import_efficientat("no_ca.pt", attention=None)  # doctest: +SKIP
    """
    source = path_or_state_dict if isinstance(path_or_state_dict, (str, Path)) else _arrays(path_or_state_dict)
    config, state = read_efficientat(
        source, temperature=temperature, strides=strides, attention=attention, dilated=dilated
    )
    return MobileNet.from_stored(Stored(config, ModelCard(labels=numbered_labels(config.num_classes)), state))


def import_efficientsed(path_or_state_dict: str | Path | Mapping[str, Tensor], *, seq_len: int = 250) -> MobileNet:
    """Build the frame-wise network of a state dict of EfficientSED, with its weights, in evaluation mode.

    Called with log-mel spectrograms [B, 1, 128, T], it returns `frame_logits` [B, seq_len, C] of the strong head,
    `logits` [B, C] of the weak head, and `embedding` [B, D], the averaged last feature map. If a file has only one of
    the two heads, it computes both.

    Args:
        path_or_state_dict: a file saved by `torch.save`, read without executing pickled code, or the mapping itself.
        seq_len: number of frames of the output, independent of the length of the spectrogram.

    Raises:
        WeightsError: if the file cannot be read, or does not fit; the message names missing and extra tensors.
        ConfigError: if `seq_len` is not allowed.

    Example:
        >>> model = import_efficientsed("fmn10+tf-256_strong.pt")  # doctest: +SKIP
        >>> model(torch.zeros(1, 1, 128, 1000)).frame_logits.shape  # doctest: +SKIP
        torch.Size([1, 250, 447])
    """
    source = path_or_state_dict if isinstance(path_or_state_dict, (str, Path)) else _arrays(path_or_state_dict)
    config, state = read_efficientsed(source, length=seq_len)
    card = ModelCard(front_end=EFFICIENTSED_FRONT_END, labels=labels_for(config.num_classes, framewise=True))
    return MobileNet.from_stored(Stored(config, card, state))


def _arrays(state: object) -> dict[str, Array]:
    """Return a mapping of names to plain tensors as arrays, or raise a `WeightsError` for any other content."""
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise WeightsError("The state dict must map names to tensors and contain nothing else.")
    for name, tensor in state.items():
        plain = (
            tensor.layout is torch.strided and tensor.dtype in PLAIN_TYPES and not (tensor.is_nested or tensor.is_meta)
        )
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"The state dict: {name} is not a plain tensor of numbers ({tensor.dtype}, {tensor.layout})."
            )
    return {name: as_array(tensor) for name, tensor in state.items()}
