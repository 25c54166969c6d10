"""A server for tests that behaves as AgentGym's public servers do, each with its own fields, and fails on demand."""

import contextlib
import json
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from atlas_ray.envs import agentgym_http
from atlas_ray.envs.agentgym import TASKS, variable

TOOLS = ("weather", "movie", "todo", "academia", "sheet")
BY_NUMBER = ("webshop", "bird", *TOOLS)
ITEM = {"webshop": "session_id", "alfworld": "game", "maze": "game", "wordle": "seed", "bird": "item_id"}
KINDS_THAT_CLOSE = ("textcraft", "babyai", "sciworld")
ITEMS = 26
GOAL = "put the red cup on the shelf"
FIRST = {
    "webshop": f"WebShop [SEP] Instruction: [SEP] {GOAL} [SEP] Search",
    "alfworld": f"You are in a room.\nYour task is to: {GOAL}",
    "textcraft": f"Crafting commands:\ncraft 1 b using 1 a\n\nGoal: {GOAL}",
    "babyai": f'Your goal: {GOAL}\nA room.\nAvailable actions: ["turn left", "right"]',
    **{t: f"Go.\nYou should perform actions to accomplish the goal: {GOAL}\nGive me one action." for t in TOOLS},
}


class Refused(Exception):
    """Answered with this status, as an unhandled exception in a server is."""


class World:
    """Sessions of one kind of server. ``right`` three times wins; the third item never ends."""

    def __init__(self, kind):
        self.kind, self.sessions, self.last = kind, {}, 100
        self.key = "env_idx" if kind in BY_NUMBER else "id"

    def complain(self, text):
        if self.kind in BY_NUMBER:
            raise Refused(500)
        return {"error": text}

    def create(self, body):
        if self.kind in TOOLS and set(body) != {"id"}:
            raise Refused(422)
        self.last += 1
        self.sessions[self.last] = {"done": True}
        return self.last if self.kind in BY_NUMBER else {"id": self.last}

    def session(self, fields):
        return self.sessions.get(int(fields[self.key]))

    def reset(self, body):
        item = "id" if self.kind in TOOLS else ITEM.get(self.kind, "data_idx")
        if set(body) != {self.key, item} | ({"world_type"} if self.kind == "alfworld" else set()):
            raise Refused(422)
        session = self.session(body)
        if session is None:
            return self.complain(f"The id {body[self.key]} is not valid.")
        if body[item] >= ITEMS:
            return self.complain("The game 26 is not valid." if self.kind == "maze" else "list index out of range")
        session.update(item=body[item], right=0, done=False)
        text = FIRST.get(self.kind, "You stand here.") + f"\n#{body[item]}"
        if self.kind == "babyai":
            text = f"#{body[item]} " + FIRST["babyai"]
        if self.kind in ("webshop", "bird"):
            return [text, None]
        if self.kind in TOOLS:
            return text
        answer = {"observation": text, "done": False, "reward": 0, "score": 0}
        if self.kind == "sciworld":
            answer |= {"task_description": GOAL, "score": 3}
        if self.kind == "alfworld":
            answer = {"id": body["id"], "observation": text, "available_actions": ["right", "wait"]}
        return answer

    def step(self, body):
        if set(body) != {self.key, "action"}:
            raise Refused(422)
        session = self.session(body)
        if session is None:
            return self.complain(f"The id {body[self.key]} is not valid.")
        if session["done"]:
            return self.complain(f"The task with environment {body[self.key]} has finished.")
        wanted = "Action: right with Action Input: {}" if self.kind in TOOLS else "right"
        session["right"] += body["action"] == wanted
        won = session["right"] == 3
        session["done"] = won and session["item"] != 3
        text = f"{session['right']} right"
        if self.kind == "babyai":
            text += '\nAvailable actions: ["right"]'
        answer = {"observation": text, "reward": float(won), "done": session["done"]}
        if self.kind in ("webshop", "bird"):
            answer = {"state": text, "reward": float(won), "done": session["done"], "info": None}
        if self.kind == "sciworld":
            answer |= {"reward": 33, "score": 100 if won else session["right"] * 33 or -100}
        if self.kind == "babyai":
            answer |= {"reward": 0.9 * won, "score": 0.9 * won}
        if self.kind == "alfworld":
            answer["available_actions"] = ["left"]
        return answer

    def close(self, body):
        if self.kind not in KINDS_THAT_CLOSE:
            raise Refused(404)
        return self.sessions.pop(int(body[self.key]), None) is not None

    def available_actions(self, query):
        if self.session(query) is None:
            raise Refused(500)
        return {"has_search_bar": True, "clickables": ["search", "red", "Buy Now"]}

    def filtered_vocab(self, query):
        return ["shire", "frown"] if self.session(query) else {"error": "The id is not valid."}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.sockets.append(self.connection)

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(urlsplit(self.path).path, body)

    def do_GET(self):
        parts = urlsplit(self.path)
        self.answer(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})

    def answer(self, path, fields):
        server = self.server
        name = path.removeprefix(server.prefix).strip("/")
        server.requests.append((name, fields))
        server.authorizations.append(self.headers.get("Authorization"))
        fault = server.faults[name].pop(0) if server.faults[name] else None
        if callable(fault):
            fault = fault(self)
            if fault is None:
                return
        try:
            status, value = 200, getattr(server.world, name)(fields)
        except (AttributeError, Refused) as error:
            status, value = error.args[0] if isinstance(error, Refused) else 404, {"detail": "no"}
        data = json.dumps(value).encode()
        self.send(*(fault if isinstance(fault, tuple) else (status, data)))

    def send(self, status, data, length=None, kind="application/json", location=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def drop(handler):
    """Half an answer, then the connection ends."""
    handler.send(200, b'{"observ', length=500)
    handler.close_connection = True


def hang(handler):
    handler.server.release.wait(20)
    handler.close_connection = True


def vanish(handler):
    handler.close_connection = True


def broken(status, data=b"<html>Bad Gateway</html>"):
    return lambda handler: handler.send(status, data, kind="text/html")


def raw(text, status=200):
    return (status, text.encode())


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, kind, port=0, prefix=""):
        super().__init__(("127.0.0.1", port), Handler)
        self.world, self.prefix, self.faults = World(kind), prefix, defaultdict(list)
        self.requests, self.authorizations, self.sockets = [], [], []
        self.release = threading.Event()
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def count(self, name):
        return Counter(n for n, _ in self.requests)[name]

    def kill(self):
        self.release.set()
        self.shutdown()
        self.server_close()
        for socket in self.sockets:
            with contextlib.suppress(OSError):
                socket.shutdown(2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(agentgym_http, "FIRST_PAUSE", 0.001)
    for task in TASKS:
        monkeypatch.delenv(variable(task), raising=False)


@pytest.fixture(name="serve")
def serving():
    servers = []

    def start(kind, **kwargs):
        servers.append(Fake(kind, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
