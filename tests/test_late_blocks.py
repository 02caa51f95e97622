"""`benchmarks/late_blocks.py`: training of the last blocks on stored outputs of the earlier ones."""

import numpy as np
import pytest
import soundfile
import torch

import layouts
from dymn import create_model, load_model
from dymn.models import pretrained
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")


@pytest.fixture
def late(monkeypatch):
    module = load_benchmark("late_blocks")
    for name, value in {"BATCH": 4, "FIRST": 2, "REPORT": 5, "SAVE": 7}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def folder(tmp_path):
    """Three clips, how often they are drawn, a teacher, and a student of the same size."""
    for name, seed in (("mn02", 0), ("dymn02", 1)):
        model = create_model(name, generator=torch.Generator().manual_seed(seed)).eval()
        LIVELY.lively(model, LIVELY.clips(6, 128, 50))
        pretrained.save(model, tmp_path / f"{name}.safetensors")
    members, rows = {}, [["key", "shard", "split"]]
    for i in range(3):
        soundfile.write(tmp_path / "clip.flac", 0.1 * np.random.default_rng(i).standard_normal(32_000), 32_000)
        members |= {f"{i}.flac": (tmp_path / "clip.flac").read_bytes(), f"{i}.json": b"{}"}
        rows.append([str(i), "a.tar", "train"])
    layouts.write_shard(tmp_path / "corpora" / "a.tar", members)
    layouts.write_table(tmp_path / "corpora" / "index.csv", rows)
    np.save(tmp_path / "draws.npy", np.ones(3))
    return tmp_path


def test_stored_batches_train_the_last_blocks_only(late, folder, capsys):
    models = ["--model", str(folder / "dymn02.safetensors"), "--teacher", str(folder / "mn02.safetensors")]
    corpora, maps, output = (folder / name for name in ("corpora", "maps", "trained.safetensors"))
    wanted = ["--draws", str(folder / "draws.npy"), "--batches", "3"]
    late.main(["store", str(corpora), *models, *wanted, "--output", str(maps)])
    batches = [late.Stored.load(path) for path in sorted(maps.iterdir())]
    assert len(batches) == 3 and all(len(batch.own) == 4 for batch in batches)

    teacher, student = load_model(folder / "mn02.safetensors").eval(), load_model(folder / "dymn02.safetensors").eval()
    with torch.no_grad():
        for batch in batches:  # what was stored is what the networks compute
            logits = teacher.head(batch.maps[1], batch.embedding)
            torch.testing.assert_close(logits, batch.logits, atol=0.02, rtol=0.02)
            embedding = teacher.last(batch.maps[1]).mean(dim=(2, 3))
            torch.testing.assert_close(embedding, batch.embedding, atol=0.02, rtol=0.02)
        scale = float(batches[0].embedding.var(dim=0).mean())
        before = sum(float(sum(late.losses(student, batch, 6, scale).values())) for batch in batches)

    late.main(["train", str(maps), *models, "--output", str(output), "--steps", "30", "--ema", "0.5"])
    assert "30 steps" in capsys.readouterr().out
    trained = load_model(output).eval()
    with torch.no_grad():
        after = sum(float(sum(late.losses(trained, batch, 6, scale).values())) for batch in batches)
    assert after < 0.8 * before
    old, new, head = student.state_dict(), trained.state_dict(), teacher.head.state_dict()
    for name in old:
        is_kept = name.startswith("stem.") or (name.startswith("blocks.") and int(name.split(".")[1]) < 6)
        is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        if name.startswith("head."):
            torch.testing.assert_close(new[name], head[name.removeprefix("head.")], atol=1e-3, rtol=1e-3)
        elif is_kept or is_statistic:
            torch.testing.assert_close(new[name], old[name], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(new["blocks.14.project.norm.weight"], old["blocks.14.project.norm.weight"], atol=1e-4)
    assert trained.card.provenance["further_crops"] == 30 * 4


def test_the_least_used_batches_come_first(late, folder, monkeypatch):
    (folder / "maps").mkdir()
    for name in ("0", "1", "2", "3"):
        (folder / "maps" / f"{name}.safetensors").touch()
    monkeypatch.setattr(late.Stored, "load", lambda path: path.stem)
    batches = late.Batches(folder / "maps", latest=3, seed=0)
    drawn = [batches.draw() for _ in range(6)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == ["1", "2", "3"]
