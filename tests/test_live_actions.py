"""What is done with messages: files, webhooks, programs, MQTT; failures are bounded, counted and said."""

import http.server
import json
import socketserver
import struct
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from dymn.errors import ConfigError, DymnError, MissingExtraError
from dymn.live import delivery, mqtt
from dymn.live.lines import LineFile
from dymn.live.messages import line
from dymn.live.mqtt import Mqtt
from dymn.live.program import ProgramRunner
from dymn.live.webhook import Webhook

START = {
    "event": "start", "label": "Dog", "score": 0.81, "start": 12.5, "time": "2026-05-01T07:30:12.480+02:00",
    "source": "garden",
}  # fmt: skip
END = START | {"event": "end", "end": 15.0, "duration": 2.5, "end_time": "2026-05-01T07:30:14.980+02:00"}
SAVED = END | {"event": "saved", "path": "/clips/dog.flac", "seconds": 6.5}
LOST = {"event": "lost", "time": START["time"], "reason": "it has ended", "source": "garden"}


def begun(deliverer, labels=("Dog",)):
    deliverer.start("garden", labels)
    return deliverer


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


# Files and lines


def test_lines_are_whole_whoever_appends(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    first, second = LineFile(path), LineFile(path)
    first.write({"a": "ä"})
    second.write({"b": 1})
    path.rename(tmp_path / "rotated")
    first.write({"c": "\udcff\n"})
    assert (tmp_path / "rotated").read_text("utf-8") == '{"a": "ä"}\n{"b": 1}\n'
    path.write_bytes(path.read_bytes() + b'{"half": ')
    LineFile(path).write({"d": 2})
    assert path.read_text().splitlines()[-2:] == ['{"half": ', '{"d": 2}']
    with pytest.raises(OSError) as error:
        LineFile(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_lines_that_cannot_be_written_are_counted_and_writing_goes_on(tmp_path):
    path, notes = tmp_path / "log.jsonl", []
    file = LineFile(path, notes.append)
    path.unlink()
    path.mkdir()  # as if the disk were full
    for i in range(5):
        file.write({"a": i})
    assert [int(note.split()[0]) for note in notes] == [1, 2, 4] and str(path) in notes[0]
    path.rmdir()
    path.write_text('{"half": ')
    file.write({"b": 1})
    file.write({"c": 2})
    assert path.read_text() == '{"half": \n{"b": 1}\n{"c": 2}\n' and len(notes) == 3
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        LineFile(path, notes.append)  # a wrong path at the start is an error
    path.rmdir()
    file = LineFile(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        file.write({})


def test_lines_of_text_show_labels_as_they_are():
    assert line(START) == "07:30:12.48  start  0.81  Dog"
    assert line(END) == "07:30:14.98  end    0.81  Dog  (2.50 s)"
    assert "\x1b" not in line(START | {"label": "\x1b[31mred"})


# Webhooks


@contextmanager
def receiver(answers=(), wait=0.0):
    """A server that answers with codes in turn, then 200; yields its address and the requests."""
    requests, codes = [], list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, dict(self.headers), body))
            time.sleep(wait)
            self.send_response(codes.pop(0) if codes else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{serving.server_address[1]}/hook?a=1", requests
        serving.shutdown()


def test_a_webhook_gets_each_message_and_trouble_is_tried_again():
    notes = []
    with receiver([503, 500]) as (address, requests):
        hook = begun(Webhook(f"http://me:word@{address}", notes.append, first_wait=0.01))
        for message in (START, END, SAVED):
            hook.offer(message)
        hook.close()
    assert [json.loads(body) for *_, body in requests] == [START, START, START, END, SAVED]
    path, headers, _ = requests[0]
    assert path == "/hook?a=1" and headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic bWU6d29yZA=="
    assert (hook.failed, hook.dropped, notes) == (0, 0, [])


@pytest.mark.parametrize("path", ["a b", "türe", "a?b=c d", "a\x7f"])
def test_a_url_that_http_does_not_allow_is_rejected_at_once(path):
    with pytest.raises(ConfigError, match="percent-encoded"):
        Webhook(f"http://127.0.0.1/{path}", pytest.fail)


@pytest.mark.parametrize(("codes", "posts", "why"), [([302], 1, "302"), ([404], 1, "404"), ([503] * 3, 3, "503")])
def test_a_webhook_that_refuses_is_said(codes, posts, why):
    notes = []
    with receiver(codes) as (address, requests):
        hook = begun(Webhook(f"http://{address}", notes.append, first_wait=0.01))
        hook.offer(START)
        hook.close()
    assert len(requests) == posts and hook.failed == 1
    assert notes == [f"webhook 127.0.0.1: 1 messages were not delivered (the response was {why})."]


@pytest.mark.parametrize("host", ["exa mple.org", "a..b"])
def test_a_webhook_with_an_invalid_host_is_rejected(host):
    with pytest.raises(ConfigError, match="invalid host name"):
        Webhook(f"http://{host}/x", print)


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8000", "exä.org", "localhost"])
def test_webhooks_have_hosts_of_all_kinds(host):
    assert Webhook(f"http://{host}/x", print).name.startswith("webhook ")


def test_a_slow_webhook_drops_and_never_blocks(monkeypatch):
    monkeypatch.setattr(delivery, "QUEUE", 5)
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 0.2)
    notes = []
    with receiver(wait=1.0) as (address, _):
        hook = begun(Webhook(f"http://{address}", notes.append))
        begin = time.monotonic()
        for _ in range(100):
            hook.offer(START)
        assert time.monotonic() - begin < 0.5
        hook.close()
        assert time.monotonic() - begin < 1.5
    assert hook.dropped >= 99 and len(notes) == 2


class Dripping(socketserver.BaseRequestHandler):
    def handle(self):
        for _ in range(1000):
            try:
                self.request.sendall(b"H")
            except OSError:
                return
            time.sleep(0.02)


@contextmanager
def reached(handler, note):
    """A webhook with a timeout of 0.3 s, and the server that handles its requests."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    with Server(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield Webhook(f"http://127.0.0.1:{listening.server_address[1]}", note, timeout=0.3, first_wait=0.01)
        listening.shutdown()


def test_a_server_that_answers_a_byte_at_a_time_is_left():
    notes = []
    with reached(Dripping, notes.append) as hook:
        begun(hook).offer(START)
        begin = time.monotonic()
        hook.close()
    assert time.monotonic() - begin < 4 and hook.failed == 1 and "no response within 0.3 s" in notes[0]


def test_the_timeout_holds_for_the_body_of_a_response():
    """http.client no longer has the socket when it reads a body that ends with the connection."""

    class Slow(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65_536)
            self.request.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            Dripping.handle(self)

    with reached(Slow, pytest.fail) as hook:
        begun(hook).offer(START)
        begin = time.monotonic()
        hook.close()
    assert time.monotonic() - begin < 4 and (hook.failed, hook.dropped) == (0, 0)  # it has been accepted


# Programs


def words(path, command, *messages):
    """Return the arguments and inputs that a program got for messages."""
    script = path / "program.py"
    script.write_text(
        "import json, sys\n"
        f"with open({str(path / 'got')!r}, 'a') as file: print(json.dumps([sys.argv[1:], sys.stdin.read()]), file=file)"
    )
    notes = []
    runner = begun(ProgramRunner(f"{sys.executable} {script} {command}", notes.append))
    for message in messages:
        runner.offer(message)
    runner.close()
    got = path / "got"
    return [json.loads(text) for text in got.read_text().splitlines()] if got.exists() else [], notes


def test_a_program_gets_fields_as_single_arguments_and_no_shell(tmp_path):
    hostile = START | {"label": 'a b"; touch /tmp/x; $(id) {score} %s'}
    ((arguments, given),), notes = words(tmp_path, "'say {label}!' {score} '{}' --at={time}", hostile, END)
    assert arguments == [f"say {hostile['label']}!", "0.81", "{}", f"--at={START['time']}"]
    assert json.loads(given) == hostile and notes == []


@pytest.mark.parametrize(
    ("command", "events"),
    [
        ("{label}", ["start"]), ("{label} {duration}", ["end"]), ("{path}", ["saved"]), ("{path} {end}", ["saved"]),
        ("{event}", ["start", "end", "saved", "lost"]),
    ],
)  # fmt: skip
def test_a_program_runs_when_what_it_names_is_known(command, events):
    runner = ProgramRunner(f"program {command}", pytest.fail)
    assert [m["event"] for m in (START, END, SAVED, LOST) if runner.wants(m)] == events


def test_a_label_is_never_an_option_and_failures_are_counted(tmp_path):
    got, notes = words(tmp_path, "{label}", START | {"label": "--delete"}, START | {"label": "a\0b"})
    assert got == [] and len(notes) in (1, 2) and "would not be a plain argument" in notes[-1]
    notes = []
    for command, why in (("no-such-program", "No such file"), (f"{sys.executable} -c 'exit(3)'", "exit code 3")):
        runner = begun(ProgramRunner(command, notes.append))
        runner.offer(START)
        runner.close()
        assert runner.failed == 1 and why in notes[-1]
    runner = begun(ProgramRunner(f"{sys.executable} -c 'import time; time.sleep(60)'", notes.append, timeout=0.3))
    runner.offer(START)
    runner.close()
    assert "longer than 0.3 s and was killed" in notes[-1]


# MQTT


class Broker:
    """A broker of MQTT 3.1.1 that takes what is published, and passes on only what it has kept from earlier."""

    def __init__(self, refuse=0):
        broker, self.refuse, self.kept = self, refuse, {}
        self.connects, self.published, self.wills, self.clients = [], [], [], []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                broker.clients.append(self.connection)
                try:
                    while broker.packet(self):
                        pass
                except (OSError, struct.error, IndexError):
                    pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def packet(self, handler):
        first = handler.rfile.read(1)
        if not first:
            return False
        length, shift = 0, 0
        while True:
            byte = handler.rfile.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        body, kind, flags = handler.rfile.read(length), first[0] >> 4, first[0] & 15
        if kind == 1:
            self.connects.append(self.strings(body[10:], 1 + 2 * bool(body[7] & 4) + 2 * bool(body[7] & 64)))
            handler.wfile.write(b"\x20\x02\x00" + bytes([self.refuse]))
            return not self.refuse
        if kind == 3:
            (size,) = struct.unpack(">H", body[:2])
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            if flags & 6:
                handler.wfile.write(b"\x40\x02" + rest[:2])
                rest = rest[2:]
            self.published.append((topic, rest.decode(), bool(flags & 1)))
        if kind == 8:
            handler.wfile.write(b"\x90\x03" + body[:2] + b"\x01")
            for topic, payload in self.kept.items():
                sent = struct.pack(">H", len(topic)) + f"{topic}{payload}".encode()
                handler.wfile.write(bytes([0x31, len(sent)]) + sent)  # retained
        if kind == 12:
            handler.wfile.write(b"\xd0\x00")
        return kind != 14

    @staticmethod
    def strings(data, count):
        found = []
        for _ in range(count):
            (size,) = struct.unpack(">H", data[:2])
            found.append(data[2 : 2 + size].decode())
            data = data[2 + size :]
        return found

    def last(self, topic):
        return next((payload for name, payload, _ in reversed(self.published) if name == topic), None)

    def cut(self):
        for client in self.clients:
            client.close() if client.fileno() < 0 else client.shutdown(2)
        self.clients.clear()


@pytest.fixture
def broker():
    pytest.importorskip("paho.mqtt")
    broker = Broker()
    yield broker
    broker.server.shutdown()
    broker.server.server_close()


def test_home_assistant_finds_sensors_and_their_states(broker, monkeypatch):
    monkeypatch.setenv("DYMN_MQTT_PASSWORD", "word")
    client = Mqtt(f"mqtt://me@127.0.0.1:{broker.port}/home/sound", pytest.fail)
    client.start("Front garden", ("Dog", "Domestic animals, pets"))
    sensor = "home/sound/Front-garden/domestic-animals-pets"
    until(lambda: broker.last(f"{sensor}/state") == "OFF")
    ((_, will, offline, *login),) = broker.connects
    assert (will, offline, login) == ("home/sound/Front-garden/status", "offline", ["me", "word"])
    config = json.loads(broker.last("homeassistant/binary_sensor/dymn_Front-garden/domestic-animals-pets/config"))
    assert config["name"] == "Domestic animals, pets" and config["state_topic"] == f"{sensor}/state"
    assert config["device_class"] == "sound" and config["availability_topic"] == will
    assert broker.last(will) == "online"
    message = START | {"label": "Domestic animals, pets"}
    client.offer(message)
    until(lambda: broker.last(f"{sensor}/state") == "ON")
    client.offer(message | END | {"label": message["label"]})
    client.offer(LOST)
    until(lambda: broker.last(will) == "offline")
    assert broker.last(f"{sensor}/state") == "OFF" and broker.last(config["json_attributes_topic"]).startswith("{")
    client.offer(LOST | {"event": "back", "seconds": 3.0})
    until(lambda: broker.last(will) == "online")
    until(lambda: len([name for name, *_ in broker.published if name == "home/sound/Front-garden/events"]) == 4)
    client.close()
    until(lambda: broker.last(will) == "offline")
    retained = {name: is_retained for name, _, is_retained in broker.published}
    assert not retained.pop("home/sound/Front-garden/events") and all(retained.values())


def test_states_are_right_again_after_the_connection_was_cut(broker):
    notes = []
    client = Mqtt(f"mqtt://127.0.0.1:{broker.port}", notes.append)
    client.start("x", ("Dog",))
    client.offer(START)
    until(lambda: broker.last("dymn/x/dog/state") == "ON")
    broker.cut()
    until(lambda: not client._connected.is_set())
    broker.published.clear()
    client.wants(END)  # as if its delivery had failed
    until(lambda: broker.last("dymn/x/dog/state") == "OFF" and broker.last("dymn/x/status") == "online")
    assert len(notes) == 1 and "has closed the connection" in notes[0]
    client.close()


def test_many_labels_are_announced_when_they_are_heard_and_never_share_a_topic(broker):
    client = begun(Mqtt(f"mqtt://127.0.0.1:{broker.port}", pytest.fail), [f"label {i}" for i in range(200)])
    for label in ("Dog", "dog!", "Cat"):
        client.offer(START | {"label": label})
    until(lambda: broker.last("dymn/garden/cat/state") == "ON")
    configs = {name for name, *_ in broker.published if name.startswith("homeassistant/")}
    client.close()
    assert len(configs) == 3 and len({name for name, *_ in broker.published if name.endswith("/state")}) == 3


def test_a_label_first_heard_without_a_connection_is_published_after_reconnecting(broker):
    client = begun(Mqtt(f"mqtt://127.0.0.1:{broker.port}", lambda note: None), [f"label {i}" for i in range(200)])
    until(lambda: broker.last("dymn/garden/status") == "online")
    broker.cut()
    until(lambda: not client._connected.is_set())
    client.wants(START)  # as if its delivery had failed
    until(lambda: broker.last("dymn/garden/dog/state") == "ON")
    assert broker.last("homeassistant/binary_sensor/dymn_garden/dog/config") is not None
    client.close()


def test_states_that_a_killed_run_left_are_reset(broker):
    """With many labels, this run does not know which ones the earlier one has announced."""
    broker.kept = {"dymn/garden/cat/state": "ON", "dymn/garden/dog/state": "ON", "dymn/garden/cow/state": "OFF"}
    client = Mqtt(f"mqtt://127.0.0.1:{broker.port}", pytest.fail)
    client.wants(START)
    begun(client, [f"label {i}" for i in range(200)])
    until(lambda: broker.last("dymn/garden/cat/state") == "OFF")
    client.offer(START)
    until(lambda: broker.last("dymn/garden/events") is not None)
    client.close()
    assert [payload for name, payload, _ in broker.published if name == "dymn/garden/dog/state"] == ["ON", "ON"]
    assert broker.last("dymn/garden/cow/state") is None


def test_a_broker_that_is_away_or_refuses_is_said(monkeypatch, broker):
    monkeypatch.setattr(mqtt, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 1.0)
    broker.refuse = 5
    for port, words_of in ((1, "cannot be reached"), (broker.port, "rejects the connection (Not authorized)")):
        notes = []
        client = begun(Mqtt(f"mqtt://127.0.0.1:{port}", notes.append))
        client.offer(START)
        until(lambda notes=notes: len(notes) >= 1)
        client.close()
        assert words_of in notes[0] and client.failed + client.dropped == 1
        assert "1 messages were not delivered" in notes[-1]


def test_addresses_and_what_is_missing(monkeypatch):
    for wrong in ("mqtt://", "http://x", "mqtt://x:port", "mqtt://x/a/#"):
        with pytest.raises(ConfigError, match="--mqtt"):
            Mqtt(wrong, pytest.fail)
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtraError, match=r"dymn\[mqtt\]") as error:
        Mqtt("mqtt://x", pytest.fail)
    assert isinstance(error.value, DymnError)
