"""The training loop: resumable, on CPU, one GPU or several (torchrun)."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from .augment import Augmentation
from .config import DSSNetConfig
from .data import LABEL_KINDS, SAMPLINGS, Crops, Labelling, Pair, Samples, extended
from .errors import InputError
from .files import atomic_write, remove_leftovers
from .hardware import why_no_fast_bf16
from .losses import EDGE_LOSSES, IGNORE, Loss, dssnet_loss, edge_target
from .network import DSSNet
from .once import warn
from .processes import Process, joined
from .released import load_released, released_state
from .runlog import EventLog, write_csv, write_figure

FORMAT = "dssnet_fast.training"
VERSION = 1
OPTIMIZERS = ("sgd", "adam")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The recipe. The defaults are the paper's.

    Attributes:
        epochs: Passes over the training images; see `sampling`.
        steps: Optimisation steps in all, whatever `epochs` says: the last epoch ends with them. 0
            leaves it to `epochs`.
        batch: Crops a step, over all processes together.
        crop: Side of a crop in pixels, a multiple of 8.
        optimizer: `sgd` (momentum 0.9, weight decay 5e-4) or `adam`.
        learning_rate: At the start; a cosine takes it to 0.
        clip_norm: Gradients are scaled down to this 2-norm, over all parameters; 0 leaves them. The
            reconstruction can run away in the first epochs without it (Adam at 1e-3).
        augment: Whether crops are augmented.
        sampling: `images`: an epoch is one crop of every image; `area`: as many as fit into it, so
            that every pixel is as likely to be seen, whatever the size of its image.
        average: Decay per step of an exponential moving average of the weights, below 1; 0 keeps
            none. The average is what is validated and saved to be used.
        dice: Weight of a soft Dice loss of the classes beside the paper's loss.
        edge_loss: `l1` or `l2`; see `dssnet_loss`.
        precision: `fp32` or `bf16` (autocast; parameters and loss stay in float32).
        labels: `instances` or `classes`; see `Labelling`.
        seed: Of the initial weights, the crops and the augmentation; 0 to 2**32 - 1.

    Raises:
        InputError: A value is outside its range.
    """

    epochs: int = 400
    steps: int = 0
    batch: int = 4
    crop: int = 512
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    clip_norm: float = 0.0
    augment: bool = True
    sampling: str = "images"
    average: float = 0.0
    dice: float = 0.0
    edge_loss: str = "l1"
    precision: str = "fp32"
    labels: str = "instances"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise InputError(
                f"epochs and batch must be at least 1, got {self.epochs}, {self.batch}"
            )
        if self.steps < 0:
            raise InputError(f"steps must be 0 or more, got {self.steps}")
        if self.crop < 16 or self.crop % 8:
            raise InputError(f"crop must be a multiple of 8 from 16 on, got {self.crop}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning rate must be positive, got {self.learning_rate}")
        if not (math.isfinite(self.clip_norm) and self.clip_norm >= 0):
            raise InputError(f"clip norm must be 0 or more, got {self.clip_norm}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must be from 0 to below 1, got {self.average}")
        if not (math.isfinite(self.dice) and self.dice >= 0):
            raise InputError(f"dice must be 0 or more, got {self.dice}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("sampling", SAMPLINGS),
            ("edge_loss", EDGE_LOSSES),
            ("precision", PRECISIONS),
            ("labels", LABEL_KINDS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


def normalise(images: Tensor) -> Tensor:
    """Pixel values 0..255 to the network's input, `(value - 128) / 128`."""
    return (images.float() - 128) / 128


class Trainer:
    """One training run in one folder.

    The folder gets `last.pt` and `best.pt` (released key names, readable by the converter),
    `log.csv`, `curves.png` and `events/`. A folder that already holds `last.pt` of the same run is
    continued after the last whole epoch. Since every random number depends on seed and epoch alone,
    the result is that of an uninterrupted run: to the last bit on a CPU, and as closely as two
    uninterrupted runs agree on a GPU.

    The mean IoU that decides which epoch is best is that of the classes that occur in the labels of
    the validation images. A class that does not has no IoU (nan in the log); predicting it
    nevertheless lowers the IoU of the classes it is mistaken for.

    Args:
        config: The network.
        options: The recipe.
        training: Training samples.
        validation: Validation samples.
        class_names: Names of the classes, background first.
        out: The run's folder; made when missing.
        process: This process.
        workers: Processes that cut crops; 0 cuts in this one.
        graph: Makes of the network what is run in its place: the same numbers for less work.
        make_network: Makes the network. Another than `DSSNet` is called and asked for `logits` as
            that is, answers without the branches that `config` says it lacks, and is saved under
            its own names.

    Raises:
        InputError: `out` holds another run, there are fewer training images than `batch`, or an
            argument is out of range.
        OSError: `out` cannot be made or read.
    """

    def __init__(
        self,
        config: DSSNetConfig,
        options: TrainingOptions,
        training: Samples,
        validation: Samples,
        class_names: list[str],
        out: Path,
        process: Process,
        workers: int = 0,
        graph: Callable[[nn.Module], nn.Module] | None = None,
        make_network: Callable[[DSSNetConfig], nn.Module] = DSSNet,
    ) -> None:
        self.config, self.options, self.process, self.out = config, options, process, Path(out)
        self.class_names = class_names
        self.validation = validation
        self.labelling = training.labelling
        if options.batch % process.count:
            raise InputError(
                f"batch {options.batch} cannot be divided by {process.count} processes"
            )
        if len(training) < options.batch:
            raise InputError(
                f"{len(training)} training image(s) are fewer than the batch of {options.batch}"
            )
        if not len(validation):
            raise InputError("there is no validation image")
        if workers < 0:
            raise InputError(f"workers must be 0 or more, got {workers}")
        if options.precision == "bf16" and process.leads:
            slow = why_no_fast_bf16(process.device)
            if slow is not None:
                warn(f"training in bf16: {slow}; use precision fp32")

        torch.manual_seed(options.seed)
        self.network = make_network(config).to(process.device, memory_format=torch.channels_last)
        self.average = _average(self.network, options.average) if options.average else None
        self.epoch = 0
        self.best = -1.0
        self.history: list[dict[str, float]] = []

        self.crops = Crops(training, options.crop, options.seed, options.sampling)
        self.sampler = DistributedSampler(
            self.crops, process.count, process.rank, seed=options.seed, drop_last=True
        )
        # Workers start anew in each epoch, so their copies of the crops know its number.
        self.loader = DataLoader(
            self.crops,
            batch_size=options.batch // process.count,
            sampler=self.sampler,
            num_workers=workers,
            drop_last=True,
            pin_memory=process.device.type == "cuda",
            persistent_workers=False,
        )
        self.augmentation = Augmentation(config.in_channels).to(process.device)
        self.optimizer = self._make_optimizer()
        self.steps = options.steps or options.epochs * len(self.loader)
        self.epochs = math.ceil(self.steps / len(self.loader))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=self.steps)
        self._resume()
        self.graph = graph or _itself
        run = self.graph(self.network)
        self.parallel = DistributedDataParallel(run) if process.count > 1 else run

    @property
    def usable(self) -> nn.Module:
        """The network to validate and to save: the average of the weights, where one is kept."""
        return self.network if self.average is None else self.average.module

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rate = self.options.learning_rate
        if self.options.optimizer == "adam":
            return torch.optim.Adam(self.network.parameters(), lr=rate)
        return torch.optim.SGD(self.network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)

    # --- checkpoints -----------------------------------------------------------------------------

    def _identity(self) -> dict[str, object]:
        """What must be equal for one run to continue another."""
        return {
            **asdict(self.options),
            **self.config.to_dict(),
            "class names": self.class_names,
            "training images": _names(self.crops.samples.pairs),
            "validation images": _names(self.validation.pairs),
            "processes": self.process.count,
            "network": type(self.network).__name__,
        }

    def _resume(self) -> None:
        # Only the leader reads: the folder need not be visible to the other processes.
        saved = self.process.from_leader(self._open_folder)
        if saved is None:
            return
        if self.average is None:
            _load(self.network, saved["model"])
        else:
            _load(self.network, saved["trained"])
            _load(self.average.module, saved["model"])
            self.average.n_averaged.fill_(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.epoch, self.best, self.history = saved["epoch"], saved["best"], saved["history"]

    def _open_folder(self) -> dict | None:
        """Make the folder, or read the last checkpoint of this run in it."""
        path = self.out / "last.pt"
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            self._sweep()
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if (saved["format"], saved["version"]) != (FORMAT, VERSION):
                raise ValueError("another format or version")
            identity = dict(saved["identity"])
        except OSError:
            raise
        except Exception as error:  # torch.load raises exceptions of every kind
            raise InputError(
                f"{path}: is not a checkpoint of a training run; choose another folder"
            ) from error
        changed = [
            f"{name} was {identity.get(name)!r}, now {value!r}"
            for name, value in self._identity().items()
            if identity.get(name) != value
        ]
        if changed:
            raise InputError(
                f"{self.out} holds a run with other settings ({'; '.join(changed)}); "
                "choose another folder, or repeat the settings to continue it"
            )
        self._sweep()
        return saved

    def _sweep(self) -> None:
        """Remove what a run that was killed while it wrote has left."""
        names = ("last.pt", "best.pt", "log.csv", "curves.png")
        remove_leftovers(self.out / name for name in names)

    def _save(self, improved: bool) -> None:
        checkpoint = {
            "format": FORMAT,
            "version": VERSION,
            "model": _state(self.usable),
            "config": self.config.to_dict(),
            "class_names": self.class_names,
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
            "identity": self._identity(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        if self.average is not None:
            checkpoint["trained"] = _state(self.network)
            checkpoint["averaged"] = int(self.average.n_averaged)
        # Best first: if the run dies between the two, the epoch is run again and writes both.
        for name in (["best.pt"] if improved else []) + ["last.pt"]:
            with atomic_write(self.out / name) as temporary:
                torch.save(checkpoint, temporary)

    def _write_log(self) -> None:
        # Nothing in it depends on the clock: a resumed run leaves the log of an uninterrupted one.
        write_csv(self.out / "log.csv", self.history)
        write_figure(self.out / "curves.png", self.history)

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> float:
        """Train to the last epoch.

        Returns:
            The best mean IoU on the validation images.

        Raises:
            InputError: The loss or the network is no longer finite. The last checkpoint stays as it
                was.
            OSError: The folder cannot be written to.
        """
        events = EventLog(self.out / "events", self.epoch + 1) if self.process.leads else None
        try:
            if self.process.leads and self.history:
                # The run may have been killed after its checkpoint and before its log.
                self._write_log()
            while self.epoch < self.epochs:
                started = time.monotonic()
                row = self._one_epoch()
                improved = row["mean_iou"] > self.best
                self.best = max(self.best, row["mean_iou"])
                self.history.append(row)
                seconds = time.monotonic() - started
                self.process.from_leader(lambda: self._record(improved, seconds, events))  # noqa: B023
        finally:
            if events:
                events.close()
        return self.best

    def _record(self, improved: bool, seconds: float, events: EventLog) -> None:
        row = self.history[-1]
        self._save(improved)
        self._write_log()
        events.add({**row, "seconds": seconds})
        tqdm.write(
            f"epoch {self.epoch}/{self.epochs}: loss {row['loss']:.4f}, "
            f"mean IoU {row['mean_iou']:.4f}, {seconds:.0f} s",
            file=sys.stderr,
        )

    def _one_epoch(self) -> dict[str, float]:
        number = self.epoch + 1
        seeds = np.random.SeedSequence((self.options.seed, number, self.process.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        self.sampler.set_epoch(number)
        self.crops.epoch = number
        self.network.train()
        rate = self.schedule.get_last_lr()[0]
        names = ["loss", "loss_segmentation"]
        names += ["loss_reconstruction"] if self.config.super_resolution else []
        names += ["loss_edge"] if self.config.edge else []
        sums = torch.zeros(len(names), device=self.process.device)
        steps = min(len(self.loader), self.steps - self.epoch * len(self.loader))
        bar = tqdm(
            itertools.islice(self.loader, steps),
            total=steps,
            desc=f"epoch {number}/{self.epochs}",
            unit="step",
            disable=None if self.process.leads else True,  # None: shown in a terminal only
            leave=False,
        )
        for images, labels in bar:
            loss = self.step(images, labels)
            sums += torch.stack([part.detach() for part in loss if part is not None])
            bar.set_postfix(loss=f"{loss.total.item():.4f}", best=f"{max(self.best, 0):.4f}")
        means = self.process.summed(sums) / (steps * self.process.count)
        scores = self._validate()
        self.epoch = number
        named = dict(zip(names, means.tolist(), strict=True))
        return {"epoch": number, **named, **scores, "learning_rate": rate}

    def step(self, images: Tensor, labels: Tensor) -> Loss:
        """One optimisation step, with augmentation.

        Args:
            images: uint8 [B, C, crop, crop], as `loader` gives them.
            labels: int32 [B, crop, crop].

        Raises:
            InputError: The loss is not finite; the weights are as before.
        """
        device = self.process.device
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if self.options.augment:
            images, labels = self.augmentation(images, labels)
        image = normalise(images).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            output = self.parallel(image)
        classes = self.labelling.class_map(labels)
        edges = edge_target(self.labelling.objects(labels))
        options = self.options
        loss = dssnet_loss(output, image, classes, edges, options.dice, options.edge_loss)
        # The sum is finite only if every process's part is: all of them stop, or none.
        self._require_finite(self.process.summed(loss.total.detach()), "loss")
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            raise InputError(
                f"the {what} became {value.item()} in epoch {self.epoch + 1}; lower the learning "
                f"rate (now {self.options.learning_rate}) or train in fp32"
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.process.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"
        )

    def answering(self) -> Callable[[np.ndarray], Tensor]:
        """The usable network as it is now, for whole images.

        Returns:
            From uint8 [H, W, C] to logits [1, classes, H, W] on the process's device, computed in
            the precision of the training.
        """
        network = self.graph(self.usable.eval())

        @torch.no_grad()
        def logits(image: np.ndarray) -> Tensor:
            height, width = image.shape[:2]
            x = extended(image, -(-height // 8) * 8, -(-width // 8) * 8)[None]
            x = normalise(x.to(self.process.device)).contiguous(memory_format=torch.channels_last)
            with self._autocast():
                return network.logits(x)[..., :height, :width]

        return logits

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """IoU of each class and their mean, over the pixels of all validation images together."""
        answer = self.answering()
        device, classes = self.process.device, self.config.classes
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        checksum = torch.zeros((), device=device)
        for index in range(self.process.rank, len(self.validation), self.process.count):
            image, labels = self.validation[index]
            logits = answer(image)
            checksum += logits.float().mean()
            confusion += multiclass_confusion_matrix(
                logits.argmax(1),
                self.labelling.class_map(torch.from_numpy(labels)[None].to(device)),
                classes,
                ignore_index=IGNORE,
                validate_args=False,
            )
        # The last step of an epoch may have spoilt the weights after its loss was computed.
        self._require_finite(self.process.summed(checksum), "network's output")
        scores = iou(self.process.summed(confusion)).tolist()
        present = [score for score in scores if not math.isnan(score)]
        named = {f"iou_{name}": score for name, score in zip(self.class_names, scores, strict=True)}
        return {"mean_iou": sum(present) / len(present), **named}


def _itself(network: nn.Module) -> nn.Module:
    return network


def _average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of `network` that soon forgets the initial weights."""

    def move(average: Tensor, weights: Tensor, steps: int | Tensor) -> Tensor:
        # The share that the past keeps grows with the steps, up to `decay`.
        return torch.lerp(weights, average, min(decay, (1 + int(steps)) / (10 + int(steps))))

    return AveragedModel(network, avg_fn=move)


def _state(network: nn.Module) -> dict[str, Tensor]:
    own = isinstance(network, DSSNet)
    state = released_state(network) if own else network.state_dict()
    return {key: value.detach().cpu() for key, value in state.items()}


def _load(network: nn.Module, state: dict[str, Tensor]) -> None:
    if isinstance(network, DSSNet):
        load_released(network, state)
    else:
        network.load_state_dict(state)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class that occurs.

    Args:
        confusion: [classes, classes] pixel counts, true class by predicted class.

    Returns:
        [classes] float64; nan for a class without a true pixel.
    """
    confusion = confusion.double()
    true, predicted, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    scores = both / (true + predicted - both)
    return scores.masked_fill(true == 0, math.nan)


def _names(pairs: list[Pair]) -> str:
    """How many pairs there are and a digest of their files' names."""
    digest = hashlib.sha256("\n".join(pair.image.name for pair in pairs).encode()).hexdigest()
    return f"{len(pairs)} of digest {digest[:8]}"


def train(
    config: DSSNetConfig,
    options: TrainingOptions,
    training: list[Pair],
    validation: list[Pair],
    class_names: list[str],
    out: Path,
    device: str = "auto",
    workers: int = 0,
    graph: Callable[[nn.Module], nn.Module] | None = None,
    remark: str | None = None,
) -> float:
    """Check the data, then train; see `Trainer`.

    Args:
        config: The network.
        options: The recipe.
        training: Training files.
        validation: Validation files.
        class_names: Names of the classes, background first.
        out: The run's folder; made when missing.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: Processes that cut crops; 0 cuts in this one.
        graph: See `Trainer`.
        remark: To be said when all is checked.

    Returns:
        The best mean IoU on the validation images.

    Raises:
        InputError: Names every unusable file, before the first step; or see `Trainer`.
        OSError: The run's folder cannot be made, read or written.
    """
    labelling = Labelling(options.labels, config.classes)
    with joined(device) as process:

        def progress(items: Iterable[Pair]) -> Iterable[Pair]:
            hidden = None if process.leads else True
            return tqdm(items, desc="checking data", unit="image", disable=hidden, leave=False)

        trainer = Trainer(
            config,
            options,
            Samples(training, config.in_channels, labelling, progress),
            Samples(validation, config.in_channels, labelling, progress),
            class_names,
            out,
            process,
            workers,
            graph,
        )
        if remark and process.leads:
            tqdm.write(remark, file=sys.stderr)
        return trainer.run()
