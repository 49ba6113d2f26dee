"""Profiles: sizes as data, and their overrides."""

from dataclasses import replace

import pytest

from paper_utils import data, paths, plots, profiles, recipes
from paper_utils.errors import UserError


def test_overrides_replace_single_sizes():
    profile = profiles.get("laptop", noises=100, live=0, bag=None)
    assert profile == replace(profiles.PROFILES["laptop"], noises=100)
    assert profiles.get("laptop") == profiles.PROFILES["laptop"]


@pytest.mark.parametrize("name, sizes, words", [
    ("labtop", {}, "did you mean 'laptop'"), ("huge", {}, "smoke, laptop, gpu, paper"),
    ("smoke", {"noise": 3}, "did you mean 'noises'"), ("smoke", {"colour": 3}, "noises, live"),
    ("smoke", {"noises": -1}, "noises=-1"), ("smoke", {"noises": 2.5}, "whole number"),
    ("smoke", {"noises": "many"}, "profile's own 32"), ("smoke", {"noises": True}, "noises=True"),
    ("smoke", {"noises": False}, "noises=False"), ("smoke", {"noises": 1}, "at least 2, or 0"),
    ("smoke", {"class_noises": 1}, "class_noises=1.*at least 2"),
    ("smoke", {"measured": 1}, "measured=1.*at least 2"),
    ("smoke", {"guided_steps": 1}, "guided_steps=1"), ("smoke", {"live": -1}, "at least 1, or 0"),
    ("smoke", {"dataset": 3}, "unknown size 'dataset'"), ("smoke", {"shipped": 1}, "unknown size"),
])
def test_mistakes_name_what_is_valid(name, sizes, words):
    with pytest.raises(UserError, match=words) as failure:
        profiles.get(name, **sizes)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("size", profiles.SIZES)
def test_no_size_is_beyond_what_a_machine_holds(size):
    most = 10**3 if size == "hyperplane" else 10**6
    assert getattr(profiles.get("smoke", **{size: most}), size) == most
    with pytest.raises(UserError, match=f"{size}={most + 1}: give at most {most:,}"):
        profiles.get("smoke", **{size: most + 1})


def test_profiles_grow_and_the_paper_one_is_the_papers():
    sizes = [profiles.PROFILES[name] for name in ("smoke", "laptop", "gpu", "paper")]
    for size in profiles.SIZES:
        values = [getattr(profile, size) for profile in sizes]
        assert values == sorted(values) and values[0] > 0, size
    assert sizes[-1].noises == 10_000 and sizes[-1].hyperplane == 100
    assert sizes[1].noises >= 512 and sizes[1].live >= 16
    assert all(p.live <= p.noises for p in sizes)


def test_the_smoke_profile_fits_the_bundled_images():
    bundled = len(data.load("bundled", "test"))
    assert profiles.PROFILES["smoke"].held_out <= bundled
    for spec in [*recipes.specs("smoke").values()]:
        assert spec.images <= len(data.load("bundled"))


def test_what_a_run_chose_stands_in_the_name_of_its_folder():
    assert plots.Output.of("smoke", noises=0, descriptor="cifar-copy", start="", trains="all"
                           ).folder == plots.FIGURES / "smoke"
    assert plots.Output.of("smoke", descriptor="pixels", live=8, noises=0
                           ).folder == plots.FIGURES / "smoke-descriptor-pixels-live-8"
    assert paths.folder_name("paper", imagenet="../a, b") == "paper-imagenet-.._a_b"
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        plots.Output.of("smok", noises=3)
