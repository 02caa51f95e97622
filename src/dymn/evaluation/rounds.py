"""The training and test clips of a probe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.data.catalog import Catalog
from dymn.errors import DataError

Places = npt.NDArray[np.int64]
INNER_FOLDS = 5


class Round(NamedTuple):
    """One training and one test, by positions of clips.

    Attributes:
        name: of the fold or split that is the test.
        train: what to learn from.
        test: what to measure on.
        inner: pairs of what to learn from and what to compare settings on, all within `train`.
    """

    name: str
    train: Places
    test: Places
    inner: list[tuple[Places, Places]]


def rounds_of(catalog: Catalog, folds: int = 5) -> list[Round]:
    """Return the rounds of a dataset: one for each of its folds, one for its test set, or `folds` equal parts.

    Settings are compared by leaving out one of the other folds after the other, on the validation set if there is one,
    or else by cross-validation within the training set. Parts are drawn by class, always alike.

    Raises:
        ConfigError: if `folds` is below 2.
        DataError: if there is nothing to learn from or to measure on.
    """
    check(folds >= 2, f"folds is {folds}; it must be at least 2.")
    n = len(catalog.keys)
    if catalog.splits and not catalog.folds:
        return [_round_of_splits(np.array(catalog.splits), catalog)]
    numbers = np.array(catalog.folds) if catalog.folds else parts(_strata(catalog), folds)
    names = sorted(set(numbers.tolist()))
    if len(names) < 2:
        raise DataError(
            f"All {n} clips are in one fold, so there are no clips to train on. Use a dataset with at least two folds."
        )
    found = []
    for number in names:
        test, train = np.flatnonzero(numbers == number), np.flatnonzero(numbers != number)
        others = sorted(set(numbers[train].tolist()))
        inner = [(train[numbers[train] != other], train[numbers[train] == other]) for other in others]
        found.append(Round(f"fold {number}", train, test, inner if len(others) > 1 else _inner(train, catalog)))
    return found


def _round_of_splits(splits: npt.NDArray[np.str_], catalog: Catalog) -> Round:
    name = "test" if (splits == "test").any() else "val"
    validated = name == "test" and (splits == "val").any()
    test, train = np.flatnonzero(splits == name), np.flatnonzero((splits == "train") | (validated & (splits == "val")))
    if len(test) == 0 or len(train) == 0:
        present = ", ".join(sorted(set(splits.tolist()) - {""}))
        raise DataError(f"The dataset has only the split {present or 'none'}; it needs training and test clips.")
    inner = [(train[splits[train] == "train"], train[splits[train] == "val"])] if validated else _inner(train, catalog)
    return Round(name, train, test, inner)


def _inner(train: Places, catalog: Catalog) -> list[tuple[Places, Places]]:
    numbers = parts(_strata(catalog)[train], INNER_FOLDS)
    return [(train[numbers != number], train[numbers == number]) for number in sorted(set(numbers.tolist()))]


def _strata(catalog: Catalog) -> npt.NDArray[np.int64]:
    """Return the first class of each clip [N]; the number of classes for one that has none."""
    rows = (catalog.target_rows(slice(i, i + 1))[0] > 0.5 for i in range(len(catalog.keys)))
    return np.array([row.argmax() if row.any() else len(row) for row in rows], dtype=np.int64)


def parts(strata: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Return which of n parts each clip belongs to [N], from 1, so that every stratum is spread evenly over the parts.

    Raises:
        DataError: if there are fewer clips than parts.
    """
    if len(strata) < n:
        raise DataError(f"{len(strata)} clips cannot be divided into {n} folds. Give more clips or fewer folds.")
    order = np.random.default_rng(0).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    numbers = np.empty(len(strata), dtype=np.int64)
    numbers[order] = np.arange(len(strata)) % n + 1
    return numbers
