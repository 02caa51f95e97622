"""The settings of a training run: frozen dataclasses, built from nested mappings with names and types checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dymn.config import check, check_choice, check_number, check_numbers, from_dict, shown

AUTO = "auto"
SAMPLINGS = ("plain", "balanced", "teacher")
CLASS_WEIGHTS = ("none", "balanced")
MASKINGS = ("clip", "public")
ANNOTATIONS = ("united", "public")
TRAINING_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class ModelSettings:
    """The initial network.

    `name` is an architecture (random weights) or anything that `load_model` accepts (fine-tuning; the last layer is
    replaced if the classes differ). `inherit` names a static network, of the same width or wider, whose weights
    initialise a dynamic one. For an architecture, `settings` are those of `dymn.architectures.Variant`; `front_end` are
    those of `FrontEndConfig`. With `prior`, the bias of a new last layer is initialised to the prior of the targets.
    """

    name: str = "dymn10"
    inherit: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    front_end: dict[str, Any] = field(default_factory=dict)
    prior: bool = True


@dataclass(frozen=True)
class DataSettings:
    """The dataset (a key of `dymn.data.TASKS`, or "auto"), its splits, and the windows of its clips.

    `seconds` 0 is the dataset's clip length. An empty split name leaves the split out; with "auto", `val` and `test`
    use the split if it exists. `resident` keeps all decoded clips in the device's memory (16 bits per sample) and
    creates batches there. With `whole`, validation and test clips of up to a minute are evaluated in one window,
    otherwise in windows of `seconds`; None follows the dataset's protocol (see `TaskSpec`).

    With `test_epochs`, the test clips are also evaluated after each of this number of last epochs, and the means are
    reported next to the final metrics, as in the paper; they are not used for any selection.

    An epoch has as many clips as the dataset, or `draws`, if not 0, but at least `least_draws`. `sampling` "plain" uses
    every clip, in several passes if necessary. "balanced" (at most 100,000 clips without `draws`) draws rare classes
    more often, with replacement unless there are more than twice as many clips as draws. "teacher" is for data without
    labels and draws clips by the online teachers' predictions: a quarter of the draws uniformly, the others such that
    rare classes count as much as common ones.
    """

    kind: str = "folder"
    path: str = ""
    train: str = "train"
    val: str = "val"
    test: str = "test"
    fold: int = 0
    holdout: float | None = None
    seconds: float = 0.0
    fill: str = "pad"
    whole: bool | None = None
    sampling: str = "plain"
    draws: int = 0
    least_draws: int = 0
    cache: str = ""
    workers: int = 0
    resident: bool = False
    max_bad: float = 0.05
    test_epochs: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("data.sampling", self.sampling, SAMPLINGS)
        check_numbers(self, {"data.seconds": 3600, "data.max_bad": 1})
        counts = {"data.draws": 2**40, "data.least_draws": 2**40, "data.workers": 1024, "data.fold": 2**31}
        check_numbers(self, counts | {"data.test_epochs": 10**6}, whole=True)
        check(
            self.val != "test",
            "data.val is 'test', but the test clips must not be used to select the checkpoint. Set data.holdout or "
            "data.val = ''.",
        )
        check(self.train not in (self.val, self.test), f"data.train is {self.train!r}, which is also evaluated.")
        if self.holdout is not None:
            check_number("data.holdout", self.holdout, 0, 1)
        check(self.holdout != 1, "data.holdout is 1; it must be below 1.")
        check(
            self.whole is None or isinstance(self.whole, bool),
            f"data.whole is {shown(self.whole)}; it must be true or false.",
        )


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher. Offline (as in the paper): logits from `table`. Online: `models` receive the augmented, mixed input.

    `label_weight` is lambda of eq. 8. `feature_weight` adds the squared distance between the embeddings of student and
    (first online) teacher, in units of the teacher's variance, `block_weight` that between the outputs of their blocks,
    a mean over the blocks. With `head`, the student's head is a copy of that teacher's and is not trained (Chen et al.,
    2022). With `calibrate`, the logits of the best checkpoint are scaled and shifted at the end, equally for all
    classes, to fit the teacher's probabilities on the validation clips. `index` is the index of a published `.npy`
    table. `temperature` divides the teacher's logits before probabilities are computed.
    """

    table: str = ""
    index: str = ""
    partial: bool = False
    models: tuple[str, ...] = ()
    head: bool = False
    label_weight: float = 0.1
    feature_weight: float = 0.0
    block_weight: float = 0.0
    calibrate: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("teacher.temperature", self.temperature, 1e-3, 1e3)
        check(
            not (self.table and self.models),
            "teacher.table and teacher.models are both set; a teacher is offline or online.",
        )
        check(
            not self.table.endswith(".npy") or bool(self.index),
            f"teacher.table is {self.table}, an .npy file without the names of its clips. Set teacher.index to the "
            ".csv or .pkl file that states which row belongs to which clip.",
        )
        check(
            all(isinstance(name, str) for name in self.models),
            f"teacher.models is {shown(self.models)}; it must be a list of names.",
        )
        check_number("teacher.label_weight", self.label_weight, 0, 1)
        for name in ("feature_weight", "block_weight"):
            check_number(f"teacher.{name}", getattr(self, name), 0, 1e6)
            check(
                getattr(self, name) == 0 or bool(self.models),
                f"teacher.{name} needs an online teacher (teacher.models).",
            )
        check(not self.head or bool(self.models), "teacher.head needs an online teacher (teacher.models).")
        check(not self.calibrate or self.is_present, "teacher.calibrate needs a teacher.")

    @property
    def is_present(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.table or self.models)


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation; 0 disables a part.

    `wave_mixup` is the probability of waveform mixup, `spec_mixup` the alpha of Beta(alpha, alpha) for spectrograms.

    `padding` is the share of clips that end early, after at least a tenth of their length, followed by silence, like
    short recordings that are padded with zeros. `shortest`: each batch is cut to a length between this and
    `data.seconds`, in whole seconds. `speed`: half of the clips are played faster or slower by up to this share (0.2:
    by a factor of 1.2). `colour_db`: a random filter changes each octave by up to this number of decibels. `room` is
    the share of clips with reverberation, `blend` the share of clips that are mixed with another clip, which is at most
    `blend_db` softer or louder. `reverse` is the share of clips that are played backwards, with what fills them to
    their length. `cross` is the share of clips whose spectrograms take a part of another clip: its lower or upper
    bands, or 30 to 100 % of its mean spectrum or of the changes of its level. It requires `teacher.models`, which label
    the result, and `teacher.label_weight` = 0.

    `mixstyle` is the probability with which the spectrograms of a batch exchange means and standard deviations in every
    band, in shares drawn from Beta(`mixstyle_alpha`, `mixstyle_alpha`). `masking` "clip" masks each spectrogram after
    mixup, in its own stripes, with the clip's mean; "public" masks like EfficientAT, before mixup, in the same stripes
    for the whole batch, with a log-mel of 0 before normalisation. `annotation` "united" uses, for a mixture, the
    classes that are annotated for either clip; "public" is EfficientAT's rule for OpenMIC: the same for waveform mixup,
    followed by rounding of the targets, but only the clip's own annotation after spectrogram mixup.
    """

    roll_ms: float = 0.0
    gain_db: float = 0.0
    wave_mixup: float = 0.0
    wave_alpha: float = 2.0
    padding: float = 0.0
    shortest: float = 0.0
    speed: float = 0.0
    colour_db: float = 0.0
    room: float = 0.0
    blend: float = 0.0
    blend_db: float = 12.0
    reverse: float = 0.0
    cross: float = 0.0
    spec_mixup: float = 0.0
    jitter: bool = True
    frequency_mask: int = 0
    time_mask: int = 0
    mixstyle: float = 0.0
    mixstyle_alpha: float = 0.4
    masking: str = "clip"
    annotation: str = "united"

    def __post_init__(self) -> None:
        check_choice("augment.masking", self.masking, MASKINGS)
        check_choice("augment.annotation", self.annotation, ANNOTATIONS)
        limits = {"roll_ms": 3_600_000, "shortest": 3600, "speed": 10, "spec_mixup": 1000}
        limits |= dict.fromkeys(("gain_db", "colour_db", "blend_db"), 120)
        limits |= dict.fromkeys(("wave_mixup", "padding", "room", "blend", "reverse", "cross", "mixstyle"), 1)
        check_numbers(self, {f"augment.{name}": high for name, high in limits.items()})
        check_numbers(self, {"augment.frequency_mask": 2**20, "augment.time_mask": 2**20}, whole=True)
        check_numbers(self, {"augment.wave_alpha": 1000, "augment.mixstyle_alpha": 1000}, 1e-3)


@dataclass(frozen=True)
class OptimSettings:
    """The optimiser.

    `batch_size` is the total over all processes and accumulated parts. `ema` is the decay of averaged weights; 0
    disables them.

    With `norm_clips`, the statistics of batch norm are measured again on this number of training clips before weights
    are evaluated and saved; `norm_momentum` is the momentum of the running statistics (0: unchanged). With
    `freeze_norms`, batch norm uses its running statistics in training as well, and they are not updated.

    The first `freeze` blocks and the stem are not trained; with all blocks, only the head is trained. The learning rate
    is `lr` for the head, or the last part that is trained, and `layer_decay` times that of the next part for each part
    before it. `label_smoothing` smooths the labels; with `class_weights` "balanced", the labels of rare classes have
    the same weight as those of common ones.
    """

    name: str = "adam"
    lr: float = 1e-3
    batch_size: int = 120
    accumulate: int = 1
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    norm_clips: int = 0
    norm_momentum: float = 0.0
    freeze: int = 0
    freeze_norms: bool = False
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, ("adam", "adamw"))
        check_choice("optim.precision", self.precision, TRAINING_PRECISIONS)
        check_choice("optim.class_weights", self.class_weights, CLASS_WEIGHTS)
        check_number("optim.lr", self.lr, 1e-12, 1000)
        check_number("optim.layer_decay", self.layer_decay, 1e-6, 1)
        shares = dict.fromkeys(("optim.ema", "optim.norm_momentum", "optim.label_smoothing"), 1)
        check_numbers(self, {"optim.weight_decay": 1000, "optim.clip_norm": 1e6, **shares})
        for name in ("ema", "label_smoothing"):
            check(getattr(self, name) < 1, f"optim.{name} is 1; it must be below 1.")
        check_numbers(self, {"optim.batch_size": 2**20, "optim.accumulate": 2**20}, 1, whole=True)
        check_numbers(self, {"optim.norm_clips": 2**20, "optim.freeze": 2**20}, whole=True)
        check(
            not (self.freeze_norms and self.norm_momentum),
            "optim.norm_momentum has no effect with optim.freeze_norms. Set only one of them.",
        )
        for name in ("freeze", "freeze_norms"):
            check(
                not (getattr(self, name) and self.norm_clips),
                f"optim.norm_clips would change the norms that optim.{name} keeps. Set only one of them.",
            )
        check(
            self.batch_size % self.accumulate == 0,
            f"optim.batch_size is {self.batch_size}; it must be a multiple of optim.accumulate ({self.accumulate}).",
        )


@dataclass(frozen=True)
class ScheduleSettings:
    """Epochs, learning rate and temperature (Sec. IV-A.2, IV-A.3); see `dymn.training.schedules`.

    With `seconds`, the schedule follows the clock: the run ends after that time, and the position in the schedule is
    the elapsed share of it. The number of epochs, and therefore the result, depends on the machine.

    The temperature falls from `tau_start` to `tau_end` over `tau_epochs`. Without `tau_start`, it depends on the
    network (see `dymn.training.start.with_temperature`): dynamic convolutions with random weights start at 30, and
    checkpoints keep their temperature.
    """

    epochs: int = 80
    warm_up: float = 10.0
    ramp_start: float = 10.0
    ramp_length: float = 65.0
    floor: float = 0.01
    tau_start: float | None = None
    tau_end: float = 1.0
    tau_epochs: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, {"schedule.epochs": 10**6, "schedule.tau_epochs": 10**6}, 1, whole=True)
        lengths = dict.fromkeys(("schedule.warm_up", "schedule.ramp_start", "schedule.ramp_length"), 1e6)
        check_numbers(self, {**lengths, "schedule.floor": 1, "schedule.seconds": 1e9})
        for name in ("tau_start", "tau_end"):
            if getattr(self, name) is not None:
                check_number(f"schedule.{name}", getattr(self, name), 1e-6, 1e6)
        check(
            self.tau_start is not None or self.tau_end == 1.0,
            f"schedule.tau_end is {self.tau_end}, and schedule.tau_start is not set. Set both.",
        )


@dataclass(frozen=True)
class RunSettings:
    """Output folder and device.

    `name` is the model's name in the checkpoint's card. With `seeds`, the run is repeated with each of them instead of
    `seed` (see `dymn.training.repeats`). The state is saved after each epoch and every `save_steps` steps (0: only
    after epochs); an interrupted run loses the work since then.
    """

    out: str = ""
    name: str = ""
    seed: int = 0
    seeds: tuple[int, ...] = ()
    device: str = ""
    threads: int = 0
    sync_norm: bool = True
    trackers: tuple[str, ...] = ()
    licence: str = ""
    save_steps: int = 1000

    def __post_init__(self) -> None:
        check_numbers(self, {"run.seed": 2**63 - 1, "run.threads": 1024, "run.save_steps": 2**40}, whole=True)
        for seed in self.seeds:
            check_number("run.seeds", seed, 0, 2**63 - 1, whole=True)
        check(len(set(self.seeds)) == len(self.seeds), f"run.seeds is {shown(self.seeds)}; it contains a seed twice.")
        unknown = [name for name in self.trackers if name not in ("tensorboard", "wandb")]
        check(not unknown, f"run.trackers names {shown(unknown)}; allowed: tensorboard, wandb.")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        check(
            not (self.data.test_epochs and self.schedule.seconds),
            "data.test_epochs cannot be combined with schedule.seconds, with which the last epochs are not known in "
            "advance.",
        )
        check(
            self.data.test_epochs <= self.schedule.epochs,
            f"data.test_epochs is {self.data.test_epochs}, but the run has {self.schedule.epochs} epochs "
            "(schedule.epochs). Set data.test_epochs to a smaller number, or use more epochs.",
        )
        check(
            self.data.sampling != "teacher" or bool(self.teacher.models),
            "data.sampling is 'teacher', which needs an online teacher (teacher.models).",
        )
        check(
            not self.augment.cross or (bool(self.teacher.models) and self.teacher.label_weight == 0),
            f"augment.cross is {self.augment.cross}, which makes sounds that only an online teacher can label. Set "
            "teacher.models (instead of teacher.table) and teacher.label_weight=0.",
        )
        blocks = self.teacher.block_weight > 0
        check(not (blocks and self.optim.compile), "teacher.block_weight cannot be combined with optim.compile.")

    NESTED = {
        "model": ModelSettings,
        "data": DataSettings,
        "teacher": TeacherSettings,
        "augment": AugmentSettings,
        "optim": OptimSettings,
        "schedule": ScheduleSettings,
        "run": RunSettings,
    }

    def replace(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Return these settings with changes such as {"optim.lr": 1e-4}.

        Raises:
            ConfigError: if a setting is unknown or a value is not allowed.
        """
        return parse(merged(dataclasses.asdict(self), changes))

    def with_epochs(self, epochs: int) -> TrainConfig:
        """Return these settings with another number of epochs and the schedule scaled to it.

        Raises:
            ConfigError: if `epochs` is below 1.
        """
        schedule = self.schedule
        factor = epochs / schedule.epochs
        scaled = {name: round(getattr(schedule, name) * factor, 3) for name in ("warm_up", "ramp_start", "ramp_length")}
        scaled |= {"epochs": epochs, "tau_epochs": max(1, round(schedule.tau_epochs * factor))}
        return self.replace({f"schedule.{name}": value for name, value in scaled.items()})


def parse(values: Mapping[str, Any]) -> TrainConfig:
    """Build settings from nested mappings, checking names and types.

    Raises:
        ConfigError: naming the setting that is not allowed.
    """
    for section, settings in values.items():
        kind = TrainConfig.NESTED.get(section)
        check(kind is not None, f"A recipe has no section [{section}]. Allowed: {', '.join(TrainConfig.NESTED)}.")
        check(isinstance(settings, Mapping), f"[{section}] must be a table of settings, not {shown(settings)}.")
        defaults = kind()  # type: ignore[misc]
        for name, value in settings.items():
            check(hasattr(defaults, name), f"[{section}] has no setting {name}. Allowed: {', '.join(vars(defaults))}.")
            _check_type(f"{section}.{name}", value, getattr(defaults, name))
    return from_dict(TrainConfig, {section: dict(settings) for section, settings in values.items()})


def _check_type(name: str, value: Any, default: Any) -> None:
    if default is None:
        return
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        tuple: isinstance(value, (list, tuple)),
        dict: isinstance(value, Mapping),
    }[type(default)]
    check(fits, f"{name} is {shown(value)}; it must be of type {type(default).__name__}, such as {default!r}.")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with changes such as {"optim.lr": 1e-4}.

    Raises:
        ConfigError: if a key is not a setting.
    """
    found = {section: dict(settings) for section, settings in values.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        check(bool(name), f"{key!r} is not a setting. Write section.setting=value, such as optim.lr=1e-4.")
        target = found.setdefault(section, {})
        *parents, last = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            check(isinstance(target, dict), f"{key!r} is not a setting: {parent} is not a table.")
        target[last] = value
    return found
