"""Counts the forgetting events of a PyTorch classifier in training, for `drip.reduction.ForgettingEvents`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, missing_extra

try:
    import torch
except ImportError as error:
    raise missing_extra("drip.reduction.torch_forgetting", "torch", "torch") from error

from torch import Tensor, nn

from drip.reduction import ForgettingTracker


class TorchForgetting:
    """Counts how often a classifier forgets each row: call :meth:`update` after every epoch.

    All rows are classified in eval mode and without gradients. Afterwards every module is in its previous
    mode and no random number was drawn, so the training is not affected. These passes are part of the
    method's cost.

    Args:
        inputs: All training rows, array or tensor, shape (n, *input shape), in the model's dtype.
        labels: Their classes, whole numbers, shape (n,).
        batch_size: Number of rows classified at once.

    Attributes:
        tracker: The counts: ``tracker.counts()`` for ``ForgettingEvents.fit(X, y, events=...)``.

    Raises:
        InputError: there are no rows, or the labels are not one whole number per row.

    References:
        Toneva et al. (2019), An empirical study of example forgetting during deep neural network learning.

    >>> forgetting = TorchForgetting(torch.eye(2), [0, 1])
    >>> knows, knows_not = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    >>> _ = knows.weight.data.copy_(torch.eye(2)), knows_not.weight.data.copy_(torch.ones(2, 2))
    >>> forgetting.update(knows), forgetting.update(knows_not)  # predicts 0 for all rows
    (1.0, 0.5)
    >>> forgetting.tracker.counts().tolist()
    [0, 1]
    """

    def __init__(self, inputs: NDArray[Any] | Tensor, labels: Any, *, batch_size: int = 256) -> None:
        self._inputs, self._labels = torch.as_tensor(inputs), np.asarray(labels)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        if self._labels.shape != (len(self._inputs),) or self._labels.dtype.kind not in "iu":
            raise InputError(
                f"labels must be {len(self._inputs)} whole numbers, one for every row, not "
                f"{self._labels.dtype} of shape {self._labels.shape}",
                code="labels-invalid",
            )
        self._batch_size = batch_size
        self.tracker = ForgettingTracker(len(self._inputs))

    def update(self, model: nn.Module) -> float:
        """Classify all rows and record which are correct.

        Args:
            model: The classifier in training; it returns logits of shape (n, n_classes).

        Returns:
            The accuracy on all rows.
        """
        modes = [(module, module.training) for module in model.modules()]
        parameter = next(model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        model.eval()
        try:
            with torch.no_grad():
                parts = torch.split(self._inputs, self._batch_size)
                classes = [model(part.to(device)).argmax(1).cpu().numpy() for part in parts]
        finally:
            for module, training in modes:
                module.training = training
        correct = np.concatenate(classes) == self._labels
        self.tracker.update(np.arange(len(correct)), correct)
        return float(correct.mean())
