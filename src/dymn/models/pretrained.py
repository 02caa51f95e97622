"""dymn's own checkpoint format, and loading and saving in the style of the Hugging Face Hub.

A checkpoint is one `.safetensors` file. Its metadata holds, as JSON, all that rebuilds the model: the config of the network with
its temperature, and the card (front end, labels, licence, metrics, provenance). A folder for the Hub holds the same file as
`model.safetensors`, beside a readable `README.md` and `config.json` that loading does not need. Files are taken as untrusted: sizes
are bounded, every setting is checked, and no tensor is used before its name and shape fit the config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dymn.config import ModelCard, ModelConfig, from_dict, to_dict
from dymn.errors import ConfigError, MissingExtraError, WeightsError
from dymn.system.files import atomic_write
from dymn.weights.labels import numbered_labels

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
MAX_HEADER = 2**22  # bytes of names, shapes and metadata; a DyMN with AudioSet's labels needs a fiftieth
MAX_FILE = 2**31
MAX_BLOCKS = 256
STORAGE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
COUNTER = "num_batches_tracked"  # of batch norm; nothing depends on it, and published files may lack it


class Stored(NamedTuple):
    """What a checkpoint holds."""

    config: ModelConfig
    card: ModelCard
    state: dict[str, Tensor]
    digest: str  # SHA-256 of the file


class Pretrained(nn.Module):
    """A network that knows its config and card, and can be saved and rebuilt with them."""

    config: ModelConfig

    @property
    def card(self) -> ModelCard:
        """Front end, labels, licence, metrics and provenance; labels are class_0, class_1 ... unless set."""
        card = self.__dict__.get("_card")
        return card if card is not None else ModelCard(labels=numbered_labels(self.config.num_classes))

    @card.setter
    def card(self, card: ModelCard) -> None:
        if len(card.labels) != self.config.num_classes:
            raise ConfigError(
                f"The card has {len(card.labels)} labels for a network of {self.config.num_classes} classes; give one for each."
            )
        self.__dict__["_card"] = card

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of classes [..., C]: a sigmoid of each logit, or a softmax where the card says `exclusive`."""
        return torch.softmax(logits, dim=-1) if self.card.exclusive else torch.sigmoid(logits)

    @classmethod
    def skeleton(cls, config: ModelConfig) -> Self:
        """Build the network without memory for its weights (on PyTorch's meta device), to be given to `fill`.

        Raises:
            ConfigError: if the config names parts that there are not, or sizes that no tensor can have.
        """
        try:
            with torch.device("meta"):
                return cls(config)
        except (KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise ConfigError(f"No network can be built from this config: {type(error).__name__} {error}.") from error

    def fill(self, state: Mapping[str, Tensor], source: str = "The state dict") -> Self:
        """Take copies of the weights in `state`, in float32, in place of those of a `skeleton`.

        Raises:
            WeightsError: if tensors are missing, extra, of the wrong shape or type, or not finite; the message names them.
        """
        expected = self.state_dict()
        missing = [name for name in expected if name not in state and not name.endswith(COUNTER)]
        extra = [name for name in state if name not in expected]
        wrong = [
            f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ]
        problems = [f"{word} {shorten(names)}" for word, names in (("missing", missing), ("extra", extra), ("wrong shape", wrong)) if names]
        if problems:
            raise WeightsError(f"{source} does not fit the network that its config describes: {'; '.join(problems)}.")
        values = {}
        for name, tensor in expected.items():
            value = state.get(name, torch.zeros((), dtype=torch.int64))
            if value.is_floating_point() != tensor.is_floating_point():
                raise WeightsError(f"{source}: {name} is of type {value.dtype}; {tensor.dtype} is needed.")
            values[name] = value.to(tensor.dtype, copy=True)
            if not is_finite(values[name]):
                raise WeightsError(f"{source}: {name} holds values that are not finite. The file is damaged; get it again.")
        self.load_state_dict(values, assign=True)
        return self

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder for the Hub: `model.safetensors`, and `README.md` and `config.json` for people to read.

        Args:
            directory: the folder; made if it is not there.
            dtype: what matrices and kernels are stored as; float16 halves the file. Loading gives float32 again.

        Raises:
            WeightsError: if weights are not finite, or the folder cannot be written to.
        """
        folder = Path(directory)
        digest = save(self, folder / WEIGHTS_FILE, dtype=dtype)
        _write(folder / "config.json", json.dumps(_description(self), indent=2, ensure_ascii=False).encode())
        _write(folder / "README.md", readme(self, digest).encode())

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str | torch.device | None = "cpu") -> Self:
        """Load a model by the name in the registry, by a path, or from the Hub ("user/repo"), like `dymn.load_model`.

        Raises:
            WeightsError: if there is no such model, or it cannot be downloaded or does not fit.
        """
        from dymn.weights.checkpoint import load_model

        model = load_model(name_or_path, device=device)
        if not isinstance(model, cls):
            raise WeightsError(f"{name_or_path} holds a {type(model).__name__}, not a {cls.__name__}.")
        return model

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None, dtype: torch.dtype = torch.float32) -> str:
        """Upload the folder that `save_pretrained` writes to "user/repo" on the Hub; return the address of the commit.

        Raises:
            MissingExtraError: if huggingface_hub is not installed.
            WeightsError: if the Hub refuses it or cannot be reached.
        """
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingExtraError("Uploading to the Hub", "hub") from error

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with dymn"))
            except Exception as error:  # the client's errors have no common base over its versions
                raise WeightsError(f"{repository} cannot be uploaded to the Hub: {error}. Log in with `hf auth login`.") from error


def save(model: Pretrained, path: str | Path, *, dtype: torch.dtype = torch.float32) -> str:
    """Write a model as one `.safetensors` file, all or nothing; return the file's SHA-256.

    Tensors of two and more dimensions are stored as `dtype`, where their values fit; all others as float32.

    Raises:
        ConfigError: if `dtype` is not one of `STORAGE_TYPES`.
        WeightsError: if weights are not finite, or the file cannot be written.
    """
    from safetensors.torch import save as serialise

    if dtype not in STORAGE_TYPES:
        raise ConfigError(f"dtype is {dtype}; weights are stored as one of {', '.join(map(str, STORAGE_TYPES))}.")
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not is_finite(tensor):
            raise WeightsError(f"{path} is not written: {name} holds values that are not finite. The training has diverged.")
        reduced = tensor.to(dtype) if tensor.ndim >= 2 else tensor
        tensors[name] = (reduced if is_finite(reduced) else tensor).detach().cpu().contiguous()
    content = serialise(tensors, {"dymn": json.dumps(_description(model), allow_nan=False)})
    _write(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def read(path: str | Path) -> Stored:
    """Read a `.safetensors` file that `save` wrote, without trusting it. Tensors come as they are stored.

    Raises:
        WeightsError: if the file is missing, damaged, too large, was not written by dymn, or has settings that are not allowed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    content = _content(Path(path))
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(MAX_HEADER, len(content) - 8):
        raise WeightsError(f"{path} is no .safetensors file, or is cut short: its header cannot be {size:,} bytes long.")
    header = _json(content[8 : 8 + size], str(path))
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("dymn"), str):
        raise WeightsError(f"{path} was not written by dymn: it says nothing of its network. Convert the original with `dymn convert`.")
    description = _json(metadata["dymn"], str(path))
    if description.get("format") != FORMAT:
        raise WeightsError(f"{path} has format {description.get('format')!r}; this version reads {FORMAT}. Install a newer dymn.")
    try:
        config = from_dict(ModelConfig, description.get("config", {}))
        card = from_dict(ModelCard, description.get("card", {}))
    except ConfigError as error:
        raise WeightsError(f"{path} describes a network that cannot be: {error}") from error
    if len(config.blocks) > MAX_BLOCKS:
        raise WeightsError(f"{path} describes a network of {len(config.blocks)} blocks; at most {MAX_BLOCKS} are built from a file.")
    if len(card.labels) != config.num_classes:
        raise WeightsError(f"{path} has {len(card.labels)} labels for {config.num_classes} classes. The file is damaged; get it again.")
    try:
        state = deserialise(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged: {error}. Get it again.") from error
    return Stored(config, card, state, hashlib.sha256(content).hexdigest())


def readme(model: Pretrained, digest: str) -> str:
    """Return the model card in Markdown, with the header that the Hub reads."""
    config, card = model.config, model.card
    parameters = sum(parameter.numel() for parameter in model.parameters())
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
            f"{parameters:,} parameters, width {config.width:g}, head {config.head}, kernel attention temperature {config.temperature:g}.",
            f"Input: mono audio at {front_end.sample_rate:,} Hz, {front_end.n_mels} mel bands, one frame each {hop:g} ms.",
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


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A finite sum, which is quick, is proof; only finite values of a vast sum need a closer look."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def shorten(names: list[str], limit: int = 8) -> str:
    """Join names with commas; beyond `limit`, say only how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")


def _description(model: Pretrained) -> dict[str, Any]:
    """Return what the metadata says of a model. The digest of the file that the weights came from becomes their ancestor's."""
    provenance = dict(model.card.provenance)
    if "sha256" in provenance:
        provenance["source_sha256"] = provenance.pop("sha256")
    card = dataclasses.replace(model.card, provenance=provenance)
    return {"format": FORMAT, "config": to_dict(model.config), "card": to_dict(card)}


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Give the path of a checkpoint.")
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise WeightsError(f"{path} has {size:,} bytes; a checkpoint has at most {MAX_FILE:,}.")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _json(text: str | bytes, name: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name} is damaged: its header is not JSON ({error}). Get it again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{name} is damaged: its header is not a JSON object. Get it again.")
    return value


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error
