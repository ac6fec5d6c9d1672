"""Image-text pairs from icon sets that are no emoji sets: pictures with a name of one to four words.

Not all names of icons are good captions: half of a user-interface set are arrows, letters, brands and names such as
"calendar-edit-off-outline". `icon_rows` keeps the icons whose name is that of a visible thing. It leaves out all
that have the name of a held-out emoji concept, so that the concept splits stay unseen.
"""

import colorsys
import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from .emoji import Emoji
from .iconify import IconSet

PERMISSIVE = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "ISC", "OFL-1.1", "BSD-3-Clause"}


def _words(resource: str) -> frozenset[str]:
    """Return the words of a text file of this package; lines that start with # are comments."""
    text = resources.files(__package__).joinpath(resource).read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


# These suffixes of icon names say how an icon is drawn; they are stripped from the end of a name.
STYLE_WORDS = frozenset((
    "outline", "outlined", "filled", "fill", "bold", "duotone", "light", "thin", "regular", "rounded", "round",
    "sharp", "twotone", "solid", "remix", "variant", "alt", "24px", "16px", "simple", "color", "new", "classic",
))  # fmt: skip
NUMBER_WORDS = frozenset({"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"})

INTERFACE_WORDS = _words("interface_words.txt")

# These are other words for held-out concepts, so that no icon shows such a concept under another name (our choice).
HELD_OUT_SYNONYMS = (
    "aircraft", "airport", "alligator", "baggage", "bandage", "baseball cap", "bikini", "burger", "cart", "cellphone",
    "dinosaur rex", "doorbell", "fast food", "fence", "flight", "foil", "hacksaw", "handsaw", "hotdog", "jet", "lorry",
    "loupe", "magnifier", "magnify", "magnifying", "medical mask", "molar", "phone", "plane", "projector", "puzzle",
    "sawblade", "sleep", "sleeping", "smartphone", "soda cup", "sparkle", "suitcase", "surf", "surfboard", "swimsuit",
    "tarantula", "teeth", "trolley", "tyrannosaurus",
)  # fmt: skip

# These words carry no meaning in an emoji's name: "cup with straw" is held out as {cup, straw}.
FILLER_WORDS = frozenset({"and", "with", "of", "at", "in", "on", "the", "a", "or", "face", "sign", "button", "symbol"})
IRREGULAR = {"teeth": "tooth", "feet": "foot", "mice": "mouse", "men": "man", "women": "woman", "people": "person"}


@dataclass(frozen=True)
class ExtraSet:
    """The rules by which the names of one icon set are read."""

    version: str
    variants: tuple[tuple[str, ...], ...] = ((), ("outline",), ("filled",))  # suffixes that are kept, best first
    drop_categories: frozenset[str] = frozenset()
    needs_known_word: bool = True  # at least one word of the name is a word of the emoji vocabulary
    number_suffix: bool = False  # "-one", "-two" at the end count drawings and mean nothing
    per_first_word: int = 8  # names that share their first word: "cloud-rain", "cloud-snow", ...


EXTRA_SETS = {
    "game-icons": ExtraSet("1.2.4", needs_known_word=False, per_first_word=30),
    "mdi": ExtraSet(
        "1.2.3",
        drop_categories=frozenset(
            {
                "Account / User",
                "Alert / Error",
                "Alpha / Numeric",
                "Arrange",
                "Arrow",
                "Brand / Logo",
                "Currency",
                "Database",
                "Developer / Languages",
                "Edit / Modify",
                "Form",
                "Math",
                "Settings",
                "Social Media",
                "Text / Content / Format",
                "Tooltip",
                "Vector",
                "View",
                "Files / Folders",
                "Notification",
            }
        ),
    ),
    "material-symbols": ExtraSet(
        "1.2.98",
        variants=((), ("outline",)),
        drop_categories=frozenset({"Android", "Text", "UI Actions", "Privacy", "Business"}),
    ),
    "tabler": ExtraSet("1.2.41"),
    "ph": ExtraSet("1.2.2", variants=(("duotone",), ("bold",), ("fill",), ())),
    "icon-park": ExtraSet(
        "1.2.4",
        number_suffix=True,
        drop_categories=frozenset(
            {"Abstract", "Arrows", "Base", "Brand", "Charts", "Components", "Connect", "Datas", "Edit", "Graphics"}
        ),
    ),
    "streamline": ExtraSet(
        "1.2.5",
        variants=((), ("solid",)),
        drop_categories=frozenset({"Programming", "InterfaceEssential", "ArtificialIntelligence"}),
    ),
    "streamline-ultimate-color": ExtraSet(
        "1.2.2",
        drop_categories=frozenset(
            {"ArrowsDiagrams", "Logos", "ProgramingAppsWebsites", "InternetNetworksServers", "FilesFolders", "Users"}
        ),
    ),
    "flat-color-icons": ExtraSet("1.2.3"),
    "fluent-color": ExtraSet("1.2.21"),
    "healthicons": ExtraSet("1.2.13", variants=((), ("outline",)), drop_categories=frozenset({"Typography", "Shapes"})),
    "maki": ExtraSet("1.2.5"),
}


def split_style(icon: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return words and style suffixes: "teddy-bear-outline-24px" -> (("teddy", "bear"), ("outline", "24px"))."""
    words = icon.split("-")
    end = len(words)
    while end > 1 and words[end - 1] in STYLE_WORDS:
        end -= 1
    return tuple(words[:end]), tuple(words[end:])


def clean_name(words: Iterable[str], number_suffix: bool = False) -> tuple[str, ...] | None:
    """Return the words of a caption, or None where the name names no thing.

    Numbers are dropped, because they count drawings. A name is refused if it has an interface word, a single letter, a
    word with a digit in it, no word, or more than four words.
    """
    kept = [word for word in words if not re.fullmatch(r"\d+(px)?", word)]
    while number_suffix and len(kept) > 1 and kept[-1] in NUMBER_WORDS:
        kept.pop()
    while len(kept) > 1 and kept[-1] in STYLE_WORDS:
        kept.pop()
    if not 1 <= len(kept) <= 4 or any(word in INTERFACE_WORDS or not re.fullmatch("[a-z]{2,}", word) for word in kept):
        return None
    if len(kept) == 1 and len(kept[0]) < 3:
        return None
    return tuple(kept)


def stem(word: str) -> str:
    """Return a form that singular and plural share, enough to match names: "foxes" -> "fox", "cookies" -> "cooky"."""
    word = word.casefold()
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 4 and word.endswith(("ies", "ie")):
        return word.removesuffix("s")[:-2] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def words_of(text: str) -> frozenset[str]:
    """Return the stems of the words of a name, as a set."""
    return frozenset(stem(word) for word in re.findall(r"[^\W_]+", text))


class HeldOutNames:
    """Names that training must not see: an icon whose name has all words of one of them is refused."""

    def __init__(self, names: Iterable[str]):
        self._by_word: dict[str, list[frozenset[str]]] = defaultdict(list)
        self._joined = set()
        for name in names:
            words = words_of(name) - FILLER_WORDS or words_of(name)
            self._joined.add("".join(re.findall(r"[^\W_]+", name.casefold())))
            for word in words:
                self._by_word[word].append(words)

    def __contains__(self, name: str) -> bool:
        words = words_of(name)
        joined = "".join(re.findall(r"[^\W_]+", name.casefold()))
        if joined in self._joined or stem(joined) in self._joined:
            return True
        return any(held_out <= words for word in words for held_out in self._by_word.get(word, ()))


@dataclass(frozen=True)
class EmojiWords:
    """The words of the emoji set that decide which icons are taken, and what they are called."""

    vocabulary: frozenset[str]  # stems of the words in the training concepts' names and keywords
    held_out: HeldOutNames
    concepts: dict[str, tuple[str, ...]]  # name of a training concept -> its names

    @classmethod
    def of(cls, emoji: Iterable[Emoji], held_out: Mapping[str, str]) -> "EmojiWords":
        """Collect the words from the emoji and the held-out concepts (see `makers.emoji.held_out_concepts`)."""
        vocabulary, names, concepts = set(), set(HELD_OUT_SYNONYMS), {}
        for entry in emoji:
            if entry.concept in held_out:
                names.update([entry.name, *entry.names])
                continue
            vocabulary.update(word for text in (*entry.names, *entry.keywords) for word in words_of(text))
            if entry.concept == entry.name:
                concepts[entry.name] = entry.names
        return cls(frozenset(vocabulary), HeldOutNames(names), concepts)


def ink(key: str, colored: float = 0.25) -> str:
    """Return the ink of a monochrome icon as a function of `key`: black or, for a share `colored`, a colour."""
    generator = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    if generator.random() >= colored:
        return "#000000"
    red, green, blue = colorsys.hsv_to_rgb(generator.random(), 0.9, generator.uniform(0.55, 0.95))
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def icon_rows(prefix: str, icon_set: IconSet, emoji_words: EmojiWords) -> list[dict]:
    """Return the rows of one extra set in the emoji schema, without pictures; each has `svg` in place of `image`.

    Args:
        prefix: the name of the set, a key of `EXTRA_SETS`.
        icon_set: the unpacked package.
        emoji_words: the words that are known, the names that are held out, and the training concepts; an icon that has
            the name of a training concept joins it.

    Raises:
        ValueError: the package's licence is not among `PERMISSIVE`.
    """
    if icon_set.license not in PERMISSIVE:
        raise ValueError(
            f"{icon_set.source} is licensed {icon_set.license}; training data must be one of {sorted(PERMISSIVE)}."
        )
    spec = EXTRA_SETS[prefix]
    drawings = _drawings_by_name(icon_set, spec, emoji_words.held_out)
    synonyms = _synonyms(icon_set, spec)
    rows, first_words = [], Counter()
    for words, by_variant in drawings.items():
        name = " ".join(words)
        known = any(stem(word) in emoji_words.vocabulary for word in words)
        if (
            name in emoji_words.held_out
            or (spec.needs_known_word and not known)
            or first_words[words[0]] >= spec.per_first_word
        ):
            continue
        first_words[words[0]] += 1
        icons = [icon for variant in spec.variants for icon in by_variant.get(variant, [])][:2]
        others = {other for icon in icons for other in synonyms.get(icon, ())} - {name}
        usual = [other for other in emoji_words.concepts.get(name, ())[:3] if not re.search(r"\d", other)]
        names = list(dict.fromkeys([name, *usual, *sorted(others)[:3]]))
        rows += [_row(prefix, icon_set, icon, name, names, name in emoji_words.concepts) for icon in icons]
    return rows


def _drawings_by_name(
    icon_set: IconSet, spec: ExtraSet, held_out: HeldOutNames
) -> dict[tuple[str, ...], dict[tuple, list[str]]]:
    """Return icons by caption words and style suffixes, without those that are held out by any of their names."""
    refused = {icon for icon, drawing in icon_set.icons.items() if drawing.get("hidden") or icon in held_out}
    refused.update(icon for alias, icon in icon_set.aliases.items() if alias in held_out)
    drawings: dict[tuple[str, ...], dict[tuple, list[str]]] = {}
    # The largest drawing comes first where the name ends in its size ("book-16" ... "book-48" of fluent-color).
    for icon in sorted(icon_set.icons, key=lambda icon: (re.sub(r"-\d+$", "", icon), -_last_number(icon))):
        words, variant = split_style(icon)
        if (
            icon in refused
            or variant not in spec.variants
            or spec.drop_categories & set(icon_set.categories.get(icon, ()))
        ):
            continue
        name = clean_name(words, spec.number_suffix)
        if name is not None:
            same = drawings.setdefault(name, {}).setdefault(variant, [])
            if not (icon_set.source.startswith("iconify-json-fluent-color") and same):  # sizes of one drawing
                same.append(icon)
    return drawings


def _last_number(icon: str) -> int:
    match = re.search(r"-(\d+)$", icon)
    return int(match.group(1)) if match else 0


def _synonyms(icon_set: IconSet, spec: ExtraSet) -> dict[str, list[str]]:
    """Return the other names that the package has for an icon, by the icon's name."""
    synonyms = defaultdict(list)
    for alias, icon in icon_set.aliases.items():
        name = clean_name(split_style(alias)[0], spec.number_suffix)
        if name is not None:
            synonyms[icon].append(" ".join(name))
    return synonyms


def _row(prefix: str, icon_set: IconSet, icon: str, name: str, names: list[str], is_concept: bool) -> dict:
    identifier = f"{prefix}/{icon}"
    return {
        "id": identifier,
        "style": prefix,
        "license": icon_set.license,
        "attribution": icon_set.author,
        "source": icon_set.source,
        "icon": icon,
        "emoji": "",
        "codepoints": "",
        "concept": name if is_concept else f"icon:{name}",
        "category": "",
        "subcategory": "",
        "skin_tone": "",
        "name": name,
        "names": names,
        "keywords": [],
        "captions": names[:5],
        "split": "train",
        "svg": icon_set.svg(icon, "#000000" if icon_set.has_palette else ink(identifier)),
    }
