"""Opening pictures: every odd kind is right, every broken one says what is wrong with it."""

import io
import pickle
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from seed.data import augmentation
from seed.data.augmentation import MAX_SIDE, augment
from seed.data.images import InvalidImageError, check_image, list_images, load_image


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    """Four quadrants of different colours, 8 x 6, so that turning it shows."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:3, :4], pixels[:3, 4:], pixels[3:, :4], pixels[3:, 4:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)
    return Image.fromarray(pixels)


def test_the_same_picture_from_every_kind_of_source(picture, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture))
    sources = [
        path,
        str(path),
        path.read_bytes(),
        picture,
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        Image.open(path),
    ]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture, orientation):
    # The camera's table: what to do to the stored pixels so that the picture stands upright.
    undo = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(picture, exif=exif))
    assert np.array_equal(np.asarray(image), undo[orientation](np.asarray(picture)))


def test_transparency_becomes_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = (200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 51)
    expected = [(200, 0, 0), (255, 255, 255), (204, 204, 204)]
    assert np.asarray(load_image(encoded(Image.fromarray(rgba)))).tolist() == [[list(color) for color in expected]]
    grey = np.array([[[100, 255], [100, 0]]], np.uint8)
    assert np.asarray(load_image(encoded(Image.fromarray(grey)))).tolist() == [[[100] * 3, [255] * 3]]


def test_palette_with_and_without_a_transparent_entry(picture):
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    assert np.abs(np.asarray(load_image(encoded(palette)), int) - np.asarray(picture)).max() <= 2
    red = palette.getpixel((0, 0))
    image = np.asarray(load_image(encoded(palette, transparency=red)), int)
    assert image[0, 0].tolist() == [255, 255, 255]
    assert np.abs(image[5, 7] - 9).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128 * 257, 200 * 257, 65535]], np.uint16)
    for source in (
        encoded(Image.fromarray(values)),
        encoded(Image.fromarray(values), "TIFF"),
        Image.fromarray(values),
    ):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 128, 200, 255]


def test_sixteen_bit_colour_png():
    rows = b"\0" + struct.pack(">6H", 65535, 0, 32896, 0, 65535, 257)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.asarray(load_image(png)).tolist() == [[[255, 0, 128], [0, 255, 1]]]


def test_float_pictures_span_their_range():
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(load_image(encoded(unit, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    byte = Image.fromarray(np.array([[0.0, 100.0, 255.0]], np.float32))
    assert np.asarray(load_image(encoded(byte, "TIFF")))[0, :, 0].tolist() == [0, 100, 255]


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = np.asarray(load_image(encoded(red, "JPEG", quality=95)), int)[8, 8]
    assert pixel[0] > 240 and pixel[1] < 15 and pixel[2] < 15


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40, **options)
        assert load_image(data).getpixel((1, 1)) == (255, 0, 0), format


def test_extreme_sizes():
    assert load_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)
    wide = load_image(encoded(Image.new("RGB", (20_000, 40), (4, 5, 6))))
    assert wide.size == (20_000, 40) and wide.getpixel((19_999, 39)) == (4, 5, 6)


def test_one_bit_picture():
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 255)
    assert np.asarray(load_image(encoded(image)))[0, :, 0].tolist() == [0, 255]


def test_broken_sources_name_themselves_and_the_fault(picture, tmp_path):
    whole = encoded(picture.resize((200, 200)), "JPEG")
    png = encoded(Image.effect_noise((64, 64), 50))
    cases = {
        "text.png": (b"this is no image", "not an image"),
        "empty.jpg": (b"", "no bytes"),
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "header.png": (png[:20], "truncated|not an image"),
    }
    for name, (data, fault) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidImageError, match=rf"{name}.*({fault})"):
            load_image(path)
        with pytest.raises(InvalidImageError, match=rf"{name}.*({fault})"):
            check_image(path)
        with pytest.raises(InvalidImageError, match=rf"{name}.*({fault})") as caught:
            load_image({"bytes": data, "path": name})
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) and again.fault in str(again) and again.source == name
    assert issubclass(InvalidImageError, ValueError)


def test_missing_file_folder_and_wrong_types(tmp_path):
    with pytest.raises(InvalidImageError, match="nowhere.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InvalidImageError, match="a folder"):
        load_image(tmp_path)
    with pytest.raises(InvalidImageError, match="type int.*Give a path"):
        load_image(3)
    with pytest.raises(InvalidImageError, match="without bytes and path"):
        load_image({"bytes": None, "path": None})


def test_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # 100,000 x 100,000 pixels announced, a few bytes of data: decoding would say "truncated", the check comes first.
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    with pytest.raises(InvalidImageError, match="too large"):
        load_image(bomb)
    with pytest.raises(InvalidImageError, match=r"100 x 100 pixels, over the limit of 9,999"):
        load_image(encoded(Image.new("RGB", (100, 100))), max_pixels=9_999)
    assert load_image(encoded(Image.new("RGB", (100, 100))), max_pixels=10_000).size == (100, 100)


def test_checking_a_picture_does_not_import_torch(picture, tmp_path):
    """Commands check their pictures at once; torch takes seconds."""
    picture.save(tmp_path / "a.png")
    code = "import sys; from seed.data.images import check_image; check_image(sys.argv[1]); print(*sys.modules)"
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    modules = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    assert "seed.data.images" in modules and not {"torch", "transformers", "datasets"} & set(modules)


def test_list_images_expands_and_sorts(tmp_path, picture):
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "b/notes.txt", ".hidden/c.png", "b/.d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.webp", "b/1.jpg", "b/2.PNG"]
    named = list_images([tmp_path / "b/notes.txt", tmp_path / "b", str(tmp_path / "b/1.jpg")])
    assert [path.name for path in named] == ["notes.txt", "1.jpg", "2.PNG"]
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="void: this folder has no images"):
        list_images(tmp_path / "void")
    with pytest.raises(FileNotFoundError, match="gone: no such file"):
        list_images([tmp_path / "a.webp", tmp_path / "gone"])
    with pytest.raises(ValueError, match="no paths"):
        list_images([])


def drawing(size):
    """A disc with soft edges on white, of any size."""
    image = Image.new("RGB", (size, size // 2), "white")
    ImageDraw.Draw(image).ellipse((size // 3, size // 8, size // 3 * 2, size // 8 * 3), fill=(90, 60, 160))
    return image.filter(ImageFilter.GaussianBlur(size / 1000))


def test_outlines_of_large_pictures_can_be_seen():
    for seed in range(12):  # the fourth is an outline
        view = augment(drawing(2000), random.Random(seed))
        assert view.size == (MAX_SIDE, MAX_SIDE // 2)
        assert np.asarray(view.resize((192, 192), Image.Resampling.BICUBIC)).min() < 128


@pytest.mark.parametrize("size", [64, MAX_SIDE])
def test_views_of_small_pictures_have_their_size_and_every_pixel(size, monkeypatch):
    """What the tiny models were trained on can be made again."""
    picture = drawing(size)
    views = [augment(picture, random.Random(seed)) for seed in range(12)]
    assert {view.size for view in views} == {picture.size}
    monkeypatch.setattr(augmentation, "MAX_SIDE", 10**9)
    assert views == [augment(picture, random.Random(seed)) for seed in range(12)]
