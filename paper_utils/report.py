"""One site that says what was reproduced, from what a profile computed.

    python -m paper_utils.report --profile laptop          (make report: the figures first)

Sphinx and MyST-NB turn the executed notebooks into pages of figures/<profile>/report/; the front
page has every verdict of claims.json, every figure with its notebook and data, what it cost, and
where it ran. It opens from the file system. What has not run is listed as such.
"""

import argparse
import contextlib
import html
import math
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import nbformat
import pandas as pd

from paper_utils import claims, files, graph, levels, profiles, rules
from paper_utils.errors import UserError, choose, exit_code
from paper_utils.graph import Job
from paper_utils.paths import ROOT
from paper_utils.plots import FIGURES
from paper_utils.profiles import Profile

COLOURS = {"reproduced": "#007A5A", "partly": "#96690A",
           "not reproduced": "#C04A00"}  # of the first words of a verdict; our questions have none
SPHINX = {"extensions": "myst_nb", "html_theme": "furo", "nb_execution_mode": "off",
          "master_doc": "index", "html_show_sphinx": "0", "html_copy_source": "0",
          "myst_heading_anchors": "3", "project": "Reproducibility in diffusion models",
          "html_title": "Reproducibility in diffusion models", "html_extra_path": "extra",
          "exclude_patterns": "extra", "html_static_path": "style", "html_css_files": "tables.css"}
# pandas' tables on the notebooks' pages: numbers under their names, and no wider than the page
STYLE = """.cell_output, .output.text_html { overflow-x: auto }
table.dataframe { border: none; border-collapse: collapse; font-size: 0.8em }
table.dataframe th, table.dataframe td { border: none; padding: 0.2em 0.6em; text-align: right;
  vertical-align: top }
table.dataframe tr { border-bottom: 1px solid #8884 }
"""


@dataclass(frozen=True)
class Page:
    """An executed notebook: its title, the figures and tables it writes, whether it is there."""

    name: str
    title: str
    figures: tuple["Picture", ...]
    there: bool


@dataclass(frozen=True)
class Picture:
    """A figure: its file's name, the heading it stands under, what the notebook says before it, the
    tables behind it."""

    name: str
    heading: str
    said: str
    tables: tuple[str, ...]


def pages(folder: Path) -> list[Page]:
    """The notebooks of the repository, each as it stands in figures/<profile>/."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        book = nbformat.read(path, as_version=4)
        title = re.search(r"^# (.+)$", "\n".join(c.source for c in book.cells
                                                 if c.cell_type == "markdown"), re.M)[1]
        there = (folder / "executed" / path.name).exists()
        found.append(Page(path.stem, title, _figures(book), there))
    return found


def _figures(book: nbformat.NotebookNode) -> tuple[Picture, ...]:
    """Every figure with the first sentence of the last text before it, and with the tables written
    between the figure before and it, or else since the last heading, or else by the notebook."""
    found, heading, said, part, near, every = [], "", "", [], [], []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            if heads := re.findall(r"^#+ (.+)$", cell.source, re.M):
                heading, part, near = heads[-1], [], []
            said = _first_sentence(re.sub(r"^#+ .+$", "", cell.source, flags=re.M))
            continue
        for name in re.findall(r'"((?:fig|tab)_\w+)"', cell.source):
            if name.startswith("tab_"):
                for tables in (part, near, every):
                    tables.append(name)
            else:
                found.append((name, heading, said, near or part))
                near = []
    return tuple(Picture(name, head, said, tuple(tables or every))
                 for name, head, said, tables in found)


def _first_sentence(text: str) -> str:
    """The first sentence that is no question, as plain text, or ''."""
    paragraph = re.sub(r"[*`]", "", " ".join(text.strip().partition("\n\n")[0].split()))
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z*(])", paragraph)
    return next((sentence for sentence in sentences if not sentence.endswith("?")), "")


# --- the parts of the front page ----------------------------------------------------------------

TABLE, WRAPPER = "docutils align-default", '<div class="table-wrapper">{}</div>'  # the theme's
HEAD = ("verdict", "claim", "the paper (grade)", "ours [95 % interval]", "n")
READING = """Each verdict is computed by the rule stated with its claim. Click a claim for its rule
and all that was measured.

- *Grades of what the paper says*: S read in a source, F measured from a published curve, M
  recalled, not seen. A claim without a grade is a control or a question of this project.
- *n* is the number of noises (or of what else was resampled) behind the first number."""


def _verdict_part(found: list[Page], folder: Path, jobs: Mapping[str, Job]) -> str:
    lines = ["## Verdicts", "", READING]
    known = {page.name: page for page in found}
    for section, rows in claims.load(folder).items():
        page = known[claims.SECTIONS[section]]
        lines += ["", f"### {_linked(page)}", ""]
        lines += [_claims(rows)] if rows and page.there else [_not_run(page, jobs)]
    lines += ["", "### How the rules came about", "", rules.HISTORY]
    return "\n".join(lines)


def _linked(page: Page) -> str:
    return f"[{page.title}]({page.name}.ipynb)" if page.there else page.title


def _claims(rows: list[dict]) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    where = " and ".join(sorted({row["hardware"] for row in rows} - {""}))
    computed = f"<p>Computed on {html.escape(where)}.</p>" if where else ""
    return (WRAPPER.format(f'<table class="{TABLE}"><thead><tr>{head}</tr></thead><tbody>'
                           f'{"".join(map(_claim, rows))}</tbody></table>') + f"{computed}\n")


def _claim(row: dict) -> str:
    first = re.match(rf"({'|'.join(COLOURS)})\b", row["verdict"])
    colour = COLOURS[first[1]] if first else "#6B6B6B"
    text = {key: "" if value is None else html.escape(str(value)) for key, value in row.items()}
    grade = f' ({text["grade"]})' if row["grade"] else ""
    return (f'<tr><td><strong style="color:{colour}">{text["verdict"]}</strong></td>'
            f'<td style="min-width:12em"><details><summary>{text["statement"]}</summary>'
            f'<p><em>Measured:</em> {text["measured"]}.</p><p><em>Rule:</em> {text["rule"]}.</p>'
            f'</details></td><td style="min-width:7em">{text["paper"] or "-"}{grade}</td>'
            f'<td style="min-width:9em">{text["ours"] or "-"}</td><td>{text["n"] or "-"}</td></tr>')


def _not_run(page: Page, jobs: Mapping[str, Job]) -> str:
    """That a notebook has not run, and which of its jobs failed."""
    why = [f"`{name}` failed: {html.escape(reason)}" for name, reason in graph.failed(jobs).items()
           if page.name in jobs[name].notebooks]
    return "*Not run.* " + "; ".join(why)


def _figure_part(found: list[Page], folder: Path) -> str:
    lines = ["## Figures", "", "Each figure links to its notebook and to the numbers behind it."]
    for page in found:
        there = [f for f in page.figures if (folder / f"{f.name}.png").exists()]
        if page.there and there:
            lines += ["", f"### {_linked(page)}", ""]
            lines += [_figure(page, figure, folder) for figure in there]
    return "\n".join(lines)


def _figure(page: Page, figure: Picture, folder: Path) -> str:
    name, heading, said = figure.name, html.escape(figure.heading), html.escape(figure.said)
    data = " · ".join(f'<a href="{t}.csv">{t}</a>' for t in figure.tables
                      if (folder / f"{t}.csv").exists())
    return (f'<figure><a href="{name}.png"><img src="{name}.png" alt="{heading}: {name}" '
            f'loading="lazy"></a><figcaption><strong>{heading}</strong> {said}<br>'
            f'<a href="{page.name}.html">{page.name}</a> · '
            f'<a href="{name}.pdf">{name}.pdf</a>{" · " + data if data else ""}'
            "</figcaption></figure>\n")


def ledger(found: list[Page], folder: Path, jobs: Mapping[str, Job], device: str) -> pd.DataFrame:
    """What each notebook's figures cost: its models, estimated and used, and itself.

    Hours of models are those of every job that it needs, on `device`; a model that several
    notebooks need is in each of their rows. Used are the jobs that are done, by their markers. The
    notebook's own minutes come from the benchmarks of the workflow; one run by hand has none.
    """
    done, rows = graph.done(jobs), []
    for page in found:
        path = folder / "executed" / f"{page.name}.tsv"
        cost = pd.read_csv(path, sep="\t").iloc[-1] if path.exists() else None
        state = "done" if page.there else "not run"
        if (folder / "executed" / f"{page.name}.failed.ipynb").exists():
            state = "failed"
        needed = [job for job in jobs.values() if page.name in job.notebooks]
        used = [done[job.name] for job in needed if job.name in done]
        measured = (math.nan,) * 3 if cost is None else (
            cost.s / 60, pd.to_numeric(cost.cpu_time, errors="coerce") / 60,
            pd.to_numeric(cost.max_rss, errors="coerce") / 1024)
        rows.append((page.name, state, graph.hours(needed, device),
                     *(sum(row[key] for row in used) / 60 if used else math.nan
                       for key in ("minutes", "CPU minutes")),
                     *measured, ", ".join(
                         figure.name for figure in page.figures
                         if not page.there or (folder / f"{figure.name}.png").exists())))
    return pd.DataFrame(rows, columns=["notebook", "state", "models, estimated hours",
                                       "used", "of which CPU hours", "notebook, minutes",
                                       "CPU minutes", "peak memory, GiB", "figures"])


def environment(profile: str) -> pd.DataFrame:
    """The machine and the versions that this page was built with."""
    commit = "unknown"
    with contextlib.suppress(OSError):  # no git
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                                capture_output=True, text=True).stdout.strip() or commit
    machine = f"{platform.machine()}, {claims.hardware()}"
    rows = {"profile": profile, "commit": commit, "machine": machine,
            "system": platform.platform(terse=True), "Python": platform.python_version()}
    rows |= {name: metadata.version(name) for name in ("torch", "torchvision", "diffusers",
                                                       "matplotlib", "numpy")}
    return pd.DataFrame(rows.items(), columns=["what", "value"])


def _table(table: pd.DataFrame) -> str:
    return WRAPPER.format(table.to_html(index=False, border=0, na_rep="-", classes=TABLE,
                                        justify="left",
                                        float_format="{:.1f}".format))


def _cost_part(found: list[Page], folder: Path, profile: Profile, jobs: Mapping[str, Job]) -> str:
    device = graph.kind_of(profile.device)
    text = (f"Hours of models are {graph.unit(device)}, estimated from the number of operations at "
            f"{graph.SPEED[device]:.0e} a second; *used* is what the jobs in this machine's store "
            "took. A notebook's own time is that of its last run, perhaps with a warm cache.")
    if profile.shipped:
        text += (" The models of this profile are shipped: their hours are what training and "
                 "sampling them again would take.")
        from paper_utils.jobs import build  # with every section's code

        jobs = build(replace(profile, shipped=False))
    return "\n\n".join(["## Cost", text, _table(ledger(found, folder, jobs, device))])


def _levels_part(folder: Path, profile: Profile) -> str:
    return ("## Levels of reproducibility\n\nHow far this run can be reproduced, checked when this "
            f"page was built.\n\n{_table(levels.table(profile, folder))}")


def front_page(profile: str, folder: Path) -> str:
    """index.md, in MyST Markdown."""
    found, jobs = pages(folder), graph.load(profile)
    listed = "\n".join(page.name for page in found if page.there)
    return "\n\n".join([
        f"# What was reproduced (profile {profile})",
        "The companion to *The Emergence of Reproducibility and Consistency in Diffusion Models* "
        "(Zhang, Zhou, Lu, Guo, Wang, Shen, Qu; ICML 2024).",
        _verdict_part(found, folder, jobs), _levels_part(folder, profiles.get(profile)),
        _figure_part(found, folder),
        _cost_part(found, folder, profiles.get(profile), jobs),
        "## Where it was built", _table(environment(profile)),
        f"```{{toctree}}\n:hidden:\n{listed}\n```"])


# --- the site -----------------------------------------------------------------------------------

def build(profile: str) -> Path:
    """Build figures/<profile>/report/ and return its front page; an old one is replaced at the end.

    Raises UserError where the profile has computed nothing, or the report extra is not installed.
    """
    folder = FIGURES / choose(profile, profiles.PROFILES, "profile")
    if not list(folder.glob("executed/0*.ipynb")):
        raise UserError(f"nothing was computed for the profile {profile}: make figures "
                        f"PROFILE={profile} first")
    with tempfile.TemporaryDirectory() as scratch:
        source, site = Path(scratch) / "source", Path(scratch) / "site"
        for part in ("extra", "style"):
            (source / part).mkdir(parents=True)
        (source / "style" / "tables.css").write_text(STYLE)
        for kind in ("fig_*.png", "fig_*.pdf", "tab_*.csv", "claims.json"):
            for path in folder.glob(kind):
                shutil.copy(path, source / "extra")
        for one in pages(folder):
            if one.there:
                shutil.copy(folder / "executed" / f"{one.name}.ipynb", source)
        (source / "index.md").write_text(front_page(profile, folder))
        _sphinx(source, site)
        _replace(folder / "report", site)
    return page(profile)


def page(profile: str) -> Path:
    """Where the front page of a profile's site is."""
    return FIGURES / profile / "report" / "index.html"


def _sphinx(source: Path, site: Path) -> None:
    try:
        from sphinx.cmd.build import build_main
    except ModuleNotFoundError:
        raise UserError("the report needs Sphinx and MyST-NB: make report installs them, or pip "
                        "install -e '.[report]'") from None
    settings = [f"-D{key}={value}" for key, value in SPHINX.items()]
    if build_main(["-q", "-C", *settings, str(source), str(site)]):
        raise UserError("Sphinx could not build the report; what it says is above")


def _replace(target: Path, site: Path) -> None:
    new, old = (target.with_name(f".report.{word}") for word in ("new", "old"))
    with files.locked(target):
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(site, new, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo"))
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; a user's mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m paper_utils.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    options = parser.parse_args(arguments)
    return exit_code(lambda: print(build(options.profile)))


if __name__ == "__main__":
    sys.exit(main())
