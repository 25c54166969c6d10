"""A hub on loopback with what huggingface_hub asks of one: datasets, their commits and files; and faults on demand."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

SECRET = "hf_secretsecretsecret"
DATASETS = "/api/datasets/"


class Hub(ThreadingHTTPServer):
    """``commits[NAME]`` is a list of (commit, {path: bytes}); ``private`` ones need the token, ``gated`` refuse it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.private, self.gated, self.locked, self.requests = {}, set(), set(), set(), []
        self.cut, self.broken = 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name, files, keep=True):
        """A new commit of a dataset with these files, and those before."""
        before = self.commits.setdefault(name, [])
        files = {**(before[-1][1] if before and keep else {}), **files}
        commit = hashlib.sha1(repr((name, len(before), sorted(files.items()))).encode()).hexdigest()
        before.append((commit, files))
        return commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *_):
        pass

    def send(self, status, value=b"", headers=(), length=None, code=""):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in [*headers, *([("X-Error-Code", code)] if code else [])]:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self):
        self.answer()

    do_GET = do_POST = do_HEAD

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Authorization")))
        if self.server.broken:
            self.server.broken -= 1
            return self.send(500)
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        in_api = path.startswith(DATASETS)
        org, name, *rest = path.removeprefix(DATASETS if in_api else "/datasets/").split("/")
        name = f"{org}/{name}"
        if name not in self.server.commits or (name in self.server.private and not self.is_known()):
            return self.send(404 if self.is_known() else 401, {"error": "no"}, code="RepoNotFound")
        if name in self.server.gated:
            return self.send(403, {"error": "no"}, code="GatedRepo")
        what, commits = rest[0] if rest else "revision", self.server.commits[name]
        if what in ("preupload", "commit"):
            return self.push(what, name, body)
        rev = rest[1] if len(rest) > 1 else "main"
        commit = commits[-1][0] if rev == "main" else rev
        files = dict(commits).get(commit)
        if files is None:
            return self.send(404, {"error": "no"}, code="RevisionNotFound")
        if what == "revision":
            return self.send(200, {"id": name, "sha": commit, "private": name in self.server.private, "gated": False})
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return self.send(200, [entry for path in asked for entry in entries(files, path) if entry["path"] == path])
        if what == "tree":
            return self.send(200, entries(files, "/".join([*rest[2:], "x"])))
        return self.send_file(files.get("/".join(rest[2:])), commit)

    def is_known(self):
        return self.headers.get("Authorization") == f"Bearer {SECRET}"

    def send_file(self, data, commit):
        head = [("X-Repo-Commit", commit)]
        if data is None:
            return self.send(404, headers=head, code="EntryNotFound")
        head.append(("ETag", f'"{hashlib.sha1(data).hexdigest()}"'))
        if self.command == "GET" and self.server.cut:
            self.server.cut -= 1
            self.send(200, data[: len(data) // 2], head, length=len(data))
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.send(200, data, head)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if not self.is_known():
            return self.send(401, {"error": "no"})
        if asked["organization"] in self.server.locked:
            return self.send(403, {"error": "no"})
        if name in self.server.commits:
            return self.send(409, {"url": f"{self.server.url}/datasets/{name}"})
        self.server.put(name, {".gitattributes": b""})
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        return self.send(200, {"url": f"{self.server.url}/datasets/{name}"})

    def push(self, what, name, body):
        if not self.is_known():
            return self.send(403, {"error": "no"})
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            return self.send(200, {"files": answer})
        rows = [json.loads(line) for line in body.splitlines()]
        files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
        commit = self.server.put(name, files)
        return self.send(200, {"commitOid": commit, "commitUrl": f"{self.server.url}/datasets/{name}/commit/{commit}"})


def entries(files, path):
    """What the folder that ``path`` is in holds."""
    folder = path.rpartition("/")[0]
    inside = {p.removeprefix(f"{folder}/") if folder else p: data for p, data in files.items() if p.startswith(folder)}
    found = {}
    for rest, data in inside.items():
        name, below, _ = rest.partition("/")
        full = f"{folder}/{name}" if folder else name
        oid = hashlib.sha1(data).hexdigest()
        found[full] = {"type": "directory", "oid": oid, "path": full}
        if not below:
            found[full] |= {"type": "file", "size": len(data)}
    return list(found.values())


@contextlib.contextmanager
def hub_server():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
