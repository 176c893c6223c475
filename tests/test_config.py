"""The architecture as a validated value."""

from __future__ import annotations

import dataclasses

import pytest

from dssnet_fast.python_ref.config import DSSNetConfig, default_class_names
from dssnet_fast.python_ref.errors import InputError


def test_defaults_are_the_papers():
    config = DSSNetConfig()
    assert (config.in_channels, config.classes, config.width, config.features) == (3, 2, 30, 42)
    assert (config.blocks, config.block, config.fused) == (10, "wneck", 84)
    assert config.super_resolution
    assert config.edge


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_channels", 2),
        ("in_channels", True),
        ("classes", 1),
        ("classes", 17),
        ("classes", 3.0),
        ("width", 8),
        ("width", 37),
        ("features", 3),
        ("features", 129),
        ("blocks", 0),
        ("blocks", 17),
        ("blocks", True),
        ("block", "resnet"),
        ("edge", 1),
        ("super_resolution", "no"),
        ("upsampling", "bilinear"),
    ],
)
def test_rejects_a_value_by_name(field, value):
    with pytest.raises(InputError, match=rf"config: {field} must be .*{value!r}"):
        DSSNetConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [("classes", (2, 16)), ("width", (9, 36)), ("features", (4, 128)), ("blocks", (1, 16))],
)
def test_accepts_both_ends(field, values):
    for value in values:
        assert getattr(DSSNetConfig(**{field: value}), field) == value


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DSSNetConfig().classes = 3


def test_context_of_the_last_two_stages_is_a_cell():
    assert DSSNetConfig().answer_context_px == 8
    assert DSSNetConfig().context_px == 264


def test_edges_need_a_cell_more():
    assert DSSNetConfig().edge_answer_context_px == 16
    assert DSSNetConfig().edge_context_px == 272


def test_dictionary_round_trip():
    config = DSSNetConfig(in_channels=1, classes=4, block="basic", edge=False, blocks=4)
    assert DSSNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("change", [{"depth": 3}, {"width": None}])
def test_dictionary_with_other_fields_is_rejected(change):
    values = DSSNetConfig().to_dict() | change
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(InputError, match="exactly the fields"):
        DSSNetConfig.from_dict(values)


def test_dictionary_must_be_one():
    with pytest.raises(InputError, match="got list"):
        DSSNetConfig.from_dict([])


def test_default_class_names():
    assert default_class_names(2) == ["background", "nucleus"]
    assert default_class_names(4) == ["background", "nucleus 1", "nucleus 2", "nucleus 3"]
