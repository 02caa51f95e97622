"""Counts against other counters and by hand, memory and receptive field against what networks do, the formats, the
command.
"""

import csv
import dataclasses
import io
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from dymn import profiling
from dymn.architectures import Variant, model_config
from dymn.cli import app
from dymn.config import FrontEndConfig, to_dict
from dymn.errors import ConfigError, WeightsError
from dymn.models import paper
from dymn.models.layers import ATTENTIONS, CONTEXTS
from dymn.models.mobilenet import MobileNet, create_model
from dymn.models.published import OTHERS
from dymn.plots import trade_off
from dymn.profiling import count
from dymn.profiling.formats import COMPARISON_FORMATS, PROFILE_FORMATS

SMALL = (32, 100)
VARIANTS = {
    "dymn04": Variant(width=0.4),
    "dymn03_k2_m3": Variant(width=0.3, n_kernels=2, n_maps=3),
    **{
        f"mn_{name}": Variant(width=0.3, dynamic_blocks="none", attention=name, attention_blocks="all")
        for name in ATTENTIONS
    },
    **{f"context_{name}": Variant(width=0.3, context=name) for name in CONTEXTS},
    "fully_convolutional": Variant(width=0.3, head="fully_convolutional", num_classes=10),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_pytorch_s_counter(variant):
    network = MobileNet(variant.config()).initialise().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 1, *SMALL))
    counted = count(variant, *SMALL)
    assert counted.macs == counter.get_total_flops() / 2
    assert counted.parameters == sum(p.numel() for p in network.parameters())
    assert counted.macs == sum(counted.kinds.values())


@pytest.mark.parametrize("name", ["dymn04", "mn04"])
def test_agrees_with_a_public_profiler(name):
    ptflops = pytest.importorskip("ptflops")
    network = create_model(name).eval()
    biases = []  # which ptflops adds
    for module in network.modules():
        if getattr(module, "bias", None) is not None and not isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, out: biases.append(out.numel()))
    macs, parameters = ptflops.get_model_complexity_info(
        network, (1, *SMALL), backend="aten", as_strings=False, print_per_layer_stat=False, verbose=False
    )
    counted = count(name, *SMALL)
    assert (counted.macs, counted.parameters) == (macs - sum(biases), parameters)


def test_counts_of_one_dynamic_block_by_hand():
    """Block 8 of DyMN-M: 80 → 200 → 80 channels on 8 x 63 places, H = 48, K = 4, M = 2."""
    part = count("dymn10").parts["block 8"]
    places, ends, h = 8 * 63, 8 + 63, 48
    assert part["convolution"] == places * (80 * 200 + 200 * 9 + 200 * 80)
    assert part["aggregation"] == 4 * (80 * 200 + 200 * 9 + 200 * 80)
    assert part["context"] == ends * 80 * h + 3 * h * 4 + h * 4 * 200
    assert part["attention"] == ends * h * 200


def test_a_network_a_variant_a_config_and_a_name_count_the_same():
    network = create_model("mn04")
    counts = [count(model) for model in (network, network.config, paper.but(paper.MN, width=0.4), "mn04", "mn04_as")]
    assert all(counted == counts[0] for counted in counts)


def test_a_count_leaves_the_model_as_it_is():
    network = create_model("dymn04").train()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    count(network)
    assert network.training
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]


def test_longer_recordings_cost_more_but_not_parameters():
    long, short = count("dymn04", n_frames=2000), count("dymn04", n_frames=1000)
    assert long.parameters == short.parameters
    assert 1.9 < long.macs / short.macs < 2.0


def test_models_are_found_in_files(tmp_path):
    config = dataclasses.replace(model_config("mn01"), num_classes=5)
    (tmp_path / "whole.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "settings.toml").write_text('[model]\nname = "dymn04"\nattention = "se"\nnum_classes = 5\n')
    assert profiling.resolve(tmp_path / "whole.json") == config
    assert profiling.resolve(str(tmp_path / "settings.toml")) == model_config("dymn04", attention="se", num_classes=5)
    (tmp_path / "recipe.toml").write_text(
        '[model]\nname = "dymn04"\ninherit = "mn04_as"\nsettings = {n_kernels = 2}\n[optim]\nlr = 1e-3\n'
    )
    assert profiling.resolve(tmp_path / "recipe.toml") == model_config("dymn04", n_kernels=2)
    (tmp_path / "plain.toml").write_text('model.name = "mn04_as"\n')
    assert profiling.resolve(tmp_path / "plain.toml") == model_config("mn04")
    network = create_model("dymn04", num_classes=5)
    network.save_pretrained(tmp_path / "folder")
    assert (
        profiling.resolve(str(tmp_path / "folder"))
        == profiling.resolve(tmp_path / "folder" / "config.json")
        == network.config
    )


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"model": 3}', '{"colour": "red"}'])
def test_bad_config_files_are_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        profiling.resolve(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        profiling.resolve(tmp_path / "missing.toml")
    with pytest.raises(WeightsError):
        profiling.resolve("dymn99")
    with pytest.raises(ConfigError, match="n_frames"):
        count("mn04", n_frames=0)
    with pytest.raises(ConfigError, match="input_seconds"):
        profiling.profile("mn04", input_seconds=0, runs=0)


@pytest.mark.parametrize("name", ["dymn04", "mn04", "dymn10_replace_se"])
def test_plain_memory_is_that_of_the_largest_layer(name):
    """Input and output of every stage, and the block input where it waits, as they really are."""
    network = create_model(name).eval()
    held, handles = [], []

    def watch(block):
        waiting = {}
        handles.append(block.register_forward_pre_hook(lambda _, inputs: waiting.update(x=inputs[0])))

        def stage(_, inputs, out):
            if out is not inputs[0]:  # a block without expansion passes its input on
                extra = waiting["x"].numel() if block.has_residual and inputs[0] is not waiting["x"] else 0
                held.append(inputs[0].numel() + out.numel() + extra)

        for part in (block.expand, block.depthwise, block.project):
            handles.append(part.register_forward_hook(stage))

    for block in network.blocks:
        watch(block)
    for part in (network.stem, network.last):
        handles.append(part.register_forward_hook(lambda _, inputs, out: held.append(inputs[0].numel() + out.numel())))
    with torch.no_grad():
        network(torch.randn(1, 1, 128, 200))
    memory = profiling.peak_memory(name, n_frames=200)
    assert memory.plain == 4 * max(held)
    assert memory.in_place < memory.plain


def test_tricks_depend_on_what_a_block_must_see():
    def in_place(**settings):
        return profiling.peak_memory(Variant(attention_blocks="all", **settings)).in_place

    assert in_place(dynamic_blocks="none", attention="se") > in_place(dynamic_blocks="none", attention=None)
    assert in_place() == in_place(dynamic_blocks="none", attention=None)  # the context is taken from the block input
    assert in_place(context="own") > in_place()
    assert profiling.peak_memory("dymn10", bytes_per_value=2).plain * 2 == profiling.peak_memory("dymn10").plain


def test_receptive_field_is_what_gradients_reach():
    config = paper.but(paper.MN_STATIC, width=0.1, num_classes=2).config()
    config = dataclasses.replace(config, blocks=config.blocks[:5])
    network = MobileNet(dataclasses.replace(config, c_last=8)).initialise(torch.Generator().manual_seed(0)).eval()
    for module in network.modules():  # nothing may be cut off on the way
        if isinstance(module, torch.nn.ReLU):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 160, 160, requires_grad=True)
    features = network.features(x)
    features[0, :, features.shape[2] // 2, features.shape[3] // 2].sum().backward()
    field = profiling.receptive_field(config)
    assert field.bands == len(x.grad[0, 0].abs().sum(1).nonzero())
    assert field.frames == len(x.grad[0, 0].abs().sum(0).nonzero())
    assert field.seconds == ((field.frames - 1) * 320 + 800) / 32000


def test_profile_has_everything_and_turns_into_json():
    profile = profiling.profile("dymn04", runs=1)
    values = json.loads(PROFILE_FORMATS["json"](profile))
    assert values["parameters"] == 1_961_239
    assert values["macs"] == 117_432_704
    assert values["n_frames"] == 1000
    assert values["latency"]["median"] > 0
    assert sum(sum(part.values()) for part in values["blocks"].values()) == values["macs"]
    assert [(row["table"], row["row"]) for row in values["paper"]] == [("II", "DyMN-S")]
    assert len(list(csv.reader(io.StringIO(PROFILE_FORMATS["csv"](profile))))) == 19
    for text in ("1,961,239", "117,432,704", "block 15", "real time", "Table II, DyMN-S"):
        assert text in PROFILE_FORMATS["table"](profile)


def test_profile_follows_the_front_end_and_leaves_out_time():
    profile = profiling.profile(
        "mn10_as_mels_64", input_seconds=5, front_end=FrontEndConfig(n_mels=64, hop_length=640), runs=0
    )
    assert (profile.n_mels, profile.n_frames, profile.latency) == (64, 250, None)
    assert profiling.profile("mn10_as_mels_40", runs=0).n_mels == 40


def test_profile_of_a_checkpoint_has_its_front_end(tmp_path):
    network = create_model("mn01", num_classes=2)
    network.card = dataclasses.replace(network.card, front_end=FrontEndConfig(n_mels=64))
    network.save_pretrained(tmp_path)
    profile = profiling.profile(str(tmp_path), runs=0)
    assert (profile.name, profile.n_mels, profile.latency) == (str(tmp_path), 64, None)


def test_latency_leaves_the_mode_alone():
    network = create_model("mn01").train()
    assert profiling.latency(network, 32, 40, runs=2).runs == 2
    assert network.training


def test_comparisons_are_written_in_every_format():
    rows = profiling.compare("viii")
    values = json.loads(COMPARISON_FORMATS["json"](rows))
    assert [row["row"] for row in values] == [row.name for row in paper.TABLE_VIII.rows]
    for key in ("table", "row", "macs", "parameters", "paper_macs", "paper_parameters", "paper_map"):
        assert key in values[0]
    table = list(csv.DictReader(io.StringIO(COMPARISON_FORMATS["csv"](rows))))
    assert [int(row["macs"]) for row in table] == [row["macs"] for row in values]
    assert "MN w. CBAM" in COMPARISON_FORMATS["table"](rows)
    page = COMPARISON_FORMATS["markdown"](rows)
    assert "## Interpretations" in page
    assert "**MN w. GRN**" in page
    assert "no shared context" not in page


def run(*arguments):
    return CliRunner().invoke(app, ["profile", *arguments])


def test_command_profiles_a_model_and_a_table():
    result = run("mn04", "--runs", "0", "--input-seconds", "5", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["n_frames"] == 500
    result = run("--table", "XI", "--format", "json")
    assert [row["paper_map"] for row in json.loads(result.stdout)] == [47.2, 47.5, 47.4]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("mn04", "--table", "II"),
        ("--table", "XX"),
        ("dymn04", "--input-seconds", "-1"),
        ("--table", "VII", "--runs", "1"),
        ("--table", "VII", "--input-seconds", "5"),
        ("--plot", "p.png", "--output", "o.json"),
        ("--plot", "p.png", "--format", "json"),
        ("--plot", "p.png", "--runs", "1"),
    ],
)
def test_command_refuses_wrong_use(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_command_draws_the_figures(tmp_path, ending):
    pytest.importorskip("matplotlib")
    result = run("mn04", "--runs", "0", "--plot", str(tmp_path / f"figures.{ending}"))
    assert result.exit_code == 0
    assert (tmp_path / f"figures.{ending}").stat().st_size > 10_000
    assert run("--plot", str(tmp_path / "figures.doc")).exit_code == 2


def test_the_figures_show_the_networks_of_others():
    """Each where its cost is published; those whose numbers the paper prints are its numbers."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    trade_off._draw(figure, None)
    left, right = ({text.get_text() for text in axes.texts} for axes in figure.axes)
    names = {row.name for row in OTHERS}
    assert len(names) == len(OTHERS) and names <= right
    assert names & left == {row.name for row in OTHERS if row.macs}
    assert names & left == {"CNN14", "ResNet38", "Wavegram-Logmel", "PaSST-S"}
    for row in OTHERS:
        assert row.source and 43 <= row.map <= 50 and 1 < row.parameters < 100 and (row.macs or 1e4) >= 1e4
    by_name = {row.name: row for row in OTHERS}
    smaller = by_name["BEATs"].parameters / paper.TABLE_II["DyMN-L"].parameters
    assert smaller > 2  # "less than half the number of parameters", Sec. IV-C.2
    assert paper.TABLE_II["DyMN-L"].macs / by_name["PaSST-S"].macs < 0.035  # "less than 3 %", of rounded numbers


def test_the_difference_to_the_authors_figure_of_peak_memory():
    """EfficientAT streams the first convolution through the first block, and holds an eighth of the expanded channels.

    With Squeeze-and-Excitation, it counts input and output of the last convolution, and the block's output again.
    """
    ours = profiling.peak_memory("mn10", bytes_per_value=2)
    assert (ours.in_place, ours.in_place_place) == (2_176_000, "block 1")
    bands, frames, held = 64, 500, []
    for i, block in enumerate(model_config("mn10").blocks):
        after = (-(-bands // block.stride)) * -(-frames // block.stride)
        own, out = bands * frames, after * block.c_out
        if i == 0:
            held.append(128 * 1000 + out + 2 * own * block.c_in / 8)
        elif block.attention == "se":
            held.append(after * block.c_exp + 2 * out)
        else:
            filtered = (bands // block.stride) * (frames // block.stride)
            held.append(own * block.c_in + out + (own + filtered) * block.c_exp / 8)
        bands, frames = -(-bands // block.stride), -(-frames // block.stride)
    assert max(held) == held[1] and 2 * held[1] == 2_048_000
