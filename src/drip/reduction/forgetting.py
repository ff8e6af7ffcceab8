"""Forgetting events (FES): how often a model in training forgets a row, and the rows forgotten most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier

from drip.errors import InputError
from drip.reduction.base import ScoredReducer, Table
from drip.reduction.inputs import check_whole
from drip.types import FloatArray, IntArray


class ForgettingTracker:
    """Counts forgetting events: a row was classified correctly when last shown, and is wrong now.

    Works with any framework: call :meth:`update` after every epoch with all rows, or after every batch with
    the rows of the batch.

    Args:
        n_rows: Number of rows of the training set.

    References:
        Toneva et al. (2019), An empirical study of example forgetting during deep neural network learning.

    >>> tracker = ForgettingTracker(3)
    >>> tracker.update([0, 1, 2], [True, True, False])
    >>> tracker.update([0, 1, 2], [True, False, False])
    >>> tracker.counts().tolist()  # never forgotten, forgotten once, never learned in two updates
    [0, 1, 2]
    """

    def __init__(self, n_rows: int) -> None:
        check_whole("n_rows", n_rows)
        self._right = np.zeros(n_rows, dtype=bool)
        self._learned = np.zeros(n_rows, dtype=bool)
        self._shown = np.zeros(n_rows, dtype=np.int64)
        self._events = np.zeros(n_rows, dtype=np.int64)

    def update(self, rows: Any, correct: Any) -> None:
        """Record which rows the model now classifies correctly.

        Args:
            rows: Distinct row numbers, shape (k,).
            correct: True for correct rows, shape (k,).

        Raises:
            InputError: the lengths differ, a row is repeated, or a row does not exist.
        """
        shown = np.asarray(rows)
        right = np.asarray(correct, dtype=bool)
        if shown.ndim != 1 or shown.shape != right.shape:
            raise InputError(
                f"rows and correct have shapes {shown.shape} and {right.shape}; give one value per row"
            )
        if not len(shown):
            return
        needed = f"rows must be distinct numbers in [0, {len(self._right)})"
        if shown.dtype.kind not in "iu":
            raise InputError(f"{needed}, not {shown.dtype}")
        if shown.min() < 0 or shown.max() >= len(self._right) or len(np.unique(shown)) < len(shown):
            raise InputError(f"{needed}, not {shown.min()} to {shown.max()} in {len(shown)} entries")
        self._events[shown] += self._right[shown] & ~right
        self._right[shown] = right
        self._learned[shown] |= right
        self._shown[shown] += 1

    def counts(self) -> IntArray:
        """Forgetting events of every row; for rows that were never correct, how often they were shown."""
        return np.where(self._learned, self._events, self._shown)

    @property
    def learned(self) -> IntArray:
        """Rows that were correct at least once, ascending."""
        return np.flatnonzero(self._learned)


@dataclass(eq=False, repr=False)
class ForgettingEvents(ScoredReducer):
    """Keep the rows with the most forgetting events, within each class; ties in random order.

    ``fit(X, y, events=...)`` uses the counts of a :class:`~drip.reduction.ForgettingTracker`, whatever
    framework trained the model. Without events, a scikit-learn classifier is trained here: ``epochs`` calls
    of ``partial_fit`` with all rows in random order, each followed by a prediction for all rows. Rows that
    were never correct count as often as they were shown.

    In a pipeline, events need ``sklearn.set_config(enable_metadata_routing=True)``; otherwise
    imbalanced-learn's pipeline does not pass them on, and they are counted again.

    The training on all rows is part of the method's cost. At small fractions, mostly noise and wrong labels
    are kept.

    Args:
        estimator: Classifier with ``partial_fit``; None for logistic regression by stochastic gradient.
        epochs: Passes over the rows.

    Other parameters and attributes: :class:`~drip.reduction.base.BaseReducer`,
    :class:`~drip.reduction.base.RankedReducer`.

    Attributes:
        scores_: Forgetting events, shape (n,).

    References:
        Toneva et al. (2019), An empirical study of example forgetting during deep neural network learning;
        Zheng et al. (2022), Coverage-centric coreset selection for high pruning rates.

    >>> sampler = ForgettingEvents(n_samples=2).fit([[0.0]] * 4, [0, 0, 1, 1], events=[0, 3, 5, 4])
    >>> sampler.sample_indices_.tolist()
    [1, 2]
    """

    name: ClassVar[str] = "forgetting-events"
    abbreviation: ClassVar[str] = "FES"
    random_ties: ClassVar[bool] = True
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"events": True}
    __metadata_request__fit_resample: ClassVar[dict[str, bool]] = {"events": True}

    estimator: Any = None
    epochs: int = 20

    def check_parameters(self) -> None:
        """Check the parameters of every reducer and of this method."""
        super().check_parameters()
        check_whole("epochs", self.epochs)
        if self.estimator is not None and not hasattr(self.estimator, "partial_fit"):
            raise InputError(
                f"estimator {self.estimator!r} has no partial_fit; use another one, or give events to fit"
            )

    def fit(self, X: Any, y: Any = None, *, events: Any = None) -> Self:  # noqa: N803  # scikit-learn's name
        """Choose the rows.

        Args:
            X: As for every reducer.
            y: As for every reducer; None needs ``events``.
            events: Forgetting events of every row, shape (n,); None to count them.

        Raises:
            InputError: events and X have different lengths, or neither events nor labels were given;
                otherwise as for every reducer.
        """
        self._events = None if events is None else np.asarray(events)
        return super().fit(X, y)

    def fit_resample(self, X: Any, y: Any = None, *, events: Any = None) -> tuple[Any, Any]:  # noqa: N803
        """Choose the rows and return them with their labels; arguments as for :meth:`fit`."""
        self.fit(X, y, events=events)
        return self._fit_resample(X, y)

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # the same for every size
        if self._events is None:
            if len(table.classes.labels) < 2:
                raise InputError(
                    "forgetting events cannot be counted without classes; give events, or y with more "
                    "than 1 class",
                    code="labels-invalid",
                )
            return self._count(table)
        events = self._events
        numbers = events.dtype.kind in "biuf" and bool(np.isfinite(events).all())
        if events.shape != (len(table.values),) or not numbers:
            raise InputError(
                f"events must be {len(table.values)} finite numbers, one for every row, not {events.dtype} "
                f"of shape {events.shape}"
            )
        return events.astype(np.float64)

    def _count(self, table: Table) -> FloatArray:
        values, targets = table.values, table.classes.codes
        rng = np.random.default_rng(table.seeds[0])
        seed = int(rng.integers(2**31 - 1))
        model = SGDClassifier(loss="log_loss") if self.estimator is None else clone(self.estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        every = np.arange(len(values))
        tracker = ForgettingTracker(len(values))
        counter = self._counter(self.epochs)
        for _ in range(self.epochs):
            order = rng.permutation(every)
            model.partial_fit(values[order], targets[order], classes=np.unique(targets))
            tracker.update(every, model.predict(values) == targets)
            counter.advance()
        return tracker.counts().astype(np.float64)
