"""Every dataset in a tiny instance of its published layout, written for tests."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 32_000
OPENMIC_KEYS = ["000046_3840", "000135_483840", "000139_119040"]


def tone(frequency: float, seconds: float = 0.2, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_audio(path: Path, frequency: float = 440.0, seconds: float = 0.2, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(frequency, seconds, rate), rate)
    return path


def encoded(frequency: float, kind: str = "OGG", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    rate = 48_000 if subtype == "OPUS" else RATE
    soundfile.write(file, tone(frequency, rate=rate), rate, format=kind, subtype=subtype)
    return file.getvalue()


def write_table(path: Path, rows: list[list[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_esc50(root: Path) -> None:
    """Three classes, two of them in ESC-10; a clip of each in every fold."""
    rows: list[list[object]] = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    names = {0: "dog", 1: "rooster", 2: "pig"}
    for fold in range(1, 6):
        for target, name in names.items():
            file = f"{fold}-{1000 + target}-A-{target}.wav"
            rows.append([file, fold, target, name, target < 2, 1000 + target, "A"])
            write_audio(root / "audio" / file, rate=44_100)
    write_table(root / "meta" / "esc50.csv", rows)


def write_fsd50k(root: Path) -> None:
    """Two classes; one clip each to train on, to validate, to test."""
    truth = root / "FSD50K.ground_truth"
    write_table(truth / "vocabulary.csv", [[0, "Bark", "/m/1"], [1, "Rain", "/m/2"]])
    dev = [
        ["fname", "labels", "mids", "split"],
        ["64760", "Rain,Bark", "/m/2,/m/1", "train"],
        ["16399", "Rain", "/m/2", "val"],
    ]
    write_table(truth / "dev.csv", dev)
    write_table(truth / "eval.csv", [["fname", "labels", "mids"], ["37199", "Bark", "/m/1"]])
    for part, name in (("dev", "64760"), ("dev", "16399"), ("eval", "37199")):
        write_audio(root / f"FSD50K.{part}_audio" / f"{name}.wav", rate=44_100)


def write_openmic(root: Path, keys: object = None) -> None:
    """Two classes; two clips to train on, one to test."""
    root.mkdir(exist_ok=True)
    np.savez(
        root / "openmic-2018.npz",
        X=np.zeros((3, 10, 4)),
        Y_true=np.array([[0.9, 0.5], [0.1, 0.6], [0.5, 0.2]]),
        Y_mask=np.array([[True, False], [True, True], [False, True]]),
        sample_key=np.array(OPENMIC_KEYS) if keys is None else keys,
    )
    (root / "class-map.json").write_text(json.dumps({"banjo": 1, "accordion": 0}))
    write_table(root / "partitions" / "split01_train.csv", [[key] for key in OPENMIC_KEYS[:2]])
    write_table(root / "partitions" / "split01_test.csv", [[OPENMIC_KEYS[2]]])
    for key in OPENMIC_KEYS:
        write_audio(root / "audio" / "000" / f"{key}.ogg", rate=44_100)


def write_tau(root: Path) -> None:
    """Two scenes; one clip to train on, one to test, one in neither list."""
    files = [
        f"audio/{scene}-{city}-0-{i}-{device}.wav"
        for i, (scene, city, device) in enumerate([("bus", "lyon", "a"), ("park", "wien", "b")])
    ]
    files.append("audio/park-wien-9-9-s1.wav")
    rows = [[file, file.split("/")[1].split("-")[0], "lyon-0", Path(file).stem.split("-")[-1]] for file in files]
    write_table(root / "meta.csv", [["filename", "scene_label", "identifier", "source_label"], *rows], "\t")
    write_table(root / "evaluation_setup" / "fold1_train.csv", [["filename", "scene_label"], [files[0], "bus"]], "\t")
    write_table(
        root / "evaluation_setup" / "fold1_evaluate.csv", [["filename", "scene_label"], [files[1], "park"]], "\t"
    )
    for file in files:
        write_audio(root / file, rate=44_100)


def write_hdf5(path: Path, names: list[str], targets: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["audio_name"] = np.array([name.encode() for name in names])
        audio = file.create_dataset("mp3", (len(names),), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(len(names)):
            audio[i] = np.frombuffer(encoded(200.0 + 100 * i, "MP3"), dtype=np.uint8)
        file["target"] = targets


def write_audioset(root: Path) -> None:
    """One balanced and two unbalanced clips to train on, one to test."""
    multi_hot = np.zeros((4, 527), dtype=np.uint8)
    multi_hot[[0, 1, 1, 2, 3], [0, 5, 526, 7, 300]] = 1
    packed = np.packbits(multi_hot, axis=1)
    root.mkdir(parents=True, exist_ok=True)
    write_hdf5(root / "balanced_train_segments_mp3.hdf", ["Y--aaaaaaaaa.mp3"], packed[:1])
    write_hdf5(root / "unbalanced_train_segments_mp3.hdf", ["YYbbbbbbbbbb.mp3", "Ydddddddddd_.mp3"], packed[1:3])
    write_hdf5(root / "eval_segments_mp3.hdf", ["Yccccccccccc.mp3"], packed[3:])


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_corpus(root: Path, clips: int = 6) -> None:
    rows = [["key", "shard", "split"]]
    for shard in range(2):
        members = {}
        for i in range(shard * clips // 2, (shard + 1) * clips // 2):
            members[f"{i:06d}.opus"] = encoded(200.0 + 50 * i, "OGG", "OPUS")
            members[f"{i:06d}.json"] = json.dumps({"text": "x"}).encode()
            rows.append([f"{i:06d}", f"kd-{shard:04d}.tar", "val" if i == 4 else "train"])
        write_shard(root / "shards" / f"kd-{shard:04d}.tar", members)
    write_table(root / "index.csv", rows)
