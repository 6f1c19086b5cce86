"""A web page that attacks a stub on the machine of who opened it, in a real browser."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = "evil.test"


def find_browser() -> str:
    """The path of a browser, or an empty text."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), "")


class Answering(BaseHTTPRequestHandler):
    """Answers without a word in the log."""

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server in this process. Yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def attacker(stub_port: int, page: str, reports: list[dict]) -> type[Answering]:
    """A proxy for `EVIL`: it serves the page, and leads to the stub with all else, as a rebound name does."""

    class Proxy(Answering):
        def answer(self) -> None:
            path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/page":
                return self.send(200, page.encode(), Content_Type="text/html")
            if path == "/report":
                reports.append(json.loads(body))
                return self.send(200, b"")
            stub = HTTPConnection("127.0.0.1", stub_port, timeout=30)
            stub.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                stub.putheader(name, value)
            stub.endheaders(body)
            reply = stub.getresponse()
            return self.send(reply.status, reply.read())

        do_GET = do_POST = do_DELETE = do_OPTIONS = answer

    return Proxy


def attack(stub_port: int, run: str, key: str, profile: Path) -> dict[str, list]:
    """What the page got from each of its attacks: a status, 0 if the browser gave it none, and a text."""
    page = Path(__file__).with_name("attack_page.html").read_text()
    for name, value in {"EVIL": EVIL, "PORT": str(stub_port), "KEY": key, "RUN": run}.items():
        page = page.replace(f"@{name}@", value)
    reports: list[dict] = []
    with serving(attacker(stub_port, page, reports)) as proxy:
        where = [f"--user-data-dir={profile}", f"--proxy-server={proxy}", f"http://{EVIL}:{stub_port}/page"]
        browser = subprocess.Popen(
            [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", *where],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not reports and browser.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        browser.kill()
        said = browser.communicate()[1]
    assert reports, said[-2000:]
    return reports[0]
