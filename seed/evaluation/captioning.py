"""
Score captions of pictures (the paper does it on COCO) by COCO's metrics and by exact names.

The language model is compared with two others. A retrieval captioner reads the same codes: it gives the training name
whose text feature is nearest to the feature of the codes, both by the image tokenizer's own contrastive heads. A
shuffled control gives the language model's captions of other pictures.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data.image_text_sources import caption_list
from ..data.sheets import CELL, SheetCell, fit, save_sheet, sheet_rows
from .language_model import EvaluatedLanguageModel, settings_of
from .metrics import bootstrap_interval
from .pictures import Picture, PictureSet, distinct_texts, text_key
from .report import format_table, provenance, write_json, write_parquet
from .scores import choose, interval_text, load_metrics, others, score_captions

PREDICTIONS_FILE, REPORT_FILE = "caption_predictions.parquet", "caption.json"
LANGUAGE_MODEL, RETRIEVAL, SHUFFLED = "language model", "nearest training name", "shuffled"
PAPER_NOTE = (
    "The paper's COCO captioning (other data and sizes, not comparable): CIDEr 119.0, BLEU@4 34.6, METEOR 28.4 for "
    "SEED-OPT2.7B, CIDEr 131.0 for BLIP-2 (all times 100)."
)
COLUMNS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "name_accuracy")


class NearestName:
    """
    The retrieval captioner.

    Args:
        model: its image tokenizer computes both features.
        names: the names to choose from, those of the training pictures.

    Raises:
        FileNotFoundError, ValueError: the image tokenizer lacks the reconstruction decoder, the text branch or the
            text tokenizer.
    """

    def __init__(self, model: EvaluatedLanguageModel, names: list[str]):
        if not model.tokenizer.model.config.use_reconstruction_decoder:
            raise ValueError(
                f"The image tokenizer of {model.name} has no reconstruction decoder, by which the retrieval captioner "
                "compares codes with names; leave --train-data out to score the language model alone."
            )
        self.names = distinct_texts(names)
        self.features = model.tokenizer.encode_texts(self.names)

    def caption(self, code_features: torch.Tensor) -> list[str]:
        """Return the nearest name for each picture; `code_features` is `(pictures, projection_dim)`."""
        return [self.names[number] for number in (code_features @ self.features.T).argmax(dim=1).tolist()]


def training_names(pictures: PictureSet) -> list[str]:
    """Return the names of a training split's pictures: the column `name`, else the first caption, if there is one."""
    dataset = pictures.dataset
    names = dataset["name"] if "name" in dataset.column_names else [None] * len(dataset)
    names = (None if name is None else str(name) for name in names)
    found = ([*caption_list(name), *caption_list(captions)] for name, captions in zip(names, dataset["captions"]))
    return [texts[0] for texts in found if texts]


def evaluate_captions(
    pictures: PictureSet,
    output: str | Path,
    model: EvaluatedLanguageModel,
    train_pictures: PictureSet | None = None,
    references: str = "captions",
    limit: int | None = None,
    batch_size: int = 32,
) -> dict:
    """
    Caption pictures, score the captions, print the table and write it to a folder.

    Args:
        output: folder for `caption.json`, `caption_predictions.parquet` and `captions.png`.
        train_pictures: the retrieval captioner chooses from their names; None leaves it out.
        references: "captions", or "names": COCO's metrics then compare with the column `names` alone (else with the
            captions). Exact-name accuracy always compares with `names`.
        limit: number of pictures to take, chosen at random by the model's seed; None takes all.

    Returns:
        The content of `caption.json`.

    Raises:
        ValueError: all pictures have one name, which leaves nothing to shuffle; or there are `train_pictures`, and
            [`NearestName`] cannot use the image tokenizer.
    """
    load_metrics("coco_captions", "name_accuracy")
    rows = choose(len(pictures.dataset), limit, model.seed)
    retrieval = NearestName(model, training_names(train_pictures)) if train_pictures else None
    found, captions, codes = _caption(pictures, rows, model, retrieval, batch_size)
    names = _names_of(pictures, found)
    # On large sets these are hours of work, to be kept even if a scorer fails (METEOR is a Java program).
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    predictions = _predictions(found, names, codes, captions)
    (output / REPORT_FILE).unlink(missing_ok=True)  # an earlier report would belong to other predictions
    write_parquet(output / PREDICTIONS_FILE, predictions)
    shuffled = others([text_key(names[number][0]) for number in range(len(found))], model.seed)
    captions[SHUFFLED] = [captions[LANGUAGE_MODEL][other] for other in shuffled]
    targets = names if references == "names" else [picture.captions for picture in found]
    results = {label: score_captions(texts, targets, names, model.seed) for label, texts in captions.items()}

    report = {
        "task": "caption",
        "data": {
            "source": pictures.source,
            "split": pictures.split,
            "pictures": len(found),
            "of": len(pictures.dataset),
            "skipped": len(rows) - len(found),
            "references": references,
        },
        "results": {label: _without_lists(scores) for label, scores in results.items()},
        "differences": _differences(results, model.seed),
        "names_to_choose_from": len(retrieval.names) if retrieval else None,
        "models": {"model": model.describe()},
        "settings": {
            "prompt": model.processor.caption_prompt,
            "max_new_tokens": model.text_options.get("max_new_tokens", model.processor.max_caption_tokens),
            "generation": settings_of(model) | model.text_options,
            "seed": model.seed,
            "limit": limit,
            "batch_size": batch_size,
        },
        **provenance(),
        "paper": PAPER_NOTE,
    }
    for label, scores in results.items():
        for number, row in enumerate(predictions):
            row[label] = captions[label][number]
            row[f"{label} CIDEr"] = scores["cider_each"][number]
            row[f"{label} is a name"] = bool(scores["each_is_a_name"][number])
    write_parquet(output / PREDICTIONS_FILE, predictions)
    write_json(output / REPORT_FILE, report)
    print(summary(report))
    save_sheet(_sheet(pictures, predictions, model.seed), output / "captions.png")
    return report


def _caption(
    pictures: PictureSet,
    rows: np.ndarray,
    model: EvaluatedLanguageModel,
    retrieval: NearestName | None,
    batch_size: int,
) -> tuple[list[Picture], dict[str, list[str]], torch.LongTensor]:
    """
    Return the pictures that could be opened, their captions by each captioner, and their codes.

    The pictures come without their images: thousands of photographs would not fit into memory.
    """
    found, codes, captions = [], [], {LANGUAGE_MODEL: []}
    for batch in pictures.batches(batch_size, rows=rows, description="captioning"):
        encoded = model.tokenizer.encode_images([picture.image for picture in batch])
        captions[LANGUAGE_MODEL] += model.caption(encoded.codes)
        if retrieval:
            captions.setdefault(RETRIEVAL, []).extend(retrieval.caption(encoded.code_features))
        codes.append(encoded.codes)
        found += [replace(picture, image=None) for picture in batch]
    return found, captions, torch.cat(codes)


def _names_of(pictures: PictureSet, found: list[Picture]) -> list[list[str]]:
    """Return all names of each picture: the column `names`, else its name and captions."""
    if "names" in pictures.dataset.column_names:
        column = pictures.dataset["names"]
        return [caption_list(column[picture.row]) or [picture.name] for picture in found]
    return [list(dict.fromkeys([picture.name, *picture.captions])) for picture in found]


def _without_lists(scores: dict) -> dict:
    return {key: value for key, value in scores.items() if key not in ("cider_each", "each_is_a_name")}


def _differences(results: dict, seed: int) -> dict | None:
    """Compare the language model with the retrieval captioner, picture by picture."""
    if RETRIEVAL not in results:
        return None
    differences = {}
    for name, column in (("cider", "cider_each"), ("name_accuracy", "each_is_a_name")):
        each = np.subtract(results[LANGUAGE_MODEL][column], results[RETRIEVAL][column])
        interval = bootstrap_interval(lambda rows, each=each: each[rows].mean(), len(each), seed=seed)
        differences[name] = {"mean": float(each.mean()), "95%": interval}
    return differences


def _predictions(
    found: list[Picture], names: list[list[str]], codes: torch.LongTensor, captions: dict[str, list[str]]
) -> list[dict]:
    """Return a row for each picture, without scores yet."""
    rows = []
    for number, picture in enumerate(found):
        row = {"row": picture.row, "id": picture.id, "names": names[number], "captions": picture.captions}
        row["codes"] = codes[number].tolist()
        rows.append(row | {label: texts[number] for label, texts in captions.items()})
    return rows


def _sheet(pictures: PictureSet, predictions: list[dict], seed: int) -> list[SheetCell]:
    """Return the pictures that the seed chooses for the sheet, opened again, with their captions."""
    shown = {predictions[number]["row"]: predictions[number] for number in sheet_rows(len(predictions), seed)}
    return [
        SheetCell(
            fit(picture.image, CELL),
            shown[picture.row][LANGUAGE_MODEL] or "(nothing)",
            shown[picture.row]["names"][0],
        )
        for (picture,) in pictures.batches(1, rows=list(shown))
    ]


def summary(report: dict) -> str:
    """Return the report as text."""
    data, results = report["data"], report["results"]
    header = ["", "BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "exact name", "95%"]
    rows = [
        [label, *(scores[column] for column in COLUMNS), interval_text(scores["name_accuracy_95%"])]
        for label, scores in results.items()
    ]
    split = f", split {data['split']}" if data["split"] else ""
    first = results[LANGUAGE_MODEL]
    lines = [
        "",
        f"Captions of {data['pictures']} of {data['of']} pictures of {data['source']}{split} ({data['skipped']} "
        f"skipped), against their {data['references']}; tokenizer {first['tokenizer']}",
        "",
        format_table(header, rows),
        "",
    ]
    lines += [f"No {name}: {reason}" for name, reason in first["missing"].items()]
    if report["differences"]:
        for name, difference in report["differences"].items():
            lines.append(
                f"{name}, {LANGUAGE_MODEL} - {RETRIEVAL} (of {report['names_to_choose_from']}): "
                f"{difference['mean']:+.3f}, 95% {interval_text(difference['95%'])}"
            )
    else:
        lines.append("No retrieval captioner: --train-data names the pictures whose names it chooses from.")
    return "\n".join([*lines, "", report["paper"]])


__all__ = ["NearestName", "evaluate_captions", "summary", "training_names"]
