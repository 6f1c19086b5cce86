"""File servers that behave as the servers of checkpoints may: they cut, move, refuse and never end."""

import contextlib
import hashlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


class FileServer(ThreadingHTTPServer):
    """Remembers the Range of each request."""

    def __init__(self, handler: Any):
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[str | None] = []


class Plain(SimpleHTTPRequestHandler):
    server: Any

    def log_message(self, format, *args):
        pass


class CutsFirst(Plain):
    """Cuts the first answer for each file after 10 bytes, and can't go on in the middle of a file."""

    seen: ClassVar[set[str]] = set()

    def copyfile(self, source, outputfile):
        if self.path not in self.seen:
            self.seen.add(self.path)
            outputfile.write(source.read(10))
            return
        super().copyfile(source, outputfile)


class GoesOn(Plain):
    """Cuts the first answer for the weights half way, and goes on from there if the ETag is right."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        self.server.asked.append(self.headers.get("Range"))
        etag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
        if self.headers.get("Range") and self.headers["If-Range"] == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.end_headers()
        cut = not start and len(content) > 1000 and self.server.asked.count(None) < 3
        self.wfile.write(content[start : len(content) // 2 if cut else None])


class Chunked(Plain):
    """Cuts an answer whose length it did not say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ff\r\nhalf")
        self.close_connection = True


class Endless(Chunked):
    """Sends more and more, and never says how much."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")


class Moves(Plain):
    """Sends each request on to where the server says."""

    def do_GET(self):
        if self.path.startswith("/moved/"):
            self.path = self.path.removeprefix("/moved")
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", f"{self.server.moved_to}/moved{self.path}")
        self.end_headers()


class OtherPart(GoesOn):
    """Goes on after a cut with another part than was asked for."""

    def send_header(self, keyword, value):
        super().send_header(
            keyword, value.replace("bytes ", "bytes 1") if keyword == "Content-Range" else value
        )


class Expires(Plain):
    """Refuses addresses that end in `?old`."""

    def do_GET(self):
        if self.path.endswith("?old"):
            return self.send_error(403)
        super().do_GET()


class CutsAlways(Plain):
    def copyfile(self, source, outputfile):
        outputfile.write(source.read(10))
