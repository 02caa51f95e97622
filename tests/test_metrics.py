"""Metrics against hand calculations and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from dymn.errors import ConfigError, DataError
from dymn.evaluation.metrics import (
    accuracy,
    class_answers,
    confusion,
    d_prime,
    evaluate,
    f1,
    fold_mean,
    mean_average_precision,
    per_class,
    roc_auc,
    write_per_class,
)


def draw(n=60, classes=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, classes)), (generator.random((n, classes)) < 0.3).astype(np.float32)


def test_average_precision_by_hand():
    scores, targets = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]])
    assert mean_average_precision(scores, targets) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(scores, targets) == pytest.approx(3 / 4)


def test_macro_means_are_those_of_scikit_learn():
    scores, targets = draw()
    result = evaluate(scores.astype(np.float16), targets)
    half = scores.astype(np.float16).astype(np.float64)
    assert result["mAP"] == pytest.approx(average_precision_score(targets, half, average="macro"))
    assert result["roc_auc"] == pytest.approx(roc_auc_score(targets, half, average="macro"))
    assert (
        result["d_prime"] == pytest.approx(d_prime(result["roc_auc"]))
        and result["classes"] == 5
        and result["clips"] == 60
    )


def test_classes_without_positives_are_left_out_and_said():
    scores, targets = draw()
    targets[:, [1, 3]] = 0
    result = evaluate(scores, targets)
    assert result["without_positives"] == [1, 3] and result["classes"] == 3
    assert result["mAP"] == pytest.approx(
        average_precision_score(targets[:, [0, 2, 4]], scores[:, [0, 2, 4]], average="macro")
    )


def test_masked_entries_do_not_count():
    scores, targets = draw()
    mask = (np.random.default_rng(1).random(scores.shape) < 0.6).astype(np.uint8)
    expected = [average_precision_score(targets[mask[:, c] > 0, c], scores[mask[:, c] > 0, c]) for c in range(5)]
    weighted = [average_precision_score(targets[:, c], scores[:, c], sample_weight=mask[:, c]) for c in range(5)]
    assert (
        mean_average_precision(scores, targets, mask)
        == pytest.approx(np.mean(expected))
        == pytest.approx(np.mean(weighted))
    )
    changed = np.where(mask > 0, scores, 100.0)
    assert evaluate(changed, targets, mask) == evaluate(scores, targets, mask)


def test_d_prime():
    assert d_prime(0.5) == 0 and d_prime(0.975) == pytest.approx(2.77, abs=0.01)
    assert d_prime(1.0) == math.inf and d_prime(0.0) == -math.inf and math.isnan(d_prime(math.nan))


def test_accuracy():
    scores, targets = np.array([[2.0, 1], [0, 1], [3, 1]]), np.eye(2)[[0, 1, 1]]
    assert accuracy(scores, targets) == pytest.approx(2 / 3)
    assert evaluate(scores, targets, kind="classification") == {"accuracy": pytest.approx(2 / 3), "clips": 3}
    with pytest.raises(DataError, match="some clips have none"):
        accuracy(scores, np.zeros((3, 2)))


def test_only_positives_give_no_roc_auc():
    result = evaluate(np.array([[0.3], [0.2]]), np.ones((2, 1)))
    assert result["mAP"] == 1 and math.isnan(result["roc_auc"]) and math.isnan(result["d_prime"])


def test_per_class_table(tmp_path):
    scores, targets = draw(classes=3)
    targets[:, 2] = 0
    results = per_class(scores, targets)
    answers = class_answers(np.where(np.arange(3) < 2, scores, 0), targets)
    write_per_class(tmp_path / "classes.csv", ["Rain, heavy", "b", "c"], results, answers)
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert lines[0] == "label,average_precision,roc_auc,positives,annotated,precision,recall,f1"
    assert lines[1].startswith('"Rain, heavy",0.') and lines[1].count(",0.") == 5
    assert lines[3] == "c,,,0,60,,,"
    with pytest.raises(DataError, match="3 results for 1 classes"):
        write_per_class(tmp_path / "classes.csv", ["a"], results, answers)


def test_fold_mean():
    assert fold_mean([{"accuracy": 0.9}, {"accuracy": 1.0}], "accuracy") == {
        "mean": pytest.approx(0.95), "std": pytest.approx(0.05), "folds": [0.9, 1.0]
    }  # fmt: skip
    with pytest.raises(DataError, match="missing"):
        fold_mean([{"mAP": 0.5}], "accuracy")


def test_refusals():
    scores, targets = draw()
    with pytest.raises(ConfigError, match="classification"):
        evaluate(scores, targets, kind="ranking")
    with pytest.raises(DataError, match=r"\[N, C\]"):
        evaluate(scores, targets[:5])
    with pytest.raises(DataError, match="not finite"):
        evaluate(np.where(scores > 0, np.nan, scores), targets)
    with pytest.raises(DataError, match="nothing can be measured"):
        evaluate(scores, np.zeros_like(targets))


def test_f1_and_confusion_are_those_of_scikit_learn():
    scores, targets = draw()
    said = (scores >= 0.5).astype(int)
    assert f1(scores, targets) == pytest.approx(f1_score(targets, said, average="macro", zero_division=0))
    expected = precision_recall_fscore_support(targets, said, zero_division=np.nan)[:3]
    np.testing.assert_allclose(np.transpose(class_answers(scores, targets)), expected)
    classes = np.random.default_rng(1).integers(0, 5, 60)
    exclusive, answers = np.eye(5)[classes], scores.argmax(axis=1)
    assert f1(scores, exclusive, kind="classification") == pytest.approx(f1_score(classes, answers, average="macro"))
    assert (confusion(scores, exclusive) == confusion_matrix(classes, answers)).all()
    mask = (np.random.default_rng(2).random(targets.shape) < 0.7).astype(int)
    expected = [f1_score(targets[mask[:, c] > 0, c], said[mask[:, c] > 0, c]) for c in range(5)]
    assert f1(scores, targets, mask) == pytest.approx(np.mean(expected))
    with pytest.raises(DataError, match="No class"):
        f1(scores, np.zeros_like(targets))
