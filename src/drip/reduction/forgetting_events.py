"""Forgetting-events selection (FES): rows that a model in training forgets most often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier

from drip.errors import InputError
from drip.reduction.base import ScoredReducer, Table, check_whole
from drip.reduction.forgetting_tracker import ForgettingTracker
from drip.types import FloatArray, IntArray


@dataclass(eq=False, repr=False)
class ForgettingEvents(ScoredReducer):
    """Keep the rows with the most forgetting events, within each class; ties in random order.

    Where ``fit(X, y, events=...)`` gets the counts of a :class:`~drip.reduction.ForgettingTracker`, they
    are taken as they are, whatever framework trained the model. Else a scikit-learn classifier is trained
    here: ``epochs`` calls of ``partial_fit`` with all rows in another random order, after each of which
    they are classified. Rows that were never right count as often as they were shown.

    The model has seen all rows, so its cost belongs to that of the method, and at small fractions mostly
    noise and mistaken labels are kept.

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

    estimator: Any = None
    epochs: int = 20

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_whole("epochs", self.epochs)
        if self.estimator is not None and not hasattr(self.estimator, "partial_fit"):
            raise InputError(
                f"estimator must have partial_fit, got {self.estimator!r}; or give events to fit"
            )

    def _fit_params(self, params: dict[str, Any], table: Table) -> None:
        events = params.pop("events", None)
        super()._fit_params(params, table)
        self._events: FloatArray | None = None
        if events is None:
            if len(table.classes.labels) < 2:
                raise InputError("events, or y with more than 1 class to count them, are needed, got neither")
            return
        self._events = np.asarray(events, dtype=np.float64)
        if self._events.shape != (len(table.values),) or not np.isfinite(self._events).all():
            raise InputError(
                f"events must be {len(table.values)} finite numbers, one for every row, got shape "
                f"{self._events.shape}"
            )

    def _score(self, table: Table, sizes: IntArray | None) -> FloatArray:  # noqa: ARG002  # one for every size
        return self._count(table) if self._events is None else self._events

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
