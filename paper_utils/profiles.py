"""Sizes as data: what each profile computes. The models it trains are in recipes.py.

smoke   a minute on any machine, bundled images, tiny models trained on the spot
laptop  the default: CIFAR-10, the weights of zoo/, two cores and no GPU
gpu     CIFAR-10, models trained from nothing on one GPU in minutes each
paper   CIFAR-10, the authors' width, budget, warm-up, EMA and 10,000 noises: clusters
"""

from dataclasses import dataclass, fields, replace

from paper_utils.errors import UserError, choose


@dataclass(frozen=True)
class Profile:
    """Sizes of one profile. noises: per model; live: noises sampled again to check the sheets."""

    name: str
    dataset: str
    noises: int
    live: int
    opposites: int           # noises whose opposites are sampled too, for even parts
    held_out: int            # held-out real images, for the baselines
    hyperplane: int          # the noise hyperplane is a grid of this many noises squared
    grid_noises: int         # noises per model of section 3
    transfer_noises: int     # noises per fine-tuned model
    class_noises: int        # noises per conditional model, each with every class
    measured: int            # held-out images that are measured and reconstructed
    guided_steps: int        # of Algorithm 1
    bag: int                 # patches in the bag of the local score
    descriptors: tuple[str, ...] = ("cifar-copy", "pixels", "imgsim", "inception")
    shipped: bool = False    # models and sheets come from zoo/
    device: str = "cpu"      # where its models are trained and sampled
    hub: tuple[str, ...] = ()  # diffusers pipelines that join the models
    imagenet: tuple[str, ...] = ()  # class-conditional DiT pipelines
    families: tuple[str, ...] = (  # models of section 2 that section 4 compares: two families
        "edm", "edm-seed1", "ddpm-vp", "multistage", "dit", "dit-seed1", "dit-wide", "uvit")


SIZES = tuple(field.name for field in fields(Profile) if field.type is int)
# a chance level compares different noises or images; one step of Algorithm 1 guides nothing
LEAST = dict.fromkeys(("noises", "grid_noises", "transfer_noises", "class_noises", "measured",
                       "guided_steps", "opposites"), 2)
MOST = dict.fromkeys(SIZES, 10**6) | {"hyperplane": 1_000}  # which is squared

PROFILES = {
    "smoke": Profile("smoke", "bundled", noises=32, live=2, opposites=2, held_out=64,
                     hyperplane=4, grid_noises=16, transfer_noises=16, class_noises=4, measured=4,
                     guided_steps=8, bag=256, descriptors=("cifar-copy", "pixels"),
                     families=("edm", "edm-seed1", "dit", "dit-seed1")),
    "laptop": Profile("laptop", "cifar10", noises=512, live=16, opposites=32, held_out=2_000,
                      hyperplane=9, grid_noises=256, transfer_noises=128, class_noises=128,
                      measured=64, guided_steps=30, bag=2_048, shipped=True),
    "gpu": Profile("gpu", "cifar10", noises=2_048, live=64, opposites=256, held_out=10_000,
                   hyperplane=50, grid_noises=1_024, transfer_noises=1_024, class_noises=1_024,
                   measured=256, guided_steps=100, bag=32_768, device="cuda"),
    "paper": Profile("paper", "cifar10", noises=10_000, live=64, opposites=1_000, held_out=10_000,
                     hyperplane=100, grid_noises=10_000, transfer_noises=10_000,
                     class_noises=10_000, measured=1_000, guided_steps=1_000, bag=65_536,
                     device="cuda",
                     descriptors=("cifar-copy", "pixels", "imgsim", "inception", "sscd"),
                     hub=("google/ddpm-cifar10-32",), imagenet=("facebook/DiT-XL-2-256",)),
}


def get(name: str, **overrides: int | None) -> Profile:
    """The profile of that name with single sizes overridden (None or 0 keeps the profile's own).

    Raises UserError for an unknown profile or size, a size that is not a positive integer, 1 where
    LEAST asks for two, or one above MOST.
    """
    profile = PROFILES[choose(name, PROFILES, "profile")]
    for size, value in overrides.items():
        choose(size, SIZES, "size")
        least = LEAST.get(size, 1)
        if value is not None and (type(value) is not int or value and value < least):
            raise UserError(f"{size}={value!r}: give a whole number of at least {least}, or 0 for "
                            f"the {name} profile's own {getattr(profile, size)}")
        if value and value > MOST[size]:
            raise UserError(f"{size}={value}: give at most {MOST[size]:,}")
    return replace(profile, **{k: v for k, v in overrides.items() if v})
