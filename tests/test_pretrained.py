"""The model in the package: small, on its card, and right on images it was not trained on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import dssnet_fast
from dssnet_fast import FastDSSNet, backends, parity, weights
from dssnet_fast.model import PRETRAINED
from dssnet_fast.python_ref.images import find_images, read_image, read_labels
from dssnet_fast.tiled import predict_tiled

ROOT = Path(__file__).parent.parent
MODELS = Path(dssnet_fast.__file__).parent / "models"


@pytest.fixture(scope="module")
def examples():
    """Image and instance map of each example."""
    paths = find_images([ROOT / "examples" / "images"])
    assert len(paths) >= 4
    return [(read_image(path), read_labels(ROOT / "examples/labels" / path.name)) for path in paths]


@pytest.fixture(scope="module")
def net():
    return FastDSSNet.pretrained(device="cpu", precision="fp32")


def test_the_file_is_small_and_its_card_names_it():
    assert (MODELS / f"{PRETRAINED}.safetensors").stat().st_size <= 4e6
    card = (MODELS / f"{PRETRAINED}.md").read_text()
    source = weights.load(MODELS / f"{PRETRAINED}.safetensors").source_digest
    assert source in card
    for word in ("cc0", "mean iou", "not for diagnosis", "cervical"):
        assert word in card.lower()


def test_mean_iou_on_the_examples(net, examples):
    """The card's figure is over the whole validation split; these are six images of it."""
    confusion = np.zeros((2, 2))
    for image, instances in examples:
        predicted = net.predict(image)
        np.add.at(confusion, ((instances > 0).astype(int).ravel(), predicted.ravel()), 1)
    both = confusion.diagonal()
    iou = both / (confusion.sum(0) + confusion.sum(1) - both)
    assert iou.mean() >= 0.85


def test_parity_with_the_unfolded_reference(net, examples):
    reference = weights.unfold(net.folded_weights())
    found = parity.compare(net, reference, [image for image, _ in examples])
    assert found.error <= 2e-5
    assert found.labels >= 0.9999


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.999), ("bf16", 0.99)])
def test_low_precision_gives_the_same_labels(net, examples, precision, least):
    device = torch.device("cpu")
    if precision not in backends.available(device, net.config)["torch"]:
        pytest.skip(f"this CPU has no {precision}")
    low = FastDSSNet.pretrained(device="cpu", precision=precision)
    equal = [(low.predict(image) == net.predict(image)).mean() for image, _ in examples]
    assert np.mean(equal) >= least


def test_int8_gives_nearly_the_same_labels(net, examples):
    if "int8" not in backends.available(torch.device("cpu"), net.config).get("cpu", ()):
        pytest.skip("the backend cpu cannot run here")
    low = FastDSSNet.pretrained(device="cpu", backend="cpu", precision="int8")
    equal = [(low.predict(image) == net.predict(image)).mean() for image, _ in examples]
    assert np.mean(equal) >= 0.997


def test_the_card_says_what_int8_was_calibrated_on(net):
    card = (MODELS / f"{PRETRAINED}.md").read_text()
    given = net.quantisation
    assert f"{given.images} for training" in card
    assert "--int8 --calibrate" in card
    assert all(f"`{layer}`" in card for layer in given.exact)


def test_tiled_equals_whole_with_ten_blocks(net, examples):
    image = np.tile(max((image for image, _ in examples), key=np.size), (2, 1, 1))[:900]
    labels, probability = predict_tiled(net, image, tile=256)
    whole, whole_probability = predict_tiled(net, image, tile=2048)
    np.testing.assert_allclose(probability, whole_probability, atol=2e-5)
    # Where two classes are equal up to the order of additions, either is right.
    assert np.all((labels == whole) | (whole_probability <= 0.5 + 2e-5))


def test_the_examples_were_not_trained_on():
    """By the rule of `python_ref.data.split` with the card's share."""
    from dssnet_fast.python_ref.data import find_pairs, split

    card = (MODELS / f"{PRETRAINED}.md").read_text()
    share = float(re.search(r"--validation (\S+)", card)[1])
    pairs = find_pairs(ROOT / "examples")
    with pytest.raises(Exception, match=f"0 for training, {len(pairs)} for validation"):
        split(pairs, share)
