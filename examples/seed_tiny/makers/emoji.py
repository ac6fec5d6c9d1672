"""The emoji set: real image-text pairs, rebuilt from openly licensed packages.

Pictures come from icon packages (`@iconify-json/*`), names and keywords from Unicode's CLDR (`cldr-annotations-*`),
`emojibase-data` and `emojilib`. There are seven drawing styles: five to train on, one held out for validation and one
for test. Concepts are held out as well: `emoji_held_out.tsv` lists them, so that every rebuild has the same splits.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from .iconify import IconSet, PackageError

TEXT_PACKAGES = {
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
    "emojibase-data": "17.0.0",
    "emojilib": "4.0.3",
}
MAX_EMOJI_VERSION = 16  # only two of the seven sets draw Unicode 17's emoji
HAIR_COMPONENTS = ("1F9B0", "1F9B1", "1F9B2", "1F9B3")  # parts, not pictures
MAX_UNICODE_NAME_WORDS = 6  # "smiling face with open mouth and tightly-closed eyes" is too long for a caption
MAX_CAPTIONS = 5


@dataclass(frozen=True)
class EmojiSet:
    """One drawing style."""

    package: str
    version: str
    license: str
    attribution: str
    role: str  # "train", "val_style" or "test_style"
    icons: Mapping[str, str] = field(default_factory=dict)  # code points -> icon, where no rule finds it


# Unicode has changed these names since emojione was drawn.
_EMOJIONE_ICONS = {
    "1F46B": "man-and-woman-holding-hands", "1F46C": "two-men-holding-hands", "1F46D": "two-women-holding-hands",
    "1F470-200D-2640": "bride-with-veil", "1F471": "blond-haired-person", "1F472": "man-with-chinese-cap",
    "1F52B": "pistol", "1F574": "man-in-suit-levitating", "1F621": "pouting-face", "1F635": "dizzy-face",
    "1F638": "grinning-cat-face-with-smiling-eyes", "1F639": "cat-face-with-tears-of-joy",
    "1F63E": "pouting-cat-face", "1F63F": "crying-cat-face", "1F640": "weary-cat-face", "1F916": "robot-face",
    "1F917": "hugging-face", "2753": "question-mark", "2757": "exclamation-mark", "2763": "heavy-heart-exclamation",
}  # fmt: skip

# Styles `fluent` and `fluent-flat` are siblings, nearly the same drawing, and must stand on the same side.
EMOJI_SETS = {
    "noto": EmojiSet("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google", "train"),
    "noto-v1": EmojiSet("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google", "train"),
    "fluent": EmojiSet("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft", "train"),
    "fluent-flat": EmojiSet("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft", "train"),
    "twemoji": EmojiSet("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter/jdecked", "train"),
    "emojione2": EmojiSet(
        "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "EmojiTwo", "val_style", icons=_EMOJIONE_ICONS
    ),
    # Share-alike: for evaluation only.
    "openmoji": EmojiSet("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "test_style"),
}


@dataclass(frozen=True)
class Emoji:
    """The names, words and classes of one emoji."""

    codepoints: str  # "1F469-200D-1F3A8", variation selectors left out
    name: str  # Unicode short name, lower case
    names: tuple[str, ...]  # the short name first, then other names
    keywords: tuple[str, ...]
    concept: str  # the name without words for gender and age: "woman artist" -> "artist"
    category: str
    subcategory: str

    @property
    def text(self) -> str:
        """Return the emoji itself, a string of one or more code points."""
        return "".join(chr(int(point, 16)) for point in self.codepoints.split("-"))

    @property
    def captions(self) -> list[str]:
        """Return at most five: the short name, a plainer wording of it, other names, and the name with two keywords."""
        captions = [self.name, *_plain_wordings(self.name)]
        captions += [name for name in self.names[1:] if _is_phrase(name)]
        known = _letters(self.name)
        keywords = [word for word in self.keywords if _letters(word) not in known]
        pairs = (keywords[start : start + 2] for start in range(0, len(keywords), 2))
        captions += [", ".join([self.name, *pair]) for pair in pairs]
        return list(dict.fromkeys(captions))[:MAX_CAPTIONS]


def codepoints_of(text: str) -> str:
    """Return an emoji's code points as `"1F469-200D-1F3A8"`, at least four digits each, no variation selector 16."""
    return "-".join(f"{ord(char):04X}" for char in text if char != "\ufe0f")


def slug(name: str) -> str:
    """Return an emoji's name as icon sets write it: "o’clock" -> "oclock", "Côte d’Ivoire" -> "cote-divoire"."""
    name = unicodedata.normalize("NFKD", name.lower())
    for mark, word in {"’": "", "'": "", "&": "and", "#": "hashtag", "*": "asterisk"}.items():
        name = name.replace(mark, word)
    name = "".join(char for char in name if not unicodedata.combining(char))
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())


def _is_phrase(name: str) -> bool:
    """Return whether a name reads as words; "clock1130", "u7533" and "couple mw" do not."""
    return not re.search(r"[a-z]\d|\d[a-z]{3}| [bgmw]{2,4}$", name)


def _plain_wordings(name: str) -> list[str]:
    """Return wordings without the colon: "flag: france" -> "flag of france", "keycap: 3" -> "keycap 3"."""
    head, colon, tail = name.partition(": ")
    if not colon:
        return []
    if head == "flag":
        return [f"flag of {tail}"]
    if head in ("man", "woman", "person", "kiss", "couple with heart", "family"):
        *first, last = tail.split(", ")
        listed = f"{', '.join(first)} and {last}" if first else last
        link = "of" if head == "family" else "with" if not first else "between"
        return [f"{head} {link} {listed}" if tail != "bald" else f"bald {head}"]
    return [f"{head} {tail}"]


# ---- names and keywords ---------------------------------------------------------------------------------------------


def load_emoji(folders: Mapping[str, Path]) -> dict[str, Emoji]:
    """Return the emoji by their code points, without skin-toned variants.

    Args:
        folders: the folder of the unpacked package for each name in `TEXT_PACKAGES`.

    Raises:
        PackageError: a package lacks a file.
    """
    try:
        records = {codepoints_of(record["emoji"]): record for record in _emojibase(folders, "en/data.json")}
        groups = _emojibase(folders, "meta/groups.json")
        words = _Words.load(folders)
    except (OSError, KeyError, ValueError) as error:
        raise PackageError(f"the packages of names and keywords are not as expected: {error!r}") from error
    kept = {
        points: record
        for points, record in records.items()
        if "group" in record and record["version"] <= MAX_EMOJI_VERSION and points not in HAIR_COMPONENTS
    }
    names = {points: words.names(points, record) for points, record in kept.items()}
    concepts = _concepts({points: own[0] for points, own in names.items()})
    return {
        points: Emoji(
            codepoints=points,
            name=names[points][0].replace("’", "'"),
            names=tuple(names[points]),
            keywords=tuple(words.keywords(points, record, names[points][0])),
            concept=concepts[points],
            category=" & ".join(part.title() for part in groups["groups"][str(record["group"])].split("-")),
            subcategory=groups["subgroups"][str(record["subgroup"])].replace("sky-weather", "sky & weather"),
        )
        for points, record in kept.items()
    }


def _emojibase(folders: Mapping[str, Path], path: str):
    return json.loads((Path(folders["emojibase-data"]) / path).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Words:
    """The names and keywords of every source by code points; emojibase's tables use its own hexcodes."""

    annotations: dict[str, dict[str, dict]]  # locale -> code points -> {"tts": [...], "default": [...]}
    unicode_names: dict[str, str]
    shortcodes: list[dict[str, str | list[str]]]
    emojilib: dict[str, list[str]]

    @classmethod
    def load(cls, folders: Mapping[str, Path]) -> "_Words":
        annotations = {}
        for locale in ("en", "en-GB", "en-001", "en-AU", "en-CA", "en-IN"):
            annotations[locale] = {}
            for package, key in (("", "annotations"), ("-derived", "annotationsDerived")):
                path = Path(folders[f"cldr-annotations{package}-full"]) / key / locale / "annotations.json"
                if path.is_file():
                    table = json.loads(path.read_text(encoding="utf-8"))[key]["annotations"]
                    annotations[locale].update({codepoints_of(emoji): entry for emoji, entry in table.items()})
        if not annotations["en"]:
            raise ValueError("no English annotations in the cldr-annotations packages")
        names = ("github", "emojibase", "joypixels", "iamcal", "emojibase-legacy")
        library = Path(folders["emojilib"]) / "dist" / "emoji-en-US.json"
        return cls(
            annotations=annotations,
            unicode_names=_emojibase(folders, "meta/unicode-names.json"),
            shortcodes=[_emojibase(folders, f"en/shortcodes/{name}.json") for name in names],
            emojilib={
                codepoints_of(emoji): [word.replace("_", " ") for word in words]
                for emoji, words in json.loads(library.read_text(encoding="utf-8")).items()
            },
        )

    def names(self, points: str, record: dict) -> list[str]:
        """Return the short name and then others, without those of the same letters and those that are hardly names."""
        code = record["hexcode"]
        short = self.annotations["en"].get(points, {}).get("tts", [record["label"]])[0].lower()
        short = short.replace("“", "").replace("”", "")
        found = [f"{short[6:]} flag"] if short.startswith("flag: ") else []
        for locale in ("en-GB", "en-001", "en-AU", "en-CA", "en-IN"):
            others = self.annotations[locale].get(points, {}).get("tts", [])
            found += [other.lower() for other in others if not other.startswith("flag: ")]
        unicode_name = self.unicode_names.get(code, "").lower()
        if "-" not in points and "fitzpatrick" not in unicode_name:
            found += [unicode_name] if len(unicode_name.split()) <= MAX_UNICODE_NAME_WORDS else []
        for table in self.shortcodes:
            codes = table.get(code, [])
            codes = [codes] if isinstance(codes, str) else codes
            found += [re.sub("[_-]", " ", shortcode) for shortcode in codes]
        found += self.emojilib.get(points, [])[:1]
        names, seen = [short], {_letters(short)}
        for name in found:
            letters = re.sub("[^a-z0-9]", "", name)
            if len(letters) >= 3 and letters not in seen and not re.fullmatch("flag [a-z]{2}|skin tone .|tone.*", name):
                seen.add(letters)
                names.append(name)
        return names

    def keywords(self, points: str, record: dict, name: str) -> list[str]:
        english = self.annotations["en"].get(points, {}).get("default", [])
        found = [*english, *record.get("tags", []), *self.emojilib.get(points, [])[1:]]
        words = dict.fromkeys(word.lower() for word in found if len(_letters(word)) >= 2)
        return [word for word in words if _letters(word) != _letters(name)]


def _concepts(names: Mapping[str, str]) -> dict[str, str]:
    """Return names without gender and age, and without "face" where that names another emoji ("cat face" -> "cat")."""
    people = re.compile(r"\b(person|people|man|men|woman|women|boy|girl)\b")
    bare = {points: re.sub(r"\s+", " ", people.sub("", name)).strip() or name for points, name in names.items()}
    known = set(bare.values())
    return {
        points: name.removesuffix(" face") if name.removesuffix(" face") in known else name
        for points, name in bare.items()
    }


# ---- pictures and splits --------------------------------------------------------------------------------------------


def held_out_concepts(emoji: Mapping[str, Emoji]) -> dict[str, str]:
    """Return "val_concept" or "test_concept" for each concept of the code points in `emoji_held_out.tsv`.

    The list was drawn once, by a hash of the concept. It is stored because the next CLDR may change a name.
    """
    text = resources.files(__package__).joinpath("emoji_held_out.tsv").read_text(encoding="utf-8")
    lines = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {emoji[points].concept: split for split, points, _ in lines if points in emoji}


def split_of(role: str, held_out: str | None) -> str | None:
    """Return the split of a picture by its style's role and its concept's split (None for a training concept).

    | style \\ concept | train | val_concept | test_concept |
    |---|---|---|---|
    | train | train | val_concept | test_concept |
    | val_style | val_style | left out | left out |
    | test_style | test_style | left out | test_both |
    """
    if role == "train":
        return held_out or "train"
    if held_out is None:
        return role
    return "test_both" if role == "test_style" and held_out == "test_concept" else None


def icon_names(
    icon_set: IconSet, emoji: Mapping[str, Emoji], known: Mapping[str, str], sibling: IconSet | None = None
) -> dict[str, str]:
    """
    Return the icon of each emoji by its code points. `known` decides first, then the tables of the set and of its
    sibling, and then the emoji's name.
    """
    tables = [known, _chars(icon_set)] + ([_chars(sibling)] if sibling else [])
    found = {}
    for points, entry in emoji.items():
        name = entry.names[0]
        candidates = [table.get(points) for table in tables] + [slug(name), slug(re.sub(r"\(.*?\)", "", name))]
        icon = next((icon for icon in candidates if icon in icon_set.icons or icon in icon_set.aliases), None)
        if icon is not None:
            found[points] = icon
    return found


def _chars(icon_set: IconSet) -> dict[str, str]:
    table = {}
    for points, icon in icon_set.chars.items():
        parts = [part.upper().zfill(4) for part in points.split("-") if part != "fe0f"]
        table.setdefault("-".join(parts), icon)
    return table


def emoji_rows(style: str, icon_set: IconSet, emoji: Mapping[str, Emoji], sibling: IconSet | None = None) -> list[dict]:
    """Return the rows of one style, without pictures; each row has `svg` in place of `image`.

    Args:
        style: a key of `EMOJI_SETS`.
        icon_set: the style's package.
        emoji: what `load_emoji` returned.
        sibling: a set with the same icon names and a table of code points, where the style's own set has none.

    Raises:
        PackageError: the package's licence is not the one that `EMOJI_SETS` names.
    """
    spec = EMOJI_SETS[style]
    if icon_set.license != spec.license:
        raise PackageError(f"{icon_set.source} is licensed {icon_set.license}, not {spec.license} as expected.")
    held_out = held_out_concepts(emoji)
    rows = []
    for points, icon in icon_names(icon_set, emoji, spec.icons, sibling).items():
        entry = emoji[points]
        split = split_of(spec.role, held_out.get(entry.concept))
        if split is not None:
            rows.append(_row(style, spec, icon_set, icon, entry, split))
    return rows


def _row(style: str, spec: EmojiSet, icon_set: IconSet, icon: str, entry: Emoji, split: str) -> dict:
    return {
        "id": f"{style}/{entry.codepoints}",
        "style": style,
        "license": spec.license,
        "attribution": spec.attribution,
        "source": icon_set.source,
        "icon": icon,
        "emoji": entry.text,
        "codepoints": entry.codepoints,
        "concept": entry.concept,
        "category": entry.category,
        "subcategory": entry.subcategory,
        "skin_tone": "",
        "name": entry.name,
        "names": list(entry.names),
        "keywords": list(entry.keywords),
        "captions": entry.captions,
        "split": split,
        "svg": icon_set.svg(icon_set.aliases.get(icon, icon)),
    }
