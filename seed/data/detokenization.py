"""Bulk de-tokenisation: a file of codes to a folder of pictures. A killed run continues."""

import hashlib
import json
import re
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files_seed import write_atomically
from ..pipeline_seed import SeedPipeline
from .codes import CodesFile, read_codes
from .images import save_image
from .provenance import weight_hash


def open_codes(path: str | Path, pipeline: SeedPipeline, any_tokenizer: bool = False) -> CodesFile:
    """
    Read a file of codes for a pipeline to draw.

    Args:
        path: the file of codes, see [`read_codes`].
        pipeline: the pipeline that will draw them.
        any_tokenizer: accept the codes of any image tokenizer, not only those of the pipeline's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see [`read_codes`]; or another image tokenizer made the codes, so they mean something else to the
            pipeline.
    """
    config = pipeline.image_tokenizer.config
    codes = read_codes(path, config.codebook_size, config.num_codes)
    if codes.metadata and not any_tokenizer:
        made_by, ours = codes.metadata.image_tokenizer, pipeline.image_tokenizer.codes_hash()
        if made_by != ours:
            raise ValueError(
                f"{path}: an image tokenizer with weights {made_by[:12]}... made these codes; this model has "
                f"{ours[:12]}..., to which they mean something else. Name the model that made them, or pass --force if "
                "you know that its codebook is the same."
            )
    return codes


def draw_codes(
    pipeline: SeedPipeline, codes: CodesFile, folder: str | Path, seed: int = 0, batch_size: int = 16
) -> list[Path]:
    """
    Draw every row of a file of codes into `folder`, as `ROW-NAME.png`, and return the pictures' paths in that order.

    The same call continues a run that was killed. Until all drawings are there, the file `.drawn_from.json` in the
    folder says what they are made of. Drawings of another run with the same names are deleted first.

    Args:
        pipeline: the pipeline that draws.
        codes: the codes, see [`open_codes`].
        folder: the folder to write to, which is made if it is missing.
        seed: row r is drawn from noise of the seed `seed + r`, whatever the batch size.
        batch_size: the number of pictures that are drawn at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(max(0, len(codes.ids) - 1)))
    paths = [folder / f"{row:0{digits}d}-{_file_stem(id)}.png" for row, id in enumerate(codes.ids)]
    made_of, unfinished = _made_of(pipeline, codes, seed), folder / ".drawn_from.json"
    goes_on = unfinished.exists() and unfinished.read_text(encoding="utf-8") == made_of
    if not goes_on:
        # They go before the marker is written. Beside it, a kill would make another run's drawings pass for this one's.
        for path in paths:
            path.unlink(missing_ok=True)
    write_atomically(unfinished, made_of)
    missing = [row for row, path in enumerate(paths) if not path.exists()]
    with tqdm(total=len(paths), initial=len(paths) - len(missing), unit="img", desc="draw") as bar:
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            generators = [torch.Generator().manual_seed(seed + row) for row in rows]
            images = pipeline(codes=codes.codes[rows], generator=generators).images
            for row, image in zip(rows, images, strict=True):
                save_image(image, paths[row])
            bar.update(len(rows))
    unfinished.unlink()
    return paths


def _made_of(pipeline: SeedPipeline, codes: CodesFile, seed: int) -> str:
    """Return, as JSON, all that decides the drawings of a run."""
    models = {name: weight_hash(getattr(pipeline, name)) for name in ("image_tokenizer", "unet", "vae")}
    content = hashlib.sha256(codes.codes.numpy().tobytes()).hexdigest()
    settings = {
        "codes": content,
        "ids": hashlib.sha256("\0".join(codes.ids).encode()).hexdigest(),
        "seed": seed,
        "dtype": str(pipeline.unet.dtype),
        "scheduler": dict(pipeline.scheduler.config),
        "guidance_scale": pipeline.config.guidance_scale,
        "num_inference_steps": pipeline.config.num_inference_steps,
    }
    return json.dumps(models | settings, indent=2, default=str)


def _file_stem(id: str) -> str:
    """Return a picture's id as part of a file name: the stem of a path, without characters that file systems refuse."""
    name = re.split(r"[/\\]", id)[-1]
    return re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w{1,5}$", "", name))[:80] or "picture"


__all__ = ["draw_codes", "open_codes"]
