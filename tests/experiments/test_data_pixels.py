"""Every mode and depth of a picture: RGB without loss, or refused by its mode."""

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from experiments import predict
from experiments.data import pixels

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 3), np.uint8)
GREY = RGB[..., 0]
WIDE = RNG.integers(0, 65536, (6, 5, 3), np.uint16)


def picture(mode):
    """A picture of a mode; alpha is opaque."""
    if mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16"):
        grey = Image.fromarray(GREY)
        return grey.convert("I").convert(mode) if ";" in mode else grey.convert(mode)
    if mode == "PA":
        return Image.fromarray(RGB).quantize(16).convert("PA")
    return Image.fromarray(RGB).convert(mode)


def saved(image, tmp_path, suffix, **options):
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **options)
    return path


def refused(path, *said):
    with pytest.raises(pixels.Refused) as error:
        pixels.pixels(path)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("1", s) for s in ("png", "tif", "bmp", "pbm", "gif")],
        *[("L", s) for s in ("png", "tif", "bmp", "pgm", "gif")],
        *[("P", s) for s in ("png", "tif", "bmp", "gif")],
        *[("RGB", s) for s in ("png", "tif", "bmp", "ppm", "tga", "sgi", "pcx", "qoi", "jp2")],
        *[("LA", "png"), ("LA", "tif"), ("PA", "tif"), ("RGBA", "png"), ("RGBA", "tga")],
        *[("RGBA", "dds"), ("RGBX", "tif")],
    ],
)
def test_modes_without_loss(mode, suffix, tmp_path):
    image = picture(mode)
    found = pixels.pixels(saved(image, tmp_path, suffix))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif"), ("LAB", "tif")],
        *[("I", "tif"), ("I;16", "tif"), ("I;16B", "tif"), ("I;16", "png"), ("I;16", "jp2")],
        *[("F", "tif"), ("F", "pfm"), ("I", "pgm")],
    ],
)
def test_modes_that_would_lose_something_are_named(mode, suffix, tmp_path):
    image = Image.new(mode, (5, 6)) if mode == "LAB" else picture(mode)
    path = saved(image, tmp_path, suffix)
    with Image.open(path) as image:
        opened = image.mode
    refused(path, f"its mode {opened} cannot become RGB without loss")


def png16(kind, channels):
    """A PNG of 16 bits a channel, which Pillow opens with 8 bits a channel."""
    rows = b"".join(b"\0" + RNG.bytes(5 * 2 * channels) for _ in range(6))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, kind, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def tiff(bits, samples, planar=1, palette=(), signed=False):
    """An uncompressed TIFF of random pixels."""
    tags = {256: (5,), 257: (6,), 258: (bits,) * samples, 259: (1,), 262: (2,), 273: (8,)}
    tags |= {277: (samples,), 278: (6,), 279: (30 * samples * bits // 8,), 284: (planar,)}
    if signed:
        tags |= {262: (1,), 339: (2,) * samples}
    if palette:
        tags |= {262: (3,), 320: palette}
    body = RNG.integers(0, 4, 30 * samples * bits // 8, np.uint8).tobytes()
    start = 8 + len(body)
    extra, entries = b"", b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}H", *values)
        if len(data) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(extra)
            extra, data = extra + data, struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, 3, len(values)) + data.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", start) + body + directory + extra


def sgi16():
    head = struct.pack(">hBBHHHHII", 474, 0, 2, 3, 5, 6, 3, 0, 65535)
    return head.ljust(512, b"\0") + RNG.bytes(2 * 90)


DEEP = {
    "rgb.png": png16(2, 3),
    "la.png": png16(4, 2),
    "rgba.png": png16(6, 4),
    "rgb.tif": tiff(16, 3),
    "planes.tif": tiff(16, 3, planar=2),
    "rgb.ppm": b"P6 5 6 65535\n" + WIDE.tobytes(),
    "ten.ppm": b"P6 5 6 1023\n" + (WIDE // 64).astype(">u2").tobytes(),
    "plain.ppm": b"P3 1 1 1023 1 2 3",
    "rgb.sgi": sgi16(),
    "palette.tif": tiff(8, 1, palette=tuple(range(0, 3 * 256 * 37, 37))),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_not_cut(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(DEEP[name])
    with Image.open(path) as image:
        assert image.mode in ("RGB", "RGBA", "LA", "P")  # Pillow does not tell
    refused(path, "more than 8 bits a channel; convert it to 8 bits")


def test_signed_numbers_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(8, 1, signed=True))
    with Image.open(path) as image:
        assert image.mode == "L"  # Pillow does not tell
    refused(path, "signed numbers; convert it to 0 to 255")
    good, failed = predict.read([path], (4, 4))
    assert not good
    assert "signed numbers" in failed[0]


def test_fewer_than_8_bits_are_read(tmp_path):
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6 2 1 15\n" + bytes([0, 5, 15, 15, 0, 0]))
    np.testing.assert_array_equal(pixels.pixels(path), [[[0, 85, 255], [255, 0, 0]]])


@pytest.mark.parametrize("factor", [256, 257])
def test_a_palette_of_8_bits_in_16_is_read(factor, tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(8, 1, palette=tuple(i % 256 * factor for i in range(3 * 256))))
    found = pixels.pixels(path)
    assert found.max() <= 3
    assert (found == found[..., :1]).all()


def test_jpeg2000_of_16_bits(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path, "jp2")
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[place : place + 9 : 3] == bytes([7, 7, 7])
    content[place] = 15
    path.write_bytes(content)
    refused(path, "mode RGB of more than 8 bits a channel")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif_of_8_bits_and_of_10(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path, "avif", quality=100)
    assert pixels.pixels(path).shape == RGB.shape
    content = bytearray(path.read_bytes())
    content[content.index(b"av1C") + 6] |= 0x40
    path.write_bytes(content)
    assert pixels._avif_is_deep(path)  # this file is not one that could be decoded


def test_transparent_pixels_are_refused(tmp_path):
    half = Image.fromarray(RGB).convert("RGBA")
    half.putpixel((1, 1), (1, 2, 3, 254))
    for image, suffix in ((half, "png"), (half.convert("LA"), "png"), (half, "webp")):
        refused(saved(image, tmp_path, suffix), "with transparent pixels; put it on a background")


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_colour_is_refused_where_it_is_used(suffix, tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    used = int(np.asarray(palette)[0, 0])
    refused(saved(palette, tmp_path, suffix, transparency=used), "mode P with transparent pixels")
    plain = Image.new("P", (5, 6), 0)
    plain.putpalette([1, 2, 3, 4, 5, 6])
    found = pixels.pixels(saved(plain, tmp_path, suffix, transparency=1))
    np.testing.assert_array_equal(found, np.broadcast_to([1, 2, 3], (6, 5, 3)))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_transparent_value_is_refused_where_it_is_used(mode, tmp_path):
    image = picture(mode)
    used = image.getpixel((0, 0))
    refused(saved(image, tmp_path, "png", transparency=used), f"mode {mode} with transparent")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_and_pages_are_refused(suffix, tmp_path):
    first, other = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    path = saved(first, tmp_path, suffix, save_all=True, append_images=[other])
    refused(path, "2 frames or pages; keep one")


def test_a_photograph_with_a_preview_is_read(tmp_path):
    """Cameras write such files, with the ending .jpg; the first picture is the photograph."""
    image, preview = Image.fromarray(RGB), Image.new("RGB", (2, 2))
    path = tmp_path / "x.jpg"
    image.save(path, format="MPO", save_all=True, append_images=[preview])
    with Image.open(path) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert pixels.pixels(path).shape == RGB.shape


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation, suffix, tmp_path):
    turns = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {})
    flat = np.full((16, 32, 3), 255, np.uint8)
    flat[:8, :8] = 0  # one corner, which JPEG keeps
    path = saved(Image.fromarray(flat), tmp_path, suffix, exif=exif, **options)
    expected = turns[orientation](flat)
    found = pixels.pixels(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 20


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(Image.fromarray(RGB), tmp_path, "png", exif=exif)
    np.testing.assert_array_equal(pixels.pixels(path), RGB)


DAMAGE = (OSError, ValueError, UserWarning)
CUT = ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "tga", "sgi", "pcx", "qoi", "jp2", "dds")


@pytest.mark.parametrize("suffix", CUT)
def test_truncated_files_are_errors(suffix, tmp_path):
    noise = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
    path = saved(noise, tmp_path, suffix)
    whole = path.read_bytes()
    for part in (0, 1, 10, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:part])
        with pytest.raises(DAMAGE):
            pixels.pixels(path)


def test_no_other_program_is_started_for_a_file(tmp_path):
    """Pillow draws PostScript with Ghostscript, whatever the file's ending is."""
    assert not {".eps", ".ps", ".pdf", ".h5"} & pixels.SUFFIXES
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\nshowpage\n")
    with pytest.raises(Image.UnidentifiedImageError):
        pixels.pixels(path)
