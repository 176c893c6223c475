"""The loss and the edge target, against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from dssnet_fast.python_ref.losses import (
    IGNORE,
    dssnet_loss,
    edge_target,
    mean_ssim,
    soft_dice,
)
from dssnet_fast.python_ref.network import DSSNetOutput


@pytest.fixture
def case():
    """Network output, image, classes and edges of a batch of two, 24 x 32 px, three classes."""
    torch.manual_seed(0)
    output = DSSNetOutput(
        torch.randn(2, 3, 24, 32), torch.rand(2, 3, 24, 32) * 2 - 1, torch.rand(2, 1, 12, 16)
    )
    image = (output.reconstruction + 0.3 * torch.randn(2, 3, 24, 32)).clamp(-1, 1)
    classes = torch.randint(0, 3, (2, 24, 32))
    return output, image, classes, torch.randint(0, 2, (2, 1, 12, 16)).float()


def skimage_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the windows inside the image, of [C, H, W] images in [-1, 1]."""
    _, similarity = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        channel_axis=0,
        data_range=2.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(similarity[:, 5:-5, 5:-5].mean())


def test_ssim_is_that_of_scikit_image(case):
    output, image, _, _ = case
    expected = np.mean(
        [
            skimage_ssim(a, b)
            for a, b in zip(output.reconstruction.numpy(), image.numpy(), strict=True)
        ]
    )
    assert 0.2 < expected < 0.9  # not a case that anything would solve
    assert abs(float(mean_ssim(output.reconstruction, image)) - expected) <= 1e-5


def test_loss_is_the_papers_sum(case):
    output, image, classes, edges = case
    loss = dssnet_loss(output, image, classes, edges)

    logits = output.segmentation.double().numpy()
    chosen = np.take_along_axis(logits, classes.numpy()[:, None], axis=1)[:, 0]
    segmentation = (np.log(np.exp(logits).sum(axis=1)) - chosen).mean()
    reconstruction = 1 - float(mean_ssim(output.reconstruction, image))
    edge = np.abs(output.edge.double().numpy() - edges.double().numpy()).mean()

    for value, expected in (
        (loss.segmentation, segmentation),
        (loss.reconstruction, reconstruction),
        (loss.edge, edge),
        (loss.total, segmentation + 0.25 * reconstruction + 0.4 * edge),
    ):
        assert abs(float(value) - expected) <= 1e-5


def test_absent_branches_do_not_count(case):
    output, image, classes, edges = case
    loss = dssnet_loss(output._replace(reconstruction=None, edge=None), image, classes, edges)
    assert loss.reconstruction is None
    assert loss.edge is None
    assert torch.equal(loss.total, loss.segmentation)


def test_ignored_pixels_have_no_say(case):
    output, image, classes, edges = case
    classes[:, 12:] = IGNORE
    expected = dssnet_loss(output, image, classes, edges)
    # Whatever the network says there, and whatever the edges are there.
    output.segmentation[:, :, 12:] += 100 * torch.randn(2, 3, 12, 32)
    output.edge[:, :, 6:] += 100
    edges[:, :, 6:] = 0
    changed = dssnet_loss(output, image, classes, edges)
    assert torch.equal(changed.segmentation, expected.segmentation)
    assert torch.equal(changed.edge, expected.edge)
    upper = output.edge[:, :, :6] - edges[:, :, :6]
    assert abs(float(changed.edge - upper.abs().mean())) <= 1e-6


def test_a_batch_without_any_label_is_finite(case):
    output, image, classes, edges = case
    output.segmentation.requires_grad_()
    loss = dssnet_loss(output, image, torch.full_like(classes, IGNORE), edges)
    assert loss.segmentation.item() == loss.edge.item() == 0
    assert math.isfinite(loss.total.item())
    loss.total.backward()
    assert bool((output.segmentation.grad == 0).all())


def test_low_precision_outputs_are_compared_in_float32(case):
    output, image, classes, edges = case
    rounded = DSSNetOutput(*(part.bfloat16() for part in output))
    exact = DSSNetOutput(*(part.float() for part in rounded))
    low = dssnet_loss(rounded, image, classes, edges).total
    assert low.dtype == torch.float32
    assert torch.equal(low, dssnet_loss(exact, image, classes, edges).total)


# --- edges ---------------------------------------------------------------------------------------


def brute_force_edges(labels: np.ndarray) -> np.ndarray:
    height, width = labels.shape
    edge = np.zeros((height // 2, width // 2), np.float32)
    for row in range(height):
        for column in range(width):
            near = labels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            known = near[near >= 0]
            if labels[row, column] > 0 and (known != labels[row, column]).any():
                edge[row // 2, column // 2] = 1
    return edge


@pytest.mark.parametrize("lowest", [0, -1], ids=["known", "partly-unknown"])
def test_edge_target_equals_brute_force(lowest):
    random = np.random.default_rng(1)
    # Blocks of 5 x 3 pixels, so that there are insides as well as touching instances.
    labels = random.integers(lowest, 4, (3, 6, 10)).repeat(5, axis=1).repeat(3, axis=2)
    edges = edge_target(torch.from_numpy(labels).int())
    assert edges.shape == (3, 1, 15, 15)
    assert edges.dtype == torch.float32
    expected = np.stack([brute_force_edges(one) for one in labels])
    assert 0.1 < expected.mean() < 0.95
    np.testing.assert_array_equal(edges[:, 0].numpy(), expected)


def test_touching_instances_are_told_apart():
    labels = torch.zeros(1, 8, 12, dtype=torch.int32)
    labels[:, :, :6] = 2**24 - 2
    labels[:, :, 6:] = 2**24 - 1
    edges = edge_target(labels)[0, 0]
    assert edges.sum(0).tolist() == [0, 0, 4, 4, 0, 0]
    # In a map of classes the two are one object.
    assert edge_target((labels > 0).int()).sum() == 0


def test_image_border_and_unknown_pixels_make_no_edge():
    labels = torch.ones(1, 8, 8, dtype=torch.int32)
    assert edge_target(labels).sum() == 0
    labels[:, 4:] = -1
    assert edge_target(labels).sum() == 0


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (8, 8), (1, 1, 8, 8)])
def test_edge_target_rejects_odd_shapes(shape):
    with pytest.raises(ValueError, match=r"labels must have shape \[B, H, W\] with H and W even"):
        edge_target(torch.zeros(shape, dtype=torch.int32))


def test_soft_dice_equals_numpy():
    torch.manual_seed(1)
    logits, classes = torch.randn(2, 3, 9, 7), torch.randint(0, 3, (2, 9, 7))
    classes[0, :4] = IGNORE
    values = np.exp(logits.double().numpy())
    values = np.moveaxis(values / values.sum(1, keepdims=True), 1, -1)[classes.numpy() >= 0]
    true = np.eye(3)[classes.numpy()[classes.numpy() >= 0]]
    dice = [
        (2 * (values[:, c] * true[:, c]).sum() + 1) / (values[:, c].sum() + true[:, c].sum() + 1)
        for c in range(3)
    ]
    assert abs(float(soft_dice(logits, classes)) - (1 - np.mean(dice))) <= 1e-6


def test_soft_dice_of_a_right_and_a_wrong_answer():
    classes = torch.zeros(1, 64, 64, dtype=torch.long)
    classes[:, :32] = 1
    right = 100 * torch.nn.functional.one_hot(classes, 2).permute(0, 3, 1, 2).float()
    assert float(soft_dice(right, classes)) <= 1e-6
    assert float(soft_dice(right.flip(1), classes)) >= 0.999
    assert float(soft_dice(right, torch.full_like(classes, IGNORE))) <= 1e-6


def test_dice_is_added_to_the_segmentation_part(case):
    output, image, classes, edges = case
    plain, with_dice = (dssnet_loss(output, image, classes, edges, dice) for dice in (0.0, 0.5))
    added = 0.5 * float(soft_dice(output.segmentation, classes))
    assert added > 0.1
    assert abs(float(with_dice.total - plain.total) - added) <= 1e-6
    assert abs(float(with_dice.segmentation - plain.segmentation) - added) <= 1e-6


def test_an_edge_loss_of_l2_is_the_mean_square(case):
    output, image, classes, edges = case
    classes[0, :4] = IGNORE
    known = (classes.unflatten(1, (12, 2)).unflatten(3, (16, 2)) != IGNORE).any(2).any(3)
    squares = ((output.edge - edges)[:, 0].double() ** 2)[known]
    loss = dssnet_loss(output, image, classes, edges, edge_loss="l2")
    assert abs(float(loss.edge) - float(squares.mean())) <= 1e-6
    rest = loss.segmentation + 0.25 * loss.reconstruction
    assert abs(float(loss.total - rest) - 0.4 * float(squares.mean())) <= 1e-6


@pytest.mark.parametrize(("kind", "best"), [("l1", 0.0), ("l2", 0.25)])
def test_the_best_answer_where_an_edge_is_unlikely(case, kind, best):
    """One pixel in four is an edge, and nobody can tell which: l1 says none is."""
    output, image, classes, _ = case
    edges = torch.zeros(2, 1, 12, 16)
    edges[..., ::2, ::2] = 1
    answers = torch.linspace(0, 1, 21)
    losses = [
        float(
            dssnet_loss(
                output._replace(edge=torch.full_like(edges, float(answer))),
                image,
                classes,
                edges,
                edge_loss=kind,
            ).edge
        )
        for answer in answers
    ]
    assert abs(float(answers[int(np.argmin(losses))]) - best) <= 1e-6
