"""The zoo: what is put in comes out, damage is named, and what ships is whole and reproducible."""

import json
import threading
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from paper_utils import conditional, data, files, models, recipes, samplers, tables, zoo
from paper_utils.errors import UserError
from paper_utils.noise import NoiseBank
from paper_utils.paths import cache_dir
from paper_utils.training import Spec

BANK = NoiseBank()
SHIPPED = (zoo.FOLDER / "zoo.toml").exists()
needs_zoo = pytest.mark.skipif(not SHIPPED, reason="zoo/zoo.toml is not there yet")


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8)


def weights() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {"layer.weight": torch.randn(40, 30, generator=rng), "count": torch.tensor(70_001),
            "small": torch.tensor([1e-6, -3e-5, 0.0]), "large": torch.tensor([7e5, -1.25])}


@pytest.fixture
def folder(tmp_path):
    zoo.add("a model", "diffusion", pictures(40), BANK, "by hand, 'quoted' \"twice\", 2σ",
            weights(), {"width": 8, "mult": [1, 2]}, folder=tmp_path)
    zoo.add("closed", "closed form", pictures(3, 2), BANK, "no weights", folder=tmp_path)
    return tmp_path


# --- the round trip -----------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 100])
def test_untiled_undoes_tiled(n):
    sheet = data.tiled(pictures(n))
    assert sheet.shape == (-(-n // 32) * 32, 1024, 3)
    found = data.untiled(sheet)
    assert torch.equal(found[:n], pictures(n)) and not found[n:].any()


def test_a_sheet_is_read_like_a_page():
    sheet = data.tiled(pictures(70))
    for k in (0, 1, 31, 32, 69):
        y, x = 32 * (k // 32), 32 * (k % 32)
        assert (sheet[y:y + 32, x:x + 32] == pictures(70)[k].permute(1, 2, 0).numpy()).all()


def test_a_sheet_comes_back_bit_for_bit(folder):
    assert torch.equal(zoo.entry("a model", folder).load_sheet(), pictures(40))
    assert torch.equal(zoo.entry("closed", folder).load_sheet(), pictures(3, 2))
    with Image.open(folder / "a-model.png") as image:
        assert image.text["bank"] == "bank-0-3x32x32" and image.text["noises"] == "0:40"


def test_a_sheet_of_a_conditional_model_has_every_class_of_a_noise(tmp_path):
    images = pictures(35).view(7, 5, 3, 32, 32)
    zoo.add("c", "guided", images, BANK, "", folder=tmp_path)
    row = zoo.entry("c", tmp_path)
    assert (row.noises, row.classes) == (7, 5)
    assert torch.equal(row.load_sheet(), images)


def test_weights_come_back_to_half_precision(folder):
    tensors, spec = zoo.entry("a model", folder).load_weights()
    assert spec == {"width": 8, "mult": [1, 2]} and tensors.keys() == weights().keys()
    for key, value in weights().items():
        assert tensors[key].dtype == value.dtype
        torch.testing.assert_close(tensors[key], value, rtol=2**-11, atol=2**-25)
    assert tensors["count"] == 70_001


def test_the_table_says_how_it_was_made(folder):
    row = tomllib.loads((folder / "zoo.toml").read_text())["a model"]
    assert row["made"] == "by hand, 'quoted' \"twice\", 2σ" and row["noises"] == 40
    assert row["weights_sha256"] == files.sha256(folder / row["weights"])
    assert list(zoo.entries(folder)) == ["a model", "closed"]


def test_any_words_may_say_how_it_was_made(tmp_path):
    made = 'two "cores", über Nacht \N{OWL}\\'
    zoo.add("a", "closed form", pictures(2), BANK, made, folder=tmp_path)
    assert zoo.entry("a", tmp_path).made == made


def test_many_added_in_a_row_are_all_kept(tmp_path):
    for k in range(20):
        zoo.add(f"m{k}", "closed form", pictures(1), BANK, "", folder=tmp_path)
        assert list(zoo.entries(tmp_path)) == [f"m{j}" for j in range(k + 1)]


def test_adding_again_replaces(folder):
    zoo.add("a model", "diffusion", pictures(5, 9), BANK, "anew", weights(), {}, folder=folder)
    row = zoo.entry("a model", folder)
    assert row.made == "anew" and torch.equal(row.load_sheet(), pictures(5, 9))
    assert list(zoo.entries(folder)) == ["a model", "closed"]


# --- damage -------------------------------------------------------------------------------------

def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage, words", [
    (flip_a_byte, "is damaged"), (truncate, "is damaged"), (lambda path: path.unlink(), "missing")])
@pytest.mark.parametrize("file, load", [("a-model.safetensors", "load_weights"),
                                        ("a-model.png", "load_sheet")])
def test_damage_is_named_with_its_cure(folder, file, load, damage, words):
    damage(folder / file)
    with pytest.raises(UserError, match=words) as failure:
        getattr(zoo.entry("a model", folder), load)()
    message = str(failure.value)
    assert str(folder / file) in message and "\n" not in message
    assert f"git checkout -- zoo/{file}" in message


def test_a_sheet_of_another_bank_is_refused(tmp_path):
    zoo.add("m", "closed form", pictures(1), NoiseBank(7), "", folder=tmp_path)
    table = (tmp_path / "zoo.toml").read_text().replace("bank-7", "bank-0")
    (tmp_path / "zoo.toml").write_text(table)
    with pytest.raises(UserError, match="is from bank-7"):
        zoo.entry("m", tmp_path).load_sheet()


@pytest.mark.parametrize("text", ["[half a tab", "x = 3", "[m]\nkind = 'diffusion'\n",
                                  "[m]\ninvented = 1\n", "\xff\xfe"])
def test_a_damaged_table_is_named(tmp_path, text):
    (tmp_path / "zoo.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="zoo.toml is damaged.*git checkout -- zoo/zoo.toml"):
        zoo.entries(tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match="zoo.toml is missing.*git checkout"):
        zoo.entry("edm", tmp_path)


def test_an_unknown_name_lists_the_names(folder):
    with pytest.raises(UserError, match="did you mean 'a model'.*a model, closed"):
        zoo.entry("a modl", folder)


# --- what ships ---------------------------------------------------------------------------------

# models for whose weights the zoo has no room: moments of training, other halves, a transformer
SHEETS_ALONE = {"dit-n64", *(f"unet-192-n{n}" for n in (64, 1024, 4096)), "unet-48-n16384",
                *(f"unet-{width}-n{n}" for width in (48, 96) for n in (128, 512, 2048, 8192)),
                *(f"scratch-n{n}{run}" for n in (64, 512) for run in ("", "-seed1")),
                *(f"unet-{width}-n{n}@{seen}" for width in (48, 96) for n in (64, 1024)
                  for seen in (50_000, 200_000, 800_000, 1_600_000)),
                *(f"unet-48-n{n}-half1" for n in (64, 256, 1024, 4096, 16384)),
                "unet-48-n64-seed1", "unet-48-n512-seed1", "scratch-n16-seed1"}
each_folder = pytest.mark.parametrize("folder", zoo.FOLDERS, ids=lambda f: f.name)


@needs_zoo
@each_folder
def test_every_shipped_file_is_the_one_of_the_table(folder):
    for row in zoo.entries(folder).values():
        assert files.sha256(folder / row.sheet) == row.sheet_sha256, row.name
        assert row.made and row.bank == BANK.name
        assert row.weights or row.kind in ("closed form", "guided", "restored") \
            or row.name in SHEETS_ALONE
        if row.weights:
            assert files.sha256(folder / row.weights) == row.weights_sha256, row.name


@needs_zoo
@pytest.mark.skipif(not (cache_dir() / "cifar10_train.npz").exists(),
                    reason="CIFAR-10 is not in the cache")
def test_the_sheets_of_a_class_gaussian_are_those_of_the_code(tmp_path, monkeypatch):
    """Notebook 03 takes them as they are, for ten Gaussians are minutes."""
    images = data.load("cifar10")
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    guided = conditional.guided_gaussian(images, 2.0)
    own = samplers.sample_gaussian(models.gaussian(images.classes(0, 0)), BANK[:1], guided.solver)
    sheets = {name: zoo.entry(name, zoo.CONDITIONAL).load_sheet()[:1]
              for name in (conditional.GAUSSIAN, guided.name)}
    for made, sheet in ((own, sheets[conditional.GAUSSIAN][:, 0]),
                        (guided.generate(BANK[:1]), sheets[guided.name])):
        gap = (data.to_bytes(made).short() - sheet.short()).abs().float().mean()
        assert gap < tables.LIVE_TOLERANCE / 10


@needs_zoo
def test_the_zoo_is_small_and_holds_nothing_unnamed():
    files = [path for path in zoo.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300e6
    named = {folder / name for folder in zoo.FOLDERS
             for row in zoo.entries(folder).values() for name in (row.sheet, row.weights)}
    binary = {path for path in files if path.suffix not in (".toml", ".md", ".csv")}
    assert binary - named <= {zoo.FOLDER / "descriptor.safetensors"}


@needs_zoo
@each_folder
def test_shipped_weights_are_finite(folder):
    for row in zoo.entries(folder).values():
        tensors = row.load_weights()[0] if row.weights else {}
        odd = [name for name, value in tensors.items() if not value.isfinite().all()]
        assert not odd, f"{row.name}: {odd}"


@needs_zoo
@pytest.mark.parametrize("folder, noises", [(zoo.FOLDER, 512), (zoo.REGIMES, 256),
                                            (zoo.CONDITIONAL, 128), (zoo.FINE_TUNING, 128)])
def test_shipped_sheets_hold_different_images(folder, noises):
    for row in zoo.entries(folder).values():
        sheet = row.load_sheet()
        assert len(sheet) == row.noises >= noises, row.name
        distinct = {image.numpy().tobytes() for image in sheet.flatten(0, -4)}
        assert len(distinct) > 100, row.name
        assert np.std(sheet.numpy()) > 10, row.name


@needs_zoo
def test_the_shipped_cells_are_of_the_laptop_grid_and_its_subsets():
    specs = recipes.regime_specs("laptop")
    for row in zoo.entries(zoo.REGIMES).values():
        values = row.load_spec()
        mine = Spec.from_json(specs[row.name].to_json())
        assert Spec.from_json(json.dumps(values)) == mine and len(row.subset) == 16, row.name


@needs_zoo
@pytest.mark.parametrize("folder, specs", [
    (zoo.CONDITIONAL, recipes.conditional_specs("laptop")),
    (zoo.FINE_TUNING, recipes.fine_tuning_specs("laptop")),
    (zoo.DISTILLATION, recipes.distillation_specs("laptop"))],
    ids=["conditional", "fine_tuning", "distillation"])
def test_every_model_of_section_4_ships(folder, specs):
    rows = {name: row for name, row in zoo.entries(folder).items() if row.kind == "diffusion"}
    assert set(rows) == set(specs)
    for name, row in rows.items():
        values = row.load_spec()
        assert Spec.from_json(json.dumps(values)) == Spec.from_json(specs[name].to_json()), name
        assert row.classes == (10 if folder == zoo.CONDITIONAL else 0) and row.subset


@needs_zoo
def test_guided_sheets_are_of_the_weights_that_ship():
    rows = zoo.entries(zoo.CONDITIONAL)
    guided = {name: row for name, row in rows.items() if row.kind == "guided"}
    assert len(guided) == 4 * 4
    for name, row in guided.items():
        assert row.start == rows[name.split("@")[0]].weights_sha256, name


@needs_zoo
@pytest.mark.slow
@pytest.mark.parametrize("folder, name", [
    (zoo.CONDITIONAL, "edm-cond"), (zoo.FINE_TUNING, "attention-n16"),
    (zoo.FINE_TUNING, "low-rank-n16-other"), (zoo.FINE_TUNING, "scratch-n16"),
    (zoo.DISTILLATION, "progressive-8"), (zoo.DISTILLATION, "ct")])
def test_shipped_models_of_section_4_reproduce_their_sheet(folder, name):
    sheet = zoo.entry(name, folder).load_sheet()
    tables.check_sheets({name: models.shipped(name, folder)}, {name: sheet}, live=1)


@needs_zoo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet-48-n64", "unet-96-n64", "unet-192-n32768", "dit-n32768"])
def test_shipped_cells_reproduce_their_sheet(name):
    sheet = zoo.entry(name, zoo.REGIMES).load_sheet()
    tables.check_sheets({name: models.shipped(name, zoo.REGIMES)}, {name: sheet}, live=2)


@needs_zoo
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, row in (zoo.entries() if SHIPPED else {}).items()
                                  if row.weights])
def test_shipped_weights_reproduce_their_sheet(name):
    model = models.shipped(name)
    sheet = zoo.entry(name).load_sheet()
    tables.check_sheets({name: model}, {name: sheet}, live=2)
    with pytest.raises(UserError, match=f"{name} do not reproduce"):
        tables.check_sheets({name: model}, {name: sheet.roll(1, 0)}, live=1)


def test_two_that_add_at_once_both_stay(tmp_path, waits):
    """The second waits with its row until the first has written its own."""
    samples = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    more = ("closed form", samples, NoiseBank(), "a test")
    threads = [threading.Thread(target=zoo.add, args=(name, *more), kwargs={"folder": tmp_path})
               for name in ("a", "b")]
    with files.locked(tmp_path / "zoo.toml"):
        threads[0].start()
        assert waits.wait(60) and not (tmp_path / "zoo.toml").exists()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert set(zoo.entries(tmp_path)) == {"a", "b"}
