"""Fine-tuning: the study's models, what ships of them, its tables and claims on known cases."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from paper_utils import artifacts, data, descriptors, fine_tuning, fleet, models, plots, profiles
from paper_utils import recipes, rules, scores, tables, training, zoo
from paper_utils.errors import UserError
from paper_utils.models import BANK

pytestmark = pytest.mark.usefixtures("cache")

SPECS = recipes.fine_tuning_specs("smoke")
copies = scores.copies(0.75)


def directions(n: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, 64, generator=rng), dim=-1)


# --- the models ---------------------------------------------------------------------------------

@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_every_start_stands_before_what_starts_from_it(profile):
    seen = set()
    for name, spec in recipes.fine_tuning_specs(profile).items():
        assert not spec.start or spec.start in seen
        assert spec.run not in {s.run for s in map(recipes.fine_tuning_specs(profile).get, seen)}
        seen.add(name)
    ways = {name.rsplit("-n", 1)[0] for name in seen if "-n" in name}
    assert ways == set(recipes.WAYS)


def test_the_three_runs_of_a_way_differ_in_what_they_should():
    one, same, other = (SPECS[f"attention-n4{more}"] for more in ("", "-seed1", "-other"))
    assert one.start == same.start == "base" and other.start == "base-seed1"
    assert one.seed != same.seed and one.trains == same.trains == other.trains == "attention"
    assert SPECS["base"].seed != SPECS["base-seed1"].seed
    assert not SPECS["scratch-n4"].start and SPECS["scratch-n4"].trains == "all"
    assert SPECS["base"].dataset == "bundled:0-4" and one.dataset == "bundled:5-9"


@pytest.mark.parametrize("choice, base, images", [("split", "cifar10:0-4", 25_000),
                                                  ("cifar100", "cifar100", 50_000)])
def test_the_pre_training_can_be_chosen(choice, base, images):
    for profile in ("laptop", "gpu", "paper"):
        specs = recipes.fine_tuning_specs(profile, choice)
        assert (specs["base"].dataset, specs["base"].images) == (base, images)
        assert max(spec.images for spec in specs.values()) <= images
    assert recipes.transfer("paper").base == "cifar100"
    with pytest.raises(UserError, match="did you mean 'cifar100'"):
        recipes.transfer("laptop", "cifar-100")


def test_the_study_trains_from_nothing_and_again_from_the_store(monkeypatch):
    few = {name: SPECS[name] for name in ("base", "all-n4", "low-rank-n4", "scratch-n4")}
    monkeypatch.setattr(recipes, "fine_tuning_specs", lambda *_: few)
    sizes = profiles.get("smoke", transfer_noises=2)
    found = fine_tuning.trained(sizes)
    assert list(found) == list(few)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    again = fine_tuning.trained(sizes)
    assert all(again[name].identity == found[name].identity for name in few)
    table = fine_tuning.grid(found).set_index("way")
    assert table.loc["low-rank", "trained parameters"] < table.loc["all", "trained parameters"]
    assert list(table.images) == [4, 4, 4] and "base" not in set(table.model)
    base, tuned = (found[name].denoiser().network for name in ("base", "low-rank-n4"))
    original = tuned.decoder.in0.qkv.parametrizations.weight.original
    assert torch.equal(original, base.decoder.in0.qkv.weight)
    alone = replace(found["scratch-n4"], denoiser=lambda: pytest.fail("it ships without weights"),
                    sheet_alone=True)
    others = found | {"scratch-n4": alone}
    assert fine_tuning.grid(others).equals(fine_tuning.grid(found))
    assert set(fine_tuning.spot_checks(others, 9)) == {"base", "all-n4", "low-rank-n4"}


# --- what ships ---------------------------------------------------------------------------------

@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A zoo of the test's own."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "zoo.toml").touch()
    monkeypatch.setattr(zoo, "FINE_TUNING", folder)
    return tmp_path


@pytest.mark.parametrize("way", ["attention", "low-rank", "all"])
def test_what_trained_ships_and_the_rest_comes_from_the_start(runs, way, capsys):
    for name in ("base", f"{way}-n4"):
        fleet.train_one(name, "smoke", "cpu", runs, float("inf"))
        assert fleet.main(["add", str(runs / f"{name}.safetensors"), "--made", "by a test",
                           "--noises", "3"]) == 0
    row = zoo.entry(f"{way}-n4", runs / "zoo")
    weights, values = row.load_weights()
    spec = training.Spec.from_json(json.dumps(values))
    assert sorted(weights) == sorted(training.trained_names(training.build(spec).network))
    found = models.shipped_by({row.name: SPECS[row.name]}, runs / "zoo", data.load("bundled"))
    again = data.to_bytes(found[row.name].generate(BANK[:3]))
    assert (again.short() - row.load_sheet().short()).abs().max() <= 1
    trained = artifacts.load_tensors(runs / f"{way}-n4.safetensors")[0]
    full = artifacts.below("ema.", trained)
    mine = found[row.name].denoiser().network.state_dict()
    assert max((mine[k] - full[k]).abs().max() for k in mine) < 1e-3


def test_a_start_that_was_trained_anew_is_found_out(runs, capsys):
    for name in ("base", "attention-n4"):
        fleet.train_one(name, "smoke", "cpu", runs, float("inf"))
        assert fleet.main(["add", str(runs / f"{name}.safetensors"), "--made", "by a test",
                           "--noises", "3"]) == 0
    row = zoo.entry("base", runs / "zoo")
    weights, values = row.load_weights()
    zoo.add("base", row.kind, row.load_sheet(), BANK, "anew",
            {k: v + 0.01 for k, v in weights.items()}, values, runs / "zoo", row.subset)
    with pytest.raises(UserError, match="from other weights than those of base"):
        models.shipped_by({"attention-n4": SPECS["attention-n4"]}, runs / "zoo")
    path = str(runs / "attention-n4.safetensors")
    assert fleet.main(["add", path, "--made", "by a test"]) == 2
    assert "from other weights than those of base" in capsys.readouterr().err


def test_weights_of_a_fine_tuned_model_are_whole(runs, monkeypatch):
    for name in ("base", "low-rank-n4"):
        fleet.train_one(name, "smoke", "cpu", runs, float("inf"))
        assert fleet.main(["add", str(runs / f"{name}.safetensors"), "--made", "by a test",
                           "--noises", "3"]) == 0
    monkeypatch.setattr(zoo, "FOLDERS", (runs / "zoo",))
    found = models.weights_of(runs / "zoo" / "low-rank-n4.safetensors")
    monkeypatch.chdir(runs)
    named_from_here = models.weights_of("zoo/low-rank-n4.safetensors")
    assert all(torch.equal(found[k], named_from_here[k]) for k in found)
    base = models.weights_of(runs / "zoo" / "base.safetensors")
    moved = {k for k in found if not torch.equal(found[k], base[k])}
    assert found.keys() == base.keys() and moved
    assert all(k.endswith(("qkv.weight", "proj.weight")) for k in moved)


def test_the_laptop_ships_one_pre_training(monkeypatch):
    with pytest.raises(UserError, match="ships models pre-trained on cifar10:0-4"):
        fine_tuning.trained(profiles.get("laptop"), "cifar100")


def test_a_fine_tuning_waits_for_its_start(runs):
    with pytest.raises(UserError, match="base.safetensors is missing: train base first"):
        fleet.train_one("attention-n4", "smoke", "cpu", runs, float("inf"))
    fleet.train_one("base", "smoke", "cpu", runs, 0.0)  # one step
    with pytest.raises(UserError, match="base.safetensors is at step 1 of 8: finish it first"):
        fleet.train_one("attention-n4", "smoke", "cpu", runs, float("inf"))
    fleet.train_one("base-seed1", "smoke", "cpu", runs, float("inf"))
    (runs / "base-seed1.safetensors").replace(runs / "base.safetensors")
    with pytest.raises(UserError, match="base.safetensors is of another recipe than base"):
        fleet.train_one("attention-n4", "smoke", "cpu", runs, float("inf"))
    artifacts.write(runs / "base.safetensors", {"weight": torch.zeros(1)}, {})
    with pytest.raises(UserError, match="base.safetensors is no checkpoint"):
        fleet.train_one("attention-n4", "smoke", "cpu", runs, float("inf"))


# --- the tables ---------------------------------------------------------------------------------

def grid(*rows: tuple) -> pd.DataFrame:
    named = [(f"{way}-n{n}{'-' * bool(run)}{run}", way, n, run) for way, n, run in rows]
    return pd.DataFrame(named, columns=["model", "way", "images", "run"])


def test_rp_pairs_the_right_runs():
    table = grid(("all", 4, ""), ("all", 4, "seed1"), ("all", 4, "other"), ("scratch", 4, ""),
                 ("scratch", 4, "seed1"), ("last", 4, ""))
    one, two = directions(40, 0), directions(40, 1)
    features = {"all-n4": one, "all-n4-seed1": one, "all-n4-other": two, "scratch-n4": two,
                "scratch-n4-seed1": torch.cat([two[:10], one[10:]]), "last-n4": one}
    found = fine_tuning.reproducibility(table, features, copies).set_index(["way", "pair"]).score
    assert found.to_dict() == {("all", "same start"): 1.0, ("all", "different starts"): 0.0,
                               ("scratch", "different starts"): 0.25}


def test_gl_is_against_the_images_of_the_fine_tuning():
    known = directions(20, 3)
    table = grid(("all", 4, ""), ("all", 16, ""), ("all", 4, "seed1"))
    features = {"all-n4": known[2:6], "all-n16": known[2:6]}
    found = fine_tuning.generalization(table, features, known, known[10:18], 0.75)
    assert found.set_index("images").score.to_dict() == {4: 0.5, 16: 0.0}
    assert found.set_index("images")["held-out"].to_dict() == {4: 1.0, 16: 0.25}


def test_agreement_with_something_else_is_that_of_every_run():
    table, one = grid(("all", 4, ""), ("all", 16, ""), ("all", 4, "other")), directions(40, 0)
    rows = {"all-n4": one, "all-n16": directions(40, 5), "all-n4-other": one}
    found = fine_tuning.against(table, rows, one, copies)
    assert found.score.tolist() == [1.0, 0.0, 1.0] and found.run.tolist() == ["", "", "other"]
    assert found.n.tolist() == [40] * 3


def test_distances_are_mean_differences_of_pixels():
    black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    grey = black + 200
    table = grid(("all", 4, ""), ("last", 4, ""))
    assert fine_tuning.distances(table, {"all-n4": grey, "last-n4": black}, black) == [200.0, 0.0]


@pytest.mark.parametrize("scores_, verdict", [
    ({"all": (.9, .7, .7), "scratch": (.9, .7, .6)}, "yes"),
    ({"all": (.9, .7, .88), "scratch": (.9, .7, .6)}, "for 1 of 2 ways (scratch)"),
    ({"all": (.9, .88, .7), "scratch": (.5, .7, .7)}, "for 0 of 2 ways; the reverse for 1")])
def test_every_way_is_held_against_its_own_runs_with_the_gaussian(scores_, verdict):
    """Intervals are .05 to either side. A run of the same start, and fewer images, do not count."""
    pairs = curve({(way, n): mine for way, (mine, _, _) in scores_.items() for n in (4, 16)})
    forms = [curve({(way, n): value if n == 16 else 1.0 for way, (_, *both) in scores_.items()
                    for n in (4, 16) for value in [both[k]]})
             .assign(run=lambda t, k=k: [("", "seed1" if way == "scratch" else "other")[k]
                                         for way in t.way]) for k in (0, 1)]
    same = curve({("all", 16): 1.0}).assign(run="seed1")
    claim = rules.ways_beyond_gaussian(pairs, pd.concat([*forms, same]))
    assert claim.verdict == verdict and "at 16 images" in claim.measured


def test_examples_are_the_base_and_each_way():
    table = grid(("all", 4, ""), ("last", 4, ""), ("all", 16, ""), ("all", 4, "other"))
    images = {"base": 0, "all-n4": 1, "last-n4": 2, "all-n16": 3, "all-n4-other": 4}
    assert fine_tuning.examples(table, images, 4) == {"base": 0, "all": 1, "last": 2}


def test_spot_checks_are_spread_over_the_models():
    found = dict.fromkeys(map(str, range(50)), models.limited(models.closed_forms(
        data.load("bundled"), 1)["gaussian"]))
    drawn = [int(name) for name in fine_tuning.spot_checks(found, 8)]
    assert len(set(drawn)) == 8 and drawn == sorted(drawn)
    assert len({k % 14 for k in drawn}) > 4  # the study repeats its ways and runs every 14
    assert len(fine_tuning.spot_checks(found, 99)) == 50


# --- the claims ---------------------------------------------------------------------------------

def curve(values: dict, half_width: float = 0.05, pair: str = "different starts") -> pd.DataFrame:
    return pd.DataFrame([(way, n, pair, s, s - half_width, s + half_width)
                         for (way, n), s in values.items()],
                        columns=["way", "images", "pair", "score", "low", "high"])


LEFT = "partly: of the ways that left their start (attention) "


@pytest.mark.parametrize("rp, gl, verdict", [
    (0.2, 0.9, "reproduced"), (0.2, 0.3, LEFT + "1 with lower RP, 0 with higher GL"),
    (0.6, 0.9, LEFT + "0 with lower RP, 1 with higher GL"), (0.6, 0.3, "not reproduced")])
def test_partial_fine_tuning_with_few_images(rp, gl, verdict):
    pairs = curve({("scratch", 16): 0.6, ("attention", 16): rp, ("scratch", 99): 0.0})
    copied = curve({("scratch", 16): 0.3, ("attention", 16): gl})
    bases = scores.Score(0.7, 0.6, 0.8, 99)
    still = curve({("attention", 16): 0.4, ("scratch", 16): 0.0})
    claim = rules.partial_with_few(pairs, copied, still, bases)
    assert claim.verdict == verdict and "recalled" in claim.statement
    assert f"attention {rp:.2f}, {gl:.2f}, 0.40; scratch" in claim.measured
    assert "0.70 [0.60, 0.80]" in claim.measured
    for scratch, told in ((0.9, "not decided: none left the network it started from"),
                          (0.91, verdict)):  # RP cannot tell where scratch has it too
        still = curve({("attention", 16): 0.91, ("scratch", 16): scratch})
        assert rules.partial_with_few(pairs, copied, still, bases).verdict == told
    missing = rules.partial_with_few(pairs[pairs.way != "attention"], copied, still, bases)
    assert missing.verdict == "not decided: not trained yet"


def test_only_partial_ways_that_left_their_start_count():
    ways = {"attention": (0.9, 1.0, 1.0), "last": (0.3, 0.9, 0.1), "all": (0.0, 1.0, 0.0),
            "scratch": (0.3, 0.1, 0.0)}
    pairs, copied, still = (curve({(way, 16): each[k] for way, each in ways.items()})
                            for k in range(3))
    claim = rules.partial_with_few(pairs, copied, still, scores.Score(0.7, 0.6, 0.8, 99))
    assert claim.verdict == LEFT.replace("attention", "last") + "0 with lower RP, 1 with higher GL"
    assert "attention" in claim.measured and "attention" not in claim.ours


def gain(*differences: float) -> pd.DataFrame:
    return pd.DataFrame([("all", 4, 0.5 + d, 0.5, d, d - 0.1, d + 0.1) for d in differences],
                        columns=["way", "images", "same", "different", "difference", "low", "high"])


@pytest.mark.parametrize("differences, verdict", [
    ((0.3, 0.4), "yes, everywhere"), ((0.3, 0.0), "more at 1, less at 0 of 2 ways and sizes"),
    ((0.3, -0.2), "more at 1, less at 1 of 2 ways and sizes"), ((0.05,), "no difference seen"),
    ((), "not decided: not trained yet")])
def test_a_shared_start(differences, verdict):
    table = gain(*differences).assign(images=[4, 8][:len(differences)])
    moved = curve({("all", n): 0.9 for n in (4, 8)})
    assert rules.shared_start(table, moved).verdict == verdict


def test_what_did_not_leave_its_start_does_not_count():
    table = gain(0.3, -0.2).assign(images=[4, 8])
    claim = rules.shared_start(table, curve({("all", 4): 0.9, ("all", 8): 0.91}))
    assert claim.verdict == "yes, everywhere" and claim.measured.startswith("1 of 2 ways and sizes")
    stayed = rules.shared_start(table, curve({("all", 4): 0.95, ("all", 8): 0.91}))
    assert stayed.verdict == "not decided: none left the network it started from"


def test_what_a_shared_start_adds_is_counted_on_the_same_noises():
    table = grid(("all", 4, ""), ("all", 4, "seed1"), ("all", 4, "other"), ("scratch", 4, ""),
                 ("scratch", 4, "seed1"), ("last", 4, ""), ("last", 4, "other"))
    one, two = directions(40, 0), directions(40, 1)
    features = {"all-n4": one, "all-n4-seed1": torch.cat([one[:30], two[30:]]),
                "all-n4-other": torch.cat([one[:10], two[10:]])}
    row, = fine_tuning.shared_start(table, features, copies).itertuples()
    assert (row.way, row.same, row.different, row.difference) == ("all", 0.75, 0.25, 0.5)
    assert 0.3 < row.low < 0.5 < row.high < 0.7


def test_fine_tunings_are_held_against_the_two_networks_they_started_from():
    table = grid(("all", 4, ""), ("all", 4, "seed1"), ("all", 4, "other"), ("scratch", 4, ""),
                 ("scratch", 4, "seed1"), ("last", 4, ""))
    one, two = directions(40, 0), directions(40, 1)
    rows = {"all-n4": one, "all-n4-other": torch.cat([one[:30], two[30:]]),
            "base": one, "base-seed1": torch.cat([one[:10], two[10:]])}
    row, = fine_tuning.over_bases(table, rows, copies).itertuples()
    assert (row.way, row.images, row.model, row.other) == ("all", 4, "all-n4", "all-n4-other")
    assert row.difference == 0.5 and row.against == "base, base-seed1"


def test_the_claims_of_the_study_take_each_number_from_its_place():
    rp = curve({("scratch", 4): 0.6, ("attention", 4): 0.2, ("attention", 64): 0.9,
                ("scratch", 64): 0.8})
    gl = curve({("scratch", 4): 0.1, ("attention", 4): 0.9})
    bases = scores.Score(0.7, 0.6, 0.8, 99)
    still = curve({("attention", 4): 0.1, ("scratch", 4): 0.1, ("all", 4): 0.5})
    gaussian = curve({("attention", 64): 0.7, ("scratch", 64): 0.95}).assign(run="")
    nearer = curve({("scratch", 4): 0.9, ("scratch", 64): 0.6, ("attention", 64): 0.5})
    even = curve({("scratch", 64): 0.9, ("attention", 64): 0.4})
    found = rules.fine_tuning(rp, gl, gain(0.3, 0.0), still, bases, gaussian, nearer,
                              scores.Score(0.66, 0.6, 0.7, 99), even,
                              gain(0.3).assign(way="attention"), scores.Score(0.1, 0.0, 0.2, 16))
    assert [c.verdict for c in found] == [
        "reproduced", "more at 1, less at 0 of 2 ways and sizes",
        "for 1 of 2 ways (attention); the reverse for 1", "for 1 of 2 pairs", "yes"]
    assert [claim.measured.rpartition("; ")[2] for claim in found[-2:]] == [
        f"the two pre-trained networks {score}" for score in ("0.66 [0.60, 0.70]",
                                                              "0.10 [0.00, 0.20]")]


def test_held_out_images_stand_beside_the_ways():
    gl = curve({("all", 4): 0.2, ("last", 4): 0.3, ("all", 16): 0.9}).assign(**{
        "held-out": [0.8, 0.8, 1.0]})
    real = fine_tuning.beside_held_out(gl).iloc[3:]
    assert real[["way", "images", "score"]].values.tolist() == [
        ["held-out images", 4, 0.8], ["held-out images", 16, 1.0]]
    assert real.low.isna().all() and plots.scores_against({"GL": real}, "way")


def test_a_model_whose_name_says_nothing_is_refused():
    with pytest.raises(UserError, match="'mine' is none of the study: name it .*'attention-n64'"):
        fine_tuning.grid({"base": None, "mine": None})


def test_a_zoo_without_models_gives_empty_tables_and_no_verdict():
    table = fine_tuning.grid({})
    rp = fine_tuning.reproducibility(table, {}, copies)
    gl = fine_tuning.generalization(table, {}, directions(4, 0), directions(4, 0), 0.5)
    start = fine_tuning.against(table, {}, directions(4, 0), copies)
    found = rules.fine_tuning(rp, gl, fine_tuning.shared_start(table, {}, copies), start,
                              scores.Score(0, 0, 1, 1), start, rp, scores.Score(0, 0, 1, 1), rp,
                              fine_tuning.over_bases(table, {}, copies), scores.Score(0, 0, 1, 1))
    assert all(claim.verdict == "not decided: not trained yet" for claim in found)


def test_features_of_some_classes_are_rows_of_the_whole():
    describe = descriptors.load("pixels")
    found = fine_tuning.known_features(describe, "bundled:5-9", "test")
    alone = tables.features_of(describe, data.load("bundled:5-9", "test"))
    torch.testing.assert_close(found, alone)
