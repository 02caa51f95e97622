"""The one loop: pre-training, distillation and fine-tuning differ by their config alone (Secs. IV and V-B).

Lightning Fabric carries the loop to several processes, devices and precisions: it leaves the loop's code as it is, where a trainer
class would own it, and keeps no global state, so that several runs (folds) can follow each other in one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import dymn
from dymn.config import FrontEndConfig
from dymn.data import Batch, Dataset, Source
from dymn.data.batch import read_bad, write_bad
from dymn.errors import ConfigError, DataError, MissingExtraError
from dymn.evaluation.score import deciding_metric, figures, is_better, score
from dymn.evaluation.teachers import OnlineTeachers
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.training.distributed import highest, launch, united, use_global_norm
from dymn.training.inputs import (
    check_classes,
    check_table,
    differences,
    digests,
    fingerprint,
    open_inputs,
    open_models,
    portable,
    quiet_loader,
    training_loader,
)
from dymn.training.recipe import TrainConfig
from dymn.training.report import Record, Reporter, Tracker, plot_curves, write_history, write_json
from dymn.training.resolve import plain_name, resolve, with_folder
from dymn.training.schedules import learning_rate_factor, temperature
from dymn.training.start import (
    front_end_of,
    has_fresh_head,
    inherit_weights,
    prior_logits,
    set_prior,
    starting_model,
)
from dymn.training.state import Part, RunState, load_state, save_state
from dymn.training.step import Share, Step
from dymn.weights.format import shorten

SAMPLE_CLIPS = 96  # heard before training: for inherited weights, the teacher's prior and the spread of its embedding
STATE_FILE, BEST_FILE, LAST_FILE, BAD_FILE = "state.pt", "best.safetensors", "last.safetensors", "bad_clips.csv"
SLOW = 30.0  # seconds; curves are drawn after each epoch that takes longer, else only at the end


def train(config: TrainConfig, reporter: Reporter | None = None, data: Dataset | None = None) -> Record:
    """Train as the config says; return the result, which `result.json` in the run's folder holds too.

    A run that was killed continues from its last state, that of an epoch or of every `run.save_steps` steps in it, and gives the numbers
    that it would have given.

    Args:
        config: the run.
        reporter: is told how it goes.
        data: the dataset, where it is open already and the config leaves nothing open (see `dymn.training.resolve`).

    Raises:
        ConfigError: if a setting is not allowed, or the folder holds another run.
        DataError: if data or teacher are not what they should be, or too many clips are bad.
        WeightsError: if a checkpoint cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator; the caller's numbers shall not depend on it
        return Run(config, reporter or Reporter(), data).fit()


class Run:
    """One training run: what it is made of, and how it goes on from epoch to epoch."""

    def __init__(self, config: TrainConfig, reporter: Reporter, data: Dataset | None = None) -> None:
        config = with_folder(config)
        config, data = resolve(config) if data is None else (config, data)
        self.config, self.folder = config, Path(config.run.out)
        self.fabric, self.share = self._place()
        self.reporter = reporter if self.is_main else Reporter()
        models = open_models(config)
        front_end = front_end_of(config.model, models.start)
        self.inputs = open_inputs(config, data, front_end.sample_rate)
        for sentence in (*check_classes(self.inputs, config.teacher.is_present), *check_table(self.inputs, config.data.fill)):
            self.reporter.note(sentence)
        self.digests = digests(self.inputs) | models.digests
        self.state = self._begin_or_continue()
        self.network = self._network(models.start, front_end)
        self.front_end = LogMel(front_end).to(self.device)
        self.teachers = self._teachers(models.teachers)
        self.loader = training_loader(self.inputs, config, self.share.rank, self.share.world, pin_memory=self.device.type == "cuda")
        feature_scale = self._prepare_weights(models.parent)
        self.step = Step(config, self.inputs.task.loss, self.front_end, self.teachers, feature_scale, self.share)
        self.ema = self._averaged()
        self.model, self.optimizer = self._set_up()
        self._restore()
        self.trackers = [
            Tracker(kind, self.folder, dataclasses.asdict(config), config.run.name) for kind in config.run.trackers if self.is_main
        ]

    # Setting up

    def _place(self) -> tuple[Any, Share]:
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
        mark = fingerprint(self.config, self.digests)
        path = self.folder / STATE_FILE
        if self.is_main:
            for unfinished in self.folder.glob(".*.part"):  # what a kill in the middle of writing left
                unfinished.unlink()
        if path.exists():
            state = load_state(path)
            if state.fingerprint != mark:
                changed = differences(self.folder / "config.json", self.config, self.digests)
                raise ConfigError(
                    f"{self.folder} holds a run with other settings or data{f' ({shorten(changed)})' if changed else ''}. "
                    "Choose another folder (--output, run.out), or remove it to start anew."
                )
            within = f" and {state.part['steps']} steps of the next" if state.part else ""
            self.reporter.note(f"Continuing {self.folder} after epoch {state.epoch}{within}.")
            return state
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(
                self.folder / "config.json", {"config": dataclasses.asdict(self.config), "data": self.digests, "versions": versions()}
            )
        return RunState(fingerprint=mark)

    def _teachers(self, models: Sequence[MobileNet]) -> OnlineTeachers | None:
        if not models:
            return None
        teachers = OnlineTeachers(models, self.network, self.device)
        if self.config.teacher.feature_weight > 0 and teachers.embedding_size != self.network.config.c_last:
            raise ConfigError(
                f"teacher.feature_weight needs embeddings of one size; the student's has {self.network.config.c_last} values, "
                f"the teacher's {teachers.embedding_size}."
            )
        return teachers

    def _prepare_weights(self, parent: MobileNet | None) -> float:
        """Give a fresh network its inherited weights or its prior; return the variance of the teacher's embedding."""
        model, settings = self.network, self.config.model
        log_mel = self._sample() if parent is not None or self.teachers is not None else torch.empty(0)
        if parent is not None:
            inherit_weights(model, parent, log_mel, torch.Generator().manual_seed(self.config.run.seed))
        lesson = None if self.teachers is None else self.teachers.teach(log_mel)
        if settings.prior and has_fresh_head(model):
            prior = (
                prior_logits(self.inputs.train, self.inputs.table, self.inputs.task.loss) if lesson is None else lesson.logits.mean(dim=0)
            )
            if prior is not None:
                set_prior(model, prior)
        spread = 1.0 if lesson is None else float(lesson.embedding.var(dim=0).mean())
        return spread if spread > 0 else 1.0  # a single clip has none

    def _sample(self) -> Tensor:
        """Return the log-mel of some training clips, the same whatever the number of processes."""
        clips = training_loader(self.inputs, self.config, 0, 1, pin_memory=False).epoch(0)
        waveforms: list[Tensor] = []
        for batch in clips:
            waveforms.append(batch.waveform)
            if sum(map(len, waveforms)) >= SAMPLE_CLIPS:
                break
        if not waveforms:
            raise DataError("No training clip could be read.")
        return torch.cat([self.front_end(waveform.to(self.device)) for waveform in waveforms])[:SAMPLE_CLIPS]

    def _averaged(self) -> torch.optim.swa_utils.AveragedModel | None:
        if self.config.optim.ema == 0:
            return None
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(self.config.optim.ema)  # type: ignore[no-untyped-call]
        return torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def _set_up(self) -> tuple[Any, Any]:
        optim = self.config.optim
        if self.share.world > 1 and self.config.run.sync_norm:
            use_global_norm(self.network)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[optim.name](self.network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
        if self.state.optimizer:
            optimizer.load_state_dict(self.state.optimizer)
        model, optimizer = self.fabric.setup(torch.compile(self.network) if optim.compile else self.network, optimizer)
        return model, optimizer

    def _restore(self) -> None:
        read = (self.state.epoch, self.state.part.get("steps", 0))
        if (first := tuple(self.fabric.broadcast(read))) != read:
            raise DataError(
                f"This process reads another state than the first one (epoch and step {read}, not {first}). {self.folder} must be one "
                "folder for all machines; a network file system may need a minute until all of them see the same."
            )
        if not self.state.model:
            return
        self.loader.bad |= read_bad(self.folder / BAD_FILE)
        if "train" in self.state.marks:
            self.loader.marks[:] = self.state.marks["train"].numpy()
        self.network.load_state_dict(self.state.model)
        if self.ema is not None:
            self.ema.load_state_dict(self.state.ema)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and self.state.scaler:
            scaler.load_state_dict(self.state.scaler)

    # Training

    def fit(self) -> Record:
        """Run all epochs that are left, then measure the test set once."""
        schedule = self.config.schedule
        self.reporter.start(schedule.epochs, self.state.epoch, len(self.loader))
        for epoch in range(self.state.epoch, schedule.epochs):
            record = self._epoch(epoch)
            self.state.history.append(record)
            self.state.epoch = epoch + 1
            if self.is_main:
                self._save(record)
                for listener in (self.reporter, *self.trackers):
                    listener.epoch(record)
            self.fabric.barrier()
        result = self._finish() if self.is_main else {}
        self.fabric.barrier()
        return result

    def _epoch(self, epoch: int) -> Record:
        schedule, part = self.config.schedule, self._begun()
        started = time.monotonic() - part.seconds
        lr = self.config.optim.lr * learning_rate_factor(
            epoch, warm_up=schedule.warm_up, ramp_start=schedule.ramp_start, ramp_length=schedule.ramp_length, floor=schedule.floor
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.network.temperature = temperature(epoch, start=schedule.tau_start, end=schedule.tau_end, epochs=schedule.tau_epochs)
        self.network.train()
        for batches in _grouped(enumerate(self.loader.epoch(epoch), start=part.batches), self.config.optim.accumulate):
            if part.steps > 0 and len(batches) < self.config.optim.accumulate:
                break  # as an incomplete batch is left out
            losses = [
                self._backward(batch, epoch, number, i == len(batches) - 1, len(batches)) for i, (number, batch) in enumerate(batches)
            ]
            self._update()
            for (_, batch), loss in zip(batches, losses, strict=True):
                part.loss, part.clips = part.loss + loss * len(batch.keys), part.clips + len(batch.keys)
                self.reporter.batch(loss)
            part.steps, part.batches, part.seconds = part.steps + 1, part.batches + len(batches), time.monotonic() - started
            if self.config.run.save_steps and part.steps % self.config.run.save_steps == 0:
                self._save_part(part)
        if part.steps == 0:
            raise DataError("The training data gave no batch. Use more clips, or a smaller optim.batch_size.")
        seconds = max(time.monotonic() - started, 1e-6)
        self._unite()
        self.state.seconds += seconds
        loss, clips = self._sums(part.loss, part.clips)
        record: Record = {"epoch": epoch + 1, "lr": lr, "temperature": self.network.temperature, "loss": loss / clips}
        record |= {"clips_per_second": clips / seconds, "seconds": seconds, "bad_clips": len(self.loader.bad)}
        if self.is_main and self.inputs.val is not None:
            record |= {f"val_{name}": value for name, value in self._measure(self.inputs.val).items() if isinstance(value, (int, float))}
        return record

    def _backward(self, batch: Batch, epoch: int, number: int, is_last: bool, parts: int) -> float:
        chance = np.random.default_rng((self.config.run.seed, 1, epoch, number))
        # Dropout draws from the global generator and from no other.
        torch.manual_seed(int(chance.integers(2**62)) + self.share.rank)
        waiting = self.fabric.no_backward_sync(self.model) if not is_last else contextlib.nullcontext()
        with waiting:
            loss = self.step(self.model, batch.to(self.device, non_blocking=True), chance)
            self.fabric.backward(loss / parts)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"The loss became {value} in epoch {epoch + 1}, batch {number + 1}; {self.folder} keeps what came before. Start anew in "
                "another folder (run.out) with a lower optim.lr, with optim.clip_norm, or in another optim.precision."
            )
        return value

    def _update(self) -> None:
        if self.config.optim.clip_norm > 0:
            # fp16 meets infinite gradients until its scale is found; a loss that is not finite is an error of its own.
            limit = self.config.optim.clip_norm
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)

    def _unite(self) -> None:
        """Bring together what the processes know of their clips."""
        self.loader.bad = united(self.loader.bad)
        self.loader.marks = highest(self.loader.marks)

    def _sums(self, *values: float) -> list[float]:
        """Return the sums of values over all processes."""
        if self.share.world == 1:
            return list(values)
        return cast(list[float], self.fabric.all_reduce(torch.tensor(values, dtype=torch.float64), reduce_op="sum").tolist())

    def _begun(self) -> Part:
        """Return what was done of the epoch before the run was ended, and have the loader go on there."""
        part = Part(**self.state.part)
        self.state.part = {}
        if part.loader:
            bad = len(range(self.share.rank, part.loader.get("bad", 0), self.share.world))  # its share of those of all processes
            self.loader.load_state_dict(part.loader | {"bad": bad})
        return part if self.is_main else dataclasses.replace(part, loss=0.0, clips=0)  # the sums are those of all processes

    # Measuring and saving

    @property
    def result_network(self) -> MobileNet:
        """The network that is measured and saved: the averaged one if there is one."""
        if self.ema is None:
            return self.network
        averaged = cast(MobileNet, self.ema.module)
        averaged.temperature = self.network.temperature
        return averaged

    def _measure(self, source: Source) -> Record:
        loader = quiet_loader(source, self.inputs, self.config)
        if "val" in self.state.marks:
            loader.marks[:] = self.state.marks["val"].numpy()
        self.state.marks["val"] = torch.from_numpy(loader.marks)
        scores = score(self.result_network, self.front_end, loader, self.inputs.task.loss, teachers=self.teachers)
        return figures(scores, self.inputs.task.loss)

    def _save(self, record: Record) -> None:
        """Write what an epoch gave; the state is the last, so that an epoch counts as done only when all else is written."""
        try:
            self._write_epoch(record)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written to: {error}. Make room, and the run continues from its state.") from error
        save_state(self.state, self.folder / STATE_FILE)

    def _save_part(self, part: Part) -> None:
        """Write the state in the middle of an epoch."""
        self._unite()
        at = self.loader.state_dict()
        loss, clips, bad = self._sums(part.loss, part.clips, at["bad"])
        if not self.is_main:
            return
        self._take_state()
        write_bad(self.folder / BAD_FILE, self.loader.bad)
        done = dataclasses.replace(part, loss=loss, clips=int(clips), loader=at | {"bad": int(bad)})
        save_state(dataclasses.replace(self.state, part=vars(done)), self.folder / STATE_FILE)

    def _write_epoch(self, record: Record) -> None:
        values = _validation(record)
        metric = deciding_metric(values, self.inputs.task)
        self._write_checkpoint(LAST_FILE, values)
        if metric not in values or is_better(metric, values[metric], self.state.best):
            self.state.best, self.state.best_epoch = values.get(metric), record["epoch"]
            self._write_checkpoint(BEST_FILE, values)
        self._take_state()
        write_history(self.folder / "log.jsonl", self.state.history)
        if record["seconds"] > SLOW:
            self._draw()
        write_bad(self.folder / BAD_FILE, self.loader.bad)

    def _take_state(self) -> None:
        self.state.marks["train"] = torch.from_numpy(self.loader.marks)
        self.state.model = self.network.state_dict()
        self.state.ema = {} if self.ema is None else self.ema.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        self.state.scaler = scaler.state_dict() if scaler is not None else {}

    def _draw(self) -> None:
        metric = deciding_metric(_validation(self.state.history[-1]), self.inputs.task)
        with contextlib.suppress(MissingExtraError):
            plot_curves(self.folder / "curves.png", self.state.history, metric)

    def _write_checkpoint(self, name: str, values: Record) -> None:
        network, run = self.result_network, self.config.run
        found = {key: float(value) for key, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)}
        provenance = {
            "trained_with": f"dymn {dymn.__version__}",
            "epoch": self.state.epoch,
            "config": portable(self.config),
            "data": self.digests,
            "versions": versions(),
        }
        network.card = dataclasses.replace(
            self.network.card,
            exclusive=self.inputs.task.loss == "ce",
            name=run.name or plain_name(self.config.model.name),
            licence=run.licence,
            metrics=found,
            provenance=provenance,
        )
        pretrained.save(network, self.folder / name)

    def _finish(self) -> Record:
        best = MobileNet.from_pretrained(self.folder / BEST_FILE)
        result: Record = {"epochs": self.state.epoch, "best_epoch": self.state.best_epoch, "train_seconds": self.state.seconds}
        result |= {f"val_{name}": value for name, value in best.card.metrics.items()}
        if self.inputs.test is not None:
            loader = quiet_loader(self.inputs.test, self.inputs, self.config)
            scores = score(best.to(self.device), self.front_end, loader, self.inputs.task.loss, teachers=self.teachers)
            result |= {f"test_{name}": value for name, value in figures(scores, self.inputs.task.loss).items()}
        result["checkpoint"] = str(self.folder / BEST_FILE)
        write_json(self.folder / "result.json", result)
        self._draw()
        for listener in (self.reporter, *self.trackers):
            listener.finish(result)
        return result


def _validation(record: Record) -> Record:
    return {key.removeprefix("val_"): value for key, value in record.items() if key.startswith("val_")}


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers may depend on."""
    return {"dymn": dymn.__version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def _grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(batches, size)):
        yield group
