"""Networks for ExecuTorch and LiteRT: the numbers of the network, in operations that these runtimes have."""

import io
import json
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dymn import create_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, MissingExtraError
from dymn.export import build, export_model
from dymn.export.lite_network import LiteNetwork
from dymn.export.plan import LITE, Plan
from dymn.export.write import WRITERS
from dymn.runtime.fused import fuse
from test_benchmarks import load as load_benchmark

LIVELY = load_benchmark("lively")
N_MELS, LABELS = 32, ("Dog", "Cat", "Speech, near", "Music")
FRONT_END = FrontEndConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=N_MELS, f_max=3900)
LOG_MEL = LIVELY.clips(3, N_MELS, 70)
MODULES = {"executorch": "executorch", "litert": "litert_torch"}


def small(name="dymn10", exclusive=False, **overrides):
    model = create_model(name, len(LABELS), generator=torch.Generator().manual_seed(0), **{"width": 0.1, **overrides})
    model.card = ModelCard(name="tiny", labels=LABELS, front_end=FRONT_END, exclusive=exclusive, licence="CC0-1.0")
    return LIVELY.lively(model, LOG_MEL)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"name": "mn10"},
        {"exclusive": True, "temperature": 3.0},
        {"n_kernels": 2, "n_maps": 3},
        {"dynamic_convs": ["depthwise"], "dynamic_relus": ["project"]},
        {"dynamic_convs": [], "dynamic_relus": []},
        {"context": "separate"},
        {"context": "concatenated"},
        {"context": "own"},
        {"attention": "se"},
        {"attention": "cbam"},
    ],
    ids=str,
)
def test_every_network_keeps_its_numbers(settings):
    model = small(**settings)
    network = LiteNetwork(fuse(model)).eval()
    for clip in LOG_MEL.split(1):
        with torch.no_grad():
            expected, got = model(clip), network(clip)
        for one, other in zip((model.probabilities(expected.logits), *expected), got, strict=True):
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("format", LITE)
@pytest.mark.parametrize("settings", [{"input": "waveform"}, {"dynamic_time": True}, {"dynamic_batch": True}])
def test_what_the_formats_do_not_take_is_said(format, settings):
    with pytest.raises(ConfigError, match=f"format {format} takes one clip of fixed length, as a log-mel spectrogram"):
        Plan(**{"format": format, "input": "log-mel", **settings})


@pytest.mark.parametrize("format", LITE)
def test_without_the_package_the_extra_is_named(format, monkeypatch):
    for name in [MODULES[format], *(name for name in sys.modules if name.startswith(f"{MODULES[format]}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"dymn\[{format}\]"):
        build(small(), format=format, input="log-mel")


@pytest.mark.parametrize("name", ["mn10", "dymn10"])
@pytest.mark.parametrize("format", LITE)
def test_files_give_the_numbers_of_the_network_and_say_what_they_are(format, name, tmp_path):
    if find_spec(MODULES[format]) is None:
        pytest.skip(f"the extra {format} is not installed")
    model = small(name)
    written = export_model(model, tmp_path / "tiny.file", format=format, input="log-mel", seconds=0.7)
    assert written.parity.holds and written.parity.clips == 3
    content = written.path.read_bytes()
    got = WRITERS[format].open(content)(LOG_MEL[:1].numpy())
    with torch.no_grad():
        expected = model(LOG_MEL[:1])
    for one, other in zip((model.probabilities(expected.logits), *expected), got, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)
    described = json.loads(zipfile.ZipFile(io.BytesIO(content)).read("dymn.json"))
    assert described["card"]["labels"] == list(LABELS) and described["seconds"] == 0.7
