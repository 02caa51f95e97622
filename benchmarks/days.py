"""Memory of `dymn listen` over days: a day of audio from a pipe with all actions, and a stream that is often lost.

The audio is sent as fast as it is processed. Both parts print the resident memory while they run (Linux):

    python benchmarks/days.py --hours 24
"""

from __future__ import annotations

import argparse
import http.server
import io
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import soundfile

from dymn.audio.network import NetworkSource
from dymn.audio.reading import read

RATE = 32_000
EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes what a webhook posts, and sends a second of MP3 without an announced length."""

    posts = 0
    sound = b""

    def do_POST(self) -> None:
        """Count a message."""
        self.rfile.read(int(self.headers["Content-Length"]))
        Receiver.posts += 1
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        """Send sound, and hang up."""
        self.send_response(200)
        self.send_header("Content-Type", "audio/mpeg")
        self.end_headers()
        self.wfile.write(Receiver.sound)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve() -> int:
    """Start the server, and return its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def resident(pid: int | str) -> float:
    """Return the resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the process has ended")


def day(hours: float, model: str, hop: float, port: int) -> None:
    names = ("dog", "speech", "train", "piano")
    silence = np.zeros(5 * RATE, np.float32)
    scene = np.concatenate([part for name in names for part in (read(str(EXAMPLES / f"{name}.ogg"), RATE), silence)])
    pcm = (np.clip(scene, -1, 1) * 32767).astype("<i2").tobytes()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "dymn", "listen", "-", "--rate", str(RATE), "--model", model, "--window", "2",
            "--hop", str(hop), "--output", f"{folder}/sounds.jsonl", "--webhook", f"http://127.0.0.1:{port}/",
            "--save", f"{folder}/clips", "--keep", "50", "--labels", "Dog,Bark,Speech,Train,Piano",
        ]  # fmt: skip
        begin = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert process.stdin is not None
            fed, told, per_hour = 0, 0, 3600 * RATE * 2
            while fed < hours * per_hour:
                process.stdin.write(pcm)
                fed += len(pcm)
                if fed // per_hour > told:
                    told = fed // per_hour
                    print(f"hour {told:3}: {resident(process.pid):6.1f} MB", flush=True)
            process.stdin.close()
            process.wait()
        lines = Path(f"{folder}/sounds.jsonl").read_text().count("\n")
        clips = len(list(Path(f"{folder}/clips").iterdir()))
    seconds = time.perf_counter() - begin
    print(f"{hours:g} h in {seconds:.0f} s; {lines} messages, {Receiver.posts} posted, {clips} clips kept")


def losses(count: int, port: int) -> None:
    tone = 0.3 * np.sin(np.arange(16_000) * 0.2).astype(np.float32)
    soundfile.write(file := io.BytesIO(), tone, 16_000, format="MP3", subtype="MPEG_LAYER_III")
    Receiver.sound = file.getvalue()
    source = NetworkSource(f"http://127.0.0.1:{port}/", first_wait=0.0)
    source.start()
    back = 0
    while back < count:
        chunk = source.queue.get(1.0)
        if chunk is not None and chunk.notice is not None and chunk.notice.kind == "back":
            back += 1
            if back % (count // 6) == 0:
                print(f"connection {back:4}: {resident('self'):6.1f} MB", flush=True)
    source.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--model", default="dymn04_open")
    parser.add_argument("--hop", type=float, default=2.0)
    parser.add_argument("--losses", type=int, default=600)
    arguments = parser.parse_args()
    port = serve()
    losses(arguments.losses, port)
    day(arguments.hours, arguments.model, arguments.hop, port)


if __name__ == "__main__":
    main()
