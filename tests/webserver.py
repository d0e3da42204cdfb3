"""A plain web server of a folder on this machine that answers ranges."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Ranged(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, stop = 0, size
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                start = int(first) if first else size - int(last)
                stop = min(int(last) + 1, size) if first and last else size
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            file.seek(start)
            while start < stop and (data := file.read(min(2**20, stop - start))):
                self.wfile.write(data)
                start += len(data)

    def end_headers(self) -> None:
        path = self.translate_path(self.path)
        if os.path.isfile(path):
            status = os.stat(path)
            self.send_header("ETag", f'"{status.st_size:x}-{status.st_mtime_ns:x}"')
            if self.command == "GET":  # the other method sends it anyway
                self.send_header("Last-Modified", self.date_time_string(status.st_mtime))
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = (
        128  # of a backlog of five the system drops what many threads ask at once, for a second
    )


@contextlib.contextmanager
def serve(folder: Path, handler: type[_Ranged] = _Ranged) -> Iterator[str]:
    """The URL of a server of `folder`, while the context lasts."""
    of_folder = functools.partial(handler, directory=str(folder))
    with _Server(("127.0.0.1", 0), of_folder) as server:
        # The end is noticed within 0.02 s, not the half second that is the default.
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
