"""The notebooks: paired with their .py, executed headless, equal in source to their references.

`make test` also has nbval execute tests/references and compare the outputs, cell by cell.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.config import load_jupytext_config

from paper_utils import profiles, run
from paper_utils.paths import folder_name

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [*sorted((ROOT / "notebooks").glob("0*.ipynb")), ROOT / "notebooks" / "train.ipynb"]
REFERENCES = ROOT / "tests" / "references"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def as_script(path: Path) -> str:
    config = load_jupytext_config(str(path))
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["jupytext"] = {
        "notebook_metadata_filter": config.notebook_metadata_filter,
        "cell_metadata_filter": config.cell_metadata_filter,
    }
    return jupytext.writes(notebook, fmt="py:percent")


def sources(path: Path) -> list[tuple[str, str]]:
    """Type and source of each cell but the one that papermill injects."""
    cells = nbformat.read(path, as_version=4).cells
    own = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return [(cell.cell_type, cell.source) for cell in own]


@each_notebook
def test_the_script_is_the_notebook(path):
    script = path.with_suffix(".py")
    assert script.exists(), f"{script.name} is missing: make pair"
    assert script.read_text() == as_script(path), f"{path.name} and its .py differ: make pair"


@each_notebook
def test_every_size_that_a_notebook_takes_is_looked_at(path):
    code = "\n".join(source for kind, source in sources(path) if kind == "code")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)
             and ast.unparse(node.func) == "profiles.get"]
    given = {word.arg for call in calls for word in call.keywords}
    assert {*run.declared(path)} & {*profiles.SIZES} <= given


def test_a_script_that_differs_is_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    cell = nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"], "papermill": {}})
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"version": "9"}})
    nbformat.write(book, tmp_path / "x.ipynb")
    script = as_script(tmp_path / "x.ipynb")
    assert '# %% tags=["parameters"]\na = 1' in script and "papermill" not in script
    cell.source = "a = 2"
    nbformat.write(book, tmp_path / "x.ipynb")
    assert as_script(tmp_path / "x.ipynb") != script


@each_notebook
def test_the_parameters_are_ones_papermill_sees(path):
    import papermill

    declared = run.declared(path)
    assert "profile" in declared
    assert set(papermill.inspect_notebook(str(path))) == set(declared)


@each_notebook
def test_every_choice_stands_in_the_name_of_the_folder(path):
    """So that no run writes over what another one gave; where the runner puts the notebook, too."""
    declared = run.declared(path)
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    calls = [node for source in code for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.Output.of"]
    given = {word.arg: ast.unparse(word.value) for word in calls[0].keywords}
    assert list(given) == [name for name in declared if name not in ("profile", "device")]
    assert all(name == value for name, value in given.items())
    defaults = {name: declared[name].default for name in given}
    assert folder_name("x", **defaults) == ("x-model-edm" if path.stem == "train" else "x")


@pytest.mark.parametrize("name", ["00_start_here", "train"])
def test_a_notebook_runs_headless(name, tmp_path):
    """The shortest two: nbval executes every one, and test-slurm through papermill too."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    words = [sys.executable, "-m", "paper_utils.run", path, "--profile", "smoke"]
    output = tmp_path / path.name
    done = subprocess.run([*words, "--output", output], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    cells = [c for c in nbformat.read(output, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells if cell.source)


@pytest.mark.slow
def test_students_may_have_more_noises_than_the_models_of_section_2(tmp_path):
    path = ROOT / "notebooks" / "06_distillation.ipynb"
    assert profiles.get("smoke").noises < 40
    words = [sys.executable, "-m", "paper_utils.run", path, "--profile", "smoke"]
    words += ["-p", "grid_noises", "40", "--output", tmp_path / path.name]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    finally:
        shutil.rmtree(ROOT / "figures" / "smoke-grid_noises-40", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@each_notebook
def test_the_reference_has_the_source_of_the_notebook(path):
    reference = REFERENCES / path.name
    assert reference.exists(), f"no reference for {path.name}: make references"
    assert sources(reference) == sources(path), f"{path.name} has changed: make references"


@each_notebook
def test_the_reference_was_made_with_the_smoke_profile(path):
    found = nbformat.read(REFERENCES / path.name, as_version=4)
    injected = [c for c in found.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert [run.parameters(c.source)["profile"].default for c in injected] == ["smoke"]


@each_notebook
def test_every_figure_that_a_notebook_writes_is_shown_in_it(path):
    """Wherever in a cell it is drawn; what is drawn under a condition may be left out."""
    for cell in nbformat.read(REFERENCES / path.name, as_version=4).cells:
        drawn = cell.source.count("output.figure(")
        if cell.cell_type == "code" and drawn:
            shown = sum("image/png" in output.get("data", {}) for output in cell.outputs)
            conditional = any(line.startswith("    output.figure(")
                              for line in cell.source.splitlines())
            assert shown == drawn or conditional and not shown, cell.source


def test_no_reference_is_left_without_its_notebook():
    kept = {path.name for path in REFERENCES.glob("*.ipynb")}
    assert kept <= {path.name for path in NOTEBOOKS}
