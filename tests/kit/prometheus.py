"""A real Prometheus of a test's own, on loopback, that scrapes what the test holds out to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMETHEUS = shutil.which("prometheus")

needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here (make pages)")


class Prometheus:
    """What it is asked, and the text that it scrapes every second."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.text = ""

    def ask(self, path: str, **words: str) -> Any:
        """An answer of its API; a refusal is an answer, too."""
        try:
            query = urllib.parse.urlencode(words)
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=10
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            return json.load(refusal)

    def values(self, expression: str) -> list[Any]:
        """The samples that an expression has now; fails with Prometheus' words for a wrong one."""
        answer = self.ask("query", query=expression)
        assert answer["status"] == "success", f"{expression}: {answer}"
        return list(answer["data"]["result"])

    def scraped(self, text: str) -> None:
        """Hold out this from now on, and wait until it was read twice."""
        self.text = text
        now = time.time()
        while not self.values(f"up == 1 and timestamp(up) > {now + 2}"):
            assert time.time() < now + 30, "Prometheus reads nothing"
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(directory: Path, rules: Path) -> Iterator[Prometheus]:
    """Prometheus with these rules, until the test ends."""
    found = Prometheus(_free_port())

    class Held(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(found.text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing: pytest's output is for failures."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Held)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    conf = directory / "prometheus.yml"
    conf.write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules}]\n"
        "scrape_configs:\n- job_name: node\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{server.server_port}']\n"
    )
    words = [f"--config.file={conf}", f"--storage.tsdb.path={directory}/tsdb"]
    words += [f"--web.listen-address=127.0.0.1:{found.port}", "--log.level=error"]
    log = directory / "prometheus.log"
    with log.open("wb") as out, subprocess.Popen(
        [str(PROMETHEUS), *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL
    ) as process:  # fmt: skip
        try:
            _until_ready(found, process, log)
            yield found
        finally:
            process.terminate()
            server.shutdown()
            server.server_close()


def _until_ready(found: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            if found.ask("status/buildinfo")["status"] == "success":
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    pytest.fail(f"no answer within 60 s: {log.read_text()}")
