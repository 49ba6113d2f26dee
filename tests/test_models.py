"""Models: samples are computed once and per noise, training goes on, wrong weights are refused."""

import importlib
import itertools
import re
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from paper_utils import artifacts, contrast, data, denoisers, models, networks, noise, precision
from paper_utils import profiles, recipes, tables, training, zoo
from paper_utils.errors import UserError
from paper_utils.models import Model
from paper_utils.noise import NoiseBank
from paper_utils.samplers import Solver
from paper_utils.training import Spec

pytestmark = pytest.mark.usefixtures("cache")

BANK = NoiseBank()
TINY = Spec("tiny", "unet", dict(width=8, channel_mult=(1, 1), blocks=1, attention=(8,), patch=2),
            images=16, images_seen=48, batch=8, warmup=1, solver=Solver("heun", 4))


@pytest.fixture(scope="module")
def images():
    return data.load("bundled").first(16)


def fake(name: str = "fake", shift: float = 0.0, **identity) -> Model:
    """A model whose image is its noise; it notes how many noises it was given."""
    calls = []

    def generate(noise, progress=""):
        calls.append(len(noise))
        return (noise / 5 + shift).clamp(-1, 1)

    model = Model(name, "U-Net", "fake", "fake", "none", 1, 0, 1, 1,
                  {"fake": name, "shift": shift} | identity, generate)
    object.__setattr__(model, "calls", calls)
    return model


def perturbed(module: nn.Module) -> nn.Module:
    """Every weight away from its initial value: no layer is zero."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return module.eval()


# --- a denoiser of one's own --------------------------------------------------------------------

def test_a_denoiser_of_mine_is_a_model_whose_samples_are_kept():
    network = perturbed(training.build(TINY))
    mine = models.from_denoiser("mine", network, Solver("heun", 3))
    assert torch.equal(models.samples(mine, 2), data.to_bytes(
        models.samplers.sample(network, BANK[:2], Solver("heun", 3))))
    other = models.from_denoiser("mine", perturbed(perturbed(training.build(TINY))),
                                 Solver("heun", 3))
    assert not torch.equal(models.samples(mine, 2), models.samples(other, 2))
    assert mine.trained_diffusion and not replace(mine, family="closed form").trained_diffusion
    again = models.resolved(mine, Solver("heun", 2))
    assert again.identity != mine.identity and again.evaluations == 3


@pytest.mark.parametrize("one, other", [
    [denoisers.discrete(torch.linspace(0.99, 0.01, 20), kind)
     for kind in ("epsilon", "v_prediction")],
    [denoisers.framework(name) for name in ("edm", "ve")]], ids=["discrete", "named"])
def test_one_network_in_two_frameworks_is_two_models(one, other):
    network = perturbed(training.build(TINY)).network
    first, second = (models.from_denoiser("mine", denoisers.Preconditioned(network, kind).eval(),
                                          Solver("heun", 2)) for kind in (one, other))
    assert first.identity != second.identity
    assert not torch.equal(models.samples(first, 1), models.samples(second, 1))


class Foreign(nn.Module):
    """A network whose class no hash of weights tells."""

    def forward(self, x, noise_label, labels=None):
        return x


def test_a_network_class_of_mine_says_by_its_version_that_it_changed():
    whole = denoisers.Preconditioned(Foreign(), denoisers.edm()).eval()
    inside = denoisers.Preconditioned(training.build(TINY).network, denoisers.edm()).eval()
    inside.network.extra = Foreign()
    for mine in (whole, inside):
        with pytest.raises(UserError, match="nothing says when this class changes: give a version"):
            models.from_denoiser("mine", mine)
        assert models.from_denoiser("mine", mine, version="1").family == "yours"


def test_a_denoiser_of_mine_may_join_a_family():
    mine = models.from_denoiser("mine", perturbed(training.build(TINY)), family="transformer")
    assert mine.family == "transformer" and mine.trained_diffusion


def test_a_conditional_denoiser_of_mine_is_given_its_class():
    args = TINY.network_args | {"num_classes": 4}
    whole = perturbed(training.build(replace(TINY, network_args=args)))
    with pytest.raises(UserError, match="mine is class-conditional: give one class of it"):
        models.from_denoiser("mine", whole)
    one = models.from_denoiser("mine", lambda u, sigma: whole(u, sigma, torch.full((len(u),), 3)),
                               Solver("euler", 2), version="1")
    assert torch.equal(models.samples(one, 2), data.to_bytes(models.samplers.sample(
        whole, BANK[:2], Solver("euler", 2), labels=[3, 3])))


def test_a_solver_by_name_and_samples_of_a_denoiser_are_refused():
    network = perturbed(training.build(TINY))
    with pytest.raises(UserError, match="a solver is a samplers.Solver.*not 'heun'"):
        models.from_denoiser("mine", network, "heun")
    with pytest.raises(UserError, match="not of a Preconditioned: make one by models.from_denoise"):
        models.samples(network, 2)


class Scaled(nn.Module):
    """Its factor is a plain attribute, which no state_dict has."""

    def forward(self, u, sigma, labels=None):
        return self.factor * u


@pytest.mark.parametrize("mine, kind", [(lambda u, sigma: u, "function"),
                                        (Scaled().eval(), "module")])
def test_what_is_mine_says_by_its_version_that_it_changed(mine, kind):
    with pytest.raises(UserError, match=f"nothing says when this {kind} changes: give a version"):
        models.from_denoiser("mine", mine)
    known = models.from_denoiser("mine", mine, version="1")
    assert known.identity != models.from_denoiser("mine", mine, version="2").identity


def test_a_module_of_mine_is_sampled_where_it_is(monkeypatch):
    monkeypatch.setattr(artifacts, "digest", lambda tensors: "")  # a meta tensor has no numbers
    class Flat(nn.Linear):
        def forward(self, u, sigma, labels=None):
            return super().forward(u)

    with torch.device("meta"):
        mine = Flat(32, 32).eval()
    assert models.from_denoiser("mine", Scaled().eval(), version="1").device == "cpu"
    assert models.from_denoiser("mine", mine, version="1").device == torch.device("meta")


def test_a_function_of_mine_is_sampled_in_its_version_and_shape():
    dark, bright = (models.from_denoiser("mine", lambda u, sigma, value=value: u * 0 + value,
                                         version=version, shape=(1, 4, 4))
                    for value, version in ((-1, "1"), (1, "2")))
    assert models.samples(dark, 2).unique().tolist() == [0]
    assert models.samples(bright, 2).unique().tolist() == [255]
    assert models.samples(dark, 2).shape == (2, 1, 4, 4)


# --- samples ------------------------------------------------------------------------------------

def test_samples_are_computed_once():
    model = fake()
    first = models.samples(model, 6)
    assert first.shape == (6, 3, 32, 32) and first.dtype == torch.uint8
    assert torch.equal(models.samples(model, 6), first)
    assert torch.equal(models.samples(fake(), 6), first)
    assert model.calls == [6]


def test_samples_of_other_noises_and_models_are_others():
    model = fake()
    first = models.samples(model, 4)
    assert torch.equal(models.samples(model, 2, start=2), first[2:])
    assert torch.equal(models.samples(model, 3, start=1), first[1:])
    assert torch.equal(models.samples(model, 3), first[:3])
    assert not torch.equal(models.samples(fake(shift=0.1), 4), first)
    assert model.calls == [4, 2, 3, 3]


def test_damaged_samples_are_generated_again(cache):
    model = fake()
    first = models.samples(model, 4)
    [path] = (cache / "artifacts").glob("samples-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(models.samples(model, 4), first)
    assert model.calls == [4, 4]


def test_the_plane_holds_the_corners():
    model = fake()
    corners, points = models.hyperplane_samples(model, grid=5)
    assert torch.equal(corners, models.samples(model, 3))
    assert points.shape == (25, 3, 32, 32)
    for row, corner in {(1, 1): 0, (1, 3): 1, (3, 1): 2}.items():  # (beta, alpha) in steps of 1/2
        gap = points[row[0] * 5 + row[1]].short() - corners[corner].short()
        assert gap.abs().max() <= 1
    models.hyperplane_samples(model, grid=5)
    assert model.calls == [28, 3]


def test_the_samples_of_a_gan_are_of_its_code(monkeypatch):
    """What draws its latents and its images counts, too."""
    of, seen = artifacts.code_version, []
    monkeypatch.setattr(artifacts, "code_version", lambda *parts: seen.append(parts) or of(*parts))
    models.contrast_model("gan", contrast.Spec("gan", 4, 8), contrast.build("gan", 4), "hash", 16)
    assert {*seen[0]} == {contrast, noise, data, precision}


@pytest.mark.parametrize("network, args", [
    ("unet", TINY.network_args), ("unet", networks.NCSNPP | TINY.network_args),
    ("dit", dict(patch=8, dim=16, depth=1, heads=2)),
    ("uvit", dict(patch=8, dim=16, depth=2, heads=2)),
])
def test_a_sample_does_not_depend_on_its_batch(network, args):
    spec = replace(TINY, network=network, network_args=args)
    model = models.diffusion(spec, perturbed(training.build(spec)), "hash")
    together = model.generate(BANK[:5])
    apart = torch.cat([model.generate(BANK[:1]), model.generate(BANK[1:5])])
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_gan_sample_does_not_depend_on_its_batch():
    network = perturbed(contrast.build("gan", 4))
    model = models.contrast_model("gan", contrast.Spec("gan", 4, 8), network, "hash", 16)
    apart = torch.cat([model.generate(BANK[k:k + 1]) for k in range(4)])
    torch.testing.assert_close(apart, model.generate(BANK[:4]), atol=1e-5, rtol=1e-4)
    assert not model.trained_diffusion


def test_the_optimal_denoiser_lands_on_training_images(images):
    optimal = models.closed_forms(images, bag=64)["optimal"]
    found = models.samples(optimal, 4)
    gaps = (found[:, None].short() - images.pixels[None].short()).abs().flatten(2).amax(2)
    assert gaps.amin(1).max() <= 1 and optimal.family == "closed form"


def test_closed_forms_of_other_images_are_other_models(images):
    other = data.load("bundled").half(1, 16)
    one = models.closed_forms(images, 64)
    assert one.keys() == set(models.CLOSED_FORMS)
    for second in (images, other):
        two = models.closed_forms(second, 64)
        assert all((one[k].identity == two[k].identity) is (second is images) for k in one)
    bags = [models.closed_forms(images, bag)["local"].identity for bag in (64, 128)]
    assert bags[0] != bags[1]


@pytest.mark.parametrize("network, args, told", [
    ("unet", {}, "unet 256-256-256"),
    ("unet", {"patch": 2, "width": 8, "channel_mult": (1,)}, "unet 8, 2x2 patches"),
    ("multistage", {"boundaries": (0.5,), "width": 8}, "multistage 16-16-16"),
    ("uvit", {}, "uvit, 512 wide, 12 deep, patch 2"),
    ("dit", {"depth": 1}, "dit, 384 wide, 1 deep, patch 2"),
    ("mlp", {"channels": 12}, "perceptron, width 256"),
    ("diffusers_unet", {"sample_size": 32}, "UNet2DModel 224-448-672-896")])
def test_an_architecture_is_told_where_its_network_has_defaults(network, args, told):
    with torch.device("meta"):
        built = networks.build(network, **args)
    denoiser = denoisers.Preconditioned(built, denoisers.framework("edm"))
    spec = replace(TINY, network=network, network_args=args)
    model = models.diffusion(spec, denoiser, "hash")
    family = {"uvit": "transformer", "dit": "transformer", "mlp": "perceptron"}
    assert (model.architecture, model.family) == (told, family.get(network, "U-Net"))
    assert model.trained_diffusion


# --- sheets ---------------------------------------------------------------------------------------

def test_shipped_sheets_are_used_as_far_as_they_reach(tmp_path, monkeypatch):
    folder = tmp_path / "zoo"
    sheet = models.samples(fake(), 5) + 1
    zoo.add("sheet", "diffusion", sheet, BANK, "by hand", folder=folder)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    pair = {"sheet": fake("sheet"), "other": fake("other")}
    laptop = profiles.get("laptop", noises=4)
    found = models.all_samples(pair, laptop)
    assert torch.equal(found["sheet"], sheet[:4]) and pair["sheet"].calls == []
    assert found["other"].shape == (4, 3, 32, 32) and pair["other"].calls == [4]
    longer = models.all_samples(pair, profiles.get("laptop", noises=6))
    assert all(len(images) == 6 for images in longer.values())
    assert torch.equal(longer["sheet"][:5], sheet) and pair["sheet"].calls == [6]
    assert torch.equal(longer["sheet"][5:], longer["other"][5:])


def test_section_2_of_the_profile_that_ships_its_models():
    found = models.unconditional(profiles.get("laptop"), data.load("cifar10"))
    families = {model.family for model in found.values()}
    assert families == {"U-Net", "transformer", "closed form", "GAN", "VAE"}
    assert list(found)[0] == "ddpm-vp" and {*models.ONE_STEP, *models.CLOSED_FORMS} <= {*found}
    assert all(model.denoiser for model in found.values() if model.trained_diffusion)


# --- weights ------------------------------------------------------------------------------------

def test_weights_are_loaded():
    network, source = nn.Linear(3, 2), nn.Linear(3, 2)
    networks.load_into(network, source.state_dict(), "weights.safetensors")
    assert torch.equal(network.weight, source.weight)


@pytest.mark.parametrize("tensors, first", [
    ({"weight": torch.zeros(2, 3)}, "bias"),
    ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}, "extra"),
    ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "weight"),
    ({"a.weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, "a.weight"),
])
def test_weights_of_another_architecture_are_refused(tensors, first):
    with pytest.raises(UserError, match=rf"another architecture.*Linear.*: {first}\)") as failure:
        networks.load_into(nn.Linear(3, 2), tensors, "zoo/edm.safetensors")
    assert "zoo/edm.safetensors" in str(failure.value) and "\n" not in str(failure.value)


def test_the_zoo_gives_back_the_model_that_was_put_in(tmp_path):
    folder, network = tmp_path / "zoo", perturbed(training.build(TINY))
    made = models.diffusion(TINY, network, "hash")
    zoo.add("tiny", "diffusion", data.to_bytes(made.generate(BANK[:2])), BANK, "here",
            network.network.state_dict(), {**vars(TINY), "solver": vars(TINY.solver)}, folder)
    again = models.shipped("tiny", folder)
    assert (again.architecture, again.evaluations, again.parameters, again.images_seen) == (
        made.architecture, 7, networks.count_parameters(network), 48)
    sheet = zoo.entry("tiny", folder).load_sheet()
    tables.check_sheets({"tiny": again}, {"tiny": sheet}, live=2)


# --- training on the spot -----------------------------------------------------------------------

def weights_of(model: Model) -> torch.Tensor:
    return model.generate(BANK[:2])


def test_a_model_is_trained_once(images, monkeypatch):
    first, losses = models.train(TINY, images)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    again, losses_again = models.train(TINY, images)
    assert again.identity == first.identity and torch.equal(losses_again, losses)
    assert losses.shape == (TINY.steps,) and losses.isfinite().all()
    assert torch.equal(weights_of(again), weights_of(first))


def test_a_conditional_model_of_other_labels_is_another(images):
    spec = replace(TINY, network_args=TINY.network_args | {"num_classes": 10}, images_seen=16)
    other = replace(images, labels=9 - images.labels)
    first, second = (models.train(spec, part)[0] for part in (images, other))
    assert first.identity != second.identity
    plain = [models.train(replace(TINY, images_seen=16), part)[0] for part in (images, other)]
    assert plain[0].identity == plain[1].identity  # it never sees them


def test_a_model_of_images_of_another_size_takes_noises_of_theirs(images):
    small = replace(images, pixels=images.pixels[..., ::2, ::2].contiguous(), name="small")
    spec = replace(TINY, network_args=TINY.network_args | {"image_size": 16}, images_seen=8)
    found = {"tiny": models.train(spec, small)[0]} | models.closed_forms(small, 1)
    assert [models.samples(model, 1).shape for model in found.values()] == 4 * [(1, 3, 16, 16)]


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, size: float = 1.0):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x, noise_label, labels=None):
        return torch.relu(self.layer(x))
"""


def test_an_architecture_of_ones_own_is_trained_again_when_its_source_changes(
        images, tmp_path, monkeypatch):
    """Its source is a part of the key of the store."""
    monkeypatch.syspath_prepend(tmp_path)
    found, spec = [], Spec("mine", "mine", images=16, images_seen=16, batch=8, warmup=1)
    for text in (OWN, OWN, OWN.replace("relu", "tanh")):
        (tmp_path / "my_network.py").write_text(text)
        sys.modules.pop("my_network", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        module = importlib.import_module("my_network")
        monkeypatch.setitem(networks.ARCHITECTURES, "mine", module.Net)
        found.append(models.train(spec, images)[0])
    assert found[0].identity == found[1].identity != found[2].identity
    assert (found[0].architecture, found[0].family) == ("mine", "other")
    assert found[0].trained_diffusion


def test_a_part_of_ones_network_from_another_file_is_in_the_key_too(images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found, spec = [], Spec("mine", "mine", images=16, images_seen=16, batch=8, warmup=1)
    (tmp_path / "my_whole.py").write_text("from my_part import Net\n\n\nclass Whole(Net):\n"
                                          "    def __init__(self):\n        super().__init__()\n"
                                          "        self.part = Net()\n")
    for text in (OWN, OWN.replace("relu", "tanh")):
        (tmp_path / "my_part.py").write_text(text)
        for name in ("my_part", "my_whole"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        whole = importlib.import_module("my_whole").Whole
        monkeypatch.setitem(networks.ARCHITECTURES, "mine", whole)
        found.append(models.train(spec, images)[0])
    assert found[0].identity != found[1].identity


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = (nn.Conv2d(3, 3, 1) for _ in range(2))
        self.last.weight = self.first.weight

    def forward(self, x, noise_label, labels=None):
        return self.last(self.first(x).relu())


def test_tied_weights_train_and_go_on_as_one(images, tmp_path, monkeypatch):
    monkeypatch.setitem(networks.ARCHITECTURES, "tied", Tied)
    spec = Spec("tied", "tied", images=16, images_seen=48, batch=8, warmup=1)
    straight = models.train(spec, images)[0].denoiser().network
    assert torch.equal(straight.first.weight, straight.last.weight)
    for run in training.train(spec, images, tmp_path / "run"):
        if run.step == 3:
            training.save_checkpoint(run, tmp_path / "run")
            break
    for run in training.train(spec, images, tmp_path / "run"):
        pass
    assert torch.equal(run.ema.network.first.weight, straight.first.weight)
    assert run.ema.network.first.weight is run.ema.network.last.weight


def test_of_a_script_only_the_network_is_in_the_key(images, tmp_path, monkeypatch):
    """A change of another line of the script does not train again."""
    found, spec = [], Spec("mine", "mine", images=16, images_seen=16, batch=8, warmup=1)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    for k, text in enumerate((OWN, OWN + "\nprint\n", OWN.replace("relu", "tanh"))):
        main.__file__ = str(tmp_path / f"script{k}.py")
        (tmp_path / f"script{k}.py").write_text(text)
        exec(compile(text, main.__file__, "exec"), main.__dict__)
        monkeypatch.setitem(networks.ARCHITECTURES, "mine", main.Net)
        found.append(models.train(spec, images)[0])
    assert found[0].identity == found[1].identity != found[2].identity


def test_a_network_of_ones_own_trains_as_the_readme_says(images, tmp_path, monkeypatch):
    """On few images, with two steps."""
    text = (data.BUNDLED.parents[2] / "README.md").read_text()
    code = re.search(r"(?m)^    from dataclasses import replace$(\n|    .*|\n)+", text)[0]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_network.py").write_text(OWN)
    edm = replace(recipes.specs("laptop")["edm"], images=16, images_seen=16, batch=8,
                  solver=Solver("euler", 1))
    monkeypatch.setattr(recipes, "specs", lambda profile: {"edm": edm})
    monkeypatch.setattr(data, "load", lambda name: images)
    monkeypatch.setattr(networks, "ARCHITECTURES", dict(networks.ARCHITECTURES))
    space = {"MyNetwork": importlib.import_module("a_network").Net}
    exec("\n".join(line[4:] for line in code.splitlines()), space)
    assert space["model"].architecture == "mine" and len(space["losses"]) == 2
    assert space["images"].shape == (512, 3, 32, 32)


@pytest.mark.parametrize("wrong, words", [
    ({"network": "unte"}, "unknown network 'unte': did you mean 'unet'"),
    ({"framework": "edn-consistency"}, "unknown framework 'edn': did you mean 'edm'")])
def test_a_misspelt_network_or_framework_is_not_trained(images, wrong, words):
    with pytest.raises(UserError, match=words):
        models.train(replace(TINY, **wrong), images)


def test_an_architecture_without_a_source_is_not_kept(images, monkeypatch):
    space: dict = {"__name__": "nowhere"}
    exec(OWN, space)
    monkeypatch.setitem(networks.ARCHITECTURES, "mine", space["Net"])
    with pytest.raises(UserError, match="source of Net cannot be read.*training.train"):
        models.train(Spec("mine", "mine", images=16, images_seen=16, batch=8), images)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_killed_training_goes_on(images, cache, monkeypatch, stop):
    """Killed after `stop` of 6 steps, the last just before its weights are stored."""
    clock, steps, train = itertools.count(0, 61), [], training.train

    def killed(*arguments):
        for run in train(*arguments):
            yield run
            steps.append(run.step)
            if run.step == stop and len(steps) == stop:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", killed)
    monkeypatch.setattr(models, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(KeyboardInterrupt):
        models.train(TINY, images)
    model, _ = models.train(TINY, images)
    assert steps == [*range(1, stop + 1), *range(min(stop, 5) + 1, 7)]
    assert not list((cache / "artifacts").glob("*.checkpoint"))
    for run in train(TINY, images):
        pass
    straight = models.diffusion(TINY, run.ema.to(memory_format=torch.contiguous_format), "hash")
    assert torch.equal(weights_of(model), weights_of(straight))


@pytest.mark.parametrize("kind", ["diffusion", "gan"])
def test_a_checkpoint_stays_until_its_successor_is_written(images, cache, monkeypatch, kind):
    spec = contrast.Spec("gan", 4, 24, batch=8)
    train = {"diffusion": lambda: models.train(TINY, images),
             "gan": lambda: models.train_contrast("gan-4", spec, images)}[kind]

    def full_disk(*_):
        raise UserError("No space left")

    monkeypatch.setattr(models, "SAVED", -1.0)
    with monkeypatch.context() as full:
        full.setattr(artifacts, "write", full_disk)
        with pytest.raises(UserError, match="No space left"):
            train()
    assert list((cache / "artifacts").glob("*.checkpoint"))
    train()
    assert not list((cache / "artifacts").glob("*.checkpoint*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_cuda_is_refused_where_there_is_none(images, cache):
    with pytest.raises(UserError, match="device='cpu'"):
        models.train(TINY, images, device="cuda")
    with pytest.raises(UserError, match="device='cpu'"):
        models.shipped("edm", device="cuda")
    with pytest.raises(UserError, match="device='cpu'"):
        models.closed_forms(images, 16, "cuda")
    assert not cache.exists()


def test_a_contrast_model_is_trained_once(images, monkeypatch):
    spec = contrast.Spec("vae", 4, 16, batch=8)
    first = models.train_contrast("vae-4", spec, images)
    monkeypatch.setattr(contrast, "train", lambda *_: pytest.fail("trained again"))
    assert torch.equal(weights_of(models.train_contrast("vae-4", spec, images)), weights_of(first))
    assert first.family == "VAE" and first.images == 16


def test_a_killed_contrast_training_goes_on(images, cache, monkeypatch):
    spec, descend = contrast.Spec("gan", 4, 24, batch=8), contrast._Bench.descend
    straight = models.train_contrast("gan-4", spec, images.first(12))
    calls = []

    def killed(bench, name, loss):
        calls.append(name)
        if len(calls) == 5:  # in the third step
            raise KeyboardInterrupt
        descend(bench, name, loss)

    monkeypatch.setattr(contrast._Bench, "descend", killed)
    monkeypatch.setattr(models, "SAVED", 0.0)
    with pytest.raises(KeyboardInterrupt):
        models.train_contrast("gan-4", spec, images)
    kept, = (cache / "artifacts").glob("*.checkpoint*")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    with pytest.warns(UserWarning, match="training gan-4 from the start"):
        with pytest.raises(ZeroDivisionError):
            with pytest.MonkeyPatch.context() as broken:
                broken.setattr(contrast._Bench, "descend", lambda *_: 1 / 0)
                models.train_contrast("gan-4", spec, images)
    kept.write_bytes(whole)
    model = models.train_contrast("gan-4", spec, images)
    assert len(calls) == 7 and not list((cache / "artifacts").glob("*.checkpoint*"))
    for state in contrast.train(spec, images):
        pass
    direct = models.contrast_model("", spec, contrast.trained(spec, state), "", 16)
    assert torch.equal(weights_of(model), weights_of(direct))
    assert not torch.equal(weights_of(model), weights_of(straight))  # of other images


def test_weights_come_from_any_file_of_this_project(images, tmp_path):
    """A checkpoint gives its averaged weights, the store and the zoo theirs."""
    for run in training.train(TINY, images):
        pass
    average = run.ema.network.state_dict()
    training.save_checkpoint(run, tmp_path / "run.safetensors")
    zoo.add("tiny", "diffusion", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), BANK, "", average,
            {}, tmp_path)
    stored = {f"network.{k}": v for k, v in average.items()} | {"loss": torch.zeros(3)}
    artifacts.write(tmp_path / "store.safetensors", stored, {})
    for name in ("run", "tiny", "store"):
        found = models.weights_of(tmp_path / f"{name}.safetensors")
        assert found.keys() == average.keys()
        assert all(torch.allclose(found[k], average[k], rtol=1e-3, atol=1e-6) for k in found)
    for foreign in ("v2", "[1]", '{"framework": "torch"}', '{"spec": "v2"}', '{"spec": null}',
                    '{"framework": "torch", "network": "a", "solver": "heun"}'):
        artifacts.write(tmp_path / "foreign.safetensors", average, {"spec": foreign})
        assert models.weights_of(tmp_path / "foreign.safetensors", TINY).keys() == average.keys()
    with pytest.raises(UserError, match="there is no .*nowhere.safetensors: give"):
        models.weights_of(tmp_path / "nowhere.safetensors")


def test_a_student_takes_the_network_of_whatever_teacher(images):
    """The file of the store, at the place that is said, has all that a student needs."""
    teacher = models.train(replace(TINY, framework="v"), images)[0]
    students = recipes.distillation_specs("smoke")
    for name, framework in (("cd", "v-consistency"), ("progressive-2", "v")):
        spec = replace(students[name], images=16, images_seen=16, batch=8)
        mine = models.student_of(recipes.variant(spec, "teacher"), models.kept_at(teacher))
        assert mine.is_recorded_as(vars(mine) | {
            "network": "unet", "network_args": TINY.network_args, "framework": framework,
            "solver": vars(mine.solver)})
        assert mine.objective == spec.objective and mine.solver == spec.solver
        weights = models.weights_of(models.kept_at(teacher).name, mine)
        assert models.train(mine, images, start=weights)[0].spec.start == "teacher"


def test_who_is_no_student_and_an_unknown_teacher_change_nothing(images, tmp_path):
    student = recipes.distillation_specs("smoke")["cd"]
    artifacts.write(tmp_path / "foreign.safetensors", {"a": torch.ones(1)}, {})
    assert models.student_of(student, tmp_path / "foreign.safetensors") == student
    teacher = models.train(TINY, images)[0]
    assert models.student_of(TINY, models.kept_at(teacher)) == TINY
    with pytest.raises(UserError, match="there is no runs/x, neither from .* nor from the root"):
        models.weights_of("runs/x")


def test_fine_tuning_of_one_model_is_stored_under_its_start(images):
    spec = replace(TINY, name="tuned", start="tiny", trains="low-rank")
    start = training.build(TINY).network.state_dict()
    first, _ = models.train(spec, images, start=start)
    other, _ = models.train(spec, images, start={k: v + 0.01 for k, v in start.items()})
    again, _ = models.train(spec, images, start=start)
    assert again.identity == first.identity != other.identity
    assert torch.equal(weights_of(again), weights_of(first))


def test_another_training_begins_with_the_weights_of_a_low_rank_one(images, cache):
    tuned = replace(TINY, name="tuned", start="tiny", trains="low-rank")
    last = replace(TINY, name="last", start="tuned", trains="last")
    found = models.train_all({"tiny": TINY, "tuned": tuned, "last": last}, images)
    start = models.weights_of(cache / "artifacts" / f"{found['tuned'].identity['weights']}"
                              ".safetensors")
    assert start.keys() == training.build(TINY).network.state_dict().keys()
    again, _ = models.train(last, images, start=start)
    assert torch.equal(weights_of(again), weights_of(found["last"]))
    for run in training.train(tuned, images, start=models.train(TINY, images)[0].denoiser()
                              .network.state_dict()):
        pass
    training.save_checkpoint(run, cache / "run.safetensors")
    found = models.weights_of(cache / "run.safetensors")
    assert all(torch.equal(found[name], value) for name, value in start.items())


def test_a_conditional_model_is_shown_a_row_a_class():
    one = replace(fake("m"), classes=(0, 3))
    rows = models.rows_to_show(one, torch.arange(8).view(4, 2, 1, 1, 1))
    assert list(rows) == ["m, airplane", "m, cat"]
    assert rows["m, cat"].flatten().tolist() == [1, 3, 5, 7]
    assert list(models.rows_to_show(fake("m"), torch.zeros(2))) == ["m"]
    many = replace(fake("m"), classes=(0, 42))
    assert list(models.rows_to_show(many, torch.zeros(4, 2))) == ["m, class 0", "m, class 42"]
