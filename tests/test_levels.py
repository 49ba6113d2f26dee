"""The levels of reproducibility: each holds here, and each can fail."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paper_utils import claims, data, levels, models, profiles, samplers, zoo
from paper_utils.claims import Claim
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.models import BANK
from paper_utils.noise import NoiseBank
from paper_utils.samplers import Solver


# --- same bits ----------------------------------------------------------------------------------

def test_every_kind_of_shipped_model_gives_the_same_bits_twice():
    names = {row.kind: name for name, row in zoo.entries().items() if row.weights}
    assert set(names) == {"diffusion", "contrast"}
    for name in [*names.values(), "dit", "uvit"]:
        level, _, found, holds = levels.same_bits(models.shipped(name), BANK[:2])
        assert (found, holds) == ("equal", "yes") and level.startswith("same bits")


def test_the_same_bits_in_another_process(tmp_path):
    """What a process of its own samples, with as many threads: with more, sums round otherwise."""
    code = (f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
            "from paper_utils import models\n"
            "x = models.shipped('edm').generate(models.BANK[:2])\n"
            f"torch.save(x, {str(tmp_path / 'x.pt')!r})")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    here = models.shipped("edm").generate(BANK[:2])
    assert torch.equal(torch.load(tmp_path / "x.pt"), here)


def test_other_bits_are_seen():
    calls = iter((0.0, 1e-6))
    model = SimpleNamespace(name="m", generate=lambda noise: noise + next(calls))
    _, _, found, holds = levels.same_bits(model, BANK[:1])
    assert holds == "no" and found.startswith("largest difference")


# --- same noise ---------------------------------------------------------------------------------

def test_the_noises_are_those_of_every_machine():
    assert levels.same_noise()[3] == "yes"
    drawn = [np.random.Generator(np.random.Philox(key=[0, k])).standard_normal(
        (3, 32, 32), dtype=np.float32) for k in range(levels.NOISES)]
    assert torch.equal(torch.from_numpy(np.stack(drawn)), NoiseBank()[:levels.NOISES])


def test_other_noises_are_seen():
    assert levels.same_noise(NoiseBank(seed=1))[3] == "no"


# --- same scores --------------------------------------------------------------------------------

def rows_of(agreeing: float, n: int = 200) -> dict[str, torch.Tensor]:
    """Images of two models that agree on a share of the noises."""
    one, two = torch.zeros(2, n, 3, 2, 2, dtype=torch.uint8)
    two[int(agreeing * n):] = 255
    return {"a": one, "b": two}


@pytest.mark.parametrize(("there", "holds"), [
    (0.7, "yes"), (0.73, "yes"), (0.4, "no: 1 of 1 apart"), (0.99, "no: 1 of 1 apart")])
def test_scores_are_the_same_inside_the_intervals(there, holds):
    row = levels.same_scores(rows_of(0.7), rows_of(there))
    assert row[3] == holds and "0.70 [" in row[2]


def test_other_bits_leave_the_scores():
    """The same samples from noises rounded to bf16, which is far more than a device changes."""
    images = data.load("bundled")
    gaussian, n = GaussianDenoiser.fit(images.pixels), 64
    here = samplers.sample(gaussian, BANK[:n], Solver("heun", 18))
    there = samplers.sample(gaussian, BANK[:n].bfloat16().float(), Solver("heun", 18))
    made, again, other = map(data.to_bytes, (here, there, torch.randn(here.shape)))
    row = levels.same_scores({"a": made, "b": other}, {"a": again, "b": other})
    assert row[3] == "yes" and not torch.equal(here, there)
    assert "of a model with itself at least 1.00" in row[2]


# --- same conclusion ----------------------------------------------------------------------------

def found(*verdicts: str) -> dict[str, list[dict]]:
    return {"inverse": [asdict(Claim(f"claim {k}", "rule", "0.1", verdict))
                        for k, verdict in enumerate(verdicts)]}


@pytest.mark.parametrize(("here", "there", "said", "holds"), [
    (("reproduced", "partly: 3 of 4"), ("reproduced", "partly: 2 of 4"), "2 of 2", "yes"),
    (("reproduced",), ("reproduced", "no"), "1 of 2", "no"),
    (("not reproduced", "no"), ("reproduced", "no"), "1 of 2 claims agree; other verdict: claim 0",
     "no"),
    ((), ("reproduced",), "0 of 1", "not run"),
])
def test_a_conclusion_is_the_verdict_without_its_numbers(here, there, said, holds):
    row = levels.same_conclusion(found(*here), found(*there))
    assert said in row[2] and row[3] == holds


def test_without_committed_verdicts_nothing_was_compared():
    """As without git, or in an unpacked archive."""
    assert levels.same_conclusion({"inverse": [{"statement": "a", "verdict": "yes"}]}, {})[3] == (
        "not run")


def test_the_committed_verdicts_are_read_from_git(monkeypatch, tmp_path):
    known = levels.committed()
    if not known:
        pytest.skip("this is no git checkout")
    assert set(known) == set(claims.SECTIONS)
    monkeypatch.setattr(levels, "ROOT", tmp_path)
    assert levels.committed() == {}


# --- the table ----------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_table_of_the_shipped_profile(tmp_path, monkeypatch):
    """On the committed figures: samples made here have the scores of those that ship."""
    monkeypatch.setattr(levels, "CHECKED", 16)
    known = levels.committed() or pytest.skip("this is no git checkout")
    (tmp_path / "claims.json").write_text(json.dumps(known))
    profile = replace(profiles.get("laptop"), dataset="bundled")  # only its models are sampled
    table = levels.table(profile, tmp_path).set_index("level")
    assert table.holds.tolist() == ["yes"] * 3 + ["not run"]  # these are a clone's, not a run's
    (tmp_path / "executed").mkdir()
    *most, last = claims.SECTIONS.values()
    for name in most:
        (tmp_path / "executed" / f"{name}.ipynb").touch()
    assert levels.same_conclusion(levels._computed(tmp_path), known)[3] == "no"
    (tmp_path / "executed" / f"{last}.ipynb").touch()
    assert levels.same_conclusion(levels._computed(tmp_path), known)[3] == "yes"


def test_a_profile_that_trains_its_own_compares_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "by_name", lambda *_: pytest.fail("trained for this"))
    table = levels.table(profiles.get("smoke"), tmp_path)
    assert table.holds.tolist() == ["yes", "yes", "not run", "not run"]
