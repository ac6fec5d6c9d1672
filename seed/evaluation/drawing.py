"""
Score drawings from names by a judge we did not train: are they like the real pictures of the name, in all styles?

As for reconstructions, the scores stand between two ends: Stable Diffusion drawing from the same prompt and the same
noise (the paper's upper bound), and a shuffled control, which compares drawings with the pictures of other names. An
oracle, the training picture that is most like the concept's other pictures, shows what copying could reach.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data.sheets import SheetCell, save_sheet, sheet_rows
from ..files_seed import replacing_file
from .judge import Judge
from .language_model import EvaluatedLanguageModel, settings_of
from .metrics import retrieval_ranks, top_candidates
from .pictures import Picture, PictureSet, distinct_texts, text_key
from .reconstruction import Drawer, JudgedDrawings, score_drawings
from .report import format_table, provenance, write_json, write_parquet
from .scores import choose, interval_text, load_metric, load_metrics

LANGUAGE_MODEL, UPPER = "language model", "Stable Diffusion from the prompt"
ORACLE, SHUFFLED = "nearest training picture (oracle)", "shuffled"


@dataclass
class Concepts:
    """
    The real pictures, grouped by name (see [`text_key`]).

    Args:
        names: one spelling of each concept's name.
        sums: `(concepts, dim)`, the sum of the judge's features of the pictures of each concept.
        counts: `(concepts,)`, the number of pictures of each concept.
    """

    names: list[str]
    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], features: np.ndarray) -> "Concepts":
        """Group pictures by their names; features: `(pictures, dim)`."""
        spellings = distinct_texts(names)
        numbers = {text_key(name): number for number, name in enumerate(spellings)}
        of_picture = [numbers[text_key(name)] for name in names]
        sums = np.zeros((len(spellings), features.shape[1]), dtype=np.float64)
        np.add.at(sums, of_picture, features)
        return cls(spellings, sums, np.bincount(of_picture))

    @property
    def means(self) -> np.ndarray:
        """The mean feature of each concept, `(concepts, dim)`."""
        return self.sums / self.counts[:, None]


def judge_prompts(drawings: np.ndarray, own: np.ndarray, concepts: Concepts) -> JudgedDrawings:
    """
    Judge the similarity of drawings to their concepts, and the retrieval of the right concept among all.

    Similarity is the mean cosine of a drawing with the real pictures of its concept. For retrieval, concepts are sorted
    by the cosine with the mean of their pictures, so that concepts of one picture have no advantage.

    Args:
        drawings: `(prompts, dim)`, the judge's L2-normalised features.
        own: `(prompts,)`, the concept that each prompt names.

    Returns:
        The judgement; its `shuffled` compares a concept's pictures with the drawings of all other prompts.
    """
    means = concepts.means
    directions = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    metric = load_metric("drawing_similarity")
    scores = metric.compute(predictions=drawings, references=means[own], per_example=True)
    return JudgedDrawings(
        similarity=np.array(scores["each"]),
        shuffled=np.array(scores["shuffled_each"]),
        ranks=retrieval_ranks(drawings @ directions.T, [[number] for number in own]),
        top=top_candidates(drawings @ directions.T, 5),
    )


def oracle(training: np.ndarray, training_concepts: np.ndarray, own: np.ndarray, concepts: Concepts):
    """
    Choose for each prompt the training picture that is most like the other real pictures of its concept.

    Args:
        training: `(training, dim)`, the judge's features.
        training_concepts: `(training,)`, the concept of each training picture.
        own: `(prompts,)`, the concept that each prompt names.

    Returns:
        The judgement of the chosen pictures (its `shuffled` is not defined: 0), and the chosen pictures, `(prompts,)`.
        A picture is taken out of its own concept's mean before the two are compared.
    """
    similarity = np.empty((len(training), len(own)))
    for place, concept in enumerate(own):
        total, count = concepts.sums[concept], concepts.counts[concept]
        member = training_concepts == concept
        similarity[:, place] = training @ total / count
        rest = training[member] @ total - 1.0  # a picture's cosine with itself
        similarity[member, place] = rest / (count - 1) if count > 1 else -np.inf
    chosen = similarity.argmax(axis=0)

    directions = concepts.means / np.linalg.norm(concepts.means, axis=1, keepdims=True).clip(1e-12)
    to_all = training[chosen] @ directions.T
    for place, picture in enumerate(chosen):
        left = training_concepts[picture]
        rest = concepts.sums[left] - training[picture]
        norm = np.linalg.norm(rest)
        to_all[place, left] = training[picture] @ rest / norm if concepts.counts[left] > 1 else -1.0
    judged = JudgedDrawings(
        similarity=similarity[chosen, np.arange(len(own))],
        shuffled=np.zeros(len(own)),
        ranks=retrieval_ranks(to_all, [[number] for number in own]),
        top=top_candidates(to_all, 5),
    )
    return judged, chosen


def judge_pictures(pictures: PictureSet, judge: Judge, batch_size: int, cache: str | Path | None = None):
    """
    Return the names and features of a split's pictures.

    Args:
        cache: folder in which features are kept, under a hash of the pictures' bytes, their names and the judge; None
            keeps nothing.

    Returns:
        Names, and features `(pictures, dim)`, of the pictures that could be opened.
    """
    path = None
    if cache is not None:
        path = Path(cache) / f"{_cache_key(pictures, judge)}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return stored["names"].tolist(), stored["features"]
    names, features = [], []
    for batch in pictures.batches(batch_size, description=f"judging {pictures.split or pictures.source}"):
        features.append(judge.features([picture.image for picture in batch]))
        names += [picture.name for picture in batch]
    features = torch.cat(features).numpy()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as temporary:
            np.savez(temporary, names=np.array(names), features=features)
    return names, features


def _cache_key(pictures: PictureSet, judge: Judge) -> str:
    """Return a hash of all that [`judge_pictures`] depends on, with the content of files, not their paths."""
    digest = hashlib.sha256(json.dumps(judge.description, sort_keys=True).encode())
    for row in pictures.dataset:
        image, content = row["image"], row["image"].get("bytes")
        if content is None:
            try:
                content = Path(image.get("path") or "").read_bytes()
            except OSError:
                content = b""  # such a picture is skipped, as an empty one is
        digest.update(hashlib.sha256(content).digest())
        digest.update(json.dumps([row.get("name"), row["captions"]]).encode())
    return digest.hexdigest()[:32]


def evaluate_drawings(
    pictures: PictureSet,
    output: str | Path,
    model: EvaluatedLanguageModel,
    drawer: Drawer,
    judge: Judge,
    train_pictures: PictureSet | None = None,
    further_pictures: Sequence[PictureSet] = (),
    limit: int | None = None,
    batch_size: int = 16,
    cache: str | Path | None = None,
) -> dict:
    """
    Draw every distinct name of a split, judge the drawings, print the table and write it to a folder.

    Args:
        pictures: their names are the prompts.
        output: folder for `draw.json`, `draw_predictions.parquet` and `drawings.png`.
        train_pictures: the oracle chooses from them; they also count as real pictures.
        further_pictures: more real pictures, in other styles.
        limit: number of names to draw, chosen at random by the model's seed; None draws all.
        cache: see [`judge_pictures`].

    Returns:
        The content of `draw.json`.

    Raises:
        ValueError: there are fewer than two names, which leaves nothing to shuffle; or the language model was trained
            with another image tokenizer.
    """
    load_metrics("drawing_similarity")
    model.processor.set_image_tokenizer(drawer.pipeline.image_tokenizer)  # refuses another tokenizer than the model's
    judged_sets = [judge_pictures(each, judge, batch_size, cache) for each in (pictures, *further_pictures)]
    training = judge_pictures(train_pictures, judge, batch_size, cache) if train_pictures else None
    everything = [*judged_sets, *([training] if training else [])]
    concepts = Concepts.of(sum((names for names, _ in everything), []), np.concatenate([f for _, f in everything]))
    names = distinct_texts(judged_sets[0][0])
    chosen = choose(len(names), limit, model.seed)
    if len(chosen) < 2:
        raise ValueError(f"There are {len(chosen)} names to draw; the shuffled control needs at least 2.")
    # A prompt's noise depends on its number among all names of the split, not on --limit.
    prompts = [Picture(int(i), str(i), names[i], [names[i]], Image.new("RGB", (1, 1))) for i in chosen]
    number_of = {text_key(name): number for number, name in enumerate(concepts.names)}
    own = np.array([number_of[text_key(prompt.name)] for prompt in prompts])

    shown = set(sheet_rows(len(prompts), model.seed).tolist())
    codes, features, drawings = _draw(prompts, model, drawer, judge, batch_size, shown)
    judged = {label: judge_prompts(values, own, concepts) for label, values in features.items()}
    nearest = None
    if training:
        of_training = np.array([number_of[text_key(name)] for name in training[0]])
        judged[ORACLE], nearest = oracle(training[1], of_training, own, concepts)
    shuffled = judged[LANGUAGE_MODEL].shuffled
    results = {label: score_drawings(row, judged[UPPER], shuffled, model.seed) for label, row in judged.items()}
    results[SHUFFLED] = {"similarity": float(shuffled.mean()), "normalized": 0.0, "concept": None}
    known = {text_key(name) for name in training[0]} if training else set()
    report = {
        "task": "draw",
        "data": {
            "source": pictures.source,
            "split": pictures.split,
            "names": len(names),
            "drawn": len(prompts),
            "seen_in_training": sum(text_key(prompt.name) in known for prompt in prompts) if training else None,
            "real_pictures": int(concepts.counts.sum()),
            "concepts": len(concepts.names),
            "pictures_of_a_drawn_concept": float(concepts.counts[own].mean()),
        },
        "results": results,
        "judge": judge.description,
        "models": {"model": model.describe(), "decoder": drawer.describe()},
        "settings": {
            "prompt": model.processor.drawing_prompt,
            "generation": settings_of(model) | model.drawing_options,
            "seed": model.seed,
            "limit": limit,
            "batch_size": batch_size,
            **drawer.options,
        },
        **provenance(),
    }
    _write(Path(output), report, prompts, codes, judged, concepts, drawings, training, nearest)
    print(summary(report))
    return report


def _draw(
    prompts: list[Picture],
    model: EvaluatedLanguageModel,
    drawer: Drawer,
    judge: Judge,
    batch_size: int,
    shown: set[int],
) -> tuple[torch.LongTensor, dict[str, np.ndarray], dict[int, Image.Image]]:
    """Return the codes that the model wrote, the judge's features of both kinds of drawing, and drawings to show."""
    codes, features, kept = [], {LANGUAGE_MODEL: [], UPPER: []}, {}
    for start in tqdm(range(0, len(prompts), batch_size), desc="drawing", unit="batch"):
        batch = prompts[start : start + batch_size]
        codes.append(model.draw_codes([prompt.name for prompt in batch], seed=model.seed + batch[0].row))
        drawn = drawer.reconstruct(batch, codes[-1], drawer.num_codes)
        features[LANGUAGE_MODEL].append(judge.features(drawn))
        features[UPPER].append(judge.features(drawer.draw_captions(batch)))
        kept.update({start + place: image for place, image in enumerate(drawn) if start + place in shown})
    return torch.cat(codes), {label: torch.cat(parts).numpy() for label, parts in features.items()}, kept


def _write(
    output: Path,
    report: dict,
    prompts: list[Picture],
    codes: torch.LongTensor,
    judged: dict[str, JudgedDrawings],
    concepts: Concepts,
    drawings: dict[int, Image.Image],
    training: tuple[list[str], np.ndarray] | None,
    nearest: np.ndarray | None,
) -> None:
    """Write the predictions first, so that there are never metrics without them."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, prompt in enumerate(prompts):
        row = {"prompt": prompt.name, "row": prompt.row, "codes": codes[number].tolist()}
        for label, result in judged.items():
            row[f"{label} similarity"] = float(result.similarity[number])
            row[f"{label} rank"] = int(result.ranks[number])
            row[f"{label} top names"] = [concepts.names[nearest_one] for nearest_one in result.top[number]]
        if nearest is not None:
            row["oracle's training picture"] = int(nearest[number])
            row["oracle's name"] = training[0][nearest[number]]
        rows.append(row)
    write_parquet(output / "draw_predictions.parquet", rows)
    top = judged[LANGUAGE_MODEL].top
    cells = [
        SheetCell(drawings[number], prompts[number].name, f"judge: {concepts.names[top[number, 0]]}")
        for number in sorted(drawings)
    ]
    save_sheet(cells, output / "drawings.png")
    write_json(output / "draw.json", report)


def summary(report: dict) -> str:
    """Return the report as text."""
    header = ["drawn", "similarity s", "(s - shuffled) / (SD - shuffled)", "95%", "concept R@1", "R@5", "R@10"]
    rows = []
    for label, scores in report["results"].items():
        concept = scores["concept"] or {"R@1": None, "R@5": None, "R@10": None}
        interval = interval_text(scores.get("normalized_95%"))
        rows.append([label, scores["similarity"], scores["normalized"], interval, *concept.values()])
    data, judge, settings = report["data"], report["judge"], report["settings"]
    split = f", split {data['split']}" if data["split"] else ""
    seen = "" if data["seen_in_training"] is None else f" ({data['seen_in_training']} of them seen in training)"
    return "\n".join(
        [
            "",
            f"Drawings of {data['drawn']} of {data['names']} names of {data['source']}{split}{seen}, judged by "
            f"{judge['name']} at {judge['size']} pixels against {data['real_pictures']} real pictures of "
            f"{data['concepts']} names; {settings['num_inference_steps']} steps, guidance "
            f"{settings['guidance_scale']}, seed {settings['seed']}",
            "",
            format_table(header, rows),
            "",
            "similarity: mean cosine with all real pictures of the name. concept R@k: the name is among the k whose "
            "pictures' mean is nearest to the drawing.",
        ]
    )


__all__ = ["Concepts", "evaluate_drawings", "judge_pictures", "judge_prompts", "oracle", "summary"]
