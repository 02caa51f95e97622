"""The parts of the benchmarks that can go wrong without anybody seeing it."""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import zlib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from dymn import Tagger, create_model, load_model
from dymn.config import ModelCard
from dymn.fitting.general import general_background
from dymn.inference.embedding import Embedder
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import TAGS
from dymn.inference.formats.writers import json_lines
from dymn.runtime.opening import open_backend
from dymn.training.state import RunState, save_state
from dymn.weights import open_checkpoint

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_zero_shot_names_what_the_published_model_hears(shared, tmp_path):
    esc10 = shared / "esc10"
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").symlink_to(esc10 / "audio")
    (tmp_path / "audioset_map.json").write_bytes((esc10 / "audioset_map.json").read_bytes())
    with (esc10 / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::20]
    with (tmp_path / "meta" / "esc10.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    classes = {row["category"] for row in rows}
    mapping = json.loads((tmp_path / "audioset_map.json").read_text(encoding="utf-8"))
    mapping["classes"] = {name: entry for name, entry in mapping["classes"].items() if name in classes}
    (tmp_path / "audioset_map.json").write_text(json.dumps(mapping), encoding="utf-8")
    tagger = Tagger.from_pretrained(shared / "weights" / "mn04_as_mAP_432.pt", "cpu")
    accuracies = load("zero_shot").zero_shot(tagger, tmp_path, "repeat")
    assert set(accuracies) == classes
    assert np.mean(list(accuracies.values())) >= 0.9


def test_it_is_known_how_each_picture_of_the_documentation_is_made():
    pytest.importorskip("PIL")
    pictures = load("pictures")
    known = [*pictures.pictures(Path("esc10")), *pictures.OTHERS]
    assert sorted(known) == sorted(path.stem for path in (FOLDER.parent / "docs" / "images").iterdir())


def test_the_sparse_recording_is_a_recording(tmp_path):
    path = tmp_path / "long.wav"
    load("long_file").write_sparse_wav(path, 61)
    samples, rate = soundfile.read(path)
    assert (len(samples), rate) == (61 * 44_100, 44_100)
    loud = np.abs(samples).reshape(61, rate).max(axis=1) > 0.01
    assert np.flatnonzero(loud).tolist() == [0, 60]
    if os.name == "posix":
        assert path.stat().st_blocks * 512 < path.stat().st_size / 5
    with pytest.raises(SystemExit, match="hours"):
        load("long_file").write_sparse_wav(path, 100 * 3600)


def test_average_precision_of_a_ranking():
    average_precision = load("combine").average_precision
    present = np.array([True, False, True, False])
    assert average_precision(np.array([0.9, 0.1, 0.8, 0.2]), present) == 1
    assert average_precision(np.array([0.9, 0.8, 0.1, 0.2]), present) == pytest.approx((1 + 2 / 4) / 2)


@pytest.mark.parametrize("path", ["modules", "torch", "fastest", "onnx", "train"])
def test_forms_agree_where_speed_is_measured(path):
    """The numbers that are public: the ratio, and a difference that is round-off while outputs depend on the clip."""
    threads = torch.get_num_threads()
    try:
        found = load("network").measure(width=0.1, batch=2, threads=1, path=path, seconds=0, frames=100)
    finally:
        torch.set_num_threads(threads)
    # norms of two clips magnify round-off
    assert found["max_abs_error"] < (1e-3 if path == "train" else 1e-5) < 0.1 < found["spread"]
    # times are not judged here: on a busy machine even the share of the peak may come out above 1
    assert min(found["ratio"], found["fraction_of_peak"]) > 0 and found["rounds"] == 3


def test_the_benchmark_for_gpus_runs_from_end_to_end_without_one():
    sizes = [
        "--widths",
        "0.1",
        "--batch",
        "2",
        "--frames",
        "100",
        "--seconds",
        "0",
        "--precisions",
        "fp32",
        "bf16",
        "--no-compile",
    ]
    command = [sys.executable, FOLDER / "gpu.py", *sizes]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, check=True)
    head, _, names, _, *rows = done.stdout.splitlines()
    assert head.startswith("device CPU") and "front end clips per second" in head
    table = [dict(zip(names.split(" | "), row.split(" | "), strict=True)) for row in rows]
    assert len(table) == 12 and {row["form"] for row in table} == {"textbook", "modules", "modules, channels last"}
    differences = {row["precision"]: float(row["difference"]) for row in table if row["difference"].strip()}
    assert differences["fp32"] < 1e-4 < differences["bf16"] < 1
    if not torch.cuda.is_available():
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 2 and "Give --device cpu" in refused.stderr and "Traceback" not in refused.stderr


def test_network_benchmark_prints_one_line_of_json():
    options = ["--width", "0.1", "--frames", "50", "--path", "torch", "--seconds", "0", "--json"]
    done = subprocess.run([sys.executable, FOLDER / "network.py", *options], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert {"ratio", "max_abs_error"} <= set(json.loads(line))


def test_the_front_end_is_compared_with_its_textbook_form(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    try:
        found = load("front_end").compare(batch=2, seconds=1.0, runs=2, threads=1)
    finally:
        torch.set_num_threads(threads)
    assert found["max_abs_error"] < 1e-4
    assert found["ratio"] > 0


def test_tagging_and_the_straightforward_script_agree(monkeypatch, tmp_path, capsys):
    pytest.importorskip("librosa")
    monkeypatch.syspath_prepend(FOLDER)
    tagging, threads = load("tagging"), torch.get_num_threads()
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    tagging.make(recordings, 5, wav=False, origin=None)
    assert sorted(path.suffix for path in recordings.iterdir()) == [".flac", ".mp3", ".ogg", ".wav", ".wav"]
    (recordings / "0000.wav").unlink()
    (recordings / "0002.ogg").unlink()
    try:
        tagging.script(str(recordings), "dymn04_open", threads, plain=False)
    finally:
        torch.set_num_threads(threads)
    script, ours = tmp_path / "script", tmp_path / "ours"
    script.write_text(capsys.readouterr().out)
    found = Tagger.from_pretrained("dymn04_open", "cpu").tag_files(sorted(recordings.iterdir()), workers=2)
    ours.write_text("".join(json_lines(found, TAGS, Origin("", "", "", {}))))
    assert tagging.difference(script, ours) < 1e-4
    ours.write_text(json.dumps({"file": "another.wav", "tags": []}))
    with pytest.raises(SystemExit, match="disagree"):
        tagging.difference(script, ours)


def test_stretches_of_a_clip_are_where_its_sound_is():
    clip = np.zeros(32_000 * 3, np.float32)
    for start, end in ((0.5, 1.0), (1.2, 1.5), (2.3, 2.32)):  # a pause that does not part, and a click
        clip[round(start * 32_000) : round(end * 32_000)] = 0.1
    assert load("mixtures").active_stretches(clip, 32_000) == [(16_000, 48_000)]


def test_events_are_where_the_truth_says(shared, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = load("mixtures")
    made = module.mixtures(shared / "esc10", (1,), 3, seed=5)
    again = module.mixtures(shared / "esc10", (1,), 3, seed=5)
    for mixture, same in zip(made, again, strict=True):
        np.testing.assert_array_equal(mixture.waveform, same.waveform)
        assert mixture.events == same.events
        assert 1 <= len(mixture.events) <= 6
        inside = np.zeros(len(mixture.waveform), bool)
        for event in mixture.events:
            assert 0 <= event.start < event.end <= module.SECONDS
            inside[round(event.start * 32_000) : round(event.end * 32_000)] = True
        power = mixture.waveform.astype(np.float64) ** 2
        assert power[inside].mean() > 20 * power[~inside].mean()


def test_thresholds_of_a_student_follow_its_teacher():
    rng = np.random.default_rng(0)
    teacher = rng.uniform(0, 1, (400, 3)).astype(np.float32)
    teacher[:, 2] *= 0.3  # never heard
    student = (teacher * np.array([0.5, 1.0, 1.0])).astype(np.float32)  # half as sure of the first class
    found = load("distilled").thresholds(student, teacher, 10.0)
    assert found["auto"][:2] == pytest.approx([0.15, 0.3], abs=0.02)
    assert found["precise"][0] >= found["auto"][0] and found["auto"][2] not in found["auto"][:2]


def test_the_mean_of_runs_is_that_of_their_last_weights(tmp_path):
    models = [create_model("dymn04", 3, width=0.1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for name, model in zip("ab", models, strict=True):
        (tmp_path / name).mkdir()
        model.card = ModelCard(name=name, labels=tuple("xyz"))
        create_model("dymn04", 3, width=0.1).save_pretrained(tmp_path / name)  # averaged over steps, not of interest
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / "last.safetensors")
        save_state(RunState(model=model.state_dict()), tmp_path / name / "state.pt")
    average = load("average")
    runs = [average.part(str(tmp_path / name)) for name in "ab"]
    made = average.mean_of(runs)
    for name, value in made.state_dict().items():
        wanted = sum(model.state_dict()[name].double() for model in models) / 2
        torch.testing.assert_close(value.double(), wanted, check_dtype=False)
    assert made.card.provenance == {"mean_of": [{"name": name, "share": 0.5} for name in "ab"]}
    files = [average.part(f"3={tmp_path / 'a' / 'last.safetensors'}"), average.part(f"1={tmp_path / 'b'}")]
    made = average.mean_of(files)  # of a file, the weights in it
    wanted = 0.75 * load_model(files[0].path).head.classifier.weight + 0.25 * models[1].head.classifier.weight
    torch.testing.assert_close(made.head.classifier.weight, wanted)
    assert made.card.provenance["mean_of"][0] == {"name": "a", "share": 0.75}
    for wrong in ("0=a", "-1=a", "nan=a"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be above 0"):
            average.part(wrong)
    assert average.part("x=y") == (1.0, Path("x=y"))
    save_state(RunState(model=create_model("dymn04", 4, width=0.1).state_dict()), tmp_path / "b" / "state.pt")
    with pytest.raises(SystemExit, match="different networks"):
        average.mean_of(runs)


def test_scenes_and_pieces_say_what_is_heard_in_them(shared, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = load("hear")
    monkeypatch.setattr(module, "SCENES", 1)
    monkeypatch.setattr(module, "PIECES", (1, 1))
    scenes = list(module.long_scenes(shared / "esc10"))
    assert [fold for fold, _, _ in scenes] == [fold for fold in range(1, 6) for _ in module.LENGTHS]
    assert all(target.sum() == 2 for _, _, target in scenes)
    assert [len(waveform) / module.RATE for _, waveform, _ in scenes] == [*module.LENGTHS] * 5
    pieces = list(module.pieces(shared / "esc10"))
    assert [teaches for teaches, _, _ in pieces] == [True] * 20 + [False] * 20
    assert all(len(waveform) == module.RATE and targets.shape == (21, 10) for _, waveform, targets in pieces)
    # the moment between two pieces is the last of the one and the first of the other
    assert all((one[2][-1] == other[2][0]).all() for one, other in pairwise(pieces[:20]))
    loud = [np.abs(waveform).mean() for _, waveform, _ in pieces]
    heard = [targets.mean() for _, _, targets in pieces]
    assert np.corrcoef(loud, heard)[0, 1] > 0.5


def test_background_is_drawn_from_one_half_of_the_sources_and_embedded(tmp_path, monkeypatch):
    module = load("general_background")
    sources = [f"source {i}" for i in range(40)]
    ours = [name for name in sources if zlib.crc32(name.encode()) % 2 == module.HALF][:2]
    other = next(name for name in sources if name not in ours and zlib.crc32(name.encode()) % 2 != module.HALF)
    dog, rate = soundfile.read(FOLDER.parent / "examples" / "audio" / "dog.ogg", frames=3 * 32_000)
    (tmp_path / "shards").mkdir()
    rows = [(f"{i:02}", ours[i % 2], "train", 3.0) for i in range(8)]
    rows += [("08", other, "train", 3.0), ("09", ours[0], "val", 3.0), ("10", ours[0], "train", 1.0)]
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as shard:
        for key, *_ in rows:
            soundfile.write(tmp_path / f"{key}.opus", dog * (1 + int(key)) / 10, rate, format="FLAC")
            shard.add(tmp_path / f"{key}.opus", f"{key}.opus")
    lines = ["key,source,split,duration_s", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "exclude.csv").write_text("key,reason\n00,shared\n")
    keys = module.drawn(tmp_path, 6)
    assert len(set(keys)) == 6 and keys == module.drawn(tmp_path, 6) and not {"00", "08", "09", "10"} & set(keys)
    assert sum(int(key) % 2 == 0 for key in keys) == 3  # the same number from each source
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--count", "6", "--output", str(tmp_path / "b.npz")])
    module.main()
    stored = open_checkpoint("dymn04_open")
    found = general_background(stored.digest, tmp_path / "b.npz")
    embedded = Embedder(open_backend(stored)).embed(tmp_path / f"{keys[0]}.opus", fill="repeat").vector
    assert found.seconds.tolist() == pytest.approx([len(dog) / rate] * 6, abs=1e-2)
    assert np.abs(found.vectors[0] - embedded).mean() < 0.1 * np.abs(embedded).mean()


def test_a_variant_of_the_recipe_changes_the_loss_for_its_run_only():
    from dymn.training import losses

    variants = load("variants")
    torch.manual_seed(0)
    logits, teacher = torch.randn(3, 5), torch.rand(3, 5)
    targets = losses.Targets(torch.zeros(3, 5), torch.ones(3, 5), teacher, torch.ones(3))

    def loss():
        return losses.loss_terms(logits, targets, label_weight=0.0).teacher

    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits, teacher, reduction="none")
    usual = loss()
    torch.testing.assert_close(usual, cells.mean())
    with variants.VARIANTS["focal loss"].applied():
        torch.testing.assert_close(loss(), (cells * (logits.sigmoid() - teacher).abs()).mean())
    with variants.VARIANTS["certain classes count more"].applied():
        torch.testing.assert_close(loss(), (cells * (1 + 4 * teacher)).mean())
    assert loss() == usual


def test_variants_draw_clips_by_the_weights_of_the_reference(tmp_path, monkeypatch):
    variants = load("variants")
    trained = []

    def train(config):
        folder = Path(config.run.out)
        trained.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "draws.npy").exists():
            (folder / "draws.npy").write_text(f"{config.data.seconds:g} s")
        (folder / "log.jsonl").write_text("{}\n" * 4)

    monkeypatch.setattr(variants, "train", train)
    options = SimpleNamespace(corpora=tmp_path, output=tmp_path / "out", teacher="mn04_as", cache="", draws=None)
    for name in ("crops of 4 to 10 s", "another seed", "teacher dymn04_open", "clips drawn uniformly"):
        variants.run(options, name)
        variants.run(options, name)  # a finished one is not repeated
    assert trained == [
        "reference",
        "crops_of_4_to_10_s",
        "another_seed",
        "teacher_dymn04_open",
        "clips_drawn_uniformly",
    ]
    found = {path.parent.name: path.read_text() for path in sorted((tmp_path / "out").rglob("draws.npy"))}
    assert {found[name] for name in ("reference", "crops_of_4_to_10_s", "another_seed")} == {"4 s"}
    (tmp_path / "other.npy").write_text("full run")
    options.output, options.draws = tmp_path / "given", tmp_path / "other.npy"
    variants.run(options, "another seed")
    assert (tmp_path / "given/another_seed/draws.npy").read_text() == "full run" and trained[5:] == ["another_seed"]


def test_a_table_of_variants():
    variants = load("variants")
    values = {"excess": 0.00336, "ratio": 0.5792, "first": 0.4871, "mAP": 0.43, "found": 0.2}
    lines = variants.table({"reference": values}).splitlines()
    assert lines[0] == "| 14,848 crops | distance | confidence | same best class | mAP |" and lines[1].count("---") == 5
    assert lines[2:] == ["| reference | 0.00336 | 0.579 | 48.7 % | 0.430 |"]


@pytest.mark.parametrize("words", [("--offset", "0.1"), ("--plot", "x.png")])
def test_distilled_refuses_options_of_a_calibration_without_one(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distilled.py", "corpora", *words])
    with pytest.raises(SystemExit, match="2"):
        load("distilled").main()
    assert "need --calibrate FILE" in capsys.readouterr().err
