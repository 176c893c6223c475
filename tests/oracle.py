"""The released network in NumPy float64, from a released checkpoint's key names alone.

Written from the paper and the names, without torch and without `python_ref`, so that it can catch
their mistakes. Slow and plain on purpose.
"""

from __future__ import annotations

import itertools

import numpy as np


class Oracle:
    """Computes (segmentation, reconstruction, edge) of one image.

    state: released key -> array, weight-normalised; every PReLU has one shared slope.
    """

    def __init__(self, state) -> None:
        self.state = {
            key.removeprefix("module."): np.asarray(value, np.float64)
            for key, value in state.items()
        }

    def __call__(self, image):
        """image: float [3, H, W] -> [classes, H, W], [3, H, W], [1, H/2, W/2]."""
        x = self.conv("pre.con", np.asarray(image, np.float64))
        for i in range(self.count("pre.module.")):
            strided = self.conv(f"pre.module.{i}.pool2", x, stride=2)
            x = pool(x) + self.conv(f"pre.module.{i}.pool3", strided)
        down = x
        shallow = self.conv("head.0", down)
        deep = shallow
        for i in range(self.count("body.module.")):
            deep = self.wneck(f"body.module.{i}", deep)
        fused = nearest(np.concatenate([shallow, deep]), 4)
        for conv, activation in (("tail1.1", "tail1.2"), ("tail1.3", "tail1.4")):
            fused = self.prelu(activation, self.conv(conv, fused))
        y = fused
        for conv, activation in (("tail2.0", "tail2.1"), ("tail2.2", "tail2.3")):
            y = self.prelu(activation, self.conv(conv, y))
        logits = self.conv("tail2.6", self.conv("tail2.5", nearest(y, 2)))

        edge = self.prelu("boundary.1", self.conv("boundary.0", fused))
        for i in (2, 3, 4):
            edge = self.conv(f"boundary.{i}", edge)

        sr = down
        for i in (0, 2):
            sr = self.prelu(f"sr_head.{i + 1}", self.conv(f"sr_head.{i}", sr))
        for i in range(self.count("sr_body.")):
            sr = self.wneck(f"sr_body.{i}", sr)
        sr = self.conv("sr_tail.2", self.prelu("sr_tail.1", self.conv("sr_tail.0", sr)))
        return logits, shuffle(sr, 8), edge

    def count(self, prefix: str) -> int:
        return len({k[len(prefix) :].split(".")[0] for k in self.state if k.startswith(prefix)})

    def weight(self, name: str) -> np.ndarray:
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        v = self.state[f"{name}.weight_v"]
        length = np.sqrt((v**2).sum(axis=(1, 2, 3), keepdims=True))
        return self.state[f"{name}.weight_g"] * v / length

    def conv(self, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        weight = self.weight(name)
        size = weight.shape[2]
        border = size // 2
        _, height, width = x.shape
        padded = np.pad(x, ((0, 0), (border, border), (border, border)))
        total = self.state[f"{name}.bias"][:, None, None]
        for i, j in itertools.product(range(size), repeat=2):
            window = padded[:, i : i + height : stride, j : j + width : stride]
            total = total + np.tensordot(weight[:, :, i, j], window, axes=1)
        return total

    def prelu(self, name: str, x: np.ndarray) -> np.ndarray:
        (slope,) = self.state[f"{name}.weight"]
        return np.where(x >= 0, x, slope * x)

    def wneck(self, name: str, x: np.ndarray) -> np.ndarray:
        wide = np.concatenate([self.conv(f"{name}.gw1", x), self.conv(f"{name}.gw2", x)])
        wide = self.prelu(f"{name}.re", wide)
        return x + self.conv(f"{name}.module.1", self.conv(f"{name}.module.0", wide))


def pool(x: np.ndarray) -> np.ndarray:
    """2x2 maximum: [C, H, W] -> [C, H/2, W/2]."""
    channels, height, width = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))


def nearest(x: np.ndarray, times: int) -> np.ndarray:
    """[C, H, W] -> [C, H * times, W * times]."""
    return x.repeat(times, axis=1).repeat(times, axis=2)


def shuffle(x: np.ndarray, times: int) -> np.ndarray:
    """[C * times**2, H, W] -> [C, H * times, W * times]; channels in the order (C, row, column)."""
    channels, height, width = x.shape
    x = x.reshape(channels // times**2, times, times, height, width)
    return x.transpose(0, 3, 1, 4, 2).reshape(-1, height * times, width * times)
