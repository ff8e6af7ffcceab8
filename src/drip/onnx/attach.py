"""Adds the score and the decision to a classifier's graph: the last step of every export.

Needs the package ``onnx``, not torch. It adds only ordinary forward operations, so any ONNX runtime executes
the result.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from drip import __version__
from drip.errors import ExportError
from drip.media import InputSpec
from drip.onnx.files import (
    check_policy,
    load_model_file,
    metadata_of,
    model_file_digest,
    save_model_file,
    score_outputs,
    write_known_answers,
    write_metadata,
)
from drip.onnx.graph import OPEN_END, PREFIX, Graph, Inputs, measure, run_model
from drip.onnx.heads import ClosingSoftmax, Head, Layout, find_head, find_logits
from drip.onnx.metadata import LOWER, NO_MAPS, UPPER, ModelMetadata, windows_of
from drip.onnx.prepare import copy_input, input_shape, prepared, prune
from drip.onnx.weights import Differentiator, MapWeights, require_derivative
from drip.policy import Policy
from drip.types import JsonObject

HEATMAPS = ("raw", "normalised")
_LARGEST = float(np.finfo(np.float32).max)


def attach_score(
    model: onnx.ModelProto,
    *,
    layer: str | None = None,
    policy: Policy | None = None,
    spec: InputSpec | None = None,
    class_names: Sequence[str] = (),
    contrast: bool = False,
    heatmap: str = "raw",
    output: str | None = None,
    closing_softmax: ClosingSoftmax = "cut",
    layout: Layout | None = None,
    samples: NDArray[np.float32] | None = None,
    layer_name: str | None = None,
    parent_digest: str | None = None,
) -> onnx.ModelProto:
    r"""A classifier with the outputs that ``docs/reference/model-file.md`` describes, as a new model.

    ``a_k = 1/Z sum_p df_c/dA_kp`` and ``score = 1/Z sum_p max(0, sum_k a_k A_kp)``.

    The head, from the activation A to the logits f, is differentiated symbolically, into ordinary forward
    operations of ONNX. The weights a_k are compared with finite differences.

    Args:
        model: The classifier: one input of numbers (N, *shape), logits (N, n_classes), opset 13 or one
            that ONNX can convert to 17.
        layer: Name of the tensor to score; None finds the activation that enters the head. ``none`` is for
            models without maps, such as a multilayer perceptron: their file serves the rules that need none.
        policy: The policy whose windows the graph compares with; None keeps every sample.
        spec: How samples become inputs; None uses the policy's, or only the graph's shape. A graph with
            channels last gets an input with channels first, as input specs have them.
        class_names: In the order of the logits; empty uses the policy's, or those that the model has in its
            metadata under ``names``, as Ultralytics writes them.
        contrast: Add the output ``drip_contrast``, the score of the difference of the two largest logits.
            It is always added if the policy's rule reads it.
        heatmap: ``raw`` as in the paper, or ``normalised``: each heatmap is scaled to [0, 1] before the mean.
        output: Name of the output with the logits, for a model with several outputs.
        closing_softmax: ``cut`` uses the input of a softmax or sigmoid at the end as logits; ``keep`` its
            result; ``sigmoid`` says that the output is a logit of yes and no, or one per label. One logit z
            becomes the logits (-z/2, z/2) of two classes.
        layout: Where ``layer`` has its channels; None reads it from the graph.
        samples: A few real inputs, shape (N, *input shape), at least two: the model is proved with them, and
            the file gets some of them as known answers. None uses noise.
        layer_name: Name of the layer in the metadata; None uses the tensor's name.
        parent_digest: Digest of the model that this one was made from; None uses the digest of ``model``.

    Raises:
        ExportError: The graph has more than one input or no head that can be differentiated (the message
            names the node), or its derivative deviates from finite differences.
        PolicyError: The policy belongs to another model.

    References:
        DRIP paper, eqs. 1-5, 8 and 9.
    """
    _require_choices(heatmap, closing_softmax, layout)
    parent = parent_digest or model_file_digest(model)  # before ``prepared`` renames anything
    if spec is None and policy is not None and policy.provenance.input_spec:
        spec = InputSpec.from_json(policy.provenance.input_spec)
    source = prepared(model, None if spec is None else spec.shape, output, samples)
    graph = Graph(source.model)
    logits, closing = find_logits(graph, source.output, source.inputs, closing_softmax)
    if closing == "sigmoid" or closing_softmax == "sigmoid":
        graph, logits = _two_classes(graph, logits, source.inputs)
    target = source.names.get(layer, layer) if layer is not None else None
    if target == "input":
        graph, target = copy_input(graph)
    head = None
    if layer == NO_MAPS:
        measure(graph, source.inputs, [logits], dynamic=source.dynamic)
    else:
        head = find_head(graph, logits, source.inputs, target, layout, dynamic=source.dynamic)
    n_classes = _n_classes(graph, _original(source.names, source.output), logits)
    names = _class_names(model, class_names, policy, n_classes)
    if policy is not None:
        contrast = contrast or "contrast" in policy.to_rule().needs
    windows, batch = windows_of(policy, n_classes), "batch" if source.dynamic else 1
    score: JsonObject = {"name": "none", "method": "none", "heatmap": "none", "contrast": False}
    score |= {"layer": NO_MAPS, "layer_shape": []}
    weights, n_features = None, 0
    if head is None:
        contrast, n_features = (
            False,
            _without_maps(graph, logits, source.inputs, windows, dynamic=source.dynamic),
        )
    else:
        weights = _Writer(graph, head, heatmap).write(windows, contrast=contrast)
        n_features = head.n_maps
        score = {
            "name": "drip", "method": "gradcam", "heatmap": heatmap, "contrast": contrast,
            "layer": layer_name or layer or _original(source.names, head.activation),
            "layer_shape": [head.n_maps, *_grid(head)],
        }  # fmt: skip
    del source.model.graph.output[:]
    source.model.graph.output.extend(_outputs(batch, n_classes, n_features, contrast=contrast))
    prune(source.model)
    if head is not None and weights is not None:
        require_derivative(source.model, head, weights, source.inputs, dynamic=source.dynamic)
    metadata = ModelMetadata(
        digest="",
        quantization=_quantization_of(model),
        parent_digest=parent,
        score=score | ({"closing": closing} if closing else {}),
        spec=spec or InputSpec(source.inputs.shape),
        class_names=names,
        policy=policy,
        drip_version=__version__,
        n_classes=n_classes,
    )
    finished = write_metadata(source.model, metadata)
    # last, because a policy is checked against the digests of the finished file
    if policy is not None:
        provides = score_outputs(source.model) - ({"drip"} if head is None else set())
        check_policy(policy, finished, n_classes, provides)
    write_known_answers(source.model, source.inputs.rows(4), source.inputs.kind)
    return source.model


def _require_choices(heatmap: str, closing_softmax: str, layout: str | None) -> None:
    if heatmap not in HEATMAPS:
        raise ExportError(f"heatmap must be one of {HEATMAPS}, not {heatmap!r}", code="bad-argument")
    if closing_softmax not in get_args(ClosingSoftmax):
        expected = get_args(ClosingSoftmax)
        raise ExportError(
            f"closing_softmax must be one of {expected}, not {closing_softmax!r}", code="bad-argument"
        )
    if layout is not None and layout not in get_args(Layout):
        raise ExportError(f"layout must be one of {get_args(Layout)}, not {layout!r}", code="bad-argument")


def _class_names(
    model: onnx.ModelProto, given: Sequence[str], policy: Policy | None, n_classes: int
) -> tuple[str, ...]:
    """The given names, else those of the policy, else those that the model has."""
    names = tuple(given) or (policy.provenance.class_names if policy is not None else ())
    names = names or _names_in(model, n_classes)
    if names and len(names) != n_classes:
        raise ExportError(
            f"{len(names)} class names for {n_classes} logits: {names!r}; give one name per logit",
            code="labels-invalid",
        )
    return names


def _names_in(model: onnx.ModelProto, n_classes: int) -> tuple[str, ...]:
    """Class names in a model's own metadata, if there is one for each logit."""
    text = next((item.value for item in model.metadata_props if item.key == "names"), "")
    try:
        found = ast.literal_eval(text)
        names = tuple(found[index] for index in range(n_classes)) if len(found) == n_classes else ()
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, MemoryError, RecursionError):
        return ()
    return names if all(isinstance(name, str) for name in names) else ()


def _quantization_of(model: onnx.ModelProto) -> JsonObject | None:
    """What the metadata say about a model that was quantised elsewhere."""
    if not any(node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"} for node in model.graph.node):
        return None
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8)
    largest = max(
        (int(np.abs(numpy_helper.to_array(one).astype(int)).max(initial=0)) for one in weights), default=0
    )
    return {"format": "imported", "weight_bits": 7 if largest <= 64 else 8}


def _original(names: dict[str, str], name: str) -> str:
    """The name of a tensor in the file that was read."""
    return next((old for old, new in names.items() if new == name), name)


def _grid(head: Head) -> tuple[int, ...]:
    """Sizes of the position axes; for tokens that form a square, its sides."""
    side = math.isqrt(head.positions[0])
    if head.layout == "tokens" and side * side == head.positions[0]:
        return side, side
    return head.positions


def _two_classes(graph: Graph, logit: str, inputs: Inputs) -> tuple[Graph, str]:
    """A graph that ends with one logit z gets the logits (-z/2, z/2) of the classes no and yes; others stay.

    Their softmax is (1 - sigmoid(z), sigmoid(z)).
    """
    (value,) = run_model(graph.model, inputs.rows(1), [logit])
    if np.size(value) != 1:
        return graph, logit
    column, halves, name = (f"{PREFIX}{part}" for part in ("one_logit", "no_and_yes", "two_logits"))
    proto = graph.model.graph
    proto.initializer.append(numpy_helper.from_array(np.array([-1, 1]), f"{column}_shape"))
    proto.initializer.append(numpy_helper.from_array(np.array([[-0.5, 0.5]], np.float32), halves))
    proto.node.append(helper.make_node("Reshape", [logit, f"{column}_shape"], [column], name=column))
    proto.node.append(helper.make_node("MatMul", [column, halves], [name], name=name))
    return Graph(graph.model), name


def _n_classes(graph: Graph, output: str, logits: str) -> int:
    sizes = graph.sizes(logits)
    if len(sizes) > 1 and math.prod(sizes[1:]) == 1:
        raise ExportError(
            f"{output!r} has one value per sample, not one logit for each of two or more classes; if it is the "
            'logit of yes and no, add --softmax sigmoid (in Python: closing_softmax="sigmoid")',
            code="export-unsupported",
        )
    if len(sizes) < 2 or sizes[1] < 2 or math.prod(sizes[2:]) != 1:
        raise ExportError(
            f"{output!r} has shape {sizes}, not one logit for each class; name the output with the logits with "
            "--output (in Python: output=). A detector has no class per image: train or export a classifier, and "
            "give it the crops that the detector finds",
            code="export-unsupported",
        )
    return sizes[1]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Appends the score, the decision and any requested outputs."""

    graph: Graph
    head: Head
    heatmap: str

    def write(self, windows: np.ndarray, *, contrast: bool) -> MapWeights:
        """Append all nodes, with the outputs under their names; returns the weights of the score's maps."""
        g, head = self.graph, self.head
        flat = _classes(g, head.logits)
        differentiator = Differentiator(g, head)
        maps = self._maps()
        weights = differentiator.weights(["predicted_class"])
        self._score(maps, weights, "drip_score", normalised=self.heatmap == "normalised")
        _retain(g, flat, windows)
        if contrast:
            # The paper's score differentiates one logit. Its contrast differentiates the difference of the
            # two largest, in one pass instead of two.
            two = g.add("TopK", flat, g.indices([2]), axis=1, outputs=2) + ".1"
            classes = [g.add("Gather", two, g.number(index, np.int64), axis=1) for index in (0, 1)]
            self._score(maps, differentiator.weights(classes), "drip_contrast", normalised=False)
        mean = g.reduce("ReduceMean", maps, [2], keep=False)
        g.add("Identity", mean, outputs=["features"])
        return weights

    def _maps(self) -> str:
        """The activation as (N, K, Z)."""
        g, head = self.graph, self.head
        n_positions = math.prod(head.positions)
        rows = -1 if g.shapes[head.activation].growing else g.sizes(head.activation)[0]
        name = head.activation
        if head.layout == "channels_first":
            return g.reshape(name, [rows, head.n_maps, n_positions])
        if head.skipped:  # the class token has no position and is not part of the heatmap
            starts = g.indices([head.skipped])
            name = g.add("Slice", name, starts, g.indices([OPEN_END]), g.indices([1]))
        elif g.rank(name) > 3:
            name = g.reshape(name, [rows, n_positions, head.n_maps])
        return g.add("Transpose", name, perm=[0, 2, 1])

    def _score(self, maps: str, weights: MapWeights, name: str, *, normalised: bool) -> None:
        """Mean of max(0, the weighted sum of maps) over positions."""
        g = self.graph
        heat = g.add("Relu", g.add("MatMul", g.unsqueeze(weights.name, 1), maps))
        if not normalised and weights.factor == 1.0:
            self._mean(heat, name)  # the mean itself is the output: one node fewer
            return
        mean = g.reduce("ReduceMean", heat, [1, 2], keep=False)
        if not normalised:
            g.add("Mul", mean, g.number(weights.factor), outputs=[name])
            return
        # (mean - min) / (max - min): the factor is the same in numerator and denominator
        low = g.reduce("ReduceMin", heat, [1, 2], keep=False)
        span = g.add("Sub", g.reduce("ReduceMax", heat, [1, 2], keep=False), low)
        # A constant heatmap scores 0, as with PyTorch. Where computes both branches, so the denominator is
        # made 1 first and 0 / 0 is never computed.
        constant = g.add("Equal", span, g.number(0.0))
        ratio = g.add("Div", g.add("Sub", mean, low), g.add("Where", constant, g.number(1.0), span))
        g.add("Where", constant, g.number(0.0), ratio, outputs=[name])

    def _mean(self, heat: str, name: str) -> None:
        """As :meth:`Graph.reduce`, which cannot name its output."""
        g = self.graph
        if g.opset >= 18:
            g.add("ReduceMean", heat, g.indices([1, 2]), keepdims=0, outputs=[name])
        else:
            g.add("ReduceMean", heat, axes=[1, 2], keepdims=0, outputs=[name])


def _classes(g: Graph, logits: str) -> str:
    """Append the outputs logits and predicted_class; returns the logits as (N, n_classes)."""
    flat = g.add("Flatten", logits) if g.rank(logits) > 2 else logits
    # Identity instead of renaming: the tensor may be read by the head that is differentiated.
    g.add("Identity", flat, outputs=["logits"])
    # On ties the lowest index wins, as in NumPy and PyTorch; in ONNX this attribute decides.
    g.add("ArgMax", flat, outputs=["predicted_class"], axis=1, keepdims=0, select_last_index=0)
    return flat


def _retain(g: Graph, logits: str, windows: np.ndarray) -> None:
    """Not (lower <= score <= upper) (eq. 9), and true if anything is not finite.

    Such a sample is not typical; it may be the first sign of a broken sensor.
    """
    # Separate initialisers that no node folds, so another policy can replace them without a new export.
    g.store(LOWER, windows[0])
    g.store(UPPER, windows[1])
    lower = g.add("Gather", LOWER, "predicted_class")
    upper = g.add("Gather", UPPER, "predicted_class")
    above = g.add("GreaterOrEqual", "drip_score", lower)
    below = g.add("LessOrEqual", "drip_score", upper)
    # Compute "inside" and negate it last: comparisons with NaN are false, so NaN is never inside.
    # The sum of the magnitudes of the logits is not finite if one of them is not: one comparison
    # instead of one per class.
    size = g.reduce("ReduceL1", logits, [1], keep=False)
    finite = g.add("LessOrEqual", size, g.number(_LARGEST))
    inside = g.add("And", g.add("And", above, below), finite)
    g.add("Not", inside, outputs=["retain"])


def _without_maps(g: Graph, logits: str, inputs: Inputs, windows: np.ndarray, *, dynamic: bool) -> int:
    """Append the outputs of a model that has no maps, with a score of 0; returns the number of features.

    Its features are what the last linear layer reads.
    """
    flat = _classes(g, logits)
    number = g.add("Cast", "predicted_class", to=TensorProto.FLOAT)
    g.add("Mul", number, g.number(0.0), outputs=["drip_score"])
    _retain(g, flat, windows)
    name = logits
    while (node := g.producer.get(name)) is not None:
        varying = [one for one in node.inputs if one in g.varying]
        if node.op in {"Gemm", "MatMul"} and varying == [node.inputs[0]]:
            measure(g, inputs, varying, dynamic=dynamic)
            if g.rank(varying[0]) != 2 or varying[0] == "input":
                return 0
            g.add("Identity", varying[0], outputs=["features"])
            return g.sizes(varying[0])[1]
        if node.op not in {"Add", "Identity", "Reshape", "Flatten", "Relu"} or len(varying) != 1:
            return 0
        name = varying[0]
    return 0


def _outputs(
    batch: str | int, n_classes: int, n_features: int, *, contrast: bool
) -> list[onnx.ValueInfoProto]:
    """The declared outputs, in the order of the format."""
    floats = TensorProto.FLOAT
    found = [
        helper.make_tensor_value_info("logits", floats, [batch, n_classes]),
        helper.make_tensor_value_info("predicted_class", TensorProto.INT64, [batch]),
        helper.make_tensor_value_info("drip_score", floats, [batch]),
        helper.make_tensor_value_info("retain", TensorProto.BOOL, [batch]),
    ]
    if contrast:
        found.append(helper.make_tensor_value_info("drip_contrast", floats, [batch]))
    if n_features:
        found.append(helper.make_tensor_value_info("features", floats, [batch, n_features]))
    return found


def declared_shape(source: str | Path) -> tuple[int, ...]:
    """Shape of one input of an ONNX classifier, channels first where they are known to be last.

    Raises:
        ExportError: The file cannot be read, or accepts inputs of several shapes (``input-spec-invalid``).
    """
    graph = load_model_file(source).graph
    stored = {tensor.name for tensor in graph.initializer}
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(next(item for item in graph.input if item.name not in stored))
    return input_shape(copy, None)[0]


def export_file(source: str | Path, path: str | Path, **options: Any) -> ModelMetadata:
    """Rewrite an ONNX classifier with a score and a decision; needs no torch.

    Args:
        source: The classifier's file.
        path: Where to write.
        options: As for :func:`drip.onnx.attach_score`.

    Returns:
        The metadata of the written file.

    Raises:
        ExportError: The file cannot be read, or its head cannot be differentiated.
        PolicyError: The policy belongs to another model.
    """
    model = attach_score(load_model_file(source), **options)
    metadata = metadata_of(model)
    save_model_file(model, path)
    return metadata
