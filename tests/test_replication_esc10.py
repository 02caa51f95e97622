"""The replication of Table IV on ESC-10: what is compared, the test, the section of the page, and one cell trained."""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_pairs_differ_in_one_respect():
    from replicate_esc10 import CELLS, FACTORS, pairs

    assert len(CELLS) == 8
    for factor, (field, low, high) in FACTORS.items():
        found = list(pairs(factor))
        assert len(found) == 4
        for without, with_ in found:
            differ = [name for name in without._fields if getattr(without, name) != getattr(with_, name)]
            assert differ == [field] and (getattr(without, field), getattr(with_, field)) == (low, high)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (7, 2), (5, 5), (30, 12)])
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
    from replicate_esc10 import mcnemar

    first = np.array([False] * wins + [True] * losses + [True, False] * 4)
    second = np.array([True] * wins + [False] * losses + [True, False] * 4)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_the_section_says_what_the_answers_say(tmp_path):
    from replicate_esc10 import BEGIN, CELLS, FOLDS, main, section_of, summary_of

    rng = np.random.default_rng(0)
    for number in range(2):
        for cell in CELLS:
            chance = 0.5 + 0.4 * (cell.teaching == "teacher")  # the teacher helps, nothing else does
            for fold in FOLDS:
                right = {f"{fold}-{i}": bool(rng.random() < chance) for i in range(80)}
                path = tmp_path / "out" / f"run{number}" / cell.name / f"fold{fold}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"right": right, "seconds": 90.0}))
    plan = {"epochs": 30, "width": 0.2, "teacher": "mn04_as"}
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "out" / "teacher" / "fold1").mkdir(parents=True)
    (tmp_path / "out" / "teacher" / "fold1" / "result.json").write_text('{"train_seconds": 3600}')
    unfinished = tmp_path / "out" / "run2" / CELLS[0].name
    unfinished.mkdir(parents=True)
    (unfinished / "fold1.json").write_text('{"right": {}, "seconds": 1}')
    page = tmp_path / "page.md"
    page.write_text("# Replication\n\nBefore.\n")
    for _ in range(2):  # the second time in the place of the first
        main(["report", str(tmp_path / "out"), "--page", str(page)])
    text = page.read_text()
    assert (
        text.count(BEGIN) == 1
        and "Before." in text
        and "2 times for each combination of settings, for 30 epochs" in " ".join(text.split())
        and "results of 2 of the 3 planned runs" in text
        and "3.0 hours" in text
    )
    separators = [line for line in text.splitlines() if line.startswith("| -")]
    assert separators == ["| --- | --- |", "| --- | --- | --- | --- | --- |"]
    assert "\u2212" in text and "| < 0.0001, " in text
    assert "the teacher helps in 4 of 4 comparisons, " in summary_of(section_of(text))
    rows = [line for line in text.splitlines() if line.startswith("| teacher |")]
    assert len(rows) == 4 and all(row.endswith("| helps |") for row in rows)
    rows = [line for line in text.splitlines() if line.startswith(("| pre-training |", "| dynamic parts |"))]
    assert len(rows) == 8 and sum("not decided" in row for row in rows) >= 6


def test_a_report_of_the_other_claims_keeps_the_section():
    from replicate_esc10 import BEGIN, END, anchor_of, section_of, with_section

    section = f"{BEGIN}\n\nTable.\n\n{END}"
    page = with_section("# Replication\n", section)
    assert page == f"# Replication\n\n{section}\n" and section_of(page) == section
    assert with_section("# New\n", section_of(page)) == f"# New\n\n{section}\n"
    assert with_section("# New\n", section_of("# Replication\n")) == "# New\n"
    assert anchor_of("Table IV: distillation, pre-training") == "table-iv-distillation-pre-training"
    newer = section.replace("Table", "Newer")
    assert with_section(f"# A\n{section}", newer) == f"# A\n{newer}"  # without a line's end
    for half in (BEGIN, END, f"{END} {BEGIN}"):
        with pytest.raises(SystemExit, match="one of the marks"):
            with_section(f"# A\n{half}\n", newer)


def test_results_of_another_plan_are_not_mixed(tmp_path):
    from dymn import create_model
    from replicate_esc10 import main

    create_model("mn01", num_classes=2).save_pretrained(tmp_path / "teacher")
    create_model("mn01", num_classes=3).save_pretrained(tmp_path / "other")
    (tmp_path / "plan.json").write_text(json.dumps({"mark": {"width": 0.2}}))
    words = ["run", "--esc10", str(tmp_path), "--weights", str(tmp_path), "--out", str(tmp_path / "out"), "--runs", "0"]
    words += ["--teacher", str(tmp_path / "teacher")]
    main(words)
    main(words)
    for other in (["--epochs", "7"], ["--teacher", str(tmp_path / "other")]):
        with pytest.raises(SystemExit, match=r"holds results of another plan: (epochs|teacher_sha256) changed"):
            main([*words, *other])
    with pytest.raises(SystemExit, match=r"has width 0\.2"):
        main([*words, "--width", "0.3"])
    (tmp_path / "old" / "run0").mkdir(parents=True)
    words[6] = str(tmp_path / "old")
    with pytest.raises(SystemExit, match=r"contains results but no plan\.json"):
        main(words)


def test_a_cell_is_trained_from_the_weights_of_experiment_a(shared, tmp_path):
    import replicate_esc10 as program
    from dymn.models.mobilenet import MobileNet
    from replicate import ARMS

    esc10 = tmp_path / "esc10"
    (esc10 / "audio").mkdir(parents=True)
    (esc10 / "meta").mkdir()
    (table,) = (shared / "esc10" / "meta").glob("*.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = list({(row["category"], row["fold"]): row for row in rows if int(row["fold"]) < 3}.values())
    for row in chosen:
        shutil.copy(shared / "esc10" / "audio" / row["filename"], esc10 / "audio")
    with (esc10 / "meta" / table.name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    state = MobileNet(ARMS["dymn"].variant(0.1).config()).initialise(torch.Generator().manual_seed(0)).state_dict()
    arrays = {f"weights.{name}": value.numpy() for name, value in state.items() if "batches" not in name}
    np.savez(tmp_path / "dymn-seed0.npz", **arrays)
    (tmp_path / "plan.json").write_text('{"mark": {"width": 0.1}}')
    values = {"esc10": str(esc10), "weights": str(tmp_path), "out": str(tmp_path / "out"), "width": 0.1, "epochs": 1}
    options = argparse.Namespace(**values, device="cpu", teacher=str(shared / "weights" / "mn04_as_mAP_432.pt"))
    teacher = program.trained_weights(options, "dymn", 0)  # any network with the clips' front end can teach
    cell = program.Cell("dymn", "labels", "trained")
    program.answer_of(options, cell, 0, 1, teacher)
    answers = json.loads((tmp_path / "out" / "run0" / cell.name / "fold1.json").read_text())
    assert (
        set(answers["right"]) == {row["filename"] for row in chosen if row["fold"] == "1"}
        or len(answers["right"]) == 10
    )
    kept = json.loads((tmp_path / "out" / "run0" / cell.name / "fold1" / "config.json").read_text())["config"]
    assert kept["optim"]["lr"] == program.RATE and kept["model"]["name"].endswith("dymn-seed0.safetensors")
