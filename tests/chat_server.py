"""A loopback server with OpenAI's chat completions that answers as told, and fails, stalls and lies as told."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What the server does with a request. `kind`: "answer", "status", "stall", "drop", "cut" or "drip"."""

    text: str | None = "fine"
    finish_reason: str = "stop"
    usage: dict | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 5})
    kind: str = "answer"
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes | None = None
    """In place of an answer."""


def status(code, body=b'{"error": {"message": "no"}}', **headers):
    return Reply(status=code, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class ChatServer:
    """`with ChatServer(behave) as server:` serves at `server.url`.

    Args:
        behave: From a request's body and how often that body came before, 0 or more, to a `Reply`.
    """

    def __init__(self, behave=lambda body, count: Reply()):
        self.behave = behave
        self.bodies, self.keys = [], []
        self.answered = []
        """Bodies that got a whole answer."""
        self.release = threading.Event()
        self.most_at_once = self._at_once = 0
        self._counts = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"chat": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, body, key):
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            name = json.dumps(body, sort_keys=True)
            self._counts[name] = self._counts.get(name, -1) + 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            count = self._counts[name]
        return self.behave(body, count)

    def done(self, body):
        with self._lock:
            self._at_once -= 1
            if body is not None:
                self.answered.append(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    chat: ChatServer

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.chat.take(body, self.headers.get("Authorization"))
        is_whole = False
        try:
            is_whole = self._reply(body, reply)
        finally:
            self.chat.done(body if is_whole else None)

    def _reply(self, body, reply):
        assert self.path == "/v1/chat/completions"
        if reply.kind == "drop":
            self.close_connection = True
            return False
        if reply.kind == "stall":
            self.chat.release.wait()
            self.close_connection = True
            return False
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text},
            "finish_reason": reply.finish_reason,
        }
        row = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]}
        content = reply.body if reply.body is not None else json.dumps({**row, "usage": reply.usage}).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if reply.kind == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return False
        if reply.kind == "drip":
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                self.wfile.flush()
                if self.chat.release.wait(0.02):
                    return False
            return True
        self.wfile.write(content)
        return reply.status == 200 and reply.body is None
