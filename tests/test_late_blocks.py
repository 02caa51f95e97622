"""`benchmarks/late_blocks.py`: training of the last blocks on stored outputs of the earlier ones."""

import numpy as np
import pytest
import soundfile
import torch

import layouts
from dymn import create_model, load_model
from dymn.models import pretrained
from dymn.native import libraries
from dymn.training.step import Step
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")


@pytest.fixture
def late(monkeypatch):
    module = load_benchmark("late_blocks")
    for name, value in {"BATCH": 4, "FIRST": 2, "REPORT": 5, "SAVE": 7, "WARM_UP": 5, "PATIENCE": 0.0}.items():
        monkeypatch.setattr(module, name, value)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


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


@pytest.mark.skipif(not libraries(), reason="there is no compiled code for this CPU")
def test_stored_batches_train_the_last_blocks_only(late, folder, capsys, monkeypatch):
    heard = []

    def inputs(step, batch, rng, original=Step.inputs):
        heard.append(original(step, batch, rng))
        return heard[-1]

    monkeypatch.setattr(Step, "inputs", inputs)
    models = ["--model", str(folder / "dymn02.safetensors"), "--teacher", str(folder / "mn02.safetensors")]
    corpora, maps, output = (folder / name for name in ("corpora", "maps", "trained.safetensors"))
    wanted = ["--draws", str(folder / "draws.npy"), "--output", str(maps)]
    late.main(["store", str(corpora), *models, *wanted, "--batches", "3"])

    teacher, student = (load_model(folder / f"{name}.safetensors").eval() for name in ("mn02", "dymn02"))
    origin = late.origin_of(student, teacher, 6)
    batches = [late.Stored.load(path, origin) for path in sorted(maps.iterdir())]
    assert len(batches) == 3 and all(len(batch.own) == 4 for batch in batches)

    def close(own, other):
        torch.testing.assert_close(own, other, rtol=0, atol=2e-3 * float(other.abs().max()))

    with torch.no_grad():
        for batch, (log_mel, _) in zip(batches, heard, strict=True):  # what was stored is what the networks compute
            taught, own = teacher.feature_maps(log_mel), student.feature_maps(log_mel)  # the first is the stem's
            for stored, computed in ((batch.own, own[6]), (batch.maps[0], taught[12]), (batch.maps[1], taught[15])):
                close(stored, computed)
            close(batch.embedding, teacher(log_mel).embedding)
            close(batch.logits, teacher(log_mel).logits)
            terms = late.losses(student, batch, 6, 1.0)
            distance = torch.nn.functional.mse_loss(student(log_mel).embedding, batch.embedding)
            torch.testing.assert_close(terms["embedding"], distance, rtol=0.01, atol=0)
        spread = float(batches[0].embedding.var(dim=0).mean())
        before = sum(float(sum(late.losses(student, batch, 6, spread).values())) for batch in batches)

    late.main(["train", str(maps), *models, "--output", str(output), "--steps", "30", "--ema", "0.5"])
    assert "30 steps, 3 batches" in capsys.readouterr().out
    trained = load_model(output).eval()
    with torch.no_grad():
        after = sum(float(sum(late.losses(trained, batch, 6, spread).values())) for batch in batches)
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
    assert trained.card.provenance["crops"] == 30 * 4 and trained.card.provenance["batches"] == 3


@pytest.mark.skipif(not libraries(), reason="there is no compiled code for this CPU")
def test_batches_of_other_networks_and_wrong_draws_are_rejected(late, folder):
    models = ["--model", str(folder / "dymn02.safetensors"), "--teacher", str(folder / "mn02.safetensors")]
    storing = ["store", str(folder / "corpora"), *models, "--draws", str(folder / "draws.npy"), "--batches", "2"]
    late.main([*storing, "--output", str(folder / "maps"), "--freeze", "5"])
    training = ["train", str(folder / "maps"), *models, "--output", str(folder / "trained.safetensors")]
    with pytest.raises(SystemExit, match="was stored with another --model, --teacher or --freeze"):
        late.main(training)  # the maps of blocks 5 and 6 have the same size
    with pytest.raises(SystemExit, match="has 0 batches; training begins with 2"):
        late.main(["train", str(folder / "nowhere"), *training[2:]])
    with pytest.raises(SystemExit, match=r"augment\.cross is 2"):
        late.main([*storing, "--output", str(folder / "maps"), "--set", "augment.cross=2"])
    with pytest.raises(SystemExit, match=r"--set changes optim\.lr; only settings of the augmentation"):
        late.main([*storing, "--output", str(folder / "maps"), "--set", "optim.lr=1"])
    np.save(folder / "draws.npy", np.ones(4))
    with pytest.raises(SystemExit, match=r"is for 4 clips, but .* has 3"):
        late.main([*storing, "--output", str(folder / "maps")])


def test_the_least_used_batches_come_first(late, tmp_path, monkeypatch):
    for name in ("0", "1", "2"):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(late.Stored, "load", lambda path, origin: path.stem)
    batches = late.Batches(tmp_path, {}, seed=0)
    drawn = [batches.draw() for _ in range(6)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == ["0", "1", "2"]
