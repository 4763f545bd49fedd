"""An output that is slower than the line: a webhook that takes its time."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing

SLOW_S = 0.5


class _Slow(BaseHTTPRequestHandler):
    """Answers each post half a second late."""

    def do_POST(self) -> None:
        """Take the verdict."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(SLOW_S)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_slow_output_delays_neither_the_gate_nor_the_others(
    stub_line: StubLine, hurt: HurtServer
) -> None:
    """The file and the reject signal keep up with the line; every part is in both once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    webhook = {"url": f"http://127.0.0.1:{server.server_port}/", "queue": 4}
    sinks = {"jsonl": {"fsync": "never"}, "reject": {}, "webhook": webhook}
    try:
        with standing(stub_line(sinks=sinks), hurt) as here:
            here.wait_acted(100)
            lag = here.captured() - here.acted()
            here.finish()
            require_sound(here)
    finally:
        server.shutdown()
        server.server_close()
    assert lag < 50  # a second of frames; the webhook alone would be ten times as far behind
