"""ONNX files: the network's numbers for every form and variant that can be written, and none written that disagrees."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.cli import app
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError
from dymn.export import build, export_model
from dymn.export import write as writing
from dymn.export.graph import front_end
from dymn.export.nodes import Nodes
from dymn.export.parity import compare
from dymn.export.plan import Plan
from dymn.export.traced import trace
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.layers import ATTENTIONS
from dymn.models.paper import TABLES
from dymn.runtime.onnx_backend import OnnxBackend, find_file
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")
N_MELS, LABELS = 32, ("Dog", "Cat", "Speech, near", "Music")
FRONT_END = FrontEndConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=N_MELS, f_max=3900)
LOG_MEL = LIVELY.clips(8, N_MELS, 70)
EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"


def small(name="dymn10", exclusive=False, **overrides):
    model = create_model(name, len(LABELS), generator=torch.Generator().manual_seed(0), **{"width": 0.1, **overrides})
    model.card = ModelCard(name="tiny", labels=LABELS, front_end=FRONT_END, exclusive=exclusive, licence="CC0-1.0")
    return LIVELY.lively(model, LOG_MEL)


def assert_same(model, log_mel, tolerance=1e-4, **settings):
    with torch.no_grad():
        expected = model(log_mel)
    got = OnnxBackend(build(model, input="log-mel", seconds=0.7, **settings), threads=1).outputs(log_mel.numpy())
    assert abs(got[0] - model.probabilities(expected.logits).numpy()).max() < tolerance
    assert abs(got[1] - expected.logits.numpy()).max() < tolerance
    assert abs(got[2] - expected.embedding.numpy()).max() < 10 * tolerance


SIZES = {"temperature", "reduction", "h_min", "h_max", "n_kernels"}  # settings that change no operation
VARIANTS = [
    json.loads(text)
    for text in {
        json.dumps(
            {"name": f"{row.architecture[:-2]}10"}
            | {name: row.settings[name] for name in row.settings if name not in SIZES}
        ): None
        for table in TABLES.values()
        for row in table.rows
    }
]
OTHERS = [
    {"name": "mn10", "head": "fully_convolutional", "exclusive": True},
    {"context": "own", "n_maps": 3, "attention": "se"},
    {"dynamic_relus": (), "temperature": 5.0},
    {"dynamic_blocks": "se", "n_maps": 1, "strides": (2, 1, 2, 1)},
]


@pytest.mark.parametrize("overrides", [*VARIANTS, *OTHERS], ids=str)
def test_every_form_gives_the_numbers_of_the_network(overrides):
    model = small(**overrides)
    # static networks have one graph
    for dynamic_batch in (False, True) if "dymn" in overrides.get("name", "dymn") else (True,):
        assert_same(model, LOG_MEL, dynamic_batch=dynamic_batch)


class Neighbours(torch.nn.Module):
    """An attention of somebody else's."""

    needs_context = True

    def __init__(self, channels, context_size, stride):
        super().__init__()
        self.conv = torch.nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        self.linear = torch.nn.Linear(context_size, channels)

    def forward(self, x, context):
        means = self.conv(x.mean(dim=(2, 3))[:, None])[:, 0] + self.linear(context.vector)
        return x * torch.sigmoid(means)[..., None, None]


class Deciding(Neighbours):
    def forward(self, x, context):
        return x if x.sum() > 0 else -x


class Unknown(Neighbours):
    def forward(self, x, context):
        return torch.erfinv(x)


def test_attentions_of_others_are_traced(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "other", Neighbours)
    assert_same(small(attention="other"), LOG_MEL)


@pytest.mark.parametrize(
    ("attention", "said"),
    [(Deciding, "Deciding cannot be exported"), (Unknown, "Unknown uses erfinv.*Supported: .*bmm")],
)
def test_attentions_that_cannot_be_exported_say_why(attention, said, monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "other", attention)
    model = create_model("mn10", 2, width=0.1, attention="other")
    with pytest.raises(ConfigError, match=said):
        build(model)


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_nothing_in_a_file_is_idle(dynamic_batch):
    graph = onnx.load_from_string(build(small(), dynamic_batch=dynamic_batch)).graph
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert {name for node in graph.node for name in node.output} <= used | {value.name for value in graph.output}


@pytest.mark.parametrize("n_frames", [1, 2, 33, 150])
def test_any_length_where_time_is_free(n_frames):
    model = small()
    for dynamic_batch in (False, True):
        assert_same(
            model,
            LIVELY.clips(2, N_MELS, max(n_frames, 2))[..., :n_frames],
            dynamic_time=True,
            dynamic_batch=dynamic_batch,
        )


def test_lower_precision_is_smaller_and_near():
    model = small()
    sizes = [len(build(model, input="log-mel", precision=precision)) for precision in ("fp32", "fp16", "int8")]
    assert sizes[1] < 0.65 * sizes[0] and sizes[2] < 0.5 * sizes[0]
    assert_same(model, LOG_MEL, 5e-3, precision="fp16")
    assert_same(model, LOG_MEL, 0.1, precision="int8")


CLIPS = list(np.random.default_rng(1).standard_normal((8, 5600)).astype(np.float32) * 0.1)


def test_calibration_puts_static_pointwise_convolutions_into_integers():
    model = small("mn10", width=0.2)
    graph = onnx.load_from_string(build(model, seconds=0.7, precision="int8", calibrate=CLIPS)).graph
    made = {name: node for node in graph.node for name in node.output}
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    integer = [
        node
        for node in graph.node
        if node.op_type == "Conv" and made.get(node.input[1], node).op_type == "DequantizeLinear"
    ]
    assert integer and all(made[node.input[0]].op_type == "DequantizeLinear" for node in integer)
    for node in integer:
        kernel, scale, _ = (sizes[name] for name in made[node.input[1]].input)
        assert kernel.data_type == onnx.TensorProto.INT8 and kernel.dims[2:] == [1, 1] and np.prod(kernel.dims) >= 1024
        assert scale.dims == kernel.dims[:1]  # one a channel
    of_front_end = next(node for node in graph.node if node.op_type == "Conv")
    assert sizes[of_front_end.input[1]].data_type == onnx.TensorProto.FLOAT


def test_agreement_of_integers_is_measured_and_bounded(tmp_path):
    model = small("mn10", width=0.2)
    exported = export_model(model, tmp_path / "tiny.onnx", seconds=0.7, precision="int8", calibrate=CLIPS)
    parity = exported.parity
    assert (parity.clips, parity.bound.measure) == (8, "mean") and parity.bound.agreement > 0
    assert 0 < parity.mean <= parity.largest < 0.1 and 0 < parity.mean_average_precision <= 1
    with pytest.raises(
        writing.ExportError,
        match=r"no.onnx was not written: on 8 clips.*best class is the same on.*without calibration",
    ):
        export_model(model, tmp_path / "no.onnx", seconds=0.7, precision="int8", calibrate=CLIPS, tolerance=0)
    assert [item.name for item in tmp_path.iterdir()] == ["tiny.onnx"]


def test_a_file_that_prefers_other_classes_does_not_hold():
    model = small()
    plan = Plan(seconds=0.7, precision="int8")
    with torch.no_grad():
        right = [model(LogMel(FRONT_END)(torch.from_numpy(clip[None]))).logits for clip in CLIPS]
    answers = iter(right)
    good = compare(lambda clip: (torch.sigmoid(logits := next(answers)).numpy(), logits.numpy()), model, plan, CLIPS)
    assert good.holds and (good.agreement, good.mean_average_precision) == (1, 1) and good.largest < 1e-6
    answers = iter(right)
    bad = compare(
        lambda clip: (torch.sigmoid(-(logits := next(answers))).numpy(), -logits.numpy()),
        model,
        plan,
        CLIPS,
        tolerance=1.0,
    )
    assert bad.mean < 1 and bad.agreement == 0 and not bad.holds


def test_programs_of_torch_run_without_dymn(tmp_path):
    assert_program_runs(small(dynamic_blocks=(1, 7, 14)), tmp_path)  # slow_export.py: dynamic blocks throughout


def assert_program_runs(model, tmp_path):
    """A program for clips of any length and number gives the model's probabilities where dymn is not installed."""
    export_model(model, tmp_path / "tiny.pt2", format="torch", seconds=1.0, dynamic_time=True, dynamic_batch=True)
    waveforms = torch.from_numpy(np.stack(CLIPS[:3]))
    np.save(tmp_path / "clips.npy", waveforms)
    code = (
        "import sys, json\nsys.modules['dymn'] = None\nimport numpy, torch\nextra = {'dymn': ''}\n"
        "program = torch.export.load('tiny.pt2', extra_files=extra).module()\n"
        "numpy.save('got.npy', program(torch.from_numpy(numpy.load('clips.npy')))[0].detach())\n"
        "print(json.loads(extra['dymn'])['card']['labels'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(list(LABELS))
    with torch.no_grad():
        expected = model.probabilities(model(LogMel(FRONT_END)(waveforms)).logits)
    assert abs(np.load(tmp_path / "got.npy") - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("n_samples", [130, 400, 5600, 5601])
def test_the_front_end_inside_is_ours(n_samples):
    model = small()
    waveforms = np.random.default_rng(n_samples).standard_normal((2, n_samples)).astype(np.float32) * 0.1
    backend = OnnxBackend(build(model, dynamic_time=True, dynamic_batch=True), threads=1)
    with torch.no_grad():
        expected = model(LogMel(FRONT_END)(torch.from_numpy(waveforms))).logits
    assert abs(backend.outputs(waveforms)[1] - expected.numpy()).max() < 1e-4


FRONT_ENDS = (
    FrontEndConfig(),
    FrontEndConfig(hop_length=160, n_mels=40),
    FrontEndConfig(hop_length=333, win_length=801),  # frames begin nowhere together
    FrontEndConfig(n_fft=1000, win_length=900, hop_length=250, n_mels=20),
    FrontEndConfig(sample_rate=8000, n_fft=256, win_length=255, hop_length=48, n_mels=16, f_max=4000),
)


@pytest.mark.parametrize("config", FRONT_ENDS)
def test_front_ends_of_any_measures(config):
    nodes = Nodes()
    log_mel = front_end(nodes, "waveform", config)
    graph = nodes.model(
        {"waveform": ["batch", "samples"]}, {"log_mel": (log_mel, ["batch", 1, config.n_mels, "frames"])}, ""
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for n_samples in (config.n_fft // 2 + 2, 5000, 33_333):
        waveforms = np.random.default_rng(n_samples).standard_normal((2, n_samples)).astype(np.float32)
        (found,) = session.run(None, {"waveform": waveforms})
        expected = LogMel(config)(torch.from_numpy(waveforms)).numpy()
        assert found.shape == expected.shape
        assert abs(np.exp(found) - np.exp(expected)).max() < 1e-5 * np.exp(expected).max()


def test_the_file_says_what_it_is(tmp_path):
    path = tmp_path / "tiny.onnx"
    exported = export_model(small(temperature=2.0), path, dynamic_time=True)
    assert exported.size == path.stat().st_size and exported.parity.holds
    graph = onnx.load(path)
    described = json.loads({entry.key: entry.value for entry in graph.metadata_props}["dymn"])
    assert described["card"]["labels"] == list(LABELS) and described["card"]["licence"] == "CC0-1.0"
    assert (described["temperature"], described["sample_rate"], described["seconds"]) == (2.0, 8000, None)
    assert [value.name for value in graph.graph.output] == ["probabilities", "logits", "embedding"]
    assert graph.opset_import[0].version == described["opset"] == 17


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"the old one")
    model = small()
    wrong = build(small(n_kernels=1))
    monkeypatch.setattr(writing, "build", lambda model, **settings: wrong)
    with pytest.raises(writing.ExportError, match="was not written: on 3 clips, probabilities differ"):
        export_model(model, path)
    assert path.read_bytes() == b"the old one" and [item.name for item in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize(
    ("overrides", "settings", "said"),
    [
        ({}, {"input": "video"}, "allowed: waveform, log-mel"),
        ({}, {"precision": "int2"}, "allowed: fp32, fp16, int8"),
        ({}, {"precision": "fp16", "format": "torch"}, "torch has only fp32"),
        ({}, {"calibrate": [np.zeros(8000, np.float32)]}, "only int8 is calibrated"),
        ({}, {"seconds": 0.001}, "at least"),
    ],
)
def test_what_cannot_be_exported_is_named(overrides, settings, said):
    with pytest.raises(ConfigError, match=said):
        build(small(**overrides), **settings)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export_model(small(), path, dynamic_time=True)
    return path


def test_a_tagger_of_a_file_gives_the_tags_of_the_model(exported, tmp_path):
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, np.random.default_rng(0).normal(0, 0.1, 40_000), 8000)
    expected, got = (
        tagger.tag(recording) for tagger in (Tagger(small(), "cpu"), Tagger.from_onnx(exported, threads=1))
    )
    assert [tag.label for tag in got] == [tag.label for tag in expected]
    assert [tag.score for tag in got] == pytest.approx([tag.score for tag in expected], abs=1e-4)


def test_events_and_embeddings_of_a_file_are_those_of_the_model(exported, tmp_path):
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, np.random.default_rng(0).normal(0, 0.1, 40_000), 8000)
    ours, theirs = Tagger(small(), "cpu"), Tagger.from_onnx(exported, threads=1)
    frames, expected = theirs.frames(recording), ours.frames(recording, method="windows")
    np.testing.assert_allclose(frames.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(frames.times, expected.times)
    for settings in ({}, {"window": 1.5, "fill": "pad"}):
        found, expected = (tagger.embed(recording, **settings) for tagger in (theirs, ours))
        np.testing.assert_allclose(found.windows, expected.windows, atol=1e-3)
        assert found.vector.shape == expected.vector.shape == (theirs.embedder().size,)
    with pytest.raises(ConfigError, match="no PyTorch network"):
        theirs.embed(recording, layers="mels,last")
    with pytest.raises(ConfigError, match="windows"):
        theirs.frames(recording, method="activation")


@pytest.mark.parametrize("command", ["tag", "events", "embed"])
def test_onnx_imports_no_torch(exported, tmp_path, command):
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, np.zeros(8000), 8000)
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom dymn.cli import main\n"
        f"sys.argv = ['dymn', {command!r}, '--backend', 'onnx', '--model', {str(exported)!r}]\n"
        f"sys.argv += ['--threads', '1', {str(recording)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise.wav" in done.stdout


def others_than(names):
    """Return the modules of installed packages that are neither among these nor required by them."""
    wanted, kept = list(names), {"pip"}
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in kept:
            kept.add(name)
            requirements = (Requirement(text) for text in metadata.requires(name) or [])
            wanted += [item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    return [
        module
        for module, homes in metadata.packages_distributions().items()
        if not kept & set(map(canonicalize_name, homes))
        and module not in sys.stdlib_module_names  # "pathlib" is a package
    ]


def test_the_packages_that_the_documentation_names_are_enough_to_tag(exported, tmp_path):
    soundfile.write(tmp_path / "noise.wav", np.zeros(8000), 8000)
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    named = re.search(r"^\$ pip install \. (onnxruntime)$", page, re.M)
    named = ["dymn", named[1]]
    absent = others_than(named)
    assert {"torch", "onnx", "huggingface_hub"} <= set(absent)
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent}))\nfrom dymn.cli import main\n"
        f"sys.argv = ['dymn', 'tag', '--backend', 'onnx', '--model', {str(exported)!r}]\n"
        "sys.argv += ['--threads', '1', 'noise.wav']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise.wav" in done.stdout


def test_files_of_fixed_length_say_so():
    backend = OnnxBackend(build(small(), seconds=0.5), threads=1)
    assert backend.run(np.zeros((3, 4000), np.float32)).probabilities.shape == (3, 4)  # one by one
    with pytest.raises(ConfigError, match=r"windows of 0\.5 s, not 1\.000 s.*--dynamic-time"):
        backend.run(np.zeros((1, 8000), np.float32))
    with pytest.raises(ConfigError, match="expects log-mel"):
        OnnxBackend(build(small(), input="log-mel"), threads=1).run(np.zeros((1, 4000), np.float32))


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.onnx"):
        OnnxBackend(path)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        '{"card": 1}',
        '{"card": {}, "input": "smell", "seconds": null}',
        '{"card": {}, "input": "waveform"}',
    ],
)
def test_other_descriptions_are_refused(exported, text):
    graph = onnx.load(exported)
    del graph.metadata_props[:]
    if text is not None:
        graph.metadata_props.add(key="dymn", value=text)
    with pytest.raises(WeightsError, match="was not written by dymn export"):
        OnnxBackend(graph.SerializeToString())


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="dymn export mn10_as"):
        find_file("mn10_as")
    with pytest.raises(WeightsError, match="Check the path"):
        find_file("absent.onnx")


def test_from_command_to_tags(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    pretrained.save(small(), tmp_path / "tiny.safetensors")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 12_000), 8000)

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    done = run("export", tmp_path / "tiny.safetensors", "--seconds", "1", "--clips", tmp_path / "noise.wav")
    assert done.exit_code == 0 and "on 4 clips" in done.stdout, done.output
    assert find_file("tiny").is_file()
    tag = ("tag", "--backend", "onnx", "--model", "tiny", tmp_path / "noise.wav", "--threads", "1")
    assert run(*tag, "--window", "1").exit_code == 0
    wrong = run(*tag)
    assert wrong.exit_code == 2 and "--dynamic-time" in wrong.output
    assert run(*tag, "--device", "cuda").exit_code == 2
    refused = run("export", tmp_path / "tiny.safetensors", "-o", tmp_path / "no.onnx", "--tolerance", "0")
    assert refused.exit_code == 1 and "was not written" in refused.output and not (tmp_path / "no.onnx").exists()
    integers = ("--precision", "int8", "--seconds", "1", "--calibrate", tmp_path / "noise.wav")
    done = run("export", tmp_path / "tiny.safetensors", *integers, "-o", tmp_path / "int8.onnx")
    assert (
        done.exit_code == 0 and "on 1 clips" in done.stdout and "the best class is the same on 100.0 %" in done.stdout
    ), done.output
    model = small()
    model.card = dataclasses.replace(model.card, name="mn10_as")  # fine-tuned from it, and not it
    pretrained.save(model, tmp_path / "mine.safetensors")
    mistaken = run("export", tmp_path / "mine.safetensors", "--seconds", "1")
    assert (
        mistaken.exit_code == 2 and "the published model mn10_as" in mistaken.output and "--output" in mistaken.output
    )
    nowhere = run("export", tmp_path / "tiny.safetensors", "--format", "torch")
    assert nowhere.exit_code == 2 and "needs --output" in nowhere.output


class Doubled(torch.nn.Module):
    def forward(self, x, context):
        return torch.add(x, x, alpha=2)


class Circular(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))

    def forward(self, x, context):
        return self[0](x)


@pytest.mark.parametrize("module", [Doubled(), Circular()])
def test_what_has_no_form_in_onnx_is_said(module):
    with pytest.raises(ConfigError, match=r"export(ed)? to ONNX"):
        trace(Nodes(), module.eval(), ("x", None), (torch.zeros(1, 8, 4, 4), None))
