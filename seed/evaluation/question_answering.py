"""
Score answers to questions about pictures by VQA accuracy and exact match, overall and by kind of question.

The language model is compared with three answers that do not look at the picture: its own answers to the codes of
another picture, the most frequent training answer to the same question, and the most frequent training answer.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.image_text import SkipReport, iter_valid
from ..data.questions import QuestionFile
from .language_model import EvaluatedLanguageModel, settings_of
from .metrics import bootstrap_interval
from .pictures import text_key
from .report import format_table, provenance, write_json, write_parquet
from .scores import choose, interval_text, load_metric, load_metrics, others

LANGUAGE_MODEL, BLIND = "language model", "codes of another picture"
QUESTION_ONLY, MAJORITY = "most frequent answer to the question", "majority answer"
OVERALL = "overall"


class TrainingAnswers:
    """
    The answers that the training file gives without a picture.

    Args:
        train: the questions of the training file; the first of several answers counts.
    """

    def __init__(self, train: QuestionFile):
        overall: Counter = Counter()
        by_kind: dict[str, Counter] = {}
        by_question: dict[str, Counter] = {}
        for row in train.questions:
            answer = row["answers"][0]
            overall[answer] += 1
            by_kind.setdefault(row["kind"], Counter())[answer] += 1
            by_question.setdefault(text_key(row["question"]), Counter())[answer] += 1
        self.majority = _commonest(overall)
        self._of_kind = {kind: _commonest(counts) for kind, counts in by_kind.items()}
        self._of_question = {question: _commonest(counts) for question, counts in by_question.items()}

    def question_only(self, question: dict) -> str:
        """Return the commonest answer to the same question, or to its kind if the question was never asked."""
        of_kind = self._of_kind.get(question["kind"], self.majority)
        return self._of_question.get(text_key(question["question"]), of_kind)


def _commonest(counts: Counter) -> str:
    """Return the commonest answer; among equally frequent ones the alphabet decides, not the order of rows."""
    return min(counts, key=lambda answer: (-counts[answer], answer))


def evaluate_questions(
    questions: QuestionFile,
    output: str | Path,
    model: EvaluatedLanguageModel,
    train: QuestionFile | None = None,
    limit: int | None = None,
    batch_size: int = 64,
) -> dict:
    """
    Answer questions, score the answers, print the table and write it to a folder.

    Questions about pictures that cannot be opened are left out; the report counts such pictures and questions.

    Args:
        output: folder for `vqa.json` and `vqa_predictions.parquet`.
        train: the training file, for the answers that need no picture; None leaves those rows out.
        limit: number of questions to ask, chosen at random by the model's seed; None asks all.

    Returns:
        The content of `vqa.json`.

    Raises:
        ValueError: another image tokenizer made the codes; all pictures have the same codes; or no picture can be
            opened.
    """
    load_metrics("vqa_accuracy", "gqa_accuracy")
    chosen = [questions.questions[i] for i in choose(len(questions.questions), limit, model.seed)]
    wanted = sorted({row["picture"] for row in chosen})
    used, codes = _codes(questions, wanted, model, batch_size)
    place = {picture: number for number, picture in enumerate(used)}
    asked = [row for row in chosen if row["picture"] in place]
    own = np.array([place[row["picture"]] for row in asked])
    other = others([row.tolist() for row in codes], model.seed)

    answers = {
        LANGUAGE_MODEL: _answer(model, asked, codes[own], batch_size, "answering"),
        BLIND: _answer(model, asked, codes[other[own]], batch_size, "answering without looking"),
    }
    if train:
        training = TrainingAnswers(train)
        answers[QUESTION_ONLY] = [training.question_only(row) for row in asked]
        answers[MAJORITY] = [training.majority] * len(asked)
    kinds = np.array([row["kind"] for row in asked])
    each = {label: _score(texts, asked) for label, texts in answers.items()}
    results = {label: _by_kind(scores, kinds, own, model.seed) for label, scores in each.items()}

    report = {
        "task": "vqa",
        "data": {
            "source": str(questions.path),
            "questions": len(asked),
            "of": len(questions.questions),
            "pictures": len(used),
            "skipped": len(wanted) - len(used),
            "skipped_questions": len(chosen) - len(asked),
            "by_kind": dict(Counter(kinds.tolist())),
            "train": str(train.path) if train else None,
        },
        "results": results,
        "models": {"model": model.describe()},
        "settings": {
            "prompt": model.processor.question_prompt,
            "max_new_tokens": model.text_options.get("max_new_tokens", model.processor.max_answer_tokens),
            "generation": settings_of(model) | model.text_options,
            "seed": model.seed,
            "limit": limit,
            "batch_size": batch_size,
        },
        **provenance(),
    }
    _write(Path(output), report, asked, answers, each)
    print(summary(report))
    return report


def _codes(
    questions: QuestionFile, wanted: list[int], model: EvaluatedLanguageModel, batch_size: int
) -> tuple[list[int], torch.LongTensor]:
    """Return the pictures that could be opened, and their codes, `(pictures, num_codes)`."""
    config = model.model.config
    stored = questions.check_codes(config.image_tokenizer_hash, config.codebook_size, config.num_codes)
    if stored is not None:
        return wanted, stored[wanted]
    used, parts, report = [], [], SkipReport()
    for start in tqdm(range(0, len(wanted), batch_size), desc="tokenising pictures", unit="batch"):
        rows = ({"image": questions.pictures[i], "picture": i} for i in wanted[start : start + batch_size])
        if batch := list(iter_valid(rows, report)):
            parts.append(model.tokenizer.encode_images([row["image"] for row in batch]).codes)
            used += [row["picture"] for row in batch]
    if not used:
        raise ValueError(f"{questions.path} has no picture that can be used. {report.summary()}")
    return used, torch.cat(parts)


def _answer(
    model: EvaluatedLanguageModel, asked: list[dict], codes: torch.LongTensor, batch_size: int, label: str
) -> list[str]:
    # Questions of similar length go together, which saves padding. The answers are put back in order.
    order = sorted(range(len(asked)), key=lambda number: len(asked[number]["question"]))
    answers = [""] * len(asked)
    for start in tqdm(range(0, len(order), batch_size), desc=label, unit="batch"):
        batch = order[start : start + batch_size]
        texts = model.answer(codes[batch], [asked[number]["question"] for number in batch])
        for number, text in zip(batch, texts, strict=True):
            answers[number] = text
    return answers


def _score(answers: list[str], asked: list[dict]) -> dict[str, np.ndarray]:
    """Return for every question the VQA accuracy, and whether the answer is exactly the first right one (GQA)."""
    right = [row["answers"] for row in asked]
    vqa = load_metric("vqa_accuracy").compute(predictions=answers, references=right, per_example=True)
    first = [answers[0] for answers in right]
    exact = load_metric("gqa_accuracy").compute(predictions=answers, references=first, per_example=True)
    return {"vqa_accuracy": np.array(vqa["each"]), "exact_match": np.array(exact["each"])}


def _by_kind(scores: dict[str, np.ndarray], kinds: np.ndarray, pictures: np.ndarray, seed: int) -> dict:
    """
    Return means overall and by kind of question.

    The interval resamples pictures, not questions, because the questions about one picture belong together.

    Args:
        pictures: `(questions,)`, the number of the picture that each question is about, from 0.
    """
    accuracy = scores["vqa_accuracy"]
    sums, counts = np.bincount(pictures, weights=accuracy), np.bincount(pictures)
    interval = bootstrap_interval(lambda rows: sums[rows].sum() / counts[rows].sum(), len(counts), seed=seed)
    rows = {OVERALL: np.ones(len(kinds), dtype=bool)} | {kind: kinds == kind for kind in sorted(set(kinds.tolist()))}
    means = {row: {name: float(each[mask].mean()) for name, each in scores.items()} for row, mask in rows.items()}
    means[OVERALL]["vqa_accuracy_95%"] = interval
    return means


def _write(output: Path, report: dict, asked: list[dict], answers: dict[str, list[str]], each: dict) -> None:
    """Write the predictions first, so that there are never metrics without them."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, question in enumerate(asked):
        row = {key: question[key] for key in ("id", "question", "kind", "answers")}
        for label, texts in answers.items():
            row[label] = texts[number]
            row[f"{label} accuracy"] = float(each[label]["vqa_accuracy"][number])
        rows.append(row)
    write_parquet(output / "vqa_predictions.parquet", rows)
    write_json(output / "vqa.json", report)


def summary(report: dict) -> str:
    """Return the report as text."""
    data, results = report["data"], report["results"]
    kinds = [kind for kind in results[LANGUAGE_MODEL] if kind != OVERALL]
    header = ["VQA accuracy", OVERALL, "95%", *(f"{kind} ({data['by_kind'][kind]})" for kind in kinds), "exact match"]
    rows = [
        [
            label,
            scores[OVERALL]["vqa_accuracy"],
            interval_text(scores[OVERALL]["vqa_accuracy_95%"]),
            *(scores[kind]["vqa_accuracy"] for kind in kinds),
            scores[OVERALL]["exact_match"],
        ]
        for label, scores in results.items()
    ]
    lines = [
        "",
        f"{data['questions']} of {data['of']} questions of {data['source']} about {data['pictures']} pictures "
        f"({data['skipped']} skipped, with {data['skipped_questions']} questions)",
        "",
        format_table(header, rows),
    ]
    if not data["train"]:
        lines += ["", "Answers that need no picture are left out; name the training file with --train-data."]
    return "\n".join(lines)


__all__ = ["TrainingAnswers", "evaluate_questions", "summary"]
