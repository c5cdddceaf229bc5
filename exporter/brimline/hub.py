"""A model of the Hugging Face hub: its config.json and the headers of its weights, which stay where they are.

Asked only where the user allows it. huggingface_hub comes with the extra `hub` and is imported when it is
needed; it keeps config.json in its cache and takes HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE from the
environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brimline.errors import FootprintError
from brimline.extras import install_command
from brimline.footprint.config_file import MAX_CONFIG_BYTES, read_config
from brimline.footprint.hf_config import (
    QUANTIZATION_FILE,
    architecture_of_config,
    wants_quantization,
    with_quantization,
)
from brimline.footprint.predict import Model
from brimline.footprint.safetensors import DTYPE_BITS, StoredTensor
from brimline.footprint.weights import DTYPE_BYTES, StoredWeights, stored_in_safetensors

if TYPE_CHECKING:
    from brimline.footprint.architecture import Architecture

# Names as the hub allows them, with a branch, tag or commit behind @.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?:@[\w./-]{1,128})?")


def is_hub_name(text: str) -> bool:
    """True for what can be a model of the hub, such as org/name or org/name@revision."""
    return _NAME.fullmatch(text) is not None


def read_hub_model(name: str) -> Model:
    """A model of the hub, of which only config.json and the headers of its weights are read.

    Raises FootprintError without the extra, where the hub cannot be reached or refuses, and where the model
    has no config.json.
    """
    repository, _, revision = name.partition("@")
    wanted = revision or None
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise FootprintError(
            f"{name} is looked up by huggingface_hub, which is not installed; "
            f"install the extra in a clone of this repository: {install_command('hub')}"
        ) from None
    disable_progress_bars()
    with _refusals(name):
        config = _settings(name, repository, wanted, "config.json")
    if wants_quantization(config):
        config = _with_quantization_beside(config, name, repository, wanted)
    architecture = architecture_of_config(config, f"config.json of {name}")
    if architecture.encoders and not _is_offline():
        import huggingface_hub

        with _refusals(name):
            both = all(
                huggingface_hub.file_exists(repository, file_name, revision=wanted)
                for file_name in ("params.json", "consolidated.safetensors")
            )
        architecture = replace(architecture, mistral_format=both)
    return Model(architecture, _stored(name, repository, wanted, architecture), config)


def _settings(name: str, repository: str, revision: str | None, file: str) -> dict[str, Any]:
    """The settings in a file of the hub. Raises FootprintError, and what the hub's own library raises."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    size = None if _is_offline() else huggingface_hub.get_hf_file_metadata(url).size
    if size is not None and size > MAX_CONFIG_BYTES:
        raise FootprintError(f"{name}: its {file} is too large for one")
    return read_config(Path(huggingface_hub.hf_hub_download(repository, file, revision=revision)))


def _with_quantization_beside(
    config: dict[str, Any], name: str, repository: str, revision: str | None
) -> dict[str, Any]:
    """The settings with those of an hf_quant_config.json, where the model has one."""
    from huggingface_hub import errors

    with _refusals(name):
        try:
            beside = _settings(name, repository, revision, QUANTIZATION_FILE)
        except errors.EntryNotFoundError:  # without the hub: it is not in the cache, either
            return config
    return with_quantization(config, beside)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _stored(
    name: str, repository: str, revision: str | None, architecture: Architecture
) -> StoredWeights | None:
    """What the headers of its weights add up to; None where they are no safetensors."""
    import huggingface_hub
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    if _is_offline():
        return None
    with _refusals(name):
        try:
            found = huggingface_hub.get_safetensors_metadata(repository, revision=revision)
        except NotASafetensorsRepoError:
            return None
        except SafetensorsParsingError as error:
            raise FootprintError(f"{name}: the headers of its weights cannot be read ({error})") from None
    tensors = []
    for file, metadata in found.files_metadata.items():
        for key, tensor in metadata.tensors.items():
            if tensor.dtype not in DTYPE_BITS:
                raise FootprintError(
                    f"{name}: {file}: {key[:80]!r} is of type {tensor.dtype!r}, not known here"
                )
            begin, end = tensor.data_offsets
            tensors.append(StoredTensor(key, tensor.dtype, tuple(tensor.shape), end - begin))
    loaded_as = architecture.dtype or "bfloat16"
    element_bytes = 2 if loaded_as in ("float32", "float") else DTYPE_BYTES.get(loaded_as, 2)
    return stored_in_safetensors(tensors, architecture, element_bytes, name)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What the hub may answer instead, as errors that say what to do."""
    from huggingface_hub import constants, errors

    # What its HTTP library raises where no answer comes; which library that is depends on its version.
    transport = [base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    unreachable: tuple[type[Exception], ...] = (OSError, *transport)
    try:
        yield
    except errors.GatedRepoError:
        raise FootprintError(
            f"{name}: the hub shows it only to those it knows; accept its terms there and set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise FootprintError(f"{name}: the model is on the hub, but not that revision") from None
    except errors.RepositoryNotFoundError:
        raise FootprintError(
            f"{name}: no such model on the hub, or a private one: check the name, or set HF_TOKEN"
        ) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise FootprintError(
            f"{name}: the hub cannot be reached, and its config.json is not in the cache; "
            "give a folder with the config.json instead"
        ) from None
    except errors.EntryNotFoundError:
        raise FootprintError(f"{name}: the model on the hub has no config.json") from None
    except errors.HFValidationError as error:
        raise FootprintError(f"{name}: no name that the hub takes ({error})") from None
    except errors.HfHubHTTPError as error:
        raise FootprintError(
            f"{name}: the hub answered with status {error.response.status_code}; try later"
        ) from None
    except unreachable as error:
        raise FootprintError(
            f"{name}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}); "
            "give a folder with the config.json instead"
        ) from None
