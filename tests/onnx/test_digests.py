"""Both digests, computed by the rules of docs/reference/model-file.md from bytes, without onnx or drip."""

import hashlib
import json
import struct

import numpy as np
import onnx
import pytest
from networks import PLAIN, lively, plain_onnx

from drip.models import SmallCNN
from drip.onnx import export_file, export_onnx, read_metadata

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "u1", 11: "<f8"}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def fields(data):
    """Field numbers and values of a protobuf message, in the order of the bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = varint(data, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(kind)
            if size is None:
                assert kind == BYTES
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def all_of(message, number):
    return [value for found, value in fields(message) if found == number]


def one_of(message, number, default=b""):
    return (all_of(message, number) or [default])[-1]


def dims_of(tensor):
    """Field 1, repeated; some writers pack it."""
    found = []
    for value in all_of(tensor, 1):
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            size, at = varint(value, at)
            found.append(size)
    return found


def values_of(tensor):
    """The values as little-endian bytes: field 9, or the field of the type."""
    raw = all_of(tensor, 9)
    if raw:
        return raw[-1]
    kind = one_of(tensor, 2)
    if kind == 1:
        return b"".join(all_of(tensor, 4))  # float32 have the same bytes packed or not
    numbers, packed = [], b"".join(all_of(tensor, 7 if kind == 7 else 5))
    at = 0
    while at < len(packed):
        number, at = varint(packed, at)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return np.array(numbers).astype(TYPES[kind]).tobytes()


def digest_of(data):
    """SHA-256 by the rules of the page."""
    graph, found = one_of(data, 7), b""
    tensors = {one_of(tensor, 8).decode(): tensor for tensor in all_of(graph, 5)}
    for name in sorted(tensors):
        if name not in {"drip.lower", "drip.upper"}:
            shape = "x".join(map(str, dims_of(tensors[name])))
            found += f"{name}\0{one_of(tensors[name], 2)}\0{shape}\0".encode() + values_of(tensors[name])
    for node in all_of(graph, 1):
        for names in ([one_of(node, 7), one_of(node, 4)], all_of(node, 1), all_of(node, 2)):
            found += b"".join(name + b"\0" for name in names) + b"\0"
        for attribute in sorted(all_of(node, 5), key=lambda message: one_of(message, 1)):
            found += attribute + b"\0"
    imports = {one_of(item, 1): one_of(item, 2) for item in all_of(data, 8)}
    for domain in sorted(imports):
        found += domain + b"\0" + str(imports[domain]).encode() + b"\0"
    return hashlib.sha256(found).hexdigest()


def metadata_of(data):
    pairs = {one_of(item, 1): one_of(item, 2) for item in all_of(data, 14)}
    return json.loads(pairs[b"drip"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "squeezenet"])
def test_the_file_s_digest_follows_from_its_bytes_alone(tmp_path, name):
    make, shape, _ = PLAIN[name]
    source, path = tmp_path / "plain.onnx", tmp_path / "model.onnx"
    source.write_bytes(plain_onnx(lively(make()), shape))
    export_file(source, path)
    data = path.read_bytes()
    content = metadata_of(data)
    assert content["digest"] == digest_of(data)
    assert content["parent_digest"] == digest_of(source.read_bytes())
    assert content["n_classes"] == {"audio": 5, "squeezenet": 9}[name]


@pytest.mark.slow
def test_numbers_that_are_not_stored_as_raw_bytes_give_the_same_digest(tmp_path):
    make, shape, _ = PLAIN["audio"]
    source, path = tmp_path / "plain.onnx", tmp_path / "model.onnx"
    model = onnx.ModelProto.FromString(plain_onnx(lively(make()), shape))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, values.shape, values.ravel()))
    onnx.save(model, source)
    export_file(source, path)
    assert read_metadata(path).digest == digest_of(path.read_bytes())


def test_the_parent_s_digest_follows_from_the_state_dict(tmp_path):
    model = lively(SmallCNN(3, 4))
    example = np.random.default_rng(0).random((2, 3, 12, 12), dtype=np.float32)
    metadata = export_onnx(model, None, example, tmp_path / "model.onnx")
    found = b""
    for name, value in sorted(model.state_dict().items()):
        numbers = [float(number) for number in value.double().reshape(-1)]
        shape = "x".join(str(size) for size in value.shape)
        found += name.encode() + b"\0" + shape.encode() + b"\0" + struct.pack(f"<{len(numbers)}f", *numbers)
    assert metadata.parent_digest == hashlib.sha256(found).hexdigest()
    assert metadata.n_classes == 4
    data = (tmp_path / "model.onnx").read_bytes()
    assert metadata_of(data)["digest"] == digest_of(data)
