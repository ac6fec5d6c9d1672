"""The examples that a language model trains on: files of codes and words, mixed; each depends on seed and position."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from ..data.codes import CodesMetadata, check_made_by, codes_schema, read_codes, read_metadata
from ..files_seed import replacing_file
from .recipes import build_recipe, check_training, read_yaml

logger = logging.getLogger(__name__)

# For each task the column that a file needs. Files of captions serve two tasks.
TASKS = {
    "caption": "captions",
    "drawing": "captions",
    "question": "question",
    "document": "segments",
    "instruction": "messages",
    "text": "text",
}
# The tasks whose codes stand in a column of their own.
_WITH_CODES = ("caption", "drawing", "question")
# The column that marks a file of views; it numbers the views of a picture, and 0 is the picture itself.
VIEW_COLUMN = "view"
# For each dtype of the frozen weights the setting of `TrainingArguments` that computes in it.
DTYPES = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}


@dataclass
class LoraRecipe:
    """
    The part of a recipe about LoRA.

    Args:
        rank: rank of the update of every attention and feed-forward weight. The paper names none; this is our choice.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout on the input of the update.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


@dataclass
class LanguageRecipe:
    """
    The recipe of a stage of the language model.

    Args:
        epochs: number of passes over the mixture.
        training: keyword arguments of transformers' `TrainingArguments`, and `bf16: auto`, see
            [`training_arguments`]; `per_device_train_batch_size` counts examples.
        tasks: how often per epoch every row comes as `caption` (image to text), `drawing` (text to image), `question`,
            `document`, `instruction` or `text` (words alone, so that the model keeps its prose). With 0.5 every second
            row comes, and at least one; 0 leaves a task out.
        capacity: number of tokens in a packed row.
        lora: see [`LoraRecipe`].
        caption_dropout: share of the drawing examples without a caption; guidance on tokens needs them.
        first_caption_probability: how often the first of several captions is taken; else one of all, evenly.
        augmented_drawings: whether drawing examples take any view of a picture, or only the picture itself.
        chat_template: name of the processor's template for `instruction` examples; SEED's processors have "default" and
            "instruction". None takes the default. Prompt the trained model with the same template.
        dtype: dtype of the frozen weights; the trained ones are float32.
        code_embeddings: whether every code gets an input embedding of its own, see [`SeedVocabularyFields`]. A model
            that has them keeps them. An adapter without them cannot be given them.
    """

    epochs: float
    training: dict[str, Any]
    tasks: dict[str, float]
    capacity: int = 512
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    caption_dropout: float = 0.1
    first_caption_probability: float = 0.5
    augmented_drawings: bool = True
    chat_template: str | None = None
    dtype: str = "float32"
    code_embeddings: bool = False


def load_language_recipe(path: str | Path) -> LanguageRecipe:
    """
    Load and check the recipe of a stage of the language model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a mapping; a key or task is unknown or missing; a value is out of its range; or the
            training does not compute in the dtype of the frozen weights.
    """
    values = read_yaml(path)
    values["lora"] = build_recipe(LoraRecipe, values.get("lora", {}), f"{path}: lora")
    recipe = build_recipe(LanguageRecipe, values, str(path))
    check_training(recipe, path)
    unknown = sorted(recipe.tasks.keys() - TASKS.keys())
    if unknown or not any(recipe.tasks.values()):
        raise ValueError(f"{path}: tasks are {recipe.tasks}; expected weights above 0 of some of {', '.join(TASKS)}.")
    _check_ranges(recipe, path)
    _check_dtype(recipe, path)
    return recipe


def _check_ranges(recipe: LanguageRecipe, path: str | Path) -> None:
    shares = {name: getattr(recipe, name) for name in ("caption_dropout", "first_caption_probability")}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{path}: {name} is {value}; expected a share of 0 to 1.")
    for task, weight in recipe.tasks.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{path}: tasks: {task} is {weight}; expected how often every row comes, 0 or more.")
    for name, value in (("capacity", recipe.capacity), ("lora: rank", recipe.lora.rank)):
        if value < 1:
            raise ValueError(f"{path}: {name} is {value}; expected 1 or more.")


def _check_dtype(recipe: LanguageRecipe, path: str | Path) -> None:
    if recipe.dtype not in DTYPES:
        raise ValueError(f"{path}: dtype is {recipe.dtype!r}; expected one of {', '.join(DTYPES)}.")
    flag = DTYPES[recipe.dtype]
    # The trained weights are float32; without autocast torch refuses to multiply them with the others.
    if flag is not None and True not in (recipe.training.get("bf16"), recipe.training.get("fp16")):
        raise ValueError(
            f"{path}: with dtype: {recipe.dtype} the training has to be in mixed precision: add {flag}: true under "
            "training, or leave the frozen weights in float32."
        )


class LanguageFile:
    """
    A Parquet file of codes and words, which is checked when it is opened.

    | task | columns |
    |---|---|
    | `caption`, `drawing` | `codes`, `captions` (list of texts) |
    | `question` | `codes`, `question`, `answer` or `answers` (all of them are right; one is drawn) |
    | `document` | `segments`: list of `{text, codes}`, each with one of the two |
    | `instruction` | `messages`: list of `{role, content}`, see [`SeedProcessor.instruction_example`] |
    | `text` | `text`; words that do not fit into a row are cut off |

    A file of text alone has no codes and need not say which image tokenizer made them. Rows without a task's words (no
    or empty captions, question, answers, segments, messages or text) are left out of that task, and one warning counts
    them. A task whose column has another type, is empty, or lacks the `codes` beside it is left out, if the file serves
    other tasks.

    Every row is a picture (or a question, document, ...) of its own, whatever its `id`, because each shard may count
    from 0. Only in a file with a column `view`, as [`write_views`] writes it, rows of one `id` are views of one
    picture. The first is the picture itself, and an epoch takes one of them.

    Args:
        path: a file that `seed tokenize` or examples/build_codes.py wrote, or one of the same form.
        image_tokenizer_hash: [`SeedModel.codes_hash`] of the image tokenizer that the language model is for.
        codebook_size, num_codes: sizes of that image tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no column of any task, or none of the type above; questions have no answers; no row has
            words; another image tokenizer made the codes, the file does not say which one did, or codes are out of
            range. The message names the file and what to do.
    """

    def __init__(self, path: str | Path, image_tokenizer_hash: str, codebook_size: int, num_codes: int):
        self.path = Path(path)
        read_metadata(self.path)  # raises a clear error if it is no Parquet file
        columns = pq.read_schema(self.path).names
        self.tasks = [task for task, column in TASKS.items() if column in columns]
        without = [task for task in self.tasks if task in _WITH_CODES and "codes" not in columns]
        if without and without != self.tasks:  # e.g. conversations that have a title
            logger.warning("%s has no column 'codes'. This file serves no %s examples.", path, " and ".join(without))
            self.tasks = [task for task in self.tasks if task not in without]
        if self.tasks != ["text"]:
            check_made_by(self.path, image_tokenizer_hash, "the model")
        if not self.tasks:
            raise ValueError(
                f"{path}: has the columns {', '.join(columns)}; expected captions, question, segments, messages or "
                "text."
            )
        wanted = {TASKS[task] for task in self.tasks}
        if "question" in wanted:
            wanted |= {"answer", "answers"}
        self.table = pq.read_table(self.path, columns=[name for name in columns if name in wanted])
        self.codes, ids = None, np.arange(len(self.table))
        if {"captions", "question"} & wanted:
            file = read_codes(self.path, codebook_size, num_codes)
            self.codes = file.codes.numpy().astype(np.int32)
            if VIEW_COLUMN in columns and "question" not in columns:  # several questions about one picture are no views
                ids = np.asarray(file.ids)
        self.views, faults = {}, {}
        for column in dict.fromkeys(TASKS[task] for task in self.tasks):
            names = " and ".join(task for task in self.tasks if TASKS[task] == column)
            try:
                usable = _usable_rows(self.table, column, str(path))
            except ValueError as error:
                faults[names] = str(error)
                continue
            rows = np.flatnonzero(usable)
            if not len(rows):
                faults[names] = f"{path}: no row has the words that {names} examples need."
                continue
            if len(rows) < len(usable):
                logger.warning(
                    "%s: %d of %d rows have no words for %s examples and are left out of those.",
                    path, len(usable) - len(rows), len(usable), names,
                )  # fmt: skip
            views = _group(ids[rows], rows) if column == "captions" else rows[:, None]
            self.views |= {task: views for task in self.tasks if TASKS[task] == column}
        if not self.views:
            raise ValueError(" ".join(faults.values()))
        for names, fault in faults.items():
            logger.warning("%s This file serves no %s examples.", fault, names)
        self.tasks = [*self.views]

    def count(self, task: str) -> int:
        """Return the number of pictures or rows for a task."""
        return len(self.views[task])

    def example(self, processor, task: str, number: int, rng: np.random.Generator, recipe: LanguageRecipe) -> dict:
        """Make the example of picture (or row) `number`, with its `name`."""
        views = self.views[task][number]
        plain = task == "drawing" and not recipe.augmented_drawings
        row = int(views[0 if plain else rng.integers(len(views))])
        name = f"{self.path.name}, row {row}"
        try:
            return self._build(processor, task, row, rng, recipe) | {"name": name}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error

    def _build(self, processor, task: str, row: int, rng: np.random.Generator, recipe: LanguageRecipe) -> dict:
        value = self.table[TASKS[task]][row].as_py()
        if task == "document":
            return processor.document_example([_segment(segment) for segment in value])
        if task == "text":
            return processor.document_example([value])
        if task == "instruction":
            return processor.instruction_example(value, recipe.chat_template)
        codes = self.codes[row]
        if task == "question":
            answers = self.table["answers" if "answers" in self.table.column_names else "answer"][row].as_py()
            answers = [answers] if isinstance(answers, str) else _with_words(answers)
            answer = answers[rng.integers(len(answers))] if len(answers) > 1 else answers[0]
            return processor.question_example(codes, value, answer)
        value = _with_words(value)
        first = rng.random() < recipe.first_caption_probability
        caption = value[0 if first else rng.integers(len(value))]
        if task == "caption":
            return processor.caption_example(codes, caption)
        return processor.drawing_example("" if rng.random() < recipe.caption_dropout else caption, codes)


class LanguageDataset(Dataset):
    """
    All examples of a training run, in order.

    Which example stands at a position depends on the seed and the position only, so that a run that resumes goes on
    exactly as it would have. In an epoch every row comes as often as its tasks' weights say. A row whose example is
    longer than `max_length`, or that makes no example (words that spell visual tokens, a conversation without an
    answer, ...), gives its place to the next one, and a warning names it.

    Args:
        files: the data; each file serves the tasks whose columns it has.
        processor: the [`SeedProcessor`] that makes the examples.
        recipe: gives the tasks and the way in which captions are drawn; at least one task has a weight above 0.
        max_length: the most tokens of an example: the smaller of the recipe's capacity and the model's context.
        seed: seed of the order and of all draws.
        examples: length of the run; None for one epoch.

    Raises:
        ValueError: no file has the columns of a task, or there is no such chat template.
    """

    def __init__(
        self,
        files: Sequence[LanguageFile],
        processor,
        recipe: LanguageRecipe,
        max_length: int,
        seed: int = 0,
        examples: int | None = None,
    ):
        self.processor, self.recipe, self.max_length, self.seed = processor, recipe, max_length, seed
        self.tasks = [task for task, weight in recipe.tasks.items() if weight]
        if recipe.chat_template is not None:
            templates = processor.chat_template if isinstance(processor.chat_template, dict) else ["default"]
            if recipe.chat_template not in templates:
                raise ValueError(
                    f"The recipe's chat_template is {recipe.chat_template!r}; the processor has {', '.join(templates)}."
                )
        self.files = {task: [file for file in files if task in file.tasks] for task in self.tasks}
        self.offsets = {
            task: np.cumsum([0] + [file.count(task) for file in files_of]) for task, files_of in self.files.items()
        }
        for task in self.tasks:
            if not self.offsets[task][-1]:
                codes = " beside 'codes'" if task in _WITH_CODES else ""
                raise ValueError(
                    f"The recipe asks for {task} examples, but none of {[str(file.path) for file in files]} has rows "
                    f"with a column {TASKS[task]!r}{codes}. Pass such a file, or take the task out of the recipe."
                )
        # A task that the recipe names gives at least one example, however few rows there are.
        counts = [max(1, round(recipe.tasks[task] * int(self.offsets[task][-1]))) for task in self.tasks]
        self.slots = np.cumsum([0, *counts])
        self.epoch_length = int(self.slots[-1])
        self.examples = self.epoch_length if examples is None else examples
        self._warned: set[str] = set()
        self._orders: dict[tuple[int, ...], np.ndarray] = {}
        # An epoch looks up several orders in turns: its own and, for each task, those of as many passes over the rows
        # as the weight says, one more if they begin or end within a pass, and one more to which rows that are too long
        # give their places.
        self._orders_kept = 1 + sum(math.ceil(recipe.tasks[task]) + 2 for task in self.tasks)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, position: int) -> dict:
        """Return the example at a position, `{"input_ids": list[int], "labels": list[int], "name": str}`."""
        epoch, place = divmod(position, self.epoch_length)
        slot = int(self._order(self.epoch_length, 0, epoch)[place])
        which = int(np.searchsorted(self.slots, slot, side="right")) - 1
        task, count = self.tasks[which], int(self.slots[which + 1] - self.slots[which])
        turn = epoch * count + slot - int(self.slots[which])
        rng = np.random.default_rng((self.seed, 1, position))
        rows = int(self.offsets[task][-1])
        fault = None
        for attempt in range(rows):
            try:
                example = self._example(task, which, turn + attempt, rng)
            except ValueError as error:  # one bad row in a million must not end a run of days
                fault = str(error)
            else:
                if len(example["input_ids"]) <= self.max_length:
                    return example
                fault = (
                    f"{example['name']}: as a {task} it has {len(example['input_ids'])} tokens, and {self.max_length} "
                    "fit, the smaller of the recipe's capacity and the model's context (max_position_embeddings)"
                )
            if fault not in self._warned:
                self._warned.add(fault)
                logger.warning("A row is left out. %s", fault)
        raise ValueError(f"No {task} example of these files can be trained on. The last: {fault}")

    def _example(self, task: str, which: int, turn: int, rng: np.random.Generator) -> dict:
        """Make the example that comes as number `turn` of the task in the whole run."""
        offsets = self.offsets[task]
        rows = int(offsets[-1])
        number = int(self._order(rows, 2 + which, turn // rows)[turn % rows])
        file = int(np.searchsorted(offsets, number, side="right")) - 1
        example = self.files[task][file].example(self.processor, task, number - int(offsets[file]), rng, self.recipe)
        if task == "text":  # prose is longer than any row; its beginning is as good as the rest
            example |= {name: example[name][: self.max_length] for name in ("input_ids", "labels")}
        return example

    def _order(self, length: int, *key: int) -> np.ndarray:
        """Return the permutation of a seed and a key. It takes seconds for millions, so those in use are kept."""
        order = self._orders.pop(key, None)
        if order is None:
            order = _permutation(length, self.seed, *key)
        self._orders[key] = order  # last, so that the first is the one that was not used for longest
        if len(self._orders) > self._orders_kept:
            del self._orders[next(iter(self._orders))]
        return order


def write_views(
    path: str | Path, codes: torch.LongTensor, captions: Sequence[Sequence[str]], metadata: CodesMetadata
) -> None:
    """
    Write the codes of several views of every picture as a file that [`LanguageFile`] reads, all or nothing.

    Each view gets a row, with the picture's `id` and the number of the `view`.

    Args:
        codes: `(pictures, views, num_codes)`; the first view is the picture itself.
        captions: the captions of each picture.
        metadata: says what made the codes.
    """
    path = Path(path)
    rows = [
        {"id": str(picture), "codes": view, "captions": list(captions[picture]), VIEW_COLUMN: number}
        for picture, views in enumerate(codes.tolist())
        for number, view in enumerate(views)
    ]
    schema = codes_schema(metadata, with_captions=True).append(pa.field(VIEW_COLUMN, pa.int32()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _usable_rows(table: pa.Table, column: str, where: str) -> np.ndarray:
    """Return which rows have words for the tasks that read `column`, `(rows,)` bool."""
    names = [column]
    if column == "question":
        answers = [name for name in ("answers", "answer") if name in table.column_names]
        if not answers:
            raise ValueError(f"{where}: has a column 'question' but neither 'answer' nor 'answers'.")
        names.append(answers[0])  # `answers` is read if the file has both
    usable = np.ones(len(table), dtype=bool)
    for name in names:
        kind = table.schema.field(name).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if name in ("segments", "messages"):
            if not is_list:
                raise ValueError(f"{where}: column {name!r} holds {kind}; expected lists.")
            usable &= pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy() > 0
        elif is_list and name in ("captions", "answers") and _is_text(kind.value_type):
            column = table[name].cast(pa.large_list(kind.value_type)).combine_chunks()
            rows = pc.list_parent_indices(column).to_numpy()
            usable &= np.bincount(rows[_has_words(column.flatten())], minlength=len(table)) > 0
        elif not is_list and name != "captions" and _is_text(kind):
            usable &= _has_words(table[name])
        else:
            expected = {"captions": "lists of texts", "answers": "texts or lists of them"}.get(name, "texts")
            raise ValueError(f"{where}: column {name!r} holds {kind}; expected {expected}.")
    return usable


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _has_words(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return which values have words, `(values,)` bool; null has none."""
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(column.cast(pa.large_string())))
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False) > 0


def _with_words(texts: Sequence[str | None]) -> list[str]:
    return [text for text in texts if text and text.strip()]


def _group(ids: np.ndarray, rows: np.ndarray) -> list[np.ndarray] | np.ndarray:
    """Group rows by id, in the order of the ids' first rows; the result is `(pictures, 1)` if ids are unique."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows[:, None]
    order = np.argsort(first[inverse], kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(first[inverse][order])) + 1)


def _segment(segment) -> str | list[int]:
    if isinstance(segment, str):
        return segment
    text, codes = segment.get("text"), segment.get("codes")
    if (text is None) == (codes is None):
        raise ValueError(f"The segment {segment} has not exactly one of text and codes.")
    return codes if text is None else text


def _permutation(length: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(length)


__all__ = [
    "TASKS",
    "LanguageDataset",
    "LanguageFile",
    "LanguageRecipe",
    "LoraRecipe",
    "load_language_recipe",
    "write_views",
]
