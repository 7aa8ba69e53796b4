"""An HTTP server on this machine whose transfers can be slow, refused or cut."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer:
    """Serves the files of a folder. `fetched` counts transfers by name.

    The first `refused` transfers of a shard get status 503; the first `cut` of them end after half of the bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, Counter[str]()
        self.refused = self.cut = 0
        self.seconds = 0.0
        self.address = ""
        self.lock = threading.Lock()

    def answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        name = handler.path.lstrip("/")
        path = self.folder / name
        if not path.is_file():
            handler.send_error(404)
            return
        data, cut = path.read_bytes(), False
        if with_body:
            with self.lock:
                self.fetched[name] += 1
                if name.endswith(".tar") and self.refused:
                    self.refused -= 1
                    handler.send_error(503)
                    return
                if name.endswith(".tar") and self.cut:
                    self.cut -= 1
                    cut = True
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            time.sleep(self.seconds if name.endswith(".tar") else 0)
            if not cut:
                handler.wfile.write(data[len(data) // 2 :])
            handler.close_connection = True

    @property
    def shards(self) -> dict[str, int]:
        """Transfers of shards."""
        return {name: count for name, count in self.fetched.items() if name.endswith(".tar")}


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    server = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self, with_body=True)

        def do_HEAD(self) -> None:
            server.answer(self, with_body=False)

        def log_message(self, *arguments: Any) -> None:
            del arguments

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.address = f"http://127.0.0.1:{listening.server_address[1]}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield server
        listening.shutdown()
