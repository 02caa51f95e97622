"""Tables of teacher logits: those of one model, or the mean of several, for a whole dataset (Sec. IV-A)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dymn.data.batch import check_bad
from dymn.data.cache import Progress
from dymn.data.loader import Loader
from dymn.data.samplers import PlainSampler
from dymn.data.source import Source
from dymn.data.teacher import TeacherTable, write_table
from dymn.errors import ConfigError, DataError
from dymn.evaluation.assess import Learned, agreed, learned_from
from dymn.models.frontend import LogMel
from dymn.system.files import atomic_write, remove_folder

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

logger = logging.getLogger(__name__)

USUAL = 10.0  # seconds that published models were trained with


class Teacher(NamedTuple):
    """A model with its front end."""

    name: str
    digest: str
    front_end: LogMel
    model: MobileNet


class Ensemble:
    """The mean of the logits of one or more models; each receives its own spectrogram of the same waveforms."""

    def __init__(self, models: Sequence[str | Path | MobileNet], device: str | torch.device = "cpu") -> None:
        """Load the models.

        Args:
            models: names, paths, or networks in memory (which are set to evaluation mode).
            device: where they run.

        Raises:
            ConfigError: if there are none, or their classes, their kind (softmax or sigmoid) or sample rates differ.
        """
        if not models:
            raise ConfigError("A teacher needs at least one model.")
        self.device = torch.device(device)
        self.teachers = [_load(model, self.device) for model in models]
        first = self.teachers[0].model.card
        self.labels, self.sample_rate = tuple(first.labels), first.front_end.sample_rate
        self.exclusive = first.exclusive
        for teacher in self.teachers[1:]:
            card = teacher.model.card
            own = tuple(card.labels), card.exclusive, card.front_end.sample_rate
            if own != (self.labels, first.exclusive, self.sample_rate):
                raise ConfigError(
                    f"{teacher.name} and {self.teachers[0].name} differ in their classes, in whether these are "
                    "exclusive (a softmax), or in sample rate; they must be equal in an ensemble."
                )

    @property
    def models(self) -> tuple[dict[str, str], ...]:
        """Name and digest of every model."""
        return tuple({"name": teacher.name, "sha256": teacher.digest} for teacher in self.teachers)

    def learned(self, seconds: float | None = None, fill: str | None = None) -> Learned:
        """Return length and filling of clips in the models' training, unless `seconds` and `fill` are given.

        The length is 0 if their cards do not state it.

        Raises:
            ConfigError: if the models were trained with different ones.
        """
        compared = [name for name, value in (("seconds", seconds), ("fill", fill)) if not value]
        cards = [learned_from(teacher.model) for teacher in self.teachers]
        common = agreed([teacher.name for teacher in self.teachers], cards, compared)
        return Learned(seconds or common.seconds, fill or common.fill)

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the mean logits [B, C] of waveforms [B, N]."""
        waveform = waveform.to(self.device)
        return torch.stack([teacher.model(teacher.front_end(waveform)).logits for teacher in self.teachers]).mean(0)


def teach(
    source: Source,
    models: Sequence[str | Path | MobileNet] | Ensemble,
    out: str | Path,
    *,
    seconds: float | None = None,
    fill: str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str | torch.device = "cpu",
    max_bad: float = 0.05,
    progress: Progress | None = None,
) -> TeacherTable:
    """Write the logits of all clips of a source to `out` and return them as a table.

    Clips are cut at the end or filled to `seconds`. Intermediate results are stored in a folder next to `out`; after an
    interruption, a call with the same data, models and settings resumes. Unreadable clips are left out and logged.

    Args:
        source: the whole dataset, or at least all training clips.
        models: names, paths, networks in memory, or an ensemble.
        out: the .safetensors file.
        seconds: length of the clips; by default, the length used in the models' training, or 10 if it is unknown.
        fill: "pad" (with zeros) or "repeat", for shorter clips; by default, as in the models' training, or "pad" if
            unknown.
        batch_size: number of clips per batch.
        workers: number of processes that decode clips.
        device: device of the models.
        max_bad: maximum share of clips that cannot be read.
        progress: called with the number of processed clips and their total.

    Raises:
        ConfigError: if the models differ in classes or sample rate from each other or the data, or were trained with
            clips of different lengths or filling, which are not given as arguments.
        DataError: if too many clips cannot be read, or none is left.
        OSError: if `out` cannot be written.
    """
    out = Path(out)
    ensemble = models if isinstance(models, Ensemble) else Ensemble(models, device)
    if ensemble.sample_rate != source.sample_rate:
        raise ConfigError(
            f"The models expect {ensemble.sample_rate} Hz, but the dataset is read at {source.sample_rate} Hz."
        )
    learned = ensemble.learned(seconds, fill)
    seconds, fill = learned.seconds or USUAL, learned.fill
    settings: dict[str, Any] = {"seconds": seconds, "fill": fill, "sample_rate": source.sample_rate}
    identity = json.dumps([source.digest, ensemble.models, ensemble.labels, settings])
    out.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(out.with_name(f"{out.name}.part"), hashlib.sha256(identity.encode()).hexdigest(), len(ensemble.labels))
    n = len(source)
    if part.done < n:
        rest = source.where(range(part.done, n)) if part.done else source
        loader = Loader(
            rest,
            PlainSampler(len(rest), shuffle=False),
            batch_size,
            seconds=seconds,
            crop="start",
            fill=fill,
            workers=workers,
            max_bad=1.0,
        )
        for collated in loader.collated(0):
            keys, logits = [], np.zeros((0, len(ensemble.labels)), dtype=np.float16)
            if collated.batch is not None:
                keys, logits = collated.batch.keys, _half(ensemble(collated.batch.waveform))
            part.add(
                keys, logits, collated.fingerprints, {clip.key: clip.reason for clip in collated.bad}, collated.cut
            )
            check_bad(part.bad, n, max_bad)
            if progress is not None:
                progress(part.done, n)
    kept, table, fingerprints = part.content()
    if not kept:
        raise DataError("No clip could be read.")
    made = write_table(
        out,
        kept,
        ensemble.labels,
        table,
        fingerprints,
        models=ensemble.models,
        source_digest=source.digest,
        settings={
            **settings,
            "left_out": sorted(part.bad),
            "longer": part.longer,
            "exclusive": ensemble.exclusive,
        },
    )
    del table
    part.remove()
    return made


def state_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.ndim
            else str(tensor.item()).encode()
        )
    return digest.hexdigest()


class _Part:
    """A table in the making: appended to, and consistent whenever the process is killed."""

    def __init__(self, folder: Path, identity: str, classes: int) -> None:
        self.folder, self.identity, self.classes = folder, identity, classes
        self.done, self.keys, self.bad, self.longer = 0, list[str](), dict[str, str](), 0
        state = self._state()
        if state is None:
            remove_folder(folder)
            folder.mkdir()
            for name in ("logits", "fingerprints", "keys"):
                (folder / name).touch()
            return
        for name, size in self._sizes(state).items():
            os.truncate(folder / name, size)
        self.keys = self._keys(state)
        self.done, self.bad, self.longer = state["done"], state["bad"], int(state.get("longer", 0))
        logger.info("Resuming after %d clips.", self.done)

    def _state(self) -> dict[str, Any] | None:
        """Return what was done, or None to start over, with a warning if there is something that cannot be used."""
        if not (self.folder / "state.json").exists():
            return None
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if state["identity"] != self.identity:
                logger.warning(
                    "%s belongs to another dataset, other models or other settings; starting over.", self.folder
                )
                return None
            sizes = self._sizes(state)
            whole = all((self.folder / name).stat().st_size >= size for name, size in sizes.items())
            if whole and len(self._keys(state)) == int(state["kept"]):
                return state
        except (OSError, ValueError, KeyError, TypeError):
            pass
        logger.warning("%s is incomplete; starting over.", self.folder)
        return None

    def _keys(self, state: dict[str, Any]) -> list[str]:
        content = (self.folder / "keys").read_bytes()[: int(state["key_bytes"])]
        return [json.loads(line) for line in content.decode().splitlines()]

    def _sizes(self, state: dict[str, Any]) -> dict[str, int]:
        kept = int(state["kept"])
        return {"logits": kept * self.classes * 2, "fingerprints": kept * 8, "keys": int(state["key_bytes"])}

    def add(
        self,
        keys: Sequence[str],
        logits: npt.NDArray[np.float16],
        fingerprints: Sequence[int],
        bad: dict[str, str],
        longer: int,
    ) -> None:
        """Append the results of a batch, which then survive a kill; a `DataError` if the disk is full."""
        contents = {
            "logits": logits.tobytes(),
            "fingerprints": np.array(fingerprints, dtype=np.int64).tobytes(),
            "keys": "".join(json.dumps(key) + "\n" for key in keys).encode(),
        }
        self.longer += longer
        try:
            for name, content in contents.items():
                with (self.folder / name).open("ab") as file:
                    file.write(content)
            self.keys += keys
            self.bad.update(bad)
            self.done += len(keys) + len(bad)
            state = {
                "identity": self.identity,
                "done": self.done,
                "kept": len(self.keys),
                "key_bytes": (self.folder / "keys").stat().st_size,
                "bad": self.bad,
                "longer": self.longer,
            }
            with atomic_write(self.folder / "state.json") as file:
                file.write(json.dumps(state).encode())
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written: {error}. Free some space; the same command resumes."
            ) from error

    def content(self) -> tuple[list[str], npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        """Return names, logits (memory-mapped) and fingerprints."""
        if not self.keys:
            return [], np.zeros((0, self.classes), dtype=np.float16), np.zeros(0, dtype=np.int64)
        logits = np.memmap(self.folder / "logits", np.float16, mode="r", shape=(len(self.keys), self.classes))
        return self.keys, logits, np.fromfile(self.folder / "fingerprints", dtype=np.int64)

    def remove(self) -> None:
        """Delete the folder."""
        remove_folder(self.folder)


def _load(model: str | Path | MobileNet, device: torch.device) -> Teacher:
    from dymn.weights import load_model

    network = load_model(model, device=device) if isinstance(model, (str, Path)) else model.to(device).eval()
    network.check_clips()
    return Teacher(
        network.card.name or (Path(model).name if isinstance(model, (str, Path)) else "in memory"),
        state_digest(network),
        LogMel(network.card.front_end).to(device),
        network,
    )


def _half(logits: Tensor) -> npt.NDArray[np.float16]:
    half: npt.NDArray[np.float16] = logits.to(torch.float16).cpu().numpy()
    if not np.isfinite(half).all():
        raise DataError("Logits of the teacher are not finite in float16. Check the model.")
    return half
