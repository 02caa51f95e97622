"""Behaviour of `dymn serve` under ten times the load that it accepts.

    python benchmarks/serve_load.py --seconds 20

Starts the service on a free port of this machine with a short queue. First, sequential requests show the usual latency.
Then, for some seconds, ten times as many clients as the service accepts send requests without pauses, while another
client requests /health and /ready. Sequential requests follow again. Fails unless each request was either answered
completely or rejected with 503 and a Retry-After, /health and /ready always responded with 200, and the service counted
the responses that arrived. Its memory is printed after each quarter of the overload (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

CLIP = Path(__file__).parents[1] / "examples" / "audio" / "dog.ogg"
WORKERS, QUEUE = 2, 4
PAUSE = 0.1


class Answer(NamedTuple):
    """What came back, and after how long."""

    status: int
    head: str
    body: bytes
    seconds: float


async def request(port: int, line: str, body: bytes = b"") -> Answer:
    """Send a request over a connection of its own, without a library whose own load would be measured."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    content = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    head, _, rest = content.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    if length is None or len(rest) != int(length[1]):
        raise ConnectionError(f"an answer was cut short: {content[:100]!r}")
    return Answer(int(head.split()[1]), head.decode().lower(), rest, time.monotonic() - start)


async def measure(port: int, seconds: float, callers: int, pid: int) -> list[str]:
    """Return what is wrong."""
    clip = CLIP.read_bytes()

    async def ask() -> Answer:
        return await request(port, "POST /v1/tag?top_k=1", clip)

    while (await request(port, "GET /ready")).status != 200:
        await asyncio.sleep(PAUSE)
    expected = json.loads((await ask()).body)["tags"][0]["label"]
    before = [(await ask()).seconds for _ in range(10)]
    wrong: list[str] = []
    times: dict[str, list[float]] = {"answers": [], "refusals": [], "/health": [], "/ready": []}
    memory = [resident(pid)]
    end = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < end:
            try:
                answer = await ask()
            except (OSError, asyncio.TimeoutError) as error:
                wrong.append(f"lost: {error!r}")
                continue
            if answer.status == 200:
                times["answers"].append(answer.seconds)
                if json.loads(answer.body)["tags"][0]["label"] != expected:
                    wrong.append(f"another answer: {answer.body[:100]!r}")
            elif answer.status == 503 and "retry-after: " in answer.head:
                times["refusals"].append(answer.seconds)
                await asyncio.sleep(PAUSE)  # far sooner than it was told
            else:
                wrong.append(f"{answer.status}: {answer.body[:100]!r}")

    async def watch() -> None:
        while time.monotonic() < end:
            for path in ("/health", "/ready"):
                answer = await request(port, f"GET {path}")
                times[path].append(answer.seconds)
                if answer.status != 200:
                    wrong.append(f"{path} says {answer.status}")
            await asyncio.sleep(2 * PAUSE)

    async def weigh() -> None:
        for _ in range(4):
            await asyncio.sleep(seconds / 4)
            memory.append(resident(pid))

    await asyncio.gather(watch(), weigh(), *(caller() for _ in range(callers)))
    after = [(await ask()).seconds for _ in range(10)]
    metrics = (await request(port, "GET /metrics")).body.decode()
    counted = Counter(
        {status: int(float(n)) for status, n in re.findall(r'dymn_answers_total\{status="(\d+)"\} (\S+)', metrics)}
    )
    arrived = 1 + len(before) + len(times["answers"]) + len(after)
    if counted["200"] != arrived:
        wrong.append(f"{arrived} answers arrived, and the service counts {counted['200']}")
    if not times["refusals"]:
        wrong.append("nothing was refused: this was no overload")
    show("one after the other", before)
    print(f"{callers} callers at once for {seconds:g} s")
    for name, found in times.items():
        show(f"  {name}", found)
    show("one after the other", after)
    print("MiB before the overload and after each quarter: " + ", ".join(f"{size:.0f}" for size in memory))
    return wrong


def resident(pid: int) -> float:
    """Return a process's memory in MiB; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def show(name: str, seconds: list[float]) -> None:
    if seconds:
        middle, most, longest = (1000 * sorted(seconds)[round(share * (len(seconds) - 1))] for share in (0.5, 0.99, 1))
        print(
            f"{name:20s} {len(seconds):6d}   median {middle:6.0f} ms   99 % within {most:6.0f} ms   longest "
            f"{longest:6.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="dymn04_open")
    parser.add_argument("--seconds", type=float, default=20, help="duration of the overload in seconds")
    parser.add_argument(
        "--times", type=int, default=10, help="number of clients, as a multiple of the requests that are accepted"
    )
    options = parser.parse_args()
    words = [sys.executable, "-m", "dymn", "serve", "--port", "0", "-m", options.model, "--quiet"]
    server = subprocess.Popen(
        [*words, "--workers", str(WORKERS), "--queue", str(QUEUE)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline().split()[2].rpartition(":")[2])
        wrong = asyncio.run(measure(port, options.seconds, options.times * (WORKERS + QUEUE), server.pid))
    finally:
        server.terminate()
        server.wait(60)
    for line in wrong[:10]:
        print(f"wrong: {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
