"""A linear model on standardised embeddings: one softmax over classes, or a logistic regression for each label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dymn.evaluation import metrics
from dymn.evaluation.rounds import Places
from dymn.system.arrays import Array
from dymn.system.extras import needing

Doubles = npt.NDArray[np.float64]

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the regularisation to choose from, C of scikit-learn."""
MAX_ITERATIONS = 5000


class Examples:
    """Embeddings [N, D] with targets and masks [N, C]; `exclusive` means that each clip has exactly one class."""

    def __init__(self, vectors: Array, targets: Array, masks: Array, exclusive: bool) -> None:
        self.vectors, self.targets, self.masks, self.exclusive = vectors.astype(np.float64), targets, masks, exclusive

    def scores(self, train: Places, test: Places, c: float) -> Doubles:
        """Learn from the clips `train` and return the scores [N, C] of `test`; 0 for classes without training clips.

        Raises:
            MissingExtraError: if scikit-learn is not installed.
        """
        with needing("Probing", "train"):
            from sklearn.preprocessing import StandardScaler
        scaler = StandardScaler().fit(self.vectors[train])
        known, unseen = scaler.transform(self.vectors[train]), scaler.transform(self.vectors[test])
        if self.exclusive:
            return self._softmax(known, self.targets[train].argmax(axis=1), unseen, c)
        return self._logistic(known, self.targets[train] > 0.5, self.masks[train] > 0, unseen, c)

    def _softmax(self, known: Doubles, classes: npt.NDArray[np.intp], unseen: Doubles, c: float) -> Doubles:
        from sklearn.linear_model import LogisticRegression

        scores = np.zeros((len(unseen), self.targets.shape[1]))
        present = np.unique(classes)
        if len(present) == 1:
            scores[:, present] = 1.0
        else:
            model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(known, classes)
            scores[:, present] = model.predict_proba(unseen)
        return scores

    def _logistic(
        self,
        known: Doubles,
        positive: npt.NDArray[np.bool_],
        annotated: npt.NDArray[np.bool_],
        unseen: Doubles,
        c: float,
    ) -> Doubles:
        from sklearn.linear_model import LogisticRegression

        scores = np.zeros((len(unseen), positive.shape[1]))
        for label in range(positive.shape[1]):
            rows = annotated[:, label]
            if positive[rows, label].any() and not positive[rows, label].all():
                model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(known[rows], positive[rows, label])
                scores[:, label] = model.decision_function(unseen)
        return scores

    def choose(self, inner: Sequence[tuple[Places, Places]], metric: str) -> float:
        """Return the C of `GRID` with the best mean metric over the pairs; of equals the one that regularises most."""
        best, best_value = GRID[0], -np.inf
        for c in GRID:
            values = [self.evaluate(self.scores(train, test, c), test)[metric] for train, test in inner]
            if np.mean(values) > best_value:
                best, best_value = c, float(np.mean(values))
        return best

    def evaluate(self, scores: Doubles, test: Places) -> dict[str, float]:
        """Return the figures of scores [n, C] of the clips `test`, see `dymn.evaluation.metrics.evaluate`."""
        kind = "classification" if self.exclusive else "tagging"
        return metrics.evaluate(scores, self.targets[test], self.masks[test], kind)
