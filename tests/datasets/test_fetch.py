"""Downloads over a real connection: complete, interrupted, wrong, missing, by two processes at once."""

import hashlib
import multiprocessing
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drip.errors import DripError, InputError
from drip.files.fetch import RemoteFile, Session, fetch, open_url, place_below

CONTENT = np.random.default_rng(0).bytes(1_500_000)


def source(server, content=CONTENT, name="set.bin", **changes):
    (server.folder / name).write_bytes(content)
    fields = {
        "url": f"{server.url}{name}",
        "path": f"sets/{name}",
        "n_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return RemoteFile(**{**fields, **changes})


def names(cache):
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())


def test_a_file_arrives_complete_and_leaves_only_its_lock(server, cache):
    place = fetch(source(server), cache)
    assert place == cache / "sets" / "set.bin"
    assert place.read_bytes() == CONTENT
    assert names(cache) == ["sets/.set.bin.lock", "sets/set.bin"]


def test_a_file_in_the_cache_needs_no_network(server, cache):
    wanted = source(server)
    fetch(wanted, cache)
    (server.folder / "set.bin").unlink()
    n_requests = len(server.requests)
    assert fetch(wanted, cache).read_bytes() == CONTENT
    assert len(server.requests) == n_requests


def test_progress_grows_to_the_whole(server, cache):
    calls = []
    fetch(source(server), cache, lambda *call: calls.append(call))
    assert calls[0] == (0, len(CONTENT))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert calls == sorted(calls)


def test_an_interrupted_download_continues_where_it_ended(server, cache):
    server.cuts = [700_000, 100]
    assert fetch(source(server), cache).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=700000-", "bytes=700100-"]


def test_a_server_without_ranges_sends_the_whole_file_again(server, cache):
    server.has_ranges, server.cuts = False, [700_000]
    assert fetch(source(server), cache).read_bytes() == CONTENT


def test_too_many_interruptions_keep_the_part_and_the_next_call_continues(server, cache):
    server.cuts = [100_000] * 4
    wanted = source(server)
    with pytest.raises(DripError, match="after 400000 of 1500000 bytes; call again to continue") as caught:
        fetch(wanted, cache)
    assert caught.value.code == "download-failed"
    assert names(cache) == ["sets/.set.bin.lock", "sets/set.bin.part"]
    assert fetch(wanted, cache).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=400000-"


def test_an_interrupted_call_leaves_a_part_that_is_continued(server, cache):
    def stop(done, _):
        if done > 600_000:
            raise KeyboardInterrupt

    wanted = source(server)
    with pytest.raises(KeyboardInterrupt):
        fetch(wanted, cache, stop)
    assert not (cache / "sets" / "set.bin").exists()
    assert fetch(wanted, cache).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


def test_a_complete_part_is_checked_without_the_network(server, cache):
    wanted = source(server)
    (cache / "sets").mkdir(parents=True)
    (cache / "sets" / "set.bin.part").write_bytes(CONTENT)
    assert fetch(wanted, cache).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("part", [b"\0" * 500, CONTENT + b"more", b"\0" * len(CONTENT)])
def test_a_wrong_part_is_removed_and_the_next_call_succeeds(server, cache, part):
    wanted = source(server)
    (cache / "sets").mkdir(parents=True)
    (cache / "sets" / "set.bin.part").write_bytes(part)
    with pytest.raises(DripError) as caught:
        fetch(wanted, cache)
    assert caught.value.code == "download-damaged"
    assert fetch(wanted, cache).read_bytes() == CONTENT


def test_another_content_is_an_error_and_removed(server, cache):
    wanted = source(server, sha256="0" * 64)
    with pytest.raises(DripError) as caught:
        fetch(wanted, cache)
    assert caught.value.code == "download-damaged"
    assert wanted.url in str(caught.value)
    assert names(cache) == ["sets/.set.bin.lock"]


def test_a_file_that_is_longer_than_expected_is_an_error(server, cache):
    wanted = source(server, n_bytes=1000)
    with pytest.raises(DripError) as caught:
        fetch(wanted, cache)
    assert caught.value.code == "download-damaged"
    assert names(cache) == ["sets/.set.bin.lock"]


def test_a_file_that_is_shorter_than_expected_is_an_error(server, cache):
    with pytest.raises(DripError) as caught:
        fetch(source(server, n_bytes=len(CONTENT) + 1), cache)
    assert caught.value.code == "download-failed"
    assert not (cache / "sets" / "set.bin").exists()


def test_a_missing_file_is_an_error_with_the_status(server, cache):
    with pytest.raises(DripError, match=r"cannot download .*nothing\.bin: HTTP 404") as caught:
        fetch(source(server, url=f"{server.url}nothing.bin"), cache)
    assert caught.value.code == "download-failed"


def test_without_a_network_the_error_names_a_way_round(cache):
    with pytest.raises(DripError, match="check the network, or put the file into a folder"):
        fetch(RemoteFile("http://127.0.0.1:9/set.bin", "set.bin", 1, "0" * 64), cache)


def test_a_redirection_is_followed_but_not_to_another_scheme(server, cache):
    wanted = source(server)
    server.redirects = {"/moved": wanted.url, "/out": "file:///etc/hostname"}
    moved = source(server, url=f"{server.url}moved", path="sets/moved.bin")
    assert fetch(moved, cache).read_bytes() == CONTENT
    with pytest.raises(DripError) as caught:
        open_url(f"{server.url}out")
    assert caught.value.code == "download-failed"


@pytest.mark.parametrize("url", ["ftp://host/file", "data:,x", "set.bin", "javascript:1"])
def test_other_schemes_are_an_error(url):
    with pytest.raises(InputError, match="http, https, file"):
        open_url(url)


def test_a_file_url_works(server, cache):
    wanted = source(server)
    local = RemoteFile((server.folder / "set.bin").as_uri(), "set.bin", wanted.n_bytes, wanted.sha256)
    assert fetch(local, cache).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "a//x", "a/./x", "", "..", "a\\x", "c:/x"])
def test_a_path_outside_the_cache_is_an_error(path, server, cache):
    with pytest.raises(InputError, match="below the cache"):
        fetch(source(server, path=path), cache)
    assert server.requests == []


@given(st.text(st.sampled_from("ab./\\:\0"), max_size=12))
def test_an_accepted_path_stays_below_the_cache(path):
    from pathlib import Path

    try:
        place = place_below(Path("/cache"), path)
    except InputError:
        return
    assert ".." not in place.parts
    assert place.is_relative_to("/cache")
    assert place != Path("/cache")


def test_too_little_disk_space_is_an_error_before_anything_is_requested(server, cache):
    with pytest.raises(DripError) as caught:
        fetch(source(server, n_bytes=10**18), cache)
    assert caught.value.code == "path-not-writable"
    assert server.requests == []


def test_a_cache_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DripError, match=r"cannot write .*choose another folder") as caught:
        fetch(source(server), tmp_path / "cache")
    assert caught.value.code == "path-not-writable"


def test_a_disk_that_fills_up_keeps_the_part(server, cache):
    wanted = source(server)
    code = f"""
        import resource, signal
        from pathlib import Path
        from drip.files.fetch import RemoteFile, fetch
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        fetch({wanted!r}, Path({str(cache)!r}))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert "free space and call again to continue" in run.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 600_000
    assert fetch(wanted, cache).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


def fetch_in_child(wanted, cache, start):
    start.wait()
    fetch(wanted, cache)


@pytest.mark.slow
def test_processes_that_fetch_the_same_file_download_it_once(server, cache):
    wanted = source(server)
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    children = [context.Process(target=fetch_in_child, args=(wanted, cache, start)) for _ in range(3)]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (cache / "sets" / "set.bin").read_bytes() == CONTENT
    assert len(server.requests) == 1


# -- many small files ----------------------------------------------------------------------------------


def test_a_session_gets_many_files_over_one_connection(server):
    for number in range(20):
        (server.folder / f"{number} a.bin").write_bytes(CONTENT[: number * 100])
    with Session(server.url) as session:
        for number in range(20):
            assert session.get(f"{number} a.bin") == CONTENT[: number * 100]
    assert server.connections == 1


def test_a_session_requests_again_after_an_interruption_and_follows_redirections(server):
    source(server, CONTENT[:5000])
    server.cuts = [100, 0, 4999]
    server.redirects = {"/moved": f"{server.url}set.bin"}
    with Session(server.url) as session:
        assert session.get("set.bin") == CONTENT[:5000]
        assert session.get("moved") == CONTENT[:5000]


def test_a_session_reports_files_that_are_missing_interrupted_or_too_large(server):
    source(server, bytes(10_000_001))
    with Session(server.url) as session:
        with pytest.raises(DripError, match="HTTP 404"):
            session.get("nothing")
        with pytest.raises(DripError) as caught:
            session.get("set.bin")
        assert caught.value.code == "download-damaged"
        server.cuts = [10] * 4
        with pytest.raises(DripError, match="check the network and call again"):
            session.get("set.bin")
    with Session("http://127.0.0.1:9/") as session, pytest.raises(DripError, match="check the network"):
        session.get("set.bin")


def test_a_session_reads_files_and_uses_a_proxy(server, monkeypatch):
    source(server, CONTENT[:5000])
    with Session(f"{server.folder.as_uri()}/") as session:
        assert session.get("set.bin") == CONTENT[:5000]
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    with Session("http://elsewhere.invalid/") as session, pytest.raises(DripError, match="HTTP 404"):
        session.get("set.bin")
    assert server.requests[-1][0] == "http://elsewhere.invalid/set.bin"
