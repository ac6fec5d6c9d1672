"""Open Clip Art: what is read of a drawing's metadata, how it is named, what is left out, how it is drawn."""

import io

import pytest
from build_clip_art import fetch_debian_package
from makers.clip_art import (
    clean_words,
    clip_art_rows,
    draw_clip_art,
    draw_cut_out,
    file_words,
    is_left_out,
    parse_clip_art,
    read_clip_art,
    subject_words,
)
from makers.iconify import PackageError
from makers.icons import EmojiWords, HeldOutNames
from PIL import Image

WORDS = EmojiWords(
    vocabulary=frozenset({"cat", "cow", "ball", "red"}),
    held_out=HeldOutNames(["spider", "person"]),
    concepts={"cat": ("cat", "pussycat")},
)


def drawing(
    title="Gatto", subjects=("mammal", "cat"), author="Ann Other", license="http://web.resource.org/cc/PublicDomain"
):
    """An SVG on an A4 page, with a red square in its middle, and its RDF metadata as Inkscape wrote them."""
    items = "".join(f"<rdf:li>{subject}</rdf:li>" for subject in subjects)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:cc="http://web.resource.org/cc/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
  width="210mm" height="297mm"><metadata><rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title>
  <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
  <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
  <dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
  <cc:license rdf:resource="{license}"/></cc:Work></rdf:RDF></metadata>
  <rect x="300" y="400" width="100" height="100" fill="#f00"/></svg>"""


def test_the_metadata_are_read():
    art = parse_clip_art("animals/mammals/housecats/gatto_ann_ot_01.svg", drawing())
    assert (art.title, art.subjects, art.author) == ("Gatto", ("mammal", "cat"), "Ann Other")
    assert art.license.endswith("PublicDomain")
    assert file_words(art) == ["cat"], "the author's name, cut short, is none of the drawing's"
    assert subject_words(art) == ["housecat", "mammal", "cat", "animal"]
    broken = parse_clip_art("a/b.svg", "<svg")
    assert (broken.title, broken.subjects, broken.license) == ("", (), "")


def test_words_of_titles_are_english_and_without_remarks():
    assert clean_words("Gatto nero (B and W) 02") == ["cat", "black"]
    assert clean_words("Palloncini e palla d&#39;epoca") == ["balloons", "palla", "epoca"]


def test_a_drawing_makes_a_row_of_the_emoji_schema():
    art = parse_clip_art("animals/housecats/gatto_ann_ot_01.svg", drawing())
    (row,) = clip_art_rows([art], WORDS)
    assert row["name"] == row["concept"] == "cat" and row["split"] == "train"
    assert row["captions"][:2] == ["cat", "pussycat"]
    assert (row["license"], row["attribution"], row["source"]) == ("CC-PDDC", "Ann Other", "openclipart-svg-0.18")
    assert row["id"] == "openclipart/animals/housecats/gatto_ann_ot_01"


def test_a_collection_s_title_gives_way_to_the_file_s_name_and_unknown_words_are_left_out():
    def names(path, **metadata):
        return [row["name"] for row in clip_art_rows([parse_clip_art(path, drawing(**metadata))], WORDS)]

    assert names("toys/red_ball_01.svg", title="Clipart by Nicu Buculei - pear", subjects=()) == ["red ball"]
    assert names("toys/xyz.svg", title="Qwerty", subjects=()) == []
    assert names("toys/xyz.svg", title="Yoyo", subjects=("yoyo",)) == ["yoyo"], "its own subjects are known words"
    assert names("toys/red_ball_01.svg", license="http://example.org/non-free") == []


def test_held_out_concepts_stay_out_whatever_language_names_them():
    for title, subjects in (("Ragno figo", ()), ("Spiders", ()), ("Red cat", ("spider",))):
        assert clip_art_rows([parse_clip_art("animals/x.svg", drawing(title, subjects))], WORDS) == []
    # A folder's general word is no name.
    assert clip_art_rows([parse_clip_art("people/red_cat.svg", drawing("Red cat", ("people",)))], WORDS)


def test_folders_of_shapes_icons_flags_and_cards_are_left_out(tmp_path):
    assert is_left_out("shapes/star.svg") and is_left_out("recreation/games/cards/white/a.svg")
    assert is_left_out("geography/spain.svg") and not is_left_out("geography/astronomy/moon.svg")
    (tmp_path / "computer").mkdir()
    (tmp_path / "animals").mkdir()
    for path in ("computer/mouse.svg", "animals/cow.svg"):
        (tmp_path / path).write_text(drawing(), encoding="utf-8")
    assert [art.path for art in read_clip_art(tmp_path)] == ["animals/cow.svg"]
    with pytest.raises(FileNotFoundError, match="openclipart-svg"):
        list(read_clip_art(tmp_path / "nowhere"))


def test_drawings_are_cut_out_of_their_page_and_bad_ones_left_out():
    pytest.importorskip("resvg_py")
    picture = Image.open(io.BytesIO(draw_cut_out(drawing(), 32)))
    assert picture.size == (32, 32) and picture.getpixel((16, 16)) == (255, 0, 0)
    assert picture.getpixel((5, 16)) == (255, 0, 0) and picture.getpixel((0, 0)) == (255, 255, 255)
    rows = [{"id": "good", "svg": drawing()}, {"id": "broken", "svg": "<svg"}, {"id": "blank", "svg": "<svg/>"}]
    drawn, left_out = draw_clip_art(rows, 16, workers=1)
    assert [row["id"] for row in drawn] == ["good"] and left_out == ["broken", "blank"]
    assert "svg" not in drawn[0] and drawn[0]["image"].startswith(b"\x89PNG")


def test_a_drawing_that_takes_too_long_is_left_out():
    pytest.importorskip("resvg_py")
    drawn, left_out = draw_clip_art([{"id": "slow", "svg": drawing()}], 16, seconds=0.0)
    assert drawn == [] and left_out == ["slow"]


def test_without_debian_s_tools_a_folder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="--svg"):
        fetch_debian_package(tmp_path / "cache")
