"""SEED repositories: their parts lie in folders beside the checkpoint, or in other repositories that it points to."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .files_seed import CONFIG_FILE, read_json

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
DECODER_FOLDER = "decoder"
# This file holds the pointers to both folders, which may be ids of other repositories, and the settings to draw with.
# Beside a language model it also holds everything else that SeedProcessor stores.
POINTER_FILE = "processor_config.json"
# This file in the image tokenizer's folder holds the captions that `seed demo` chooses from, one per line, in UTF-8.
CAPTIONS_FILE = "captions.txt"
DECODER_PARTS = ("unet/", "vae/", "scheduler/", "text_encoder/", "tokenizer/")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth"}


@dataclass(frozen=True)
class SeedRepository:
    """
    A SEED repository: a local folder or a Hub id, with the options that the Hub is asked with.

    Args:
        name: a local folder or a Hub id. A folder is kept as its absolute path, which stays right when the working
            directory changes.
        revision, token, cache_dir, local_files_only: as in `huggingface_hub`.
    """

    name: str | Path
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __post_init__(self):
        name = os.path.abspath(self.name) if Path(self.name).is_dir() else str(self.name)
        object.__setattr__(self, "name", name)

    @property
    def is_local(self) -> bool:
        """True if the repository is a folder on this machine."""
        return Path(self.name).is_dir()

    @property
    def hub_options(self) -> dict:
        """The options that were given, by name."""
        names = ("revision", "token", "cache_dir", "local_files_only")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def fetch(self, patterns: list[str], variant: str | None = None) -> Path:
        """
        Return the local folder as it is, or download the files of the Hub repository that match `patterns`.

        Args:
            patterns: shell patterns of file names.
            variant: the variant of the weights that is wanted; see `spare_weights` for those that are left out.

        Raises:
            FileNotFoundError: `name` is neither a folder nor a possible Hub id.
            OSError: the files cannot be downloaded from the Hub.
        """
        if self.is_local:
            return Path(self.name)
        spare = {}
        if any(not pattern.endswith(".json") for pattern in patterns) and not self.local_files_only:
            try:
                options = {key: value for key, value in self.hub_options.items() if key in ("revision", "token")}
                files = HfApi().repo_info(self.name, timeout=10, **options).siblings
                spare = {"ignore_patterns": spare_weights([file.rfilename for file in files], variant)}
            except Exception:  # every HTTP library has its own error for "offline"; the next lines find what is there
                pass
        try:
            return Path(snapshot_download(self.name, allow_patterns=patterns, **spare, **self.hub_options))
        except HFValidationError as error:
            raise FileNotFoundError(
                f"{self.name!r} is no folder here, and no id of a repository on the Hub."
            ) from error
        except OSError as error:
            raise OSError(
                f"{self.name!r} is no folder here, and could not be downloaded from the Hub: {error}"
            ) from error

    def settings(self) -> dict:
        """Return what `processor_config.json` holds; nothing if there is no such file."""
        return read_json(self.fetch(["*.json"]) / POINTER_FILE)

    def model_type(self) -> str | None:
        """Return the model type that the root's `config.json` names; None if there is none."""
        return read_json(self.fetch(["*.json"]) / CONFIG_FILE).get("model_type")

    def has_language_model(self) -> bool:
        """Return whether the root holds a language model, rather than an image tokenizer or nothing."""
        return self.model_type() not in (None, "seed")

    def image_tokenizer_folder(self) -> Path:
        """
        Return the folder of the image tokenizer (weights, image processor, text tokenizer). Download it if necessary.

        The repository has a folder `image_tokenizer`, or a pointer to another one, or is an image tokenizer itself.

        Raises:
            FileNotFoundError: the repository has no image tokenizer.
        """
        if self.model_type() == "seed":
            return self.fetch(["*.json", "*.safetensors", "*.txt"])
        return self.follow(self.settings().get("image_tokenizer", IMAGE_TOKENIZER_FOLDER), [""])

    def decoder_folder(
        self,
        decoder: str | Path | None = None,
        parts: tuple[str, ...] = DECODER_PARTS,
        variant: str | None = None,
    ) -> Path:
        """
        Return the folder of the Stable Diffusion model that this repository draws with. Download it if necessary.

        Args:
            decoder: the decoder to use instead of the one that the repository names: a folder, which comes before a
                folder of that name in the repository, a pointer (see `follow`), or a Hub id. If the folder is itself a
                SEED repository, its decoder is used.
            parts: the sub-folders that are needed. Others are not downloaded.
            variant: the variant of the weights, for example "fp16". Others are not downloaded.

        Raises:
            FileNotFoundError: the repository has no decoder, and none is given.
        """
        if decoder and (Path(decoder) / POINTER_FILE).is_file() and not (Path(decoder) / "model_index.json").is_file():
            return SeedRepository(decoder, **self.hub_options).decoder_folder(parts=parts, variant=variant)
        if decoder and Path(decoder).is_dir():
            return Path(decoder)
        pointer = decoder or self.settings().get("decoder", DECODER_FOLDER)
        return self.follow(pointer, ["model_index.json", *parts], variant)

    def follow(self, pointer: str | Path, parts: list[str], variant: str | None = None) -> Path:
        """
        Return the folder that a pointer names: inside this repository or relative to it, a local folder, another
        repository, or a folder in another repository ("organisation/name/folder").

        Args:
            parts: the files and folders below it that are needed; "" means all of it.
            variant: the variant of the weights.

        Raises:
            FileNotFoundError: the pointer is the default folder, and the repository has none.
        """
        inside = self.fetch([f"{pointer}/{part}*" for part in parts], variant) / pointer
        if inside.is_dir():
            return inside
        if str(pointer) in (IMAGE_TOKENIZER_FOLDER, DECODER_FOLDER):
            raise FileNotFoundError(
                f"{self.name!r} has no folder {str(pointer)!r}. A SEED repository holds image_tokenizer/ and decoder/, "
                f"or names other repositories for them in {POINTER_FILE}; for an image tokenizer alone, pass "
                "decoder=... with the folder or Hub id of a Stable Diffusion 1.x model."
            )
        # The revision belongs to this repository, not to the one that is pointed to.
        options = {key: value for key, value in self.hub_options.items() if key != "revision"}
        owner, *names = PurePath(pointer).parts
        if len(names) > 1 and not Path(pointer).is_dir() and not PurePath(pointer).is_absolute() and owner != "..":
            folder = "/".join(names[1:])
            other = SeedRepository(f"{owner}/{names[0]}", **options)
            return other.fetch([f"{folder}/{part}*" for part in parts], variant) / folder
        return SeedRepository(pointer, **options).fetch([f"{part}*" for part in parts], variant)

    def pointer_from(self, start: str | Path, part: str) -> str | None:
        """
        Return the pointer by which another repository, in the folder `start`, can use a part of this one.

        Only JSON files are downloaded.

        Args:
            start: a local folder, which need not exist yet.
            part: IMAGE_TOKENIZER_FOLDER or DECODER_FOLDER.

        Returns:
            For a local folder, its path relative to `start`, so that both can be moved together. Otherwise the Hub id,
            followed by the folder in that repository unless it is the whole. None if there is no such part.
        """
        folder = self.fetch(["*.json"])
        is_the_part = part == IMAGE_TOKENIZER_FOLDER and self.model_type() == "seed"
        pointer = "." if is_the_part else self.settings().get(part, part)
        found = folder / pointer
        if not found.is_dir():
            if pointer == part:
                return None
            if not (found := Path(pointer)).is_dir():
                return pointer
        if self.is_local or found != folder / pointer:
            return Path(os.path.relpath(found.resolve(), Path(start).resolve())).as_posix()
        return self.name if pointer == "." else f"{self.name}/{pointer}"


def spare_weights(files: list[str], variant: str | None) -> list[str]:
    """
    Return those weights of a repository that nothing here reads.

    In each folder, the safetensors of the wanted variant are kept; if there are none, those without a variant; if there
    are none either, all safetensors. The other files are returned: repositories of Stable Diffusion hold gigabytes of
    other variants and formats.
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
    """Return the variant in the name of a weights file: "fp16" for `model.fp16-00001-of-00002.safetensors`."""
    return re.sub(r"-\d+-of-\d+$", "", file.stem).partition(".")[2] or None


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
    Upload a whole folder with its sub-folders, which transformers' `push_to_hub` leaves out.

    Args:
        save: writes what is uploaded into the folder that it is called with. The other arguments are those of
            transformers' `push_to_hub`.

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
        # Somebody else's repository allows no new branch, but a pull request may be opened all the same.
        if not (create_pr and error.response is not None and error.response.status_code == 403):
            raise


__all__ = [
    "CAPTIONS_FILE",
    "DECODER_FOLDER",
    "DECODER_PARTS",
    "IMAGE_TOKENIZER_FOLDER",
    "POINTER_FILE",
    "SeedRepository",
    "push_folder",
    "spare_weights",
    "weight_variant",
]
