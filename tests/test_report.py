"""The report: what it lists, that nothing it links to is missing, that a browser is content."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from PIL import Image

from paper_utils import claims, graph, profiles, report
from paper_utils.claims import Claim

ROOT = Path(__file__).resolve().parents[1]
REFERENCES = ROOT / "tests" / "references"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
CLAIMS = [Claim("It <works>", "a rule", "0.9 & more", "reproduced", "0.70 to 0.91", "S",
                "0.93 [0.91, 0.95] (a, b)", 512),
          Claim("It is so (our question)", "a rule", "0.1", "not decided: too few"),
          Claim("It holds", "a rule", "0.1", "not reproduced"),
          Claim("It is more (our control)", "a rule", "0.1", "no")]


@pytest.fixture(scope="module", autouse=True)
def jobs(tmp_path_factory):
    """The jobs of the smoke profile: one is done, one has failed, the others have not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPER_UTILS_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = graph.load("smoke")
        found["train-distillation-group-1"].marker.write_text(
            json.dumps({"minutes": 90, "CPU minutes": 30}))
        found["train-conditional-group-1"].log.write_text("error: out of <memory>\n")
        yield found


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """figures/ as a run of two notebooks of the smoke profile leaves it."""
    figures = tmp_path_factory.mktemp("figures")
    executed = figures / "smoke" / "executed"
    executed.mkdir(parents=True)
    for name in ("05_fine_tuning", "06_distillation"):
        shutil.copy(REFERENCES / f"{name}.ipynb", executed)
    (executed / "01_unconditional.failed.ipynb").write_text("{}")
    (executed / "06_distillation.tsv").write_text(
        "s\th:m:s\tmax_rss\tcpu_time\n60\t0:01:00\t512\t30\n90\t0:01:30\t2048\t120\n")
    for page in report.pages(figures / "smoke"):
        for figure in page.figures if page.there else ():
            for ending in ("png", "pdf"):
                Image.new("RGB", (40, 30), "orange").save(
                    figures / "smoke" / f"{figure.name}.{ending}")
            for table in figure.tables:
                pd.DataFrame({"x": [1]}).to_csv(figures / "smoke" / f"{table}.csv")
    rows = [asdict(claim) | {"hardware": "2 x <fast>, CPU"} for claim in CLAIMS]
    found = {"distillation": rows, "gone": rows[:1], "inverse": rows}  # the last a clone's
    (figures / "smoke" / "claims.json").write_text(json.dumps(found))
    return figures


@pytest.fixture(scope="module")
def site(computed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "FIGURES", computed)
        return report.build("smoke").parent


def references(page: Path) -> set[str]:
    """What a page links to or shows, inside the site; 'data:' and other hosts left out."""
    found = re.findall(r'(?:href|src)="([^"#]+)', page.read_text())
    return {unquote(urlsplit(url).path) for url in found if not urlsplit(url).scheme}


def test_nothing_that_a_page_names_is_missing(site):
    assert {page.name for page in site.glob("0*.html")} == {"05_fine_tuning.html",
                                                            "06_distillation.html"}
    for page in site.glob("*.html"):
        assert not {url for url in references(page) if not (page.parent / url).exists()}, page.name


def test_nothing_is_fetched_from_another_host(site):
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)',
                            page.read_text())
        assert not loaded, page.name


def test_every_picture_can_be_read(site):
    pictures = [*site.glob("*.png"), *site.rglob("_images/*.png")]
    assert len(pictures) > 10
    for path in pictures:
        with Image.open(path) as image:
            image.verify()
            assert min(image.size) > 1


def test_every_figure_of_a_notebook_is_shown_with_its_data(site):
    front = (site / "index.html").read_text()
    source = (ROOT / "notebooks" / "06_distillation.py").read_text()
    names = re.findall(r'"(fig_\w+)"', source)
    assert len(names) > 5 and all(f'src="{name}.png"' in front for name in names)
    caption = re.search(r'src="fig_low_pass.png".*?</figcaption>', front, re.S)[0]
    assert 'href="tab_low_pass.csv"' in caption and 'href="06_distillation.html"' in caption
    assert 'alt="Is it blur?: fig_low_pass"' in caption
    assert "<strong>Is it blur?</strong> The progressive student of one step blurs." in caption
    assert "tab_price" not in caption
    assert 'src="fig_hyperplane.png"' not in front  # its notebook did not finish


def test_verdicts_are_listed_and_what_did_not_run_says_so(site, computed):
    front = (site / "index.html").read_text()
    assert "It &lt;works&gt;" in front and "0.9 &amp; more" in front
    for verdict, colour in (("reproduced", "#007A5A"), ("not decided: too few", "#6B6B6B"),
                            ("not reproduced", "#C04A00"), ("no", "#6B6B6B")):
        assert f'<strong style="color:{colour}">{verdict}</strong>' in front
    assert front.count("<em>Not run.</em>") == len(claims.SECTIONS) - 1
    assert list(claims.load(computed / "smoke")) == list(claims.SECTIONS)


def test_the_verdict_table_has_the_papers_value_ours_and_the_hardware(site):
    front = (site / "index.html").read_text()
    row = re.search(r"<tr><td><strong[^>]*>reproduced.*?</tr>", front, re.S)[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
    assert cells[2:] == ["0.70 to 0.91 (S)", "0.93 [0.91, 0.95] (a, b)", "512"]
    other = re.search(r"<tr><td><strong[^>]*>not reproduced.*?</tr>", front, re.S)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", other, re.S)[2:] == ["-", "-", "-"]
    assert front.count("Computed on 2 x &lt;fast&gt;, CPU.") == 1
    assert re.search(r"<td>same bits, run twice on this machine</td>.*?<td>yes</td>", front, re.S)


def test_a_section_that_failed_says_which_model_did(site):
    front = (site / "index.html").read_text()
    said = re.findall(r"<em>Not run.</em>([^<]*<code.*?)</p>", front, re.S)
    assert len(said) == 1  # of the conditional models, and nobody else's
    assert "train-conditional-group-1" in said[0] and "error: out of &lt;memory&gt;" in said[0]


def test_the_ledger_has_the_last_run_and_names_failures(computed, jobs):
    rows = report.ledger(report.pages(computed / "smoke"), computed / "smoke", jobs,
                         "cpu").set_index("notebook")
    last = rows.loc["06_distillation"]
    assert (last.state, last["notebook, minutes"], last["CPU minutes"],
            last["peak memory, GiB"]) == ("done", 1.5, 2.0, 2.0)
    assert (last.used, last["of which CPU hours"]) == (1.5, 0.5)
    assert "fig_stages" in last.figures
    needed = [job for job in jobs.values() if "06_distillation" in job.notebooks]
    hours = sum(job.minutes("cpu") for job in needed) / 60
    assert last["models, estimated hours"] == pytest.approx(hours) and hours > 0
    assert rows.state["01_unconditional"] == "failed" and rows.state["02_two_regimes"] == "not run"
    assert rows.state["05_fine_tuning"] == "done" and pd.isna(rows.used["05_fine_tuning"])
    assert pd.isna(rows["notebook, minutes"]["05_fine_tuning"])


def test_what_the_shipped_models_would_cost_is_estimated(computed, tmp_path, monkeypatch):
    laptop = profiles.get("laptop")
    text = report._cost_part(report.pages(tmp_path), tmp_path, laptop, {})
    assert "are shipped" in text
    row = re.search(r"<td>02_two_regimes</td>\s*<td>not run</td>\s*<td>([\d.]+)</td>\s*"
                    r"<td>-</td>", text)
    assert float(row[1]) > 1


def test_every_section_has_its_notebook():
    saved = {}
    for path in (ROOT / "notebooks").glob("0*.py"):
        for section in re.findall(r'claims.save\(\w+, "(\w+)"', path.read_text()):
            saved[section] = path.stem
    assert saved == claims.SECTIONS


def test_a_second_report_replaces_the_first(computed, site, monkeypatch):
    monkeypatch.setattr(report, "FIGURES", computed)
    (site / "left.html").write_text("")
    assert report.build("smoke") == site / "index.html"
    assert not (site / "left.html").exists() and not list(site.parent.glob(".report*"))


@pytest.mark.parametrize("profile, words", [("laptp", "did you mean 'laptop'"),
                                            ("gpu", "make figures PROFILE=gpu first")])
def test_a_mistake_is_one_line(profile, words, computed, monkeypatch, capsys):
    monkeypatch.setattr(report, "FIGURES", computed)
    assert report.main(["--profile", profile]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("page", ["index.html", "06_distillation.html"])
def test_a_browser_has_nothing_to_complain_of(page, site, tmp_path):
    """Headless Chromium opens the page from the file system, as wide as a phone."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path}", "--window-size=400,900", "--dump-dom"]
    done = subprocess.run([*command, (site / page).as_uri()], capture_output=True, text=True,
                          timeout=120)
    assert "</html>" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_two_processes_that_build_it_replace_it_in_turn(tmp_path):
    (tmp_path / "site").mkdir()
    for k in range(50):
        (tmp_path / "site" / f"{k}.html").write_text("x")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: report._replace(tmp_path / "report", tmp_path / "site"),
                             range(4)))
    assert len(done) == 4 and len(list((tmp_path / "report").iterdir())) == 50
    assert {path.name for path in tmp_path.iterdir()} == {"report", "site"}
