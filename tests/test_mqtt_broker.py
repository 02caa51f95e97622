"""`dymn listen --mqtt` with a real broker, mosquitto or amqtt, and a client that sees what Home Assistant would see."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dymn.live.mqtt import Mqtt

BROKERS = {
    "mosquitto": "listener {port} 127.0.0.1\nallow_anonymous {anonymous}\nuser root\n",
    "amqtt": "listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\nplugins:\n"
    "  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n",
}
PROGRAM = next((name for name in BROKERS if shutil.which(name)), None)
START = {"event": "start", "label": "Dog", "score": 0.5, "start": 1.0, "time": "2026-01-01T00:00:01+00:00"}
END = START | {"event": "end", "end": 2.0, "duration": 1.0, "end_time": "2026-01-01T00:00:02+00:00"}
CONFIG = "homeassistant/binary_sensor/dymn_garden/dog/config"
SENSOR = "dymn/garden/dog"
EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is neither mosquitto nor amqtt")


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Broker:
    """A broker that can be stopped and started again, and keeps nothing meanwhile."""

    def __init__(self, folder, passwords=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "broker.conf"
        text = BROKERS[PROGRAM].format(port=self.port, anonymous=str(passwords is None).lower())
        if passwords is not None:
            text += f"password_file {passwords}\n"
        self.config.write_text(text)
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [shutil.which(PROGRAM), "-c", self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self.answers)

    def answers(self):
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


@pytest.fixture
def broker(tmp_path):
    pytest.importorskip("paho.mqtt")
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@contextmanager
def home(broker, **login):
    """Yield what a client that subscribes to everything has got so far: the last payload by topic, and all messages."""
    import paho.mqtt.client as paho

    last, messages = {}, []

    def take(client, data, message):
        last[message.topic] = message.payload.decode()
        messages.append((message.topic, message.payload.decode(), message.retain))

    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    if login:
        client.username_pw_set(**login)
    ready = []
    client.on_subscribe = lambda *_: ready.append(True)
    client.on_message, client.on_connect = take, lambda client, *_: client.subscribe("#", qos=1)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        until(lambda: ready)
        yield last, messages
    finally:
        client.disconnect()
        client.loop_stop()


def begun(broker, notes, user="", labels=("Dog",)):
    client = Mqtt(f"mqtt://{user}127.0.0.1:{broker.port}", notes.append)
    client.start("garden", labels)
    return client


def test_who_comes_later_finds_the_sensor_and_its_state(broker):
    with home(broker) as (last, _):
        client = begun(broker, notes := [])
        client.offer(START)
        until(lambda: "dymn/garden/events" in last)  # published last, so that what follows finds all before it retained
        assert last[f"{SENSOR}/state"] == "ON"
    topics = {CONFIG, "dymn/garden/status", f"{SENSOR}/state", f"{SENSOR}/attributes"}
    with home(broker) as (last, messages):  # Home Assistant after a restart
        until(lambda: topics <= set(last))
        config = json.loads(last[CONFIG])
        assert last[config["availability_topic"]] == "online" and last[config["state_topic"]] == "ON"
        assert json.loads(last[config["json_attributes_topic"]])["score"] == 0.5
        assert all(is_retained for *_, is_retained in messages)
        client.offer(END)
        until(lambda: last[f"{SENSOR}/state"] == "OFF")
        until(lambda: "dymn/garden/events" in last)
        assert json.loads(last["dymn/garden/events"])["event"] == "end"
        client.close()
        until(lambda: last["dymn/garden/status"] == "offline")
    with home(broker) as (last, messages):
        until(lambda: last.get("dymn/garden/status") == "offline")
        assert "dymn/garden/events" not in last
    assert notes == [] and (client.failed, client.dropped) == (0, 0)


def test_a_broker_that_restarts_gets_everything_again(broker):
    client = begun(broker, notes := [])
    with home(broker) as (last, _):
        until(lambda: last.get(f"{SENSOR}/state") == "OFF")
    broker.stop()
    until(lambda: not client._connected.is_set())
    client.offer(START)  # nobody is there
    broker.start()
    with home(broker) as (last, _):
        until(lambda: last.get(f"{SENSOR}/state") == "ON" and last.get("dymn/garden/status") == "online")
        until(lambda: CONFIG in last)
    client.close()
    assert "has closed the connection" in notes[0]
    assert len(notes) <= 2 and all("cannot be reached" in note for note in notes[1:])  # as long as it takes to start


def test_a_broker_that_comes_late_is_waited_for(tmp_path):
    pytest.importorskip("paho.mqtt")
    broker = Broker(tmp_path)
    client = begun(broker, notes := [])
    client.offer(START)
    until(lambda: notes)
    broker.start()
    try:
        with home(broker) as (last, _):
            until(lambda: last.get(f"{SENSOR}/state") == "ON" and CONFIG in last)
        client.close()
    finally:
        broker.stop()
    assert len(notes) == 1 and "cannot be reached. Trying again" in notes[0]


@pytest.mark.skipif(
    PROGRAM != "mosquitto" or not shutil.which("mosquitto_passwd"), reason="passwords are those of mosquitto"
)
def test_a_wrong_password_is_said_and_a_right_one_is_taken(tmp_path, monkeypatch):
    pytest.importorskip("paho.mqtt")
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "me", "right"], check=True)
    broker = Broker(tmp_path, passwords)
    broker.start()
    try:
        for user, word in (("me@", "wrong"), ("", "")):
            monkeypatch.setenv("DYMN_MQTT_PASSWORD", word)
            client = begun(broker, notes := [], user)
            until(lambda notes=notes: notes)
            client.close()
            assert "rejects the connection (Not authorized). Trying again" in notes[0]
        monkeypatch.setenv("DYMN_MQTT_PASSWORD", "right")
        client = begun(broker, notes := [], "me@")
        with home(broker, username="me", password="right") as (last, _):
            until(lambda: last.get("dymn/garden/status") == "online")
        client.close()
        assert notes == []
    finally:
        broker.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_listening_from_its_start_to_its_violent_end(broker):
    samples, rate = soundfile.read(EXAMPLES / "dog.ogg", dtype="int16")
    words = ["listen", "-", "--rate", rate, "--model", "dymn04_open", "--name", "garden", "--labels", "Dog"]
    words += ["--mqtt", f"mqtt://127.0.0.1:{broker.port}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    with home(broker) as (last, _):
        command = [sys.executable, "-m", "dymn", *map(str, words)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        try:
            process.stdin.write(samples.tobytes())
            process.stdin.flush()
            until(lambda: last.get(f"{SENSOR}/state") == "ON", 90)
            process.stdin.write(np.zeros(10 * rate, np.int16).tobytes())
            process.stdin.flush()
            until(lambda: last[f"{SENSOR}/state"] == "OFF", 90)
            assert last["dymn/garden/status"] == "online"
            process.send_signal(signal.SIGKILL)
            until(lambda: last["dymn/garden/status"] == "offline")  # said by the broker
        finally:
            process.kill()
            process.wait(20)
            process.stdin.close()
    with home(broker) as (last, _):
        until(lambda: last.get("dymn/garden/status") == "offline")
