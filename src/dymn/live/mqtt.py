"""Messages over MQTT, with discovery by Home Assistant: each label is a binary sensor."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from dymn.errors import ConfigError
from dymn.live.clips import plain
from dymn.live.delivery import Delivery, DeliveryError
from dymn.live.lines import json_line
from dymn.live.messages import Message
from dymn.system.extras import needing

PREFIX = "dymn"
DISCOVERY = "homeassistant"
PASSWORD = "DYMN_MQTT_PASSWORD"
CONNECT_SECONDS = 10.0
MOST_QUEUED = 1000
MOST_AT_ONCE = 100
"""Up to this many labels are announced at the start; otherwise, each is announced when it is first detected."""


class Mqtt(Delivery):
    """Publishes to a broker, and reconnects if the connection is lost.

    Below PREFIX/NAME: `events` has every message; LABEL/state is ON or OFF and LABEL/attributes the last message of a
    label, both retained; `status` is online or offline, also when the source is lost or the program is killed.
    """

    def __init__(self, url: str, note: Callable[[str], None]) -> None:
        """Prepare to connect to mqtt://USER@HOST:PORT/PREFIX; mqtts encrypts.

        Args:
            url: the URL of the broker; the password is part of it, or in the environment variable DYMN_MQTT_PASSWORD.
            note: called with messages for the user.

        Raises:
            ConfigError: if the URL is not an MQTT URL.
            MissingExtraError: if paho-mqtt is not installed.
        """
        self._address = _Address.parse(url)
        with needing("Publishing over MQTT", "mqtt"):
            import paho.mqtt.client
        self._paho = paho.mqtt
        self._lock = threading.Lock()
        self._slugs: dict[str, str] = {}  # by label
        self._sounding: dict[str, Message] = {}  # by label
        self._available = True
        self._is_noted = False
        self._connected = threading.Event()
        self.name = f"MQTT broker {self._address.host}:{self._address.port}"
        super().__init__(note)

    def start(self, source: str, labels: Sequence[str]) -> None:
        """Connect; the name of the source is part of the topics."""
        self._node, self._title = plain(source), source
        self._topic = f"{self._address.prefix}/{self._node}"
        for label in labels if len(labels) <= MOST_AT_ONCE else ():
            self._slug(label)
        version = self._paho.enums.CallbackAPIVersion.VERSION2
        self._client = client = self._paho.client.Client(version, client_id=f"dymn-{self._node}-{os.getpid()}")
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if self._address.is_secure:
            client.tls_set()
        client.max_queued_messages_set(MOST_QUEUED)
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_message = self._on_connect_fail, self._on_message
        client.reconnect_delay_set(1, 60)
        client.connect_async(self._address.host, self._address.port, keepalive=60)
        client.loop_start()
        super().start(source, labels)

    def wants(self, message: Message) -> bool:
        """Return True for every message; the states are updated even without a connection."""
        with self._lock:
            if message["event"] == "start":
                self._sounding[message["label"]] = message
            elif message["event"] == "end":
                self._sounding.pop(message["label"], None)
            elif message["event"] in ("lost", "back"):
                self._available = message["event"] == "back"
        return True

    def deliver(self, message: Message) -> None:
        """Publish a message and the new state of its label's sensor.

        Raises:
            DeliveryError: if there is no connection. The states are published after reconnecting.
        """
        if not self._connected.wait(CONNECT_SECONDS):
            raise DeliveryError("there is no connection")
        with self._lock:
            event = message["event"]
            if event in ("start", "end"):
                slug = self._slug(message["label"], announce=True)
                self._publish(f"{slug}/attributes", json_line(message), retain=True)
                self._publish(f"{slug}/state", "ON" if event == "start" else "OFF", retain=True)
            elif event in ("lost", "back"):
                self._publish("status", "offline" if event == "lost" else "online", retain=True)
            self._publish("events", json_line(message))

    def close(self) -> None:
        """Publish the queued messages and the status `offline`, and disconnect."""
        super().close()
        if self._connected.is_set():
            self._client.publish(f"{self._topic}/status", "offline", qos=1, retain=True).wait_for_publish(2.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _publish(self, topic: str, payload: str, retain: bool = False) -> None:
        self._client.publish(f"{self._topic}/{topic}", payload, qos=1, retain=retain)

    def _slug(self, label: str, announce: bool = False) -> str:
        """Return the part of topics for a label, unique per label; `announce` announces new labels."""
        slug = self._slugs.get(label)
        if slug is None:
            slug = plain(label).lower()
            if slug in self._slugs.values():
                slug = f"{slug}-{zlib.crc32(label.encode(errors='backslashreplace')):08x}"
            self._slugs[label] = slug
            if announce:
                self._announce(label, slug)
        return slug

    def _announce(self, label: str, slug: str) -> None:
        """Publish the configuration from which Home Assistant creates a label's sensor."""
        config: dict[str, Any] = {
            "name": label,
            "unique_id": f"dymn_{self._node}_{slug}",
            "state_topic": f"{self._topic}/{slug}/state",
            "json_attributes_topic": f"{self._topic}/{slug}/attributes",
            "availability_topic": f"{self._topic}/status",
            "device_class": "sound",
            "device": {"identifiers": [f"dymn_{self._node}"], "name": self._title, "manufacturer": "dymn"},
        }
        topic = f"{DISCOVERY}/binary_sensor/dymn_{self._node}/{slug}/config"
        self._client.publish(topic, json.dumps(config, ensure_ascii=False), qos=1, retain=True)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        """Announce all known labels and publish their states, which may have changed without a connection."""
        if reason.is_failure:
            if not self._is_noted:
                self._note(f"{self.name} rejects the connection ({reason}). Trying again.")
                self._is_noted = True
            return
        with self._lock:
            self._publish("status", "online" if self._available else "offline", retain=True)
            for label in self._sounding:
                self._slug(label)  # of a label first heard without a connection
            for label, slug in self._slugs.items():
                self._announce(label, slug)
                self._publish(f"{slug}/state", "ON" if label in self._sounding else "OFF", retain=True)
        client.subscribe(f"{self._topic}/+/state", qos=1)
        self._connected.set()
        self._is_noted = False

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        """Reset a state that a killed run left behind: the broker kept an ON of a label that is not heard."""
        slug = message.topic.split("/")[-2]
        with self._lock:
            sounding = {self._slugs.get(label) for label in self._sounding}
            if message.retain and message.payload == b"ON" and slug not in sounding:
                self._publish(f"{slug}/state", "OFF", retain=True)

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        if not self._is_noted:
            self._note(f"{self.name} cannot be reached. Trying again.")
            self._is_noted = True

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        was_connected = self._connected.is_set()
        self._connected.clear()
        if was_connected and not self._closing.is_set():
            self._note(f"{self.name} has closed the connection ({reason}). Trying again.")


class _Address(NamedTuple):
    """The parts of a URL; `prefix` is the prefix of topics."""

    host: str
    port: int
    user: str | None
    password: str | None
    prefix: str
    is_secure: bool

    @classmethod
    def parse(cls, url: str) -> _Address:
        """Return the parts of a URL.

        Raises:
            ConfigError: if it is not an MQTT URL.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"--mqtt is not a valid URL: {error}.") from error
        prefix = parts.path.strip("/") or PREFIX
        is_wrong = parts.scheme not in ("mqtt", "mqtts") or "+" in prefix
        if not host or is_wrong or any(letter in url for letter in "#?\0"):
            raise ConfigError("--mqtt must be a URL such as mqtt://user@broker.local:1883 or mqtts://broker/prefix.")
        is_secure = parts.scheme == "mqtts"
        password = unquote(parts.password) if parts.password is not None else os.environ.get(PASSWORD)
        user = unquote(parts.username) if parts.username else None
        return cls(host, port or (8883 if is_secure else 1883), user, password, prefix, is_secure)
