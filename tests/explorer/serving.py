"""A real server on loopback, in a thread of this process, and a client that sends what no browser would."""

import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import NamedTuple

from saccade.explorer.server import Server, listen

TOKEN = "a-token-for-tests"  # noqa: S105
SECONDS = 30  # for anything that is not to take long; what hangs, fails. Longer than a silent stream is silent
LONGEST = 300  # for a job, on a machine that is busy


class StandIn:
    """Answers as an explorer does, as the test wants it: functions of (parameters, progress, cancelled)."""

    def __init__(self, **functions):
        self.functions = functions

    def answer(self, question, parameters, cancelled):
        return self.functions[question](parameters, None, cancelled)

    def run(self, job, parameters, progress, cancelled):
        return self.functions[job](parameters, progress, cancelled)


class Held:
    """Work that goes on until it is let go or given up, and says which."""

    def __init__(self):
        self.begun, self.let_go, self.given_up = threading.Semaphore(0), threading.Event(), threading.Event()

    def __call__(self, parameters, progress, cancelled):
        self.begun.release()
        while not self.let_go.wait(0.01):
            if cancelled():
                self.given_up.set()
                break
        return {"held": True}

    def wait_begun(self):
        assert self.begun.acquire(timeout=SECONDS)


class Answer(NamedTuple):
    status: int
    headers: object
    content: bytes


@dataclass
class Served:
    """A running server."""

    server: Server | None  # None: in another process
    port: int
    token: str = TOKEN

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def ask(self, path, method="GET", body=None, **headers):
        """The answer to a request with the token."""
        with self.asking(path, method, body, **headers) as response:
            return Answer(response.status, response.headers, response.read())

    @contextmanager
    def asking(self, path, method="GET", body=None, **headers):
        """The answer, not read yet."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", **headers})
            with connection.getresponse() as response:
                yield response

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.settimeout(SECONDS)
        return connection

    def send(self, data, *, finished=False):
        """The status and the body of the answer to some bytes; (None, b"") if the connection is closed without one."""
        with self.connect() as connection:
            connection.sendall(data)
            if finished:
                connection.shutdown(socket.SHUT_WR)
            return parted(received(connection))

    def get(self, target, host=None, **headers):
        """The answer to a request for just that target, which is sent as it is."""
        host = self.host if host is None else host
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    @contextmanager
    def stream(self, job, **parameters):
        """The events of a job, one by one, while they come."""
        with self.asking(f"/api/run/{job}", "POST", json.dumps(parameters)) as response:
            yield events(response)


def events(response):
    """Name and data of each event; a comment has no name."""
    assert response.status == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    fields, deadline = {}, time.monotonic() + LONGEST
    for line in response:
        assert time.monotonic() < deadline  # what says for ever that it is still there, fails too
        name, colon, value = line.decode().rstrip("\n").partition(": ")
        if colon:
            fields[name] = value
        else:
            yield fields.get("event", ""), fields.get("data", "")
            fields = {}
    assert not fields


def received(connection):
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def parted(answer):
    if not answer:
        return None, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def message(body):
    """What an error says: a whole sentence, and nothing else."""
    said = json.loads(body)
    assert list(said) == ["message"]
    assert len(said["message"]) > 10
    return said["message"]


@contextmanager
def serving(explorer, folder):
    """A server that runs meanwhile. It has to end, with all of its threads, soon after."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = Server(explorer, listening, host="127.0.0.1", token=TOKEN, folder=folder)
    before = computing()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Served(server, port)
    finally:
        server.should_exit = True
        thread.join(2)
        assert not thread.is_alive()
        until(lambda: computing() <= before)


def computing():
    """The threads of all desks."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(("question", "job"))}


def until(true):
    """Wait for something that is to happen soon."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
