"""Models, each one a function from the shared noise to an image, and their samples.

A model may be trained on the spot, loaded from zoo/, or closed-form; what compares them does not
know which.
"""

import contextlib
import inspect
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from paper_utils import (artifacts, augmentation, contrast, data, denoisers, distillation,
                         local_score, networks, noise, precision, recipes, samplers, trainable,
                         training, zoo)
from paper_utils.errors import UserError, check_device, choose
from paper_utils.noise import EXTENT, NoiseBank, hyperplane
from paper_utils.profiles import Profile
from paper_utils.progress import progress
from paper_utils.samplers import Solver

BANK = NoiseBank()
CLOSED_FORMS = ("optimal", "gaussian", "local")
ONE_STEP = ("progressive-1", "cd", "ct")  # the students that join the models of section 2
FAMILIES = {**dict.fromkeys(("unet", "multistage", "diffusers_unet"), "U-Net"),
            "uvit": "transformer", "dit": "transformer", "mlp": "perceptron"}  # else 'other'
LIBRARIES = {__package__, "torch", "diffusers"}  # code that is told by a version, not by a hash
SAVED = 60.0  # seconds between two checkpoints of a training


@dataclass(frozen=True)
class Model:
    """A row of the table of models.

    generate: unit normal noise [B, 3, 32, 32] -> x0 [B, 3, 32, 32] in [-1, 1]; of a conditional
    model [B, classes, 3, 32, 32], an image of every class it knows. identity: all that decides what
    it generates (names its samples in the artifact store). images, images_seen: how many it trained
    on, and the budget (0 of a closed form); None where it is not known. spec: of the diffusion
    models this project trained. solver, denoiser (makes it): None for GANs and VAEs, which take one
    step. classes: labels of a conditional model. shape: of a noise, which for a model of latents is
    not that of an image. device: where its denoiser works. sheet_alone: its weights are not in the
    zoo; it has the images of its sheet, and no others.
    """

    name: str
    family: str  # of FAMILIES, 'other' or 'yours'; 'closed form', 'GAN' or 'VAE'
    architecture: str
    framework: str
    solver: Solver | None
    evaluations: int
    parameters: int
    images: int | None
    images_seen: int | None
    identity: dict
    generate: Callable[..., Tensor]
    spec: training.Spec | None = None
    denoiser: Callable[[], denoisers.Denoiser] | None = None
    classes: tuple[int, ...] = ()
    shape: tuple[int, ...] = BANK.shape
    device: str | torch.device = "cpu"
    sheet_alone: bool = False

    @property
    def trained_diffusion(self) -> bool:
        return self.family not in ("closed form", "GAN", "VAE")


# --- making models ------------------------------------------------------------------------------

def diffusion(spec: training.Spec, denoiser: denoisers.Preconditioned, weights: str,
              shape: tuple[int, ...] = BANK.shape) -> Model:
    """A trained denoiser of images [*shape] with the solver of its specification.

    weights: their hash.
    """
    classes, device = tuple(range(denoiser.classes)), next(denoiser.parameters()).device
    return Model(
        name=spec.name, family=FAMILIES.get(spec.network, "other"),
        architecture=_architecture(spec, denoiser.network),
        framework=denoiser.framework.label, solver=spec.solver,
        evaluations=spec.solver.evaluations, parameters=networks.count_parameters(denoiser),
        images=spec.images, images_seen=spec.images_seen,
        identity={"weights": weights, "solver": asdict(spec.solver), "code": sampling_code()},
        generate=by_solver(denoiser, spec.solver, device, classes), spec=spec,
        denoiser=lambda: denoiser, classes=classes, shape=shape, device=device)


def from_denoiser(name: str, denoiser: denoisers.Denoiser, solver: Solver = Solver(),
                  version: str = "", shape: tuple[int, ...] = BANK.shape, device: str = "",
                  family: str = "yours") -> Model:
    """A denoiser of yours, unconditional, as one more model: for `samples` and all that takes them.

    version: a word that you change whenever the denoiser does. Its samples are kept under its name,
    version and solver, where it is an nn.Module the hash of its weights, and of a Preconditioned
    that of its framework too. shape: of a noise. device: by default that of its parameters.
    family: 'U-Net' or 'transformer' lets section 4 compare it inside its family and across; one
    that nobody trained is a 'closed form'; all others count as trained diffusion models, so that
    they join those of section 2. Raises UserError for what is no denoiser, for a conditional one,
    and without a version for all but a Preconditioned network of this package.
    """
    samplers.check_denoiser(denoiser)
    samplers.check_solver(solver)
    module, told = isinstance(denoiser, nn.Module), {}
    if isinstance(denoiser, denoisers.Preconditioned):
        if denoiser.classes:
            raise UserError(f"{name} is class-conditional: give one class of it, as in lambda u, "
                            "sigma: denoiser(u, sigma, torch.full((len(u),), 3))")
        told = {"framework": denoiser.framework.answers()}  # which is in no state_dict
    if not version and not (told and _packages(denoiser) <= LIBRARIES):
        kind = "class" if told else "module" if module else "function"
        raise UserError(f"samples of {name} are kept, and nothing says when this {kind} changes: "
                        "give a version, as in version='1', and another one after a change")
    weights = artifacts.digest(dict(denoiser.state_dict()) | told) if module else ""
    first = next(denoiser.parameters(), None) if module else None
    found = check_device(device or "cpu") if device or first is None else first.device
    return Model(
        name=name, family=family, architecture=type(denoiser).__name__ if module else "function",
        framework="yours", solver=solver, evaluations=solver.evaluations,
        parameters=networks.count_parameters(denoiser) if module else 0, images=None,
        images_seen=None, generate=by_solver(denoiser, solver, found),
        identity={"yours": name, "version": version, "weights": weights, "solver": asdict(solver),
                  "code": sampling_code()},
        denoiser=lambda: denoiser, shape=tuple(shape), device=found)


def _packages(module: nn.Module) -> set[str]:
    """The packages that the classes of a module and of its parts come from."""
    return {_package(type(part)) for part in module.modules()}


def _package(part: Callable) -> str:
    return part.__module__.partition(".")[0]


def denoiser_of(model: Model) -> denoisers.Denoiser:
    """The model's denoiser. Raises UserError for a GAN or a VAE, which have none."""
    if model.denoiser is None:
        raise UserError(f"{model.name} has no denoiser: give a diffusion model or a closed form")
    return model.denoiser()


def resolved(model: Model, solver: Solver, name: str = "") -> Model:
    """The same denoiser by another solver, under a name of its own.

    Warns, once, where a distilled student is given steps that it was not trained for: one of
    progressive distillation knows its own number, one of consistency any that the consistency
    sampler takes. Raises UserError for a model without a denoiser and for a conditional one.
    """
    if model.denoiser is None or model.classes:
        raise UserError(f"{model.name} is not sampled by a solver that could be changed: give an "
                        "unconditional diffusion model")
    if model.spec and (odd := distillation.untrained(model.spec.objective, model.spec.solver,
                                                     solver)):
        _warn_once(f"{model.name} {odd}")
    return replace(model, name=name or f"{model.name}, {solver}", solver=solver,
                   evaluations=solver.evaluations,
                   identity=model.identity | {"solver": asdict(solver)},
                   generate=by_solver(model.denoiser(), solver, model.device))


@lru_cache(maxsize=None)
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def by_solver(denoiser: denoisers.Denoiser, solver: Solver, device: str | torch.device,
              classes: tuple[int, ...] = ()) -> Callable[..., Tensor]:
    """noise -> x0, both on the CPU, by `solver` on the device of the denoiser."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        return samplers.sample(denoiser, noise.to(device), solver, progress=title).cpu()

    def of_every_class(noise: Tensor, title: str = "") -> Tensor:
        return samplers.every_class(denoiser, noise.to(device), solver, classes, title).cpu()

    return of_every_class if classes else generate


def _architecture(spec: training.Spec, network: nn.Module) -> str:
    args = networks.defaults(spec.network) | spec.network_args
    if spec.network in ("uvit", "dit"):
        return f"{spec.network}, {args['dim']} wide, {args['depth']} deep, patch {args['patch']}"
    if spec.network == "diffusers_unet":
        return f"UNet2DModel {'-'.join(map(str, network.unet.config.block_out_channels))}"
    if spec.network == "mlp":
        return f"perceptron, width {args['width']}"
    if spec.network not in ("unet", "multistage"):  # registered from outside
        return spec.network
    patch = f", {args['patch']}x{args['patch']} patches" if args["patch"] > 1 else ""
    mult = "-".join(str(args["width"] * m) for m in args["channel_mult"])
    return f"{spec.network} {mult}{patch}"


def contrast_model(name: str, spec: contrast.Spec, network: nn.Module, weights: str,
                   images: int) -> Model:
    """A GAN or VAE on the same noises, in one evaluation."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        return contrast.sample(network, noise).cpu()

    return Model(
        name=name, family=spec.kind.upper(), architecture=f"convolutional, width {spec.width}",
        framework=spec.kind.upper(), solver=None, evaluations=1,
        parameters=networks.count_parameters(network), images=images, images_seen=spec.images_seen,
        identity={"weights": weights, "code": contrast_code()},
        generate=generate)


def closed_forms(images: data.Images, bag: int, device: str = "cpu") -> dict[str, Model]:
    """Every `closed_form` of `images`, by name."""
    return {name: closed_form(name, images, device, bag) for name in CLOSED_FORMS}


def closed_form(name: str, images: data.Images, device: str = "cpu", bag: int = 0) -> Model:
    """'optimal', 'gaussian' or 'local': the optimal denoiser, the Gaussian denoiser or the
    equivariant local score of `images`, all through the same solver (Heun, 18 steps).

    bag: patches of the local score. It is built when first asked for a sample. Raises UserError for
    another name and for a device that is not there.
    """
    check_device(device)
    label, make = {
        "optimal": ("optimal denoiser (empirical)",
                    lambda: denoisers.OptimalDenoiser(images.pixels.to(device))),
        "gaussian": ("Gaussian (Wiener) denoiser", lambda: gaussian(images)),
        "local": (f"equivariant local score, {bag} patches",
                  lambda: local_score.LocalEquivariantDenoiser(images, bag, device=device)),
    }[choose(name, CLOSED_FORMS, "closed form")]
    solver, built = Solver(), lru_cache(make)

    def generate(noise: Tensor, title: str = "") -> Tensor:
        if name == "gaussian":
            return samplers.sample_gaussian(built(), noise, solver)
        x0 = samplers.sample(built(), noise.to(device), solver, batch=256, progress=title)
        return x0.cpu()

    identity = {"closed form": name, "images": images.hash, "code": sampling_code()}
    return Model(
        name=name, family="closed form", architecture=label, framework="closed form",
        solver=solver, evaluations=solver.evaluations, parameters=0, images=len(images),
        images_seen=0, identity=identity | ({"bag": bag} if name == "local" else {}),
        generate=generate, denoiser=built, shape=tuple(images.pixels.shape[1:]), device=device)


def gaussian(images: data.Images) -> denoisers.GaussianDenoiser:
    """The Gaussian denoiser of these images, float64; its eigendecomposition is an artifact."""
    def compute() -> artifacts.Tensors:
        fitted = denoisers.GaussianDenoiser.fit(images.pixels)
        return {"mean": fitted.mean, "eigenvalues": fitted.eigenvalues,
                "eigenvectors": fitted.eigenvectors}

    spec = {"images": images.hash, "code": artifacts.code_version(denoisers)}
    return denoisers.GaussianDenoiser(**artifacts.remember("gaussian", spec, compute))


def sampling_code() -> str:
    return artifacts.code_version(samplers, denoisers, networks, local_score, trainable, noise,
                                  data, precision)


def contrast_code() -> str:
    """A hash of the code that decides what a GAN or VAE is, and makes of a noise."""
    return artifacts.code_version(contrast, noise, data, precision)


# --- training on the spot -----------------------------------------------------------------------

def train(spec: training.Spec, images: data.Images, device: str = "cpu",
          start: artifacts.Tensors | None = None,
          shorter: Iterable[training.Spec] = ()) -> tuple[Model, Tensor]:
    """The trained model of `spec` and its loss at every step, from the artifact store or else now.

    The loss of steps before a kill, which the run does not repeat, is NaN.

    start: the weights that fine-tuning starts from, where spec.start names them. shorter: runs that
    this one passes through before its end (recipes.prefixes), which are kept on the way.

    A run that was killed goes on from its checkpoint; progress is a bar in a notebook, plain lines
    in a batch log. Raises UserError as training.train does.
    """
    check_device(device)
    denoiser = training.build(spec)
    made = _recipe(spec, images, start, denoiser)
    path = artifacts.path_of("model", made)
    checkpoint = path.with_name(f"{path.stem}.checkpoint")
    ends = {one.steps: one for one in shorter}

    def compute() -> artifacts.Tensors:
        saved = time.monotonic()
        # on its device, for a step need not wait for it; the steps of a killed run stay NaN
        losses = torch.full((spec.steps,), torch.nan, device=device)

        def result() -> artifacts.Tensors:
            weights = {f"network.{k}": v for k, v in run.ema.network.state_dict().items()}
            training.check_finite(spec.name, weights)
            return weights | {"loss": losses[:run.step]}

        runs = training.train(spec, images, checkpoint, device, start)
        for run in progress(runs, spec.name, spec.steps, "step", lambda r: f"loss {r.loss:.4f}",
                            lambda r: r.step):
            losses[run.step - 1] = run.loss
            if run.step in ends:
                artifacts.remember("model", _recipe(ends[run.step], images, start, denoiser),
                                   result)
            if run.step < spec.steps and time.monotonic() - saved > SAVED:
                training.save_checkpoint(run, checkpoint)
                saved = time.monotonic()
        return result()

    tensors = artifacts.remember("model", made, compute)
    for done in (checkpoint, training.previous(checkpoint)):  # not before its successor is written
        done.unlink(missing_ok=True)
    denoiser.network.load_state_dict(artifacts.below("network.", tensors))
    shape = tuple(images.pixels.shape[1:])
    return diffusion(spec, denoiser.to(device).eval(), path.stem, shape), tensors["loss"]


def _recipe(spec: training.Spec, images: data.Images, start: artifacts.Tensors | None,
            denoiser: denoisers.Preconditioned) -> dict:
    """All that decides the weights of a training."""
    return {"spec": json.loads(spec.to_json()), "images": images.hash,
            "labels": training.labels_of(denoiser, images),
            "start": "" if start is None else artifacts.digest(start),
            "code": training_code() + _foreign_code(spec, denoiser.network)}


def _foreign_code(spec: training.Spec, network: nn.Module) -> str:
    """A hash of the network, of its parts and of the framework of `spec`, as far as they come from
    outside.

    Of their whole modules; of what a notebook or a script itself defines, of that alone. Raises
    UserError where neither has a source that could be read.
    """
    parts = {networks.ARCHITECTURES[spec.network],
             denoisers.FRAMEWORKS[spec.framework.removesuffix(denoisers.CONSISTENCY)],
             *map(type, network.modules())}
    return "".join(sorted({_version_of(part) for part in parts if _package(part) not in LIBRARIES}))


def _version_of(part: Callable) -> str:
    whole = None if part.__module__ == "__main__" else inspect.getmodule(part)
    for source in filter(None, (whole, part)):
        with contextlib.suppress(TypeError, OSError):
            return artifacts.code_version.__wrapped__(source)  # read anew: notebooks reload modules
    raise UserError(f"the source of {part.__qualname__} cannot be read, so nothing would say when "
                    "it changes: write it to a file, or train by training.train, which keeps "
                    "nothing")


def training_code() -> str:
    """A hash of the code that decides what a training makes."""
    return artifacts.code_version(training, denoisers, distillation, networks, samplers, trainable,
                                  augmentation, noise, data, precision)


def train_all(specs: Mapping[str, training.Spec], images: data.Images | None = None,
              device: str = "cpu") -> dict[str, Model]:
    """The trained models of `specs`, by name; what starts from another must stand after it.

    images: the dataset of specs without one of their own. A run that is the beginning of one
    before it is not trained again. Raises UserError as `train` does, where the subsets cannot be
    had, and for a student whose teacher is of another kind.
    """
    subsets = {name: spec.subset(dataset_of(spec, images)) for name, spec in specs.items()}
    shorter = {name: recipes.prefixes(spec, specs) for name, spec in specs.items()}
    found: dict[str, Model] = {}
    for name, spec in specs.items():
        start = None
        if spec.start:
            training.check_teacher(spec, specs[spec.start])
            start = trainable.merged(found[spec.start].denoiser().network.state_dict())
        passed = [specs[other] for other in shorter[name].values()]
        found[name] = train(spec, subsets[name], device, start, passed)[0]
    return found


def weights_of(path: str | Path, student: training.Spec | None = None) -> artifacts.Tensors:
    """The network's weights in a file of zoo/, of the artifact store or of a training.

    path: as it is, from the repository's root, or a file's name in the store. Low-rank adapters are
    merged into the weights; those of a released EDM network or U-ViT get this project's names
    (networks.released). student: what is to begin with them. Raises UserError for a file that is
    not there or is no safetensors, and for a student of another kind than the file says it has.
    """
    path = _found(path)
    tensors, metadata = artifacts.load_tensors(path)
    made = _specification(metadata)
    if student and made.keys() >= {"network", "framework"}:
        training.check_teacher(student, training.Spec.from_json(json.dumps(made)))
    if made.get("start") and path.parent in [folder.resolve() for folder in zoo.FOLDERS]:
        whole = assembled(zoo.entry(path.stem, path.parent), made, tensors)
        tensors = whole.denoiser().network.state_dict()
    for prefix in ("ema.", "network.", "module."):  # the last of DistributedDataParallel
        if inside := artifacts.below(prefix, tensors):
            tensors = inside
            break
    return trainable.merged(artifacts.float32(networks.released(tensors)))


def _found(path: str | Path) -> Path:
    """The file, named as it is, from the repository's root or as the store has it, or UserError."""
    given = Path(os.path.expanduser(path))
    places = (Path(), zoo.FOLDER.parent, artifacts.folder())
    there = next((place / given for place in places if (place / given).exists()), None)
    if there is None:
        where = "" if given.is_absolute() else (f", neither from {Path.cwd()} nor from the root nor"
                                                " in the artifact store")
        raise UserError(f"there is no {given}{where}: give a safetensors file's whole path")
    return there.resolve()  # of the zoo or not, wherever it was named from


def student_of(spec: training.Spec, teacher: str | Path) -> training.Spec:
    """The student `spec` in the network and the framework that a file of weights says it has.

    As it is where it is no student, or the file, of another project, says nothing.
    """
    made = _specification(artifacts.load_tensors(_found(teacher))[1])
    if spec.objective == "denoising" or not made.keys() >= {"network", "framework"}:
        return spec
    one = training.Spec.from_json(json.dumps(made))
    end = denoisers.CONSISTENCY if spec.framework.endswith(denoisers.CONSISTENCY) else ""
    args = {key: value for key, value in one.network_args.items() if key != "label_dropout"}
    return replace(spec, network=one.network, network_args=args,
                   framework=one.teacher_framework + end)


def kept_at(model: Model) -> Path:
    """The safetensors file of the artifact store with the weights of a model that `train` made."""
    return artifacts.folder() / f"{model.identity['weights']}.safetensors"


def _specification(metadata: Mapping[str, str]) -> dict:
    """What a file of weights says of its training; nothing where another project wrote it."""
    try:
        made = json.loads(metadata.get("spec", "{}"))
        made = made.get("spec", made)  # the store keeps it among what else decides an artifact
    except (ValueError, AttributeError):
        return {}
    return made if isinstance(made, dict) and isinstance(made.get("solver"), dict) else {}


def train_contrast(name: str, spec: contrast.Spec, images: data.Images,
                   device: str = "cpu") -> Model:
    """The trained GAN or VAE of `spec`, from the artifact store or else trained now.

    A run that was killed goes on from its checkpoint.
    """
    made = {"spec": asdict(spec), "images": images.hash, "code": contrast_code()}

    path = artifacts.path_of("contrast", made)
    checkpoint = path.with_name(f"{path.stem}.checkpoint")

    def compute() -> artifacts.Tensors:
        state, saved = None, time.monotonic()
        try:
            state = contrast.load_checkpoint(spec, images, checkpoint)
        except UserError as error:
            warnings.warn(f"{error}; training {name} from the start", stacklevel=2)
        states = contrast.train(spec, images, state, device)
        for state in progress(states, name, spec.steps, "step", done=lambda s: int(s["step"])):
            if time.monotonic() - saved > SAVED:
                contrast.save_checkpoint(name, spec, images, state, checkpoint)
                saved = time.monotonic()
        training.check_finite(name, state)
        return contrast.trained(spec, state).state_dict()

    network = contrast.build(spec.kind, spec.width)
    network.load_state_dict(artifacts.remember("contrast", made, compute))
    checkpoint.unlink(missing_ok=True)
    return contrast_model(name, spec, network.to(device), path.stem, len(images))


# --- the models of a profile --------------------------------------------------------------------

def unconditional(profile: Profile, images: data.Images, device: str = "cpu") -> dict[str, Model]:
    """Every model of section 2 by name: trained diffusion models, closed forms, GANs and VAEs.

    Some one-step students stand among the diffusion models. The laptop profile takes the trained
    ones from zoo/; the others train them on `images`, and the paper profile adds a released model
    from the hub, or where that cannot be had a line that says so.
    """
    from paper_utils import hub  # not above: it imports this module

    released = {model.name: model for model in hub.available(profile.hub, hub.ddpm, device)}
    if profile.shipped:
        trained = {name: shipped(name, device=device) for name, row in zoo.entries().items()
                   if row.kind != "closed form"}
    else:
        trained = train_all(recipes.specs(profile.name), images, device)
        trained |= {name: train_contrast(name, spec, images, device)
                    for name, spec in recipes.contrast_specs(profile.name).items()}
    trained |= released
    order = [*recipes.specs(profile.name), *recipes.contrast_specs(profile.name), *trained]
    trained = {name: trained[name] for name in order if name in trained}
    last = {name: m for name, m in trained.items() if not m.trained_diffusion}
    first = {name: m for name, m in trained.items() if m.trained_diffusion}
    students = distilled(profile, images, device, ONE_STEP)
    first |= {name: students[name] for name in ONE_STEP if name in students}
    return first | closed_forms(images, profile.bag, device) | last


def distilled(profile: Profile, images: data.Images, device: str = "cpu",
              names: Sequence[str] = ()) -> dict[str, Model]:
    """The teacher and its students by name (recipes.distillation_specs).

    names: some of them, and what those start from. From zoo/distillation/ for the laptop profile,
    what is not there left out; else trained.
    """
    specs = recipes.distillation_specs(profile.name)
    specs = recipes.lineage(names or specs, specs)
    return shipped_or_trained(specs, zoo.DISTILLATION, profile, images, device)


def by_name(names: Iterable[str], profile: Profile, images: data.Images,
            device: str = "cpu") -> dict[str, Model]:
    """Unconditional diffusion models by name, from where `unconditional` has them."""
    if profile.shipped:
        return {name: shipped(name, device=device) for name in names}
    specs = recipes.specs(profile.name)
    return train_all({name: specs[name] for name in names}, images, device)


def shipped(name: str, folder: Path = zoo.FOLDER, *, device: str = "cpu") -> Model:
    """A model of a folder of the zoo with its weights.

    Raises UserError for an unknown name, one without weights there, damaged weights, or a device
    that is not there.
    """
    check_device(device)
    row = zoo.entry(name, folder)
    if not row.weights:
        raise UserError(f"{name} has no weights in the zoo: it is one of models.closed_forms, or "
                        "ships as its images alone")
    tensors, values = row.load_weights()
    return assembled(row, values, tensors, device)


def shipped_or_trained(specs: Mapping[str, training.Spec], folder: Path, profile: Profile,
                       images: data.Images | None = None, device: str = "cpu") -> dict[str, Model]:
    """The models of a section: `shipped_by` where the profile ships them, else `train_all`."""
    if profile.shipped:
        return shipped_by(specs, folder, images, device)
    return train_all(specs, images, device)


def shipped_by(specs: Mapping[str, training.Spec], folder: Path,
               images: data.Images | None = None, device: str = "cpu") -> dict[str, Model]:
    """The models of `specs` that are in a folder of the zoo; what is not there is left out.

    images: the dataset of specs without one of their own. Raises UserError where one is that was
    trained on other images or by another recipe than its name says.
    """
    there = zoo.entries(folder)
    return {name: _checked(there[name], spec, images, device)
            for name, spec in specs.items() if name in there}


def _checked(row: zoo.Entry, spec: training.Spec, images: data.Images | None,
             device: str) -> Model:
    tensors, values = row.load_weights() if row.weights else ({}, row.load_spec())
    again = f"train it again, `fleet train {row.name} --profile laptop`, and `fleet add --replace`"
    if not spec.is_recorded_as(values):
        raise UserError(f"{row.weights or row.sheet} was trained by another recipe than {row.name} "
                        f"has in this profile: {again}")
    mine = spec.subset(dataset_of(spec, images)).hash
    if row.subset != mine:
        raise UserError(f"{row.weights or row.sheet} belongs to another subset of images "
                        f"({row.subset}, not {mine}): {again}")
    if not row.weights:
        return _sheet_alone(row, spec)
    return assembled(row, values, tensors, device)


def _sheet_alone(row: zoo.Entry, spec: training.Spec) -> Model:
    def refuse(*_: object) -> NoReturn:
        raise UserError(f"of {row.name} only the {row.noises} images of {row.sheet} ship, not its "
                        f"weights: train it, `python -m paper_utils.fleet train {row.name} "
                        "--profile laptop`, and `fleet add` it")

    return replace(diffusion(spec, training.build(spec), ""), generate=refuse, denoiser=refuse,
                   identity={"sheet": row.sheet_sha256}, sheet_alone=True)


def dataset_of(spec: training.Spec, images: data.Images | None = None) -> data.Images:
    """The dataset a specification names, or else `images`."""
    return _dataset(spec.dataset) if spec.dataset else images


_dataset = lru_cache(maxsize=2)(data.load)


def assembled(row: zoo.Entry, values: dict, weights: dict[str, Tensor],
              device: str = "cpu") -> Model:
    """A trained model from its specification (JSON values) and weights, as the zoo stores them.

    Of a fine-tuned model the zoo stores what trained; the rest is its start's, in the same folder.
    Raises UserError when the weights belong to another architecture, and when the start's have
    another hash than row.start.
    """
    digest = row.weights_sha256
    if row.kind == "contrast":
        spec = contrast.Spec(**{k: v for k, v in values.items() if k != "images"})
        network = contrast.build(spec.kind, spec.width)
        networks.load_into(network, weights, row.weights)
        return contrast_model(row.name, spec, network.to(device), digest, values["images"])
    spec = training.Spec.from_json(json.dumps(values))
    base = zoo.entry(spec.start, row.folder).load_weights()[0] if spec.start else None
    if base and artifacts.digest(base) != row.start:
        raise UserError(f"{row.weights} was fine-tuned from other weights than those of "
                        f"{spec.start} in the zoo: train it again from them")
    denoiser = training.build(spec, base)
    if base:
        chosen = training.trained_names(denoiser.network)
        if set(weights) != set(chosen):
            raise UserError(f"{row.weights} does not hold the {len(chosen)} parameters that "
                            f"'{spec.trains}' trains: add it to the zoo again")
        weights, digest = denoiser.network.state_dict() | weights, f"{row.start}+{digest}"
    networks.load_into(denoiser.network, weights, row.weights)
    return diffusion(spec, denoiser.eval().to(device), digest)


# --- samples ------------------------------------------------------------------------------------

def samples(model: Model, n: int, start: int = 0) -> Tensor:
    """The model's 8-bit images of noises start..start+n-1: uint8 [n, 3, 32, 32], an artifact.

    Of a conditional model [n, classes, 3, 32, 32]. The noises have the model's shape. Raises
    UserError for what is no Model.
    """
    if not isinstance(model, Model):
        raise UserError(f"samples are kept of a models.Model, not of a {type(model).__name__}: make"
                        " one by models.from_denoiser(name, denoiser)")
    bank = NoiseBank(shape=model.shape)
    spec = {"model": model.identity, "bank": bank.name, "noises": [start, start + n]}

    def compute() -> artifacts.Tensors:
        noise = bank[start:start + n]
        return {"images": data.to_bytes(model.generate(noise, model.name))}

    return artifacts.remember("samples", spec, compute)["images"]


def reaching(found: Mapping[str, Model], folder: Path, size: str, noises: int) -> dict[str, Model]:
    """The models that have images of so many noises: without those of which a folder of the zoo has
    a sheet alone, of fewer. A line names these; size: what the profile calls `noises`."""
    there = {name: zoo.entry(name, folder).noises for name, m in found.items() if m.sheet_alone}
    if short := [name for name, n in there.items() if n < noises]:
        print(f"left out, since their weights do not ship, only {max(there[n] for n in short)} "
              f"images of each, and {size} is {noises}: {', '.join(short)}")
    return {name: model for name, model in found.items() if name not in short}


def shipped_samples(found: Mapping[str, Model], folder: Path, n: int,
                    shipped: bool) -> dict[str, Tensor]:
    """Images of the first n noises from every model: from the sheets of a folder of the zoo where
    `shipped` and as far as they reach, the others from the artifact store or made now."""
    sheets, images = zoo.entries(folder) if shipped else {}, {}
    for name, model in found.items():
        sheet = sheets[name].load_sheet()[:n] if name in sheets else None
        if sheet is None or len(sheet) < n:
            made = samples(model, n)  # all, for under guidance a noise's class hangs on its place
            sheet = made if sheet is None else torch.cat([sheet, made[len(sheet):]])
        images[name] = sheet
    return images


def all_samples(models: dict[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.noises noises from every model, uint8 [n, 3, 32, 32] each.

    The laptop profile reads the shipped sheets, as far as they reach; see `tables.check_sheets`.
    """
    return shipped_samples(models, zoo.FOLDER, profile.noises, profile.shipped)


def rows_to_show(model: Model, images: Tensor) -> dict[str, Tensor]:
    """Samples by the label of their row: one row, or of a conditional model one a class.

    Up to ten classes have the names of CIFAR-10's.
    """
    if not model.classes:
        return {model.name: images}
    words = data.CLASSES if max(model.classes) < len(data.CLASSES) else {
        c: f"class {c}" for c in model.classes}
    return {f"{model.name}, {words[c]}": images[:, k] for k, c in enumerate(model.classes)}


def of_both_signs(model: Model, n: int) -> tuple[Tensor, Tensor]:
    """The model's images of the first n noises and of the opposite ones, an artifact.

    Not rounded to bytes: float32 [n, 3, 32, 32] each, nominally in [-1, 1].
    """
    spec = {"model": model.identity, "bank": BANK.name, "both signs": n}

    def compute() -> artifacts.Tensors:
        signs = BANK[:n], -BANK[:n]
        if model.denoiser:  # else, under guidance, a noise's class hangs on its place
            signs = [torch.cat(signs)]
        return {"images": torch.cat([model.generate(noise, f"{model.name}, both signs")
                                     for noise in signs]).float()}

    images = artifacts.remember("both-signs", spec, compute)["images"]
    return images[:n], images[n:]


def limited(model: Model) -> Model:
    """The same model with its images limited to the range of pixels, by the tanh of each."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        return model.generate(noise, title).tanh()

    return replace(model, name=f"{model.name}, limited", generate=generate, denoiser=None,
                   identity=model.identity | {"limited": "tanh"})


def hyperplane_noises(grid: int) -> tuple[Tensor, Tensor]:
    """Noises 0, 1, 2, [3, 3, 32, 32], and those of the plane through them, [grid * grid, ...]."""
    corners = BANK[:3]
    return corners, hyperplane(corners, grid)


def hyperplane_samples(model: Model, grid: int) -> tuple[Tensor, Tensor]:
    """The model's images on the plane through noises 0, 1, 2, an artifact.

    Returns the corners' images uint8 [3, 3, 32, 32] and the grid's [grid * grid, 3, 32, 32].
    """
    spec = {"model": model.identity, "bank": BANK.name, "grid": grid, "extent": EXTENT}

    def compute() -> artifacts.Tensors:
        noise = torch.cat(hyperplane_noises(grid))
        return {"images": data.to_bytes(model.generate(noise, f"{model.name}, plane"))}

    images = artifacts.remember("hyperplane", spec, compute)["images"]
    return images[:3], images[3:]
