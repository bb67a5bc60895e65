"""An HTTP server that answers as it is told, and keeps what it was sent."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

VERSION = {"slate_size": 3, "actions": ["click"]}
SLATE = {"source": "model", "reason": None, "items": [{"item_id": "a"}]}


@dataclass(frozen=True)
class Answer:
    """To every request of a path that begins so."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    after_s: float = 0.0


ANSWERS = {
    "/version": Answer(body=VERSION),
    "/v1/recommend": Answer(body=SLATE),
    "/v1/events": Answer(body={"results": [{"status": "stored"}]}),
    "/v1/users": Answer(body={"events": []}),
    "/v1/items": Answer(body={"results": [{"status": "changed"}]}),
}
"""Of a service where all is well."""


@dataclass(frozen=True)
class AnsweringServer:
    url: str
    sent: list[tuple[str, Any]]
    """Path and body of every request."""

    def sent_to(self, path: str) -> list[Any]:
        return [body for at, body in self.sent if at.startswith(path)]


@contextmanager
def answering_server(**others: Answer) -> Iterator[AnsweringServer]:
    """Where all is well but for `others`: by the last word of their path."""
    answers = {path: others.get(path.rpartition("/")[2], answer) for path, answer in ANSWERS.items()}
    sent: list[tuple[str, Any]] = []
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            sent.append((self.path, body))
            found = [answer for path, answer in answers.items() if self.path.startswith(path)]
            answer = found[0] if found else Answer(404)
            if over.wait(answer.after_s):
                self.close_connection = True
                return
            content = b"" if answer.body is None else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield AnsweringServer(f"http://127.0.0.1:{server.server_port}", sent)
        finally:
            over.set()
            server.shutdown()
            thread.join()
