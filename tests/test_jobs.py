"""The graph of a profile: what trains what, what it costs, and that a job leaves what is needed."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from paper_utils import (artifacts, conditional, contrast, data, distillation, files, fine_tuning,
                         graph, jobs, local_score, models, profiles, recipes, reconstructions,
                         regimes, samplers, students, training)
from paper_utils.errors import UserError
from paper_utils.graph import Job


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", "off")
    return tmp_path


@pytest.fixture(scope="module", params=["smoke", "laptop", "gpu", "paper"])
def built(request):
    """The laptop's as if nothing shipped, as the report counts them."""
    profile = replace(profiles.get(request.param), shipped=False)
    return profile, jobs.build(profile)


# --- the graph ----------------------------------------------------------------------------------

def test_every_model_is_trained_once_and_sampled_for_its_notebooks(built):
    profile, found = built
    trained = [name for job in found.values() if job.kind == "train" for name in job.models]
    specs = recipes.every_spec(profile.name)
    passed = {name for spec in specs.values() for name in recipes.prefixes(spec, specs).values()}
    assert sorted(trained) == sorted({*specs, *recipes.contrast_specs(profile.name)} - passed)
    sampled = [(job.section, name) for job in found.values() if job.kind == "sample"
               for name in job.models]
    assert sorted(sampled) == sorted((section, name) for section, study in jobs.STUDIES.items()
                                     for name in study.sampled(profile))


def test_a_job_stands_after_all_that_its_models_start_from(built):
    profile, found = built
    specs, there = recipes.every_spec(profile.name), set()
    longest = {short: name for name in sorted(specs, key=lambda name: specs[name].steps)
               for short in recipes.prefixes(specs[name], specs).values()}
    for job in found.values():
        assert set(job.after) <= set(found)
        before = {name for other in job.after for name in found[other].models}
        starts = {specs[name].start for name in job.models if name in specs} - {""}
        if job.kind == "train":
            assert starts <= before | there | set(job.models)
            there |= set(job.models)
        else:
            assert {longest.get(name, name) for name in job.models} <= before
    order = list(found)
    assert all(order.index(other) < order.index(name)
               for name, job in found.items() for other in job.after)


def test_a_notebook_waits_for_all_that_it_takes(built):
    profile, found = built

    def models_of(notebook, kind):
        return {name for job in found.values() if notebook in job.notebooks and job.kind == kind
                for name in job.models}

    assert models_of("04_inverse_problems", "sample") == set(profile.families)
    trained = models_of("04_inverse_problems", "train")
    assert trained >= set(profile.families)  # with what shares a job with them
    assert trained == set(profile.families) or profile.name != "paper"
    assert {*models.ONE_STEP, "teacher", "gan-8" if profile.name == "smoke" else "gan-32"} <= (
        models_of("01_unconditional", "train"))
    assert {*recipes.specs(profile.name)} < models_of("03_conditional", "train")
    assert {"base", "base-seed1"} < models_of("05_fine_tuning", "train")
    assert {*profile.families, "ict"} < models_of("06_distillation", "train")
    small = {job.name for job in found.values() if job.notebooks == ("02_two_regimes",)}
    assert small and not any(small & set(job.after) for job in found.values()
                             if job.name not in small)


def test_small_tasks_share_a_job_and_large_ones_do_not(built):
    profile, found = built
    for _, part in groupby(found.values(), lambda job: (job.kind, job.section)):
        *whole, _ = part  # what is left over at the end of a section may be short
        assert all(job.minutes(jobs.kind_of(profile.device)) >= jobs.SHORTEST for job in whole)
    if profile.name == "paper":
        assert all(len(job.models) == 1 for job in found.values()
                   if job.kind == "train" and not job.models[0].startswith(("gan", "vae")))
        assert 250 < len(found) < 500
    if profile.name == "smoke":
        assert len(found) == 11  # a training and a sampling a section; the inverse trains nothing


@pytest.mark.parametrize(("profile", "column"), [("gpu", 5), ("paper", 6)])
def test_the_hours_that_the_tour_names_are_those_of_the_graph(profile, column):
    text = (Path(__file__).resolve().parents[1] / "notebooks" / "00_start_here.py").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("# | `0")]
    said = {row[1].strip(" `"): int(row[column].strip(" h")) for row in rows}
    found = {name: sum(job.minutes("cuda") for job in jobs.build(profiles.get(profile)).values()
                       if name in job.notebooks) / 60 for name in said}
    assert len(said) == 6 and said == {name: round(hours) for name, hours in found.items()}


def test_the_laptop_profile_has_no_jobs():
    assert jobs.build(profiles.get("laptop")) == {}


def test_the_key_changes_with_what_the_job_makes_and_with_nothing_else(monkeypatch):
    smoke = profiles.get("smoke")
    keys = {name: job.key for name, job in jobs.build(smoke).items()}
    assert keys == {name: job.key for name, job in jobs.build(smoke).items()}
    more = {name: job.key for name, job in jobs.build(replace(smoke, noises=33)).items()}
    assert {name for name in keys if keys[name] != more[name]} == {
        name for name in keys if name.startswith("sample")}
    grid = replace(recipes.GRIDS["smoke"], budget=1024)
    monkeypatch.setitem(recipes.GRIDS, "smoke", grid)
    longer = {name: job.key for name, job in jobs.build(smoke).items()}
    assert {name for name in keys if keys[name] != longer[name]} == {
        "train-two_regimes-group-1", "sample-two_regimes-group-1"}


@pytest.mark.parametrize("module", [local_score, samplers, distillation, contrast, reconstructions])
def test_the_key_changes_with_the_code_that_makes_something(monkeypatch, module):
    before = jobs._code()
    known = artifacts.code_version
    monkeypatch.setattr(artifacts, "code_version", lambda *modules: known(*modules) + "*" * (
        module in modules))
    assert jobs._code() != before


# --- what it costs ------------------------------------------------------------------------------

def test_operations_are_those_of_a_closed_form():
    """One more block of a transformer: its products of matrices and its attention."""
    spec = training.Spec("dit", "dit", dict(patch=8, dim=32, depth=1, heads=1))
    one, _, size = jobs.cost(spec)
    two, _, larger = jobs.cost(replace(spec, network_args=spec.network_args | {"depth": 2}))
    tokens, dim = 16, 32
    block = 2 * tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim)  # qkv, projection, mlp
    block += 2 * 2 * tokens**2 * dim                                      # attention
    block += 2 * dim * 6 * dim                                            # modulation
    assert two - one == block
    assert (larger - size) * 2**30 / 4 == 18 * dim**2 + 15 * dim  # with the biases


def test_a_multistage_network_costs_as_much_as_the_one_an_image_passes():
    found = recipes.specs("smoke")
    assert jobs.cost(found["multistage"])[0] == jobs.cost(found["edm"])[0]


def test_the_attention_of_every_decoder_block_is_counted():
    spec = recipes.specs("smoke")["ddpm-vp"]
    fewer = replace(spec, network_args=spec.network_args | {"decoder_attention": "last"})
    assert jobs.cost(fewer)[0] < jobs.cost(spec)[0]


def test_costs_grow_with_budget_and_width(built):
    profile, found = built
    specs = recipes.every_spec(profile.name)
    wide = recipes.GRIDS[profile.name].widths
    narrow, wider = (specs[f"unet-{w}-n{recipes.GRIDS[profile.name].images[0]}"]
                     for w in (wide[0], wide[2]))
    assert 2 < jobs.cost(wider)[0] / jobs.cost(narrow)[0] < 16.5
    if profile.name == "paper":
        edm = found["train-edm"]
        expected = 3 * jobs.cost(specs["edm"])[0] * 50_000_000
        assert edm.flops == expected and edm.minutes("cuda") == expected / 4e13 / 60
        assert edm.limit("cuda") >= 3 * edm.minutes("cuda")
        assert edm.limit("cuda", attempt=2) == 2 * edm.limit("cuda")
        assert edm.limit("cuda", attempt=2, longest=1440) == 1440
        assert edm.limit("cuda", longest=10**6) == edm.limit("cuda")
        assert edm.memory_mb("cpu") > edm.memory_mb("cuda")
        assert found["train-cd"].flops == pytest.approx(5 / 3 * expected)


# --- shares -------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2, 5])
def test_shares_are_disjoint_complete_and_about_equal(built, n):
    profile, found = built
    parts = [graph.share(found, f"{k}/{n}", ready=False) for k in range(1, n + 1)]
    assert sorted(name for part in parts for name in part) == sorted(found)
    hours = [sum(found[name].flops for name in part) for part in parts]
    assert max(hours) - min(hours) <= max(job.flops for job in found.values())


def test_what_needs_another_share_waits_for_its_marker():
    known = {name: Job(name, "train", "unconditional", (name,), after, (), flops, 0, "k")
             for name, after, flops in (("a", (), 2.0), ("b", ("a",), 1.0), ("c", ("b",), 0.5))}
    assert graph.share(known, "1/2", ready=False) == ["a"]
    assert graph.share(known, "2/2", ready=False) == ["b", "c"]
    assert graph.share(known, "2/2") == []
    files.replace_file(known["a"].marker, b"{}")
    assert graph.share(known, "2/2") == ["b", "c"]


@pytest.mark.parametrize("text", ["", "3/2", "0/2", "half", "1/2/3", "-1/2", "1/0"])
def test_another_share_is_refused(text):
    with pytest.raises(UserError, match="shard .* is none: give '2/8'"):
        graph.share({}, text)


# --- the graph that is kept ---------------------------------------------------------------------

def test_the_graph_is_kept_until_the_package_changes(monkeypatch, tmp_path):
    first = graph.load("smoke")
    assert first["train-conditional-group-1"].models[0] == "edm-cond"
    monkeypatch.setattr(jobs, "build", lambda profile: pytest.fail("counted again"))
    kept = graph.load("smoke")
    assert [job.marker for job in kept.values()] == [job.marker for job in first.values()]
    monkeypatch.setattr(jobs, "build", lambda profile: {})
    source = tmp_path / "source"
    source.mkdir()
    (source / "new.py").write_text("x = 1")
    monkeypatch.setattr(graph, "__file__", str(source / "graph.py"))
    assert graph.load("smoke") == {}


def test_an_unknown_profile_is_named():
    with pytest.raises(UserError, match="unknown profile 'smoky': did you mean 'smoke'"):
        graph.load("smoky")


# --- running ------------------------------------------------------------------------------------

TINY = dict(images_seen=64, batch=32, warmup=32, ema_half_life=32)


@pytest.fixture
def tiny(monkeypatch):
    """The smoke profile with next to no training and two of each kind of model."""
    whole = recipes.every_spec("smoke")
    for name, wanted in {"specs": ("edm", "dit"), "conditional_specs": ("edm-cond",),
                         "regime_specs": ("unet-8-n4", "unet-8-n4@256"),
                         "fine_tuning_specs": ("base", "attention-n4"),
                         "distillation_specs": ("teacher", "progressive-4")}.items():
        some = {k: replace(whole[k], **TINY) for k in wanted}
        if name == "regime_specs":
            some["unet-8-n4@256"] = replace(some["unet-8-n4@256"], images_seen=32)
        monkeypatch.setattr(recipes, name, lambda profile, *_, some=some: dict(some))
    return replace(profiles.get("smoke"), noises=3, grid_noises=3, class_noises=2, measured=2,
                   guided_steps=2, transfer_noises=3, live=1, families=("edm", "dit"))


AS_THE_NOTEBOOK = {
    "two_regimes": lambda p, images: regimes.samples(regimes.trained(p, images), p),
    "conditional": lambda p, images: conditional.guided_samples(
        found := conditional.trained(p, images), conditional.samples(found, p), p),
    "inverse": lambda p, images: reconstructions.restored(
        models.by_name(p.families, p, images), reconstructions.PROBLEMS,
        reconstructions.held_out(p), p),
    "fine_tuning": lambda p, images: fine_tuning.samples(fine_tuning.trained(p), p),
    "distillation": lambda p, images: (
        found := models.distilled(p, images), students.samples(students.runs(found, p), p),
        students.sheets(found, p)),
}


@pytest.mark.parametrize("section", AS_THE_NOTEBOOK)
def test_a_notebook_finds_all_that_it_takes(tiny, section, monkeypatch):
    study = jobs.STUDIES[section]
    own = [name for name in study.specs(tiny.name) if "@" not in name] or list(tiny.families)
    jobs.run("train", section, own, tiny, "cpu")
    jobs.run("sample", section, study.sampled(tiny), tiny, "cpu")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(data, "to_bytes", lambda *_: pytest.fail("sampled again"))
    AS_THE_NOTEBOOK[section](tiny, data.load("bundled"))


def test_a_run_passes_through_the_shorter_one_that_would_be_trained(tiny, monkeypatch, store):
    def weights():
        found = jobs.run("sample", "two_regimes", ["unet-8-n4@256"], tiny, "cpu")
        return found["unet-8-n4@256"].denoiser().network.state_dict()

    jobs.run("train", "two_regimes", ["unet-8-n4"], tiny, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
        passed = weights()
    for path in (store / "artifacts").glob("model-*"):
        path.unlink()
    trained = weights()
    assert all(torch.equal(passed[k], trained[k]) for k in trained)


def run_command(*words):
    return jobs.main([*map(str, words), "--section", "unconditional", "--profile", "smoke"])


def test_the_command_marks_what_is_done(store, capsys):
    marker = store / "jobs" / "train-gan-8-abc.json"
    assert run_command("train", "gan-8", "--marker", marker) == 0
    said = json.loads(marker.read_text())
    assert said["models"] == ["gan-8"] and said["device"] == "CPU" and said["minutes"] > 0
    assert said["CPU minutes"] > 0
    assert [path.name for path in (store / "artifacts").glob("contrast*.safetensors")] == (
        said["weights"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["train-gan-8", "started"] and lines[-1].startswith("train-gan-8")


@pytest.mark.parametrize(("words", "said"), [
    (["train", "gan-9"], "unknown model 'gan-9': did you mean 'gan-8'"),
    (["train", "gan-8", "--device", "cuda"], "no CUDA GPU"),
])
def test_a_mistake_is_one_line_and_leaves_no_marker(store, words, said, capsys):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    marker = store / "jobs" / "x-y.json"
    assert run_command(*words, "--marker", marker) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not marker.exists()


def test_a_marker_of_one_word_is_named(tmp_path, capsys):
    assert run_command("train", "gan-9", "--marker", tmp_path / "m") == 2
    assert capsys.readouterr().out.split() == ["m", "started"]


def test_a_model_of_another_section_is_refused(capsys):
    words = ["sample", "gan-8", "--section", "inverse", "--profile", "smoke"]
    assert jobs.main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "unknown model of section inverse 'gan-8'" in said[0]
