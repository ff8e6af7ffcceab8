"""TorchScorer: a trained classifier in, observations out.

The first batch fixes what does not change between batches: the target layer, the plan for its gradient, and
whether NumPy may do the arithmetic. A later batch costs one forward pass and a few small products.

An error says whose fault it is, because a run treats the two differently: an :class:`InputError` or
:class:`NonFiniteError` sends one sample to quarantine, any other :class:`ModelError` stops the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drip.errors import DripError, InputError, ModelError
from drip.scoring.cam import MAPS, mean_over_positions, normalise
from drip.scoring.gradient import (
    RELATIVE_TOLERANCE,
    Choice,
    ClosedForm,
    Pass,
    Plan,
    choose_plan,
    host_scores,
    in_single,
    top_two,
)
from drip.scoring.model import (
    Batch,
    ScoringMode,
    WrittenBuffers,
    each_row,
    locks_of,
    logits_of,
    notes_on,
    require_finite,
    rows_influence_each_other,
    to_classes,
    to_host,
    to_input,
)
from drip.scoring.target import Reshape, Target, find_target
from drip.types import IntArray, JsonObject, Observations

Heatmap = Literal["raw", "normalised"]
Result = TypeVar("Result")
_Scored = tuple[NDArray[np.int64], NDArray[Any], dict[str, NDArray[Any]], NDArray[np.floating[Any]]]
_CONTRAST_NAMES = ("contrast", "contrast_mean", "contrast_abs")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the first batch fixed; ``on_host`` is the plan if :func:`host_scores` may run it.

    ``alone``: rows of a batch influence each other, and each is scored alone.
    """

    target: Target
    choice: Choice
    notes: tuple[str, ...]
    input_shape: tuple[int, ...]
    n_classes: int
    on_host: ClosedForm | None
    alone: bool


class TorchScorer:
    r"""Scores a classifier's inputs with the mean of a class activation map of the predicted class.

    ``a_k = 1/Z sum_p df_c/dA_kp``, ``H = max(0, sum_k a_k A_k)`` and ``score = 1/Z sum_p H_p``.

    A are the K maps with Z positions p that enter the head, f_c is the logit (before softmax) of the
    predicted class c, the lowest index on ties. The model runs forward once per call; only its head,
    or nothing at all, is differentiated (:attr:`plan`). Parameters, gradients, hooks and training
    flags of the model stay unchanged; dropout and batch normalisation run in eval mode.

    ``example``, or else the first batch, fixes the target layer and the plan with a few passes over two of
    its samples. Build a new scorer after replacing a layer; new weights in the same layers are followed.

    Outputs after a sigmoid or softmax, and multi-label models, cannot be recognised with certainty. Pass a
    model that ends with one logit per class; :meth:`describe` warns about rows that sum to one or are all
    between zero and one.

    Args:
        model: The classifier; returns logits (N, C), or an object or mapping with ``logits``.
        layer: Dotted name of the target layer; None finds it, and :attr:`layer` shows which.
        heatmap: ``raw`` as in the paper's equations, or ``normalised``, which scales each heatmap to
            [0, 1] before the mean and leads to a different score.
        contrast: Also score the map M of f_c1 - f_c2, the two largest logits (lower index first on
            ties), and make ``contrast`` the primary score.
        method: ``gradcam`` (the paper's), ``hirescam``, ``gradcam++`` or ``layercam``.
        reshape: Brings the layer's output to (N, K, \*positions) if its layout is different, such as
            tokens. Square token grids need none.
        example: A few inputs, shape (N, \*input shape), to fix layer and plan at once.
        device: Where to score; the model is moved there. None leaves it where it is.

    Raises:
        InputError: An option is unknown, or the example is not a batch of finite floats.
        ModelError: The model has no layer to score, or no logits.

    References:
        DRIP paper, eqs. 1-5 and 8.

    >>> _ = torch.manual_seed(0)
    >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *head)
    >>> scorer = TorchScorer(net, example=np.zeros((1, 1, 8, 8), dtype=np.float32))
    >>> scorer.layer, scorer.plan.name
    ('1', 'closed form')
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        heatmap: Heatmap = "raw",
        contrast: bool = False,  # noqa: FBT001, FBT002  # kept positional for existing scripts
        method: str = "gradcam",
        reshape: Reshape | None = None,
        example: Batch | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if heatmap not in get_args(Heatmap):
            raise InputError(f"heatmap {heatmap!r} is unknown; choose one of {get_args(Heatmap)}")
        if not isinstance(method, str) or method not in MAPS:
            raise InputError(f"method {method!r} is unknown; choose one of {tuple(MAPS)}")
        if not isinstance(layer, str | None):
            raise InputError(
                f"layer {layer!r} is not a name; give a dotted name such as 'features.8', or None"
            )
        if not (reshape is None or callable(reshape)):
            raise InputError(
                f"reshape {reshape!r} cannot be called; give a function from (N, T, C) to (N, K, *positions)"
            )
        self._model = _on_device(model, device)
        self._asked_layer = layer
        self._reshape = reshape
        self._heatmap: Heatmap = heatmap
        self._contrast = contrast
        self._primary = "contrast" if contrast else "drip"
        self._method = method
        self._map = MAPS[method]
        self._prepared: _Prepared | None = None
        self._written: WrittenBuffers | None = None
        self._locks = locks_of(model)
        # The first floating-point tensor decides type and device; counters of batch normalisation are
        # integers.
        reference = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), None)
        if reference is None:
            raise ModelError("the model has no parameters; pass the trained model")
        self._device = reference.device
        self._dtype = reference.dtype
        if example is not None:
            x = self._checked(example)
            if len(x) == 0:
                raise InputError("the example is empty; pass at least one sample")
            with ScoringMode(self._model, self._locks):
                self._prepare(x)

    @property
    def provides(self) -> frozenset[str]:
        """Names of what the observations contain: ``logits``, ``features`` and the scores."""
        return frozenset(("logits", "features", *self._score_names()))

    @property
    def layer(self) -> str:
        """Dotted name of the target layer, with the functions that follow it, as in ``conv2+relu``."""
        return self._fixed().target.name

    @property
    def plan(self) -> Plan:
        """How the gradient is computed; ``plan.name`` says it in words."""
        return self._fixed().choice.plan

    @property
    def score_definition(self) -> JsonObject:
        """Definition of the primary score for a policy's provenance; JSON-serialisable."""
        target = self._fixed().target
        return {
            "name": self._primary,
            "method": self._method,
            "heatmap": self._heatmap,
            "contrast": self._contrast,
            "layer": target.name,
            "layer_shape": list(target.shape),
        }

    def describe(self) -> str:
        """Layer, plan, its timing and warnings as text for the terminal."""
        fixed = self._fixed()
        shape = " x ".join(str(size) for size in fixed.target.shape)
        kind = f"{self._method}, {self._heatmap} heatmap" + (", contrastive" if self._contrast else "")
        lines = [
            f"target layer  {fixed.target.name} ({type(fixed.target.module).__name__}, {shape})",
            f"score         {kind}",
            f"plan          {fixed.choice.plan.name}",
        ]
        for name, seconds in fixed.choice.seconds.items():
            error = fixed.choice.errors[name]
            lines.append(f"  {name:<14}{1e3 * seconds:.3g} ms on the example, deviation {error:.1g}")
        return "\n".join([*lines, *(f"note: {note}" for note in fixed.notes)])

    def score(self, batch: Batch) -> Observations:
        r"""Scores, classes, logits and pooled features of a batch; samples do not influence each other.

        Args:
            batch: Inputs, shape (N, \*input shape), floating point, finite; N may be 0.

        Returns:
            Columns of N rows. ``named_scores`` has ``drip`` (mean of the heatmap as configured) and
            with ``contrast`` also ``contrast`` = mean max(0, M), ``contrast_mean`` = mean M and
            ``contrast_abs`` = mean \|M\|; ``features`` is the mean of A over its positions, float32.

        Raises:
            InputError: The model does not accept the batch's shape or type, or it is not finite.
            NonFiniteError: A logit or score is NaN or infinite.
            ModelError: The model fails on a batch of the usual shape, has NaN in its weights, or
                changed its structure.
        """
        x = self._checked(batch)
        if x.shape[0] == 0:
            return self._no_rows(x)
        with ScoringMode(self._model, self._locks):
            classes, logits, scores, features = self._by_parts(x)
        # The cheap test first: a good batch needs no search for bad rows and no message.
        if not _looks_finite(logits, *scores.values()):
            self._require_finite("logits", logits)
            for name, column in scores.items():
                self._require_finite(f"{name} scores", column)
        # float64, although scores are float32: rules compare them with windows that come from a JSON file,
        # and a comparison in mixed precision would round the window first.
        columns = {name: column.astype(np.float64) for name, column in scores.items()}
        return Observations(classes, logits.astype(np.float64), columns, self._primary, features)

    def _by_parts(self, x: Tensor) -> _Scored:
        """Results of a batch, row by row for a model whose rows influence each other."""
        fixed = self._prepared or self._prepare(x)
        if not (fixed.alone and len(x) > 1):
            return self._guarded(x, self._scored)
        classes, logits, scores, features = zip(
            *(self._guarded(row, self._scored) for row in each_row(x)), strict=True
        )
        columns = {name: np.concatenate([one[name] for one in scores]) for name in scores[0]}
        return np.concatenate(classes), np.concatenate(logits), columns, np.concatenate(features)

    def heatmap(self, batch: Batch, classes: IntArray | None = None) -> NDArray[np.float32]:
        r"""Heatmaps for pictures: after the ReLU, normalised if configured, at feature-map size.

        Args:
            batch: Inputs, shape (N, \*input shape).
            classes: The class to explain for each row, in [0, n_classes), shape (N,); None explains the
                predicted classes.

        Returns:
            Heatmaps, shape (N, \*positions).

        Raises:
            InputError: As :meth:`score`, or ``classes`` are not N valid class indices.
            NonFiniteError: As :meth:`score`.
            ModelError: As :meth:`score`.
        """
        x = self._checked(batch)
        if len(x) == 0:
            self._no_rows(x)
            return np.zeros((0, *self._fixed().target.shape[1:]), dtype=np.float32)
        with ScoringMode(self._model, self._locks):
            fixed = self._prepared or self._prepare(x)
            runs = [self._guarded(part, _run) for part in (each_row(x) if fixed.alone else [x])]
            logits = torch.cat([run.logits for run in runs])
            chosen = logits.argmax(1) if classes is None else to_classes(classes, like=logits)
            each = each_row(chosen) if fixed.alone else [chosen]
            parts = [self._heatmaps(run, one) for run, one in zip(runs, each, strict=True)]
            heatmaps = to_host(torch.cat(parts)).astype(np.float32, copy=False)
        self._require_finite("heatmaps", heatmaps)
        return heatmaps

    def _scored(self, fixed: _Prepared, x: Tensor) -> _Scored:
        """Classes, logits, scores by name and pooled features of one pass, as arrays."""
        plan = fixed.choice.plan
        if fixed.on_host is not None:
            found = host_scores(fixed.on_host, x)
            if found is not None:
                return found.classes, found.logits, {"drip": found.scores}, found.features
            plan = fixed.on_host.head  # this pass is not covered: a hook, autocast or an edit came in between
        run = plan.run(x)
        logits = to_host(run.logits)
        if not _looks_finite(logits):  # before the backward, which fails on logits without a graph
            self._require_finite("logits", logits)
        best, rival = top_two(run.logits)
        named = {"drip": mean_over_positions(self._heatmaps(run, best))}
        if self._contrast:
            difference = self._map_of(run, best, rival)
            named["contrast"] = mean_over_positions(difference.relu())
            named["contrast_mean"] = mean_over_positions(difference)
            named["contrast_abs"] = mean_over_positions(difference.abs())
        # One matrix of N * K rows instead of a mean over several axes, which is slower.
        pooled = to_host(mean_over_positions(in_single(run.activations).flatten(0, 1)))
        features = pooled.reshape(run.activations.shape[:2]).astype(np.float32, copy=False)
        arrays = {name: to_host(values) for name, values in named.items()}
        return to_host(best), logits, arrays, features

    def _map_of(self, run: Pass, classes: Tensor, rivals: Tensor | None) -> Tensor:
        gradients = run.mean_gradients if self._method == "gradcam" else run.gradients
        given = in_single(run.activations), in_single(gradients(classes, rivals))
        if not torch.is_autocast_enabled(self._device.type):
            return self._map(*given)
        with torch.autocast(self._device.type, enabled=False):  # the caller meant the model, not the score
            return self._map(*given)

    def _heatmaps(self, run: Pass, classes: Tensor) -> Tensor:
        heatmaps = self._map_of(run, classes, None).relu()
        return normalise(heatmaps) if self._heatmap == "normalised" else heatmaps

    def _score_names(self) -> tuple[str, ...]:
        return ("drip", *_CONTRAST_NAMES) if self._contrast else ("drip",)

    def _checked(self, batch: Batch) -> Tensor:
        return to_input(batch, self._dtype, self._device)

    def _guarded(self, x: Tensor, work: Callable[[_Prepared, Tensor], Result]) -> Result:
        """One pass over a batch, with the user's exceptions translated; the first pass fixes the plan.

        A model that raises on the shape it accepted before is broken; with a new shape, the input is at
        fault. This is the only way to tell: what ``forward`` raises can be any type.
        """
        fixed = self._prepared or self._prepare(x)
        if x.dim() != 1 + len(fixed.input_shape):
            # Some models accept a missing batch axis and would return scores of something else.
            expected = ("N", *fixed.input_shape)
            raise InputError(
                f"the batch has shape {tuple(x.shape)}, but the model's inputs have {expected}; a single "
                "sample needs a batch axis too: batch[None]",
                code="sample-shape",
            )
        try:
            return work(fixed, x)
        except Exception as error:  # forward is the user's: it may raise anything
            if tuple(x.shape[1:]) == fixed.input_shape:
                if isinstance(error, DripError):
                    raise
                raise ModelError(
                    f"the model failed on a batch of shape {tuple(x.shape)}: {_words(error)}; it accepted "
                    "this shape before, so look for the cause in the model",
                    code="model-failed",
                ) from error
            expected = ("N", *fixed.input_shape)
            raise InputError(
                f"the model failed on a batch of shape {tuple(x.shape)}: {_words(error)}; pass shape "
                f"{expected} or another that the model accepts",
                code="sample-shape",
            ) from error
        finally:
            if self._written is not None:
                self._written.restore()

    def _prepare(self, x: Tensor) -> _Prepared:
        """Choose the target layer and the plan with two samples; inside ScoringMode."""
        # Two samples: with one, an output whose first axis is not the batch would pass unnoticed.
        example = x[:2] if len(x) > 1 else torch.cat((x, x.flip(-1)))
        buffers = WrittenBuffers(self._model)
        try:
            output = self._model(example.clone())
        except Exception as error:  # forward is the user's: it may raise anything
            if isinstance(error, DripError):
                raise
            raise InputError(
                f"the model failed on its first batch, shape {tuple(x.shape)}: {_words(error)}; pass the "
                "batch axis, channels and size that it expects",
                code="input-spec-invalid",
            ) from error
        logits = logits_of(output, len(example))
        self._require_finite("logits", to_host(logits))
        names = buffers.keep_changed()
        self._written = buffers if names else None
        # Every pass from here on starts from the same state, as every later pass does. No hook without need:
        # a model with hooks has no closed form.
        hooks = [self._model.register_forward_pre_hook(lambda *_: buffers.restore())] if names else []
        try:
            alone = rows_influence_each_other(self._model, example, logits)
            target = find_target(self._model, example, self._asked_layer, self._reshape)
            # One sample: the noise probes hold activations and graph of the whole head, several times.
            choice = choose_plan(self._model, target, example[:1])
            on_host = self._on_host(choice, example)
        except Exception as error:  # not the batch's fault: the model accepted it above
            if isinstance(error, DripError):
                raise
            raise ModelError(
                f"the model cannot be scored: {_words(error)}; give another layer=, or correct reshape= if "
                "that is what failed",
                code="score-unavailable",
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            buffers.restore()
        notes = [*target.notes, *notes_on(logits)]
        if alone:
            notes.append("rows of a batch influence each other in this model, so each is scored alone")
        if names:
            notes.append(
                f"forward changes the buffers {', '.join(names[:4])}; they are restored after each pass"
            )
        shape = tuple(x.shape[1:])
        self._prepared = _Prepared(target, choice, tuple(notes), shape, logits.shape[1], on_host, alone)
        return self._prepared

    def _require_finite(self, what: str, values: NDArray[np.floating[Any]]) -> None:
        """Check results; if they are not finite, find out whether the weights or the sample are at fault."""
        if not np.isfinite(values).all():
            for name, parameter in self._model.named_parameters():
                if not torch.isfinite(parameter).all():
                    raise ModelError(
                        f"the model's weights contain NaN or infinity in {name!r}; load a valid checkpoint",
                        code="model-non-finite",
                    )
        require_finite(what, values)

    def _on_host(self, choice: Choice, example: Tensor) -> ClosedForm | None:
        """The plan, if NumPy can execute it and computes the same for one row as for several."""
        # Only the paper's score: every other map would need a second implementation and its own proof.
        plan = choice.plan
        on_cpu = example.device.type == "cpu" and example.dtype == torch.float32
        plain = self._method == "gradcam" and self._heatmap == "raw" and not self._contrast
        if not (isinstance(plan, ClosedForm) and on_cpu and plain):
            return None
        # Both sizes, because single rows and batches take different paths in NumPy.
        for x in (example[:1], example):
            run = plan.run(x)
            found = host_scores(plan, x)
            expected = to_host(mean_over_positions(self._heatmaps(run, run.logits.argmax(1))))
            if (
                found is None
                or not np.abs(found.scores - expected).max() <= RELATIVE_TOLERANCE * np.abs(expected).max()
            ):
                return None
        return plan

    def _fixed(self) -> _Prepared:
        if self._prepared is None:
            raise InputError("the target layer is not known yet; pass example=, or score a batch first")
        return self._prepared

    def _no_rows(self, x: Tensor) -> Observations:
        """The columns of an empty batch. Before the first batch, noise of its shape fixes the layer."""
        fixed = self._prepared
        if fixed is None:
            # Not zeros: they can leave every activation at zero, and then comparing values proves nothing.
            generator = torch.Generator().manual_seed(0)
            with ScoringMode(self._model, self._locks):
                fixed = self._prepare(torch.randn((2, *x.shape[1:]), generator=generator).to(x))
        return Observations(
            classes=np.zeros(0, dtype=np.int64),
            logits=np.zeros((0, fixed.n_classes)),
            named_scores={name: np.zeros(0) for name in self._score_names()},
            primary=self._primary,
            features=np.zeros((0, fixed.target.shape[0]), dtype=np.float32),
        )


def _looks_finite(*arrays: NDArray[np.floating[Any]]) -> bool:
    """False if a value is NaN or infinite, or so large that its square is; then the caller looks closely.

    A dot product of each array with itself is the cheapest complete test, and this one runs for every sample.
    ``np.isfinite(...).all()`` takes two calls and an array of booleans each.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        flats = [values.reshape(-1) for values in arrays]
        return math.isfinite(sum(float(np.dot(flat, flat)) for flat in flats))


def _run(fixed: _Prepared, x: Tensor) -> Pass:
    """One pass with the chosen plan."""
    return fixed.choice.plan.run(x)


def _on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The model, moved to the device if one is given.

    Raises:
        ModelError: It is not a module that runs in Python; a script's layers cannot be observed.
        InputError: The device does not exist here.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"a {type(model).__name__} is not a torch.nn.Module that runs in Python; pass the module itself, "
            "not a script, a file or its weights"
        )
    if device is None:
        return model
    try:
        return model.to(device)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last: torch without CUDA
        reason = _words(error).splitlines()[0]
        raise InputError(
            f"device {device!r} is not available here: {reason}; choose another, such as 'cpu'"
        ) from error


def _words(error: Exception) -> str:
    """Type and message of an exception from other code; the type too, because some messages are empty."""
    return f"{type(error).__name__}: {error}"
