"""Claims: what claims.json and its tables have of them, and where it was computed."""

import json

import pandas as pd
import pytest
import torch

from paper_utils import claims
from paper_utils.plots import Output

# --- saving -------------------------------------------------------------------------------------

def test_sections_share_one_file(tmp_path):
    def claim(verdict):
        return claims.Claim("models agree", "at least 0.70", "0.71", verdict)

    output = Output(tmp_path)
    shown = claims.save([claim("reproduced"), claim("no")], "conditional", output)
    claims.save([claim("later")], "inverse", output)
    claims.save([claim("again")], "conditional", output)
    found = json.loads((tmp_path / "claims.json").read_text())
    assert {k: [c["verdict"] for c in v] for k, v in found.items()} == {
        "conditional": ["again"], "inverse": ["later"]}
    assert shown.verdict.tolist() == ["reproduced", "no"]
    assert pd.read_csv(tmp_path / "tab_claims_conditional.csv").verdict.tolist() == ["again"]
    assert (tmp_path / "tab_claims_inverse.tex").exists()


# --- where it was computed ----------------------------------------------------------------------

def test_the_hardware_is_one_line(monkeypatch, tmp_path):
    assert claims.hardware().endswith(", CPU") and "\n" not in claims.hardware()
    (tmp_path / "cpuinfo").write_text("model name\t: A  Chip 9\ncache\t: 1\n")
    monkeypatch.setattr(claims, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(claims.os, "cpu_count", lambda: 3)
    assert claims.hardware() == "3 x A  Chip 9, CPU"
    monkeypatch.setattr(claims, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(claims.platform, "processor", lambda: "")
    monkeypatch.setattr(claims.platform, "machine", lambda: "riscv64")
    assert claims.hardware() == "3 x riscv64, CPU"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    assert claims.hardware("cuda:0") == "a GPU at cuda:0"


def test_the_hardware_is_in_the_claims_and_not_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "hardware", lambda device: f"a {device}")
    found = [claims.Claim("it is so", "a rule", "0.9", "reproduced", "0.70 to 0.91", "S", "0.9",
                          512), claims.Claim("so too", "a rule", "0.1", "no")]
    shown = claims.save(found, "inverse", Output(tmp_path), "cuda")
    assert shown.columns.tolist() == ["statement", "rule", "measured", "verdict"]
    first, second = claims.load(tmp_path)["inverse"]
    assert (first["hardware"], first["n"], first["grade"]) == ("a cuda", 512, "S")
    assert (second["n"], second["paper"]) == (None, "")
    text = (tmp_path / "tab_claims_inverse.csv").read_text()
    assert text.startswith("statement,rule,measured,verdict,paper,grade,ours,n\n")
    assert ",512\n" in text and "cuda" not in text


def test_claims_of_an_older_run_can_be_read(tmp_path):
    old = {"statement": "it is so", "rule": "a rule", "measured": "0.9", "verdict": "reproduced"}
    (tmp_path / "claims.json").write_text(json.dumps({"inverse": [old]}))
    row, = claims.load(tmp_path)["inverse"]
    assert row == old | {"paper": "", "grade": "", "ours": "", "n": None, "hardware": ""}
    assert claims.overview(tmp_path).set_index("notebook").verdict["04_inverse_problems"] == (
        "reproduced")


def test_the_overview_has_a_row_for_what_did_not_run(tmp_path):
    claims.save([claims.Claim("it is so", "a rule", "0.9", "reproduced")], "distillation",
                Output(tmp_path))
    found = claims.overview(tmp_path).set_index("notebook")
    assert found.loc["06_distillation"].tolist() == ["it is so", "reproduced"]
    assert (found.verdict.drop("06_distillation") == "not run").all() and len(found) == 6


def test_damaged_claims_are_said_and_written_again(tmp_path):
    (tmp_path / "claims.json").write_text('{"conditional": [')
    for work in (lambda: claims.overview(tmp_path),
                 lambda: claims.save([], "conditional", Output(tmp_path))):
        with pytest.warns(UserWarning, match="claims.json is damaged: every notebook writes"):
            work()
    assert json.loads((tmp_path / "claims.json").read_text()) == {"conditional": []}


def test_a_section_that_no_notebook_decides_is_dropped(tmp_path):
    (tmp_path / "claims.json").write_text('{"gone": []}')
    claims.save([], "conditional", Output(tmp_path))
    assert json.loads((tmp_path / "claims.json").read_text()) == {"conditional": []}
