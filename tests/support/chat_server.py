"""A chat server for tests: answers from a script, and fails on demand."""

import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, body, self.headers.get("Authorization")))
            server.headers.append(self.headers)
            server.peers.add(self.client_address)
            server.running += 1
            server.most = max(server.most, server.running)
            fault = server.faults.pop(0) if server.faults else None
        try:
            if fault is not None:
                fault(self)
            else:
                text = server.script(body)
                self.send(200, answer(text) if isinstance(text, str) else text)
        finally:
            with server.lock:
                server.running -= 1

    def send(self, status, value, headers=(), length=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        with self.server.lock:  # before the client can send its next request
            self.server.running -= 1
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            for name, text in headers:
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)
        finally:
            with self.server.lock:
                self.server.running += 1

    def log_message(self, *_):
        pass


def answer(text, reason="stop", usage=(10, 2)):
    made = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
    return made | ({"usage": dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))} if usage else {})


def status(number, value=b"", headers=()):
    return lambda handler: handler.send(number, value, headers)


def drop(handler):
    """Half an answer, then the connection ends."""
    handler.send(200, b'{"choices', length=500)
    handler.close_connection = True


def twice(handler):
    """The answer, and at once another that nobody asked for."""
    line, handler.wfile = handler.wfile, io.BytesIO()
    handler.send(200, answer("one of two"))
    told, handler.wfile = handler.wfile.getvalue(), line
    line.write(told + told)


def vanish(handler):
    handler.close_connection = True


def hang(handler):
    handler.server.release.wait(20)
    handler.close_connection = True


def trickle(handler):
    """A byte of the headers now and then, for ever: no read from the socket ever times out."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not handler.server.release.wait(0.02):
            handler.wfile.write(b"x")
    handler.close_connection = True


def endless(handler):
    """A body without a length, in trickles."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(answer("cut")).encode())
        while not handler.server.release.wait(0.02):
            handler.wfile.write(b" ")
    handler.close_connection = True


class ChatServer(ThreadingHTTPServer):
    """``script`` makes a text or a whole answer of a request; ``faults`` come first, one a request."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script=lambda body: body["messages"][-1]["content"]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.faults, self.requests, self.peers = script, [], [], set()
        self.headers = []
        self.running = self.most = 0
        self.lock, self.release = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self):
        self.release.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


GOOD = "Thought: on\nAction: turn left"
DOWN = status(502, b"down")


def good_server(monkeypatch):
    """As a fixture: a server whose every answer is good, until a test gives it another script or faults."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = ChatServer(lambda body: answer(GOOD))
    yield made
    made.kill()
