"""
Score the similarity of reconstructions to their pictures (the paper's Table 2) by a judge we did not train.

The scores stand between two ends: Stable Diffusion drawing from the caption (the paper's upper bound), and a shuffled
control, which compares pictures with reconstructions of pictures of other names. Both drawings of a picture start from
the same noise, which depends on the seed and the picture only, so that no number depends on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel

from ..data.provenance import weight_hash
from ..decoder_seed import load_decoder_part
from ..pipeline_seed import SeedPipeline
from ..repository_seed import SeedRepository
from .judge import Judge
from .metrics import bootstrap_interval, recall_at, retrieval_ranks, top_candidates
from .pictures import Picture, PictureSet, text_key
from .report import format_table, provenance, write_json, write_parquet
from .scores import choose, interval_text

DRAWN_FROM_CAPTION = "Stable Diffusion from the caption"
SHUFFLED = "shuffled"
PAPER_NOTE = (
    "The paper's Table 2 (CLIP similarity on COCO and Flickr30K; other data, another judge, not comparable): SEED's "
    "reconstructions slightly under Stable Diffusion from the caption, above GILL."
)


class Drawer:
    """
    A drawer of pictures from their codes, and from their first captions by the same Stable Diffusion model.

    Args:
        model: a SEED repository.
        decoder: a Stable Diffusion model to use instead of the repository's own.
        num_inference_steps, guidance_scale: settings of the diffusion; None takes those of the repository.
        seed: seed of the noise.
    """

    def __init__(
        self,
        model: str | Path,
        decoder: str | Path | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.name = str(model)
        # All in float32, the dtype in which codes that are scored are made.
        self.pipeline = SeedPipeline.from_pretrained(model, decoder=decoder, dtype=torch.float32).to(device)
        folder = SeedRepository(model).decoder_folder(decoder)
        self.stable_diffusion = StableDiffusionPipeline.from_pretrained(
            folder,
            text_encoder=load_decoder_part(folder / "text_encoder", torch.float32, model_class=CLIPTextModel),
            unet=self.pipeline.unet,
            vae=self.pipeline.vae,
            scheduler=self.pipeline.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            dtype=torch.float32,
        ).to(device)
        for pipeline in (self.pipeline, self.stable_diffusion):
            pipeline.set_progress_bar_config(disable=True)
        config = self.pipeline.config
        self.seed = seed
        self.options = {
            "num_inference_steps": num_inference_steps or config.num_inference_steps,
            "guidance_scale": config.guidance_scale if guidance_scale is None else guidance_scale,
        }

    @property
    def num_codes(self) -> int:
        """Number of codes of a picture."""
        return self.pipeline.image_tokenizer.config.num_codes

    def describe(self) -> dict:
        """Describe the models for the report."""
        modules = {
            "image_tokenizer": self.pipeline.image_tokenizer,
            "unet": self.pipeline.unet,
            "vae": self.pipeline.vae,
            "text_encoder": self.stable_diffusion.text_encoder,
        }
        hashes = {f"{name}_sha256": weight_hash(module) for name, module in modules.items()}
        return {"name": self.name, "dtype": "float32", "scheduler": type(self.pipeline.scheduler).__name__, **hashes}

    def tokenize(self, pictures: Sequence[Picture]) -> torch.LongTensor:
        """Return the codes of pictures, `(pictures, num_codes)`."""
        return self.pipeline.tokenize_images([picture.image for picture in pictures])

    def reconstruct(
        self, pictures: Sequence[Picture], codes: torch.LongTensor, prefix_length: int
    ) -> list[Image.Image]:
        """Draw pictures from their first `prefix_length` codes."""
        # With all codes no prefix is passed, as in any other use of the pipeline.
        prefix = None if prefix_length == self.num_codes else prefix_length
        noise = self._generators(pictures)
        return self.pipeline(codes=codes, prefix_length=prefix, generator=noise, **self.options).images

    def draw_captions(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """Draw pictures from their first captions, which are also the targets of stage II."""
        captions = [picture.captions[0] for picture in pictures]
        return self.stable_diffusion(captions, generator=self._generators(pictures), **self.options).images

    def _generators(self, pictures: Sequence[Picture]) -> list[torch.Generator]:
        seeds = [np.random.SeedSequence((self.seed, picture.row)).generate_state(1)[0] for picture in pictures]
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@dataclass
class JudgedDrawings:
    """
    The judgement of one kind of drawing, a row of the table.

    Args:
        similarity: `(pictures,)`, the similarity of each picture and its drawing.
        shuffled: `(pictures,)`, the mean similarity of each picture and the drawings of pictures of other names.
        ranks: `(pictures,)`, see [`judge_drawings`].
        top: `(pictures, 5)`, the gallery's pictures nearest to the drawing.
    """

    similarity: np.ndarray
    shuffled: np.ndarray
    ranks: np.ndarray
    top: np.ndarray


def judge_drawings(
    gallery: np.ndarray, gallery_names: Sequence[str], chosen: Sequence[int], drawings: np.ndarray
) -> JudgedDrawings:
    """
    Judge the similarity of drawings to their pictures, and the retrieval of the right concept.

    All pictures of the split are the gallery, whether they were drawn or not. A drawing finds its concept within k if
    the drawn picture itself, or another of the same name, is among the k gallery pictures most similar to the drawing.
    Ties are misses.

    Args:
        gallery: `(gallery, dim)`, the judge's L2-normalised features.
        gallery_names: the names of the same pictures.
        chosen: `(pictures,)`, the numbers of the pictures that were drawn.
        drawings: `(pictures, dim)`, features of their drawings.

    Raises:
        ValueError: all chosen pictures have one name, which leaves nothing to shuffle.
    """
    keys = np.array([text_key(name) for name in gallery_names])
    chosen = np.asarray(chosen)
    own = gallery[chosen]
    other_name = keys[chosen][:, None] != keys[chosen][None]
    if not other_name.any(axis=1).all():
        raise ValueError(
            "The pictures that were drawn all have the same name; the shuffled control needs others: raise --limit or "
            "take other data."
        )
    cosines = own @ drawings.T
    to_gallery = drawings @ gallery.T
    positives = [np.flatnonzero(keys == keys[picture]) for picture in chosen]
    return JudgedDrawings(
        similarity=np.diagonal(cosines).copy(),
        shuffled=(cosines * other_name).sum(axis=1) / other_name.sum(axis=1),
        ranks=retrieval_ranks(to_gallery, positives),
        top=top_candidates(to_gallery, 5),
    )


def score_drawings(drawings: JudgedDrawings, upper: JudgedDrawings, shuffled: np.ndarray, seed: int = 0) -> dict:
    """
    Score one kind of drawing between the shuffled control (0) and `upper`, the drawings from captions (1).

    Args:
        shuffled: `(pictures,)`, the control, which is the same for every row.

    Returns:
        `similarity`; `normalized`, which is (s - shuffled) / (SD - shuffled), with its 95% interval over pictures, or
        None where SD is no better than the control; R@1, R@5, R@10 of the right concept.
    """

    def normalized(rows: np.ndarray) -> float:
        low = shuffled[rows].mean()
        span = upper.similarity[rows].mean() - low
        return float((drawings.similarity[rows].mean() - low) / span) if span > 1e-3 else float("nan")

    everything = np.arange(len(shuffled))
    value = normalized(everything)
    return {
        "similarity": float(drawings.similarity.mean()),
        "normalized": None if np.isnan(value) else value,
        "normalized_95%": bootstrap_interval(normalized, len(everything), seed=seed),
        "concept": {f"R@{k}": recall_at(drawings.ranks, k) for k in (1, 5, 10)},
    }


def evaluate_reconstruction(
    pictures: PictureSet,
    output: str | Path,
    drawer: Drawer,
    judge: Judge,
    limit: int | None = None,
    prefix_lengths: Sequence[int] = (),
    batch_size: int = 16,
) -> dict:
    """
    Draw pictures from their codes and from their captions, judge both, print the table and write it to a folder.

    Args:
        output: folder for `reconstruction.json` and `reconstruction_images.parquet`.
        limit: number of pictures to draw, chosen at random by the drawer's seed; None draws all.
        prefix_lengths: for each k among them, also draw from the first k codes.

    Returns:
        The content of `reconstruction.json`.

    Raises:
        ValueError: a prefix length is out of range, the limit is below two, or there are too few names.
    """
    num_codes = drawer.num_codes
    bad = [length for length in prefix_lengths if not 1 <= length <= num_codes]
    if bad:
        raise ValueError(f"prefix lengths {bad} are out of range; this model has {num_codes} codes.")
    if limit is not None and limit < 2:
        raise ValueError(f"limit is {limit}; the shuffled control needs at least 2 pictures.")
    lengths = sorted({*prefix_lengths, num_codes})
    gallery = _judge_gallery(pictures, judge, batch_size)
    chosen = choose(len(gallery["names"]), limit, drawer.seed)
    codes, features = _draw(pictures, [gallery["rows"][i] for i in chosen], drawer, judge, lengths, batch_size)

    judged = {
        label: judge_drawings(gallery["features"], gallery["names"], chosen, values)
        for label, values in features.items()
    }
    upper, shuffled = judged[DRAWN_FROM_CAPTION], judged[_label(num_codes, num_codes)].shuffled
    results = {label: score_drawings(row, upper, shuffled, drawer.seed) for label, row in judged.items()}
    results[SHUFFLED] = {"similarity": float(shuffled.mean()), "normalized": 0.0, "concept": None}
    report = {
        "task": "reconstruction",
        "data": {
            "source": pictures.source,
            "split": pictures.split,
            "pictures": len(gallery["names"]),
            "skipped": pictures.report.skipped,
            "drawn": len(chosen),
        },
        "results": results,
        "judge": judge.description,
        "models": {"model": drawer.describe()},
        "settings": {"seed": drawer.seed, "limit": limit, "batch_size": batch_size, **drawer.options},
        **provenance(),
        "paper": PAPER_NOTE,
    }
    _write(Path(output), report, judged, gallery, chosen, codes)
    print(summary(report))
    return report


def _label(length: int, num_codes: int) -> str:
    return f"from all {num_codes} codes" if length == num_codes else f"from the first {length}"


def _judge_gallery(pictures: PictureSet, judge: Judge, batch_size: int) -> dict:
    gallery = {"rows": [], "ids": [], "names": [], "captions": []}
    features = []
    for batch in pictures.batches(batch_size, description="judging pictures"):
        features.append(judge.features([picture.image for picture in batch]))
        gallery["rows"] += [picture.row for picture in batch]
        gallery["ids"] += [picture.id for picture in batch]
        gallery["names"] += [picture.name for picture in batch]
        gallery["captions"] += [picture.captions[0] for picture in batch]
    return gallery | {"features": torch.cat(features).numpy()}


def _draw(
    pictures: PictureSet, rows: list[int], drawer: Drawer, judge: Judge, lengths: list[int], batch_size: int
) -> tuple[torch.LongTensor, dict[str, np.ndarray]]:
    """Return the codes of the pictures in these rows, and the judge's features of each kind of drawing."""
    codes, features = [], {}
    for batch in pictures.batches(batch_size, rows=rows, description="drawing"):
        codes.append(drawer.tokenize(batch))
        drawings = {
            _label(length, drawer.num_codes): drawer.reconstruct(batch, codes[-1], length) for length in lengths
        }
        drawings[DRAWN_FROM_CAPTION] = drawer.draw_captions(batch)
        for label, images in drawings.items():
            features.setdefault(label, []).append(judge.features(images))
    return torch.cat(codes).cpu(), {label: torch.cat(parts).numpy() for label, parts in features.items()}


def _write(
    output: Path,
    report: dict,
    judged: dict[str, JudgedDrawings],
    gallery: dict,
    chosen: np.ndarray,
    codes: torch.LongTensor,
) -> None:
    """Write the predictions first, so that there are never metrics without them."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, picture in enumerate(chosen):
        row = {key.removesuffix("s"): gallery[key][picture] for key in ("ids", "names", "captions")}
        row |= {"row": gallery["rows"][picture], "codes": codes[number].tolist()}
        for label, result in judged.items():
            row[f"{label} similarity"] = float(result.similarity[number])
            row[f"{label} shuffled"] = float(result.shuffled[number])
            row[f"{label} rank"] = int(result.ranks[number])
            row[f"{label} top names"] = [gallery["names"][nearest] for nearest in result.top[number]]
        rows.append(row)
    write_parquet(output / "reconstruction_images.parquet", rows)
    write_json(output / "reconstruction.json", report)


def summary(report: dict) -> str:
    """Return the report as text."""
    header = ["drawn", "similarity s", "(s - shuffled) / (SD - shuffled)", "95%", "concept R@1", "R@5", "R@10"]
    rows = []
    for label, scores in report["results"].items():
        within = interval_text(scores.get("normalized_95%"))
        concept = scores["concept"] or {"R@1": None, "R@5": None, "R@10": None}
        rows.append([label, scores["similarity"], scores["normalized"], within, *concept.values()])
    data, judge, settings = report["data"], report["judge"], report["settings"]
    split = f", split {data['split']}" if data["split"] else ""
    return "\n".join(
        [
            "",
            f"Reconstruction on {data['source']}{split}: {data['drawn']} drawn of {data['pictures']} pictures "
            f"({data['skipped']} skipped), judged by {judge['name']} at {judge['size']} pixels; "
            f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']}, seed {settings['seed']}",
            "",
            format_table(header, rows),
            "",
            f"concept R@k: a picture of the right name is among the k, of all {data['pictures']} pictures, that the "
            "judge finds most similar to the drawing.",
            PAPER_NOTE,
        ]
    )
