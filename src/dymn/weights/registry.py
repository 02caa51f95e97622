"""The registry of published models: file, network, front end and accuracy of each.

The models of EfficientAT, and those of EfficientSED, are assets of one public release each (MIT licence). Parameters
and multiply-adds (for 10 s of audio) are written down so that a listing needs no network built; the tests compare them
with what is counted. Importing this module imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dymn.config import FrontEndConfig
from dymn.errors import UnknownModelError
from dymn.weights.ensembles import COMMANDS, members

WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth")
RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
STANDARD_FRONT_END = FrontEndConfig()
EFFICIENTSED_FRONT_END = FrontEndConfig(
    sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, f_max=7_000.0, log_offset=0.0, log_floor=1e-7
)
EFFICIENTSED_RELEASE = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/"
UNTRAINED = "ImageNet, last layer random"  # torchvision's weights, prepared for AudioSet's classes
DATASET_CLASSES = {"AudioSet": 527, "AudioSet Strong": 447, "ImageNet": 1000, UNTRAINED: 527}


@dataclass(frozen=True)
class PublishedModel:
    """One model with weights.

    `architecture` is a key of `dymn.architectures.MODELS`; `file` the name of its file in the cache, or in this package
    where `packaged`; `macs` counts the multiply-adds for 10 s of audio; `mean_ap` is the mAP on AudioSet's evaluation
    set from 0 to 1, None where it is not published; `sha256` and `size` (bytes) are None where they are not known.
    Frame-wise networks have a `sequence` model with `sequence_size` values a frame, and `psds`, the PSDS1 on AudioSet
    Strong from 0 to 1, which is the mean over several trainings.
    """

    name: str
    architecture: str
    file: str
    parameters: int
    macs: int
    mean_ap: float | None = None
    dataset: str = "AudioSet"
    front_end: FrontEndConfig = STANDARD_FRONT_END
    head: str = "mlp"
    strides: tuple[int, ...] = (2, 2, 2, 2)
    licence: str = "MIT"
    url: str = ""
    sha256: str | None = None
    size: int | None = None
    packaged: bool = False
    psds: float | None = None
    sequence: str = "none"
    sequence_size: int = 256

    @property
    def num_classes(self) -> int:
        """How many classes the model scores."""
        return DATASET_CLASSES[self.dataset]

    @property
    def temperature(self) -> float:
        """The temperature of the kernel attention that the model was trained down to."""
        return 30.0 if self.dataset == "ImageNet" else 1.0

    @property
    def is_framewise(self) -> bool:
        """Whether the network is one of EfficientSED, whose classes are those of frames."""
        return self.head == "frames"

    @property
    def scores(self) -> str:
        """The head of a frame-wise network that has been trained."""
        return "frames" if self.dataset == "AudioSet Strong" else "clip"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of `dymn.create_model` besides the architecture."""
        framewise = ("sequence", "sequence_size", "scores") if self.is_framewise else ()
        names = ("num_classes", "head", "strides", "temperature", *framewise)
        return {name: getattr(self, name) for name in names}

    @property
    def size_limit(self) -> int:
        """An upper bound of the file's size in bytes: the weights as float32, and room for statistics and names."""
        return self.size or 5 * self.parameters + 2**20


def _model(
    name: str, architecture: str, file: str, parameters: int, macs: int, mean_ap: float | None = None, **more: Any
) -> PublishedModel:
    return PublishedModel(name, architecture, file, parameters, macs, mean_ap, url=RELEASE + file, **more)


def _mn40(name: str, file: str, mean_ap: float) -> PublishedModel:
    return _model(name, "mn40", file, 68_427_303, 8_027_611_904, mean_ap)


def _imagenet(architecture: str, parameters: int, macs: int) -> PublishedModel:
    return _model(f"{architecture}_im", architecture, f"{architecture}_im.pt", parameters, macs, dataset="ImageNet")


def _framewise(
    architecture: str,
    sequence: str,
    parameters: int,
    macs: int,
    psds: float | None = None,
    *,
    kind: str = "strong",
    file: str = "",
) -> PublishedModel:
    """Return a model of EfficientSED; `sequence` is "none", or such as "tf-256"."""
    model, _, size = sequence.partition("-")
    tail = "" if model == "none" else f"+{sequence}"
    name = f"{architecture}{tail}_{kind}".replace("+", "_").replace("-", "")
    file = file or f"{architecture}{tail}_{kind}.pt"
    return PublishedModel(
        name, architecture, file, parameters, macs, psds=psds, sequence=model, sequence_size=int(size or 256),
        dataset="AudioSet" if kind == "weak" else "AudioSet Strong", head="frames", front_end=EFFICIENTSED_FRONT_END,
        url=EFFICIENTSED_RELEASE + file,
    )  # fmt: skip


def _hop(milliseconds: int) -> FrontEndConfig:
    return FrontEndConfig(hop_length=32 * milliseconds)


def _mels(number: int) -> FrontEndConfig:
    return FrontEndConfig(n_mels=number)


OPEN02_SHA256 = "146caa4c2ff71921e77a24493170b58c39e66f732b9a83ea3f74c0bebc8c2d0c"
OPEN04_SHA256 = "5ec87513ff3cd6a7a3522b87f8c5307a7889cca0f5ad11d804bad51e00bf5cac"
MN04_SHA256 = "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"
PUBLISHED = (
    PublishedModel(
        "dymn04_open", "dymn04", "dymn04_open.safetensors", 1_961_239, 117_432_704,
        sha256=OPEN04_SHA256, size=4_098_700, packaged=True,
    ),
    PublishedModel(
        "dymn02_open", "dymn02", "dymn02_open.safetensors", 610_199, 42_195_712,
        sha256=OPEN02_SHA256, size=1_351_124, packaged=True,
    ),
    _model("dymn04_as", "dymn04", "dymn04_as.pt", 1_961_239, 117_432_704, 0.450),
    _model("dymn10_as", "dymn10", "dymn10_as.pt", 10_548_479, 581_672_832, 0.477),
    _model("dymn20_as", "dymn20", "dymn20_as_mAP_493.pt", 39_966_143, 2_220_951_552, 0.493),
    # the mAP of this one is that of an older README of EfficientAT
    _model("dymn20_as_1", "dymn20", "dymn20_as.pt", 39_966_143, 2_220_951_552, 0.491),
    _model("dymn20_as_2", "dymn20", "dymn20_as_mAP_489.pt", 39_966_143, 2_220_951_552, 0.489),
    _model("dymn20_as_3", "dymn20", "dymn20_as_mAP_490.pt", 39_966_143, 2_220_951_552, 0.490),
    _model("dymn04_replace_se_as", "dymn04_replace_se", "dymn04_replace_se_as.pt", 1_829_287, 115_995_520),
    _model("dymn10_replace_se_as", "dymn10_replace_se", "dymn10_replace_se_as.pt", 9_833_935, 574_425_664),
    _model("mn01_as", "mn01", "mn01_as_mAP_298.pt", 123_783, 18_146_304, 0.298),
    _model("mn02_as", "mn02", "mn02_as_mAP_378.pt", 324_695, 40_316_544, 0.378),
    _model("mn04_as", "mn04", "mn04_as_mAP_432.pt", 983_599, 110_643_072, 0.432, sha256=MN04_SHA256, size=4_066_513),
    _model("mn05_as", "mn05", "mn05_as_mAP_443.pt", 1_431_239, 159_964_672, 0.443),
    _model("mn10_as", "mn10", "mn10_as_mAP_471.pt", 4_876_831, 541_078_208, 0.471),
    _model("mn20_as", "mn20", "mn20_as_mAP_478.pt", 17_909_287, 2_059_375_488, 0.478),
    _model("mn30_as", "mn30", "mn30_as_mAP_482.pt", 39_086_367, 4_554_880_320, 0.482),
    _mn40("mn40_as", "mn40_as_mAP_484.pt", 0.484),
    _mn40("mn40_as_2", "mn40_as_mAP_483.pt", 0.483),
    _mn40("mn40_as_3", "mn40_as_mAP_483(2).pt", 0.483),
    _mn40("mn40_as_ext", "mn40_as_ext_mAP_487.pt", 0.487),
    _mn40("mn40_as_ext_2", "mn40_as_ext_mAP_486.pt", 0.486),
    _mn40("mn40_as_ext_3", "mn40_as_ext_mAP_485.pt", 0.485),
    _mn40("mn40_as_no_im_pre", "mn40_as_no_im_pre_mAP_483.pt", 0.483),
    _mn40("mn40_as_no_im_pre_2", "mn40_as_no_im_pre_mAP_483(2).pt", 0.483),
    _mn40("mn40_as_no_im_pre_3", "mn40_as_no_im_pre_mAP_482.pt", 0.482),
    _model("mn10_as_hop_5", "mn10", "mn10_as_hop_5_mAP_475.pt", 4_876_831, 1_071_419_200, 0.475, front_end=_hop(5)),
    _model("mn10_as_hop_15", "mn10", "mn10_as_hop_15_mAP_463.pt", 4_876_831, 361_174_656, 0.463, front_end=_hop(15)),
    _model("mn10_as_hop_20", "mn10", "mn10_as_hop_20_mAP_456.pt", 4_876_831, 274_342_912, 0.456, front_end=_hop(20)),
    _model("mn10_as_hop_25", "mn10", "mn10_as_hop_25_mAP_447.pt", 4_876_831, 218_516_800, 0.447, front_end=_hop(25)),
    _model("mn10_as_mels_40", "mn10", "mn10_as_mels_40_mAP_453.pt", 4_876_831, 208_038_048, 0.453, front_end=_mels(40)),
    _model("mn10_as_mels_64", "mn10", "mn10_as_mels_64_mAP_461.pt", 4_876_831, 272_244_384, 0.461, front_end=_mels(64)),
    _model(
        "mn10_as_mels_256", "mn10", "mn10_as_mels_256_mAP_474.pt", 4_876_831, 1_078_745_856, 0.474,
        front_end=_mels(256),
    ),
    _model("mn10_as_fc", "mn10", "mn10_as_fc_mAP_465.pt", 3_478_638, 603_932_608, 0.465, head="fully_convolutional"),
    _model(
        "mn10_as_fc_s2221", "mn10", "mn10_as_fc_s2221_mAP_466.pt", 3_478_638, 1_147_718_848, 0.466,
        head="fully_convolutional", strides=(2, 2, 2, 1),
    ),
    _model(
        "mn10_as_fc_s2211", "mn10", "mn10_as_fc_s2211_mAP_466.pt", 3_478_638, 3_978_019_200, 0.466,
        head="fully_convolutional", strides=(2, 2, 1, 1),
    ),
    _imagenet("dymn04", 2_203_888, 117_674_880),
    _imagenet("dymn10", 11_154_392, 582_278_272),
    _imagenet("dymn20", 41_177_496, 2_222_162_432),
    _imagenet("mn01", 184_800, 18_206_848),
    _imagenet("mn02", 446_256, 40_437_632),
    _imagenet("mn04", 1_226_248, 110_885_248),
    _imagenet("mn05", 1_734_432, 160_267_392),
    _imagenet("mn10", 5_482_744, 541_683_648),
    _imagenet("mn20", 19_120_640, 2_060_586_368),
    _imagenet("mn30", 40_903_160, 4_556_696_640),
    _imagenet("mn40", 70_849_536, 8_030_033_664),
    _model("mn10_im_pytorch", "mn10", "mn10_im_pytorch.pt", 4_876_831, 541_078_208, dataset=UNTRAINED),
    _framewise("fmn04", "none", 921_918, 231_922_176, kind="weak"),
    _framewise("fmn06", "none", 1_707_342, 452_475_392, kind="weak"),
    _framewise("fmn10", "none", 3_984_558, 1_074_357_120, kind="weak"),
    _framewise("fmn20", "none", 13_666_614, 3_878_190_336, kind="weak"),
    _framewise("fmn30", "none", 29_035_694, 8_411_488_128, kind="weak"),
    _framewise("fmn04", "none", 860_318, 224_211_456, 0.3952),
    _framewise("fmn04", "tf-104", 912_022, 293_884_296, 0.4010),
    _framewise("fmn04", "gru-104", 1_204_670, 329_264_784, 0.4081),
    _framewise("fmn04", "hybrid-104", 1_041_026, 326_124_296, 0.4137),
    _framewise("fmn06", "none", 1_615_022, 440_909_312, 0.4075),
    _framewise("fmn06", "tf-160", 1_954_814, 611_515_360, 0.4178),
    _framewise("fmn06", "gru-160", 2_557_358, 704_026_880, 0.4037),
    _framewise("fmn06", "hybrid-160", 2_259_518, 687_675_360, 0.4254),
    _framewise("fmn10", "none", 3_830_798, 1_055_080_320, 0.4228),
    _framewise("fmn10", "tf-128", 3_607_198, 1_123_268_416, 0.4275),
    _framewise("fmn10", "tf-256", 5_028_254, 1_495_773_632, 0.4386),
    _framewise(
        "fmn10", "tf-256", 5_028_254, 1_495_773_632, 0.4525,
        kind="kd_strong", file="fmn10+tf-256_advanced-kd-weak-strong.pt",
    ),
    _framewise("fmn10", "tf-512", 10_229_662, 2_830_608_064, 0.4411),
    _framewise("fmn10", "tf-1024", 30_069_662, 7_859_572_928, 0.4455),
    _framewise("fmn10", "gru-128", 4_334_990, 1_258_717_632, 0.4313),
    _framewise("fmn10", "gru-256", 6_483_854, 1_766_672_064, 0.4353),
    _framewise("fmn10", "gru-512", 13_140_878, 3_372_404_928, 0.4396),
    _framewise("fmn10", "gru-1024", 35_892_110, 8_943_166_656, 0.4450),
    _framewise("fmn10", "hybrid-128", 3_801_806, 1_171_908_416, 0.4345),
    _framewise("fmn10", "hybrid-256", 5_810_702, 1_691_357_632, 0.4405),
    _framewise("fmn10", "hybrid-512", 13_367_438, 3_614_992_064, 0.4432),
    _framewise("fmn10", "hybrid-1024", 42_636_686, 11_001_204_928, 0.4448),
    _framewise("fmn20", "none", 13_359_254, 3_839_636_736, 0.4386),
    _framewise("fmn20", "tf-512", 19_391_398, 5_630_335_360, 0.4513),
    _framewise("fmn20", "gru-512", 24_760_214, 6_786_532_224, 0.4494),
    _framewise("fmn20", "hybrid-512", 22_529_174, 6_414_719_360, 0.4544),
    _framewise("fmn30", "none", 28_574_734, 8_353_657_728, 0.4424),
    _framewise("fmn30", "tf-768", 43_078_814, 12_403_673_664, 0.4564),
    _framewise("fmn30", "gru-768", 54_818_446, 15_059_568_960, 0.4577),
    _framewise("fmn30", "hybrid-768", 50_144_782, 14_170_073_664, 0.4567),
)  # fmt: skip


class Registry(dict[str, PublishedModel]):
    """Models by their names, which may also be spelled as in EfficientAT: "dymn20_as(1)" is dymn20_as_1."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(own_name(name))

    def __missing__(self, name: str) -> PublishedModel:
        if name not in self:
            raise KeyError(name)
        return self[own_name(name)]


def own_name(name: str) -> str:
    """Return a name in dymn's spelling: "mn40_as(2)" is mn40_as_2."""
    return re.sub(r"\((\d)\)$", r"_\1", name)


REGISTRY: dict[str, PublishedModel] = Registry((model.name, model) for model in PUBLISHED)


@dataclass(frozen=True)
class PublishedFile:
    """A file of the release that is no model; the fields are those of `PublishedModel`."""

    file: str
    size_limit: int
    sha256: str | None = None
    size: int | None = None
    packaged: bool = False

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file

    @property
    def url(self) -> str:
        """Where it is published."""
        return RELEASE + self.file


# the mean logits of nine PaSST for AudioSet's clips (Sec. IV-B), and the row of each YouTube id
TEACHER_FILES = {
    published.file: published
    for published in (
        PublishedFile("passt_enemble_logits_mAP_495.npy", 2**31),
        PublishedFile("fname_to_index.pkl", 2**28),
    )
}


N_NAMED = 13  # models in a message: those of the tables in README, and their variants


def unknown_model(name: str, architectures: Collection[str] = ()) -> UnknownModelError:
    """Return the error for a name that is no file, folder or entry, with similar names unless it is that of a file.

    `architectures` are proposed too, where they are allowed.
    """
    if len(members(name)) > 1:
        *commands, last = COMMANDS
        return UnknownModelError(
            f"{name} is an ensemble of models, which only dymn {', '.join(commands)} and {last} support. Give a single "
            "model."
        )
    if Path(name).suffix in WEIGHTS_ENDINGS:
        return UnknownModelError(
            f"There is no file {name}. Give the path of a checkpoint, or the name of a model with weights."
        )
    similar = difflib.get_close_matches(name, [*architectures, *REGISTRY], n=3)
    also = f" The architectures are: {', '.join(architectures)}." if architectures else ""
    first = list(REGISTRY)[:N_NAMED]
    others = f"{len(REGISTRY) - N_NAMED} others, which `dymn models` lists"
    proposal = f"The models with weights are: {', '.join(first)} and {others}.{also}"
    if similar:
        proposal = f"Did you mean {' or '.join(similar)}?"
    kinds = "model with weights or architecture" if architectures else "model with weights"
    return UnknownModelError(f"There is no file, folder or {kinds} called {name!r}. {proposal}")
