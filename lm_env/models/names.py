"""What models are called: the embedded one, one that a package carries, a folder, a hub id of the local cache."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lm_env.errors import ModelLoadError
from lm_env.models.gguf import PACKAGED_MODELS, packaged_file
from lm_env.storage import folder_of, is_saved_folder

__all__ = [
    "EMBEDDED_MODEL",
    "EMBEDDED_MODELS",
    "WHAT_LOADS",
    "cannot_load",
    "known_name",
    "lasting_name",
    "resolve",
    "source_of",
]

EMBEDDED_MODEL = "reviews-3m"

EMBEDDED_MODELS = (EMBEDDED_MODEL, "arithmetic-0.4m", "walks-0.1m")
"""The models in the package: of film reviews, of sums, and of walks through a graph."""

WHAT_LOADS = (
    f"give a folder with safetensors weights and a tokenizer, '{EMBEDDED_MODEL}',"
    f" '{next(iter(PACKAGED_MODELS))}' (a package of its own), or download=True (--download) for a hub id"
)
"""The remedy in messages about a model that is not there."""


def resolve(name: str | Path) -> str:
    """Where the model of a name lies: one of the package's own, one that a package carries; any other path as it is.

    Raises:
        MissingDependencyError: the package that carries the model is not installed.
    """
    if str(name) in EMBEDDED_MODELS:
        return str(files("lm_env") / "assets" / str(name))
    if str(name) in PACKAGED_MODELS:
        return str(packaged_file(str(name)))
    folder = folder_of(name)
    return str(folder) if folder.is_dir() else str(name)


def lasting_name(name: str | Path) -> str:
    """What a loaded model is called, so that others find it again: a path that transformers reads, or a name."""
    return str(name) if str(name) in PACKAGED_MODELS else resolve(name)


def known_name(saved: str) -> str:
    """The name of a base as it is here: an embedded model may have lain elsewhere when it was written down."""
    path = Path(saved)
    return path.name if path.name in EMBEDDED_MODELS and not path.exists() else saved


def source_of(what: str, name: str | Path, download: bool) -> str:
    """What transformers is given: a folder wherever there is one, so that it has no reason to ask the hub.

    Args:
        what: "model" or "tokenizer", for messages.

    Raises:
        ModelLoadError: there is no such model here, and none may be downloaded.
        MissingDependencyError: the package that carries the model is not installed.
    """
    source = resolve(name)
    policy = Path(source) / "policy"
    if (policy / "config.json").is_file() and not (Path(source) / "config.json").exists():
        raise ModelLoadError(f"cannot load the {what} {str(name)!r}: it is the folder of a run -- give {policy}")
    if download or is_saved_folder(source) or Path(source).exists():
        return source
    cached = _cached_folder(source)
    if cached is None:
        raise ModelLoadError(
            f"cannot load the {what} {str(name)!r}: there is no folder of this name, and no hub id of this name in the"
            f" local cache -- {WHAT_LOADS}"
        )
    return cached


def cannot_load(what: str, name: object, folder: object, download: bool, error: Exception, remedy: str = "") -> str:
    """The message about a model, or a part of one, that transformers does not load.

    Args:
        what: "model", "tokenizer" or "configuration of the model".
        folder: where it was read from; the message has the name instead.
        remedy: default: to check the name, or what else loads.
    """
    reason = str(error).strip().partition("\n")[0].replace(str(folder), str(name))
    remedy = remedy or ("check the name" if download else WHAT_LOADS)
    if "custom code" in reason:
        remedy = (
            "code in a model's folder is never run (trust_remote_code=False); load it yourself and pass the live model"
        )
    return f"cannot load the {what} {str(name)!r}: {reason} -- {remedy}"


def _cached_folder(hub_id: str) -> str | None:
    """Where the files of a hub id lie in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        try:
            found = try_to_load_from_cache(hub_id, file)
        except ValueError:  # it cannot be a hub id
            return None
        if isinstance(found, str):
            return str(Path(found).parent)
    return None
