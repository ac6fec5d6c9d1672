"""Pictures with captions from Open Clip Art, the Debian package `openclipart-svg`, whose drawings are public domain.

Each SVG file states its licence, author, title and subjects in its RDF metadata, and lies in a folder that says what it
shows. `clip_art_rows` keeps drawings that show a thing under an English name; titles are also Italian and often those
of a whole collection, so file names, subjects and folders help out. What a held-out emoji concept is called is left
out, so that the concept splits stay unseen.
"""

import io
import multiprocessing
import queue
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageChops

from .icons import EmojiWords, stem

SOURCE = "openclipart-svg-0.18"
LICENSE = "CC-PDDC"  # SPDX's name of Creative Commons' public domain dedication
# Where the drawings lie in the unpacked Debian package.
PACKAGE_FOLDER = Path("usr/share/openclipart/svg")

# Folders of generated shapes, of icon themes, flags, signs, maps and playing cards.
LEFT_OUT_FOLDERS = (
    "buttons", "computer", "decorations", "logos", "recreation/games/cards", "shapes", "signs_and_symbols",
    "special/gradients", "special/patterns", "transportation/aiga-symbols", "transportation/roadsigns",
    "unsorted/duplicates",
)  # fmt: skip
# Folders of which only some drawings show things: these subfolders.
ONLY_SUBFOLDERS = {"geography": ("geography/astronomy",)}

# Titles that name a collection, not the drawing; its file name says more.
_COLLECTION = re.compile(
    r"clip ?art|^svg |submission|sibmission|^aiga|etiquette icons|illustration$|map symbols|^people$|^advertising$",
    re.IGNORECASE,
)
# Words of titles, file names and subjects that say nothing of what a drawing shows.
_NOISE = frozenset(
    "and with of in on at the an by from for to clipart clip art icon icons contour outline simple simplified svg "
    "remix template fix bw color colour colored coloured version image picture drawing draw architetto hash "
    "unsorted special ganson dan ppl rpg ink hand drawn hires lowres inkscape vector free stylized transparent "
    "shaded detailed di da del della delle dei il la le lo un una al alla all con per sulla nella ed gli symbol "
    "sign sm rpswb".split()
)
# Drawings with one of these words are left out: they are not for every audience.
_UNSUITABLE = frozenset("stripper sexy nude naked pantyhose collant drunk cannabis marijuana swastika gallows".split())
# Subjects and folders that are too general for a name of their own; they may follow one.
_GENERAL = frozenset(
    "animal bodypart building clothing container creation decoration education electronics entertainment "
    "equipment breads carb food hat menu miscellany office people plant recreation science shape tool tools "
    "transport transportation vehicle".split()
)
MAX_NAME_WORDS = 4
USUAL_SUBJECT = 3  # drawings that have a subject, from which it counts as a known word
OVERSAMPLING = 6  # Drawings fill their page unevenly and are cut out of it: drawn this many times larger first.
DPI = 90.0  # Inkscape's, when these pages were measured in millimetres and points
MAX_PAGE = 3072  # pixels of a side, for drawings that are small on their page
MARGIN = 0.04  # of the side of the cut-out picture, on every side


@dataclass(frozen=True)
class ClipArt:
    """One drawing and what its file says of it."""

    path: str  # below the folder of the collection, "animals/birds/owl_01.svg"
    svg: str
    title: str
    subjects: tuple[str, ...]
    author: str
    license: str  # address of the licence, as the file states it


def read_clip_art(folder: str | Path) -> Iterator[ClipArt]:
    """
    Read every drawing below `folder` that is not in a left-out folder, in the order of their paths.

    Raises:
        FileNotFoundError: there is no SVG file below `folder`.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("*.svg"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no SVG files. Unpack Debian's package openclipart-svg (`apt-get download "
            f"openclipart-svg`, `dpkg -x openclipart-svg*.deb FOLDER`) and give FOLDER/{PACKAGE_FOLDER}."
        )
    for path in paths:
        relative = path.relative_to(folder).as_posix()
        if not is_left_out(relative):
            yield parse_clip_art(relative, path.read_text(encoding="utf-8", errors="replace"))


def is_left_out(path: str) -> bool:
    """Say whether a drawing lies in a folder of shapes, icons, signs, maps or cards."""
    if any(path.startswith(f"{folder}/") for folder in LEFT_OUT_FOLDERS):
        return True
    some = ONLY_SUBFOLDERS.get(path.partition("/")[0])
    return some is not None and not any(path.startswith(f"{folder}/") for folder in some)


def parse_clip_art(path: str, svg: str) -> ClipArt:
    """Read the RDF metadata of one SVG document; what is missing or broken there comes back empty."""
    try:
        root = ElementTree.fromstring(svg.encode("utf-8"))
    except ElementTree.ParseError:
        root = ElementTree.Element("svg")
    work = root.find(".//{*}Work")
    if work is None:
        return ClipArt(path, svg, "", (), "", "")
    subjects = (item.text or "" for item in work.findall("./{*}subject//{*}li"))
    licenses = (value for item in work.findall("./{*}license") for value in item.attrib.values())
    return ClipArt(
        path,
        svg,
        title=(work.findtext("./{*}title") or "").strip(),
        subjects=tuple(text.strip() for text in subjects if text.strip()),
        author=(work.findtext("./{*}creator/{*}Agent/{*}title") or "").strip(),
        license=next(licenses, ""),
    )


def _translations() -> dict[str, str]:
    text = resources.files(__package__).joinpath("clip_art_words.tsv").read_text(encoding="utf-8")
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {word: meaning if meaning != "-" else "" for word, meaning in lines}


TRANSLATIONS = _translations()


def clean_words(text: str, dropped: Iterable[str] = ()) -> list[str]:
    """Return the words of a title or file name in English, lower case, without numbers, remarks and noise."""
    text = re.sub(r"\(.*?\)|&#?\w+;|\S+@\S+| - (rpg|body|clothing|map).*", " ", text.lower().replace("_", " "))
    words = []
    for word in re.findall(r"[^\W\d_]+", text):
        if len(word) > 1 and word not in _NOISE and word not in dropped:
            words += TRANSLATIONS.get(word, word).split()
    return list(dict.fromkeys(words))


def file_words(art: ClipArt) -> list[str]:
    """Return the words of a drawing's file name, without the author's name, which its end repeats, often cut short."""
    parts = re.split(r"[_\-. ]+", Path(art.path).stem.lower())
    author = [word for word in re.split(r"\W+", art.author.lower()) if len(word) > 1]
    while len(parts) > 1 and (
        not parts[-1] or re.fullmatch(r"\d+|.|r\d+", parts[-1]) or any(name.startswith(parts[-1]) for name in author)
    ):
        parts.pop()
    return clean_words(" ".join(parts), dropped=author)


def subject_words(art: ClipArt) -> list[str]:
    """Return subjects and folders as words in the singular, the most particular first, without noise and names."""
    author = set(re.split(r"\W+", art.author.lower()))
    folders = reversed(art.path.split("/")[:-1])
    found = []
    for text in [*folders, *art.subjects]:
        if "(" in text or author & set(text.lower().split()):
            continue
        words = clean_words(text)
        if 1 <= len(words) <= 2:
            found.append(" ".join(words[:-1] + [singular(words[-1])]))
    return list(dict.fromkeys(sorted(found, key=lambda word: word in _GENERAL)))


def singular(word: str) -> str:
    """Return the singular of a folder's or subject's name: "birds" -> "bird", "berries" -> "berry"."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]
    return word


def clip_art_rows(drawings: Iterable[ClipArt], emoji_words: EmojiWords) -> list[dict]:
    """
    Rows of the emoji schema, without pictures, for the drawings that show something nameable.

    A drawing is kept if its file says that it is public domain, and its title or else its file name has at most four
    words, one of them known: from the training emoji's names and keywords, from the drawing's own subjects, or from
    subjects that several drawings have. It is left out if its title, file name or a subject is a held-out concept's
    name.

    Args:
        drawings: from `read_clip_art`.
        emoji_words: words to know, names to stay away from, and the training concepts: a drawing of the same name as
            one joins it.

    Returns:
        Rows with `svg` in place of `image`.
    """
    drawings = list(drawings)
    counts = Counter(stem(word) for art in drawings for text in set(subject_words(art)) for word in text.split())
    usual = emoji_words.vocabulary | {word for word, count in counts.items() if count >= USUAL_SUBJECT}
    rows = []
    for art in drawings:
        if "publicdomain" not in art.license.lower():
            continue
        subjects = subject_words(art)
        title = [] if _COLLECTION.search(art.title) else clean_words(art.title)
        wordings = [words for words in (title, file_words(art)) if words]
        texts = [" ".join(words) for words in wordings] + [art.title]
        texts += [text for text in subjects if text not in _GENERAL]
        unsuitable = any(_UNSUITABLE & set(text.lower().split()) for text in texts)
        if unsuitable or any(text in emoji_words.held_out for text in texts):
            continue
        known = usual | {stem(word) for text in subjects for word in text.split()}
        named = [words for words in wordings if _is_name(words, known)]
        if named:
            more = [text for text in subjects if _is_name(text.split(), usual)]
            rows.append(_row(art, " ".join(named[0]), more, emoji_words))
    return rows


def _is_name(words: list[str], known: Set[str]) -> bool:
    return (
        any(stem(word) in known for word in words)
        and len(words) <= MAX_NAME_WORDS
        and all(re.fullmatch("[a-z]{2,}", word) for word in words)
    )


def _row(art: ClipArt, name: str, subjects: list[str], emoji_words: EmojiWords) -> dict:
    usual = [other for other in emoji_words.concepts.get(name, ())[:3] if not re.search(r"\d", other)]
    known = [word for word in subjects if word not in name]
    names = list(dict.fromkeys([name, *usual]))
    captions = [*names, *([", ".join([name, *known[:2]])] if known else [])]
    return {
        "id": f"openclipart/{Path(art.path).with_suffix('').as_posix()}",
        "style": "openclipart",
        "license": LICENSE,
        "attribution": art.author or "unknown",
        "source": SOURCE,
        "icon": Path(art.path).stem,
        "emoji": "",
        "codepoints": "",
        "concept": name if name in emoji_words.concepts else f"icon:{name}",
        "category": "",
        "subcategory": "",
        "skin_tone": "",
        "name": name,
        "names": names,
        "keywords": known,
        "captions": captions[:5],
        "split": "train",
        "svg": art.svg,
    }


# ---- drawing --------------------------------------------------------------------------------------------------------


def draw_cut_out(svg: str, size: int) -> bytes | None:
    """
    Return a PNG of what an SVG shows, cut out of its page, `size` x `size` RGB on white; None where nothing was drawn.

    Raises:
        ImportError: `resvg-py` is not installed.
        ValueError: the SVG cannot be parsed (resvg's own message).
    """
    large = OVERSAMPLING * size
    page, box = _page(svg, large)
    if box is not None and max(box[2] - box[0], box[3] - box[1]) < OVERSAMPLING * size // 2:  # small on its page
        shown = max(box[2] - box[0], box[3] - box[1])
        page, box = _page(svg, min(MAX_PAGE, large * OVERSAMPLING * size // (2 * shown)))
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 4:
        return None
    page = page.crop(box)
    side = round(max(page.size) * (1 + 2 * MARGIN))
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(page, ((side - page.width) // 2, (side - page.height) // 2))
    buffer = io.BytesIO()
    canvas.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _page(svg: str, side: int) -> tuple[Image.Image, tuple[int, int, int, int] | None]:
    """The page on white, fitted into `side` x `side` pixels, and the box of what it shows; None where it is blank."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=DPI)
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    page = page.convert("RGB")
    difference = ImageChops.difference(page, Image.new("RGB", page.size, "white")).convert("L")
    return page, difference.point(_visible).getbbox()


def _visible(difference: int) -> int:
    return 255 * (difference > 4)


def _serve(connection, size: int) -> None:
    while True:
        svg = connection.recv()
        try:
            connection.send(draw_cut_out(svg, size))
        except ValueError:
            connection.send(None)


class _Artist:
    """A process that draws, and that is replaced by another where a drawing takes too long."""

    def __init__(self, size: int, seconds: float):
        self.size, self.seconds = size, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # Threads start it, too.
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.size), daemon=True)
        self.process.start()
        theirs.close()

    def draw(self, svg: str) -> bytes | None:
        try:
            self.connection.send(svg)
            if self.connection.poll(self.seconds):
                return self.connection.recv()
        except (EOFError, OSError):  # resvg ended the process.
            pass
        self.stop()
        self._start()
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def draw_clip_art(
    rows: list[dict],
    size: int,
    workers: int = 1,
    seconds: float = 10.0,
    progress: Callable[[Iterator], Iterable] = iter,
) -> tuple[list[dict], list[str]]:
    """
    Replace each row's `svg` by `image`, a PNG of `size` x `size` pixels.

    Args:
        seconds: the time that one drawing may take.

    Returns:
        The rows that were drawn, and the ids of those whose picture is blank, broken or took too long.
    """
    artists: queue.Queue[_Artist] = queue.Queue()
    for _ in range(max(1, workers)):
        artists.put(_Artist(size, seconds))

    def draw(row: dict) -> bytes | None:
        artist = artists.get()
        try:
            return artist.draw(row["svg"])
        finally:
            artists.put(artist)

    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            pictures = list(progress(pool.map(draw, rows)))
    finally:
        while not artists.empty():
            artists.get().stop()
    drawn, blank = [], []
    for row, picture in zip(rows, pictures, strict=True):
        if picture is None:
            blank.append(row["id"])
        else:
            drawn.append({**{key: value for key, value in row.items() if key != "svg"}, "image": picture})
    return drawn, blank


__all__ = ["ClipArt", "clip_art_rows", "draw_clip_art", "draw_cut_out", "parse_clip_art", "read_clip_art"]
