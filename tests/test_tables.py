"""The tables of section 2: sheets against weights, GL, the models, RP under each descriptor."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from paper_utils import data, descriptors, models, plots, scores, tables
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import Model

pytestmark = pytest.mark.usefixtures("cache")


def fake(name: str, shift: float = 0.0) -> Model:
    """A model whose image is its noise, nearly."""
    return Model(name, "U-Net", "fake", "fake", "none", 1, 7, 2, 3, {"fake": name},
                 lambda noise, progress="": (noise / 5 + shift).clamp(-0.9, 0.9))


def counting() -> tuple[Descriptor, list[int]]:
    """The mean colour as a descriptor, and how many images it was shown."""
    shown = []

    def embed(images):
        shown.append(len(images))
        return images.float().mean((2, 3)) - 90

    return Descriptor("colour", 3, 0.9, embed), shown


# --- sheets -------------------------------------------------------------------------------------

def test_sheets_that_are_reproduced_are_generated_again():
    pair = {"a": fake("a"), "b": fake("b", 0.05)}
    sheets = {name: models.samples(model, 4).clone() for name, model in pair.items()}
    calls = []
    pair["a"] = replace(pair["a"], generate=lambda noise: calls.append(len(noise)) or noise / 5)
    sheets["a"][1, 2, 3, 4] ^= 3
    table = tables.check_sheets(pair, sheets, live=3)
    assert calls == [3]  # not read from the artifacts
    assert table.model.tolist() == ["a", "b"] and table["generated again"].tolist() == [3, 3]
    assert table["largest difference"][0] >= 1 and table["largest difference"][1] == 0
    assert not len(tables.check_sheets({}, {}, live=3))
    assert table["mean difference"].max() < 0.2


@pytest.mark.parametrize("levels, wrong", [(1, False), (2, True)])
def test_a_wrong_sheet_is_an_error_naming_the_model(levels, wrong):
    pair = {"good": fake("good"), "bad": fake("bad", 0.05)}
    sheets = {name: models.samples(model, 4).clone() for name, model in pair.items()}
    sheets["bad"][2] += levels  # one image of four; every pixel is below 243
    if not wrong:
        table = tables.check_sheets(pair, sheets, live=4)
        assert table["mean difference"].tolist() == [0, 1]
        return
    with pytest.raises(UserError, match="of bad do not reproduce") as failure:
        tables.check_sheets(pair, sheets, live=4)
    assert "good" not in str(failure.value) and "\n" not in str(failure.value)
    tables.check_sheets(pair, sheets, live=2)  # the wrong image is not among these


# --- features and scores ------------------------------------------------------------------------

def test_features_of_a_dataset_are_computed_once():
    descriptor, shown = counting()
    images = data.load("bundled").first(20)
    first = tables.features_of(descriptor, images)
    assert torch.equal(first, descriptors.features(descriptor, images.pixels))
    shown.clear()
    assert torch.equal(tables.features_of(descriptor, images), first)
    assert sum(shown) == 4  # the probe only
    tables.features_of(descriptor, images.half(1))
    assert sum(shown) == 4 + 4 + 10


def test_features_of_a_dataset_are_of_images():
    descriptor, _ = counting()
    with pytest.raises(UserError, match=r"takes data.Images, not uint8 \[256, 3, 32, 32\]: of a"):
        tables.features_of(descriptor, data.load("bundled").pixels)


def test_another_descriptor_of_the_same_name_has_its_own_features():
    images, (descriptor, _) = data.load("bundled").first(8), counting()
    first = tables.features_of(descriptor, images)
    other = replace(descriptor, embed=lambda images: images.float().std((2, 3)))
    assert not torch.allclose(tables.features_of(other, images), first, atol=0.05)


def test_test_pairs_above_a_threshold_are_readable():
    counted = tables.copy_detection()["test pairs above, in a million"]
    assert counted.between(1, 100).all() and counted[0] == pytest.approx(3.11, abs=0.01)


def test_gl_of_every_model_is_against_the_training_images():
    whole, half = torch.eye(4), torch.eye(4)[[0, 0, 2, 2]]
    table = tables.gl_table({"a": whole[:2], "b": half}, whole[:2], 0.5)
    assert list(table.columns) == ["model", "GL", "low", "high", "n"]
    assert table.model.tolist() == ["a", "b"] and table.GL.tolist() == [0, 0.5]
    assert table.n.tolist() == [2, 4] and table.low[1] < 0.5 < table.high[1]


def test_the_table_of_models_ends_with_real_images():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(60, 4, generator=rng)
    features = {"a": torch.randn(40, 4, generator=rng) + 5}  # more than half of the real ones
    gl = tables.gl_table({name: normalize(rows, dim=1) for name, rows in (
        features | {"held-out": real}).items()}, normalize(real, dim=1), 1e6)
    table = tables.model_table({"a": fake("a")}, features, gl, real, "test space")
    table = table.set_index("model")
    assert table.loc["a", "images seen"] == 3 and table.loc["a", "parameters"] == 7
    distance = table["FD (test space, 30 images)"]
    assert distance["a"] == pytest.approx(scores.frechet(features["a"][:30], real[30:]))
    assert distance["real images"] < 10 < distance["a"]
    assert table.GL.tolist() == [1, 1]


def test_rp_under_every_descriptor(monkeypatch):
    def load(name, device):
        if name == "absent":
            raise UserError("this descriptor needs a package that is not installed")
        return counting()[0]

    monkeypatch.setattr(descriptors, "load", load)
    images = data.load("bundled").pixels[:20]
    samples = {"a": images, "b": images.flip(-1), "c": images.roll(7, 0)}
    table = tables.rp_by_descriptor(samples, ["colour", "absent"]).set_index("descriptor")
    assert table.loc["colour", "highest RP"] == 1 and table.loc["colour", "noises"] == 20
    assert table.loc["colour", "lowest RP"] < 1 and table.loc["colour", "highest shuffled"] < 1
    assert any(name.startswith("absent (") for name in table.index)
    assert table.loc["colour", "median same noise first"] < 0.2  # c is of other noises
    assert table.loc["colour", "by chance"] == 1 / 20
    pair = {"a": images, "b": images.flip(-1)}
    mirrored = tables.rp_by_descriptor(pair, ["colour"], control=images.roll(7, 0))
    assert mirrored["median same noise first"].tolist() == [1.0]
    assert mirrored["median same noise first, with it"].tolist() < [0.2]
    assert mirrored["median RP with the Gaussian denoiser"].tolist() == [
        table.loc["colour", "lowest RP"]]


def test_rp_under_a_descriptor_of_ones_own():
    images = data.load("bundled").pixels[:20]
    samples = {"a": images, "b": images.flip(-1)}
    table = tables.rp_by_descriptor(samples, [counting()[0], "pixels"])
    assert table.descriptor.tolist() == ["colour", "pixels"]
    assert table["median RP"][0] == 1 and table["noises"].tolist() == [20, 20]


# --- what RP hangs on ---------------------------------------------------------------------------

def test_rp_at_other_thresholds():
    """Cosines .8 between the models and .6 and .96 with the control, on each of 40 noises."""
    def at(cosine: float) -> torch.Tensor:
        return torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]).expand(40, 2)

    found = tables.rp_by_threshold({"a": at(1.0), "b": at(0.8)}, at(0.6), own=0.7,
                                   thresholds=(0.5, 0.9))
    assert found.threshold.tolist() == [0.5, 0.7, 0.9]
    assert found["median RP"].tolist() == [1.0, 1.0, 0.0]
    assert found["median with the Gaussian denoiser"].tolist() == [1.0, 0.5, 0.5]
    assert found.more.tolist() == [0, 0, 0] and found.less.tolist() == [0, 0, 0]
    nearer = tables.rp_by_threshold({"a": at(1.0), "b": at(0.8)}, -at(0.6), own=0.7, thresholds=())
    assert nearer.more.tolist() == [1]


# --- even parts ---------------------------------------------------------------------------------

def bent(name: str, curve: float, slope: float = 1.0) -> Model:
    """A model whose image has a part that is even in the noise."""
    return replace(fake(name), identity={"bent": [name, curve, slope]},
                   generate=lambda noise, progress="": slope * noise + curve * noise.square() + 0.3)


def test_even_parts_are_alike_where_they_are_the_same_whatever_the_odd_ones():
    found = {"a": bent("a", 0.1), "b": bent("b", 0.3, slope=-2.0), "c": bent("c", -0.1)}
    parts = tables.even_parts_of(found, 16)
    table = scores.pairwise(parts, scores.cosine).set_index(["model", "other"])
    assert table.score[("a", "b")] == pytest.approx(1)
    assert table.score[("a", "c")] == pytest.approx(-1)
    assert abs(table.shuffled[("a", "b")]) < 0.1 and set(table.n) == {16}
    assert (table.low <= table.score).all() and (table.score <= table.high).all()


def test_even_parts_without_a_control_hold_nothing_of_it():
    """a and b share e^2, which is the control's; what is left of them they do not share."""
    def other(name: str, sign: float) -> Model:
        def generate(noise: torch.Tensor, title: str = "") -> torch.Tensor:
            return noise.square() + sign * (noise > 1.5) * (noise.flip(-1).abs() > 1)

        return replace(fake(name), identity={"other": [name, sign]}, generate=generate)

    found = {"a": other("a", 1.0), "b": other("b", -1.0)}
    whole = tables.even_parts_of(found, 8)
    rest = tables.even_parts_of(found, 8, bent("control", 1.0))
    assert scores.cosine(whole["a"], whole["b"]).mean() > 0.8
    torch.testing.assert_close(scores.cosine(rest["a"], rest["b"]), -torch.ones(8).double(),
                               rtol=0, atol=0.01)


def test_a_limited_gaussian_has_an_even_part():
    gaussian = models.closed_forms(data.load("bundled").first(32), 16)["gaussian"]
    limited = models.limited(gaussian)
    plus, _ = models.of_both_signs(limited, 2)
    torch.testing.assert_close(plus, models.of_both_signs(gaussian, 2)[0].tanh())
    assert tables.even_parts({"limited": limited}, 4).share[0] > 1e-4


def test_the_even_part_has_its_share_of_the_variance():
    """Of e + c e^2 with e normal: 2 c^2 of 1 + 2 c^2."""
    found = {"a": bent("a", 0.5), "straight": bent("straight", 0.0)}
    share = tables.even_parts(found, 64).set_index("model").share
    assert share["a"] == pytest.approx(0.5 / 1.5, abs=0.02)
    assert share["straight"] == pytest.approx(0, abs=1e-9)


def test_only_affine_denoisers_have_no_even_part():
    forms = models.closed_forms(data.load("bundled").first(32), 16)
    share = tables.even_parts({name: forms[name] for name in ("gaussian", "optimal")}, 4)
    assert share.share[0] < 1e-9 and share.share[1] > 0.05


def test_scores_by_family_of_the_pair():
    rows = [("a", "b", 0.9, True, False), ("a", "t", 0.5, False, True),
            ("t", "b", 0.7, False, False), ("t", "s", 0.2, False, True)]
    pairs = pd.DataFrame(rows, columns=["model", "other", "score", "more", "less"])
    family = {"a": "U-Net", "b": "U-Net", "s": "transformer", "t": "transformer"}
    found = tables.by_family({"RP": pairs}, family)
    assert found.score.tolist() == ["RP"] * 3
    found = found.set_index("families")
    assert found.loc["U-Net", ["pairs", "lowest", "more", "less"]].tolist() == [1, 0.9, 1, 0]
    across = found.loc["U-Net and transformer"]
    assert across[["pairs", "lowest", "median", "highest"]].tolist() == [2, 0.5, 0.6, 0.7]
    assert across.less == 1 and found.loc["transformer", "less"] == 1


def test_what_a_second_seed_changes():
    same = torch.eye(4)
    half = torch.cat([same[:2], -same[2:]])
    features = {"a": same, "a-seed1": half, "b": same, "c": half}
    equal = lambda one, other: (one == other).all(-1)  # noqa: E731
    found = tables.between_seeds(features, [("a", "a-seed1")], equal).set_index("other")
    assert found.score.to_dict() == {"b": 1.0, "c": 0.5}
    assert found["of the twin"].to_dict() == {"b": 0.5, "c": 1.0}
    assert found.difference.to_dict() == {"b": -0.5, "c": 0.5} and set(found.n) == {4}
    assert tables.between_seeds(features, [], equal).empty


def test_counts_are_whole_numbers_in_a_table_beside_a_missing_one(tmp_path):
    table = pd.DataFrame({"n": [64.0, None], "score": [1.0, 0.5]})
    shown = plots.Output(tmp_path).table(table, "tab")
    assert (tmp_path / "tab.csv").read_text() == "n,score\n64,1.0\n,0.5\n"
    assert "64 & 1.00" in (tmp_path / "tab.tex").read_text() and shown.n[0] == 64
    assert r"-- & 0.50" in (tmp_path / "tab.tex").read_text()


def test_sentences_of_a_latex_table_stay_in_their_column(tmp_path):
    table = pd.DataFrame({"claim": ["word " * 20, ""], "model": ["edm", "dit"],
                          "score": [1.0, 0.5]})
    plots.Output(tmp_path).table(table, "tab")
    assert r"\begin{tabular}{p{4.5cm}lr}" in (tmp_path / "tab.tex").read_text()
