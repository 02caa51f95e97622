"""The replication harness.

That pairs are pairs, that a killed run goes on, and that the statistics say what they should.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace as but
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dymn.evaluation import metrics
from dymn.models import paper
from dymn.profiling import count

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def modules():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def corpus(shared, tmp_path_factory):
    """A corpus of some clips of the real one."""
    import tarfile

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "shards").mkdir()
    with (shared / "kd_corpus" / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["shard"] == "kd-0000.tar"]
    chosen = [row for row in rows if row["split"] == "train"][:20] + [row for row in rows if row["split"] == "val"][:6]
    keys = {row["key"] for row in chosen}
    with (
        tarfile.open(shared / "kd_corpus" / "shards" / "kd-0000.tar") as whole,
        tarfile.open(folder / "shards" / "kd-0000.tar", "w") as part,
    ):
        for member in whole:
            if member.name.split(".")[0] in keys:
                part.addfile(member, whole.extractfile(member))
    chosen.sort(key=lambda row: row["key"])
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    excluded = next(row["key"] for row in chosen if row["split"] == "train")
    (folder / "exclude.csv").write_text(f"key,reason\n{excluded},a benchmark's\n", encoding="utf-8")
    return folder


def command(shared, corpus, tmp_path_factory, *more):
    teacher = shared / "weights" / "mn04_as_mAP_432.pt"
    cache = tmp_path_factory.getbasetemp() / "replication-cache"
    words = [
        "run",
        "A",
        "--corpus",
        corpus,
        "--teacher",
        teacher,
        "--cache",
        cache,
        "--width",
        "0.1",
        "--sample",
        "8",
        *more,
    ]
    return [
        sys.executable,
        str(FOLDER / "replicate.py"),
        *map(str, words),
        "--set",
        "optim.batch_size=8",
        "data.seconds=0.5",
    ]


def test_equal_cost_is_the_narrowest_that_costs_as_much():
    from replicate import WIDTH_STEP, equal_cost

    for width in (0.2, 0.4):
        target, found = count(but(paper.DYMN, width=width)).macs, equal_cost(width)
        assert count(found).macs >= target > count(but(found, width=found.width - WIDTH_STEP)).macs
    assert equal_cost(0.4).width == 0.425


def test_experiments_are_the_papers_rows():
    from replicate import ARMS, EXPERIMENTS

    assert ARMS["no_dyrelu"].variant(1.0) == paper.table("V")["- Dy-ReLU"].variant
    assert ARMS["dymn"].variant(0.4) == paper.table("II")["DyMN-S"].variant
    for experiment in EXPERIMENTS.values():
        assert {arm for pair in experiment.contrasts for arm in pair} <= set(experiment.arms) <= set(ARMS)


def test_a_killed_run_goes_on_and_gives_the_same_numbers(shared, corpus, tmp_path, tmp_path_factory):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--seeds", "0", "--presentations", "160")
    done = subprocess.run(
        command(shared, corpus, tmp_path_factory, *options, "--out", whole), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        command(shared, corpus, tmp_path_factory, *options, "--out", killed), stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not list(killed.glob("*-seed*.npz")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()
    left = [json.loads(str(np.load(path)["record"])) for path in killed.glob("*-seed*.npz")]
    assert left and all(0 < record["steps"] < record["of"] for record in left), "a kill leaves what is known by then"
    done = subprocess.run(
        command(shared, corpus, tmp_path_factory, *options, "--out", killed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for arm in ("dymn", "mn", "mn_equal", "mn_wider"):
        first, second = (np.load(folder / f"{arm}-seed0.npz") for folder in (whole, killed))
        assert first.files == second.files
        for name in first.files:
            if name != "record":
                assert np.array_equal(first[name], second[name]), (arm, name)
        kernels = [json.loads(str(result["record"]))["kernels"] for result in (first, second)]
        assert kernels[0] == kernels[1] and len(kernels[0]) == 20
        assert all(("entropy" in point) == (arm == "dymn") for point in kernels[0])
    other = subprocess.run(
        command(shared, corpus, tmp_path_factory, "--seeds", "0", "--presentations", "80", "--out", whole),
        capture_output=True,
        text=True,
    )
    assert other.returncode != 0 and "another run" in other.stderr


def test_students_share_batches_and_the_budget_fixes_the_length(
    shared, corpus, tmp_path, tmp_path_factory, monkeypatch
):
    import replicate
    import replicate_run

    changes = ("optim.batch_size=8", "data.seconds=0.5")
    teacher = str(shared / "weights" / "mn04_as_mAP_432.pt")
    cache = str(tmp_path_factory.getbasetemp() / "replication-cache")
    places = (str(corpus), teacher, str(tmp_path), str(tmp_path), cache, "cpu")
    job = replicate.Job(("A",), 0.1, (0, 1, 2), *places, 3, 1, 0, False, (80, 800), 100.0, 1000.0, 8, changes)
    train, held_out = replicate_run.open_crops(job, torch.device("cpu"))
    excluded = (corpus / "exclude.csv").read_text().split("\n")[1].split(",")[0]
    assert len(train) == 19 and excluded not in train.keys and len(held_out) == 6
    # Every clip once in a round, the same for whoever asks again, another order for another seed.
    crops = [train.batch(0, step, 19) for step in (0, 1)]
    assert torch.equal(crops[0], train.batch(0, 0, 19)) and not torch.equal(crops[0], train.batch(1, 0, 19))
    assert len({tuple(row[:50].tolist()) for row in crops[0]}) == 19

    room = replicate_run.Classroom(job, 0, train, held_out)
    heard = {}
    for arm, student in room.students.items():
        student.network.register_forward_pre_hook(lambda _, inputs, arm=arm: heard.update({arm: inputs[0].clone()}))
    room.step(10)
    assert all(torch.equal(log_mel, heard["dymn"]) for log_mel in heard.values()) and len(heard) == 4
    assert not any(
        torch.equal(s.start["head.classifier.weight"], s.network.head.classifier.weight) for s in room.students.values()
    )
    room.reset()
    assert all(
        torch.equal(s.start["head.classifier.weight"], s.network.head.classifier.weight) for s in room.students.values()
    )

    rates = [{"step": 0.1, "measure": 1.0}, {"step": 0.2, "measure": 1.5}]
    marks = len(replicate.MARKS)
    assert replicate_run.affordable(job, 8, [{"step": 0.01, "measure": 0.1}], now=1000.0) == 100, (
        "at most what is asked for"
    )
    assert replicate_run.affordable(job, 8, [{"step": 9.0, "measure": 1.0}], now=1000.0) == 10, "at least the least"
    slow, fast = (
        replicate_run.affordable(but(job, presentations=(8, 10**6)), 8, rates[:n], now=1000.0) for n in (2, 1)
    )
    assert slow == int((90 - 1.5 * marks) / 0.2) < fast, "the slowest process decides"


def test_excess_is_zero_for_the_teacher_alone():
    from replicate_figures import clip_excess

    rng = np.random.default_rng(0)
    teacher, other = rng.normal(size=(2, 5, 7)) * 4
    p, q = (1 / (1 + np.exp(-logits)) for logits in (teacher, other))
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
    assert clip_excess(other, teacher) == pytest.approx(divergence)
    assert clip_excess(teacher, teacher) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(clip_excess(other * 1e4, teacher)).all()


def test_average_precision_is_scikit_learns_with_repeated_clips():
    from replicate_figures import average_precision

    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=(40, 6)), rng.random((40, 6)) < 0.2
    positive[:, 5] = False
    counts = rng.multinomial(40, np.full(40, 1 / 40)).astype(float)
    repeated = np.repeat(np.arange(40), counts.astype(int))
    for found, rows in (
        (average_precision(scores, positive), np.arange(40)),
        (average_precision(scores, positive, counts), repeated),
    ):
        expected = [
            result.average_precision for result in metrics.per_class(scores[rows], positive[rows].astype(float))
        ]
        assert found == pytest.approx(expected, nan_ok=True)


def test_paired_bootstrap_covers_and_groups_widen():
    from replicate_figures import paired_bootstrap

    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        interval = paired_bootstrap(rng.normal(0.3, 1.0, 80), draws=500)
        inside += interval.low <= 0.3 <= interval.high
    assert 180 <= inside <= 198
    groups = [str(i // 10) for i in range(200)]
    difference = np.repeat(rng.normal(size=20), 10) + 0.1 * rng.normal(size=200)
    alone, together = paired_bootstrap(difference), paired_bootstrap(difference, groups)
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert alone.estimate == pytest.approx(difference.mean())


def synthetic(folder, gaps, n=80, seeds=(0, 1, 2)):
    """Write results as `run` does.

    Each network's logits are the teacher's plus noise of a size that decides how good it is.
    """
    from replicate import ARMS
    from replicate_figures import clip_excess

    rng = np.random.default_rng(0)
    teacher = rng.normal(-4, 2, size=(n, 30)).astype(np.float32)
    noise = rng.normal(size=(n, 30))
    arms = list(ARMS)
    networks = {arm: {"macs": 10**8 + 10**6 * i, "parameters": 10**6, "width": 0.4} for i, arm in enumerate(arms)}
    mark = {"width": 0.4, "changes": []}
    plan = {
        "mark": mark,
        "steps": 10,
        "presentations": 1280,
        "graphs": False,
        "jobs": 3,
        "device": "CPU",
        "torch": "2",
        "clips": [100, n],
    }
    (folder / "plan.json").write_text(json.dumps({**plan, "networks": networks}), encoding="utf-8")
    for seed in seeds:
        for arm in arms:
            said = teacher + gaps.get(arm, 1.0) * (noise + 0.3 * rng.normal(size=noise.shape))
            arrays = {"keys": np.array([f"{i:06d}" for i in range(n)]), "teacher": teacher}
            arrays |= {"prior": teacher.mean(axis=0), "logits": said, "excess": clip_excess(said, teacher)}
            points = (128, 640, 1280)
            curves = [
                {"presentations": at, "loss": 0.01, "excess": 10 / at, "mAP": at / 2000, "top1": 0.5} for at in points
            ]
            kernels = [{"presentations": at, "entropy": 1 - at / 2000, "unused": at / 2000} for at in points]
            steps = 5 if seed == 2 and gaps.get("unfinished") else 10
            record = {"seed": seed, "arm": arm, "steps": steps, "of": 10, "seconds": 60.0, "curves": curves}
            record["kernels"] = kernels if arm.startswith("dymn") else []
            np.savez(folder / f"{arm}-seed{seed}.npz", record=np.array(json.dumps(record)), **arrays)


def test_report_decides_what_the_data_say(tmp_path):
    from replicate_report import contrast, read, write_report

    # The DyMN is better than MNs, worse than without Dy-Conv, and as good as without attention.
    synthetic(
        tmp_path,
        {"dymn": 1.0, "mn_equal": 1.2, "mn": 1.3, "mn_wider": 1.2, "no_dyconv": 0.8, "no_dyrelu": 1.3, "no_ca": 1.0}
        | {"dymn_hard": 1.2, "mn_hard": 1.3, "dymn_tau1": 1.0},
    )
    results = read(tmp_path)
    stands = {arm: contrast(results, "dymn", arm, None, 1000) for arm in ("mn_equal", "no_dyconv", "no_ca")}
    assert (
        stands["mn_equal"].stands and stands["mn_equal"].seeds_ahead == 3 and stands["mn_equal"].precision.estimate > 0
    )
    assert stands["no_dyconv"].excess.low > 0 and not stands["no_dyconv"].stands
    assert not stands["no_ca"].excess.excludes_zero
    page = tmp_path / "docs" / "replication.md"
    write_report(tmp_path, page, page.parent / "images", None, None, 1000)
    text = page.read_text(encoding="utf-8")
    assert "- Claim A, also compared: **DyMN 0.4 is better than MN 0.4.**" in text
    assert "**DyMN 0.4 is worse than DyMN 0.4 without Dy-Conv.**" in text
    assert "**No decision** between DyMN 0.4 and DyMN 0.4 without Coordinate Attention" in text
    assert "- DyMN 0.4 − DyMN 0.4 without Dy-Conv: opposite to the paper." in text
    assert "**DyMN 0.4 is better than DyMN 0.4, taught by decisions.**" in text
    assert "| DyMN 0.4, temperature 1 | 0.936, 0.680, 0.360 | 6.4 %, 32.0 %, 64.0 % |" in text
    for name in ("replication-curves.png", "replication-macs.png", "replication-kernels.png"):
        assert (page.parent / "images" / name).stat().st_size > 5000 and f"(images/{name})" in text
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert len(figures["claims"]["A"]["networks"]["dymn"]["excess"]) == 3


def test_report_takes_for_each_claim_the_seeds_that_all_its_networks_have(tmp_path):
    from replicate_report import read, write_report

    synthetic(tmp_path, {"dymn": 1.0, "no_ca": 1.2})
    for path in [*tmp_path.glob("no_ca-seed[12].npz"), *tmp_path.glob("*_hard-seed*.npz")]:
        path.unlink()
    results = read(tmp_path)
    part = results.of(("dymn", "no_ca"))
    assert part.seeds == {"dymn": [0], "no_ca": [0]} and part.excess["dymn"].shape == (1, 80)
    assert (part.excess["dymn"][0] == results.excess["dymn"][0]).all()
    write_report(tmp_path, tmp_path / "page.md", tmp_path, None, None, 200)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.count("These are results of 1 of the 3 planned seeds.") == 1
    assert "## Claim C" not in text and "replicate.py run A B D --corpus" in text
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["claims"]
    assert {name: figures[name]["seeds"] for name in figures} == {"A": [0, 1, 2], "B": [0], "D": [0, 1, 2]}


def test_report_leaves_an_unfinished_seed_out_and_says_so(tmp_path):
    from replicate_report import read, write_report

    synthetic(tmp_path, {"unfinished": 1.0})
    assert read(tmp_path).seeds["dymn"] == [0, 1]
    write_report(tmp_path, tmp_path / "page.md", tmp_path, None, None, 200)
    assert "Unfinished and left out: dymn-seed2 (50 %)" in (tmp_path / "page.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="unequally far"):
        read(tmp_path, partial=True)
    for path in tmp_path.glob("*-seed[01].npz"):
        path.unlink()
    with pytest.raises(SystemExit, match="no finished seed"):
        read(tmp_path)
    write_report(tmp_path, tmp_path / "page.md", tmp_path, None, None, 200, partial=True)
    assert "Unfinished, measured where they stopped: dymn-seed2 (50 %)" in (tmp_path / "page.md").read_text(
        encoding="utf-8"
    )


def test_what_runaway_clips_hide_is_said():
    from replicate_report import _without_runaways

    excess = {"dymn": np.full((2, 4), 0.002), "dymn_tau1": np.full((2, 4), 0.003)}
    excess["dymn_tau1"][1, 3], excess["dymn"][:, 3] = 50.0, 0.09
    part = SimpleNamespace(excess=excess, title=lambda arm: {"dymn": "DyMN", "dymn_tau1": "DyMN, temperature 1"}[arm])
    told = _without_runaways(part, ("dymn", "dymn_tau1"), ["dymn_tau1"])
    assert told.startswith("A few runaway clips dominate the mean excess of DyMN, temperature 1.")
    calm = {"dymn": np.full((1, 2), 0.05), "dymn_tau1": np.full((1, 2), 0.05)}
    assert _without_runaways(SimpleNamespace(excess=calm, title=str), ("dymn", "dymn_tau1"), ["dymn_tau1"]) == ""
    assert told.endswith("it is 2.000 for DyMN; 3.000 for DyMN, temperature 1.")
