"""What is for GPUs, on a CPU: half precision, a compiled network, channels last."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.audio.windows import Filled, fill
from dymn.cli import app
from dymn.commands.export import recordings
from dymn.config import ModelCard
from dymn.errors import ConfigError
from dymn.evaluation.assess import InPrecision
from dymn.runtime import torch_backend
from dymn.runtime.cuda import compiled
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")
LOG_MEL = LIVELY.clips(5, 128, 40)
EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"


def small(name="dymn10", **settings):
    model = create_model(name, 4, generator=torch.Generator().manual_seed(0), **{"width": 0.1, **settings})
    model.card = ModelCard(name="tiny", labels=("Dog", "Cat", "Speech, near", "Music"))
    return LIVELY.lively(model, LOG_MEL)


@pytest.fixture(scope="module")
def clips():
    found = recordings(sorted(EXAMPLES.glob("*.ogg")), 32_000)
    return np.stack([fill(clip[:320_000], 320_000, "repeat") for clip in found])


# Of a sigmoid: logits may be off by four times as much and more. Seen on these clips: 0.06 and 0.006.
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.12), ("float16", 0.015)])
def test_half_precision_hears_the_same_on_real_clips(clips, precision, tolerance):
    exact = Tagger.from_pretrained("dymn04_open", "cpu")
    half = Tagger.from_pretrained("dymn04_open", "cpu", precision=precision)
    expected, got = exact.probabilities(clips), half.probabilities(clips)
    assert 0 < abs(expected - got).max() < tolerance
    best = expected.argsort(axis=1)[:, ::-1][:, :2]
    clear = np.take_along_axis(expected, best, axis=1) @ [1, -1] > tolerance
    assert (got.argmax(axis=1) == best[:, 0])[clear].all() and clear.sum() >= 2


def test_half_precision_is_everywhere_but_in_the_front_end(clips):
    exact, half = (Tagger(small(), "cpu", precision=precision) for precision in ("float32", "bfloat16"))
    entered = []
    half.model.stem.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0].dtype))
    samples = clips[0, :64_000]
    log_mel = next(exact.backend.features([Filled(samples, len(samples))], len(samples)))[None]
    for compute in (
        lambda tagger: tagger.probabilities(samples[None]),
        lambda tagger: tagger.backend.run(log_mel).probabilities,
        lambda tagger: tagger.backend.frame_run(log_mel).frames,
        lambda tagger: tagger.embedder("last").vectors(samples[None]),
    ):
        expected, got = compute(exact), compute(half)
        assert got.dtype == np.float32 and 0 < abs(expected - got).max() < 0.05 * abs(expected).max()
    assert entered == [torch.float32] * 4
    np.testing.assert_array_equal(*(tagger.embedder("mels").vectors(samples[None]) for tagger in (exact, half)))
    assert InPrecision(small(), "bfloat16")(LOG_MEL).logits.dtype == torch.bfloat16


def test_full_precision_is_the_same_as_without_a_word(clips):
    samples = clips[:1, :64_000]
    np.testing.assert_array_equal(
        Tagger(small(), "cpu").probabilities(samples), Tagger(small(), precision="float32").probabilities(samples)
    )


@pytest.mark.parametrize(
    ("name", "precision", "batches", "sizes"), [("mn10", "float32", (3, 4, 1, 3), 2), ("dymn10", "bfloat16", (3,), 1)]
)
def test_a_compiled_network_is_one_graph_for_each_power_of_two(name, precision, batches, sizes):
    torch.compiler.reset()
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    model = small(name)
    with torch.inference_mode(), torch_backend.computing(torch.device("cpu"), 1, precision):
        network = compiled(model, backend=count)
        for n_clips in batches:
            expected, got = model(LOG_MEL[:n_clips]), network(LOG_MEL[:n_clips])
            for one, other in zip(expected, got, strict=True):
                assert one.shape == other.shape
                torch.testing.assert_close(one, other)
    assert len(graphs) == sizes


def test_what_cannot_be_compiled_is_said(clips, monkeypatch):
    def fail(graph, example):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch_backend, "compiled", partial(compiled, backend=fail))
    with pytest.raises(
        ConfigError, match=r"cannot be compiled on this machine; leave compile out \(.*no compiler here"
    ):
        Tagger(small("mn10"), "cpu", compile=True).probabilities(clips[:1, :32_000])


def test_a_network_with_channels_last_keeps_them(clips):
    samples = clips[:2, :32_000]
    expected = Tagger(small("mn10"), "cpu", precision="bfloat16").probabilities(samples)
    last = Tagger(small("mn10").to(memory_format=torch.channels_last), "cpu", precision="bfloat16")
    kept = []
    for module in (last.model.stem, *last.model.blocks):
        module.register_forward_hook(
            lambda module, inputs, output: kept.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    np.testing.assert_allclose(last.probabilities(samples), expected, atol=0.01)
    assert len(kept) == 16 and all(kept)


def test_precisions_that_there_are_not():
    with pytest.raises(ConfigError, match="precision is 'fp8'; allowed: float32, bfloat16, float16"):
        Tagger(small(), precision="fp8")
    answer = CliRunner().invoke(app, ["tag", str(EXAMPLES), "--backend", "onnx", "--precision", "float16"])
    assert answer.exit_code == 2 and "is fixed" in answer.stderr


@pytest.mark.parametrize("command", ["tag", "embed"])
def test_commands_compute_as_they_are_told(command, tmp_path):
    outputs = [tmp_path / f"{precision}.csv" for precision in ("float32", "bfloat16")]
    for output in outputs:
        told = [
            command,
            str(EXAMPLES / "dog.ogg"),
            "-m",
            "dymn04_open",
            "--device",
            "cpu",
            "--precision",
            output.stem,
            "-o",
            str(output),
        ]
        assert CliRunner().invoke(app, told).exit_code == 0
    one, other = (output.read_text() for output in outputs)
    assert one != other and len(one.splitlines()) == len(other.splitlines())
