"""Recipes as data: the models that each profile trains, section by section.

    recipes.specs("gpu")["edm"]          a training.Spec
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from paper_utils import augmentation, contrast, distillation, networks, profiles, trainable
from paper_utils.denoisers import CONSISTENCY
from paper_utils.errors import UserError, choose
from paper_utils.samplers import Solver
from paper_utils.training import Spec


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the trained models are. Budgets are in images seen."""

    width: int
    blocks: int
    channel_mult: tuple[int, ...]
    patch: int               # space-to-depth factor of the U-Nets
    tokens_patch: int        # patch of the transformers
    dim: int
    depth: int
    images: int
    unet_budget: int
    transformer_budget: int
    uvit_budget: int         # U-ViT learns slowest: its time is one token among the patches
    batch: int
    dropout: float = 0.0
    precision: str = "float32"
    prediction: str = ""     # "-f": EDM's output parameterization, see denoisers.f_prediction
    warmup: int = 0          # images; 0: a twentieth of the U-Nets' budget
    ema_half_life: int = 0   # images; 0: a twenty-fifth of it
    uvit_rate: float = 5e-4


SCALES = {
    "smoke": Scale(
        width=16, blocks=1, channel_mult=(1, 2), patch=2, tokens_patch=8, dim=32, depth=2,
        images=256, unet_budget=512, transformer_budget=512, uvit_budget=512, batch=32,
        prediction="-f"),
    "laptop": Scale(
        width=32, blocks=1, channel_mult=(1, 2, 2), patch=2, tokens_patch=4, dim=128, depth=6,
        images=50_000, unet_budget=160_000, transformer_budget=128_000, uvit_budget=512_000,
        batch=64, precision="bf16", prediction="-f", uvit_rate=1e-3),
    "gpu": Scale(
        width=64, blocks=2, channel_mult=(1, 2, 2), patch=1, tokens_patch=2, dim=256, depth=12,
        images=50_000, unet_budget=8_000_000, transformer_budget=8_000_000, uvit_budget=16_000_000,
        batch=256, precision="bf16"),
    "paper": Scale(
        width=128, blocks=4, channel_mult=(2, 2, 2), patch=1, tokens_patch=2, dim=512, depth=12,
        images=50_000, unet_budget=50_000_000, transformer_budget=50_000_000,
        uvit_budget=50_000_000, batch=128, dropout=0.13, precision="bf16", warmup=10_000_000,
        ema_half_life=500_000),
}


def specs(profile: str) -> dict[str, Spec]:
    """The diffusion models of section 2 as `profile` trains them, by name.

    Names say what each is; the paper's own rows were not all seen. Raises UserError for an unknown
    profile.
    """
    scale = SCALES[choose(profile, SCALES, "profile")]
    spec = Spec("", "", images=scale.images, batch=scale.batch, precision=scale.precision,
                warmup=scale.warmup or scale.unet_budget // 20,
                ema_half_life=scale.ema_half_life or scale.unet_budget // 25)
    unet = dict(width=scale.width, channel_mult=scale.channel_mult, blocks=scale.blocks,
                attention=(16 // scale.patch,), patch=scale.patch, dropout=scale.dropout)
    tokens = dict(patch=scale.tokens_patch, dim=scale.dim, depth=scale.depth, heads=scale.dim // 32)
    wide = tokens | dict(dim=3 * scale.dim // 2, heads=3 * scale.dim // 64)
    u = replace(spec, images_seen=scale.unet_budget)
    t = replace(spec, images_seen=scale.transformer_budget, learning_rate=5e-4)
    kind = scale.prediction
    rows = [
        replace(u, name="ddpm-vp", network="unet", network_args=networks.DDPM | unet,
                framework="vp-discrete" + kind, solver=Solver("ddim", 50, "karras", 0.01, 80)),
        replace(u, name="ddpm-subvp", network="unet", network_args=networks.DDPMPP | unet,
                framework="subvp" + kind, solver=Solver("dpm-solver-2", 25, "log", 0.004, 80)),
        replace(u, name="ncsnpp-ve", network="unet", network_args=networks.NCSNPP | unet,
                framework="ve" + kind, solver=Solver("heun", 18, "karras", 0.02, 80)),
        replace(u, name="edm", network="unet", network_args=networks.DDPMPP | unet,
                framework="edm", solver=Solver("heun", 18)),
        replace(u, name="edm-seed1", network="unet", network_args=networks.DDPMPP | unet,
                framework="edm", solver=Solver("heun", 18), seed=1),
        replace(u, name="multistage", network="multistage", framework="vp" + kind,
                network_args=networks.DDPMPP | unet | {"boundaries": (442.0, 630.0)},
                solver=Solver("dpm-solver-3", 15, "log", 0.01, 80)),
        replace(t, name="uvit", network="uvit", network_args=tokens, framework="vp-discrete" + kind,
                solver=Solver("dpm-solver-3", 15, "log", 0.01, 80),
                images_seen=scale.uvit_budget, learning_rate=scale.uvit_rate),
        replace(t, name="dit", network="dit", network_args=tokens, framework="v",
                solver=Solver("dpm-solver++(2m)", 30, "karras")),
        replace(t, name="dit-seed1", network="dit", network_args=tokens, framework="v",
                solver=Solver("dpm-solver++(2m)", 30, "karras"), seed=1),
        replace(t, name="dit-wide", network="dit", network_args=wide, framework="v",
                solver=Solver("dpm-solver++(2m)", 30, "karras")),
        replace(u, name="diffusers-vp", network="diffusers_unet", framework="vp-discrete" + kind,
                network_args=_diffusers_unet(scale), images_seen=scale.unet_budget // scale.patch,
                solver=Solver("ddim", 50, "karras", 0.01, 80)),
    ]
    return {row.name: row for row in rows}


def _diffusers_unet(scale: Scale) -> dict:
    """diffusers' own UNet2DModel at this scale.

    It has no space-to-depth, so its first level works on the full image with fewer channels; an
    image costs more for that, and its budget is smaller where `patch` is more than 1.
    """
    widths = tuple(scale.width * m // scale.patch for m in (1, *scale.channel_mult[1:]))
    down = ["DownBlock2D"] * len(widths)
    up = ["UpBlock2D"] * len(widths)
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
    return dict(sample_size=32, in_channels=3, out_channels=3, block_out_channels=widths,
                layers_per_block=scale.blocks, down_block_types=tuple(down),
                up_block_types=tuple(up), norm_num_groups=min(8, widths[0] // 2),
                attention_head_dim=8)


CLASSES = {"num_classes": 10, "label_dropout": 0.1}
CONDITIONAL = ("edm", "ddpm-vp", "multistage", "uvit")


def conditional_specs(profile: str) -> dict[str, Spec]:
    """The class-conditional twins of four models of section 2 (appendix D), by name.

    A tenth of the labels is dropped in training, so that each can be guided (Ho & Salimans 2022).
    Raises UserError for an unknown profile.
    """
    twins = [specs(profile)[name] for name in CONDITIONAL]
    return {f"{spec.name}-cond": replace(spec, name=f"{spec.name}-cond",
                                         network_args=spec.network_args | CLASSES)
            for spec in twins}


def variant(spec: Spec, start: str = "", trains: str = "all", dataset: str = "", images: int = 0,
            images_seen: int = 0, seed: int = 0) -> Spec:
    """A variant of `spec`: from weights called `start`, some of its parameters, other images,
    another budget or seed.

    What is left empty, or 0, stays as it is. Raises UserError for parts of a network without a
    start, for a student without its teacher, and as Spec does.
    """
    if spec.start and not start:
        raise UserError(f"{spec.name} learns from a teacher: give start=, the weights of "
                        f"'{spec.start}'")
    if trains != "all" and not start:
        raise UserError(f"trains={trains!r} without a start: the rest would keep its random "
                        "initial weights; give start=, the weights to begin with")
    words = [spec.name, start and Path(start).stem, trains != "all" and trains, dataset,
             images and f"n{images}", images_seen and f"seen{images_seen}", seed and f"seed{seed}"]
    name = re.sub(r"[^\w.@-]+", "_", "-".join(filter(None, words)))  # it names files too
    return replace(spec, name=name, start=start, trains=trains, dataset=dataset or spec.dataset,
                   images=images or spec.images, images_seen=images_seen or spec.images_seen,
                   seed=seed or spec.seed)


def prefixes(spec: Spec, specs: Mapping[str, Spec]) -> dict[int, str]:
    """The runs among `specs` that `spec` passes through before its end: step -> name."""
    return {other.steps: name for name, other in specs.items()
            if other.steps < spec.steps and replace(other, images_seen=spec.images_seen) == spec}


def contrast_specs(profile: str) -> dict[str, contrast.Spec]:
    """Two GANs and two VAEs of different width as `profile` trains them, by name."""
    choose(profile, SCALES, "profile")
    if profile == "smoke":
        return {f"{kind}-{width}": contrast.Spec(kind, width, 256, batch=32)
                for kind in contrast.KINDS for width in (8, 16)}
    more = 1 if profile == "laptop" else 10
    return {name: replace(spec, images_seen=more * spec.images_seen)
            for name, spec in contrast.PRESETS.items()}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The models of section 3: DDPM++ U-Nets of three widths, each on nested subsets.

    dit: arguments of a transformer that trains for as long on the fewest and on the most images.
    halves: subset sizes at which the narrowest also trains on the other half of the dataset; seeds:
    at which it also trains with a second seed.
    watched: the subset sizes whose two narrower U-Nets are looked at at other `moments` of training
    too: after so many images, before or after the budget that all share.
    """

    widths: tuple[int, int, int]
    images: tuple[int, ...]
    halves: tuple[int, ...]
    watched: tuple[int, ...]
    moments: tuple[int, ...]
    budget: int
    batch: int
    warmup: int
    ema_half_life: int
    network: dict
    dit: dict
    seeds: tuple[int, ...] = ()
    framework: str = "edm"
    precision: str = "bf16"
    learning_rate: float = 1e-3
    augmentation: float = 0.0


_SUBSETS = tuple(2**k for k in (6, 8, 10, 12, 14, 15))
GRIDS = {
    "smoke": Grid(
        widths=(8, 12, 16), images=(4, 32, 128), halves=(4, 32, 128), seeds=(4,), watched=(4, 32),
        moments=(256,), budget=512, batch=32, warmup=64, ema_half_life=128,
        network=dict(channel_mult=(1, 2), blocks=1, attention=(8,), patch=4),
        dit=dict(patch=8, dim=32, depth=2, heads=1), precision="float32"),
    # a patch of 4x4 pixels is 48 numbers: fewer channels would let noise through
    "laptop": Grid(
        widths=(48, 96, 192), images=tuple(2**k for k in range(6, 16)), halves=_SUBSETS[:-1],
        seeds=(64, 512), watched=(64, 1024), moments=(50_000, 200_000, 800_000, 1_600_000),
        budget=400_000, batch=32, warmup=5_000, ema_half_life=5_000,
        network=dict(channel_mult=(1, 1), blocks=1, attention=(8,), patch=4),
        dit=dict(patch=4, dim=192, depth=6, heads=6), learning_rate=2e-3),
    "gpu": Grid(
        widths=(32, 64, 128), images=_SUBSETS, halves=_SUBSETS[:-1], watched=(64, 1024),
        moments=(250_000, 500_000, 1_000_000, 2_000_000), budget=4_000_000, batch=128,
        warmup=100_000, ema_half_life=50_000,
        network=dict(channel_mult=(1, 2, 2), blocks=1, attention=(8,), patch=2),
        dit=dict(patch=4, dim=256, depth=8, heads=8)),
    "paper": Grid(
        widths=(64, 128, 256), images=tuple(2**k for k in range(6, 16)), halves=_SUBSETS[:-1],
        watched=(64, 1024), moments=(500_000, 2_000_000, 5_000_000, 20_000_000), budget=50_000_000,
        batch=128, warmup=10_000_000, ema_half_life=500_000,
        network=dict(channel_mult=(2, 2, 2), blocks=4, attention=(16,), dropout=0.13),
        dit=dict(patch=2, dim=512, depth=12, heads=16), framework="vp", augmentation=0.12),
}


def regime_specs(profile: str) -> dict[str, Spec]:
    """The models of section 3 as `profile` trains them, by name.

    'unet-48-n64' is 48 channels wide and trains on the first 64 images, as the transformer
    'dit-n64' does; '-half1' ends the name of one that trains on the first images of the other half,
    '-seed1' that of one of a second seed, '@25000' that of one looked at after 25,000 images.
    Raises UserError for an unknown profile.
    """
    grid = GRIDS[choose(profile, GRIDS, "profile")]
    cells = [_cell(grid, width, n) for n in grid.images for width in grid.widths]
    halves = [_cell(grid, grid.widths[0], n, 1) for n in grid.halves]
    twins = [_cell(grid, grid.widths[0], n, seed=1) for n in grid.seeds]
    transformers = [_dit(grid, n) for n in (grid.images[0], grid.images[-1])]
    moments = [replace(_cell(grid, width, n), images_seen=seen) for n in grid.watched
               for width in grid.widths[:2] for seen in grid.moments]
    return ({spec.name: spec for spec in cells + transformers + halves + twins}
            | {f"{spec.name}@{spec.images_seen}": spec for spec in moments})


def _cell(grid: Grid, width: int, n: int, half: int = 0, seed: int = 0) -> Spec:
    name = f"unet-{width}-n{n}" + "-half1" * half + "-seed1" * seed
    told = {"augment_dim": augmentation.LABELS} if grid.augmentation else {}
    return Spec(name, "unet", networks.DDPMPP | grid.network | {"width": width} | told,
                grid.framework, images=n, half=half, seed=seed, images_seen=grid.budget,
                batch=grid.batch, warmup=grid.warmup, ema_half_life=grid.ema_half_life,
                precision=grid.precision, learning_rate=grid.learning_rate,
                augmentation=grid.augmentation)


def _dit(grid: Grid, n: int) -> Spec:
    return Spec(f"dit-n{n}", "dit", grid.dit, "v", images=n, images_seen=grid.budget,
                batch=grid.batch, warmup=grid.warmup, ema_half_life=grid.ema_half_life,
                precision=grid.precision, learning_rate=5e-4,
                solver=Solver("dpm-solver++(2m)", 30, "karras"))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Fine-tuning (appendix G): networks pre-trained on one dataset learn a second, in some ways.

    base, target: what data.load takes; pretraining: images the base trains on. Every budget is in
    images seen; warmup and EMA half-life as in Spec.
    """

    base: str
    target: str
    pretraining: int
    images: tuple[int, ...]
    base_budget: int
    budget: int
    batch: int
    warmup: int
    ema_half_life: int
    network: dict
    framework: str = "edm"
    precision: str = "bf16"
    learning_rate: float = 1e-3


WAYS = ("scratch", *trainable.WAYS)  # of learning the target
SPLIT = ("cifar10:0-4", "cifar10:5-9")  # where CIFAR-100 cannot be had
TRANSFERS = {
    "smoke": Transfer(
        base="bundled:0-4", target="bundled:5-9", pretraining=96, images=(4, 64), base_budget=256,
        budget=128, batch=32, warmup=64, ema_half_life=64,
        network=GRIDS["smoke"].network | {"width": 8}, precision="float32"),
    "laptop": Transfer(
        base=SPLIT[0], target=SPLIT[1], pretraining=25_000,
        images=tuple(2**k for k in (4, 6, 9, 14)), base_budget=160_000, budget=40_000, batch=32,
        warmup=5_000, ema_half_life=5_000, network=GRIDS["laptop"].network | {"width": 48},
        learning_rate=2e-3),
    "gpu": Transfer(
        base="cifar100", target="cifar10", pretraining=50_000,
        images=tuple(2**k for k in (6, 8, 10, 12, 14, 15)), base_budget=4_000_000, budget=1_000_000,
        batch=128, warmup=100_000, ema_half_life=50_000,
        network=GRIDS["gpu"].network | {"width": 64}),
    "paper": Transfer(
        base="cifar100", target="cifar10", pretraining=50_000,
        images=tuple(2**k for k in range(6, 16)), base_budget=50_000_000, budget=12_500_000,
        batch=128, warmup=1_000_000, ema_half_life=500_000,
        network=GRIDS["paper"].network | {"width": 128}, framework="vp"),
}


def transfer(profile: str, pretraining: str = "") -> Transfer:
    """The fine-tuning study of a profile.

    pretraining: 'split' pre-trains on five classes of CIFAR-10 and fine-tunes on the other five,
    'cifar100' on CIFAR-100; '' is the profile's own. Raises UserError for another.
    """
    found = TRANSFERS[choose(profile, TRANSFERS, "profile")]
    if not pretraining:
        return found
    chosen = choose(pretraining, ("split", "cifar100"), "pretraining")
    base, target = SPLIT if chosen == "split" else ("cifar100", "cifar10")
    there = 25_000 if chosen == "split" else 50_000
    return replace(found, base=base, target=target, pretraining=there,
                   images=tuple(n for n in found.images if n <= there))


def other_start(way: str) -> str:
    """The run of a way of fine-tuning that began elsewhere than its first: from the other base, and
    of 'scratch', which has none, from other initial weights."""
    return "seed1" if way == "scratch" else "other"


def fine_tuning_specs(profile: str, pretraining: str = "") -> dict[str, Spec]:
    """The models of the fine-tuning study, by name; every base stands before what starts from it.

    'base' and 'base-seed1' are pre-trained. 'attention-n64' starts from base and trains its
    attention on the first 64 images of the target; '-seed1' has other training noise and order
    from the same start, '-other' starts from base-seed1. 'scratch-n64' starts from nothing.
    """
    study = transfer(profile, pretraining)
    spec = Spec("base", "unet", networks.DDPMPP | study.network, study.framework,
                images=study.pretraining, images_seen=study.base_budget, batch=study.batch,
                warmup=study.warmup, ema_half_life=study.ema_half_life,
                precision=study.precision, learning_rate=study.learning_rate, dataset=study.base)
    bases = [spec, replace(spec, name="base-seed1", seed=1)]
    runs = [_fine_tuned(spec, study, way, n, more) for n in study.images for way in WAYS
            for more in (("", "-seed1") if way == "scratch" else ("", "-seed1", "-other"))]
    return {row.name: row for row in bases + runs}


def _fine_tuned(base: Spec, study: Transfer, way: str, n: int, more: str) -> Spec:
    start = "" if way == "scratch" else "base-seed1" if more == "-other" else "base"
    return replace(base, name=f"{way}-n{n}{more}", images=n, images_seen=study.budget,
                   dataset=study.target, start=start, trains="all" if not start else way,
                   seed=int(more == "-seed1"))


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Section 4's students, and the teacher that most of them start from. Budgets in images seen.

    steps: of the teacher that progressive distillation halves down to 1; levels: to how many noise
    levels the curricula of `ct` and `ict` grow. network: of the teacher; students have the same
    without dropout, as those of Salimans & Ho 2022 and Song et al. 2023.
    """

    steps: int
    teacher_budget: int
    stage_budget: int        # of each halving
    cd_budget: int
    ct_budget: int           # of consistency training, which starts from nothing
    levels: tuple[int, int]
    images: int
    batch: int
    network: dict
    precision: str = "bf16"
    learning_rate: float = 1e-3


DISTILLATIONS = {
    "smoke": Distillation(
        steps=8, teacher_budget=512, stage_budget=128, cd_budget=128, ct_budget=256, levels=(8, 20),
        images=256, batch=32, network=GRIDS["smoke"].network | {"width": 8}, precision="float32"),
    "laptop": Distillation(
        steps=32, teacher_budget=640_000, stage_budget=96_000, cd_budget=256_000, ct_budget=512_000,
        levels=(40, 80), images=50_000, batch=64, network=GRIDS["laptop"].network | {"width": 48}),
    "gpu": Distillation(
        steps=32, teacher_budget=8_000_000, stage_budget=1_000_000, cd_budget=2_000_000,
        ct_budget=8_000_000, levels=(80, 320), images=50_000, batch=256,
        network=GRIDS["gpu"].network | {"width": 64}),
    "paper": Distillation(
        steps=64, teacher_budget=50_000_000, stage_budget=12_500_000, cd_budget=50_000_000,
        ct_budget=100_000_000, levels=(150, 1280), images=50_000, batch=128,
        network=GRIDS["paper"].network | {"width": 128}),
}


def distillation_specs(profile: str) -> dict[str, Spec]:
    """The teacher and its students, by name; whatever starts from another stands after it.

    'progressive-8' has 8 steps, starts from 'progressive-16' and learns from it, the first from
    'teacher'. 'cd' is distilled from the teacher too; 'ct' and its improved kind 'ict' train on the
    data alone. Raises UserError for an unknown profile.
    """
    study = DISTILLATIONS[choose(profile, DISTILLATIONS, "profile")]
    base = Spec("teacher", "unet", networks.DDPMPP | study.network, "edm", images=study.images,
                batch=study.batch, precision=study.precision, learning_rate=study.learning_rate)
    plain = {key: value for key, value in base.network_args.items() if key != "dropout"}
    student = replace(base, network_args=plain)
    one_step = replace(student, framework="edm" + CONSISTENCY,
                       solver=Solver("consistency", 1, "cosine"))
    rows = [_budget(base, study.teacher_budget)]
    for steps in distillation.halvings(study.steps):
        rows.append(_student(student, study, f"progressive-{steps}", rows[-1].name,
                             study.stage_budget, "progressive", Solver("ddim", steps, "cosine")))
    rows.append(_student(one_step, study, "cd", "teacher", study.cd_budget, "cd", one_step.solver))
    for name, last in zip(("ct", "ict"), study.levels):
        grown = {"last": last, "curriculum": study.ct_budget}
        rows.append(_budget(replace(one_step, name=name, objective=name, objective_args=grown),
                            study.ct_budget))
    return {row.name: row for row in rows}


def _student(base: Spec, study: Distillation, name: str, start: str, budget: int, objective: str,
             solver: Solver) -> Spec:
    return _budget(replace(base, name=name, start=start, objective=objective, solver=solver,
                           learning_rate=study.learning_rate / 2), budget)


def _budget(spec: Spec, images_seen: int) -> Spec:
    return replace(spec, images_seen=images_seen, warmup=images_seen // 40,
                   ema_half_life=images_seen // 25)


def every_spec(profile: str) -> dict[str, Spec]:
    """The diffusion models of all sections by name; what starts from another stands after it.

    Raises UserError for an unknown profile.
    """
    return (specs(profile) | regime_specs(profile) | conditional_specs(profile)
            | fine_tuning_specs(profile) | distillation_specs(profile))


def datasets(profile: str) -> list[str]:
    """What data.load is asked for by this profile: its own dataset, then those of its models."""
    chosen = [spec.dataset for spec in every_spec(profile).values() if spec.dataset]
    return [*dict.fromkeys([profiles.get(profile).dataset, *chosen])]


def lineage(names: Iterable[str], specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The specifications of these models and of all they start from, in the order of `specs`.

    A name that `specs` does not have is left out.
    """
    wanted: set[str] = set()
    for name in names:
        while name in specs and name not in wanted:
            wanted.add(name)
            name = specs[name].start
    return {name: spec for name, spec in specs.items() if name in wanted}
