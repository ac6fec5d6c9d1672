"""Where the parts of a SEED repository lie: folders beside the checkpoint, or pointers to other repositories."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
DECODER_FOLDER = "decoder"
# Holds the pointers to both folders, which may be ids of other repositories, and the settings to draw with; in a
# repository with a language model also everything else that SeedProcessor stores.
POINTER_FILE = "processor_config.json"
CONFIG_FILE = "config.json"
# In the image tokenizer's folder: what `seed demo` chooses the nearest captions from, one per line, UTF-8.
CAPTIONS_FILE = "captions.txt"
# As transformers and diffusers name weights: one file, or shards and their index.
WEIGHT_FILES = ("model*.safetensors*", "diffusion_pytorch_model*.safetensors*")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth"}
DECODER_PARTS = ("unet/", "vae/", "scheduler/", "text_encoder/", "tokenizer/")


def resolve_image_tokenizer(name: str | Path, **hub_options) -> Path:
    """
    The folder of the image tokenizer (weights, image processor, text tokenizer) that a model argument names.

    Args:
        name: a repository with `image_tokenizer/` or a pointer to it, or the image tokenizer's own folder or Hub id.
        hub_options: as in [`SeedPipeline.from_pretrained`].

    Raises:
        FileNotFoundError: the repository has no image tokenizer.
    """
    folder = fetch(name, hub_options, ["*.json"])
    if _model_type(folder) == "seed":
        return fetch(name, hub_options, ["*.json", "*.safetensors", "*.txt"])
    pointer = read_settings(folder).get("image_tokenizer", IMAGE_TOKENIZER_FOLDER)
    return follow_pointer(name, pointer, hub_options, [""])


def resolve_decoder(
    name: str | Path,
    decoder: str | Path | None = None,
    parts: tuple[str, ...] = DECODER_PARTS,
    variant: str | None = None,
    **hub_options,
) -> Path:
    """
    The folder of the Stable Diffusion model that a SEED repository draws with.

    Args:
        name: the SEED repository.
        decoder: a folder, as it stands, or a pointer from `name` (see [`follow_pointer`]), or a Hub id, to use instead
            of the one that is named there; of a folder that is itself a SEED repository, its decoder.
        parts: the sub-folders that are needed; others are not downloaded.
        variant: of the weights, e.g. "fp16"; others are not downloaded.
        hub_options: as in [`SeedPipeline.from_pretrained`].

    Raises:
        FileNotFoundError: the repository has no decoder, and none is given.
    """
    if decoder and (Path(decoder) / POINTER_FILE).is_file() and not (Path(decoder) / "model_index.json").is_file():
        return resolve_decoder(decoder, parts=parts, variant=variant, **hub_options)
    if decoder and Path(decoder).is_dir():  # before a folder of that name in the repository
        return Path(decoder)
    settings = read_settings(fetch(name, hub_options, ["*.json"]))
    pointer = decoder or settings.get("decoder", DECODER_FOLDER)
    return follow_pointer(name, pointer, hub_options, ["model_index.json", *parts], variant)


def has_language_model(name: str | Path) -> bool:
    """Whether a SEED repository holds a language model beside its image tokenizer, or is an image tokenizer alone."""
    return _model_type(fetch(name, {}, ["*.json"])) not in (None, "seed")


def remove_weights(folder: Path) -> None:
    """Removes a model's weights, of which those in shards would count before a new single file."""
    for pattern in WEIGHT_FILES:
        for stale in folder.glob(pattern):
            stale.unlink()


def is_weight(item: Path) -> bool:
    """Whether a file is one of a model's weights, or their index."""
    return any(item.match(pattern) for pattern in WEIGHT_FILES)


def turn(item: Path) -> tuple[bool, bool, bool]:
    """Sorts what replaces a model: everything else, weights, their index, the config."""
    return item.name == CONFIG_FILE, is_weight(item) and item.suffix == ".json", is_weight(item)


def push_folder(
    save: Callable[[str], None],
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Uploads a whole folder, sub-folders included, which transformers' `push_to_hub` leaves out. Arguments as there.

    Args:
        save: writes what is uploaded into the folder that it is given.

    Returns:
        The address of the commit.
    """
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        _create_branch(api, repo_id, revision, token, create_pr)
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)


def _create_branch(api: HfApi, repo_id: str, branch: str, token: bool | str | None, create_pr: bool) -> None:
    try:
        api.create_branch(repo_id, branch=branch, token=token, exist_ok=True)
    except HfHubHTTPError as error:
        # Somebody else's repository, to which a pull request may go nevertheless.
        if not (create_pr and error.response is not None and error.response.status_code == 403):
            raise


def settled_name(name: str | Path) -> str:
    """A local folder's absolute path, which is right wherever the process goes; a Hub id as it is."""
    return os.path.abspath(name) if Path(name).is_dir() else str(name)


def point_to(name: str | Path, part: str, start: str | Path, hub_options: dict | None = None) -> str | None:
    """
    The pointer that a repository in the folder `start` writes to have a part of another one.

    Args:
        name: the other repository, a folder or Hub id, or, for an image tokenizer, its own folder or Hub id. Only its
            JSON files are downloaded.
        part: IMAGE_TOKENIZER_FOLDER or DECODER_FOLDER.
        start: a local folder, which need not exist yet.
        hub_options: as in [`SeedPipeline.from_pretrained`]: what `name` is read with.

    Returns:
        For a folder its path relative to `start`, so that both can be moved together; else the Hub id, followed by the
        folder in that repository if it is not all of it. None if there is no such part.
    """
    folder = fetch(name, hub_options or {}, ["*.json"])
    is_the_part = part == IMAGE_TOKENIZER_FOLDER and _model_type(folder) == "seed"
    pointer = "." if is_the_part else read_settings(folder).get(part, part)
    found = folder / pointer
    if not found.is_dir():
        if pointer == part:
            return None
        if not (found := Path(pointer)).is_dir():
            return pointer
    if Path(name).is_dir() or found != folder / pointer:
        return Path(os.path.relpath(found.resolve(), Path(start).resolve())).as_posix()
    return str(name) if pointer == "." else f"{name}/{pointer}"


def write_settings(folder: Path, settings: dict) -> None:
    """Writes `processor_config.json`, all or nothing."""
    temporary = folder / (POINTER_FILE + ".tmp")
    temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    temporary.replace(folder / POINTER_FILE)


def read_settings(folder: Path) -> dict:
    return read_json(folder / POINTER_FILE)


def _model_type(folder: Path) -> str | None:
    return read_json(folder / CONFIG_FILE).get("model_type")


def read_json(path: Path) -> dict:
    """A JSON file's content; nothing if there is no such file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download or copy it again.") from error


def fetch(name: str | Path, hub_options: dict, patterns: list[str], variant: str | None = None) -> Path:
    """A local folder as it is, or the files of a Hub repository that match `patterns`, without spare weights."""
    if Path(name).is_dir():
        return Path(name)
    spare = {}
    if any(not pattern.endswith(".json") for pattern in patterns) and not hub_options.get("local_files_only"):
        try:
            options = {key: hub_options[key] for key in ("revision", "token") if key in hub_options}
            files = HfApi().repo_info(str(name), timeout=10, **options).siblings
            spare = {"ignore_patterns": spare_weights([file.rfilename for file in files], variant)}
        except Exception:  # offline, of whichever HTTP library; whether it is there, the next lines say
            pass
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns, **spare, **hub_options))
    except HFValidationError as error:
        raise FileNotFoundError(f"{str(name)!r} is no folder here, and no id of a repository on the Hub.") from error
    except OSError as error:
        raise OSError(
            f"{str(name)!r} is no folder here, and no repository of that id could be fetched from the Hub: {error}"
        ) from error


def spare_weights(files: list[str], variant: str | None) -> list[str]:
    """
    Weights of a repository that nothing here reads: beside the safetensors of the variant that is asked for (else of
    none, else of any), those of other variants and formats, which Stable Diffusion's repositories have by the gigabyte.
    """
    folders: dict[str, list[PurePath]] = {}
    for file in map(PurePath, files):
        if file.suffix in _WEIGHT_SUFFIXES:
            folders.setdefault(file.parent.as_posix(), []).append(file)
    spare = []
    for weights in folders.values():
        own = [file for file in weights if file.suffix == ".safetensors"]
        wanted = next((name for name in (variant, None) if any(weight_variant(file) == name for file in own)), "any")
        kept = [file for file in own if wanted in ("any", weight_variant(file))]
        spare += [file.as_posix() for file in weights if kept and file not in kept]
    return spare


def weight_variant(file: PurePath) -> str | None:
    """Of "model.fp16.safetensors" and of "model.fp16-00001-of-00002.safetensors" it is "fp16"."""
    return re.sub(r"-\d+-of-\d+$", "", file.stem).partition(".")[2] or None


def follow_pointer(
    root: str | Path, pointer: str | Path, hub_options: dict, parts: list[str], variant: str | None = None
) -> Path:
    """
    The folder that a pointer names: inside `root` or relative to it, a local folder, another repository, or a folder in
    another repository ("organisation/name/folder").

    Args:
        parts: the files and folders below it that are needed; "" is all of it.
    """
    inside = fetch(root, hub_options, [f"{pointer}/{part}*" for part in parts], variant) / pointer
    if inside.is_dir():
        return inside
    if str(pointer) in (IMAGE_TOKENIZER_FOLDER, DECODER_FOLDER):
        raise FileNotFoundError(
            f"{str(root)!r} has no folder {str(pointer)!r}. A SEED repository holds image_tokenizer/ and decoder/, or "
            f"names other repositories for them in {POINTER_FILE}; for an image tokenizer alone, pass decoder=... "
            "with the folder or Hub id of a Stable Diffusion 1.x model."
        )
    elsewhere = {key: value for key, value in hub_options.items() if key != "revision"}  # which is the root's
    owner, *names = PurePath(pointer).parts
    if len(names) > 1 and not Path(pointer).is_dir() and not PurePath(pointer).is_absolute() and owner != "..":
        folder = "/".join(names[1:])
        return fetch(f"{owner}/{names[0]}", elsewhere, [f"{folder}/{part}*" for part in parts], variant) / folder
    return fetch(pointer, elsewhere, [f"{part}*" for part in parts], variant)


__all__ = [
    "CAPTIONS_FILE",
    "DECODER_PARTS",
    "fetch",
    "follow_pointer",
    "has_language_model",
    "is_weight",
    "point_to",
    "push_folder",
    "read_json",
    "read_settings",
    "remove_weights",
    "resolve_decoder",
    "resolve_image_tokenizer",
    "settled_name",
    "spare_weights",
    "turn",
    "weight_variant",
    "write_settings",
]
