"""Sound from addresses: codecs, reconnection, silence, garbage, a slow and a fast server, RTSP."""

import errno
import http.server
import io
import re
import socketserver
import struct
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

from dymn.audio import network
from dymn.audio.network import NetworkSource, shown_url
from dymn.errors import AudioError, ConfigError

RATE = 16_000


def encoded(seconds, format, frequency=440.0, rate=RATE):
    """Return a tone as a file of a format."""
    samples = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "OPUS", "WAV": "PCM_16", "FLAC": "PCM_16"}[format]
    soundfile.write(file := io.BytesIO(), samples.astype(np.float32), rate, format=format, subtype=subtype)
    return file.getvalue()


@contextmanager
def server(*scripts):
    """Serve connections, each with the next function of (socket, request); yields the address."""
    left = list(scripts)
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            request = b""
            while b"\r\n\r\n" not in request and (data := self.request.recv(4096)):
                request += data
            script = left.pop(0) if left else None
            try:
                if script is not None:
                    script(self.request, stop)
            except OSError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}/stream"
        finally:
            stop.set()
            listening.shutdown()


def stream(data, kind="audio/mpeg", seconds=0.0, length=None):
    """Return a script that sends data after a header, over so many seconds."""

    def send(connection, stop):
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n"
        head += "" if length is None else f"Content-Length: {length}\r\n"
        connection.sendall(head.encode() + b"\r\n")
        step = max(1, len(data) // 20)
        for begin in range(0, len(data), step):
            connection.sendall(data[begin : begin + step])
            stop.wait(seconds / 20)

    return send


def silent(connection, stop):
    stop.wait(30)


def heard(source, seconds=20.0, until=lambda chunks: False):
    """Return the chunks of a source, up to its end or a condition."""
    chunks, end = [], time.monotonic() + seconds
    while time.monotonic() < end and not until(chunks):
        try:
            chunk = source.queue.get(0.05)
        except EOFError:
            break
        if chunk is not None:
            chunks.append(chunk)
    return chunks


def notices(chunks):
    return [chunk.notice for chunk in chunks if chunk.notice is not None]


@contextmanager
def opened(url, **options):
    source = NetworkSource(url, **{"timeout": 0.7, "first_wait": 0.05, "give_up": 3.0} | options)
    try:
        source.start()
        yield source
    finally:
        source.close()
        source._thread.join(5)
        assert not source._thread.is_alive()


@pytest.mark.parametrize(
    ("format", "kind"), [("MP3", "audio/mpeg"), ("OGG", "audio/ogg"), ("WAV", "audio/wav"), ("FLAC", "audio/flac")]
)
def test_a_file_of_known_length_is_heard_once(format, kind):
    data = encoded(3.0, format)
    with server(stream(data, kind, length=len(data))) as url, opened(url) as source:
        chunks = heard(source)
    samples = np.concatenate([chunk.samples for chunk in chunks])[:, 0]
    assert source.sample_rate == (48_000 if format == "OGG" else RATE)
    assert len(samples) / source.sample_rate == pytest.approx(3.0, abs=0.1)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.05)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * source.sample_rate / len(samples) == pytest.approx(440, abs=2)
    assert notices(chunks) == [] and all(chunk.dropped == 0 for chunk in chunks)


@pytest.mark.parametrize(("format", "kind"), [("MP3", "audio/mpeg"), ("OGG", "audio/ogg"), ("WAV", "audio/wav")])
def test_a_stream_that_drops_comes_back_where_the_clock_is(format, kind):
    data = encoded(0.8, format)
    script = stream(data, kind, 0.8)
    with (
        server(script, lambda *_: None, script, silent) as url,
        opened(url, first_wait=0.4, timeout=3, give_up=9) as source,
    ):
        begun = source.zero
        chunks = heard(source, until=lambda chunks: len(notices(chunks)) == 2 and len(chunks[-1].samples))
        total = sum(len(chunk.samples) + chunk.dropped for chunk in chunks) / source.sample_rate
        lag = time.time() - begun - total
    assert [notice.kind for notice in notices(chunks)] == ["lost", "back"]
    assert notices(chunks)[0].reason
    assert 0.8 < notices(chunks)[1].seconds < 5  # two waits, of 0.4 and 0.8 s
    missing = sum(chunk.dropped for chunk in chunks) / source.sample_rate
    assert 0.8 < missing < 5
    assert abs(lag) < 1.0


@pytest.mark.parametrize("has_end", [False, True])
def test_a_station_of_hls_is_reopened_and_a_complete_playlist_is_heard_once(has_end):
    """A playlist without an end is a live station, although the server states its size."""
    segment, lists = encoded(1.0, "MP3"), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = segment
            if self.path.startswith("/live.m3u8"):
                lists.append(self.path)
                body = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:%d\n" % len(lists)
                body += b"".join(b"#EXTINF:1.0,\n%d.mp3\n" % (len(lists) + i) for i in range(3))
                body += b"#EXT-X-ENDLIST\n" if has_end else b""
            if 2 <= len(lists) <= 4 and body is not segment:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        with opened(f"http://127.0.0.1:{listening.server_address[1]}/live.m3u8", timeout=5, give_up=20) as source:
            chunks = heard(source, until=lambda chunks: len(notices(chunks)) == 2)
        listening.shutdown()
    assert [notice.kind for notice in notices(chunks)] == ([] if has_end else ["lost", "back"])
    if has_end:
        assert len(lists) == 1
        assert sum(len(chunk.samples) for chunk in chunks) == pytest.approx(3 * RATE, abs=0.5 * RATE)


def test_a_server_that_never_answers_is_given_up():
    source = NetworkSource("http://127.0.0.1:1/", timeout=0.2, first_wait=0.05, give_up=0.5)
    told = []
    with pytest.raises(AudioError, match=r"has sent no audio for .*refused.*--give-up"):
        source.start(told.append)
    assert told == ["Connection refused"]
    begin = time.monotonic()
    with server(silent, silent, silent, silent) as url, pytest.raises(AudioError, match="has sent no audio"):
        NetworkSource(url, timeout=0.3, first_wait=0.05, give_up=0.5).start()
    assert time.monotonic() - begin < 5


def test_a_stream_that_falls_silent_is_lost():
    data = encoded(1.0, "MP3")

    def stalls(connection, stop):
        stream(data)(connection, stop)
        stop.wait(30)

    with server(stalls, stream(data), silent) as url, opened(url) as source:
        chunks = heard(source, until=lambda chunks: len(notices(chunks)) == 2)
    assert [notice.kind for notice in notices(chunks)] == ["lost", "back"]


@pytest.mark.parametrize("garbage", ["noise", "html", "zeros", "playlist", "header"])
def test_garbage_is_no_sound_and_ends_nothing(garbage, tmp_path):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros(8000), 8000)
    data = {
        "noise": np.random.default_rng(0).bytes(300_000),
        "html": b"<html><body>404, not here</body></html>" * 50,
        "zeros": bytes(300_000),
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
        "header": b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\xff\xff\xff\xff\xff\xff" + b"\xff" * 3000,
    }[garbage]
    kind = "application/vnd.apple.mpegurl" if garbage == "playlist" else "audio/mpeg"
    good = stream(encoded(0.5, "MP3"))  # once for the question what the address sends
    with server(stream(data, kind), good, good, silent) as url, opened(url, give_up=20) as source:
        chunks = heard(source, until=lambda chunks: sum(len(chunk.samples) for chunk in chunks) > 0.3 * RATE)
    loudest = max(float(np.abs(chunk.samples).max(initial=0)) for chunk in chunks)
    assert np.isfinite(loudest)
    if garbage not in ("noise", "header"):  # noise may decode to some noise
        assert source.sample_rate == RATE and notices(chunks) == []


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (
            "text/html; charset=utf-8",
            b"<!doctype html><title>Log in</title>",
            r"it is a web page \(text/html\), not audio",
        ),
        ("application/json", b'{"error": 1}', "its content is application/json, not audio"),
        ("text/x\x1b[2J", b"<html></html>", r"its content is text/x\\x1b\[2j, not audio"),
        ("audio/mpeg", b"<html></html>", "Invalid data found"),
        ("video/mp2t", b"<html></html>", "Invalid data found"),
    ],
)
def test_an_address_that_sends_something_else_is_told(kind, data, said):
    told, requests = [], []

    def answer(connection, stop):
        requests.append(kind)
        stream(data, kind, length=len(data))(connection, stop)

    with server(*[answer] * 30) as url:
        url = url.replace("http://", "http://me:secret@")
        with pytest.raises(AudioError, match=f"has sent no audio for .*: {said}") as failed:
            NetworkSource(url, timeout=1, first_wait=0.05, give_up=0.6).start(told.append)
    assert len(told) == 1 and re.match(said, told[0]) and "secret" not in str(failed.value)
    assert len(requests) <= 6  # it is asked once, and not at each try


def test_only_the_address_itself_gets_the_password():
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if self.path == "/stream?key=1" else 200)
            self.send_header("Location", "/login")
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        said = network.other_content(f"http://me:a%20b@127.0.0.1:{listening.server_address[1]}/stream?key=1", 5)
        listening.shutdown()
    assert said == "it is a web page (text/html), not audio"
    assert seen == [("/stream?key=1", "Basic bWU6YSBi"), ("/login", None)]
    assert network.other_content("rtsp://camera.example/audio", 5) == ""


def test_a_stream_without_end_is_read_at_the_pace_of_the_clock(monkeypatch):
    monkeypatch.setattr(network, "BURST_SECONDS", 1.0)
    data = encoded(60.0, "WAV")
    with server(stream(data, "audio/wav"), silent) as url, opened(url, max_lag=0.5) as source:
        begin = time.monotonic()
        heard(source, 1.5)
        read = source._position / RATE
        assert time.monotonic() - begin < 5
    assert 1.0 < read < 1.0 + 0.5 + time.monotonic() - begin + 1.0


def test_a_slow_listener_loses_sound_and_not_memory(monkeypatch):
    monkeypatch.setattr(network, "BURST_SECONDS", 0.2)
    data = encoded(3.0, "WAV")
    with server(stream(data, "audio/wav", 2.0), silent) as url, opened(url, max_lag=0.3, timeout=5) as source:
        time.sleep(2.0)
        waiting = heard(source, 0.3, lambda chunks: source.queue.has_room(10**9))
    assert sum(len(chunk.samples) for chunk in waiting) <= 0.3 * RATE + 5000


class Scripted(NetworkSource):
    """A source whose blocks of a tenth of a second come after given waits."""

    def __init__(self, waits, **options):
        super().__init__("http://camera.example/", **options)
        self.waits = waits

    def _connection(self):
        for wait in self.waits:
            time.sleep(wait)
            yield np.full(RATE // 10, 0.1, np.float32), RATE
        self._ended = True


@pytest.mark.parametrize("comes_late", [False, True])
def test_a_part_that_never_came_is_a_gap_and_one_that_is_late_is_not(monkeypatch, comes_late):
    monkeypatch.setattr(network, "BURST_SECONDS", 0.5)
    monkeypatch.setattr(network, "GAP_SECONDS", 0.4)
    rest = [0.0] * 10 + [0.1] * 6 if comes_late else [0.1] * 8
    source = Scripted([0.1] * 5 + [1.0] + rest, max_lag=10)
    source.start()
    chunks = heard(source)
    seconds = sum(len(chunk.samples) + chunk.dropped for chunk in chunks) / RATE
    assert [notice.kind for notice in notices(chunks)] == ([] if comes_late else ["gap"])
    if not comes_late:
        (gap,) = notices(chunks)
        assert 0.5 < gap.seconds < 1.2
        assert seconds == pytest.approx(1.4 + gap.seconds, abs=0.01)
        assert chunks[[chunk.notice for chunk in chunks].index(gap) + 1].dropped == round(gap.seconds * RATE)


def test_other_rates_are_resampled_and_values_bounded():
    odd = np.array([np.nan, np.inf, 1e30, 0.25] * 4000, np.float32)
    soundfile.write(file := io.BytesIO(), odd, 8000, format="WAV", subtype="FLOAT")
    first, second = stream(encoded(0.5, "WAV"), "audio/wav"), stream(file.getvalue(), "audio/wav")
    with server(first, second, silent) as url, opened(url) as source:
        chunks = heard(source, until=lambda chunks: len(notices(chunks)) == 3)
    last = np.concatenate([chunk.samples for chunk in chunks[-200:] if chunk.notice is None])
    assert np.isfinite(last).all() and np.abs(last).max() < 2
    after = [notice.kind for notice in notices(chunks)].index("back")
    assert after == 1
    back = next(i for i, chunk in enumerate(chunks) if chunk.notice is not None and chunk.notice.kind == "back")
    assert sum(len(chunk.samples) for chunk in chunks[back:]) == pytest.approx(2 * RATE, abs=RATE * 0.1)


def test_a_channel_is_chosen_where_it_is_decoded():
    stereo = np.tile(np.array([0.5, -0.25], np.float32), (RATE, 1))
    soundfile.write(file := io.BytesIO(), stereo, RATE, format="WAV", subtype="PCM_16")
    data = file.getvalue()
    for channel, value in (("mix", 0.125), ("right", -0.25), ("1", 0.5)):
        with server(stream(data, "audio/wav", length=len(data))) as url, opened(url, channel=channel) as source:
            samples = np.concatenate([chunk.samples for chunk in heard(source)])
        np.testing.assert_allclose(samples, value, atol=1e-4)
    for channel in ("each", "5x"):
        with pytest.raises(ConfigError, match="channel is"):
            NetworkSource("http://camera.example/", channel=channel)


# RTSP: a camera's microphone with samples in G.711, between the answers on the same connection

SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
SDP += "m=audio 0 RTP/AVP 0\r\na=control:audio\r\n"


class Camera(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            method, headers = line.split()[0].decode(), {}
            while header := self.rfile.readline().strip():
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            more, body = "", SDP if method == "DESCRIBE" else ""
            if method == "DESCRIBE":
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            if method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            if method == "OPTIONS":
                more = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', 0)}\r\nSession: 1\r\n{more}\r\n{body}"
            self.wfile.write(answer.encode())
            if method == "PLAY":
                return self.play()

    def play(self):
        for i in range(100):
            rtp = struct.pack(">BBHII", 0x80, 0, i, i * 160, 7) + bytes([0x80, 0x00] * 80)  # the loudest of mu-law
            self.wfile.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
            time.sleep(0.005)


def test_a_camera():
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    with Server(("127.0.0.1", 0), Camera) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        with opened(f"rtsp://me:word@127.0.0.1:{listening.server_address[1]}/audio", timeout=3) as source:
            chunks = heard(source, until=lambda chunks: len(notices(chunks)) == 1)
        listening.shutdown()
    assert source.name == f"rtsp://127.0.0.1:{listening.server_address[1]}/audio"
    assert source.sample_rate == 8000
    assert sum(len(chunk.samples) for chunk in chunks) == pytest.approx(16_000, abs=2000)
    assert notices(chunks)[0].kind == "lost"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x.wav",
        "http://",
        "http:///x",
        "http://host:port/",
        "concat:http://a|b",
        "tcp://a",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ConfigError, match="URL"):
        shown_url(url)


def test_secrets_are_not_shown():
    assert shown_url("https://me:word@radio.example:8000/live?key=1#x") == "https://radio.example:8000/live"
    assert shown_url("http://[::1]:80/x") == "http://[::1]:80/x"


def test_an_unknown_host_is_named(monkeypatch):
    def look_up(host, port):
        if host.endswith(".invalid"):
            raise OSError("Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", look_up)
    error = OSError(errno.EIO, "Input/output error")
    assert NetworkSource("rtsp://me:secret@camera.invalid/audio")._words(error) == (
        "the host name camera.invalid is unknown"
    )
    assert "unknown" not in NetworkSource("rtsp://camera.example/audio")._words(error)
