"""The emoji builder on a tiny package of our own, drawn by resvg; the real packages' splits are in the stored list."""

import io
import json
import tarfile
from importlib import resources

import numpy as np
import pytest
from makers.emoji import (
    EMOJI_SETS,
    MAX_CAPTIONS,
    TEXT_PACKAGES,
    Emoji,
    codepoints_of,
    emoji_rows,
    held_out_concepts,
    load_emoji,
    slug,
    split_of,
)
from makers.iconify import IconSet, PackageError, draw, fetch_package
from makers.icons import EmojiWords, HeldOutNames, clean_name, icon_rows, ink, split_style, stem
from makers.picture_table import draw_rows, write_rows
from PIL import Image

pytest.importorskip("resvg_py")
HELD_OUT = resources.files("makers").joinpath("emoji_held_out.tsv").read_text(encoding="utf-8")

RED_LEFT = '<path fill="#f00" d="M0 0h8v16H0z"/>'


def package(folder, icons, license="MIT", chars=None, categories=None, aliases=None, palette=True):
    folder.mkdir(parents=True)
    data = {"prefix": "x", "icons": {name: {"body": body} for name, body in icons.items()}, "width": 16, "height": 16}
    data["aliases"] = aliases or {}
    (folder / "icons.json").write_text(json.dumps(data))
    info = {"license": {"title": license, "spdx": license}, "author": {"name": "A. Uthor"}, "palette": palette}
    (folder / "info.json").write_text(json.dumps(info))
    (folder / "chars.json").write_text(json.dumps(chars or {}))
    (folder / "metadata.json").write_text(json.dumps({"categories": categories or {}}))
    return folder


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def text_packages(tmp_path):
    """Three emoji: a grinning cat, a woman artist, and the flag of France; and one that is too new."""
    folders = {name: tmp_path / name for name in TEXT_PACKAGES}
    annotations = {
        "😺": {"tts": ["grinning cat"], "default": ["cat", "grinning", "mouth", "smile"]},
        "🍪": {"tts": ["cookie"], "default": ["cookie", "chip", "sweet"]},
    }
    derived = {
        "👩‍🎨": {"tts": ["woman artist"], "default": ["palette", "woman"]},
        "🇫🇷": {"tts": ["flag: France"], "default": ["flag"]},
    }
    write_json(
        folders["cldr-annotations-full"] / "annotations/en/annotations.json",
        {"annotations": {"annotations": annotations}},
    )
    write_json(
        folders["cldr-annotations-full"] / "annotations/en-AU/annotations.json",
        {"annotations": {"annotations": {"🍪": {"tts": ["Biscuit"]}}}},
    )
    write_json(
        folders["cldr-annotations-derived-full"] / "annotationsDerived/en/annotations.json",
        {"annotationsDerived": {"annotations": derived}},
    )
    base = folders["emojibase-data"]

    def record(emoji, label, group, version=1):
        return {"emoji": emoji, "hexcode": codepoints_of(emoji), "label": label, "group": group, "subgroup": 0,
                "version": version, "tags": []}  # fmt: skip

    records = [
        record("😺", "grinning cat", 0),
        record("🍪", "cookie", 4),
        record("👩‍🎨", "woman artist", 1),
        record("🇫🇷", "flag: France", 9),
        record("🪾", "later emoji", 0, version=99),
    ]
    write_json(base / "en/data.json", records)
    groups = {"0": "smileys-emotion", "1": "people-body", "4": "food-drink", "9": "flags"}
    write_json(base / "meta/groups.json", {"groups": groups, "subgroups": {"0": "some-part"}})
    write_json(base / "meta/unicode-names.json", {codepoints_of("😺"): "SMILING CAT FACE WITH OPEN MOUTH"})
    for name in ("github", "emojibase", "joypixels", "iamcal", "emojibase-legacy"):
        write_json(base / f"en/shortcodes/{name}.json", {})
    write_json(base / "en/shortcodes/github.json", {codepoints_of("😺"): ["smiley_cat", "grinning-cat"]})
    write_json(base / "en/shortcodes/joypixels.json", {codepoints_of("🇫🇷"): ["flag_fr", "fr", "france"]})
    write_json(folders["emojilib"] / "dist/emoji-en-US.json", {"👩‍🎨": ["woman_artist", "painter", "blue_smock"]})
    return folders


def test_names_keywords_and_concepts(text_packages):
    emoji = load_emoji(text_packages)
    assert sorted(emoji) == ["1F1EB-1F1F7", "1F36A", "1F469-200D-1F3A8", "1F63A"]
    cat = emoji["1F63A"]
    assert cat.names == ("grinning cat", "smiling cat face with open mouth", "smiley cat")
    assert (cat.category, cat.subcategory, cat.text) == ("Smileys & Emotion", "some-part", "😺")
    assert emoji["1F36A"].names == ("cookie", "biscuit")
    artist = emoji["1F469-200D-1F3A8"]
    assert artist.concept == "artist" and artist.keywords == ("palette", "woman", "painter", "blue smock")
    flag = emoji["1F1EB-1F1F7"]
    assert flag.name == "flag: france" and flag.names == ("flag: france", "france flag", "france")


def test_captions_begin_with_the_short_name_and_read_as_words():
    entry = Emoji(
        "1F9D4", "person: beard", ("person: beard", "clock1130", "man mb"), ("hair", "beard", "chin"), "", "", ""
    )
    assert entry.captions == ["person: beard", "person with beard", "person: beard, hair, chin"]
    flag = Emoji("0041", "flag: chad", ("flag: chad", "chad"), ("blue", "gold", "red", "sahel", "lake"), "", "", "")
    assert flag.captions[:3] == ["flag: chad", "flag of chad", "chad"] and len(flag.captions) == MAX_CAPTIONS
    family = Emoji("0041", "family: man, boy", ("family: man, boy",), (), "", "", "")
    assert family.captions == ["family: man, boy", "family of man and boy"]


def test_slugs_are_those_of_icon_sets():
    assert slug("one o’clock") == "one-oclock"
    assert slug("flag: Côte d’Ivoire") == "flag-cote-divoire"
    assert slug("keycap: *") == "keycap-asterisk"


def test_splits_by_style_and_concept():
    table = {
        ("train", None): "train",
        ("train", "val_concept"): "val_concept",
        ("train", "test_concept"): "test_concept",
        ("val_style", None): "val_style",
        ("val_style", "val_concept"): None,
        ("val_style", "test_concept"): None,
        ("test_style", None): "test_style",
        ("test_style", "val_concept"): None,
        ("test_style", "test_concept"): "test_both",
    }
    assert {key: split_of(*key) for key in table} == table


def test_rows_of_one_style_with_pictures(text_packages, tmp_path):
    emoji = load_emoji(text_packages)
    assert held_out_concepts(emoji) == {"cookie": "test_concept"}  # the cookie is in the stored list
    icons = {"grinning-cat": RED_LEFT, "cookie": RED_LEFT, "fr": RED_LEFT, "unrelated": RED_LEFT}
    folder = package(tmp_path / "iconify-json-noto", icons, "Apache-2.0", chars={"1f1eb-1f1f7": "fr"})
    rows = emoji_rows("noto", IconSet.load(folder), emoji)
    assert {(row["id"], row["icon"], row["split"]) for row in rows} == {
        ("noto/1F63A", "grinning-cat", "train"),
        ("noto/1F36A", "cookie", "test_concept"),
        ("noto/1F1EB-1F1F7", "fr", "train"),
    }
    drawn, blank = draw_rows(rows, size=32)
    assert not blank
    write_rows(drawn, tmp_path / "out" / "train.parquet")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.parquet"]

    from datasets import Dataset

    saved = Dataset.from_parquet(str(tmp_path / "out" / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    pixels = np.asarray(saved[0]["image"])
    assert pixels.shape == (32, 32, 3)
    assert pixels[5, 5].tolist() == [255, 0, 0] and pixels[5, 25].tolist() == [255, 255, 255]
    assert saved[0]["captions"][0] == saved[0]["name"]


def test_a_changed_licence_is_refused(text_packages, tmp_path):
    folder = package(tmp_path / "iconify-json-noto", {"cookie": RED_LEFT}, license="GPL-3.0")
    with pytest.raises(PackageError, match="GPL-3.0, not Apache-2.0"):
        emoji_rows("noto", IconSet.load(folder), load_emoji(text_packages))


def test_stored_list_of_held_out_concepts():
    lines = (line.split("\t") for line in HELD_OUT.splitlines() if not line.startswith("#"))
    listed = {points: (split, name) for split, points, name in lines}
    # Rows of the published data: 98 names of val_concept, 140 of test_concept, each once.
    assert sorted(split for split, _ in listed.values()) == ["test_concept"] * 140 + ["val_concept"] * 98
    assert listed["1F34C"] == ("val_concept", "banana") and listed["1F36A"] == ("test_concept", "cookie")
    trained = [spec.package for spec in EMOJI_SETS.values() if spec.role == "train"]
    assert not any("openmoji" in name or "emojione" in name for name in trained)


def test_icons_are_mirrored_and_found_by_other_names(tmp_path):
    aliases = {"half": {"parent": "left"}, "right": {"parent": "left", "hFlip": True}}
    icons = IconSet.load(package(tmp_path / "p", {"left": RED_LEFT}, aliases=aliases))
    assert icons.aliases == {"half": "left"}
    left, right = (np.asarray(Image.open(io.BytesIO(draw(icons.svg(name), 16)))) for name in ("left", "right"))
    assert np.array_equal(left[:, ::-1], right) and not np.array_equal(left, right)
    assert draw(icons.svg("left").replace("#f00", "none"), 16) is None


def test_packages_are_unpacked_once_and_missing_ones_named(tmp_path, monkeypatch):
    calls = []

    def npm_pack(command, **kwargs):
        calls.append(command)
        source = package(tmp_path / f"source{len(calls)}", {"a": RED_LEFT})
        (source / "package.json").write_text("{}")
        target = command[command.index("--pack-destination") + 1]
        with tarfile.open(f"{target}/a.tgz", "w:gz") as archive:
            archive.add(source, "package")
        return type("Result", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("makers.iconify.shutil.which", lambda name: "/bin/npm")
    monkeypatch.setattr("makers.iconify.subprocess.run", npm_pack)
    for _ in range(2):
        folder = fetch_package("@iconify-json/a", "1.0.0", tmp_path / "cache")
    assert folder.name == "iconify-json-a-1.0.0" and (folder / "icons.json").is_file() and len(calls) == 1
    monkeypatch.setattr("makers.iconify.shutil.which", lambda name: None)
    with pytest.raises(PackageError, match="@iconify-json/b@2.0.0.*install Node.js"):
        fetch_package("@iconify-json/b", "2.0.0", tmp_path / "cache")
    with pytest.raises(PackageError, match="not an @iconify-json package"):
        IconSet.load(tmp_path)


# ---- extra sets -----------------------------------------------------------------------------------------------------


def test_icon_names_become_captions():
    assert split_style("teddy-bear-outline-24px") == (("teddy", "bear"), ("outline", "24px"))
    assert clean_name(["teddy", "bear", "2"]) == ("teddy", "bear")
    assert clean_name(["milk", "one"], number_suffix=True) == ("milk",)
    for junk in (["arrow", "left"], ["alpha", "b"], ["calendar", "edit"], ["github"], ["h", "2"], ["a"] * 5, ["24"]):
        assert clean_name(junk) is None, junk
    for one, several in [
        ("cherry", "cherries"),
        ("cookie", "cookies"),
        ("fox", "foxes"),
        ("dog", "dogs"),
        ("tooth", "teeth"),
    ]:
        assert stem(one) == stem(several)
    assert stem("glass") == "glass" and stem("bus") == "bus" and stem("pies") == "pie"


def test_held_out_names_are_recognised_in_any_number_and_order():
    names = HeldOutNames(["banana", "hot dog", "cup with straw", "T-Rex"])
    for name in ("banana", "Bananas", "peeled banana", "dog hot", "hotdog", "hotdogs", "straw cup", "trex"):
        assert name in names, name
    for name in ("dog", "cup", "bandana", "hot"):
        assert name not in names, name


def test_extra_set_rows(tmp_path, text_packages):
    emoji = load_emoji(text_packages)
    words = EmojiWords.of(emoji.values(), {"cookie": "val_concept"})
    names = "palette palette-outline palette-filled biscuit-tin cookie-jar zyzzyva mouth smile-alert grinning-cat"
    icons = dict.fromkeys([*names.split(), "brand-palette"], '<path fill="currentColor" d="M0 0h8v16H0z"/>')
    aliases = {"paint-palette": {"parent": "palette"}, "cookies": {"parent": "mouth"}}
    icon_set = IconSet.load(package(tmp_path / "iconify-json-tabler", icons, aliases=aliases, palette=False))
    rows = {row["icon"]: row for row in icon_rows("tabler", icon_set, words)}
    # Left out: the third drawing of a name, two held-out names, a third by its other name, an unknown word, two of
    # user interfaces.
    assert set(rows) == {"palette", "palette-outline", "grinning-cat"}
    assert rows["palette"]["captions"] == ["palette", "paint palette"]
    assert rows["palette"]["concept"] == "icon:palette" and rows["palette"]["split"] == "train"
    assert rows["grinning-cat"]["concept"] == "grinning cat" and "smiley cat" in rows["grinning-cat"]["captions"]
    share_alike = package(tmp_path / "other", icons, license="CC-BY-SA-4.0")
    with pytest.raises(ValueError, match="CC-BY-SA-4.0"):
        icon_rows("tabler", IconSet.load(share_alike), words)


def test_ink_is_mostly_black_and_always_the_same():
    inks = [ink(f"set/{number}") for number in range(400)]
    assert inks == [ink(f"set/{number}") for number in range(400)]
    assert 0.65 < inks.count("#000000") / 400 < 0.85
    for colour in set(inks) - {"#000000"}:
        channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert max(channels) - min(channels) > 100
