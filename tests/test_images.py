"""Reading images: every kind of file gives the pixels a viewer shows, or one clear error."""

import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from dssnet_fast.python_ref import images
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.images import find_images, read_image, read_labels

imagecodecs = pytest.importorskip("imagecodecs")


@pytest.fixture
def random():
    return np.random.default_rng(3)


@pytest.fixture
def rgb(random):
    return random.integers(0, 256, (13, 21, 3), dtype=np.uint8)


@pytest.fixture
def deep(random):
    return random.integers(300, 4096, (13, 21, 3), dtype=np.uint16)


def save(path, pixels, mode=None, **how):
    Image.fromarray(pixels, mode).save(path, **how) if mode else Image.fromarray(pixels).save(
        path, **how
    )
    return path


def same(found, expected):
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


# --- 8 bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.PNG"])
def test_rgb_is_exact(tmp_path, rgb, name):
    same(read_image(save(tmp_path / name, rgb)), rgb)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.jpg"])
def test_gray_is_repeated_or_kept(tmp_path, rgb, name):
    gray = np.full((9, 14), 77, np.uint8)
    path = save(tmp_path / name, gray)
    same(read_image(path), np.stack([gray] * 3, 2))
    same(read_image(path, channels=1), gray[:, :, None])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_one_channel_of_rgb_has_pillows_weights(tmp_path, rgb, name):
    path = save(tmp_path / name, rgb)
    same(read_image(path, channels=1), np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None])


def test_jpeg_is_what_pillow_decodes(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, quality=90)
    same(read_image(path), np.asarray(Image.open(path)))


def test_a_camera_jpeg_with_a_preview_is_its_first_image(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    preview = Image.fromarray(rgb[:4, :4])
    Image.fromarray(rgb).save(path, "MPO", save_all=True, append_images=[preview])
    assert read_image(path).shape == rgb.shape


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 8), (200, 40, 90)).convert("CMYK").save(path, quality=100)
    assert np.abs(read_image(path).astype(int) - (200, 40, 90)).max() <= 3


def test_palette_and_two_levels(tmp_path, rgb):
    paletted = Image.fromarray(rgb).quantize(16)
    paletted.save(tmp_path / "p.png")
    same(read_image(tmp_path / "p.png"), np.asarray(paletted.convert("RGB")))
    bits = rgb[:, :, 0] > 128
    Image.fromarray(bits).save(tmp_path / "b.png")
    same(read_image(tmp_path / "b.png", 1), (bits * 255).astype(np.uint8)[:, :, None])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_opaque_alpha_keeps_the_exact_colours(tmp_path, rgb, name):
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    same(read_image(save(tmp_path / name, rgba)), rgb)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_alpha_is_laid_over_white(tmp_path, rgb, random, name):
    alpha = random.integers(0, 256, rgb.shape[:2], dtype=np.uint8)
    found = read_image(save(tmp_path / name, np.dstack([rgb, alpha])))
    share = alpha[:, :, None] / 255
    assert np.abs(found - (rgb * share + 255 * (1 - share))).max() <= 0.5 + 1e-9


def test_gray_with_alpha_and_transparent_palette(tmp_path):
    la = np.array([[[10, 255], [10, 0]]], np.uint8)
    same(read_image(save(tmp_path / "la.png", la, "LA"), 1), [[[10], [255]]])
    paletted = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    paletted.putpalette([9, 8, 7, 6, 5, 4])
    paletted.save(tmp_path / "p.png", transparency=1)
    same(read_image(tmp_path / "p.png"), [[[9, 8, 7], [255, 255, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    pixels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", pixels, exif=exif, quality=100)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels[::-1].T,
        7: pixels[::-1, ::-1].T,
        8: pixels.T[::-1],
    }[orientation]
    found = read_image(path, 1)[:, :, 0]
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= 3


def test_damaged_exif_does_not_lose_the_image(tmp_path, rgb):
    warnings.simplefilter("ignore")
    path = save(tmp_path / "a.jpg", rgb, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert read_image(path).shape == rgb.shape


def test_the_content_decides_not_the_name(tmp_path, rgb):
    save(tmp_path / "a.tif", rgb).rename(tmp_path / "a.png")
    same(read_image(tmp_path / "a.png"), rgb)
    save(tmp_path / "b.png", rgb).rename(tmp_path / "b.tif")
    same(read_image(tmp_path / "b.tif"), rgb)


# --- 16 bits --------------------------------------------------------------------------------------


def write_deep(path, values, **how):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
    else:
        colour = "rgb" if values.ndim == 3 and values.shape[2] >= 3 else "minisblack"
        tifffile.imwrite(path, values, photometric=colour, **how)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_sixteen_bits_by_range(tmp_path, deep, name, colour):
    values = deep if colour else deep[:, :, 0]
    low, high = values.min(), values.max()
    expected = (values.astype(float) - low) / (high - low) * 255
    found = read_image(write_deep(tmp_path / name, values), 3 if colour else 1)
    assert (found.min(), found.max()) == (0, 255)
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_in_full(tmp_path, random, name):
    values = random.integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    values[0, 0] = 0, 65535, 257
    found = read_image(write_deep(tmp_path / name, values), sixteen_bit="full")
    same(found, np.rint(values / 257).astype(np.uint8))


def test_a_constant_sixteen_bit_image_is_black(tmp_path):
    path = write_deep(tmp_path / "a.tif", np.full((5, 6), 4000, np.uint16))
    same(read_image(path), np.zeros((5, 6, 3)))


def test_both_byte_orders_agree(tmp_path, deep):
    little = write_deep(tmp_path / "l.tif", deep, byteorder="<")
    big = write_deep(tmp_path / "b.tif", deep, byteorder=">")
    same(read_image(big), read_image(little))


def test_sixteen_bit_alpha(tmp_path, deep):
    opaque = np.dstack([deep, np.full(deep.shape[:2], 65535, np.uint16)])
    same(
        read_image(write_deep(tmp_path / "a.png", opaque)),
        read_image(write_deep(tmp_path / "b.png", deep)),
    )
    clear = np.dstack([deep, np.zeros(deep.shape[:2], np.uint16)])
    assert (read_image(write_deep(tmp_path / "c.png", clear)) == 255).all()


# --- TIFF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_compressions_and_layouts(tmp_path, rgb, compression, planar):
    values = rgb if planar == "contig" else rgb.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        metadata=None,
    )
    same(read_image(tmp_path / "a.tif"), rgb)


def test_tiled_big_and_pyramidal_tiff(tmp_path, random):
    pixels = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as writer:
        writer.write(pixels, tile=(32, 32), photometric="rgb", subifds=1)
        writer.write(pixels[::2, ::2], tile=(32, 32), photometric="rgb", subfiletype=1)
    same(read_image(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1, 1, 3), (1, 7, 3)])
def test_tiffs_of_one_row_or_column(tmp_path, random, shape):
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind)
    expected = pixels if len(shape) == 3 else np.stack([pixels] * 3, 2)
    same(read_image(tmp_path / "a.tif"), expected)


def test_tiff_that_stores_white_as_zero(tmp_path, rgb):
    gray = rgb[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="miniswhite")
    same(read_image(tmp_path / "a.tif", 1), 255 - gray[:, :, None])


def test_palette_and_two_level_tiff(tmp_path, rgb):
    paletted = Image.fromarray(rgb).quantize(16)
    paletted.save(tmp_path / "p.tif")
    same(read_image(tmp_path / "p.tif"), np.asarray(paletted.convert("RGB")))
    bits = rgb[:, :, 0] > 128
    Image.fromarray(bits).save(tmp_path / "b.tif")
    same(read_image(tmp_path / "b.tif", 1), (bits * 255).astype(np.uint8)[:, :, None])


def test_premultiplied_alpha(tmp_path):
    values = np.array([[[50, 0, 100, 100], [7, 8, 9, 255]]], np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    same(read_image(tmp_path / "a.tif"), [[[205, 155, 255], [7, 8, 9]]])


def test_jpeg_in_tiff(tmp_path):
    pixels = np.full((32, 48, 3), (180, 60, 120), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="jpeg")
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - pixels).max() <= 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 8, 9), np.uint8), "stack of 5 pages .* save each plane"),
        (np.zeros((2, 3, 8, 9), np.uint16), "stack of 6 pages"),
        (np.zeros((8, 9), np.float32), "float32 values; convert it to 8-bit or 16-bit"),
        (np.zeros((8, 9), np.int16), "int16 values; convert"),
        (np.zeros((8, 9), np.uint32), "uint32 values; convert"),
    ],
)
def test_tiffs_that_are_refused(tmp_path, values, message):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "a.tif")


def test_pages_of_different_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (8, 12):
            writer.write(np.zeros((side, side), np.uint8), metadata=None)
    with pytest.raises(InputError, match="2 images of different kinds on 2 pages"):
        read_image(tmp_path / "a.tif")


def test_an_imagej_stack_of_one_page_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 1, 2, 8, 9), np.uint8), imagej=True)
    with pytest.raises(InputError, match="stack of 6 pages"):
        read_image(tmp_path / "a.tif")


def test_five_channels_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((8, 9, 5), np.uint8),
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(InputError, match="5 uint8 channels"):
        read_image(tmp_path / "a.tif")


# --- damaged and strange files --------------------------------------------------------------------


def message_of(path, reader=read_image):
    with pytest.raises(InputError) as caught:
        reader(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as an image: ")
    assert "\n" not in message
    assert len(message) > len(f"{path}: cannot be read as an image: ")
    return message


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "p.jpg", "a.bmp", "d.png"])
def test_truncated_files(tmp_path, random, name, share):
    pixels = np.kron(random.integers(0, 256, (20, 30, 3), dtype=np.uint8), np.ones((4, 4, 1), "u1"))
    path = tmp_path / name
    if name == "d.png":
        write_deep(path, pixels.astype(np.uint16) * 200)
    else:
        save(path, pixels, **({"progressive": True} if name == "p.jpg" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message_of(path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg", "packbits"])
def test_truncated_tiffs(tmp_path, random, compression, share):
    pixels = np.kron(random.integers(0, 256, (20, 30, 3), dtype=np.uint8), np.ones((4, 4, 1), "u1"))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, rowsperstrip=16)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message_of(path)


def test_files_that_are_no_images(tmp_path, random):
    for name, data, reason in [
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"hello, I am no image" * 20, "not a PNG, JPEG, TIFF or BMP image"),
        ("noise.jpg", random.bytes(5000), "not a PNG, JPEG, TIFF or BMP image"),
        ("short.tif", b"II*\0", ""),
        ("short.png", b"\x89PNG\r\n\x1a\n", ""),
        ("noise.tif", b"II*\0\x08\0\0\0" + random.bytes(500), ""),
        ("gif.png", b"GIF89a" + bytes(50), "not a PNG, JPEG, TIFF or BMP image"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert reason in message_of(tmp_path / name)
        message_of(tmp_path / name, read_labels)


def test_flipped_bytes_never_escape_as_another_error(tmp_path, rgb, deep):
    random = np.random.default_rng(11)
    makers = [
        save(tmp_path / "a.png", rgb),
        save(tmp_path / "a.jpg", rgb),
        save(tmp_path / "a.bmp", rgb),
        save(tmp_path / "a.tif", rgb),
        write_deep(tmp_path / "z.tif", deep, compression="zlib"),
        write_deep(tmp_path / "d.png", deep),
    ]
    refused = 0
    for source in makers:
        data = np.frombuffer(source.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            at = random.integers(0, min(len(data), 300), 4)
            damaged[at] = random.integers(0, 256, 4)
            path = tmp_path / f"x{source.suffix}"
            path.write_bytes(damaged.tobytes())
            try:
                assert read_image(path).shape[2] == 3
            except InputError:
                refused += 1
    assert refused > 50


def test_missing_file_folder_and_unreadable(tmp_path, monkeypatch, rgb):
    assert "no such file" in message_of(tmp_path / "no.png")
    message_of(tmp_path)
    path = save(tmp_path / "a.png", rgb)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        read_image(path)


def test_pillows_size_limit_does_not_stop_us_and_is_kept(tmp_path, rgb, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = save(tmp_path / "a.png", rgb)
    same(read_image(path), rgb)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("name", ["a.png", "a.tif", "d.png"])
def test_our_own_size_limit(tmp_path, rgb, deep, monkeypatch, name):
    path = write_deep(tmp_path / name, deep) if name == "d.png" else save(tmp_path / name, rgb)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert "21 x 13 pixels are more than the limit of 100" in message_of(path)


def test_animations_are_refused(tmp_path, rgb):
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert "animation of 2 pages" in message_of(tmp_path / "a.png")


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="channels must be 1 or 3, got 4"):
        read_image(tmp_path / "a.png", channels=4)
    with pytest.raises(InputError, match="sixteen_bit must be one of"):
        read_image(tmp_path / "a.png", sixteen_bit="max")


# --- labels ---------------------------------------------------------------------------------------


def same_labels(found, expected):
    assert found.dtype == np.int32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_from_gray_png(tmp_path, random, dtype):
    labels = random.integers(0, np.iinfo(dtype).max + 1, (9, 11)).astype(dtype)
    same_labels(read_labels(save(tmp_path / "a.png", labels)), labels)


def test_labels_from_palette_are_indices(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    for name in ("a.png", "a.bmp", "a.tif"):
        image = Image.fromarray(indices).convert("P")
        image.putpalette([255, 255, 255, 9, 9, 9, 80, 0, 0])
        image.save(tmp_path / name)
        same_labels(read_labels(tmp_path / name), indices)


def test_labels_of_two_levels(tmp_path):
    bits = np.array([[True, False, True]])
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        found = read_labels(tmp_path / name)
        np.testing.assert_array_equal(found > 0, bits)
    same_labels(read_labels(tmp_path / "a.png"), bits)


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_are_not_spread(tmp_path, bits):
    import struct
    import zlib

    values = np.arange(2**bits, dtype=np.uint8)[None]
    per_byte = 8 // bits
    packed = bytearray()
    for start in range(0, values.size, per_byte):
        byte = 0
        for value in values[0, start : start + per_byte]:
            byte = byte << bits | int(value)
        packed.append(byte)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", values.size, 1, bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + bytes(packed)))
        + chunk(b"IEND", b"")
    )
    same_labels(read_labels(tmp_path / "a.png"), values)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "i8", ">u2", ">i4"])
def test_labels_from_integer_tiff(tmp_path, random, dtype):
    labels = random.integers(0, 120, (9, 11)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack", compression="zlib")
    same_labels(read_labels(tmp_path / "a.tif"), labels)


def test_labels_that_are_refused(tmp_path, rgb, deep):
    cases = {
        "rgb.png": (rgb, "one whole number per pixel"),
        "rgb.tif": (rgb, "one whole number per pixel .* got 3 channels"),
        "gray.jpg": (rgb[:, :, 0], "got a JPEG"),
        "rgba.png": (np.dstack([rgb, rgb[:, :, :1]]), "one whole number per pixel"),
    }
    for name, (pixels, message) in cases.items():
        with pytest.raises(InputError, match=message):
            read_labels(save(tmp_path / name, pixels))
    with pytest.raises(InputError, match="got 3 channels"):
        read_labels(write_deep(tmp_path / "deep.png", deep))
    for values, message in [
        (np.array([[-1, 5]], np.int16), r"got -1\.\.5"),
        (np.array([[1, 2**31]], np.uint32), "got 1..2147483648"),
        (np.array([[1.0, 2.0]], np.float32), "got float32 values"),
    ]:
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / "a.tif")


# --- finding --------------------------------------------------------------------------------------


def test_find_images(tmp_path, rgb):
    for name in ("b.PNG", "a.jpg", "c.tif", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.png").touch()
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in find_images([tmp_path])]
    assert names == ["a.jpg", "b.PNG", "c.tif"]
    twice = find_images([tmp_path / "c.tif", tmp_path, str(tmp_path / "sub")])
    assert [path.name for path in twice] == ["c.tif", "a.jpg", "b.PNG", "d.png"]


def test_find_images_refuses(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"the folder has no image .* sub-folders"):
        find_images([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        find_images([tmp_path / "no.png"])
    with pytest.raises(InputError, match=r"notes.txt: is not one of .png, .jpg"):
        find_images([tmp_path / "notes.txt"])
