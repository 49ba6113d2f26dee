"""Recipes: the models that each profile trains."""

import json
from dataclasses import replace

import pytest

from paper_utils import augmentation, contrast, networks, recipes, training
from paper_utils.denoisers import FRAMEWORKS
from paper_utils.errors import UserError
from paper_utils.samplers import Solver
from paper_utils.training import Spec


@pytest.mark.parametrize("make", [recipes.specs, recipes.contrast_specs])
def test_models_of_an_unknown_profile(make):
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        make("smok")


@pytest.mark.parametrize("profile", recipes.SCALES)
def test_every_framework_and_architecture_is_trained(profile):
    specs = recipes.specs(profile)
    assert {"ddpm-vp", "ddpm-subvp", "ncsnpp-ve", "edm", "edm-seed1", "multistage", "uvit",
            "dit"} <= specs.keys()
    assert all(name == spec.name for name, spec in specs.items())
    processes = {spec.framework.removesuffix("-f") for spec in specs.values()}
    assert processes == {name for name in FRAMEWORKS if not name.endswith("-f")} - {"x0"}
    assert {spec.network for spec in specs.values()} == networks.ARCHITECTURES.keys() - {"mlp"}
    first, second = specs["edm"], specs["edm-seed1"]
    assert second == replace(first, name="edm-seed1", seed=1) and first.run != second.run


@pytest.mark.parametrize("profile", recipes.SCALES)
def test_specifications_survive_json(profile):
    """Through JSON tuples become lists; the networks they build are the same."""
    import torch

    for spec in recipes.specs(profile).values():
        again = Spec.from_json(spec.to_json())
        assert json.loads(again.to_json()) == json.loads(spec.to_json())
        with torch.device("meta"):
            shapes = [{k: v.shape for k, v in networks.build(s.network, **s.network_args)
                       .state_dict().items()} for s in (spec, again)]
        assert shapes[0] == shapes[1]


def test_the_contrast_models_are_two_of_each_kind_of_different_width():
    for profile in recipes.SCALES:
        specs = recipes.contrast_specs(profile).values()
        for kind in contrast.KINDS:
            assert len({spec.width for spec in specs if spec.kind == kind}) == 2


# --- the grid of section 3 ----------------------------------------------------------------------

@pytest.mark.parametrize("profile", recipes.GRIDS)
def test_the_grid_is_every_width_on_every_nested_subset(profile):
    grid, specs = recipes.GRIDS[profile], recipes.regime_specs(profile)
    others = [s for s in specs.values() if s.network == "dit"]
    assert [s.images for s in others] == [grid.images[0], grid.images[-1]]
    assert all((s.images_seen, s.batch, s.half) == (grid.budget, grid.batch, 0) for s in others)
    whole = [s for s in specs.values() if s.images_seen == grid.budget and s.network == "unet"]
    cells = {(s.network_args["width"], s.images) for s in whole if s.half == 0}
    assert cells == {(w, n) for w in grid.widths for n in grid.images}
    assert {s.images for s in whole if s.half} == set(grid.halves)
    assert {s.network_args["width"] for s in whole if s.half} == {grid.widths[0]}
    small, middle, large = grid.widths
    assert small < middle < large and grid.widths[1] in (1.5 * small, 2 * small)
    assert all(name.split("@")[0] == spec.name for name, spec in specs.items())


@pytest.mark.parametrize("profile", ["laptop", "gpu", "paper"])
def test_the_grid_has_the_sizes_of_the_paper_and_fits_the_data(profile):
    grid = recipes.GRIDS[profile]
    assert {2**k for k in (6, 8, 10, 12, 14, 15)} <= set(grid.images)
    assert max(grid.halves) <= 25_000 and set(grid.watched) <= set(grid.images)


@pytest.mark.parametrize("profile", recipes.DISTILLATIONS)
def test_students_train_without_dropout(profile):
    """As the released recipes of progressive distillation, CD and CT for CIFAR-10 do."""
    teacher, *students = recipes.distillation_specs(profile).values()
    assert teacher.network_args.get("dropout", 0) == (0.13 if profile == "paper" else 0)
    for spec in students:
        assert not spec.network_args.get("dropout"), spec.name
        training.check_teacher(spec, teacher)


def test_the_papers_grid_is_the_released_recipe():
    spec = recipes.regime_specs("paper")["unet-128-n32768"]
    args = spec.network_args
    assert (args["channel_mult"], args["blocks"], args["attention"]) == ((2, 2, 2), 4, (16,))
    assert (spec.framework, args["dropout"], spec.batch) == ("vp", 0.13, 128)
    assert (spec.images_seen, spec.warmup, spec.ema_half_life) == (50e6, 10e6, 0.5e6)
    assert spec.solver == Solver("heun", 18, "karras", 0.002, 80) and spec.learning_rate == 1e-3
    assert spec.augmentation == 0.12 and args["augment_dim"] == augmentation.LABELS


def test_a_run_passes_through_its_shorter_ones():
    specs = recipes.regime_specs("laptop")
    found = recipes.prefixes(specs["unet-96-n64"], specs)
    assert found == {1563: "unet-96-n64@50000", 6250: "unet-96-n64@200000"}
    longer = recipes.prefixes(specs["unet-96-n64@1600000"], specs)
    assert longer == found | {12500: "unet-96-n64", 25000: "unet-96-n64@800000"}
    assert not recipes.prefixes(specs["unet-192-n64"], specs)
    assert not recipes.prefixes(specs["unet-48-n64-half1"], specs)


# --- variants of a specification ----------------------------------------------------------------

def test_a_variant_keeps_what_is_left_empty():
    spec = recipes.specs("laptop")["edm"]
    assert recipes.variant(spec) == spec
    found = recipes.variant(spec, "zoo/edm.safetensors", r"decoder\..*qkv", "cifar10:5-9", 64)
    assert found.name == "edm-edm-decoder_.._qkv-cifar10_5-9-n64"
    assert (found.start, found.trains, found.dataset, found.images) == (
        "zoo/edm.safetensors", r"decoder\..*qkv", "cifar10:5-9", 64)
    assert found.network_args == spec.network_args and found.run != spec.run
    longer = recipes.variant(spec, images_seen=500, seed=3)
    assert (longer.name, longer.images_seen, longer.seed) == ("edm-seen500-seed3", 500, 3)
    assert longer.images == spec.images and longer.run != spec.run


def test_a_student_needs_its_teacher():
    spec = recipes.distillation_specs("laptop")["cd"]
    with pytest.raises(UserError, match="cd learns from a teacher.*the weights of 'teacher'"):
        recipes.variant(spec)
    assert recipes.variant(spec, "mine.safetensors").objective == "cd"


def test_a_part_of_a_random_network_is_not_trained():
    with pytest.raises(UserError, match="'attention' without a start"):
        recipes.variant(recipes.specs("laptop")["edm"], trains="attention")
