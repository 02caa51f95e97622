"""Options of the public networks that no published file has, against a textbook form of the network.

The textbook form reads a state dict of the published layout name by name; it shares nothing with ours.
"""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from dymn import create_model
from dymn.architectures import model_config
from dymn.cli import app
from dymn.config import BlockConfig, FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained
from dymn.models.inflate import inherit
from dymn.profiling import count, receptive_field
from dymn.runtime.accelerate import accelerate
from dymn.runtime.fused import FusedNetwork
from dymn.runtime.opening import open_backend
from dymn.training.start import has_fresh_head, set_prior
from dymn.weights import import_efficientat, open_checkpoint
from tiny_runs import write_clips

ROWS = (  # kernel, expanded, out, Squeeze-and-Excitation, hard swish, stride
    *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1)),
    *((5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
    *((3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2)),
    *((5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
)
CLASSES = 5


def divisible(value):
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def published(width=0.1, se_r=4, head="mlp", n_heads=4, seed=0):
    """A state dict of the public MN with random weights, norms too."""
    random = torch.Generator().manual_seed(seed)
    state = {}

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    def conv(name, c_out, c_in, k):
        state[f"{name}.0.weight"] = normal(c_out, c_in, k, k) * (2 / (c_in * k * k)) ** 0.5
        state[f"{name}.1.weight"], state[f"{name}.1.bias"] = 1 + 0.1 * normal(c_out), 0.1 * normal(c_out)
        state[f"{name}.1.running_mean"] = 0.1 * normal(c_out)
        state[f"{name}.1.running_var"] = 1 + 0.1 * normal(c_out).abs()

    def linear(name, n_out, n_in):
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(n_out, n_in) * n_in**-0.5, 0.1 * normal(n_out)

    c = divisible(16 * width)
    conv("features.0", c, 1, 3)
    for i, (k, expanded, out, squeezed, _, _) in enumerate(ROWS):
        name, j, c_exp, c_out = f"features.{i + 1}.block", 0, divisible(expanded * width), divisible(out * width)
        if c_exp != c:
            conv(f"{name}.{j}", c_exp, c, 1)
            j += 1
        conv(f"{name}.{j}", c_exp, 1, k)
        if squeezed:
            j += 1
            hidden = divisible(c_exp // se_r)
            linear(f"{name}.{j}.conc_se_layers.0.fc1", hidden, c_exp)
            linear(f"{name}.{j}.conc_se_layers.0.fc2", c_exp, hidden)
        conv(f"{name}.{j + 1}", c_out, c_exp, 1)
        c = c_out
    conv("features.16", 6 * c, c, 1)
    if head == "mlp":
        linear("classifier.2", divisible(1280 * width), 6 * c)
        linear("classifier.5", CLASSES, divisible(1280 * width))
    else:
        linear("classifier.subspace_proj", 2 * n_heads * CLASSES, 6 * c)
        state["classifier.head_weight"] = normal(1, n_heads, 1)
    return state


def textbook(state, x, dilated=False):
    """What the public MN computes of log-mel spectrograms [B, 1, F, T]."""

    def conv(name, x, stride=1, dilation=1, groups=1):
        kernel = state[f"{name}.0.weight"]
        padding = (kernel.shape[2] - 1) // 2 * dilation
        y = functional.conv2d(x, kernel, None, stride, padding, dilation, groups)
        norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(y, *norm, training=False, eps=1e-3)

    def linear(name, x):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = functional.hardswish(conv("features.0", x, stride=2))
    for i, (_, _, _, squeezed, swish, stride) in enumerate(ROWS):
        name, act = f"features.{i + 1}.block", functional.hardswish if swish else functional.relu
        dilation = 2 if dilated and i >= 12 else 1
        y, j = x, 0
        if f"{name}.{2 + squeezed}.0.weight" in state:
            y, j = act(conv(f"{name}.0", y)), 1
        y = act(conv(f"{name}.{j}", y, 1 if dilation > 1 else stride, dilation, y.shape[1]))
        if squeezed:
            j += 1
            se = f"{name}.{j}.conc_se_layers.0"
            weights = torch.sigmoid(linear(f"{se}.fc2", functional.relu(linear(f"{se}.fc1", y.mean((2, 3))))))
            y = y * weights[:, :, None, None]
        y = conv(f"{name}.{j + 1}", y)
        x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
    x = functional.hardswish(conv("features.16", x))
    embedding = x.mean((2, 3))
    if "classifier.5.weight" in state:
        return linear("classifier.5", functional.hardswish(linear("classifier.2", embedding))), embedding
    frames = x.mean(2).transpose(1, 2)
    n_heads = state["classifier.head_weight"].shape[1]
    attention, scores = linear("classifier.subspace_proj", frames).chunk(2, dim=2)
    logits = 0
    for h in range(n_heads):
        part = slice(h * CLASSES, (h + 1) * CLASSES)
        share = torch.sigmoid(attention[:, :, part]).clamp(1e-7, 1 - 1e-7)
        share = share / share.sum(1, keepdim=True)
        logits = logits + state["classifier.head_weight"][0, h] * (share * scores[:, :, part]).sum(1)
    return logits, embedding


OPTIONS = {  # how the file is made, what is said of it, and the network that it is
    "plain": ({}, {}, {}),
    "dilated": ({}, {"dilated": True}, {"dilated": True}),
    "dilated_wider": ({"width": 0.3}, {"dilated": True}, {"width": 0.3, "dilated": True}),
    "se_r_1": ({"se_r": 1}, {}, {"se_reduction": 1}),
    "se_r_16": ({"width": 0.4, "se_r": 16}, {}, {"width": 0.4, "se_reduction": 16}),
    "attention_pooling": ({"head": "pool"}, {}, {"head": "attention_pooling"}),
    "one_head": ({"head": "pool", "n_heads": 1}, {}, {"head": "attention_pooling", "pooling_heads": 1}),
    "all": (
        {"head": "pool", "n_heads": 2, "se_r": 2},
        {"dilated": True},
        {"head": "attention_pooling", "pooling_heads": 2, "se_reduction": 2, "dilated": True},
    ),
}


@pytest.fixture(scope="module", params=OPTIONS)
def option(request):
    """A state dict, its network, and what the textbook form says of spectrograms."""
    made, said, settings = OPTIONS[request.param]
    state = published(**made)
    log_mel = torch.randn(2, 1, 64, 150, generator=torch.Generator().manual_seed(1))
    model = import_efficientat(state, **said)
    return state, model, {"width": 0.1, **settings}, log_mel, textbook(state, log_mel, said.get("dilated", False))


def near(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def test_gives_the_numbers_of_the_textbook(option):
    _, model, settings, log_mel, (logits, embedding) = option
    if settings.get("se_reduction") != 16:  # 15 is the same network
        assert model.config == model_config("mn10", num_classes=CLASSES, **settings)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in create_model("mn10", CLASSES, **settings).state_dict().items()
    }
    with torch.no_grad():
        found = model(log_mel)
    near(found.logits, logits)
    near(found.embedding, embedding)


def test_fast_forms_give_the_same_numbers(option):
    """Compiled code for heads and kernels that it knows; else the fused form."""
    _, model, settings, log_mel, (logits, embedding) = option
    fast = accelerate(model)
    fallback = settings.get("dilated") or settings.get("head")
    assert isinstance(fast, FusedNetwork) or not fallback
    found = fast(log_mel)
    near(found.logits, logits)
    near(found.embedding, embedding)


@pytest.mark.parametrize("free", [False, True])
def test_onnx_gives_the_same_numbers(option, free):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    from dymn.export import build
    from dymn.runtime.onnx_backend import OnnxBackend

    _, model, _, log_mel, (logits, embedding) = option
    front_end = FrontEndConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=64, f_max=3900)
    model.card = ModelCard(labels=model.card.labels, front_end=front_end)
    content = build(model, input="log-mel", seconds=1.5, dynamic_time=free, dynamic_batch=free)
    found = OnnxBackend(content).outputs(log_mel[:, :, :, :150].numpy())
    near(torch.from_numpy(found[1]), logits, 1e-4)
    near(torch.from_numpy(found[2]), embedding, 1e-4)


def test_costs_are_those_of_the_network(option):
    _, model, *_ = option
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 64, 150))
    counted = count(model.config, 64, 150)
    assert counted.macs == counter.get_total_flops() / 2
    assert counted.parameters == sum(p.numel() for p in model.parameters())


def test_a_checkpoint_keeps_them(option, tmp_path):
    _, model, *_ = option
    path = tmp_path / "model.safetensors"
    pretrained.save(model, path)
    assert open_checkpoint(str(path)).config == model.config
    backend = open_backend(str(path), device="cpu")
    samples = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0)).numpy()
    frames = backend.frame_run(backend.waveform_features(samples)).frames
    assert frames.shape[::2] == (1, CLASSES)
    assert backend.run_waveforms(samples).probabilities.shape == (1, CLASSES)


def test_they_learn(option):
    _, _, settings, log_mel, _ = option
    model = create_model("mn10", CLASSES, generator=torch.Generator().manual_seed(0), **settings).train()
    model(log_mel).logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    fresh = model.reset_classifier(["a", "b", "c"]).eval()
    assert fresh(log_mel).logits.shape == (2, 3)


def test_frames_of_attention_pooling_are_those_of_clips_of_one_frame():
    model = import_efficientat(published(head="pool"))
    features = torch.randn(2, model.config.c_last, 3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frames = model.frame_logits(features)
        alone = [model.head(features[..., t : t + 1], features.mean((2, 3))) for t in range(6)]
    torch.testing.assert_close(frames, torch.stack(alone, dim=1), atol=1e-5, rtol=1e-5)


def test_dilation_widens_the_receptive_field_and_keeps_the_resolution():
    plain, dilated = model_config("mn10"), model_config("mn10", dilated=True)
    assert (plain.time_stride, dilated.time_stride) == (32, 16)
    wide, narrow = receptive_field(dilated).frames, receptive_field(plain).frames
    # blocks 13 to 15 see 4 x 16 x (2, 2, 2) steps of 10 ms instead of 4 x (16, 32, 32)
    assert wide - narrow == 4 * 16 * 6 - 4 * (16 + 32 + 32)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="dilation is 2; only static blocks"):
        create_model("dymn04", dilated=True)
    with pytest.raises(ConfigError, match="dilated is 'yes'; it must be true or false"):
        create_model("mn04", dilated="yes")
    with pytest.raises(ConfigError, match="dilation is 0"):
        BlockConfig(8, 8, 8, 3, 1, "relu", dilation=0)
    with pytest.raises(ConfigError, match="frame-wise networks are not dilated"):
        create_model("fmn04", dilated=True)
    state = published()
    state["features.4.block.2.conc_se_layers.1.fc1.weight"] = torch.zeros(8, 16)
    with pytest.raises(WeightsError, match=r"extra features\.4\.block\.2\.conc_se_layers\.1\.fc1\.weight"):
        import_efficientat(state)


def test_a_dilated_parent_has_no_heir():
    """Its blocks see what those of a DyMN of the same channels do not."""
    student, parent = create_model("dymn10", 2, width=0.1), create_model("mn10", 2, width=0.1, dilated=True)
    with pytest.raises(ConfigError, match="same width, head, classes and input channels, without dilation"):
        inherit(student, parent, torch.zeros(2, 1, 32, 50), torch.Generator())


def test_a_head_that_cannot_be_calibrated_is_named(tmp_path):
    model = create_model("mn10", 2, width=0.1, head="attention_pooling")
    model.card = ModelCard(name="pooled", labels=("a", "b"))
    pretrained.save(model, tmp_path / "pooled.safetensors")
    write_clips(tmp_path / "clips", 2)
    words = [
        "calibrate",
        str(tmp_path / "pooled.safetensors"),
        "--data",
        str(tmp_path / "clips"),
        "-o",
        "x.safetensors",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "pooled has the head attention_pooling" in done.output


def test_convert_is_told(tmp_path):
    torch.save(published(), tmp_path / "mn.pt")
    words = ["convert", str(tmp_path / "mn.pt"), str(tmp_path / "mn.safetensors"), "--dilated"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [block.dilation for block in open_checkpoint(str(tmp_path / "mn.safetensors")).config.blocks[11:]] == [
        1,
        2,
        2,
        2,
    ]


@pytest.mark.parametrize("head", ["mlp", "fully_convolutional", "attention_pooling"])
def test_the_prior_is_what_a_network_says_at_first(head):
    """Every head has a last bias: with scores that do not depend on the input, it is the logits."""
    model = create_model("mn10", 3, width=0.1, head=head, generator=torch.Generator().manual_seed(0)).eval()
    assert has_fresh_head(model)
    set_prior(model, torch.tensor([-1.0, 0.5, 2.0]))
    assert not has_fresh_head(model)
    with torch.no_grad():
        model.head.classifier.weight.zero_()
        logits = model(torch.randn(2, 1, 64, 100)).logits
    torch.testing.assert_close(logits, torch.tensor([-1.0, 0.5, 2.0]).expand(2, 3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("dymn04", {"se_reduction": 8}, "it applies to attention 'se' only, not 'ca'"),
        ("mn04", {"attention": "none", "se_reduction": 8}, "it applies to attention 'se' only, not 'none'"),
        ("mn04", {"pooling_heads": 8}, "it applies to the head attention_pooling only, not mlp"),
    ],
)
def test_settings_without_effect_are_refused(name, settings, told):
    with pytest.raises(ConfigError, match=told):
        create_model(name, **settings)


def test_no_attention_is_a_setting_of_dynamic_blocks(shared):
    with pytest.raises(ConfigError, match=r"applies to dynamic blocks only, and .* has no dynamic blocks"):
        import_efficientat(shared / "fixtures/mn_w01/state_dict.pt", attention="none")
