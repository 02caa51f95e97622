"""Saving and loading of networks with their configuration and card, in the style of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dymn.config import ModelCard, ModelConfig
from dymn.errors import ConfigError, WeightsError
from dymn.system.arrays import Array
from dymn.system.extras import needing
from dymn.system.files import temporary_folder
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.format import STORAGE_TYPES, Stored, check_finite, save_folder
from dymn.weights.format import save as save_stored
from dymn.weights.labels import numbered_labels
from dymn.weights.shapes import check_state, compare_shapes

if TYPE_CHECKING:
    from typing_extensions import Self


class Pretrained(nn.Module):
    """A network with its configuration and card."""

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
                f"The card has {len(card.labels)} labels for a network with {self.config.num_classes} classes; there "
                "must be one for each."
            )
        self.__dict__["_card"] = card

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities [..., C]: the sigmoid of each logit or, if the card is `exclusive`, their softmax."""
        return torch.softmax(logits, dim=-1) if self.card.exclusive else torch.sigmoid(logits)

    @classmethod
    def skeleton(cls, config: ModelConfig) -> Self:
        """Build the network without memory for its weights (on PyTorch's meta device), which `fill` provides.

        Raises:
            ConfigError: if the config names parts that do not exist, or sizes that no tensor can have.
        """
        try:
            with torch.device("meta"):
                return cls(config)
        except (KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise ConfigError(f"A network cannot be built from this config: {type(error).__name__} {error}.") from error

    def fill(self, state: Mapping[str, Tensor], source: str = "The state dict") -> Self:
        """Fill a `skeleton` with copies of the weights in `state`, in float32.

        Raises:
            WeightsError: if tensors are missing, extra, of the wrong shape or type, or not finite; the message names
                them.
        """
        expected = self.state_dict()
        given, wanted = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (state, expected))
        compare_shapes(given, wanted, source)
        values = {}
        for name, tensor in expected.items():
            value = state.get(name, torch.zeros((), dtype=torch.int64))
            if value.is_floating_point() != tensor.is_floating_point():
                raise WeightsError(f"{source}: {name} is of type {value.dtype}; {tensor.dtype} is needed.")
            values[name] = value.to(tensor.dtype, copy=True)
        check_finite({name: value.numpy() for name, value in values.items() if name in state}, source)
        self.load_state_dict(values, assign=True)
        return self

    @classmethod
    def from_stored(cls, stored: Stored) -> Self:
        """Build a network with the configuration, weights and card of a checkpoint, in evaluation mode on the CPU.

        Raises:
            WeightsError: if the weights do not fit the configuration.
            ConfigError: if the configuration names parts that do not exist.

        Example:
            >>> model = MobileNet.from_stored(dymn.weights.open_checkpoint("dymn04_open"))
        """
        model = cls.skeleton(stored.config)
        # copies, which can be written to
        state = {name: torch.from_numpy(np.array(values)) for name, values in stored.state.items()}
        model.fill(state, stored.card.name or "The checkpoint")
        model.card = stored.card
        return model.eval()

    def stored(self) -> Stored:
        """Return configuration, card and weights as arrays; float32 weights on the CPU share the network's memory."""
        return Stored(self.config, self.card, {name: as_array(tensor) for name, tensor in self.state_dict().items()})

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder in the Hub's layout: `model.safetensors`, and `README.md` and `config.json` for readers.

        Args:
            directory: the folder, which is created if it does not exist.
            dtype: type in which matrices and kernels are stored; float16 halves the size of the file. Weights are
                loaded in float32.

        Raises:
            WeightsError: if weights are not finite or do not fit the configuration, or the folder cannot be written to.
        """
        save_folder(_checked(self), Path(directory), _name_of(dtype))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str | torch.device | None = "cpu") -> Self:
        """Load a model by name, from a path, or from the Hub ("user/repo"), like `dymn.load_model`.

        Raises:
            WeightsError: if there is no such model, or it cannot be downloaded or does not fit.
        """
        from dymn.system.devices import resolve_device

        place = resolve_device(device)
        return cls.from_stored(open_checkpoint(name_or_path)).to(place)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, dtype: torch.dtype = torch.float32
    ) -> str:
        """Upload the model to "user/repo" on the Hub, in the layout of `save_pretrained`; return the URL of the commit.

        Raises:
            MissingExtraError: if huggingface_hub is not installed.
            WeightsError: if the Hub rejects it or cannot be reached.
        """
        with needing("Uploading to the Hub", "hub"):
            from huggingface_hub import HfApi

        api = HfApi(token=token)
        with temporary_folder() as folder:
            self.save_pretrained(folder, dtype=dtype)
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with dymn"))
            except Exception as error:  # the client's errors have no common base over its versions
                raise WeightsError(
                    f"{repository} cannot be uploaded to the Hub: {error}. Log in with `hf auth login`."
                ) from error


def save(model: Pretrained, path: str | Path, *, dtype: torch.dtype = torch.float32) -> str:
    """Write a model as one `.safetensors` file, like `dymn.weights.format.save`; return the file's SHA-256."""
    return save_stored(_checked(model), path, _name_of(dtype))


def _checked(model: Pretrained) -> Stored:
    """Return what to save; weights and configuration differ when a layer has been replaced, which is an error."""
    stored = model.stored()
    try:
        check_state(stored.state, stored.config, "The network")
    except WeightsError as error:
        raise WeightsError(
            f"{error} To replace the last layer, use model.reset_classifier(labels), which also updates "
            "configuration and card."
        ) from error
    return stored


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as an array; bfloat16, which NumPy does not have, becomes float32."""
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _name_of(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in STORAGE_TYPES:
        raise ConfigError(
            f"dtype is {dtype}; weights are stored as one of {', '.join(f'torch.{name}' for name in STORAGE_TYPES)}."
        )
    return name
