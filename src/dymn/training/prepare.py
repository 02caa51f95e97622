"""The preparation of a run before its first epoch."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import dymn
from dymn.config import FrontEndConfig
from dymn.data import Dataset, Loader, Resident, class_counts, heard_weights
from dymn.data.batch import read_bad
from dymn.errors import ConfigError, DataError
from dymn.evaluation.score import probabilities
from dymn.evaluation.teachers import OnlineTeachers, same_blocks
from dymn.models.frontend import LogMel
from dymn.models.inflate import have_same_channels
from dymn.models.mobilenet import MobileNet
from dymn.system.files import atomic_write
from dymn.training.distributed import ClipNetwork, launch, use_global_norm
from dymn.training.inputs import (
    check_calibration,
    check_classes,
    check_independent,
    check_table,
    differences,
    digests,
    open_inputs,
    open_models,
    other_run,
    quiet_loader,
    run_digest,
    training_loader,
)
from dymn.training.losses import balanced_weights
from dymn.training.parts import freeze, parameter_groups, set_momentum
from dymn.training.report import Reporter, Tracker, write_json
from dymn.training.resolve import resolve, with_folder
from dymn.training.settings import TrainConfig
from dymn.training.start import (
    front_end_of,
    has_fresh_head,
    inherit_weights,
    prior_logits,
    set_prior,
    starting_model,
    with_temperature,
)
from dymn.training.state import RunState, load_state
from dymn.training.step import Share, Step

NARROWING_CLIPS = 288  # to which a narrower network is fitted
SAMPLE_CLIPS = 96  # for inherited weights, the teacher's prior and the spread of its embedding
STATE_FILE, LAST_FILE, BAD_FILE = "state.pt", "last.safetensors", "bad_clips.csv"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "draws.npy"  # how often each training clip is drawn


class Prepared:
    """A training run before its first epoch: data, teachers, network, optimiser, and the state that it resumes."""

    def __init__(self, config: TrainConfig, reporter: Reporter, data: Dataset | None = None) -> None:
        config = with_folder(config)
        config, data = resolve(config) if data is None else (config, data)
        self.config, self.folder = config, Path(config.run.out)
        self.fabric, self.share = self._processes()
        self.reporter = reporter if self.is_main else Reporter()
        models = open_models(config)
        self.config = config = with_temperature(config, models.start)
        if config.optim.freeze_norms and models.start is None and models.parent is None:
            raise ConfigError(
                "optim.freeze_norms needs a network whose norms have statistics: a checkpoint (--model, model.name) or "
                "model.inherit."
            )
        front_end = front_end_of(config.model, models.start)
        self.inputs = open_inputs(config, data, front_end.sample_rate)
        notes = check_classes(self.inputs, config.teacher.is_present)
        for sentence in notes + check_table(self.inputs, config.data.fill, config.teacher.label_weight):
            self.reporter.note(sentence)
        self.resident = Resident(self.inputs.train, self.device, config.data.workers) if config.data.resident else None
        self.digests = digests(self.inputs) | models.digests
        self.state = self._begin_or_continue()
        self._began = time.monotonic() - self.state.clock
        self.network = self._network(models.start, front_end)
        self.front_end = LogMel(front_end).to(self.device)
        self.teachers = self._teachers(models.teachers)
        self.weights = self._weights()
        self.loader = self._loader(self.share.rank, self.share.world)
        feature_scale = self._prepare_weights(models.parent)
        if config.teacher.head and not self.state.model:
            self.network.head.load_state_dict(models.teachers[0].head.state_dict())
        kind, weights = self.inputs.task.loss, self._class_weights()
        self.step = Step(config, kind, self.front_end, self.teachers, feature_scale, self.share, weights)
        self.ema = self._averaged()
        if config.teacher.block_weight:
            self.step.watch_blocks(self.network)
        self.model, self.optimizer = self._set_up()
        self._restore()
        self.trackers = [
            Tracker(kind, self.folder, dataclasses.asdict(config), config.run.name)
            for kind in config.run.trackers
            if self.is_main
        ]

    # Setting up

    def _processes(self) -> tuple[Any, Share]:
        """Find the device, and this process's place among those that train together."""
        if self.config.run.threads:
            torch.set_num_threads(self.config.run.threads)
        fabric = launch(self.config)
        return fabric, Share(fabric.global_rank, fabric.world_size)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return cast(torch.device, self.fabric.device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that evaluates and writes."""
        return self.share.rank == 0

    def _network(self, start: MobileNet | None, front_end: FrontEndConfig) -> MobileNet:
        generator = torch.Generator().manual_seed(self.config.run.seed)
        return starting_model(self.config.model, start, self.inputs.train.labels, front_end, generator).to(self.device)

    def _begin_or_continue(self) -> RunState:
        digest = run_digest(self.config, self.digests)
        path = self.folder / STATE_FILE
        if self.is_main:
            for unfinished in self.folder.glob(".*.part"):  # what a kill in the middle of writing left
                unfinished.unlink()
        if path.exists():
            state = load_state(path)
            # Settings at their defaults are not part of the digest, and another version can have other defaults.
            changed = differences(self.folder / CONFIG_FILE, self.config, self.digests)
            if changed or state.digest != digest:
                raise other_run(self.folder, changed)
            within = f" and {state.part['steps']} steps of the next" if state.part else ""
            self.reporter.note(f"Resuming {self.folder} after epoch {state.epoch}{within}.")
            return state
        if self.config.teacher.calibrate:
            check_calibration(self.inputs)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if differences(self.folder / CONFIG_FILE, self.config, self.digests):
                (self.folder / WEIGHTS_FILE).unlink(missing_ok=True)  # of another run, killed before its first state
            write_json(
                self.folder / CONFIG_FILE,
                {"config": dataclasses.asdict(self.config), "data": self.digests, "versions": versions()},
            )
        return RunState(digest=digest)

    def _teachers(self, models: Sequence[MobileNet]) -> OnlineTeachers | None:
        if not models:
            return None
        if models[0].card.exclusive:
            check_independent(self.inputs.task)
        blocks = self.config.teacher.block_weight > 0
        teachers = OnlineTeachers(models, self.network, self.device, blocks=blocks)
        if blocks and not same_blocks(models[0], self.network):
            raise ConfigError(
                "teacher.block_weight needs a (first) teacher whose blocks have the student's channels and strides."
            )
        if self.config.teacher.feature_weight > 0 and teachers.embedding_size != self.network.config.c_last:
            raise ConfigError(
                "teacher.feature_weight needs embeddings of the same size; the student's has "
                f"{self.network.config.c_last} values, the teacher's {teachers.embedding_size}."
            )
        if self.config.teacher.head:
            self._check_heads(models[0])
        return teachers

    def _check_heads(self, teacher: MobileNet) -> None:
        """Reject a teacher whose head the student cannot take over."""
        student, norms = self.network, [m for m in teacher.head.modules() if isinstance(m, nn.BatchNorm2d)]
        if student.config.sequence is not None or teacher.config.sequence is not None:
            raise ConfigError("teacher.head is not supported for frame-wise networks. Set teacher.head=false.")
        if teacher.card.labels != student.card.labels:
            raise ConfigError("teacher.head needs a (first) teacher with the dataset's classes, in the same order.")
        if norms and self.config.optim.norm_clips:
            raise ConfigError(
                "optim.norm_clips would change the norms of the head that teacher.head keeps. Set only one of them."
            )
        if _head_of(student) != _head_of(teacher):
            raise ConfigError(
                "teacher.head needs a (first) teacher with a head of the same kind and size. The student's is "
                f"{_described(student)}; the teacher's is {_described(teacher)}."
            )

    def _freeze(self) -> None:
        optim = self.config.optim
        freeze(self.network, optim.freeze, head=self.config.teacher.head, norms=optim.freeze_norms)

    def _loader(self, rank: int, world: int) -> Loader:
        pin_memory = self.device.type == "cuda"
        return training_loader(self.inputs, self.config, rank, world, pin_memory, self.resident, self.weights)

    def _weights(self) -> npt.NDArray[np.float64] | None:
        """Return the weights by which clips are drawn, from the teachers' scores of all clips; kept in the folder.

        Raises:
            DataError: if the weights in the folder are not those of as many clips.
        """
        if self.config.data.sampling != "teacher" or self.teachers is None:
            return None
        path = self.folder / WEIGHTS_FILE
        if self.is_main and not path.exists():
            self.reporter.note(
                f"The teacher scores {len(self.inputs.train)} clips once, to determine how often each is drawn."
            )
            with atomic_write(path) as file:
                np.save(file, heard_weights(self._taught()))
        self.fabric.barrier()
        weights = cast("npt.NDArray[np.float64]", np.load(path, allow_pickle=False))
        if weights.shape != (len(self.inputs.train),):
            raise DataError(
                f"{path} has weights of shape {list(weights.shape)}, but there are {len(self.inputs.train)} training "
                "clips. Remove it; it is computed again."
            )
        return weights

    def _taught(self) -> npt.NDArray[np.float32]:
        """Return the teachers' probabilities for all training clips [N, C]; zeros for bad ones."""
        source, teachers = self.inputs.train, cast(OnlineTeachers, self.teachers)
        row = {key: i for i, key in enumerate(source.keys)}
        taught = np.zeros((len(source), len(source.labels)), dtype=np.float32)
        for batch in quiet_loader(source, self.inputs, self.config, self.resident).epoch(0):
            logits = teachers.teach(self.front_end(batch.waveform.to(self.device))).logits
            scores = probabilities(logits, self.inputs.task.loss).cpu().numpy()
            np.maximum.at(taught, [row[key] for key in batch.keys], scores)
        return taught

    def _prepare_weights(self, parent: MobileNet | None) -> float:
        """Give a fresh network its inherited weights or its prior; return the variance of the teacher's embedding."""
        model, settings = self.network, self.config.model
        if self.state.model:
            parent = None  # a resumed run has weights
        count = SAMPLE_CLIPS if parent is None or have_same_channels(model, parent) else NARROWING_CLIPS
        log_mel = self._sample(count) if parent is not None or self.teachers is not None else torch.empty(0)
        if parent is not None:
            inherit_weights(model, parent, log_mel, torch.Generator().manual_seed(self.config.run.seed))
        teacher_output = None if self.teachers is None else self.teachers.teach(log_mel[:SAMPLE_CLIPS])
        if settings.prior and not self.state.model and has_fresh_head(model):
            if teacher_output is not None:
                prior: Tensor | None = teacher_output.logits.mean(dim=0)
            else:
                prior = prior_logits(self.inputs.train, self.inputs.table, self.inputs.task.loss)
            if prior is not None:
                set_prior(model, prior)
        spread = 1.0 if teacher_output is None else float(teacher_output.embedding.var(dim=0).mean())
        return spread if spread > 0 else 1.0  # a single clip has none

    def _sample(self, count: int) -> Tensor:
        """Return the log-mel of `count` training clips or fewer, the same whatever the number of processes."""
        waveforms: list[Tensor] = []
        for batch in self._loader(0, 1).epoch(0):
            waveforms.append(batch.waveform)
            if sum(map(len, waveforms)) >= count:
                break
        if not waveforms:
            raise DataError("No training clip could be read.")
        return torch.cat([self.front_end(waveform.to(self.device)) for waveform in waveforms])[:count]

    def _class_weights(self) -> Tensor | None:
        balanced = self.config.optim.class_weights == "balanced"
        return balanced_weights(class_counts(self.inputs.train)).to(self.device) if balanced else None

    def _averaged(self) -> torch.optim.swa_utils.AveragedModel | None:
        if self.config.optim.ema == 0:
            return None
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(self.config.optim.ema)  # type: ignore[no-untyped-call]
        return torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def _set_up(self) -> tuple[Any, Any]:
        optim = self.config.optim
        if self.share.world > 1 and self.config.run.sync_norm:
            use_global_norm(self.network)
        if optim.norm_momentum:
            set_momentum(self.network, optim.norm_momentum)
        self._freeze()
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise ConfigError(
                "optim.freeze and teacher.head leave nothing to train. Set optim.freeze below "
                f"{len(self.network.blocks)}, or teacher.head=false."
            )
        plain = optim.freeze == 0 and optim.layer_decay == 1.0
        parameters: Any = self.network.parameters() if plain else parameter_groups(self.network, optim.layer_decay)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        # a fused one unscales by itself, which forbids clipping
        fused = self.device.type == "cuda" and optim.precision != "fp16"
        optimizer = kinds[optim.name](parameters, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused or None)
        if self.state.optimizer:
            optimizer.load_state_dict(self.state.optimizer)
        network: Any = self.network if self.network.config.sequence is None else ClipNetwork(self.network)
        model, optimizer = self.fabric.setup(torch.compile(network) if optim.compile else network, optimizer)
        return model, optimizer

    def _restore(self) -> None:
        read = (self.state.epoch, self.state.part.get("steps", 0))
        if (first := tuple(self.fabric.broadcast(read))) != read:
            raise DataError(
                f"This process reads another state than the first one (epoch and step {read}, not {first}). "
                f"{self.folder} must be the same folder on all machines; a network file system may need a minute to "
                "synchronise."
            )
        if not self.state.model:
            return
        self.loader.bad |= read_bad(self.folder / BAD_FILE)
        if "train" in self.state.fingerprints:
            self.loader.fingerprints[:] = self.state.fingerprints["train"].numpy()
        self.network.load_state_dict(self.state.model)
        if self.ema is not None:
            self.ema.load_state_dict(self.state.ema)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and self.state.scaler:
            scaler.load_state_dict(self.state.scaler)


def _head_of(model: MobileNet) -> tuple[str, dict[str, tuple[int, ...]]]:
    return model.config.head, {name: tuple(value.shape) for name, value in model.head.state_dict().items()}


def _described(model: MobileNet) -> str:
    config = model.config
    return f"{config.head} (embedding: {config.c_last} values, hidden layer: {config.c_hidden})"


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers may depend on."""
    return {
        "dymn": dymn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
