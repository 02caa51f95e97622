"""Numbers of PyTorch that compiled code must give on a machine without PyTorch.

python platforms/parity.py write FOLDER    with PyTorch: small networks, recordings, and what PyTorch makes of them
python platforms/parity.py check FOLDER    without: compute the same, with each build of the compiled code
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PROBABILITY = 2e-6  # largest difference of a probability
EMBEDDING = 1e-5  # largest difference of an embedding, as a fraction of the embedding's largest value
LOG_MEL = 1e-4
NETWORKS = ("dymn10", "dymn10_replace_se", "mn10")  # in a small form
INSTRUCTIONS = {  # of x86: what each build of the compiled code needs, as Linux names it
    "_native_v3": {"avx2", "fma", "bmi2"},
    "_native_v4": {"avx2", "fma", "bmi2", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd"},
}


def waveforms(n: int = 3, seconds: float = 2.0) -> npt.NDArray[np.float32]:
    """Return noises [n, N] at 32 kHz whose loudness changes every few milliseconds."""
    random = np.random.default_rng(0)
    size = int(32_000 * seconds)
    loudness = np.repeat(10.0 ** random.integers(-3, 0, (n, size // 100)), 100, axis=1)
    return (loudness * random.normal(size=(n, size)) * 0.2).astype(np.float32)


def write(folder: Path) -> None:
    """Write `NAME.safetensors` and `NAME.npz` for each of `NETWORKS`, and for the network that dymn contains."""
    import shutil

    import torch

    from dymn import LogMel, create_model, load_model
    from dymn.config import ModelCard
    from dymn.weights import REGISTRY
    from dymn.weights.published import fetch_published

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from lively import lively

    folder.mkdir(parents=True, exist_ok=True)
    clips = torch.randn(6, 1, 128, 50, generator=torch.Generator().manual_seed(0))
    for name in NETWORKS:
        model = lively(create_model(name, 9, width=0.1, generator=torch.Generator().manual_seed(0)), clips)
        model.card = ModelCard(name=name, labels=tuple(f"sound {i}" for i in range(9)), exclusive=name == "mn10")
        model.save_pretrained(folder / name)
        shutil.move(folder / name / "model.safetensors", folder / f"{name}.safetensors")
        shutil.rmtree(folder / name)
    for name, model in REGISTRY.items():
        if model.packaged:
            shutil.copy(fetch_published(model).path, folder / f"{name}.safetensors")
    for path in sorted(folder.glob("*.safetensors")):
        model = load_model(path)
        with torch.no_grad():
            log_mel = LogMel(model.card.front_end)(torch.from_numpy(waveforms()))
            logits, embedding = model(log_mel)
            probabilities = logits.softmax(-1) if model.card.exclusive else logits.sigmoid()
        np.savez(
            path.with_suffix(".npz"),
            log_mel=log_mel.numpy(),
            probabilities=probabilities.numpy(),
            embedding=embedding.numpy(),
        )


def numbers(backend: Any, sounds: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Return log-mel spectrograms, probabilities and embeddings of recordings [B, N]."""
    log_mel = backend.waveform_features(sounds)
    output = backend.run(log_mel)
    return {"log_mel": log_mel, "probabilities": output.probabilities, "embedding": output.embedding}


def check(folder: Path) -> int:
    """Compare every network of a folder with PyTorch's numbers, and the builds with the processor.

    Return the number of failures.
    """
    assert "torch" not in sys.modules
    from dymn import native
    from dymn.runtime.opening import open_backend

    builds = list(native.libraries())
    print(f"{platform.machine()}, Python {platform.python_version()}, compiled code: {', '.join(builds) or 'none'}")
    wrong = [
        f"{build} is not used, though this processor has its instructions" for build in missing_builds(set(builds))
    ]
    wrong += [] if builds else ["there is no compiled code"]
    for build in builds:
        native.BUILDS = (build,)
        native.libraries.cache_clear()
        for path in sorted(folder.glob("*.npz")):
            start = time.perf_counter()
            found = numbers(open_backend(path.with_suffix(".safetensors"), backend="compiled"), waveforms())
            seconds = time.perf_counter() - start
            expected = np.load(path)
            bounds = {
                "log_mel": LOG_MEL,
                "probabilities": PROBABILITY,
                "embedding": EMBEDDING * np.abs(expected["embedding"]).max(),
            }
            errors = {key: float(np.abs(found[key] - expected[key]).max()) for key in bounds}
            listed = ", ".join(f"{key} {error:.1e}" for key, error in errors.items())
            line = f"{build:10}  {path.stem:18}  {listed}  ({seconds:.1f} s)"
            print(line, flush=True)
            wrong += [line] if any(errors[key] > bound for key, bound in bounds.items()) else []
    assert "torch" not in sys.modules, "PyTorch was imported"
    print(*(f"WRONG: {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
    return len(wrong)


def missing_builds(found: set[str]) -> list[str]:
    """Return the builds that this processor can run and that are not among those found; Linux on x86 only."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        return []
    (flags, *_) = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return [build for build, needed in INSTRUCTIONS.items() if needed <= set(flags.split()) and build not in found]


if __name__ == "__main__":
    action, place = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        os.environ["DYMN_NATIVE"] = "0"  # PyTorch alone
        write(place)
    else:
        os.environ.setdefault("DYMN_CACHE", str(place / "cache"))
        sys.exit(check(place))
