"""One training loop, a generator: the caller owns logging, checkpoints and when to stop.

    for training in train(spec, images):
        if training.step % 1000 == 0:
            save_checkpoint(training, path)
"""

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn

from paper_utils import (artifacts, augmentation, data, denoisers, distillation, files, networks,
                         noise, precision, trainable)
from paper_utils.artifacts import below
from paper_utils.denoisers import CONSISTENCY, Framework, Preconditioned
from paper_utils.distillation import Batch, Objective
from paper_utils.errors import UserError, check_device, check_numbers, choose
from paper_utils.samplers import Solver


@dataclass(frozen=True)
class Spec:
    """All that makes a model: the same specification gives the same weights on the same CPU.

    images_seen is the training budget; warmup and ema_half_life are in images seen too, and nothing
    else depends on the budget: a run is a prefix of the same run with a larger one. images is the
    size of the nested subset, the first of the dataset (half 0) or of its second half (half 1).
    precision 'bf16' autocasts the forward pass where the device has it (precision.has_bf16), else
    all is float32; weights, EMA and optimizer always are.

    augmentation is the probability of each kind of non-leaky augmentation; 0 for none.

    Fine-tuning: start names the model whose weights it starts from, trains says which parameters
    learn (a name of trainable.WAYS or a regular expression). dataset is what data.load takes, where
    it is not the profile's.

    Distillation: objective is one of distillation.OBJECTIVES with its options, and start names the
    teacher, in whose network and framework the student begins. solver has the steps of the student.

    Raises UserError for a number or a precision that makes no sense, and where nothing trains.
    """

    name: str
    network: str
    network_args: dict = field(default_factory=dict)
    framework: str = "edm"
    images: int = 50_000
    half: int = 0
    images_seen: int = 1_000_000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 20_000
    ema_half_life: int = 20_000
    seed: int = 0
    precision: str = "float32"
    solver: Solver = Solver()
    note: str = ""
    dataset: str = ""
    start: str = ""
    trains: str = "all"
    objective: str = "denoising"
    objective_args: dict = field(default_factory=dict)
    augmentation: float = 0.0

    def __post_init__(self):
        choose(self.precision, ("float32", "bf16"), "precision")
        if self.half not in (0, 1):
            raise UserError(f"half={self.half} of {self.name}: give 0 or 1")
        check_numbers(self.name, Integral, images=self.images, images_seen=self.images_seen,
                      batch=self.batch)
        check_numbers(self.name, Real, learning_rate=self.learning_rate,
                      ema_half_life=self.ema_half_life)
        if not (isinstance(self.warmup, Real) and self.warmup >= 0):
            raise UserError(f"warmup={self.warmup!r} of {self.name}: give 0 images or more")
        if not self.trains:
            raise UserError(f"trains='' of {self.name}: give 'all' to train every parameter")

    @property
    def run(self) -> str:
        """Names every random stream of this run."""
        return f"{self.name}/{self.seed}"

    @property
    def steps(self) -> int:
        return math.ceil(self.images_seen / self.batch)

    @property
    def teacher_framework(self) -> str:
        """The framework a student's teacher must have."""
        return self.framework.removesuffix(CONSISTENCY)

    def subset(self, images: data.Images) -> data.Images:
        """The training images of this run; UserError when the dataset, or its half, is too small.

        The first n images are also the first n of the first half, as long as half is enough.
        """
        return images.half(1, self.images) if self.half else images.first(self.images)

    def to_json(self) -> str:
        """What the metadata of a file of weights holds; `from_json` reads it."""
        return json.dumps(asdict(self))

    def is_recorded_as(self, values: dict) -> bool:
        """Whether these JSON values, as a file of weights keeps them, are of this specification."""
        return Spec.from_json(json.dumps(values)) == Spec.from_json(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The specification in such a text; fields of another version are left out."""
        values = {k: v for k, v in json.loads(text).items() if k in {f.name for f in fields(cls)}}
        return cls(**values | {"solver": Solver(**values["solver"])})


def build(spec: Spec, start: artifacts.Tensors | None = None) -> Preconditioned:
    """The untrained denoiser of `spec`, initialised from its own seed, in training mode.

    The global stream of the CPU is left as it was.

    start: the weights it starts from, by name; only what spec.trains chooses has requires_grad.
    Raises UserError where they belong to another architecture, or nothing is chosen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(noise.seed_of(spec.run, "init"))
        network = networks.build(spec.network, **spec.network_args)
        if start is not None:
            networks.load_into(network, start, spec.start or "the start")
        trainable.restrict(network, spec.trains)
    return Preconditioned(network, denoisers.framework(spec.framework))


def trained_names(network: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, p in network.named_parameters() if p.requires_grad]


def denoising_loss(denoiser: nn.Module, framework: Framework, clean: Tensor, sigma: Tensor,
                   eps: Tensor, labels: Tensor | None = None, **told: Tensor) -> Tensor:
    """Mean of |D(x0 + sigma eps; sigma) - x0|^2 / c_out(sigma)^2 over batch and pixels.

    That is the squared error of the network's own output, whatever it predicts: of eps as in Ho et
    al. 2020, of v (Salimans & Ho 2022), of x0, or of EDM's F (Karras et al. 2022, section 5).
    """
    scale = denoisers.column(sigma, clean)
    c_out = framework.precondition(scale)[1]  # before the network, for it may wait for the device
    error = denoiser(clean + scale * eps, sigma, labels, **told) - clean
    return (error / c_out).square().mean()


class Denoising(Objective):
    """The denoising loss at the noise levels of a framework; see `denoising_loss`."""

    def __init__(self, framework: Framework):
        self.framework = framework

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        sigma = self.framework.noise_level(batch.quantile)
        told = {} if batch.augment is None else {"augment": batch.augment}
        return denoising_loss(student, self.framework, batch.clean, sigma, batch.eps, batch.labels,
                              **told)


@lru_cache(maxsize=4)
def _permutation(run: str, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=noise.stream(run, "order", epoch))


def batch_rows(run: str, step: int, batch: int, n: int) -> Tensor:
    """The rows of step `step`: [batch] int64, each epoch its own permutation of n images."""
    start, rows = step * batch, []
    while start < (step + 1) * batch:
        epoch, offset = divmod(start, n)
        part = _permutation(run, epoch, n)[offset:offset + (step + 1) * batch - start]
        rows.append(part)
        start += len(part)
    return torch.cat(rows)


class Training:
    """A run in progress: the denoiser that learns, its EMA, the optimizer and the step.

    compiled: by torch.compile, on a GPU as CUDA graphs; the same training but for rounding.
    """

    def __init__(self, spec: Spec, images: data.Images, device: str = "cpu",
                 start: artifacts.Tensors | None = None, compiled: bool = False):
        _check(spec, images, start)
        self.spec, self.images, self.device = spec, images, torch.device(device)
        self.start = artifacts.digest(start) if start is not None else ""
        self.denoiser = build(spec, start).to(self.device, memory_format=torch.channels_last)
        _check_images(spec, images, self.denoiser)
        self.ema = build(spec, start).to(self.device, memory_format=torch.channels_last)
        self._learning, self._averaged = ([p for p in d.parameters() if p.requires_grad]
                                          for d in (self.denoiser, self.ema))
        self._buffers = [list(d.buffers()) for d in (self.ema, self.denoiser)]
        self.ema.eval().requires_grad_(False)
        self.objective = self._objective(start)
        self.optimizer = torch.optim.Adam(self._learning, lr=spec.learning_rate, fused=True)
        self.step, self.loss = 0, math.nan
        self._pixels, self._labels = images.pixels.to(self.device), images.labels.to(self.device)
        if compiled:
            self._compile()

    def _compile(self) -> None:
        """Compile the network in place, when it is first called.

        A student's is called several times a step, which CUDA graphs would have to keep apart.
        """
        check_compiler(self.device)
        graphs = self.device.type == "cuda" and self.spec.objective == "denoising"
        self.denoiser.network.compile(mode="reduce-overhead" if graphs else "default")

    def _objective(self, start: artifacts.Tensors | None) -> Objective:
        spec = self.spec
        if spec.objective == "denoising":
            return Denoising(self.denoiser.framework)
        teacher = None
        if start is not None:
            teacher = build(replace(spec, framework=spec.teacher_framework), start).eval()
            teacher.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        return distillation.objective(spec.objective, self.denoiser, spec.solver, teacher,
                                      **spec.objective_args)

    @property
    def images_seen(self) -> int:
        return self.step * self.spec.batch

    def advance(self) -> None:
        """One optimizer step. All its randomness comes from (run, stream, step)."""
        spec, ramp = self.spec, max(self.spec.warmup, 1)
        rate = spec.learning_rate * min((self.images_seen + spec.batch) / ramp, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._draw()
        self.optimizer.zero_grad(set_to_none=True)  # first: CUDA graphs use their memory again
        loss = self._loss(batch)
        loss.backward()
        self.optimizer.step()
        self.objective.follow(self.denoiser, batch)
        self.step += 1
        self._average()
        self.loss = loss.detach()

    def _draw(self) -> Batch:
        spec = self.spec
        rows = batch_rows(spec.run, self.step, spec.batch, spec.images)
        if self.device.type == "cuda":
            rows = rows.pin_memory()  # else the CPU waits for all steps so far
        rows = rows.to(self.device, non_blocking=True)
        clean = data.to_unit(self._pixels[rows])
        stream = noise.stream(spec.run, "noise", self.step, device=self.device)
        # stratified quantiles: one noise level in every 1/batch of the training distribution
        quantile = torch.rand((), generator=stream, device=self.device)
        quantile = (quantile + torch.arange(spec.batch, device=self.device) / spec.batch) % 1
        eps = torch.randn(clean.shape, generator=stream, device=self.device)
        labels = self._labels[rows] if self.denoiser.classes else None
        augment = None
        if spec.augmentation:
            clean, augment = augmentation.augment(
                clean, spec.augmentation, noise.stream(spec.run, "augmentation", self.step))
        return Batch(clean, eps, quantile, labels, self.images_seen,
                     noise.seed_of(spec.run, "dropout", self.step), augment)

    def _loss(self, batch: Batch) -> Tensor:
        bf16 = precision.bf16(self.device.type, self.spec.precision == "bf16")
        with batch.seeded_dropout(), bf16:
            return self.objective(self.denoiser, batch)

    def _average(self) -> None:
        """EMA with a half-life that grows with the run at first (Karras et al. 2022, ramp 0.05).

        Buffers, as the statistics of batch norm, are copied.
        """
        half_life = min(self.spec.ema_half_life, 0.05 * self.images_seen)
        keep = 0.5 ** (self.spec.batch / half_life)
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._learning, 1 - keep)
            if self._buffers[0]:
                torch._foreach_copy_(*self._buffers)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors: network.*, ema.*, optimizer.<parameter>.<moment>, step; target.* of an
        objective that has one."""
        moments = self.optimizer.state_dict()["state"]
        networks_ = {"network": self.denoiser, "ema": self.ema, "target": self.objective.target}
        return {
            **{f"{which}.{k}": v for which, denoiser in networks_.items() if denoiser is not None
               for k, v in denoiser.network.state_dict().items()},
            **{f"optimizer.{i}.{k}": v for i, s in moments.items() for k, v in s.items()},
            "step": torch.tensor(self.step),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state_dict`."""
        self.denoiser.network.load_state_dict(below("network.", state))
        self.ema.network.load_state_dict(below("ema.", state))
        if self.objective.target is not None:
            self.objective.target.network.load_state_dict(below("target.", state))
        optimizer, moments = self.optimizer.state_dict(), {}
        for key, value in below("optimizer.", state).items():
            index, moment = key.split(".")
            # the fused optimizer goes through memory in order: moments must lie as weights do
            like = self._learning[int(index)]
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            moments.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**optimizer, "state": moments})
        self.step = int(state["step"])


def labels_of(denoiser: Preconditioned, images: data.Images) -> str:
    """A hash of the labels, where it is conditional and so learns from them; else ''."""
    return artifacts.digest({"labels": images.labels}) if denoiser.classes else ""


def _check(spec: Spec, images: data.Images, start: artifacts.Tensors | None) -> None:
    if len(images) != spec.images:
        raise UserError(f"{spec.name} trains on {spec.images} images but was given {len(images)}: "
                        "pass spec.subset(images)")
    if bool(spec.start) != (start is not None):
        raise UserError(f"{spec.name} starts from '{spec.start}': give those weights too, as start"
                        if spec.start else f"{spec.name} was given weights to start from and does "
                        "not say so: give its specification a name for them, start='name'")
    if odd := distillation.untrained(spec.objective, spec.solver, spec.solver):
        raise UserError(f"{spec.name}, with its solver of {spec.solver}, {odd}")
    _check_augmentation(spec)
    if spec.objective == "denoising" and spec.framework.endswith(CONSISTENCY):
        raise UserError(f"{spec.name} would learn by denoising in '{spec.framework}', where the "
                        "network has no say at sigma_min: give it an objective of consistency "
                        "models")
    if spec.objective in distillation.FROM_A_TEACHER and spec.network_args.get("label_dropout"):
        raise UserError(f"{spec.name} would drop labels that its teacher sees: distill with "
                        "label_dropout=0")


def _check_images(spec: Spec, images: data.Images, denoiser: Preconditioned) -> None:
    """UserError where the network was made for other classes, or for images of another size, which
    of a network of one's own is not known."""
    args, one = networks.defaults(spec.network) | spec.network_args, images.pixels[0]
    shape = [one.numel(), 1, 1] if spec.network == "mlp" else [*one.shape]
    sides = 2 * [args["image_size"]] if "image_size" in args else shape[1:]
    takes = [args.get("channels", args.get("in_channels", 3)), *sides]
    known = networks.ARCHITECTURES[spec.network].__module__ == networks.__name__
    if known and takes != shape:
        raise UserError(f"the network of {spec.name} takes images {takes}, but those of "
                        f"{images.name} are {shape}: give it the channels and the image_size of "
                        "the images, or resize them")
    classes = denoiser.classes
    if classes and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < classes:
        raise UserError(f"{spec.name} has {classes} classes but {images.name} has labels "
                        f"{images.labels.min()} to {images.labels.max()}: give it num_classes to "
                        "match")


def _check_augmentation(spec: Spec) -> None:
    if not 0 <= spec.augmentation <= 1:
        raise UserError(f"augmentation={spec.augmentation} of {spec.name} is a probability: give a "
                        "number from 0 to 1")
    if not spec.augmentation:
        return
    if spec.objective != "denoising":
        raise UserError(f"{spec.name} would augment under the objective '{spec.objective}', which "
                        "does not tell the network: augment with the denoising objective only")
    if spec.network_args.get("augment_dim") != augmentation.LABELS:
        raise UserError(f"{spec.name} augments, but its network is not told how, so it would make "
                        f"augmented images: give a U-Net augment_dim={augmentation.LABELS}")


def check_teacher(student: Spec, teacher: Spec) -> None:
    """UserError where a student cannot begin as its teacher: in the same network, but for its
    dropout, and framework.

    A consistency student may: its framework is its teacher's with the boundary condition. A
    progressively distilled model may teach only the student with half as many steps. Without
    distillation nothing is checked.
    """
    if student.objective == "denoising":
        return
    mine, other = ((spec.network, json.dumps(spec.network_args | {"dropout": 0}, sort_keys=True))
                   for spec in (student, teacher))
    if mine != other:
        raise UserError(f"{student.name} has another network than its teacher {teacher.name}: give "
                        "it the same, since it begins with the teacher's weights")
    if student.teacher_framework != teacher.framework:
        raise UserError(f"{student.name} has the framework '{student.framework}', its teacher "
                        f"{teacher.name} '{teacher.framework}', whose weights mean something else: "
                        f"give it '{teacher.framework}' (the loss compares x0, so a teacher may "
                        "predict eps, v or x0)")
    if teacher.objective == "progressive" and (
            student.objective, 2 * student.solver.steps) != ("progressive", teacher.solver.steps):
        raise UserError(f"{student.name} cannot learn from {teacher.name}, which knows "
                        f"{teacher.solver.steps} steps: those teach progressive distillation to "
                        "half as many; start from a model of many steps")


def check_compiler(device: torch.device) -> None:
    """UserError where torch.compile would find no compiler for this device."""
    found = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(map(shutil.which, filter(None, found))):
        raise UserError("torch.compile needs a C++ compiler: install g++, or train without")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError("torch.compile needs the package triton on a GPU: install it, or train "
                        "without")


def train(spec: Spec, images: data.Images, checkpoint: Path | None = None, device: str = "cpu",
          start: artifacts.Tensors | None = None, compiled: bool = False) -> Iterator[Training]:
    """Train `spec` on `images` (exactly spec.images of them); yields after every step.

    start: the weights that fine-tuning starts from, where spec.start names them. compiled: by
    torch.compile, which takes a minute or two before the first step.

    checkpoint: a file to go on from if it exists, or else from the one before it; on the CPU the
    weights at the end are, bit for bit, those of a run that was never stopped. Raises UserError for
    a checkpoint of another specification, subset or start, where both are damaged, for a start of
    another architecture, for CUDA where there is none, and for compiled without a compiler.
    """
    check_device(device)
    training = Training(spec, images, device, start, compiled)
    if checkpoint:
        _go_on(training, Path(checkpoint))
    while training.step < spec.steps:
        training.advance()
        yield training


def check_finite(name: str, tensors: artifacts.Tensors) -> None:
    """UserError where a training has diverged: asked before its weights are kept."""
    odd = [key for key, value in tensors.items()
           if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise UserError(f"{name} has diverged ({odd[0]} is not of finite numbers) and was not "
                        "saved: give its specification a smaller learning rate")


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return checkpoint.with_name(checkpoint.name + ".previous")


def _go_on(training: Training, checkpoint: Path) -> None:
    there = [path for path in (checkpoint, previous(checkpoint)) if path.exists()]
    for path in there:
        try:
            return load_checkpoint(training, path)
        except DamagedCheckpoint:
            if path == there[-1]:
                raise
            warnings.warn(f"checkpoint {path} is damaged: going on from {there[-1]}", stacklevel=3)
            path.replace(path.with_name(path.name + ".damaged"))  # never to become the previous


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read."""


def save_checkpoint(training: Training, path: Path, spec: Spec | None = None) -> None:
    """Write the run so that `train` can go on from it; the old file becomes previous(path).

    spec: of a shorter run of which this one is, at this step, the end. Raises UserError when there
    is no room or no permission, and for a run that has diverged; the old file then stays in its
    place.
    """
    tensors = training.state_dict()
    check_finite((spec or training.spec).name, tensors)
    metadata = {"spec": (spec or training.spec).to_json(), "subset": training.images.hash,
                "labels": labels_of(training.denoiser, training.images), "start": training.start}
    files.replace_file(Path(path), artifacts.save(tensors, metadata), keep=previous(Path(path)))


def load_checkpoint(training: Training, path: Path) -> None:
    """Restore a run; UserError when the file is damaged or belongs to another specification."""
    try:
        state, metadata = artifacts.load_tensors(path)
    except UserError as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({error}): move it away to train "
                                "from the start") from None
    if not metadata.keys() >= {"spec", "subset"} or "step" not in state:
        raise UserError(f"{path} is no checkpoint of this project: give this run a file of its own")
    if not below("network.", state):
        raise UserError(f"{path} holds the averaged weights of a run alone: go on from its whole "
                        "checkpoint, or move it away to train from the start")
    same = training.spec.is_recorded_as(json.loads(metadata["spec"]))
    made_from = [metadata["subset"], *(metadata.get(key, "") for key in ("labels", "start"))]
    labels = labels_of(training.denoiser, training.images)
    if not same or made_from != [training.images.hash, labels, training.start]:
        raise UserError(f"checkpoint {path} belongs to another specification, subset of images, "
                        "labels or start: give this run a file of its own")
    training.load_state_dict(state)
