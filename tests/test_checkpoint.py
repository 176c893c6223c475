"""Checkpoints of every kind give the same network; anything else gives one clear error."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from dssnet_fast.checkpoint import from_state, read_checkpoint
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.released import released_state
from networks import CONFIGS, SMALL, random_network


def parametrized(state):
    return {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }


def plain(state):
    folded = {}
    for key, value in state.items():
        if key.endswith("weight_v"):
            g = state[key.replace("weight_v", "weight_g")]
            norm = value.double().flatten(1).norm(dim=1).view_as(g)
            folded[key.removesuffix("_v")] = (value.double() * g.double() / norm).float()
        elif not key.endswith("weight_g"):
            folded[key] = value
    return folded


WRAPPINGS = {
    "released": lambda state: state,
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "parametrized": parametrized,
    "plain": plain,
    "container": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "training run": lambda state: {
        "format": "dssnet_fast.training",
        "model": state,
        "epoch": 3,
        "class_names": ["background", "cell"],
    },
    "float64": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_kind_of_file_gives_the_same_network(wrapping, tmp_path):
    network = random_network()
    path = tmp_path / "ckpt.pt"
    torch.save(WRAPPINGS[wrapping](released_state(network)), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == network.config
    x = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        error = (checkpoint.reference().logits(x) - network.double().logits(x)).abs().max()
    # Plain float32 weights have been rounded once more.
    assert error <= (1e-6 if wrapping == "plain" else 1e-12)
    expected = ("background", "cell" if wrapping == "training run" else "nucleus")
    assert checkpoint.class_names == expected


def test_safetensors_and_legacy_files_are_read(tmp_path):
    state = {key: value.contiguous() for key, value in released_state(random_network()).items()}
    save_file(state, tmp_path / "ckpt.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    a, b = (read_checkpoint(tmp_path / name) for name in ("ckpt.safetensors", "old.pth"))
    assert a.config == b.config
    assert a.digest != b.digest
    assert all(torch.equal(a.state[key], b.state[key]) for key in b.state)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_inferred_from_shapes(name):
    assert from_state(released_state(random_network(CONFIGS[name]))).config == CONFIGS[name]


def test_wrong_keys_are_listed_together():
    state = released_state(random_network())
    del state["head.0.bias"]
    state["pre.con.bias"] = torch.zeros(4)
    state["tail2.9.weight"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        from_state(state, "x.pt")
    message = str(caught.value)
    assert "missing: head.0.bias" in message
    assert "unexpected: tail2.9.weight" in message
    assert "pre.con.bias [4] instead of [9]" in message
    assert message.startswith("x.pt: ")


def test_other_networks_and_ranges_are_refused():
    with pytest.raises(InputError, match=r"no DSSNet weights; its keys are conv1\.weight"):
        from_state({"conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="width must be an integer from 9 to 36, got 5"):
        from_state({"pre.con.weight": torch.zeros(5, 3, 3, 3)})
    with pytest.raises(InputError, match="holds no tensors; its keys are epoch"):
        from_state({"epoch": 3})
    with pytest.raises(InputError, match=r"not floating point tensors: pre\.con\.weight"):
        from_state({"pre.con.weight": "x", "pre.con.bias": torch.zeros(3)})
    state = released_state(random_network())
    del state["head.0.weight_g"]
    with pytest.raises(InputError, match=r"head\.0\.weight_v has no head\.0\.weight_g"):
        from_state(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights_are_refused_unless_allowed(value):
    state = released_state(random_network())
    state["tail2.6.bias"][0] = value
    with pytest.raises(InputError, match=r"NaN or infinite values in tail2\.6\.bias"):
        from_state(state)
    assert from_state(state, allow_nonfinite=True).config.width == SMALL["width"]


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, legacy):
    proof = tmp_path / "ran"
    state = {**released_state(random_network()), "extra": Bomb(proof)}
    torch.save(state, tmp_path / "bomb.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"refused: .*mkdir"):
        read_checkpoint(tmp_path / "bomb.pt")
    assert not proof.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(torch.nn.Conv2d(3, 9, 3), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"refused: .*torch\.save\(model\.state_dict\(\), file\)"):
        read_checkpoint(tmp_path / "model.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(released_state(random_network()), whole)
    content = whole.read_bytes()
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("hello, this is not a checkpoint")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "b")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    save_file({"a": torch.zeros(100)}, tmp_path / "cut.safetensors")
    stored = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(stored[:-50])
    expected = {
        "missing.pt": "no such file",
        "": "is a folder",
        "empty.pt": "is empty",
        "cut.pt": "damaged or cut short",
        "text.pt": "is not a checkpoint",
        "other.zip": "is not a checkpoint",
        "list.pkl": "holds a list|is not a checkpoint",
        "cut.safetensors": "not a whole safetensors file",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message) as caught:
            read_checkpoint(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
