"""dymn's own checkpoint format: NumPy arrays with everything needed to rebuild the model.

A checkpoint is one `.safetensors` file. Its metadata contain, as JSON, the configuration of the network with its
temperature, and the card (front end, labels, licence, metrics, provenance). Files are untrusted input: sizes are
bounded, every setting is checked, and no array is used before its name and shape fit the configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import ModelCard, ModelConfig, from_dict, to_dict
from dymn.errors import ConfigError, UnknownModelError, WeightsError
from dymn.system.arrays import LEAST_IN_8_BITS, Array
from dymn.weights.files import MAX_FILE, WeightsFile, read_file, write_file

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"  # in the folder of a run of `dymn train`
SAFETENSORS = ".safetensors"
MAX_HEADER = 2**22  # bytes of names, shapes and metadata; a DyMN with AudioSet's labels needs a fiftieth
MAX_BLOCKS = 256
STORAGE_TYPES = ("float32", "float16", "bfloat16", "int8")
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I8": np.int8}
SCALE = ".scale"  # ends the name of the array that an 8-bit one is multiplied with
LARGEST = 127  # of 8 bits, with sign; -128 is not used
COUNTER = "num_batches_tracked"  # of batch norm; nothing depends on it, and published files may lack it
BUFFERS = (COUNTER, "running_mean", "running_var", "frequencies")  # ends of names of arrays that no optimiser changes


class Stored(NamedTuple):
    """The content of a checkpoint.

    `state` maps names of parameters and buffers to arrays, which are float32 or integers; `digest` is the SHA-256 of
    the file.
    """

    config: ModelConfig
    card: ModelCard
    state: Mapping[str, Array]
    digest: str = ""


def save(stored: Stored, path: str | Path, dtype: str = "float32") -> str:
    """Write a checkpoint atomically as one `.safetensors` file; return the file's SHA-256.

    Arrays of two and more dimensions are stored as `dtype` where their values fit; all others as float32. With "int8",
    every output channel (of every kernel, in a dynamic convolution) has a scale, which maps its largest weight to 127.
    Arrays of fewer than `LEAST_IN_8_BITS` values are stored in half precision.

    Raises:
        ConfigError: if `dtype` is not one of `STORAGE_TYPES`.
        WeightsError: if weights are not finite, or the file cannot be written.
    """
    if dtype not in STORAGE_TYPES:
        raise ConfigError(f"dtype is {dtype}; weights are stored as one of {', '.join(STORAGE_TYPES)}.")
    entries = {}
    for name, values in stored.state.items():
        if not is_finite(values):
            raise WeightsError(
                f"{path} was not written: {name} contains values that are not finite. The training has diverged."
            )
        wanted = dtype if values.ndim >= 2 else "float32"
        if wanted == "int8" and values.size < LEAST_IN_8_BITS:
            wanted = "float16"
        if wanted == "int8":
            entries[name], entries[name + SCALE] = _in_8_bits(values)
        else:
            entries[name] = _reduced(values, wanted)
    written = serialise(entries, {"dymn": json.dumps(description(stored), allow_nan=False)})
    write_file(Path(path), written)
    return hashlib.sha256(written).hexdigest()


def _reduced(values: Array, dtype: str) -> tuple[str, Array]:
    """Return a key of `DTYPES`, and values [...] as that type: the one wanted where they fit it, else as they are."""
    if not np.issubdtype(values.dtype, np.floating):
        return "I64", values.astype(np.int64)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if is_finite(half):
            return "F16", half
    if values.dtype == np.float64:
        return "F64", values
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "bfloat16":
        bits = single.view(np.uint32)
        rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)  # to nearest, ties to even
        if is_finite(from_bfloat16(rounded)):
            return "BF16", rounded
    return "F32", single


def _in_8_bits(values: Array) -> tuple[tuple[str, Array], tuple[str, Array]]:
    """Return weights [..., C_out, C_in / groups, *kernel] in 8 bits, and their scales [..., C_out, 1, ...]."""
    axes = tuple(range(max(1, values.ndim - 3), values.ndim))
    step = (np.abs(values).max(axis=axes, keepdims=True, initial=0.0) / LARGEST).astype(np.float32)
    scale = np.where(step > 0, step, np.float32(1))
    return ("I8", np.rint(values / scale).clip(-LARGEST, LARGEST).astype(np.int8)), ("F32", scale)


def serialise(arrays: Mapping[str, tuple[str, Array]], metadata: Mapping[str, str]) -> bytes:
    """Return arrays, each with a key of `DTYPES`, as the bytes of a `.safetensors` file, wide types first."""
    names = sorted(arrays, key=lambda name: (-arrays[name][1].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, end = [], 0
    for name in names:
        kind, values = arrays[name]
        parts.append(np.ascontiguousarray(values).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """Convert bfloat16 numbers, given as 16-bit integers, to float32, of which they are the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read(source: str | Path | WeightsFile) -> Stored:
    """Read a `.safetensors` file that `save` wrote, without trusting it; arrays are converted to float32.

    Raises:
        WeightsError: if the file is missing, damaged, too large, was not written by dymn, or has settings that are not
            allowed.
    """
    path, _, digest, content = source if isinstance(source, WeightsFile) else read_file(Path(source))
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(MAX_HEADER, len(content) - 8):
        raise WeightsError(
            f"{path} is not a .safetensors file, or is truncated: its header cannot be {size:,} bytes long."
        )
    header = _json(content[8 : 8 + size], str(path))
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("dymn"), str):
        raise WeightsError(
            f"{path} was not written by dymn: it does not describe its network. Convert the original with `dymn "
            "convert`."
        )
    described = _json(metadata["dymn"], str(path))
    if described.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {described.get('format')!r}; this version reads {FORMAT}. Install a newer dymn."
        )
    try:
        config = from_dict(ModelConfig, described.get("config", {}))
        card = from_dict(ModelCard, described.get("card", {}))
    except ConfigError as error:
        raise WeightsError(f"{path} describes an invalid network: {error}") from error
    if len(config.blocks) > MAX_BLOCKS:
        raise WeightsError(
            f"{path} describes a network of {len(config.blocks)} blocks; at most {MAX_BLOCKS} are supported."
        )
    if len(card.labels) != config.num_classes:
        raise WeightsError(
            f"{path} has {len(card.labels)} labels for {config.num_classes} classes. The file is damaged; copy or "
            "download it again."
        )
    try:
        state = _arrays(
            {name: entry for name, entry in header.items() if name != "__metadata__"}, memoryview(content)[8 + size :]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {error}. Copy or download it again.") from error
    return Stored(config, card, state, digest)


def _arrays(entries: Mapping[str, Any], content: memoryview) -> dict[str, Array]:
    """Return the arrays that a file's header describes, which must be contiguous in its content."""
    found, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if (
            kind not in DTYPES
            or len(shape) > 8
            or not all(type(n) is int and 0 <= n <= MAX_FILE for n in (*shape, start, stop))
        ):
            raise ValueError(
                f"{name:.100} is {kind!s:.20} {shape!s:.100}; allowed are the types {', '.join(DTYPES)} and up to 8 "
                "sizes"
            )
        values = np.frombuffer(content[start:stop], DTYPES[kind])
        if start != end or stop > len(content) or values.size != math.prod(shape):
            raise ValueError(f"{name:.100} {shape} does not fit the bytes {start} to {stop}")
        end = stop
        values = values.reshape(shape)
        found[name] = from_bfloat16(values) if kind == "BF16" else values if kind == "I64" else as_float32(values)
    if end != len(content):
        raise ValueError(f"{len(content) - end:,} bytes after its last array are not used")
    for name in [name for name, entry in entries.items() if entry["dtype"] == "I8"]:
        scale = found.pop(name + SCALE)
        if scale.ndim != found[name].ndim or np.broadcast_shapes(scale.shape, found[name].shape) != found[name].shape:
            raise ValueError(f"the scales of {name:.100} have the shape {scale.shape}, its weights {found[name].shape}")
        found[name] = as_float32(found[name] * scale)
    return found


def as_float32(values: Array) -> Array:
    """Convert numbers to float32; numbers that do not fit become infinite, which all readers reject."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def check_finite(state: Mapping[str, Array], source: str) -> None:
    """Raise a `WeightsError`, which names the first such array, if weights are infinite or NaN."""
    for name, values in state.items():
        if not is_finite(values):
            raise WeightsError(
                f"{source}: {name} contains values that are not finite. The file is damaged; copy or download it again."
            )


def description(stored: Stored) -> dict[str, Any]:
    """Return the metadata that describe a model; the digest of its file becomes that of its ancestor."""
    provenance = dict(stored.card.provenance)
    if "sha256" in provenance:
        provenance["source_sha256"] = provenance.pop("sha256")
    card = dataclasses.replace(stored.card, provenance=provenance)
    return {"format": FORMAT, "config": to_dict(stored.config), "card": to_dict(card)}


def save_folder(stored: Stored, folder: Path, dtype: str = "float32") -> str:
    """Write `model.safetensors`, `README.md` and `config.json` in the Hub's layout; return the weights' digest.

    Raises:
        ConfigError, WeightsError: as `save` does.
    """
    digest = save(stored, folder / WEIGHTS_FILE, dtype)
    write_file(folder / "config.json", json.dumps(description(stored), indent=2, ensure_ascii=False).encode())
    write_file(folder / "README.md", readme(stored, digest).encode())
    return digest


def file_in(folder: Path) -> Path:
    """Return `model.safetensors`, a run's `best.safetensors` or the only such file; else an `UnknownModelError`."""
    for name in (WEIGHTS_FILE, BEST_FILE):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(files) != 1:
        found = f"{len(files)} {SAFETENSORS} files, such as {files[0].name}" if files else f"no {SAFETENSORS} file"
        raise UnknownModelError(
            f"The folder {folder} contains {found}; give the path of a file, or a folder with {WEIGHTS_FILE}."
        )
    return files[0]


def readme(stored: Stored, digest: str) -> str:
    """Return the model card in Markdown, with the header that the Hub reads."""
    config, card = stored.config, stored.card
    parameters = sum(values.size for name, values in stored.state.items() if not name.endswith(BUFFERS))
    front_end = card.front_end
    hop = 1000 * front_end.hop_length / front_end.sample_rate
    classes = ", ".join(card.labels[:5]) + (" …" if len(card.labels) > 5 else "")
    facts = {"sha256": digest, **card.metrics, **{k: v for k, v in card.provenance.items() if k != "sha256"}}
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
    return "\n".join(
        [
            "---",
            "library_name: dymn",
            f"license: {json.dumps(card.licence.lower() or 'unknown')}",
            "pipeline_tag: audio-classification",
            "tags: [audio, audio-tagging, dymn]",
            "---",
            "",
            f"# {card.name or 'dymn model'}",
            "",
            f"{parameters:,} parameters, width {config.width:g}, head {config.head}, kernel attention temperature "
            f"{config.temperature:g}.",
            f"Input: mono audio at {front_end.sample_rate:,} Hz, {front_end.n_mels} mel bands, one frame every {hop:g} "
            "ms.",
            f"{config.num_classes} classes: {classes}",
            "",
            "```python",
            "import dymn",
            "",
            'tagger = dymn.Tagger.from_pretrained("PATH")  # this folder, or its name on the Hub',
            'tags = tagger.tag("recording.wav")',
            "```",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def is_finite(values: Array) -> bool:
    """Return whether all values are finite. A finite sum proves this quickly; otherwise each value is checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum(dtype=None if values.dtype != np.float16 else np.float32))) or bool(
            np.isfinite(values).all()
        )


def shorten(names: Iterable[str], limit: int = 8) -> str:
    """Join names with commas; beyond `limit`, state only the number of the others."""
    listed = list(names)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")


def _json(text: str | bytes, name: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{name} is damaged: its header is not JSON ({error}). Copy or download it again."
        ) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{name} is damaged: its header is not a JSON object. Copy or download it again.")
    return value
