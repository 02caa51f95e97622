"""The training loop: pre-training, distillation and fine-tuning differ only in their config (Sec. IV, V-B).

Lightning Fabric runs the loop on several processes, devices and precisions. Unlike a trainer class, it
leaves the loop's code visible, and it has no global state, so several runs (folds) can follow each other in one
process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

import dymn
from dymn.config import shown
from dymn.data import Batch, Dataset, Loader, Source
from dymn.data.batch import write_bad
from dymn.errors import ConfigError, DataError, MissingExtraError
from dymn.evaluation.assess import Assessment, assessed, write_report
from dymn.evaluation.score import Predictions, deciding_metric, figures, is_better, score
from dymn.models import pretrained
from dymn.models.inflate import measure_norms
from dymn.models.mobilenet import MobileNet
from dymn.system.cpus import keeping_all_memory
from dymn.training.calibration import fit_affine
from dymn.training.distributed import highest, united
from dymn.training.inputs import portable, quiet_loader, training_loader
from dymn.training.prepare import BAD_FILE, LAST_FILE, STATE_FILE, Prepared, versions
from dymn.training.report import Record, Reporter, plot_curves, write_history, write_json
from dymn.training.resolve import plain_name
from dymn.training.schedules import learning_rate_factor, temperature
from dymn.training.settings import TrainConfig
from dymn.training.state import PartialEpoch, save_state
from dymn.training.step import Share, Step
from dymn.weights.format import BEST_FILE

logger = logging.getLogger(__name__)

SLOW = 30.0  # seconds; curves are drawn after each epoch that takes longer, else only at the end


def train(config: TrainConfig, reporter: Reporter | None = None, data: Dataset | None = None) -> Record:
    """Train according to the config; return the result, which is also in `result.json` in the run's folder.

    An interrupted run resumes from its last state, saved after each epoch and every `run.save_steps` steps, with the
    same result as an uninterrupted run.

    Args:
        config: settings of the run.
        reporter: receives the progress.
        data: the dataset, if it is already open and the config is resolved (see `dymn.training.resolve`).

    Raises:
        ConfigError: if a setting is not allowed, there are several seeds, or the folder contains another run.
        DataError: if data and teacher do not match, or too many clips cannot be read.
        WeightsError: if a checkpoint cannot be loaded.
    """
    if config.run.seeds:
        raise ConfigError(
            f"run.seeds is {shown(config.run.seeds)}, but train does one run. Use dymn.training.repeats.train_repeats, "
            "or set run.seeds=[] and run.seed."
        )
    # dropout draws from the global generator; the caller's numbers shall not depend on it
    with torch.random.fork_rng(devices=[]):
        run = Run(config, reporter or Reporter(), data)
        with keeping_all_memory(run.device.type == "cpu"):
            return run.fit()


class Run(Prepared):
    """A training run, epoch by epoch."""

    # Training

    def fit(self) -> Record:
        """Run the remaining epochs, then evaluate the test set once."""
        schedule = self.config.schedule
        self.reporter.start(schedule.epochs, self.state.epoch, len(self.loader))
        self._began = time.monotonic() - self.state.clock
        while (place := self._place()) is not None:
            record = self._epoch(self.state.epoch, place)
            self.state.history.append(record)
            self.state.epoch += 1
            if self.is_main:
                self._save(record)
                for listener in (self.reporter, *self.trackers):
                    listener.epoch(record)
            self.fabric.barrier()
        result = self._finish() if self.is_main else {}
        self.fabric.barrier()
        return result

    def _place(self) -> float | None:
        """Return where in the schedule the next epoch begins; None if there is no next one."""
        schedule, done = self.config.schedule, self.state.epoch
        if not schedule.seconds:
            return float(done) if done < schedule.epochs else None
        clock = time.monotonic() - self._began
        fits = done == 0 or clock + clock / done <= schedule.seconds
        place = clock / schedule.seconds * schedule.epochs if fits else None
        return cast("float | None", self.fabric.broadcast(place))

    def _epoch(self, epoch: int, place: float) -> Record:
        schedule, part = self.config.schedule, self._begun()
        started = time.monotonic() - part.seconds
        lr = self.config.optim.lr * learning_rate_factor(
            place,
            warm_up=schedule.warm_up,
            ramp_start=schedule.ramp_start,
            ramp_length=schedule.ramp_length,
            floor=schedule.floor,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("share", 1.0)
        self.network.temperature = temperature(
            place, start=cast(float, schedule.tau_start), end=schedule.tau_end, epochs=schedule.tau_epochs
        )
        self.network.train()
        self._freeze()
        for batches in _grouped(enumerate(self.loader.epoch(epoch), start=part.batches), self.config.optim.accumulate):
            if part.steps > 0 and len(batches) < self.config.optim.accumulate:
                break  # as an incomplete batch is left out
            losses = [
                self._backward(batch, epoch, number, i == len(batches) - 1, len(batches))
                for i, (number, batch) in enumerate(batches)
            ]
            self._update()
            for (_, batch), (loss, terms) in zip(batches, losses, strict=True):
                part.add(len(batch.keys), loss, terms)
                self.reporter.batch(loss)
            part.steps, part.batches = part.steps + 1, part.batches + len(batches)
            part.seconds = time.monotonic() - started
            if self.config.run.save_steps and part.steps % self.config.run.save_steps == 0:
                self._save_part(part)
        if part.steps == 0:
            raise DataError(
                "The training data are fewer than one batch. Use more clips, or a smaller optim.batch_size."
            )
        seconds = max(time.monotonic() - started, 1e-6)
        self._unite()
        self.state.seconds += seconds
        loss, clips, *sums = self._sums(part.loss, part.clips, *part.terms.values())
        record: Record = {"epoch": epoch + 1, "lr": lr, "temperature": self.network.temperature, "loss": loss / clips}
        record |= {name: total / clips for name, total in zip(part.terms, sums, strict=True)}
        record |= {"clips_per_second": clips / seconds, "seconds": seconds, "bad_clips": len(self.loader.bad)}
        if self.is_main and self.config.optim.norm_clips:
            self._measure_norms(epoch)
        if self.is_main and self.inputs.val is not None:
            measured = self._measure(self.inputs.val)
            record |= {f"val_{name}": value for name, value in measured.items() if isinstance(value, (int, float))}
        if self.is_main and self.inputs.test is not None and epoch >= schedule.epochs - self.config.data.test_epochs:
            tested = self._test(self.result_network).figures
            kinds = (int, float, Mapping)
            record |= {f"test_{name}": value for name, value in tested.items() if isinstance(value, kinds)}
        return record

    def _backward(
        self, batch: Batch, epoch: int, number: int, is_last: bool, parts: int
    ) -> tuple[float, dict[str, float]]:
        rng = np.random.default_rng((self.config.run.seed, 1, epoch, number))
        # Dropout draws from the global generator and from no other.
        torch.manual_seed(int(rng.integers(2**62)) + self.share.rank)
        waiting = self.fabric.no_backward_sync(self.model) if not is_last else contextlib.nullcontext()
        with waiting:
            loss = self.step(self.model, batch.to(self.device, non_blocking=True), rng)
            self.fabric.backward(loss / parts)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"The loss became {value} in epoch {epoch + 1}, batch {number + 1}; {self.folder} contains the state "
                "before. Start over in another folder (run.out) with a lower optim.lr, with optim.clip_norm, or "
                "with another optim.precision."
            )
        return value, {name: float(term) for name, term in self.step.terms.items()}

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
        """Combine the bad clips and fingerprints of all processes."""
        self.loader.bad = united(self.loader.bad)
        self.loader.fingerprints = highest(self.loader.fingerprints)

    def _sums(self, *values: float) -> list[float]:
        """Return the sums of values over all processes."""
        if self.share.world == 1:
            return list(values)
        return cast(
            list[float], self.fabric.all_reduce(torch.tensor(values, dtype=torch.float64), reduce_op="sum").tolist()
        )

    def _begun(self) -> PartialEpoch:
        """Return what was done of the epoch before the run was ended, and have the loader go on there."""
        part = PartialEpoch(**self.state.part)
        self.state.part = {}
        if part.loader:
            # its share of those of all processes
            bad = len(range(self.share.rank, part.loader.get("bad", 0), self.share.world))
            self.loader.load_state_dict(part.loader | {"bad": bad})
        # the sums are those of all processes
        return part if self.is_main else dataclasses.replace(part, loss=0.0, clips=0, terms={})

    # Measuring and saving

    @property
    def result_network(self) -> MobileNet:
        """The network that is evaluated and saved: the averaged one, if any."""
        if self.ema is None:
            return self.network
        averaged = cast(MobileNet, self.ema.module)
        averaged.temperature = self.network.temperature
        return averaged

    def _scores(self, model: MobileNet, loader: Loader) -> Predictions:
        return score(model, self.front_end, loader, self.inputs.task.loss, teachers=self.teachers)

    def _measure(self, source: Source) -> Record:
        loader = quiet_loader(source, self.inputs, self.config, self.resident)
        if "val" in self.state.fingerprints:
            loader.fingerprints[:] = self.state.fingerprints["val"].numpy()
        self.state.fingerprints["val"] = torch.from_numpy(loader.fingerprints)
        return figures(self._scores(self.result_network, loader), self.inputs.task.loss)

    def _test(self, model: MobileNet) -> Assessment:
        """Return the figures of a model on the test set, which chooses nothing."""
        loader = quiet_loader(cast(Source, self.inputs.test), self.inputs, self.config, self.resident)
        scores = self._scores(model, loader)
        return assessed(scores, loader.source, self.config.data.kind, "test", self.inputs.task.loss)

    def _measure_norms(self, epoch: int) -> None:
        """Measure the statistics of the norms of the network that is evaluated, on its input in training."""
        rng = np.random.default_rng((self.config.run.seed, 2, epoch))
        config = dataclasses.replace(self.config, data=dataclasses.replace(self.config.data, workers=0))
        loader = training_loader(self.inputs, config, 0, 1, False, self.resident, self.weights)
        batches = itertools.islice(loader.epoch(epoch), -(-self.config.optim.norm_clips // loader.batches.batch_size))
        step = Step(self.config, self.inputs.task.loss, self.front_end, None, 1.0, Share())
        measure_norms(self.result_network, (step.inputs(batch.to(self.device), rng)[0] for batch in batches))
        if self.step.blocks is not None:
            self.step.blocks.taken()  # without averaged weights, the network that is compared was called

    def _save(self, record: Record) -> None:
        """Write the results of an epoch, the state last: an epoch is done only when all else is written."""
        try:
            self._write_epoch(record)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written to: {error}. Free some space and run the command again to resume."
            ) from error
        save_state(self.state, self.folder / STATE_FILE)

    def _save_part(self, part: PartialEpoch) -> None:
        """Write the state in the middle of an epoch."""
        self._unite()
        at = self.loader.state_dict()
        loss, clips, bad, *terms = self._sums(part.loss, part.clips, at["bad"], *part.terms.values())
        if not self.is_main:
            return
        self._take_state()
        write_bad(self.folder / BAD_FILE, self.loader.bad)
        sums = dict(zip(part.terms, terms, strict=True))
        done = dataclasses.replace(part, loss=loss, clips=int(clips), loader=at | {"bad": int(bad)}, terms=sums)
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
        self.state.fingerprints["train"] = torch.from_numpy(self.loader.fingerprints)
        self.state.clock = time.monotonic() - self._began
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
            metrics=numbers(values),
            provenance=provenance,
        )
        pretrained.save(network, self.folder / name)

    def _finish(self) -> Record:
        best = MobileNet.from_pretrained(self.folder / BEST_FILE)
        if self.config.teacher.calibrate and self.inputs.val is not None and "calibration" not in best.card.provenance:
            best = self._calibrated(best.to(self.device), self.inputs.val)
        result: Record = {
            "epochs": self.state.epoch,
            "best_epoch": self.state.best_epoch,
            "train_seconds": self.state.seconds,
        }
        result |= {f"val_{name}": value for name, value in best.card.metrics.items()}
        if self.inputs.test is not None:
            found = self._test(best.to(self.device))
            write_report(self.folder, found)
            result |= {f"test_{name}": value for name, value in found.figures.items()}
            result |= last_epochs(self.state.history, self.config.data.test_epochs)
        result["checkpoint"] = str(self.folder / BEST_FILE)
        write_json(self.folder / "result.json", result)
        self._draw()
        for listener in (self.reporter, *self.trackers):
            listener.finish(result)
        return result

    def _calibrated(self, model: MobileNet, source: Source) -> MobileNet:
        """Scale and shift the logits to fit the teacher best on the validation clips; rewrite the best checkpoint."""

        def scores() -> Predictions:
            return self._scores(model, quiet_loader(source, self.inputs, self.config, self.resident))

        before = scores()
        if before.teacher is None or self.inputs.task.loss != "bce":
            why = "the classes are exclusive" if before.teacher is not None else "the teacher lacks validation clips"
            self.reporter.note(f"The logits are not calibrated: {why}.")
            return model
        fitted = fit_affine(before.probabilities, before.teacher)
        model.head.scale(*fitted)
        found = numbers(figures(scores(), self.inputs.task.loss))
        provenance = model.card.provenance | {"calibration": fitted._asdict()}
        model.card = dataclasses.replace(model.card, metrics=found, provenance=provenance)
        pretrained.save(model, self.folder / BEST_FILE)
        return model


def _validation(record: Record) -> Record:
    return {key.removeprefix("val_"): value for key, value in record.items() if key.startswith("val_")}


def last_epochs(history: Sequence[Record], n: int) -> Record:
    """Return the means of the test metrics over the last n epochs, as in the paper (Sec. IV-C).

    A metric without a finite value in each of these epochs is left out and logged. Figures of groups, such as recording
    devices, are averaged for each group.
    """
    measured = [{key: value for key, value in record.items() if key.startswith("test_")} for record in history[-n:]]
    if n == 0 or len(measured) < n or not all(measured):
        return {}
    found: Record = {}
    for name in dict.fromkeys(name for record in measured for name in record):
        values: list[Any] = [record.get(name) for record in measured]
        if all(isinstance(value, Mapping) for value in values):
            groups = [group for group in values[0] if all(group in value for value in values)]
            found[f"{name}_last_{n}"] = {group: statistics.fmean(value[group] for value in values) for group in groups}
        elif all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            found[f"{name}_last_{n}"] = statistics.fmean(values)
        else:
            logger.warning("%s has no finite value in some of the last %d epochs; its mean is left out.", name, n)
    return found


def numbers(values: Record) -> dict[str, float]:
    """Return the metrics that are finite numbers, as a card requires."""
    return {
        key: float(value) for key, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(batches, size)):
        yield group
