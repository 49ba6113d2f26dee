"""The paper's published numbers, against a second copy and its sums, and ours beside them."""

import numpy as np
import pandas as pd
import pytest

from paper_utils import plots, published, recipes
from test_rules import curve, table

MODELS = "DDPMv4 DDPMv6 Multistagev1 EDMv1 UViT CT Progressivev1".split()
RP = np.array([  # the published heat map, symmetric, row by row
    [1.00, .89, .86, .83, .81, .81, .88],
    [.89, 1.00, .84, .83, .78, .80, .87],
    [.86, .84, 1.00, .78, .80, .76, .86],
    [.83, .83, .78, 1.00, .74, .76, .85],
    [.81, .78, .80, .74, 1.00, .70, .82],
    [.81, .80, .76, .76, .70, 1.00, .91],
    [.88, .87, .86, .85, .82, .91, 1.00]])
MAE = np.array([
    [1.00, .92, .85, .85, .84, .75, .88],
    [.92, 1.00, .87, .87, .82, .77, .90],
    [.85, .87, 1.00, .81, .76, .77, .87],
    [.85, .87, .81, 1.00, .76, .72, .86],
    [.84, .82, .76, .76, 1.00, .68, .84],
    [.75, .77, .77, .72, .68, 1.00, .83],
    [.88, .90, .87, .86, .84, .83, 1.00]])


@pytest.mark.parametrize("numbers, shown", [(published.RP, RP), (published.MAE, MAE)])
def test_the_papers_numbers_are_those_published(numbers, shown):
    assert (shown == shown.T).all()
    pairs = published.pairs(numbers)
    assert len(pairs) == 21 and len({frozenset(pair) for pair in pairs}) == 21
    assert pairs == {(MODELS[i], MODELS[j]): shown[i, j]
                     for i in range(7) for j in range(i + 1, 7)}


def test_every_number_of_the_paper_stands_beside_ours():
    ours = table(("edm", "ddpm-vp", 0.83), ("uvit", "edm", 0.60), ("uvit", "dit", 0.99),
                 ("progressive-1", "ct", 0.92))
    found = published.beside_heat_maps(ours, table(("ddpm-vp", "edm", 0.95)))
    assert len(found) == 42 and found.score.value_counts().to_dict() == {"RP": 21, "MAE score": 21}
    rows = found.set_index(["score", "paper's model", "paper's other"])
    assert rows.loc[("RP", "DDPMv4", "EDMv1"), "verdict"] == "agrees"
    assert rows.loc[("RP", "EDMv1", "UViT"), "verdict"] == "ours is lower"
    assert rows.loc[("MAE score", "DDPMv4", "EDMv1"), "verdict"] == "ours is higher"
    assert rows.loc[("RP", "CT", "Progressivev1"), "verdict"] == "agrees"
    assert rows.loc[("MAE score", "CT", "Progressivev1"), "verdict"] == "not compared here"
    assert rows.loc[("RP", "DDPMv4", "CT"), "our other"] == "ct"
    assert (found.verdict == "not compared here").sum() == 42 - 4
    assert found[found.verdict == "not compared here"].ours.isna().all()
    left, right = plots.beside_paper(found).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert drawn["agrees: 2"] == [[0.83, 0.83], [0.91, 0.92]]
    assert drawn["ours is higher: 0"] == []
    assert drawn["ours is lower: 1"] == [[0.74, 0.6]] and right.get_title() == "MAE score"
    assert plots.beside_paper(found[found.ours.isna()]).axes


def test_every_model_of_the_paper_has_a_counterpart_that_is_trained():
    trained = {*recipes.specs("laptop"), *recipes.distillation_specs("laptop")}
    assert set(published.COUNTERPARTS) == set(MODELS)
    assert set(published.COUNTERPARTS.values()) <= trained


@pytest.mark.parametrize("paper, verdict", [
    (0.599, "ours is higher"), (0.60, "agrees"), (0.65, "agrees"), (0.70, "agrees"),
    (0.701, "ours is lower"),
])
def test_a_number_agrees_inside_the_interval_ends_included(paper, verdict):
    row = next(pd.DataFrame([(0.60, 0.65, 0.70)], columns=["low", "score", "high"]).itertuples())
    assert published.verdict(paper, row) == verdict
    assert published.verdict(paper, None) == "not compared here"


def test_no_number_of_the_paper_was_changed_by_mistake():
    """Their sums, taken when they were compared with the source."""
    sums = {kind: [round(sum(curve), 3) for curve in curves.values()]
            for kind, curves in published.CURVES.items()}
    assert sums == {"RP": [4.99, 4.15, 4.695], "GL": [4.08, 3.08, 2.35],
                    "optimal": [1.94, 2.22, 2.435]}
    rows = [[round(sum(row), 2) for row in numbers]
            for numbers in (published.RP, published.MAE)]
    assert rows == [[5.08, 4.12, 3.2, 2.35, 1.52, 0.91], [5.09, 4.23, 3.21, 2.34, 1.52, 0.83]]


def test_a_number_read_from_a_figure_is_known_to_a_hundredth():
    row = curve({64: 0.0}, 0.0).iloc[0]
    assert published.verdict(.005, row, published.READING) == "agrees"
    assert published.verdict(.02, row, published.READING) == "ours is lower"
    assert published.verdict(.005, row) == "ours is lower"


def test_the_papers_curves_have_a_number_per_size():
    for kind, by in (("RP", "pair"), ("GL", "width"), ("optimal", "width")):
        found = published.curves(kind, by)
        assert len(found) == 30 and found.images.min() == 64 and found.images.max() == 32768
    rp = published.curves("RP", "pair").set_index(["pair", "images"]).score
    assert (rp["64 / 256", 8192], rp["128 / 256", 32768]) == (.02, .845)


def test_every_number_of_figure_4_stands_beside_ours():
    rp = pd.concat([curve({64: .69, 1024: .9}, pair="16 / 32"), curve({64: .1}, pair="16 / 64")])
    gl = pd.concat([curve({64: 0.3}, width=32), curve({64: 0.0}, width=16)])
    found = published.beside_curves({"RP": (rp, "pair"), "GL": (gl, "width")}, (16, 32, 64))
    rows = found.set_index(["score", "paper's width", "images"]).verdict
    assert len(found) == 60
    assert rows["RP", "64 / 128", 64] == "agrees"
    assert rows["RP", "64 / 128", 1024] == "ours is higher"
    assert rows["RP", "64 / 128", 128] == "not trained here"
    assert rows["RP", "64 / 256", 64] == "ours is lower"
    assert rows["GL", "64", 64] == "agrees" and rows["GL", "128", 64] == "ours is higher"


@pytest.mark.parametrize("trained, beside", [((8, 16), {"64": "agrees", "128": "ours is higher"}),
                                             ((8, 32), {"64": "agrees", "256": "ours is higher"})])
def test_a_width_that_was_not_trained_keeps_its_rows(trained, beside):
    """Widths are paired by their rank in the grid, not among those that happen to be there."""
    gl = pd.concat([curve({64: score}, width=w) for w, score in zip(trained, (0.0, 0.9))])
    rp = curve({64: .9}, pair=" / ".join(map(str, trained)))
    found = published.beside_curves({"RP": (rp, "pair"), "GL": (gl, "width")}, (8, 16, 32))
    assert found.groupby(["score", "paper's width"]).size().tolist() == [10] * 6
    assert set(found["our width"]) == {"8", "16", "32", "8 / 16", "8 / 32", "16 / 32"}
    rows = found[found.images == 64].set_index("paper's width").verdict
    expected = dict.fromkeys(rows.index, "not trained here") | beside
    assert rows.to_dict() == expected | {" / ".join(beside): "ours is higher"}
