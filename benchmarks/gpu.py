"""Clips per second of DyMN on a GPU, in inference and training, relative to the textbook form and to the roofline.

    python benchmarks/gpu.py --batch 64
    python benchmarks/gpu.py --device cpu --widths 0.4 --batch 2 --frames 200 --seconds 1   # a trial without a GPU

The forms alternate in rounds, and medians are printed. The roofline of a form is the longer of two times: its
multiply-adds at the rate of a large matrix product in the same precision, and the bytes of its feature maps, each
written once and read once, at the rate of a copy. `difference` is that of the logits from the textbook form in fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dymn import create_model
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.profiling import count
from dymn.runtime.cuda import compiled
from lively import clips, lively
from textbook import textbook_of

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
SAMPLES_PER_FRAME = 320


def timer(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Return a function that gives the seconds of a call, the device's work included."""

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds


def inference(network: Callable[[Tensor], Any], log_mel: Tensor, cast: Any) -> Callable[[], Any]:
    """Return a call that computes the logits of a batch."""

    def call() -> Tensor:
        with torch.inference_mode(), cast():
            return network(log_mel).logits

    return call


def training(network: nn.Module, log_mel: Tensor, cast: Any) -> Callable[[], Any]:
    """Return a call that computes all gradients of a batch."""
    target = torch.full((len(log_mel), 527), 0.1, device=log_mel.device)

    def call() -> None:
        network.train().zero_grad(set_to_none=True)
        with cast():
            logits = network(log_mel).logits
        nn.functional.binary_cross_entropy_with_logits(logits.float(), target).backward()

    return call


def forms(model: MobileNet, log_mel: Tensor, mode: str, cast: Any, compiles: bool) -> dict[str, Callable[[], Any]]:
    """Return the forms to compare: a name and a call each."""
    wrap = inference if mode == "inference" else training
    found = {
        "textbook": wrap(textbook_of(model).to(log_mel.device), log_mel, cast),
        "modules": wrap(model, log_mel, cast),
        "modules, channels last": wrap(model, log_mel.to(memory_format=torch.channels_last), cast),
    }
    if compiles:  # CUDA graphs where it can
        network = compiled(model) if mode == "inference" else torch.compile(model, mode="reduce-overhead")
        found["compiled"] = wrap(network, log_mel, cast)
    return found


def roofline(
    model: MobileNet, batch: int, frames: int, device: torch.device, dtype: torch.dtype, passes: int
) -> dict[str, float]:
    """Return the measured peaks of a device and the clips per second that they allow."""
    clock = timer(device)
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    block = torch.empty((256 if device.type == "cuda" else 16) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    flops = 2 * size**3 / min(clock(lambda: a @ a) for _ in range(5))
    bandwidth = 2 * block.numel() / min(clock(lambda: target.copy_(block)) for _ in range(5))
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, 128, frames, device=device))
    for hook in hooks:
        hook.remove()
    by_macs = flops / (2 * passes * count(model.config, n_frames=frames).macs)
    by_bytes = bandwidth / (2 * passes * sum(sizes) * a.element_size())
    return {
        "peak_tflops": flops / 1e12,
        "bandwidth_gb_s": bandwidth / 1e9,
        "roofline_clips_per_second": min(by_macs, by_bytes),
    }


def front_end(batch: int, frames: int, device: torch.device, seconds: float) -> float:
    """Measure the front end on the device, in clips per second."""
    waveform = torch.randn(batch, frames * SAMPLES_PER_FRAME, device=device)
    log_mel = LogMel().to(device)
    clock, times, end = timer(device), [], time.perf_counter() + seconds
    clock(lambda: log_mel(waveform))
    while time.perf_counter() < end or len(times) < 3:
        times.append(clock(lambda: log_mel(waveform)))
    return round(batch / statistics.median(times), 1)


def measure(width: float, options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield a row for each form of a network, in inference and training and every precision."""
    clock = timer(device)
    log_mel = clips(max(options.batch, 8), n_frames=options.frames)
    model = create_model("dymn10", width=width, generator=torch.Generator().manual_seed(0))
    model, log_mel = lively(model, log_mel[:8]).to(device), log_mel[: options.batch].to(device)
    exact = inference(textbook_of(model), log_mel, contextlib.nullcontext)()
    for mode, precision in itertools.product(("inference", "training"), options.precisions):
        dtype = PRECISIONS[precision]
        cast = (lambda dtype=dtype: torch.autocast(device.type, dtype)) if dtype else contextlib.nullcontext
        model.eval()
        calls = forms(model, log_mel, mode, cast, not options.no_compile)
        outputs = {}
        for form, call in calls.items():
            clock(call)
            outputs[form] = call()
        times: dict[str, list[float]] = {form: [] for form in calls}
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end or len(times["textbook"]) < 3:
            for form, call in calls.items():
                times[form].append(clock(call))
        limits = roofline(
            model, options.batch, options.frames, device, dtype or torch.float32, 1 if mode == "inference" else 3
        )
        medians = {form: statistics.median(values) for form, values in times.items()}
        for form, median in medians.items():
            rate = options.batch / median
            logits = outputs[form]
            yield {
                "width": width,
                "mode": mode,
                "precision": precision,
                "form": form,
                "clips_per_second": round(rate, 1),
                "ratio": round(medians["textbook"] / median, 2),
                "fraction_of_roofline": round(rate / limits["roofline_clips_per_second"], 4),
                "difference": None if logits is None else float((logits - exact).abs().max()),
            } | {key: round(value, 2) for key, value in limits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--widths", type=float, nargs="+", default=[0.4, 1.0, 2.0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16", "bf16"], choices=PRECISIONS)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", action="store_true", help="Print a line of JSON for each row instead of a table.")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device. Give --device cpu for a trial.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    head = {"device": name, "torch": torch.__version__, "batch": options.batch}
    head["front_end_clips_per_second"] = front_end(options.batch, options.frames, device, options.seconds)
    print(
        json.dumps(head)
        if options.json
        else ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in head.items()) + "\n"
    )
    for i, row in enumerate(itertools.chain.from_iterable(measure(width, options, device) for width in options.widths)):
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        if not i:
            print("| " + " | ".join(key.replace("_", " ") for key in row) + " |\n" + "| --- " * len(row) + "|")
        print(
            "| "
            + " | ".join(
                "" if value is None else f"{value:.1e}" if key == "difference" else f"{value}"
                for key, value in row.items()
            )
            + " |"
        )


if __name__ == "__main__":
    main()
