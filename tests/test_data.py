"""Finding, checking, splitting, cropping and augmenting labelled images."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from dssnet_fast.python_ref.augment import Augmentation
from dssnet_fast.python_ref.data import (
    Crops,
    Labelling,
    Pair,
    Samples,
    find_pairs,
    split,
    to_tensors,
)
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.losses import IGNORE

INSTANCES = Labelling("instances", 2)
CLASSES = Labelling("classes", 3)


def save(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def make_pair(folder: Path, name: str, labels, size=None) -> Pair:
    labels = np.asarray(labels)
    height, width = size or labels.shape
    image = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
    return Pair(
        save(folder / "images" / f"{name}.png", image),
        save(folder / "labels" / f"{name}.png", labels),
    )


def some_labels(height=16, width=16, value=1) -> np.ndarray:
    labels = np.zeros((height, width), np.uint16)
    labels[4:9, 5:11] = value
    return labels


# --- finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder_name", ["labels", "masks"])
def test_pairs_are_matched_by_name(tmp_path, folder_name):
    for name in ("b.png", "a.tif", "c.with.dots.png"):
        save(tmp_path / "images" / name, np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / folder_name / (Path(name).stem + ".tif"), np.zeros((8, 8), np.uint8))
    pairs = find_pairs(tmp_path)
    assert [pair.image.name for pair in pairs] == ["a.tif", "b.png", "c.with.dots.png"]
    assert all(pair.label.parent.name == folder_name for pair in pairs)
    assert [pair.label.stem for pair in pairs] == [pair.image.stem for pair in pairs]


def test_every_file_without_a_partner_is_named(tmp_path):
    make_pair(tmp_path, "whole", some_labels())
    save(tmp_path / "images" / "lonely1.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "images" / "lonely2.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "labels" / "orphan.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path)
    for expected in (
        r"lonely1\.png: has no label image",
        r"lonely2\.png: has no label image",
        r"orphan\.png: has no image",
    ):
        assert re.search(expected, str(caught.value))
    assert "whole" not in str(caught.value)


def test_two_images_of_one_name_are_refused(tmp_path):
    make_pair(tmp_path, "same", some_labels())
    save(tmp_path / "images" / "same.bmp", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"has the same name as same\.(bmp|png); keep one"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("present", [(), ("images",), ("labels",)])
def test_missing_folders_are_explained(tmp_path, present):
    for name in present:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="a data folder holds images/ and labels/"):
        find_pairs(tmp_path)


# --- checking ------------------------------------------------------------------------------------


def test_every_unusable_file_is_named_at_once(tmp_path):
    good = make_pair(tmp_path, "good", some_labels())
    size = make_pair(tmp_path, "size", some_labels(), size=(16, 20))
    value = make_pair(tmp_path, "value", some_labels(value=3))
    broken = make_pair(tmp_path, "broken", some_labels())
    broken.image.write_bytes(broken.image.read_bytes()[:60])
    text = make_pair(tmp_path, "text", some_labels())
    text.label.write_text("no image")
    with pytest.raises(InputError) as caught:
        Samples([good, size, value, broken, text], 3, CLASSES)
    message = str(caught.value)
    assert "size.png: is 16x16 but its image size.png is 20x16" in message
    assert "value.png: class values must be 0 to 2 (or 255 for unlabelled), found 3" in message
    assert re.search(r"images/broken\.png: ", message)
    assert re.search(r"labels/text\.png: ", message)
    assert "good.png" not in message


def test_a_long_list_of_problems_is_cut(tmp_path):
    pairs = [make_pair(tmp_path, f"value{n}", some_labels(value=9)) for n in range(23)]
    with pytest.raises(InputError, match=r"and 3 more$") as caught:
        Samples(pairs, 3, CLASSES)
    assert str(caught.value).count("class values must be") == 20


def test_instance_ids_above_float32_are_refused():
    assert INSTANCES.problem(np.array([[0, 2**24 - 1]])) is None
    assert "below 2**24" in INSTANCES.problem(np.array([[0, 2**24]]))


def test_negative_labels_are_refused():
    for labelling in (INSTANCES, CLASSES):
        assert "negative" in labelling.problem(np.array([[0, -1]]))


def test_unlabelled_is_no_class():
    assert CLASSES.problem(np.array([[0, 2, 255]])) is None
    assert CLASSES.problem(np.array([[255, 255]])) is None
    assert "found 254" in CLASSES.problem(np.array([[254, 255]]))


def test_binary_masks_read_as_classes_are_refused(tmp_path):
    pair = make_pair(tmp_path, "mask", some_labels(value=255))
    with pytest.raises(InputError, match="holds a nucleus; 0/255 masks are instance maps"):
        Samples([pair], 3, CLASSES)
    assert len(Samples([pair], 3, INSTANCES)) == 1


def test_pixels_of_each_class_are_counted(tmp_path):
    labels = some_labels(value=2)
    labels[0, :4] = 255
    samples = Samples([make_pair(tmp_path, "x", labels)] * 2, 3, CLASSES)
    assert samples.class_pixels.tolist() == [2 * (256 - 30 - 4), 0, 60]


@pytest.mark.parametrize(("kind", "classes"), [("polygons", 2), ("instances", 3)])
def test_labellings_that_make_no_sense_are_refused(kind, classes):
    with pytest.raises(InputError, match=r"labels (must be one of|of kind 'instances')"):
        Labelling(kind, classes)


def test_labels_become_classes_and_objects():
    values = torch.tensor([-1, 0, 1, 2, 255], dtype=torch.int32)
    assert INSTANCES.class_map(values).tolist() == [IGNORE, 0, 1, 1, 1]
    assert INSTANCES.objects(values).tolist() == [-1, 0, 1, 2, 255]
    assert CLASSES.class_map(values).tolist() == [IGNORE, 0, 1, 2, IGNORE]
    assert CLASSES.objects(values).tolist() == [-1, 0, 1, 2, -1]
    assert CLASSES.class_map(values).dtype == torch.int64


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["from-disk", "from-memory"])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_hold_what_the_files_hold(tmp_path, monkeypatch, limit, channels):
    monkeypatch.setattr("dssnet_fast.python_ref.data.CACHE_LIMIT_BYTES", limit)
    pair = make_pair(tmp_path, "x", some_labels(24, 16, value=700))
    image, labels = Samples([pair], channels, INSTANCES)[0]
    assert (image.shape, image.dtype) == ((24, 16, channels), np.uint8)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, some_labels(24, 16, value=700))
    if channels == 3:
        np.testing.assert_array_equal(image, np.asarray(Image.open(pair.image)))


# --- splitting -----------------------------------------------------------------------------------


def named(*names: str) -> list[Pair]:
    return [Pair(Path(f"images/{name}.png"), Path(f"labels/{name}.png")) for name in names]


def test_split_is_pinned():
    # Worked out by hand: `printf cell-1 | sha256sum`, first eight digits below 0.3 * 2**32.
    pairs = named(*(f"cell-{n}" for n in range(8)))
    training, validation = split(pairs, 0.3)
    assert [pair.image.stem for pair in validation] == ["cell-2", "cell-7"]
    assert [pair for pair in pairs if pair not in validation] == training
    for pair in validation:
        digits = hashlib.sha256(pair.image.stem.encode()).hexdigest()[:8]
        assert int(digits, 16) < 0.3 * 2**32


def test_split_does_not_depend_on_the_other_files():
    pairs = named(*(f"cell-{n}" for n in range(200)))
    training, validation = split(pairs, 0.25)
    assert 30 <= len(validation) <= 70
    few_training, few_validation = split(pairs[::3], 0.25)
    assert set(few_training) <= set(training)
    assert set(few_validation) <= set(validation)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_split_rejects_a_share(share):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        split(named("a", "b"), share)


def test_split_rejects_an_empty_side():
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be split with 50% for validation"):
        split(named("a"), 0.5)


# --- cropping ------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """Six images, 40 x 56; each pixel's label tells where it is, and so does its colour."""
    pairs = []
    rows, columns = np.mgrid[:40, :56]
    for number in range(6):
        labels = (rows * 256 + columns + 1).astype(np.uint16)
        image = np.stack([rows, columns, np.full_like(rows, number)], axis=2).astype(np.uint8)
        pairs.append(
            Pair(
                save(tmp_path / "images" / f"{number}.png", image),
                save(tmp_path / "labels" / f"{number}.png", labels),
            )
        )
    return Samples(pairs, 3, INSTANCES)


def test_crops_keep_image_and_labels_together(samples):
    crops = Crops(samples, 32, seed=3)
    places = set()
    for epoch in range(4):
        crops.epoch = epoch
        for index in range(len(crops)):
            image, labels = crops[index]
            assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
            assert (labels.shape, labels.dtype) == ((32, 32), torch.int32)
            assert torch.equal(labels, image[0].int() * 256 + image[1].int() + 1)
            assert bool((image[2] == index).all())
            places.add((int(image[0, 0, 0]), int(image[1, 0, 0])))
    assert len(places) > 15
    assert {row for row, _ in places} <= set(range(9))
    assert {column for _, column in places} <= set(range(25))


def test_crops_depend_on_seed_epoch_and_index_alone(samples):
    def place(seed, epoch, index):
        crops = Crops(samples, 16, seed)
        crops.epoch = epoch
        return int(crops[index][1][0, 0])

    assert place(1, 2, 3) == place(1, 2, 3)
    for dimension in range(3):
        keys = [[5, 5, 2] for _ in range(4)]
        for step, key in enumerate(keys):
            key[dimension] += step
        assert len({place(*key) for key in keys}) > 1


def test_sampling_by_area_cuts_as_many_as_fit(tmp_path):
    sizes = [(16, 16), (32, 64), (64, 56), (128, 96)]
    pairs = [make_pair(tmp_path, f"{n}", some_labels(*size)) for n, size in enumerate(sizes)]
    samples = Samples(pairs, 3, INSTANCES)
    assert samples.areas == [height * width for height, width in sizes]
    assert len(Crops(samples, 32, seed=0)) == 4
    crops = Crops(samples, 32, seed=0, sampling="area")
    assert len(crops) == 1 + 2 + 4 + 12  # 3.5 squares of the third are rounded
    drawn = [crops[index][0] for index in range(len(crops))]
    assert all(image.shape == (3, 32, 32) for image in drawn)
    # From one image, but elsewhere in it.
    assert not torch.equal(drawn[-1], drawn[-2])


@pytest.mark.parametrize("height", [24, 40])
def test_small_images_are_extended(tmp_path, height):
    pair = make_pair(tmp_path, "small", some_labels(height, 24))
    image, labels = Crops(Samples([pair], 3, INSTANCES), 32, 0)[0]
    assert image.shape == (3, 32, 32)
    rows = min(height, 32)
    assert bool((labels[:rows, :24] >= 0).all())
    assert bool((labels[:, 24:] == -1).all())
    assert bool((image[:, :, 24:] == 128).all())
    if rows < 32:
        assert bool((labels[rows:] == -1).all())
        assert bool((image[:, rows:] == 128).all())


def test_to_tensors_keeps_the_pixels():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    labels = np.arange(30, dtype=np.int32).reshape(5, 6)
    out, out_labels = to_tensors(image, labels, 8, 8)
    np.testing.assert_array_equal(out[:, :5, :6].permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(out_labels[:5, :6].numpy(), labels)
    assert int((out_labels == -1).sum()) == 64 - 30


def test_workers_know_the_epoch(samples):
    crops = Crops(samples, 16, seed=0)
    loader = DataLoader(crops, batch_size=3, num_workers=1)
    seen = []
    for epoch in (1, 2):
        crops.epoch = epoch
        by_worker = torch.cat([labels for _, labels in loader])
        here = torch.stack([crops[index][1] for index in range(len(crops))])
        assert torch.equal(by_worker, here)
        seen.append(here)
    assert not torch.equal(*seen)


# --- augmentation --------------------------------------------------------------------------------

CODES = torch.tensor([3, 70_000, 2**24 - 1, 0, -1], dtype=torch.int32)
COLOURS = torch.tensor([[200, 30, 90], [20, 220, 40], [90, 90, 250], [0, 0, 0], [128, 128, 128]])


@pytest.fixture
def coded():
    """Images whose colour tells each pixel's label: uint8 [8, 3, 48, 48], int32 [8, 48, 48]."""
    random = np.random.default_rng(2)
    cells = torch.from_numpy(random.integers(0, len(CODES), (8, 4, 4)))
    cells = cells.repeat_interleave(12, 1).repeat_interleave(12, 2)
    return COLOURS[cells].permute(0, 3, 1, 2).to(torch.uint8), CODES[cells]


def test_augmentation_moves_labels_with_the_image_and_keeps_them_exact(coded):
    images, labels = coded
    augmentation = Augmentation(3)
    augmentation.image_only = nn.Identity()
    torch.manual_seed(0)
    moved = 0
    for _ in range(5):
        out, out_labels = augmentation(images, labels)
        assert (out.shape, out.dtype) == (images.shape, torch.float32)
        assert (out_labels.shape, out_labels.dtype) == (labels.shape, torch.int32)
        assert set(out_labels.unique().tolist()) <= set(CODES.tolist())
        moved += sum(not torch.equal(a, b) for a, b in zip(out_labels, labels, strict=True))

        # The image is blended where labels meet, so nearest colours are compared: nearly all
        # agree when both moved alike; with a shift of one pixel 8 % of them would not.
        distance = (out[:, None] - COLOURS.float()[None, :, :, None, None]).square().sum(2)
        agree = (CODES[distance.argmin(1)] == out_labels).float().mean(dim=(1, 2))
        assert float(agree.min()) > 0.97
    assert moved > 35


def test_augmentation_is_reproducible(coded):
    def run(seed):
        torch.manual_seed(seed)
        return Augmentation(3)(*coded)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_and_blur_change_images_only(coded, channels):
    images, labels = coded
    augmentation = Augmentation(channels)
    del augmentation.both
    augmentation.both = lambda image, mask: (image, mask)
    torch.manual_seed(0)
    out, out_labels = augmentation(images[:, :channels], labels)
    assert torch.equal(out_labels, labels)
    assert float(out.min()) >= 0
    assert float(out.max()) <= 255
    changed = (out - images[:, :channels].float()).abs().amax(dim=(1, 2, 3))
    assert int((changed > 5).sum()) >= 5
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_leaves_faint_nuclei_brighter_than_the_background(channels):
    """Fluorescence: a background of 5, nuclei of 25. A constant taken from both would hide them."""
    labels = torch.zeros(16, 32, 32, dtype=torch.int32)
    labels[:, 8:24, 8:24] = 1
    images = (5 + 20 * labels).to(torch.uint8).unsqueeze(1).expand(-1, channels, -1, -1)
    torch.manual_seed(0)
    for _ in range(4):
        out, moved = Augmentation(channels)(images, labels)
        for image, label in zip(out.mean(1), moved, strict=True):
            assert image[label > 0].median() >= image[label == 0].median() + 8
