"""A real HTTP server on this machine: Range requests, interrupted connections, wrong content."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder as the real hosts do; attributes of the server inject faults."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_GET(self):
        place = self.server.folder / unquote(self.path).lstrip("/")
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not place.is_file():
            self.send_error(404)
            return
        content = place.read_bytes()
        first = 0
        if wanted and self.server.has_ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def server(tmp_path):
    """Serves ``server.folder``; ``cuts`` has the number of bytes after which the next responses end."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler)) as running:
        running.daemon_threads = True
        running.folder, running.requests, running.cuts = folder, [], []
        running.redirects, running.has_ranges, running.connections = {}, True, 0
        running.url = f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; DRIP_DATA is not set, and DRIP_CACHE names another folder."""
    monkeypatch.delenv("DRIP_DATA", raising=False)
    monkeypatch.setenv("DRIP_CACHE", str(tmp_path / "another-cache"))
    return tmp_path / "cache"
