"""
Score image-text retrieval (the paper's Table 1) by the cosine of contrastive features, without a matching head.

The rows of the table are the bidirectional Q-Former from which SEED starts (BLIP-2's part; its best query counts), the
causal embeddings (the last one counts), and the codes, through the reconstruction decoder.

The candidates are the distinct texts and the pictures of the split. A text is right for every picture that carries it:
of several pictures of one name, each is a positive. Image to text is a hit if the picture's text is among the first k,
and text to image if any picture of the text is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..losses_seed import query_similarity
from ..quantization_seed import codebook_usage
from .image_tokenizer import EvaluatedTokenizer, pixel_vector
from .metrics import nearest_is_right, recall_at, retrieval_ranks, top_candidates
from .pictures import PictureSet, text_key
from .report import format_table, provenance, write_json, write_parquet

BIDIRECTIONAL, CAUSAL, CODES = "bidirectional", "causal embeddings", "codes"
TOP = 10
# Number of pictures compared at a time; with 32 queries each and 25,000 texts a block is 200 MB.
BLOCK = 64
# The paper's Table 1, R@1 image to text and text to image. Its data and sizes are others: no comparison.
PAPER = {
    "Flickr30K": {BIDIRECTIONAL: (0.819, 0.824), CAUSAL: (0.900, 0.800), CODES: (0.863, 0.759)},
    "COCO": {BIDIRECTIONAL: (0.653, 0.591), CAUSAL: (0.719, 0.567), CODES: (0.657, 0.525)},
}


@dataclass
class TextSide:
    """
    The distinct texts of a split.

    Args:
        texts: one spelling of each text.
        of_picture: for each picture the texts that are right for it.
    """

    texts: list[str]
    of_picture: list[list[int]]

    @property
    def pictures_of(self) -> list[list[int]]:
        """The pictures for which each text is right."""
        pictures = [[] for _ in self.texts]
        for picture, texts in enumerate(self.of_picture):
            for text in texts:
                pictures[text].append(picture)
        return pictures


def collect_texts(texts_of_pictures: list[list[str]]) -> TextSide:
    """Collect the distinct texts (see [`text_key`]), in order of their first occurrence."""
    numbers: dict[str, int] = {}
    texts, of_picture = [], []
    for candidates in texts_of_pictures:
        right = []
        for text in candidates:
            number = numbers.setdefault(text_key(text), len(texts))
            if number == len(texts):
                texts.append(text)
            right.append(number)
        of_picture.append(sorted(set(right)))
    return TextSide(texts, of_picture)


@dataclass
class RowResult:
    """
    One row of the table.

    Args:
        scores: R@1, R@5, R@10 in both directions, and R@mean, the mean of the six.
        image_ranks, text_ranks: ranks of the best positives, from 0; `(pictures,)` and `(texts,)`.
        top_texts, top_pictures: indices of the first candidates, `(pictures, 10)` and `(texts, 10)`.
    """

    scores: dict
    image_ranks: np.ndarray
    text_ranks: np.ndarray
    top_texts: np.ndarray
    top_pictures: np.ndarray


def score_retrieval(similarity: np.ndarray, side: TextSide) -> RowResult:
    """
    Score retrieval in both directions.

    Args:
        similarity: `(pictures, texts)`.
    """
    image_ranks = retrieval_ranks(similarity, side.of_picture)
    text_ranks = retrieval_ranks(similarity.T, side.pictures_of)
    scores = {
        "image_to_text": {f"R@{k}": recall_at(image_ranks, k) for k in (1, 5, 10)},
        "text_to_image": {f"R@{k}": recall_at(text_ranks, k) for k in (1, 5, 10)},
    }
    six = [value for direction in scores.values() for value in direction.values()]
    scores["R@mean"] = sum(six) / 6
    return RowResult(
        scores, image_ranks, text_ranks, top_candidates(similarity, TOP), top_candidates(similarity.T, TOP)
    )


def similarity_matrix(image_features: torch.Tensor, text_features: torch.Tensor) -> np.ndarray:
    """Return the cosines, `(pictures, texts)`; the best counts if a picture has several queries."""
    return torch.cat([query_similarity(rows, text_features) for rows in image_features.split(BLOCK)]).numpy()


def evaluate_retrieval(
    pictures: PictureSet,
    output: str | Path,
    model: str | Path,
    bidirectional: str | Path | None = None,
    train_pictures: PictureSet | None = None,
    texts: str = "name",
    batch_size: int = 64,
    device: str = "cpu",
) -> dict:
    """
    Score an image tokenizer, print the table and write it, with all predictions, to a folder.

    Args:
        output: folder for `retrieval.json`, `retrieval_images.parquet` and `retrieval_texts.parquet`.
        model: folder or Hub id of a SEED repository or image tokenizer.
        bidirectional: folder or Hub id of the Q-Former before stage I, for the first row.
        train_pictures: if given, the report has floors: the scores of the nearest training picture's name.
        texts: "name" (one text per picture: the column `name`, else the first caption) or "captions" (each caption is
            a text of its own, as for Flickr30K and COCO).

    Returns:
        The content of `retrieval.json`.

    Raises:
        ValueError: `bidirectional` names a causal model, or both models are bidirectional; no picture can be used; or
            a model has no text branch.
        FileNotFoundError: a model has no text tokenizer.
    """
    tokenizers = [EvaluatedTokenizer(model, device)]
    if bidirectional is not None:
        if not tokenizers[0].causal:
            raise ValueError(f"{model} is bidirectional itself; leave --bidirectional out to score it alone.")
        tokenizers.append(EvaluatedTokenizer(bidirectional, device))
        if tokenizers[1].causal:
            raise ValueError(
                f"{bidirectional} has a causal Q-Former, but --bidirectional needs one with qformer_config.causal "
                "false; examples/train_qformer.py or `seed convert blip2` makes one."
            )
    for tokenizer in tokenizers:
        tokenizer.load_text_tokenizer()  # raises an error before the pictures are encoded, if something is missing
    encoded = _encode(tokenizers, pictures, batch_size, with_texts=texts)
    side = collect_texts(encoded["texts"])
    results = {}
    for tokenizer, features, code_features in zip(tokenizers, encoded["features"], encoded["code_features"]):
        text_features = tokenizer.encode_texts(side.texts, batch_size)
        label = CAUSAL if tokenizer.causal else BIDIRECTIONAL
        results[label] = score_retrieval(similarity_matrix(features, text_features), side)
        if code_features is not None and tokenizer is tokenizers[0]:
            results[CODES] = score_retrieval(similarity_matrix(code_features, text_features), side)
    results = {label: results[label] for label in (BIDIRECTIONAL, CAUSAL, CODES) if label in results}

    report = {
        "task": "retrieval",
        "data": {
            "source": pictures.source,
            "split": pictures.split,
            "pictures": len(side.of_picture),
            "skipped": pictures.report.skipped,
            "texts": len(side.texts),
        },
        "results": {label: result.scores for label, result in results.items()},
        "ratios_of_R@mean": _ratios(results),
        "codebook": _codebook(tokenizers[0], encoded["codes"]),
        "floors": _floors(tokenizers[0], encoded, train_pictures, batch_size) if train_pictures else None,
        "models": {
            "model": tokenizers[0].describe(),
            "bidirectional": tokenizers[1].describe() if bidirectional is not None else None,
        },
        "settings": {"texts": texts, "batch_size": batch_size, "device": str(device)},
        **provenance(),
        "paper": {"note": "R@1 image to text, text to image; other data, not comparable", "Table 1": PAPER},
    }
    _write(Path(output), report, results, side, encoded)
    print(summary(report))
    return report


def _encode(
    tokenizers: list[EvaluatedTokenizer],
    pictures: PictureSet,
    batch_size: int,
    with_texts: str,
    label: str = "pictures",
) -> dict:
    """Compute all that the scores need of the pictures, in one pass over them."""
    encodings = [[] for _ in tokenizers]
    texts, names, ids, rows, pixels = [], [], [], [], []
    for batch in pictures.batches(batch_size, description=label):
        images = [picture.image for picture in batch]
        for tokenizer, parts in zip(tokenizers, encodings):
            parts.append(tokenizer.encode_images(images))
        texts += [picture.captions if with_texts == "captions" else [picture.name] for picture in batch]
        names += [picture.name for picture in batch]
        ids += [picture.id for picture in batch]
        rows += [picture.row for picture in batch]
        pixels += [pixel_vector(image) for image in images]
    return {
        "texts": texts,
        "names": names,
        "ids": ids,
        "rows": rows,
        "features": [torch.cat([part.embedding_features for part in parts]) for parts in encodings],
        "code_features": [
            torch.cat([part.code_features for part in parts]) if parts[0].code_features is not None else None
            for parts in encodings
        ],
        "codes": torch.cat([part.codes for part in encodings[0]]) if tokenizers[0].has_codes else None,
        "pooled": torch.cat([part.pooled for part in encodings[0]]),
        "pixels": torch.from_numpy(np.stack(pixels)),
    }


def _codebook(tokenizer: EvaluatedTokenizer, codes: torch.Tensor | None) -> dict | None:
    if codes is None:
        return None
    size = tokenizer.model.config.codebook_size
    measured = codebook_usage(torch.bincount(codes.flatten(), minlength=size))
    return {
        "size": size,
        **measured,
        "perplexity_over_size": measured["perplexity"] / size,
        "distinct_code_sequences": len(torch.unique(codes, dim=0)),
    }


def _floors(tokenizer: EvaluatedTokenizer, encoded: dict, train_pictures: PictureSet, batch_size: int) -> dict:
    """Return image-to-name R@1 by the nearest training picture, in the frozen encoder's features and in pixels."""
    train = _encode([tokenizer], train_pictures, batch_size, with_texts="name", label="training pictures")
    train_keys = np.array([text_key(name) for name in train["names"]])
    keys = np.array([text_key(name) for name in encoded["names"]])

    def floor(similarity) -> float:
        hits = []
        for start in range(0, len(keys), BLOCK):
            block = slice(start, start + BLOCK)
            hits.append(nearest_is_right(similarity(block), keys[block, None] == train_keys[None]))
        return float(np.concatenate(hits).mean())

    return {
        "training_pictures": len(train_keys),
        "encoder": floor(lambda block: (encoded["pooled"][block] @ train["pooled"].t()).numpy()),
        "pixels_16x16": floor(lambda block: -torch.cdist(encoded["pixels"][block], train["pixels"]).numpy()),
    }


def _ratios(results: dict[str, RowResult]) -> dict[str, float | None]:
    def ratio(upper: str, lower: str) -> float | None:
        if upper not in results or lower not in results or not results[lower].scores["R@mean"]:
            return None
        return results[upper].scores["R@mean"] / results[lower].scores["R@mean"]

    return {f"{CAUSAL} / {BIDIRECTIONAL}": ratio(CAUSAL, BIDIRECTIONAL), f"{CODES} / {CAUSAL}": ratio(CODES, CAUSAL)}


def _write(output: Path, report: dict, results: dict[str, RowResult], side: TextSide, encoded: dict) -> None:
    """Write the predictions first, so that there are never metrics without them."""
    output.mkdir(parents=True, exist_ok=True)
    codes = encoded["codes"]
    images = []
    for picture, name in enumerate(encoded["names"]):
        row = {"row": encoded["rows"][picture], "id": encoded["ids"][picture], "name": name}
        if codes is not None:
            row["codes"] = codes[picture].tolist()
        for label, result in results.items():
            row[f"{label} rank"] = int(result.image_ranks[picture])
            row[f"{label} top texts"] = [side.texts[text] for text in result.top_texts[picture]]
        images.append(row)
    texts = []
    for number, text in enumerate(side.texts):
        row = {"text": text}
        for label, result in results.items():
            row[f"{label} rank"] = int(result.text_ranks[number])
            row[f"{label} top ids"] = [encoded["ids"][picture] for picture in result.top_pictures[number]]
        texts.append(row)
    write_parquet(output / "retrieval_images.parquet", images)
    write_parquet(output / "retrieval_texts.parquet", texts)
    write_json(output / "retrieval.json", report)


def summary(report: dict) -> str:
    """Return the report as text."""
    header = ["", *(f"{way} R@{k}" for way in ("image->text", "text->image") for k in (1, 5, 10)), "R@mean"]
    rows = [
        [label, *scores["image_to_text"].values(), *scores["text_to_image"].values(), scores["R@mean"]]
        for label, scores in report["results"].items()
    ]
    data, codebook, floors = report["data"], report["codebook"], report["floors"]
    split = f", split {data['split']}" if data["split"] else ""
    lines = [
        "",
        f"Retrieval on {data['source']}{split}: {data['pictures']} pictures ({data['skipped']} skipped), "
        f"{data['texts']} texts",
        "",
        format_table(header, rows),
        "",
    ]
    lines += [f"R@mean, {name}: {ratio:.3f}" for name, ratio in report["ratios_of_R@mean"].items() if ratio]
    if codebook:
        lines.append(
            f"Codebook of {codebook['size']}: usage {codebook['usage']:.3f}, perplexity {codebook['perplexity']:.1f} "
            f"({codebook['perplexity_over_size']:.3f} of its size); "
            f"{codebook['distinct_code_sequences']} distinct code sequences"
        )
        if CODES not in report["results"]:
            lines.append("There is no row for codes: this image tokenizer has no reconstruction decoder.")
    if floors:
        lines.append(
            f"Floors, image->name R@1 of the nearest of {floors['training_pictures']} training pictures: by the "
            f"frozen encoder's features {floors['encoder']:.3f}, by 16 x 16 pixels {floors['pixels_16x16']:.3f}"
        )
    paper = [[f"{name}, {label}", *pair] for name, values in PAPER.items() for label, pair in values.items()]
    lines += [
        "",
        "For context, the paper's Table 1; its data and sizes are others, so the numbers are not comparable",
        "",
        format_table(["", "image->text R@1", "text->image R@1"], paper),
    ]
    return "\n".join(lines)
