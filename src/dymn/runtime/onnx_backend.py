"""A network in an ONNX file, computed by ONNX Runtime; PyTorch is not imported."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dymn.config import ModelCard, check, check_number, from_dict
from dymn.errors import ConfigError, WeightsError
from dymn.runtime.backend import Backend, BackendOutput, FrameOutput
from dymn.runtime.onnx_files import MAX_FILE, check_onnx
from dymn.system.arrays import Floats
from dymn.system.cpus import default_threads
from dymn.system.extras import needing
from dymn.weights.download import cache_folder
from dymn.weights.files import read_file

MAX_METADATA = 2**20


def cached_path(name: str) -> Path:
    """Return where `dymn export` writes the file of a model by default."""
    safe = re.sub(r"[^\w.+-]", "_", name)
    return cache_folder() / "onnx" / f"{safe}.onnx"


def find_file(model: str | Path) -> Path:
    """Return the ONNX file of a path or of a model's name, or raise a `WeightsError` if there is none."""
    path, remedy = Path(model), "Check the path."
    if path.suffix != ".onnx":
        path, remedy = cached_path(str(model)), f"Write it with: dymn export {model}"
    if not path.is_file():
        raise WeightsError(f"There is no ONNX file {path}. {remedy}")
    return path


class OnnxBackend(Backend):
    """A file written by `dymn export`, which takes waveforms or log-mel spectrograms.

    Attributes:
        input: "waveform" or "log-mel".
        seconds: the length of a clip, or None if any length is allowed.
        embedding_size: number of values of an embedding.
        exported_from: SHA-256 of the checkpoint that was exported; empty if that was none.
    """

    def __init__(self, source: str | Path | bytes, threads: int | None = None) -> None:
        """Open a file, or its content.

        Args:
            source: a path, or the bytes of a file.
            threads: number of CPU threads of ONNX Runtime; None is one for each CPU that may be used.

        Raises:
            MissingExtraError: if onnxruntime is not installed.
            ConfigError: if `threads` is below 1.
            WeightsError: if there is no such file, or it was not written by `dymn export`.
        """
        n_threads = default_threads(threads)
        self._names: tuple[str, ...] = ("probabilities", "logits", "embedding")
        with needing("Running ONNX files", "onnx"):
            import onnxruntime
        name = "The file" if isinstance(source, bytes) else str(source)
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise WeightsError(f"There is no file {name}. Write one with: dymn export MODEL -o FILE.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = n_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait sleep
        if isinstance(source, bytes):
            content, digest = source, hashlib.sha256(source).hexdigest()
        else:
            _, _, digest, content = read_file(Path(source), MAX_FILE)
        check_onnx(content, name)
        try:
            # Without its fallback, which prints what is in the file and tries the same again.
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            text = self._session.get_modelmeta().custom_metadata_map.get("dymn", "")
            self._input = self._session.get_inputs()[0]
            self._one_by_one = not isinstance(self._input.shape[0], str)
            self.embedding_size = next(
                int(output.shape[1]) for output in self._session.get_outputs() if output.name == "embedding"
            )
        except Exception as error:  # it raises many kinds
            raise WeightsError(f"{name} cannot be opened by ONNX Runtime: {str(error)[:300]}") from error
        try:
            check(0 < len(text) <= MAX_METADATA, "it has no valid metadata under the key dymn")
            described: dict[str, Any] = json.loads(text)
            card = from_dict(ModelCard, described["card"])
            self.exported_from = str(card.provenance.get("sha256", ""))
            self.card = dataclasses.replace(card, provenance=card.provenance | {"sha256": digest})
            self.input = str(described["input"])
            self.seconds = None if described["seconds"] is None else float(described["seconds"])
            check(self.input in ("waveform", "log-mel"), f"its input is {self.input!r:.80}")
            check(self.seconds is None or 0 < self.seconds <= 3600, "its length is not valid")
            self._frame_samples: int | None = described.get("frame_samples")
            if self._frame_samples is not None:
                check_number("frame_samples", self._frame_samples, 1, 2**31, whole=True)
                check(self.seconds is not None, "its length is not valid")
                self.frame_seconds = self.seconds
                self._names = (*self._names, "frames")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WeightsError(f"{name} was not written by dymn export: {error}.") from error

    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, C] and embeddings [B, D] of windows [B, N] at `sample_rate`; see `Backend.run`.

        Raises:
            ConfigError: if the file takes clips of another length, or log-mel spectrograms.
        """
        probabilities, _, embedding, *_ = self.outputs(self._fitting(features))
        return BackendOutput(probabilities, embedding)

    @property
    def frame_samples(self) -> int:
        """The number of samples between two frames; a `ConfigError` if the network is not frame-wise."""
        if self._frame_samples is None:
            raise self._no_frames()
        return self._frame_samples

    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """See `Backend.frame_run`; a `ConfigError` if the network is not frame-wise, or clips do not fit."""
        if self._frame_samples is None:
            raise self._no_frames()
        probabilities, _, embedding, frames = self.outputs(self._fitting(features))
        return self.checked(FrameOutput(frames, probabilities, embedding))

    def outputs(self, values: Floats) -> tuple[Floats, ...]:
        """Return probabilities [B, C], logits [B, C] and embedding [B, D] of the file's own input.

        Of a frame-wise network, the probabilities of frames [B, T, C] follow. The input is [B, N] or [B, 1, F, T].

        Raises:
            ConfigError: if the shape is not what the file takes.
            WeightsError: if the outputs are not probabilities of the file's labels.
        """
        batches = [values[i : i + 1] for i in range(len(values))] if self._one_by_one else [values]
        try:
            found = [self._session.run(self._names, {self._input.name: batch}) for batch in batches]
            outputs = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
        except Exception as error:  # ONNX Runtime raises many kinds
            raise ConfigError(
                f"This file expects the shape {self._input.shape}, not {list(values.shape)}: {str(error)[:200]}"
            ) from error
        self.checked(BackendOutput(outputs[0], outputs[2]))
        return outputs

    def _fitting(self, samples: Floats) -> Floats:
        """Return windows [B, N] as the file takes them."""
        check(
            self.input == "waveform",
            "This file expects log-mel spectrograms. Export one with --input waveform for recordings.",
        )
        if self.seconds is not None:
            wanted = round(self.seconds * self.sample_rate)
            if samples.shape[1] != wanted:
                given = samples.shape[1] / self.sample_rate
                remedy = "Export one with --dynamic-time." if self.frame_seconds is None else "Use dymn events."
                raise ConfigError(f"This file expects windows of {self.seconds} s, not {given:.3f} s. {remedy}")
        shortest = self.front_end.n_fft // 2 + 2
        return np.pad(samples, ((0, 0), (0, max(0, shortest - samples.shape[1]))))
