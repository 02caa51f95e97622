"""The paper's tables: every row counted, built and trained."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dymn.architectures import TABLE_I, Variant, context_size, model_config
from dymn.cli import app
from dymn.config import from_dict, round_channels, to_dict
from dymn.errors import ConfigError
from dymn.models import paper
from dymn.models.mobilenet import MobileNet
from dymn.profiling import compare, count
from dymn.profiling.downstream import commands
from dymn.profiling.formats import comparison_markdown
from dymn.training.recipe import load_recipe

ROWS = [(table.number, row) for table in paper.TABLES.values() for row in table.rows]
NARROW = 0.1


@pytest.fixture(scope="module")
def compared():
    return {(row.table, row.row): row for row in compare()}


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[f"{number}: {row.name}" for number, row in ROWS])
def test_counts_come_out_as_printed(compared, number, row):
    ours = compared[number, row.name]
    if row.macs is None:
        assert (ours.paper_macs, ours.paper_parameters, ours.paper_map, ours.macs_difference) == (
            None,
            None,
            None,
            None,
        )
        return
    digits = -1 if row.macs in (2060, 2220, 4550, 8030) else 0  # these four are printed to 10 M
    assert round(ours.macs / 1e6, digits) == row.macs
    printed = 1 if row.parameters == 10.7 else 2
    assert round(ours.parameters / 1e6, printed) == row.parameters
    assert (ours.paper_macs, ours.paper_parameters, ours.paper_map) == (
        row.macs * 10**6,
        round(row.parameters * 10**6),
        row.map,
    )


def test_tables_are_complete():
    sizes = {number: len(table.rows) for number, table in paper.TABLES.items()}
    assert sizes == {
        "II": 9,
        "IV": 8,
        "V": 9,
        "VI": 6,
        "VII": 5,
        "VIII": 8,
        "IX": 3,
        "X": 7,
        "XI": 3,
        "XII": 4,
        "XIII": 9,
    }
    assert len(paper.TABLE_III) == 11
    for table in paper.TABLES.values():
        assert len({row.name for row in table.rows}) == len(table.rows)


def test_differences_in_map_are_those_printed():
    printed = {
        "V": [0.0, -1.7, -3.1, -0.3, -0.6, -0.6, -0.8, -0.9, -1.4],
        "VI": [0.0, -1.7, -1.3, -1.2, -0.6, -0.4],
        "VII": [0.0, -0.4, -0.3, -0.1, -0.3],
        "VIII": [0.0, 2.3, 1.7, 1.5, 1.4, 0.9, 0.2, -0.2],
        "X": [-0.2, 0.0, 0.0, 0.0, -0.1, -0.1, -0.1],
        "XI": [-0.3, 0.0, -0.1],
        "XII": [0.0, -0.2, -0.1, -0.1],
        "XIII": [0.0, -0.1, -0.2, -0.1, 0.0, -0.1, -0.3, 0.0, 0.0],
        "IV": [0.0, -0.7, -0.2, -1.9, -4.5, -3.6, -4.7, -5.3],
    }
    for number, differences in printed.items():
        table = paper.table(number)
        reference = {"IV": 47.7, "VIII": 44.4}.get(number, 47.5)
        assert [round(row.map - reference, 1) for row in table.rows] == differences


def test_table_iv_has_every_setting_of_both_switches():
    settings = [(row.name.split(",")[0], row.distilled, row.imagenet) for row in paper.TABLE_IV.rows]
    assert len(set(settings)) == 8


def test_a_table_is_found_by_number_and_a_row_by_name():
    assert paper.table("xii")["no shared context"].variant.context == "own"
    with pytest.raises(ConfigError, match="III"):
        paper.table("III")
    with pytest.raises(ConfigError, match="K = 2"):
        paper.TABLE_X["K = 3"]


def test_kept_readings_are_what_is_built(compared):
    kept = [reading for reading in paper.READINGS if reading.kept]
    assert len({(reading.table, reading.row) for reading in kept}) == len(kept)
    for reading in kept:
        ours = compared[reading.table, reading.row]
        assert round(ours.macs / 1e6, 2) == reading.macs
        assert round(ours.parameters / 1e6, 4) == reading.parameters


def test_readings_of_no_shared_context_by_arithmetic():
    """A part's own context: a linear layer c → h with bias, and coefficients from h values instead of H."""
    whole = count(Variant())

    def total(hidden_conv, hidden_relu):
        parameters = macs = 0
        for c_in, row in zip((16, *(row.c_out for row in TABLE_I)), TABLE_I, strict=False):
            c, size = row.c_exp, context_size(row.c_exp, 1.0)
            parts = [(c, hidden_conv(c), 4), (c, hidden_conv(c), 4), (c, hidden_relu(c), 4 * c)]
            parts += [(c_in, hidden_conv(c_in), 4)] if c != c_in else []
            for channels, hidden, coefficients in parts:
                change = channels * hidden + (hidden - size) * coefficients
                macs += change
                parameters += change + hidden
        return round((whole.macs + macs) / 1e6, 2), round((whole.parameters + parameters) / 1e6, 4)

    expected = [(r.macs, r.parameters) for r in paper.READINGS if r.row == "no shared context"]
    assert total(lambda c: round_channels(c // 4), lambda c: round_channels(c // 8)) == expected[0]
    assert total(lambda c: c // 4, lambda c: c // 8) == expected[1]
    assert total(lambda c: round_channels(c // 4), lambda c: round_channels(c // 4)) == expected[2]
    assert total(lambda c: round_channels(c // 8), lambda c: round_channels(c // 8)) == expected[3]
    assert total(lambda c: context_size(c, 1.0), lambda c: context_size(c, 1.0)) == expected[5]


def narrowed(variant):
    return dataclasses.replace(variant, width=NARROW, num_classes=3, dropout=0.0).config()


# some are the same at this width
CONFIGS = {narrowed(row.variant): f"{number}: {row.name}" for number, row in reversed(ROWS)}


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    log_mel = torch.randn(4, 1, 32, 40, generator=generator)
    return log_mel, (torch.rand(4, 3, generator=generator) > 0.5).float()


@pytest.mark.parametrize("config", CONFIGS, ids=CONFIGS.values())
def test_every_variant_trains(config, batch):
    log_mel, target = batch
    generator = torch.Generator().manual_seed(5)
    network = MobileNet(config).initialise(generator)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    with torch.no_grad():
        for parameter in network.parameters():
            # away from zeros that are there only at first
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    network.eval()  # in training, a batch norm hides a bias before it
    loss_of(network(log_mel).logits, target).backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert unreached == []

    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = loss_of(network(log_mel).logits, target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]

    twin = MobileNet(from_dict(type(config), to_dict(config)))
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(log_mel).logits, network.eval()(log_mel).logits)


def test_what_a_row_does_not_use_is_not_built():
    def names(number, row):
        config = dataclasses.replace(paper.table(number)[row].variant, width=NARROW).config()
        return [name for name, _ in MobileNet(config).named_parameters()]

    assert not any("context" in name or "attention" in name for name in names("V", "MN Static (no SE)"))
    assert not any(".attention." in name for name in names("V", "- CA"))
    assert not any("coefficients" in name for name in names("V", "- Dy-Conv, Dy-ReLU"))
    assert any("context" in name for name in names("V", "- Dy-Conv, Dy-ReLU"))
    assert not any(".attention.time" in name for name in names("IX", "channel-frequency"))
    assert not any(".attention.frequency" in name for name in names("IX", "channel-time"))
    own_without_ca = Variant(width=NARROW, context="own", attention=None).config()
    assert not any(".context." in name for name, _ in MobileNet(own_without_ca).named_parameters())


def test_a_block_without_expansion_is_not_dynamic_there():
    config = Variant(dynamic_convs=("expand",), dynamic_relus=(), attention=None).config()
    assert not config.blocks[0].is_dynamic
    assert config.blocks[1].is_dynamic
    assert not any("context" in name for name, _ in MobileNet(config).blocks[0].named_parameters())


@pytest.mark.parametrize("setting", [{"attention": "eca"}, {"context": "none"}])
def test_unknown_parts_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match="allowed: "):
        Variant(**setting)
    block = dataclasses.replace(Variant().config().blocks[1], **setting)
    config = dataclasses.replace(Variant().config(), blocks=(block,), c_last=8)
    with pytest.raises(ConfigError, match="allowed: "):
        MobileNet(config)


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[f"{number}: {row.name}" for number, row in ROWS])
def test_a_row_is_built_by_name_and_trained_by_a_recipe(number, row):
    assert model_config(row.architecture, **row.settings) == row.variant.config()
    run = load_recipe(row.recipe, row.assignments)
    assert model_config(row.architecture, **run.model.settings) == row.variant.config()
    assert run.model.name == row.architecture + "_im" * row.imagenet
    assert bool(run.teacher.table) == row.distilled
    if row.architecture.startswith("dymn"):
        expected = (30, 1) if row.temperature is None else (row.temperature, row.temperature)
        assert (run.schedule.tau_start, run.schedule.tau_end) == expected


def test_the_page_of_the_tables_is_current(compared):
    page = Path(__file__).parents[1] / "docs" / "paper-tables.md"
    assert page.read_text(encoding="utf-8") == comparison_markdown(list(compared.values())), (
        "make it again: dymn profile --table all --format markdown --output docs/paper-tables.md"
    )


def test_the_commands_of_every_row_are_those_of_its_recipe():
    lines = commands("all").splitlines()
    assert len(lines) == 2 * len(ROWS) + 7 * 5  # a title each; Table III has four tasks
    for line in lines:
        if not line.startswith("#"):
            words = shlex.split(line)
            assert words[:2] == ["dymn", "train"] and words[3:5] == ["--data", "FOLDER"]
            load_recipe(words[2], [word for word in words[5:] if "=" in word])
    assert "dymn train esc50:dymn20 --data FOLDER --fold all" in lines
    changed = shlex.split(commands("VII").splitlines()[3])
    assert changed[2:] == [
        *("audioset_ablation:dymn_kd_no_pt", "--data", "FOLDER", "--set"),
        'model.settings.dynamic_convs=["depthwise"]',
    ]


def test_table_iii_is_printed_with_its_commands(tmp_path):
    def profile(*words):
        return CliRunner().invoke(app, ["profile", "--table", *words])

    assert profile("iii").output.splitlines()[6].split() == ["MN", "(α", "=", "0.4)", "82.0", "93.2", "59.7", "69.5"]
    rows = json.loads(profile("III", "--format", "json").output)
    assert rows[5]["row"] == "DyMN-S" and rows[5]["dcase20"] == 72.9 and rows[0]["commands"] == {}
    assert rows[5]["commands"]["openmic"] == "dymn train openmic:dymn04 --data FOLDER"
    assert profile("III", "--format", "csv").output.count("\n") == len(rows) + 1
    assert profile("III", "--format", "markdown").output.startswith("## Table III.")
    assert profile("VII", "--commands").output.startswith("# Table VII, Proposed DyMN\ndymn train audioset_ablation")
    assert "needs --table" in CliRunner().invoke(app, ["profile", "dymn04", "--commands"]).output
