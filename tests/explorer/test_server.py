"""The explorer's server under attack, and under load: who may ask, how much, how long, and what they are told."""

import base64
import contextlib
import json
import socket
import threading
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import SECONDS, TOKEN, Held, StandIn, events, message, parted, received, serving, until

from saccade.adapters import pretrained
from saccade.errors import ArgumentError
from saccade.explorer import connection, guard, server, streams
from saccade.explorer.explorer import JOBS, QUESTIONS, Explorer
from saccade.explorer.guard import Hosts

PAGE = b"<!doctype html><title>page</title>"
SECRET = b"a secret"


def build(around):
    """A built page in a folder, with what is not to be served in it and around it."""
    page = around / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_bytes(PAGE)
    (page / "assets" / "view-4f.js").write_text("export {};")
    (page / ".hidden.js").write_bytes(SECRET)
    (page / "notes.xyz").write_bytes(SECRET)
    (around / "secret.js").write_bytes(SECRET)
    (page / "linked.js").symlink_to(around / "secret.js")
    (page / "around").symlink_to(around)
    return page


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path)


@pytest.fixture
def held():
    return Held()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that answers at once, for all tests that leave nothing behind."""
    explorer = StandIn(document=lambda *_: {"model": "none"}, read=lambda *_: {})
    with serving(explorer, build(tmp_path_factory.mktemp("served"))) as running:
        yield running


@pytest.fixture
def holding(folder, held):
    """A server whose question `tile` and job `read` are held."""
    with serving(StandIn(document=lambda *_: {}, tile=held, read=held), folder) as running:
        yield running
        held.let_go.set()


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_may_load_nothing_from_elsewhere(served):
    for path in ("/", "/assets/view-4f.js", "/nothing", "/api/document"):
        headers = served.ask(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy.pop("img-src") == "'self' blob: data:"
        assert {policy.pop(name) for name in ("script-src", "style-src", "font-src", "connect-src")} == {"'self'"}
        assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_files_with_their_kinds(served):
    first, script = served.ask("/"), served.ask("/assets/view-4f.js")
    assert (first.content, first.headers["content-type"]) == (PAGE, "text/html; charset=utf-8")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]
    assert first.headers["cache-control"] == served.ask("/api/document").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.js",
        "/%2e%2e/secret.js",
        "/%2E%2E%2Fsecret.js",
        "/assets/%2e%2e/%2e%2e/secret.js",
        "/assets/..%5c..%5csecret.js",
        "//PARENT/secret.js",
        "/%2FPARENT/secret.js",
        "/linked.js",
        "/around/secret.js",
        "/.hidden.js",
        "/notes.xyz",
        "/assets",
        "/assets/",
        "/./index.html",
        "/index.html%00.js",
        "/assets//view-4f.js",
        "file:///PARENT/secret.js",
    ],
)
def test_nothing_but_the_page_is_served(served, target):
    parent = served.server.service._folder.parent
    assert (parent / "secret.js").read_bytes() == SECRET
    status, body = served.get(target.replace("PARENT", str(parent).lstrip("/")))
    assert status == 404
    message(body)


def test_a_page_that_is_not_built_says_how_to_build_it(folder):
    (folder / "index.html").unlink()
    with serving(StandIn(), folder) as running:
        answer = running.ask("/")
    assert answer.status == 503
    assert f"the page is not built: there is no {folder / 'index.html'}" in answer.content.decode()
    assert b"make page" in answer.content


# ---------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT", "[::1]:PORT"])
def test_our_hosts(served, host):
    host = host.replace("PORT", str(served.port))
    assert served.get("/api/document", host, Authorization=f"Bearer {TOKEN}", Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/api/document"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example:PORT",
        "localhost.evil.example:PORT",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:PORT:1",
        "127.0.0.1:0PORT",
        "127.0.0.1:PORT@evil.example",
        "evil.example@127.0.0.1:PORT",
        "127.0.0.1:PORT/",
        "127.1:PORT",
        "192.168.0.1:PORT",
        "[::1:PORT",
        "",
    ],
)
def test_no_other_host(served, path, host):
    status, body = served.get(path, host.replace("PORT", str(served.port)), Authorization=f"Bearer {TOKEN}")
    assert status == 403
    message(body)


def test_no_host_at_all(served):
    assert served.send(b"GET / HTTP/1.0\r\n\r\n")[0] == 403
    assert served.send(b"GET / HTTP/1.1\r\n\r\n")[0] == 400


def test_another_port_is_told_how_to_forward(served):
    _, body = served.get("/", "localhost:1")
    assert f"ssh -L {served.port}:localhost:{served.port}" in message(body)


def test_beyond_this_machine_its_names_and_addresses_are_hosts(monkeypatch):
    monkeypatch.setattr(guard.socket, "gethostname", lambda: "Desk")
    hosts = Hosts("0.0.0.0", 80)  # noqa: S104
    for right in ("192.168.0.1", "192.168.0.1:80", "desk", "[fe80::1]:80", "localhost", "[::1]"):
        assert right in hosts
    for wrong in ("evil.example", "192.168.0.1:81", "desk.evil.example", "fe80::1"):
        assert wrong not in hosts
    assert "192.168.0.1" in Hosts("cluster.example", 80)
    assert "cluster.example" in Hosts("cluster.example", 80)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://127.0.0.1:1", "https://127.0.0.1:PORT", "http://localhost:PORT"],
)
def test_no_other_origin(served, origin):
    origin = origin.replace("PORT", str(served.port))
    status, body = served.get("/api/document", Authorization=f"Bearer {TOKEN}", Origin=origin)
    assert (status, message(body)) == (403, "A page from elsewhere asks; this server answers its own page only.")


@pytest.mark.parametrize(
    ("path", "site", "mode", "status"),
    [
        ("/api/document", "same-origin", "cors", 200),
        ("/api/document", "none", "navigate", 200),
        ("/api/document", "same-site", "cors", 403),
        ("/api/document", "cross-site", "navigate", 403),
        ("/", "cross-site", "navigate", 200),  # a link was clicked
        ("/", "cross-site", "no-cors", 403),
        ("/assets/view-4f.js", "same-site", "no-cors", 403),  # a script element of another page
    ],
)
def test_no_other_site(served, path, site, mode, status):
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert served.get(path, **headers)[0] == status


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer \xe4\xff",
    ],
)
@pytest.mark.parametrize("path", ["/api/document", f"/api/document?token={TOKEN}", "/api/nothing", "/api/run/read"])
def test_no_other_token(served, path, authorization):
    status, body = served.get(path, **({} if authorization is None else {"Authorization": authorization}))
    assert status == 401
    assert message(body).startswith("The token is missing or wrong.")


# -------------------------------------------------------------------------------------------------- how much


def test_a_target_too_long(served):
    status, body = served.get("/api/document?text=" + "x" * 8192, Authorization=f"Bearer {TOKEN}")
    assert status == 414
    assert "at most 8,192 bytes" in message(body)


def test_a_head_too_long(served):
    status, body = served.get("/", Cookie="x" * 200_000)
    assert status in {400, None}  # None: the connection was closed while we were still sending
    assert status is None or message(body)
    assert served.ask("/").status == 200


@pytest.mark.parametrize("length", [server.LARGEST_BODY + 1, 10**30])
def test_a_body_that_says_it_is_too_large_is_not_waited_for(served, length):
    head = f"POST /api/run/read HTTP/1.1\r\nHost: {served.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with served.connect() as client:
        client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert client.recv(1 << 16).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


def test_a_body_that_is_too_large_without_saying_so(served):
    def pieces():
        for _ in range(6):
            yield b" " * (1 << 20)

    answer = served.ask("/api/run/read", "POST", pieces())
    assert (answer.status, "at most 4,194,304 bytes" in message(answer.content)) == (413, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("PUT", "/api/document", 405),
        ("DELETE", "/api/run/read", 405),
        ("POST", "/api/document", 405),
        ("GET", "/api/run/read", 405),
        ("OPTIONS", "/api/document", 405),
        ("TRACE", "/", 405),
        ("BREW", "/", 405),
        ("GET", "/api/", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/document/", 404),
        ("POST", "/api/run/nothing", 404),
        ("GET", "/api/run/read/more", 404),
        ("GET", "/api/__class__", 404),
    ],
)
def test_methods_and_names(served, method, path, status):
    answer = served.ask(path, method)
    assert answer.status == status
    message(answer.content)


MALFORMED = {
    "nothing": b"",
    "cut off": b'{"text": "x',
    "a list": b"[]",
    "a string": b'"text"',
    "no number": b"NaN",
    "no UTF-8": b'{"text": "\xff"}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"text": ' + b"1" * 5000 + b"}",
    "trailing": b"{} {}",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_is_no_object(served, content):
    answer = served.ask("/api/run/read", "POST", content)
    assert answer.status == 400
    assert message(answer.content).startswith("The body is no JSON")


@pytest.mark.parametrize("query", ["text=1&text=2", "text=%ff", "a=%ed%a0%80"])
def test_parameters_that_are_none(served, query):
    answer = served.ask(f"/api/document?{query}")
    assert answer.status == 400
    message(answer.content)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / SMTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    ],
)
def test_what_is_no_http(served, data):
    status, body = served.send(data)
    assert status == 400
    message(body)


# -------------------------------------------------------------------------------------------------- how long


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_who_does_not_finish_a_request_is_closed(served, sent, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.3)
    with served.connect() as client:
        client.sendall(sent)
        assert served.ask("/").status == 200
        assert received(client) == b""


def test_a_byte_now_and_then_is_no_excuse(served, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.5)
    deadline = time.monotonic() + SECONDS
    with served.connect() as client, contextlib.suppress(ConnectionError):
        client.settimeout(0.05)
        while True:
            assert time.monotonic() < deadline
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert client.recv(1) == b""
                break


def test_a_body_that_does_not_come(served, monkeypatch):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.3)
    head = f"POST /api/run/read HTTP/1.1\r\nHost: {served.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with served.connect() as client:
        client.sendall(f"{head}Connection: close\r\nContent-Length: 9\r\n\r\n{{".encode())
        status, body = parted(received(client))
    assert (status, message(body)) == (408, "The body did not arrive in 0.3 s.")


def test_there_are_only_so_many_connections(served, monkeypatch):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 5)
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(served.connect()) for _ in range(8)]
        assert [received(client) for client in clients[5:]] == [b""] * 3
    until(lambda: not served.server.server_state.connections)
    assert served.ask("/").status == 200


def test_a_short_answer_is_sent_at_once(served):
    """Not held back until its head is acknowledged."""
    with served.connect():
        until(lambda: served.server.server_state.connections)
        for open_one in served.server.server_state.connections:
            its_socket = open_one.transport.get_extra_info("socket")
            assert its_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_connection_serves_many_requests(served, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 1.0)
    request = f"GET / HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode()
    with served.connect() as client:
        for _ in range(6):
            client.sendall(request)
            answer = b""
            while PAGE not in answer:
                answer += client.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.3)
        assert received(client) == b""


# ---------------------------------------------------------------------------------------------- computations


def test_who_waits_for_numbers_keeps_nobody_waiting(holding, held):
    assert server.QUESTION_THREADS > 1
    waiting = [threading.Thread(target=holding.ask, args=("/api/tile",)) for _ in range(server.QUESTION_THREADS - 1)]
    for thread in waiting:
        thread.start()
        held.wait_begun()
    assert holding.ask("/api/document").status == 200
    held.let_go.set()
    for thread in waiting:
        thread.join(SECONDS)


def test_a_client_that_does_not_read_keeps_nobody_waiting(folder):
    large = StandIn(document=lambda *_: {"text": "x" * (16 << 20)}, tokens=lambda *_: {})
    with serving(large, folder) as running, running.connect() as slow:
        head = f"GET /api/document HTTP/1.1\r\nHost: {running.host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        slow.sendall(head.encode())
        assert slow.recv(10) == b"HTTP/1.1 2"
        assert running.ask("/api/tokens").status == 200


@pytest.mark.parametrize("path", ["/api/tile", "/api/run/read"])
def test_who_goes_away_is_not_computed_for(holding, held, path):
    method, body = ("POST", "Content-Length: 2\r\n\r\n{}") if "run" in path else ("GET", "\r\n")
    with holding.connect() as client:
        client.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: {holding.host}\r\nAuthorization: Bearer {TOKEN}\r\n{body}".encode()
        )
        held.wait_begun()
        assert not held.given_up.wait(0.2)
    assert held.given_up.wait(SECONDS)


def test_jobs_are_bounded_and_wait_their_turn(folder, held, monkeypatch):
    monkeypatch.setattr(server, "JOB_LINE", 2)
    with contextlib.ExitStack() as opened:
        running = opened.enter_context(serving(StandIn(read=held, document=lambda *_: {}), folder))
        jobs = []
        for number in range(4):
            jobs.append(opened.enter_context(running.stream("read")))
            if number < server.JOB_THREADS:
                held.wait_begun()
            else:
                assert next(jobs[-1]) == (
                    "progress",
                    '{"share": 0, "what": "waiting for other computations to end"}',
                )
        with running.asking("/api/run/read", "POST", b"{}") as refused:
            assert refused.status == 429
            assert message(refused.read()).startswith("Too much is being computed already.")
        assert running.ask("/api/document").status == 200
        assert not held.begun.acquire(timeout=0.1)
        held.let_go.set()
        assert [list(job)[-1][0] for job in jobs] == ["result"] * 4
        assert running.ask("/api/run/read", "POST", b"{}").status == 200


def test_who_leaves_the_line_is_never_computed_for(folder, held):
    with serving(StandIn(read=held), folder) as running, contextlib.ExitStack() as opened:
        for _ in range(server.JOB_THREADS):
            opened.enter_context(running.stream("read"))
            held.wait_begun()
        with running.stream("read") as waiting:
            assert next(waiting)[0] == "progress"
        time.sleep(0.2)
        held.let_go.set()
        assert not held.begun.acquire(timeout=0.3)


def test_progress_then_the_result(folder):
    told = threading.Event()

    def read(parameters, progress, _):
        progress(0.25, "a quarter")
        assert told.wait(SECONDS)
        for step in range(200):
            progress(0.5 + step / 400, "more")
            time.sleep(0.002)
        return {"text": parameters["text"]}

    with serving(StandIn(read=read), folder) as running, running.stream("read", text="Zoë") as coming:
        assert next(coming) == ("progress", '{"share": 0.25, "what": "a quarter"}')
        told.set()
        *progress, (name, data) = coming
    assert name == "result"
    assert '{"answer":{"text":"Zoë"},"arrays":{}}'.encode() in base64.b64decode(data)
    assert len(progress) < 40  # only the latest is told
    shares = [json.loads(data)["share"] for _, data in progress]
    assert shares == sorted(shares)


def test_a_silent_job_says_that_it_is_there(holding, held, monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    with holding.stream("read") as coming:
        assert [next(coming) for _ in range(3)] == [("", "")] * 3
        held.let_go.set()
        assert list(coming)[-1][0] == "result"


def test_closing_ends_streams_at_once(folder, held):
    with serving(StandIn(read=held), folder) as running, running.stream("read") as coming:
        held.wait_begun()
        running.server.should_exit = True
        assert list(coming) == [("error", json.dumps({"message": server.CLOSING}))]
    assert held.given_up.is_set()


# -------------------------------------------------------------------------------------------- what went wrong


def wrong(error):
    def work(*_):
        raise error

    return work


def test_an_error_of_ours_is_told(folder):
    work = wrong(ArgumentError("head = 99: there are 12"))
    with serving(StandIn(tile=work, read=work), folder) as running:
        answer = running.ask("/api/tile")
        assert (answer.status, message(answer.content)) == (400, "head = 99: there are 12")
        with running.stream("read") as coming:
            assert list(coming) == [("error", '{"message": "head = 99: there are 12"}')]


def test_another_error_is_not_told_but_shown_on_the_terminal(folder, capfd):
    work = wrong(KeyError("an inner matter"))
    with serving(StandIn(tile=work, read=work), folder) as running:
        answer = running.ask("/api/tile")
        assert (answer.status, message(answer.content)) == (500, server.FAILED)
        with running.stream("read") as coming:
            assert [name for name, data in coming if "inner" not in data] == ["error"]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("KeyError: 'an inner matter'") == 2


def test_nothing_is_printed_for_what_others_do_wrong(served, capfd, caplog):
    served.send(b"hello\r\n\r\n")
    served.get("/", Upgrade="websocket", Connection="upgrade")
    served.get("/", "evil.example")
    served.ask("/api/run/read", "POST", b"{")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# ------------------------------------------------------------------------------------------ whatever is asked


@pytest.fixture(scope="module")
def real(model, tmp_path_factory):
    """A server with a real explorer, of a tiny model."""
    explorer = Explorer(None, pretrained.load(model))
    explorer.run("read", {"text": "He left the rose by the bank."})
    with serving(explorer, build(tmp_path_factory.mktemp("real"))) as running:
        yield running


RECTANGLE = ("text", "site", "head", "queries", "keys")
NAMES = {
    "document": (),
    "tokens": ("text", "sequence"),
    "heads": ("text",),
    "tile": ("text", "site", "head", "level", "row", "column", "reduce"),
    "window": RECTANGLE,
    "margins": RECTANGLE,
    "strongest": ("text", "site", "heads", "side", "range", "count", "words", "ordinary"),
    "inside": ("text", "site", "head", "query", "key"),
}
LARGE = ["4096", str(1 << 40), str(1 << 64), "0,1000000", "5,2", "1e3", "-1", "NaN", ""]
# Mostly what the page would ask in that place, so that it is refused, if it is, where it would hurt.
VALUES = {
    "text": ["0", "0", "0", "1"],
    "sequence": ["0", "0", "1"],
    "head": ["0", "1", "2", "mean"],
    "heads": ["0", "0,1", "1,0,1", "2"],
    "reduce": ["mean", "max", "sum"],
    "side": ["queries", "keys", "both"],
}
VALUES |= {name: ["true", "false", "1"] for name in ("words", "ordinary")}
VALUES |= {name: ["0,9", "2,5", "3,3", "0,10", "8,12", "4"] for name in ("queries", "keys", "range")}
VALUES |= {name: ["0", "1", "2", "8", "9", "64"] for name in ("site", "level", "row", "column", "query", "key")}
VALUES["count"] = ["1", "3", "64", "65", "0"]
JUNK = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | JUNK,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JUNK, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def links(draw):
    """A question with most of its parameters, and some that it has not."""
    question = draw(st.sampled_from(sorted(QUESTIONS)))
    names = [name for name in NAMES[question] if draw(st.integers(0, 30))]
    values = {name: draw(st.sampled_from([*VALUES[name] * 4, *LARGE])) for name in names}
    if not draw(st.integers(0, 15)):
        values[draw(JUNK)] = draw(JUNK)
    return question, values


@given(links())
@settings(max_examples=300, deadline=None, print_blob=True)
def test_any_question_is_answered_or_refused(real, link):
    question, values = link
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in values.items())
    answer = real.ask(f"/api/{question}?{query}")
    if answer.status != 200:
        assert (answer.status, bool(message(answer.content))) == (400, True)


def test_the_questions_above_are_all_and_can_be_answered(real):
    assert sorted(NAMES) == sorted(QUESTIONS)
    for question, names in NAMES.items():
        query = "&".join(f"{name}={VALUES[name][0]}" for name in names)
        assert real.ask(f"/api/{question}?{query}").status == 200, question


SENTENCES = st.lists(
    st.fixed_dictionaries({"text": st.sampled_from(["the bank.", "a river", "", "x" * 999]), "sense": JUNK | st.none()})
)
JOB_PARAMETERS = {
    "read": {"text": st.sampled_from(["a bank", " ", "x " * 500]) | JUNK},
    "roles": {"text": st.sampled_from(["0", "9"])},
    "meaning": {"word": st.sampled_from(["bank", "river", ""]), "sentences": SENTENCES},
    "cost": {"more": JUNK},  # without it, it would measure for ten seconds
}


@st.composite
def orders(draw):
    """A job with its parameters, some of which are anything."""
    job = draw(st.sampled_from(sorted(JOBS)))
    values = {
        name: draw(ANYTHING if not draw(st.integers(0, 5)) else right) for name, right in JOB_PARAMETERS[job].items()
    }
    if not draw(st.integers(0, 15)):
        values[draw(JUNK)] = draw(ANYTHING)
    return job, values


@given(orders())
@settings(max_examples=100, deadline=None, print_blob=True)
def test_any_job_ends_with_a_result_or_a_sentence(real, order):
    job, values = order
    with real.asking(f"/api/run/{job}", "POST", json.dumps(values)) as response:
        if response.status != 200:
            assert (response.status, bool(message(response.read()))) == (400, True)
            return
        name, data = list(events(response))[-1]
    assert name == "result" or message(data) != server.FAILED


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, print_blob=True)
def test_any_bytes_are_answered_or_closed(served, data):
    status, body = served.send(data + b"\r\n\r\n", finished=True)
    assert status is None or (400 <= status < 500 and message(body))
