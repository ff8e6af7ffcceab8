"""Standard input: JSON lines and frames, cut anywhere, too large, or malformed."""

import base64
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
from digits import MODEL, N_PRODUCTION
from hypothesis import given
from hypothesis import strategies as st

from drip.errors import SourceError
from drip.sources import StdinSource, open_source
from drip.sources.messages import HEAD_BYTES, sample_of, sample_of_json
from drip.sources.stdin import FrameParser, LineParser
from drip.store import RetentionStore
from drip.testing import check_source

PNG = b"\x89PNG\r\n\x1a\n"


def line(data, **header):
    return json.dumps({**header, "data": base64.b64encode(data).decode()}).encode() + b"\n"


def frame(data, **header):
    text = json.dumps(header).encode() if header else b""
    return struct.pack(">II", 4 + len(text) + len(data), len(text)) + text + data


def source_of(content, form="lines", **arguments):
    """A source over a pipe that has this content and ends."""
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(content)

    threading.Thread(target=write, daemon=True).start()
    return StdinSource(form, descriptor=reader, **arguments)


def samples_of(content, form="lines", **arguments):
    return [sample for batch in source_of(content, form, **arguments).batches(10) for sample in batch]


def parsed(parser, content, cuts=()):
    """Samples of a parser that gets the content in pieces."""
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    samples = [s for a, b in pairwise(edges) for s in parser.feed(content[a:b])]
    return samples + list(parser.finish())


FORMS = pytest.mark.parametrize(
    ("form", "write"), [("lines", line), ("frames", frame)], ids=["lines", "frames"]
)


@FORMS
def test_stdin_is_a_source(form, write):
    content = b"".join(write(PNG + bytes([n])) for n in range(5))
    check_source(lambda: source_of(content, form))


@FORMS
def test_header_becomes_the_sample(form, write):
    content = write(
        b"anything", id="a", media_type="IMAGE/png; q=1", label=3, time_s=1.5, meta={"place": "door"}
    ) + write(PNG)
    first, second = samples_of(content, form)
    assert (first.id, first.data, first.media_type, first.label) == ("a", b"anything", "image/png", 3)
    assert (first.time_s, first.meta) == (1.5, {"place": "door"})
    assert (second.media_type, second.label, second.time_s) == ("image/png", None, None)
    assert len(second.id) == 32


@FORMS
def test_the_default_id_follows_from_the_content(form, write):
    first, again, other = samples_of(write(PNG) + write(PNG) + write(PNG + b"2"), form)
    assert first.id == again.id != other.id


def test_labels_may_be_class_names():
    content = line(PNG, label="dog") + line(PNG, label="7") + line(PNG, label="fish")
    first, second, third = samples_of(content, class_names=["cat", "dog"])
    assert (first.label, second.label) == (1, 7)
    assert "class name, got 'fish'" in third.rejected


@pytest.mark.parametrize(
    ("start", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF0000WEBP", "image/webp"),
        (b"RIFF0000WAVE", "audio/wav"),
        (b"fLaC", "audio/flac"),
        (b"BM", "image/bmp"),
        (b"\x93NUMPY", "application/x-npy"),
    ],
)
def test_media_type_follows_from_the_first_bytes(start, media_type):
    (sample,) = samples_of(frame(start + b"...."), "frames")
    assert sample.media_type == media_type


BAD_HEADERS = [
    ({"lable": 1}, "unknown key 'lable'"),
    ({"id": ""}, "id must be"),
    ({"id": [1]}, "id must be"),
    ({"id": "\ud800"}, "id must be"),
    ({"label": -1}, "label must be"),
    ({"label": True}, "label must be"),
    ({"label": 2**31}, "label must be"),
    ({"label": 1.5}, "label must be"),
    ({"time_s": float("nan")}, "time_s must be"),
    ({"time_s": "noon"}, "time_s must be"),
    ({"time_s": 10**400}, "time_s must be"),
    ({"meta": {"a": 1}}, "meta must map text to text"),
    ({"meta": "a"}, "meta must map text to text"),
    ({"meta": {"\udfff": "a"}}, "meta must map text to text"),
    ({"meta": {"a": "b" * 9000}}, "meta has 9001 bytes, more than 8192"),
    ({"media_type": 5}, "media_type must be"),
    ({"media_type": "a" * 101}, "media_type must be"),
    ({"media_type": "\ud800"}, "media_type must be"),
]


@FORMS
@pytest.mark.parametrize(("header", "word"), BAD_HEADERS, ids=lambda value: str(value)[:30])
def test_bad_header_gives_a_rejected_sample_and_the_next_one_is_read(form, write, header, word):
    bad, good = samples_of(write(PNG, **header) + write(PNG, id="next"), form)
    assert word in bad.rejected
    assert good.id == "next"
    assert bad.media_type == "application/octet-stream"
    assert bad.id.encode()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object, but a list"),
        (b'{"id": "a"}', "data must be text in base64, got NoneType"),
        (b'{"data": 3}', "data must be text in base64, got int"),
        (b'{"data": "!"}', "data is not valid base64"),
        (b'{"data": ""}', "the payload is empty"),
        (b'{"data": "aGVsbG8="}', "the first bytes b'hello' match no known one"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_line_gives_a_rejected_sample_and_the_next_one_is_read(text, word):
    bad, good = samples_of(text + b"\n" + line(PNG, id="next"))
    assert word in bad.rejected
    assert bad.data == text
    assert bad.id.startswith("line 1/")
    assert good.id == "next"


def test_blank_lines_are_skipped_and_the_last_line_needs_no_end():
    assert [sample.id for sample in samples_of(b"\n \r\n" + line(PNG, id="a") + line(PNG, id="b")[:-1])] == [
        "a",
        "b",
    ]


def test_line_that_is_incomplete_at_the_end_of_the_stream_is_rejected():
    good, cut = samples_of(line(PNG, id="a") + line(PNG, id="b")[:20])
    assert good.id == "a"
    assert cut.rejected.startswith("the stream ended inside a line of 20 bytes: not valid JSON")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (frame(PNG)[:-3], "the stream ended inside a frame, after 9 of 12 bytes"),
        (b"\x00\x00", "the stream ended inside a frame, after 0 of at least 4 bytes"),
        (b"\xff\xff\xff\xff" + bytes(70_000), "the frame has 4294967295 bytes, more than"),
        (b"\xff\xff\xff\xff" + bytes(10), "the stream ended inside a frame, after 10 of 4294967295 bytes"),
    ],
    ids=["payload", "length", "too large, after its head", "too large, in its head"],
)
def test_frame_that_is_incomplete_at_the_end_of_the_stream_is_rejected(content, word):
    good, *cut = samples_of(frame(PNG, id="a") + content, "frames", max_bytes=100)
    assert good.id == "a"
    assert word in cut[0].rejected
    assert all(sample.rejected for sample in cut)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (struct.pack(">I", 0), "a header of 0 bytes does not fit its frame of 0 bytes"),
        (struct.pack(">II", 6, 3) + b"{}", "a header of 3 bytes does not fit its frame of 6 bytes"),
        (struct.pack(">II", 6, 2) + b"{a", "not valid JSON"),
        (struct.pack(">II", 6, 2) + b"[]", "not a JSON object, but a list"),
        (struct.pack(">II", 4, 0), "the payload is empty"),
    ],
    ids=["empty", "long header", "not JSON", "not an object", "no payload"],
)
def test_bad_frame_gives_a_rejected_sample_and_the_next_one_is_read(content, word):
    bad, good = samples_of(content + frame(PNG, id="next"), "frames")
    assert word in bad.rejected
    assert bad.id.startswith("frame 1/")
    assert good.id == "next"


@FORMS
def test_too_large_sample_is_rejected_with_its_head_and_the_next_one_is_read(form, write):
    content = write(bytes(300_000)) + write(PNG, id="next")
    bad, good = samples_of(content, form, max_bytes=1000)
    assert "bytes, more than" in bad.rejected
    assert len(bad.data) == HEAD_BYTES
    assert good.id == "next"


@FORMS
@given(cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_samples_do_not_depend_on_where_the_pipe_cuts(form, write, cuts):
    content = b"".join(
        [write(PNG, id="a"), write(b"?"), write(bytes(4000)), write(PNG, label=2), write(PNG)[:-4]]
    )
    make = LineParser if form == "lines" else FrameParser
    whole = parsed(make(1000, ()), content)
    assert parsed(make(1000, ()), content, cuts) == whole


@FORMS
@given(content=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_give_samples_and_never_an_error(form, write, content, cuts):
    make = LineParser if form == "lines" else FrameParser
    for sample in parsed(make(50, ()), write(PNG) + content, cuts):
        assert sample.id


def test_memory_for_a_line_without_end_is_bounded():
    parser = LineParser(1000, ())
    for _ in range(1000):
        assert not list(parser.feed(bytes(10_000)))
    assert len(parser._rest) == HEAD_BYTES
    (bad,) = parser.finish()
    assert "the line has 10000000 bytes" in bad.rejected


def test_open_pipe_yields_what_has_arrived_and_empty_batches_while_idle(monkeypatch):
    waits, wait = [], select.select
    monkeypatch.setattr(
        select, "select", lambda *arguments: (waits.append(arguments[-1]), wait(*arguments))[1]
    )
    reader, writer = os.pipe()
    batches = StdinSource(descriptor=reader).batches(10)
    os.write(writer, line(PNG, id="a") + line(PNG)[:5])
    assert [sample.id for sample in next(batches)] == ["a"]
    start = time.monotonic()
    assert next(batches) == []
    assert time.monotonic() - start > 0.8
    assert max(waits) <= 1
    os.close(writer)
    assert len(next(batches)) == 1
    assert next(batches, "end") == "end"
    os.close(reader)


def test_url_opens_the_real_standard_input():
    code = (
        "from drip.sources import open_source\n"
        "source = open_source('stdin:?format=frames&max_bytes=100')\n"
        "print([sample.id for batch in source.batches(2) for sample in batch])\n"
    )
    content = frame(PNG, id="a") + frame(PNG, id="b") + frame(PNG, id="c")
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert done.stdout == b"['a', 'b', 'c']\n"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("stdin:?format=xml", "format must be lines or frames, got 'xml'"),
        ("stdin:?form=lines", "stdin: has no option 'form'"),
        ("stdin:?format=", "has no value"),
        ("stdin:?format=lines&format=frames", "is given twice"),
        ("stdin:?max_bytes=0", "max_bytes must be"),
    ],
)
def test_malformed_url_is_an_error(url, word):
    with pytest.raises(SourceError, match=word) as caught:
        open_source(url)
    assert caught.value.code == "source-url"


def test_closed_standard_input_is_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(SourceError, match="cannot read standard input") as caught:
        next(StdinSource(descriptor=reader).batches(1))
    assert caught.value.code == "source-unavailable"


@pytest.mark.slow
def test_command_reads_a_pipe_into_a_store_with_the_reasons_of_bad_samples(digits, tmp_path):
    paths = sorted(digits.production.rglob("*.png"))
    content = b"".join(line(path.read_bytes(), id=path.name) for path in paths)
    content += line(paths[0].read_bytes()[:60], id="cut picture") + line(PNG)[:20]
    program = [sys.executable, "-c", "from drip.cli import main; main()", "run", MODEL]
    options = ["--weights", digits.weights, "--policy", digits.policy, "--store", tmp_path / "kept"]
    done = subprocess.run(
        [*program, *options, "--source", "stdin:", "--json"], input=content, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["run"]["n_seen"] == N_PRODUCTION + 2
    with RetentionStore.open_readonly(tmp_path / "kept") as store:
        assert store.stats().seen == N_PRODUCTION
        reasons = [bad.reason for bad in store.quarantined()]
    assert "truncated or corrupt" in reasons[0]
    assert reasons[1].startswith("the stream ended inside a line of 20 bytes")


@pytest.mark.parametrize("form", ["lines", "uri", "urls", "bare"])
def test_base64_is_read_as_senders_write_it(form: str) -> None:
    data = (
        b"BM" + bytes(range(256)) * 2 + b"\xff\xfb\xff\xbf"
    )  # has both characters that URLs replace, and padding
    plain = base64.b64encode(data).decode()
    text = {
        "lines": base64.encodebytes(data).decode(),
        "uri": f"data:image/bmp;base64,{plain}",
        "urls": base64.urlsafe_b64encode(data).decode(),
        "bare": plain.rstrip("="),
    }[form]
    assert plain.endswith("=")
    assert sample_of_json("", json.dumps({"data": text}).encode()).data == data


def test_a_data_uri_without_base64_is_rejected() -> None:
    found = sample_of_json("", b'{"data": "data:text/plain,hello"}')
    assert found.rejected == "data is a data: URI that is not in base64; send base64"


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("image/jpg", b"\xff\xd8\xff", "image/jpeg"),
        ("Audio/X-WAV; rate=8000", b"RIFF", "audio/wav"),
        ("application/octet-stream", b"\xff\xd8\xff", "image/jpeg"),
        ("application/octet-stream", b"text", "application/octet-stream"),
        (
            "image/png",
            b"\xff\xd8\xff",
            "image/png",
        ),  # a definite name that is wrong is for the decoder to refuse
    ],
)
def test_media_types_by_other_names(name: str, data: bytes, wanted: str) -> None:
    assert sample_of("cam", {"media_type": name}, data).media_type == wanted
