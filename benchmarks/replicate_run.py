"""The processes of `replicate.py`: several students, one teacher."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dymn.config import ModelConfig
from dymn.data import Batch, Resident, Source, open_source
from dymn.evaluation.teachers import OnlineTeachers
from dymn.models.frontend import LogMel
from dymn.models.inflate import calibrate
from dymn.models.layers import DynamicConv2d
from dymn.models.mobilenet import MobileNet
from dymn.profiling import count
from dymn.system.cpus import keeping_all_memory
from dymn.training.losses import Targets
from dymn.training.schedules import learning_rate_factor, temperature
from dymn.training.settings import TrainConfig
from dymn.training.start import set_prior
from dymn.training.step import Example, Share, Step
from dymn.weights import load_model
from replicate import ARMS, MARKS, Arm, Job, result_path
from replicate_figures import HEARD, average_precision, clip_excess

ORDER, PLACE, CHANCE = range(3)  # keep the random numbers of order, crops and augmentation apart
DECIDED = 0.5  # the teacher's probability above which a class is there, for those who learn from decisions
UNUSED = 0.2  # of an even share: a kernel with a smaller mean weight is not in use
APART = 10**8  # steps whose examples nobody learns from
PROBE_SECONDS, WARM_STEPS = 8.0, 3
MARGIN = 0.9  # of the time that is left after the probe, what is planned for
SAVED_EVERY = 120.0  # seconds
PATIENCE = 300.0  # seconds, of a process that waits for the others


class Crops:
    """Crops of the clips of a source, which lie decoded on the device."""

    def __init__(self, source: Source, resident: Resident, samples: int, fill: str) -> None:
        places = source.indices.tolist()
        kept = [i for i, place in enumerate(places) if place not in resident.bad]
        self.keys = [source.keys[i] for i in kept]
        self.places = source.indices[kept]
        self.resident, self.samples, self.fill = resident, samples, fill

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, clips: npt.NDArray[np.int64], chances: npt.NDArray[np.float64]) -> Tensor:
        """Return a crop of each clip, [B, samples]; `chances` [B] in [0, 1) place it."""
        places = self.places[clips]
        room = np.maximum(self.resident.lengths[places] - self.samples, 0)
        return self.resident.waveforms(
            places.tolist(), np.floor(chances * (room + 1)).astype(np.int64).tolist(), self.samples, self.fill
        )

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """Return the crops of a training step: each clip once before any comes again."""
        places = np.arange(step * size, (step + 1) * size)
        rounds = {
            int(r): np.random.default_rng((seed, ORDER, int(r))).permutation(len(self))
            for r in np.unique(places // len(self))
        }
        clips = np.array([rounds[int(place // len(self))][place % len(self)] for place in places])
        return self.at(clips, np.random.default_rng((seed, PLACE, step)).random(size))

    def beginnings(self) -> Tensor:
        """Return the beginning of every clip."""
        return self.at(np.arange(len(self)), np.zeros(len(self)))


class Kernels:
    """How the kernels of a network's dynamic convolutions are weighted while it learns.

    Sums are kept on the device and in place, so that they can be part of a CUDA graph.
    """

    def __init__(self, network: MobileNet, device: torch.device) -> None:
        convolutions = [module for module in network.modules() if isinstance(module, DynamicConv2d)]
        kernels = len(convolutions[0].weight) if convolutions else 1
        self.weights = torch.zeros(len(convolutions), kernels, device=device)  # [layers, K], sums over clips
        self.entropy = torch.zeros((), device=device)  # sum over clips and layers
        for row, module in zip(self.weights, convolutions, strict=True):
            module.register_forward_hook(self._listener(row))

    def take(self) -> dict[str, float]:
        """Return the figures since the last call, and begin anew; nothing for a network without dynamic convolution."""
        total = float(self.weights.sum())
        if not total:
            return {}
        shares = self.weights / self.weights.sum(dim=1, keepdim=True)
        n_kernels = self.weights.shape[1]
        found = {
            "entropy": float(self.entropy) / total / math.log(n_kernels),
            "unused": float((shares < UNUSED / n_kernels).float().mean()),
        }
        self.weights.zero_()
        self.entropy.zero_()
        return found

    def _listener(self, row: Tensor) -> Callable[[DynamicConv2d, tuple[Any, ...], Any], None]:
        def listen(module: DynamicConv2d, inputs: tuple[Any, ...], _: Any) -> None:
            if module.training and torch.is_grad_enabled():  # not while the norms are measured
                with torch.no_grad():
                    attention = module.kernel_attention(inputs[1]).float()
                    row.add_(attention.sum(dim=0))
                    self.entropy.sub_(torch.xlogy(attention, attention).sum())

        return listen


class Student:
    """A network that learns from examples that all students share.

    Its step is launched as one CUDA graph where that works.
    """

    def __init__(
        self, arm: Arm, config: ModelConfig, settings: TrainConfig, seed: int, prior: Tensor, device: torch.device
    ) -> None:
        self.arm = arm
        self.network = MobileNet(config).initialise(torch.Generator().manual_seed(seed)).to(device).train()
        set_prior(self.network, prior)
        self.optim, self.schedule, self.device = settings.optim, settings.schedule, device
        # The temperature is a tensor, as a number would be a constant of the graph.
        self.tau = torch.ones((), device=device)
        for module in self.network.modules():
            if isinstance(module, DynamicConv2d):
                module.temperature = self.tau  # type: ignore[assignment]
        self.kernels = Kernels(self.network, device)
        self.loss = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.start = copy.deepcopy(self.network.state_dict())
        self.optimizer = self._optimizer()

    def reset(self) -> None:
        """Begin anew, with the weights of the beginning."""
        self.network.load_state_dict(self.start)
        self.optimizer = self._optimizer()
        self.loss.zero_()
        self.kernels.take()

    def capture(self, step: Step, example: Example, pool: Any) -> Any:
        """Record loss and gradients of this very example as a graph; return the pool of memory that graphs share."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self._gradients(step, example)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._gradients(step, example, anew=False)
        self.graph = graph
        return graph.pool()

    def step(self, step: Step, example: Example, progress: float) -> None:
        """Learn from an example; `progress` is the share of the run that is done."""
        at = self.schedule.epochs * progress
        schedule = self.schedule
        lr = self.optim.lr * learning_rate_factor(
            at,
            warm_up=schedule.warm_up,
            ramp_start=schedule.ramp_start,
            ramp_length=schedule.ramp_length,
            floor=schedule.floor,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        start = schedule.tau_start if self.arm.annealed else schedule.tau_end
        self.tau.fill_(temperature(at, start=start, end=schedule.tau_end, epochs=schedule.tau_epochs))  # type: ignore[arg-type]
        if self.graph is None:
            self._gradients(step, example)
        else:
            self.graph.replay()
        self.optimizer.step()

    def _gradients(self, step: Step, example: Example, anew: bool = True) -> None:
        if anew:
            self.optimizer.zero_grad(set_to_none=True)
        if self.arm.decisions:
            example = decided(example)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = step.loss(self.network, example)
        loss.backward()
        self.loss += loss.detach()

    def _optimizer(self) -> torch.optim.Optimizer:
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.optim.lr, weight_decay=self.optim.weight_decay, fused=fused
        )


def decided(example: Example) -> Example:
    """Return an example whose teacher gives its decisions instead of its probabilities."""
    targets = example.targets
    return example._replace(targets=targets._replace(teacher=(targets.teacher > DECIDED).to(targets.teacher.dtype)))


class Classroom:
    """All students of a seed, their teacher and what they hear."""

    def __init__(self, job: Job, seed: int, train: Crops, held_out: Crops) -> None:
        self.job, self.seed, self.train, self.held_out = job, seed, train, held_out
        self.config = job.config
        self.device = torch.device(job.device)
        self.batch_size = self.config.optim.batch_size
        teacher = load_model(job.teacher)
        self.front_end = LogMel(teacher.card.front_end).to(self.device)
        self.teachers = OnlineTeachers([job.teacher], teacher, self.device)
        self.task = Step(self.config, "bce", self.front_end, self.teachers, 1.0, Share())
        n = -(-job.sample // self.batch_size)
        crops = (self.front_end(train.batch(seed, step, self.batch_size)) for step in range(n))
        self.prior = torch.cat([self.teachers.teach(log_mel).logits for log_mel in crops]).mean(dim=0)
        self.example: Example | None = None  # what the graphs hear
        self.quiet = torch.cat([self.front_end(part) for part in held_out.beginnings().split(self.batch_size)])
        self.truth = torch.cat([self.teachers.teach(part).logits for part in self.quiet.split(self.batch_size)])
        self.sample = torch.cat([self._example(APART + step).log_mel for step in range(n)])  # for the norms
        self.students = {
            arm: Student(ARMS[arm], job.variant(arm).config(), self.config, seed, self.prior, self.device)
            for arm in job.missing(seed)
        }
        self.steps = 0
        self.since = 0  # step of the last measurement
        self.curves: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []  # by per cent of the run
        self.seconds = 0.0
        if job.graphs:
            self._capture()

    def step(self, total: int) -> None:
        """Let all students learn from the next batch of a run of `total` steps."""
        example = self._example(self.steps)
        for student in self.students.values():
            student.step(self.task, example, self.steps / total)
        self.steps += 1
        if 100 * self.steps // total > 100 * (self.steps - 1) // total:
            found = {arm: student.kernels.take() for arm, student in self.students.items()}
            self.kernels.append({"presentations": self.steps * self.batch_size, "students": found})

    def measure(self) -> dict[str, npt.NDArray[np.float32]]:
        """Measure the norms' statistics on the sample, note all measures.

        Return the students' logits on the held-out clips.
        """
        truth = self.truth.float().cpu().numpy()
        positive = 1 / (1 + np.exp(-truth)) > HEARD
        logits, record = {}, {}
        for arm, student in self.students.items():
            network = student.network
            calibrate(network, self.sample, self.batch_size)
            network.eval()
            with torch.no_grad():
                said = (
                    torch.cat([network(part).logits for part in self.quiet.split(self.batch_size)])
                    .float()
                    .cpu()
                    .numpy()
                )
            network.train()
            logits[arm] = said
            loss = float(student.loss) / max(1, self.steps - self.since)
            if not (math.isfinite(loss) and np.isfinite(said).all()):
                raise SystemExit(
                    f"The loss of {arm}, seed {self.seed}, became {loss} by step {self.steps}. Nothing after that "
                    "counts."
                )
            record[arm] = {
                "loss": loss,
                "excess": float(clip_excess(said, truth).mean()),
                "mAP": float(np.nanmean(average_precision(said, positive))),
                "top1": float((said.argmax(axis=1) == truth.argmax(axis=1)).mean()),
            }
            student.loss.zero_()
        self.since = self.steps
        self.curves.append(
            {"presentations": self.steps * self.batch_size, "seconds": round(self.seconds, 1), "students": record}
        )
        return logits

    def reset(self) -> None:
        """Begin anew."""
        for student in self.students.values():
            student.reset()
        self.steps, self.since, self.curves, self.kernels, self.seconds = 0, 0, [], [], 0.0

    def save(self, path: Path) -> None:
        """Write all that is needed to go on from here."""
        students = {
            arm: {
                "network": student.network.state_dict(),
                "optimizer": student.optimizer.state_dict(),
                "loss": student.loss,
                "weights": student.kernels.weights,
                "entropy": student.kernels.entropy,
            }
            for arm, student in self.students.items()
        }
        part = path.with_suffix(".part")
        torch.save(
            {
                "steps": self.steps,
                "since": self.since,
                "curves": self.curves,
                "kernels": self.kernels,
                "seconds": self.seconds,
                "students": students,
            },
            part,
        )
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.steps, self.since, self.curves, self.kernels, self.seconds = (
            state[name] for name in ("steps", "since", "curves", "kernels", "seconds")
        )
        for arm, student in self.students.items():
            student.network.load_state_dict(state["students"][arm]["network"])
            student.optimizer.load_state_dict(state["students"][arm]["optimizer"])
            student.loss.copy_(state["students"][arm]["loss"])
            student.kernels.weights.copy_(state["students"][arm]["weights"])
            student.kernels.entropy.copy_(state["students"][arm]["entropy"])

    def _example(self, step: int) -> Example:
        chance = np.random.default_rng((self.seed, CHANCE, step))
        waveform = self.train.batch(self.seed, step, self.batch_size)
        nothing = torch.zeros(len(waveform), self.truth.shape[1], device=self.device)
        unknown = torch.zeros(len(waveform), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            example = self.task.prepare(Batch(waveform, nothing, nothing, unknown, nothing, []), chance)
        torch.manual_seed(int(chance.integers(2**62)))  # for dropout
        if self.example is None:
            return example
        self.example.log_mel.copy_(example.log_mel)
        for static, fresh in zip(self.example.targets, example.targets, strict=True):
            static.copy_(fresh)
        return self.example

    def _capture(self) -> None:
        example = self._example(0)
        self.example = Example(example.log_mel.clone(), Targets(*(part.clone() for part in example.targets)), None)
        pool = None
        for student in self.students.values():
            pool = student.capture(self.task, self.example, pool)
        self.reset()


def work(job: Job, number: int) -> None:
    """Train and measure the seeds of process `number`, one after the other."""
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = False  # teacher and measures are in float32
    torch.backends.cudnn.benchmark = True
    device = torch.device(job.device)
    train, held_out = open_crops(job, device)
    plan: dict[str, Any] | None = None
    with keeping_all_memory(device.type == "cpu"):
        for seed in job.seeds_of(number):
            if not job.missing(seed):
                continue
            room = Classroom(job, seed, train, held_out)
            if plan is None:
                plan = agree(job, number, room)
            follow(job, room, int(plan["steps"]))
            del room


def open_crops(job: Job, device: torch.device) -> tuple[Crops, Crops]:
    """Return the crops to train on and those held out."""
    data = job.config.data
    rate = load_model(job.teacher).card.front_end.sample_rate
    options = {"sample_rate": rate, "cache": job.cache, "workers": job.workers}
    sources = [open_source("shards", job.corpus, split, **options) for split in (data.train, data.val)]
    resident = Resident(sources[0], device)
    train, held_out = (Crops(source, resident, round(data.seconds * rate), data.fill) for source in sources)
    return train, held_out


def agree(job: Job, number: int, room: Classroom) -> dict[str, Any]:
    """Return the plan of the run, made from the rate of the slowest process where there is a budget."""
    path = Path(job.out) / "plan.json"
    plan: dict[str, Any]
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        _signal(path, plan | {"networks": plan["networks"] | networks_of(job)})
        return plan
    state = Path(job.state)
    steps = job.presentations[1] // room.batch_size
    rates: list[dict[str, float]] = []
    if job.budget:
        _signal(state / f"ready-{number}.signal", {})
        list(_await(state, "ready", job.jobs))
        _signal(state / f"rate-{number}.signal", probe(room))
        rates = list(_await(state, "rate", job.jobs))
        steps = affordable(job, room.batch_size, rates)
    if number == 0:
        plan = {
            "mark": job.mark(),
            "steps": steps,
            "presentations": steps * room.batch_size,
            "rates": rates,
            "budget": job.budget,
            "graphs": job.graphs,
            "jobs": job.jobs,
            "device": torch.cuda.get_device_name() if room.device.type == "cuda" else f"CPU ({platform.machine()})",
            "torch": torch.__version__,
            "clips": [len(room.train), len(room.held_out)],
            "networks": networks_of(job),
        }
        _signal(path, plan)
    (plan,) = _await(path.parent, "plan", 1, ".json")
    print(
        f"process {number}: {plan['presentations']} presentations, CUDA graphs {'on' if job.graphs else 'off'}",
        flush=True,
    )
    return plan


def networks_of(job: Job) -> dict[str, dict[str, Any]]:
    """Return the cost and width of a job's networks."""
    costs = {arm: count(job.variant(arm)) for arm in job.arms}
    return {
        arm: {"macs": cost.macs, "parameters": cost.parameters, "width": job.variant(arm).width}
        for arm, cost in costs.items()
    }


def affordable(job: Job, batch_size: int, rates: list[dict[str, float]], now: float | None = None) -> int:
    """Return how many steps of a run every process can do in the time that is left."""
    least, most = (presentations // batch_size for presentations in job.presentations)
    left = job.started + job.budget - (time.time() if now is None else now)
    in_turn = -(-len(job.seeds) // job.jobs)
    pace = max(rate["step"] for rate in rates)
    overhead = len(MARKS) * max(rate["measure"] for rate in rates)
    return max(1, least, min(most, int((left * MARGIN / in_turn - overhead) / pace)))


def probe(room: Classroom) -> dict[str, float]:
    """Return the seconds of a step and of a measurement, and leave the students as they were."""
    total = 10**6
    room.measure()  # the first one finds algorithms and memory
    started = time.monotonic()
    room.measure()
    measured = time.monotonic() - started
    for _ in range(WARM_STEPS):
        room.step(total)
    _finish(room.device)
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < PROBE_SECONDS:
        room.step(total)
        _finish(room.device)
        steps += 1
    pace = (time.monotonic() - started) / steps
    room.reset()
    return {"step": pace, "measure": measured}


def follow(job: Job, room: Classroom, steps: int) -> None:
    """Train the students of a seed for so many steps, from where an earlier process was killed.

    Write what is known as it comes.
    """
    checkpoint = Path(job.state) / f"seed-{room.seed}-{'-'.join(room.students)}.pt"
    if checkpoint.exists():
        room.load(checkpoint)
    marks = sorted({max(1, round(mark * steps)) for mark in MARKS})
    before, started = room.seconds, time.monotonic()
    saved, parent = started, os.getppid()
    while room.steps < steps:
        if os.getppid() != parent:
            raise SystemExit("The run was killed.")
        room.step(steps)
        room.seconds = before + time.monotonic() - started
        if room.steps not in marks and time.monotonic() - saved > SAVED_EVERY:
            room.save(checkpoint)
            saved = time.monotonic()
        if room.steps in marks:
            logits = room.measure()
            write(job, room, logits, steps)
            room.save(checkpoint)
            saved = time.monotonic()
            last = ", ".join(
                f"{arm} {1e3 * values['excess']:.3f}" for arm, values in room.curves[-1]["students"].items()
            )
            print(
                f"seed {room.seed}, {room.curves[-1]['presentations']} crops, {room.seconds:.0f} s: {last}", flush=True
            )


def write(job: Job, room: Classroom, logits: dict[str, npt.NDArray[np.float32]], steps: int) -> None:
    """Write what is known of a seed, a file for each network, the weights included."""
    truth = room.truth.float().cpu().numpy()
    about = {
        "seed": room.seed,
        "steps": room.steps,
        "of": steps,
        "seconds": room.seconds,
        "together": len(room.students),
    }
    for arm, student in room.students.items():
        curves, kernels = (
            [{"presentations": point["presentations"], **point["students"][arm]} for point in points]
            for points in (room.curves, room.kernels)
        )
        record = about | {"arm": arm, "curves": curves, "kernels": kernels}
        arrays: dict[str, Any] = {"record": np.array(json.dumps(record)), "keys": np.array(room.held_out.keys)}
        arrays |= {"teacher": truth.astype(np.float16), "prior": room.prior.cpu().numpy()}
        arrays["logits"] = logits[arm].clip(-60_000, 60_000).astype(np.float16)
        arrays["excess"] = clip_excess(logits[arm], truth).astype(np.float32)
        state = student.network.state_dict()
        arrays |= {f"weights.{key}": value.half().cpu().numpy() for key, value in state.items() if "batches" not in key}
        path = result_path(job, arm, room.seed)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)


def try_graphs(width: float) -> int:
    """Compare the gradients of a graph with those of single launches; return 0 if they agree."""
    if not torch.cuda.is_available():
        print("CUDA graphs: there is no GPU.")
        return 1
    from dataclasses import replace as but

    from dymn.models import paper
    from dymn.training.settings import parse
    from replicate import SETTINGS

    device = torch.device("cuda")
    settings = parse(SETTINGS)
    prior = torch.zeros(527, device=device)
    students = [
        Student(ARMS["dymn"], but(paper.DYMN, width=width, dropout=0.0).config(), settings, 0, prior, device)
        for _ in range(2)
    ]
    random = torch.Generator(device).manual_seed(0)

    class Loss:
        def loss(self, network: MobileNet, example: Example) -> Tensor:
            return functional.binary_cross_entropy_with_logits(
                network(example.log_mel).logits.float(), example.targets.teacher
            )

    def example() -> Example:
        log_mel = torch.randn(16, 1, 128, 200, device=device, generator=random)
        chances = torch.rand(16, 527, device=device, generator=random)
        return Example(log_mel, Targets(chances, chances, chances, chances[:, 0]), None)

    static: Example = example()
    pool = students[1].capture(Loss(), static, None)  # type: ignore[arg-type]
    if pool is None:
        return 1
    for student in students:
        student.reset()
    worst = 0.0
    for progress in (0.0, 0.1, 0.5):
        fresh = example()
        static.log_mel.copy_(fresh.log_mel)
        static.targets.teacher.copy_(fresh.targets.teacher)
        for student in students:
            student.step(Loss(), static, progress)  # type: ignore[arg-type]
        grads = [torch.cat([p.grad.flatten() for p in s.network.parameters() if p.grad is not None]) for s in students]
        worst = max(worst, float((grads[0] - grads[1]).norm() / grads[0].norm()))
        students[1].network.load_state_dict(students[0].network.state_dict())
    agrees = math.isfinite(worst) and worst < 0.05
    print(f"CUDA graphs: gradients differ by {worst:.2g} of their norm; {'in use' if agrees else 'not used'}.")
    return 0 if agrees else 1


def _signal(path: Path, values: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(part, path)


def _await(folder: Path, name: str, n: int, ending: str = ".signal") -> Iterator[dict[str, Any]]:
    """Return what `n` processes signal, when all have."""
    parent, since = os.getppid(), time.monotonic()
    while len(found := sorted(folder.glob(f"{name}*{ending}"))) < n:
        if os.getppid() != parent or time.monotonic() - since > PATIENCE:
            raise SystemExit(f"The other processes of the run did not come to {name!r}.")
        time.sleep(0.05)
    return iter([json.loads(path.read_text(encoding="utf-8")) for path in found])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
