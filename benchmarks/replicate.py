"""Claims of the paper in miniature.

A DyMN beats MNs of equal cost (A, Table II), each of its parts helps (B, Table V), a teacher's soft answers teach more
than its decisions (C, the companion of Table IV on a corpus without labels; `replicate_esc10.py` has the table itself),
and an annealed temperature keeps all kernels in use (D, Table X).

    python benchmarks/replicate.py run A B --corpus CORPUS --teacher mn04_as --out results --width 0.2
    python benchmarks/replicate.py run A B --corpus CORPUS --teacher mn04_as --out results --width 0.4 --device cuda
    --budget 560 python benchmarks/replicate.py report results --corpus CORPUS --esc10 ESC10 --page docs/replication.md

The plan was written before the first run and is not changed afterwards.

**Networks.** A: DyMN of width w; MN of width w; the narrowest MN, in steps of 0.005, that costs at least as many
multiply-adds as the DyMN ("equal cost"); MN of width 1.25 w, the paper's next size. B: the rows of Table V that lack
one part (static MN; without Dy-Conv; without Dy-ReLU; without Coordinate Attention), beside A's DyMN and MN. Three
seeds each. C: DyMN and MN, each taught by the teacher's probabilities and by its decisions (1 where p > 0.5, else 0).
D: DyMN with the temperature annealed from 30 to 1 and with 1 throughout; in each per cent of the run, the entropy of
the kernels' weights (mean over clips and layers, in units of log K) and the share of kernels whose mean weight is under
a fifth of an even share ("unused").

A run in a folder that holds finished networks of the same settings trains only the others: `run A` and then `run B` is
`run A B`.

**Training.** From random weights: no inherited weights, no feature matching, no ImageNet. The teacher mn04_as (MIT,
AudioSet mAP 43.2) hears what the students hear; the loss is eq. 8 with lambda = 0. Data: the training part of the
corpus, without the clips that its `exclude.csv` lists, random crops of 2 s, rolled, louder or softer, mixed with
probability 0.6, a quarter of them cut short. All networks of a seed see the same batches: one process computes crop,
mixture, spectrogram and the teacher's answer once and lets every student step on them. AdamW, batches of 128, peak
learning rate 2e-3 (Sec. IV-A for DyMN-S; not tuned, the same for all), warm-up over 5 % of the run, linear ramp-down
from 40 %, temperature 30 to 1 over the first 15 %, bfloat16 autocast on a GPU.

**Length.** The same for all networks and seeds, fixed before training: 190,000 presentations, or with `--budget` as
many as a rate probe of 8 seconds says will fit the time, between the given limits. There is no early stopping and no
choice of checkpoints.

**Measures**, on the corpus's 405 held-out clips (their first 2 s, shorter ones repeated), after the batch norms'
statistics have been measured anew on 1,024 examples made as for training: the cross-entropy above the teacher's own
entropy ("excess", mean over classes, per clip); mAP against the teacher's decisions (p > 0.3); top-1 agreement; and
once, at the end, zero-shot accuracy on ESC-10 (A only).

**Decision.** Difference of the per-clip excess, averaged over seeds; paired bootstrap over clips, 10,000 draws, 95 %
interval. Claim A stands if the DyMN is below the MN of equal cost and the interval excludes zero. Claim B stands for a
part if the DyMN is below the network without it and the interval excludes zero. Claim C is decided by mAP, since the
excess measures the agreement with soft answers. For D no difference in score is expected (0.1 mAP in Table X). Reported
beside it: a bootstrap over the packages that the clips come from, which is wider; the ratio of the excess of a clip
(geometric mean), because a pilot on 7,680 crops showed that a DyMN's activations can run away on single tonal clips
early in training, of which a mean would then consist; how many clips that are; mAP. All seeds are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as but
from pathlib import Path
from typing import Any

import numpy as np

from dymn.architectures import Variant
from dymn.models import paper
from dymn.profiling import count
from dymn.training.recipe import parse_assignment
from dymn.training.settings import TrainConfig, parse

SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"kind": "shards", "seconds": 2.0, "fill": "repeat"},
    "teacher": {"label_weight": 0.0},
    "augment": {"roll_ms": 125, "gain_db": 7, "wave_mixup": 0.6, "padding": 0.25},
    "optim": {"name": "adamw", "lr": 2e-3, "batch_size": 128, "weight_decay": 1e-4},
    # An "epoch" is one per cent of the run.
    "schedule": {
        "epochs": 100,
        "warm_up": 5,
        "ramp_start": 40,
        "ramp_length": 60,
        "floor": 0.01,
        "tau_start": 30,
        "tau_epochs": 16,
    },
}
PRESENTATIONS = 190_000
MARKS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the run, when the students are measured
WIDTH_STEP = 0.005


@dataclass(frozen=True)
class Arm:
    """A network that is trained: what it is called and, for a width, what it is."""

    title: str
    variant: Callable[[float], Variant]
    annealed: bool = True  # else the temperature is its last value throughout
    decisions: bool = False  # taught by the teacher's decisions, not by its probabilities

    def titled(self, width: float) -> str:
        """Return the title with the network's width, such as "MN 0.25"."""
        kind = re.match("[A-Za-z]+", self.title)[0]  # type: ignore[index]
        return f"{kind} {width:g}{self.title.removeprefix(kind)}"


@dataclass(frozen=True)
class Experiment:
    """A claim, the networks that it is about, and the comparisons that decide it.

    The first is to be better than the second.
    """

    claim: str
    arms: tuple[str, ...]
    contrasts: tuple[tuple[str, str], ...]
    zero_shot: bool = False
    measure: str = "excess"  # or "precision": what decides
    deciding: int = 3  # the first so many comparisons decide the claim
    equal: bool = False  # no difference is expected


def equal_cost(width: float) -> Variant:
    """Return the narrowest MN that needs at least the multiply-adds of the DyMN of this width."""
    target = count(but(paper.DYMN, width=width)).macs
    step = round(width / WIDTH_STEP)
    while count(but(paper.MN, width=step * WIDTH_STEP)).macs < target:
        step += 1
    return but(paper.MN, width=round(step * WIDTH_STEP, 3))


def _row(name: str) -> Callable[[float], Variant]:
    return lambda width: but(paper.table("V")[name].variant, width=width)


ARMS = {
    "dymn": Arm("DyMN", lambda width: but(paper.DYMN, width=width)),
    "mn": Arm("MN", lambda width: but(paper.MN, width=width)),
    "mn_equal": Arm("MN", equal_cost),
    "mn_wider": Arm("MN", lambda width: but(paper.MN, width=round(1.25 * width, 3))),
    "mn_static": Arm("MN without Squeeze-and-Excitation", _row("MN Static (no SE)")),
    "no_dyconv": Arm("DyMN without Dy-Conv", _row("- Dy-Conv")),
    "no_dyrelu": Arm("DyMN without Dy-ReLU", _row("- Dy-ReLU")),
    "no_ca": Arm("DyMN without Coordinate Attention", _row("- CA")),
    "dymn_hard": Arm("DyMN, taught by decisions", lambda width: but(paper.DYMN, width=width), decisions=True),
    "mn_hard": Arm("MN, taught by decisions", lambda width: but(paper.MN, width=width), decisions=True),
    "dymn_tau1": Arm("DyMN, temperature 1", lambda width: but(paper.DYMN, width=width), annealed=False),
}
EXPERIMENTS = {
    "A": Experiment(
        "a DyMN is better than an MN of equal cost (Table II)",
        ("dymn", "mn", "mn_equal", "mn_wider"),
        (("dymn", "mn_equal"), ("dymn", "mn"), ("dymn", "mn_wider")),
        zero_shot=True,
        deciding=1,
    ),
    "B": Experiment(
        "each dynamic part helps (Table V)",
        ("dymn", "mn", "mn_static", "no_dyconv", "no_dyrelu", "no_ca"),
        (("dymn", "no_dyconv"), ("dymn", "no_dyrelu"), ("dymn", "no_ca"), ("dymn", "mn"), ("mn", "mn_static")),
    ),
    "C": Experiment(
        "probabilities teach more than decisions (cf. Table IV)",
        ("dymn", "dymn_hard", "mn", "mn_hard"),
        (("dymn", "dymn_hard"), ("mn", "mn_hard")),
        measure="precision",
    ),
    "D": Experiment(
        "an annealed temperature keeps all kernels in use (Table X)",
        ("dymn", "dymn_tau1"),
        (("dymn", "dymn_tau1"),),
        equal=True,
    ),
}


@dataclass(frozen=True)
class Job:
    """What the processes of one run have in common."""

    experiments: tuple[str, ...]
    width: float
    seeds: tuple[int, ...]
    corpus: str
    teacher: str
    out: str
    state: str
    cache: str
    device: str
    jobs: int
    threads: int
    workers: int
    graphs: bool
    presentations: tuple[int, int]  # at least, at most
    budget: float  # seconds after `started`; 0 for no limit
    started: float
    sample: int = 1024  # crops for the prior, and examples for the norms' statistics
    changes: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """The networks of all experiments, each once."""
        return list(dict.fromkeys(arm for name in self.experiments for arm in EXPERIMENTS[name].arms))

    def missing(self, seed: int) -> list[str]:
        """Return the networks of a seed that are not finished in the folder of the results."""
        return [arm for arm in self.arms if not is_finished(result_path(self, arm, seed))]

    @property
    def config(self) -> TrainConfig:
        """The settings of all networks; which network and which teacher it is does not matter here."""
        settings = parse(SETTINGS | {"teacher": {**SETTINGS["teacher"], "models": [self.teacher]}})
        return settings.replace(dict(map(parse_assignment, self.changes)))

    def variant(self, arm: str) -> Variant:
        """Return the network of an arm."""
        return ARMS[arm].variant(self.width)

    def seeds_of(self, number: int) -> tuple[int, ...]:
        """Return the seeds that process `number` trains, one after the other."""
        return self.seeds[number :: self.jobs]

    def mark(self) -> dict[str, Any]:
        """Return what decides the numbers; a run with another mark is another run."""
        names = ("width", "presentations", "sample", "changes")
        values = {name: getattr(self, name) for name in names} | {"settings": SETTINGS}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def result_path(job: Job, arm: str, seed: int) -> Path:
    """Return the path of the result file of a network and seed."""
    return Path(job.out) / f"{arm}-seed{seed}.npz"


def is_finished(path: Path) -> bool:
    """Whether a result file exists and holds a whole run."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as file:
        record = json.loads(str(file["record"]))
    return bool(record["steps"] == record["of"])


def launch(job: Job, graphs: str) -> int:
    """Run the job's processes to their end; return the exit status.

    If one fails, the others go on unless they wait for it.

    Raises:
        SystemExit: if the folder of the results holds a run of other settings.
    """
    plan = Path(job.out) / "plan.json"
    if plan.exists() and (mark := json.loads(plan.read_text(encoding="utf-8"))["mark"]) != job.mark():
        raise SystemExit(f"{job.out} holds another run: {mark}, not {job.mark()}. Choose another folder, or remove it.")
    job = but(job, graphs=job.device.startswith("cuda") and (graphs == "on" or (graphs == "auto" and graphs_work(job))))
    for folder in (job.out, job.state):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for old in Path(job.state).glob("*.signal"):
        old.unlink()
    path = Path(job.state) / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "worker", str(path)]
    workers = [subprocess.Popen([*command, str(number)], env=environment) for number in range(job.jobs)]
    try:
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers) and not (Path(job.out) / "plan.json").exists():
                break  # the others would wait for its rate
            time.sleep(0.2)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
    return max(abs(worker.wait()) for worker in workers)


def graphs_work(job: Job) -> bool:
    """Try CUDA graphs in a process of their own, as a failed capture can spoil a process."""
    command = [sys.executable, str(Path(__file__).resolve()), "try-graphs", "--width", str(job.width)]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        print("CUDA graphs: the trial took too long; every operation is launched by itself.", flush=True)
        return False
    print(tried.stdout.strip() or tried.stderr.strip()[-500:], flush=True)
    return tried.returncode == 0


def job_from(text: str) -> Job:
    """Return the job that `launch` wrote for its processes."""
    values = json.loads(text)
    return Job(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Train the networks of some experiments and measure them.")
    run.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS))
    run.add_argument("--corpus", required=True, help="The corpus: shards, index.csv, exclude.csv.")
    run.add_argument("--teacher", default="mn04_as", help="The online teacher, by name or file.")
    run.add_argument("--out", required=True, help="The folder of the results; a run that was killed there is resumed.")
    run.add_argument("--state", help="The folder of checkpoints (default: OUT/state).")
    run.add_argument("--cache", help="The folder of the decoded corpus (default: STATE/cache).")
    run.add_argument("--width", type=float, default=0.2, help="The width of the DyMN.")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--device", default="cpu")
    run.add_argument(
        "--jobs", type=int, help="Processes at a time, each with seeds of its own (default: one per seed)."
    )
    run.add_argument("--threads", type=int, default=1, help="CPU threads of each process.")
    run.add_argument("--workers", type=int, default=0, help="Processes that decode the corpus into the cache.")
    run.add_argument(
        "--presentations",
        type=int,
        default=PRESENTATIONS,
        help="Crops that each network hears; with --budget, at most.",
    )
    run.add_argument(
        "--least", type=int, default=0, help="With --budget: hear at least so many crops, even if time runs out."
    )
    run.add_argument(
        "--budget",
        type=float,
        default=0.0,
        help="Seconds after which all is to be done; a rate probe fixes the length.",
    )
    run.add_argument(
        "--sample", type=int, default=1024, help="Training crops for the prior and for the norms' statistics."
    )
    run.add_argument("--graphs", choices=("auto", "on", "off"), default="auto", help="CUDA graphs.")
    run.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="Changes of settings; they make it another experiment.",
    )
    worker = commands.add_parser("worker")
    worker.add_argument("job")
    worker.add_argument("number", type=int)
    trial = commands.add_parser("try-graphs", help="Check that CUDA graphs give the gradients of single launches.")
    trial.add_argument("--width", type=float, default=0.4)
    report = commands.add_parser("report", help="Write the page, its pictures and the figures as JSON.")
    report.add_argument("out", type=Path)
    report.add_argument("--corpus", type=Path, help="For the bootstrap over packages.")
    report.add_argument("--esc10", type=Path, help="The folder of ESC-10, for zero-shot accuracy.")
    report.add_argument("--page", type=Path, default=Path("docs/replication.md"))
    report.add_argument("--images", type=Path, help="The folder of pictures (default: images beside the page).")
    report.add_argument(
        "--unfinished", action="store_true", help="Take seeds that were stopped, if all came equally far."
    )
    report.add_argument("--draws", type=int, default=10_000, help="Draws of the bootstrap.")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parser().parse_args(arguments)
    if options.command == "worker":
        from replicate_run import work

        work(job_from(Path(options.job).read_text(encoding="utf-8")), options.number)
        return 0
    if options.command == "try-graphs":
        from replicate_run import try_graphs

        return try_graphs(options.width)
    if options.command == "report":
        from replicate_report import write_report

        images = options.images or options.page.parent / "images"
        write_report(
            options.out, options.page, images, options.corpus, options.esc10, options.draws, options.unfinished
        )
        return 0
    state = options.state or str(Path(options.out) / "state")
    most = options.presentations
    job = Job(
        experiments=tuple(options.experiments),
        width=options.width,
        seeds=tuple(options.seeds),
        corpus=options.corpus,
        teacher=options.teacher,
        out=options.out,
        state=state,
        cache=options.cache or str(Path(state) / "cache"),
        device=options.device,
        jobs=min(options.jobs or len(options.seeds), len(options.seeds)),
        threads=options.threads,
        workers=options.workers,
        graphs=False,
        presentations=(min(options.least, most), most),
        budget=options.budget,
        started=time.time(),
        sample=options.sample,
        changes=tuple(options.set),
    )
    return launch(job, options.graphs)


if __name__ == "__main__":
    sys.exit(main())
