"""A model's configuration, read before anything large: is it there, may it be had, is it of a known family?

And an adapter's, which says what its tensors are worth.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES, Family

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

# Of PEFT's settings of an adapter: names, paths and versions, and whether it is being trained.
_NOT_OF_THE_ADAPTER = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}


def read_configuration(location: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a model in a folder or on the hub, as transformers saved it.

    Raises:
        ModelError: it is not there, it may not be had, or it is no JSON object.
    """
    folder = Path(location)
    path = folder / CONFIG if folder.is_dir() else _from_hub(location, revision)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"The model {location} cannot be loaded: the folder has no {CONFIG}. It must hold {CONFIG}, *.safetensors "
            "and the processor's files."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"The model {location} cannot be loaded: {path} is not readable: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"The model {location} cannot be loaded: {path} holds no JSON object.")
    return values


def find_family(location: str, revision: str | None = None) -> Family:
    """The family of a model.

    Raises:
        ModelError: as `read_configuration`, or grit-lite does not know the model's class.
    """
    kind = str(read_configuration(location, revision).get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    known = ", ".join(f"{family.name} ({family.example})" for family in FAMILIES.values())
    hint = (
        f" {location} is in its authors' own format; name the one that ends in -hf." if kind == "internvl_chat" else ""
    )
    raise ModelError(
        f"{location} is of the class '{kind}', which grit-lite does not know how to prompt.{hint} Known: {known}. "
        "A grit_lite.json in the model's folder can say which of them it is like."
    )


def adapter_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of PEFT's settings of an adapter those that decide what its tensors do, what has no order in one order."""
    return {
        name: sorted(map(str, value)) if isinstance(value, set | list | tuple) else value
        for name, value in values.items()
        if name not in _NOT_OF_THE_ADAPTER
    }


def read_adapter_settings(folder: Path) -> dict[str, Any]:
    """The same of an adapter in a folder; empty where they cannot be read, which is said once it is loaded."""
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return adapter_settings(values) if isinstance(values, dict) else {}


def _from_hub(name: str, revision: str | None) -> Path:
    from httpx import TransportError
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cached = try_to_load_from_cache(name, CONFIG, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask_hub_once(name, revision)
        return Path(hf_hub_download(name, CONFIG, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError) as error:
        raise ModelError(_refusal(error, name, revision)) from error


def _ask_hub_once(name: str, revision: str | None) -> None:
    """Fail at once where the hub says no or cannot be reached: a download would ask again for half a minute.

    A hub that is slow, breaks off or has trouble of its own is left to the download's patience.
    """
    from httpx import ConnectError, TransportError
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision))
    except ConnectError:
        raise
    except TransportError:
        return
    except HfHubHTTPError as error:
        if error.response.is_client_error:
            raise


def _refusal(error: Exception, name: str, revision: str | None) -> str:
    """What became of the question for a model, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    log_in = f"log in with `hf auth login` or set HF_TOKEN, and accept the model's licence on {page}"
    messages = {  # the first that fits
        errors.GatedRepoError: f"The model {name} is gated, and the hub does not let you in: {log_in}.",
        errors.RepositoryNotFoundError: f"The hub shows you no model {name}. Check the name. If it is right, the model "
        f"is private or gated: {log_in}.",
        errors.RevisionNotFoundError: f"The model {name} has no revision '{revision}'. {page}/commits/main lists them.",
        errors.RemoteEntryNotFoundError: f"{name} has no {CONFIG} on the hub: transformers cannot load such a model. "
        f"Look for another form of it on {page}.",
        errors.OfflineModeIsEnabled: f"The model {name} is not on this machine, and HF_HUB_OFFLINE is set. Unset it "
        "once while there is a network, or give the folder of a model.",
        Exception: f"The model {name} is not on this machine, and the hub does not answer ({error}). Check the "
        "network and HF_ENDPOINT, or give the folder of a model.",
    }
    return next(message for kind, message in messages.items() if isinstance(error, kind))
