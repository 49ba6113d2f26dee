"""Training: its order, its losses against their native forms, exact resume, refused checkpoints."""

import errno
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paper_utils import data, denoisers, networks, noise, precision, recipes, training
from paper_utils.denoisers import Preconditioned
from paper_utils.errors import UserError
from paper_utils.samplers import Solver
from paper_utils.training import Spec, Training, batch_rows, denoising_loss, train

TINY = Spec("tiny", "unet", dict(width=8, channel_mult=(1, 1), blocks=1, attention=(8,), patch=2,
                                 dropout=0.1), images=24, images_seen=49, batch=7, warmup=20,
            ema_half_life=30)


@pytest.fixture(scope="module")
def images():
    return data.load("bundled").first(24)


def finish(spec, images, checkpoint=None):
    """The state at the end of a run, copied; the global generator is disturbed at every step."""
    for run in train(spec, images, checkpoint):
        torch.rand(3)
    return {k: v.clone() for k, v in run.state_dict().items()}


def use_cpu(monkeypatch, capability):
    """Let torch say that the CPU has these vector instructions."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def stop_at(step, spec, images, checkpoint):
    """Train until `step` and leave a checkpoint, as a killed process would."""
    for run in train(spec, images, checkpoint):
        if run.step == step:
            training.save_checkpoint(run, checkpoint)
            return run


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [k for k in a if a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])]
    assert not different


# --- order and randomness -----------------------------------------------------------------------

@pytest.mark.parametrize("n, batch", [(10, 4), (10, 10), (10, 25), (7, 3), (1, 3)])
def test_every_epoch_shows_every_image_once(n, batch):
    rows = torch.cat([batch_rows("run", step, batch, n) for step in range(3 * n)])
    epochs = rows[:len(rows) // n * n].view(-1, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand_as(epochs))
    assert n < 7 or len({tuple(e) for e in epochs.tolist()}) > len(epochs) // 2


def test_the_order_is_that_of_the_run_and_of_nothing_else():
    def order(run):
        return [batch_rows(run, step, 8, 100).tolist() for step in range(5)]

    first = order("a/0")
    torch.manual_seed(99)
    assert order("a/0") == first and order("a/1") != first
    assert batch_rows("a/0", 4, 8, 100).tolist() == first[4]


def test_a_batch_is_made_of_unit_noise_spread_levels_and_the_images_labels(images):
    spec = replace(TINY, batch=24, network_args=TINY.network_args | {"num_classes": 10})
    run = Training(spec, images)
    found = []
    for run.step in range(3):
        rows, batch = batch_rows(spec.run, run.step, 24, 24), run._draw()
        assert torch.equal(batch.labels, images.labels[rows])
        assert torch.equal(batch.clean, data.to_unit(images.pixels[rows]))
        assert batch.eps.std().item() == pytest.approx(1, abs=0.03)
        assert abs(batch.eps.mean().item()) < 0.02
        level = batch.quantile.sort().values  # one in every 24th, all shifted by one random number
        assert ((24 * level).floor() == torch.arange(24)).all()
        found.append(24 * level[0].item())
    assert len(set(found)) == 3 and max(found) - min(found) > 0.05


def test_global_generators_are_left_alone(images):
    state = torch.get_rng_state()
    training.build(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    run = Training(TINY, images)
    run.advance()
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_streams_share_a_key(images, monkeypatch):
    """Initialisation, each epoch's order, each step's noise and each step's dropout."""
    keys, seed_of = [], noise.seed_of

    def noted(*key):
        keys.append(key)
        return seed_of(*key)

    monkeypatch.setattr(noise, "seed_of", noted)
    training._permutation.cache_clear()
    run = Training(TINY, images)
    built = len(keys)
    for _ in range(3):
        run.advance()
    assert len(set(keys[:built])) == 1  # the weights and their average begin as the same
    drawn = keys[built:]
    assert len(set(drawn)) == len(drawn) == 2 * 3 + 1 and not set(drawn) & set(keys[:built])


def test_a_model_is_initialised_by_its_own_seed(images):
    torch.manual_seed(1)
    first = training.build(TINY).state_dict()
    torch.manual_seed(2)
    assert_same(first, training.build(TINY).state_dict())
    other = training.build(replace(TINY, seed=1)).state_dict()
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_warm_up_is_linear_and_the_budget_is_kept(images):
    rates, seen = [], []
    for run in train(TINY, images):
        rates.append(run.optimizer.param_groups[0]["lr"])
        seen.append(run.images_seen)
    assert rates == pytest.approx([1e-3 * min(7 * k / 20, 1) for k in range(1, 8)])
    assert seen[-1] == 49 == TINY.images_seen and len(seen) == TINY.steps


def test_the_average_is_that_of_the_weights(images):
    """Half-life min(30, 5 % of what was seen), written out for one parameter."""
    weights, name = [], "network.out.weight"
    for run in train(TINY, images):
        name = name if name in run.state_dict() else next(
            k for k, v in run.state_dict().items() if k.startswith("network.") and v.ndim == 4)
        weights.append(run.state_dict()[name].clone())
    average = training.build(TINY).state_dict()[name]
    for step, value in enumerate(weights, 1):
        keep = 0.5 ** (7 / min(30, 0.05 * 7 * step))
        average = keep * average + (1 - keep) * value
    torch.testing.assert_close(run.state_dict()["ema" + name.removeprefix("network")], average)


class Normed(nn.Module):
    """A network of one's own whose batch norm keeps statistics, in buffers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))

    def forward(self, x, noise_label, labels=None):
        return self.layers(x)


@pytest.mark.parametrize("how", [{}, dict(
    framework="edm-consistency", objective="ct", objective_args={"curriculum": 20},
    solver=Solver("consistency", 2))], ids=["denoising", "consistency"])
def test_averages_have_the_statistics_of_batch_norm(images, monkeypatch, how):
    monkeypatch.setitem(networks.ARCHITECTURES, "normed", Normed)
    spec = replace(TINY, network="normed", network_args={}, **how)
    run = Training(spec, images)
    run.advance()
    run.advance()
    for follower in filter(None, (run.ema, run.objective.target)):
        norm, own = follower.network.layers[0], run.denoiser.network.layers[0]
        assert int(norm.num_batches_tracked) == int(own.num_batches_tracked) > 1
        assert torch.equal(norm.running_var, own.running_var) and (own.running_var != 1).all()
    assert (run.objective.target is not None) == bool(how)


@pytest.mark.parametrize("spec", {
    (spec.network, str(spec.network_args)): spec for spec in recipes.every_spec("smoke").values()
}.values(), ids=lambda spec: spec.name)
def test_no_buffer_of_a_network_changes_in_training(spec):
    """The average of the weights does not look at them: both have the constants of one seed."""
    network = training.build(spec).network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    labels = torch.zeros(2, dtype=torch.int64) if network.num_classes else None
    network(torch.randn(2, 3, 32, 32), torch.zeros(2), labels)
    again = dict(training.build(spec).network.named_buffers())
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]) and torch.equal(value, again[name])


@pytest.mark.parametrize(("wrong", "said"), [
    (dict(precision="bfloat16"), "unknown precision 'bfloat16': did you mean"),
    (dict(half=2), "half=2 of tiny: give 0 or 1"),
    (dict(batch=0), "batch=0 of tiny: give a whole number above 0"),
    (dict(batch=7.0), "batch=7.0 of tiny: give a whole"), (dict(batch=None), "batch=None of tiny"),
    (dict(images="24"), "images='24' of tiny"), (dict(warmup="1"), "warmup='1' of tiny: give 0"),
    (dict(learning_rate="1e-3"), "learning_rate='1e-3' of tiny: give a number above 0"),
    (dict(warmup=-1), "warmup=-1 of tiny: give 0"), (dict(trains=""), "trains='' of tiny.*'all'"),
    (dict(images_seen=0), "images_seen=0 of tiny"), (dict(learning_rate=-1.0), "learning_rate=-1")])
def test_a_specification_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        replace(TINY, **wrong)


def test_a_consistency_function_does_not_learn_by_denoising(images):
    with pytest.raises(UserError, match="no say at sigma_min: give it an objective"):
        next(train(replace(TINY, framework="edm-consistency"), images))


# --- losses against their native forms ----------------------------------------------------------

class Dummy(nn.Module):
    """A network that depends on the image and on its noise label, smoothly."""

    num_classes = 0

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1).double()

    def forward(self, x, noise_label, labels=None):
        return torch.tanh(self.mix(x)) * (1 + 0.1 * torch.sin(noise_label)[:, None, None, None])


def process(name: str, t):
    """(scale, std, noise label) of x_t = scale x0 + std eps, as each method's paper has them."""
    integral = 0.1 * t + 19.9 * t**2 / 2  # of beta: score-SDE's linear schedule
    if name == "vp":
        return torch.exp(-integral / 2), torch.sqrt(1 - torch.exp(-integral)), 999 * t
    if name == "subvp":
        return torch.exp(-integral / 2), 1 - torch.exp(-integral), 999 * t
    if name == "vp-discrete":
        k = (t * 1000).long()
        bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[k]
        return bar.sqrt(), (1 - bar).sqrt(), k.double()
    if name in ("v", "x0"):
        return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2), 999 * t
    sigma = 0.02 * 5000**t
    if name == "ve":
        return torch.ones_like(t), sigma, (sigma / 2).log()
    scale = 1 / (sigma**2 + 0.25).sqrt()
    return scale, sigma * scale, sigma.log() / 4


def target(name: str, x0, eps, scale, std):
    """What the network is regressed on, with weight one everywhere."""
    if name in ("vp", "vp-discrete", "subvp"):
        return eps
    if name == "ve":  # the network is sigma times the score
        return -eps
    if name == "x0":
        return x0
    if name == "v":
        return scale * eps - std * x0
    sigma = std / scale  # Karras et al. 2022, eq. 8: (x0 - c_skip u) / c_out
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    return (x0 - skip * (x0 + sigma * eps)) / out


@pytest.mark.parametrize("name", denoisers.FRAMEWORKS)
def test_the_loss_is_the_native_one(name):
    rng, network, kind = torch.Generator().manual_seed(3), Dummy(), denoisers.framework(name)
    x0 = torch.rand(6, 3, 8, 8, generator=rng, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x0.shape, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.03, 0.1, 0.3, 0.5, 0.8, 0.97]).double().view(6, 1, 1, 1)
    scale, std, label = process(name.removesuffix("-f"), t)
    error = network(scale * x0 + std * eps, label.flatten()) - target(name, x0, eps, scale, std)
    sigma = (std / scale).flatten()
    for rows in [*torch.arange(6).split(1), torch.arange(6)]:  # each noise level, then all
        found = denoising_loss(Preconditioned(network, kind), kind, x0[rows], sigma[rows],
                               eps[rows])
        torch.testing.assert_close(found, (error[rows] ** 2).mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["edm", "vp", "v", "ve-f"])
def test_the_loss_falls_on_four_images(images, name):
    spec = replace(TINY, framework=name, images=4, batch=8, images_seen=8 * 60, warmup=1,
                   learning_rate=4e-3, network_args=TINY.network_args | {"dropout": 0.0})
    kind, clean = denoisers.framework(name), data.to_unit(images.pixels[:4]).repeat(16, 1, 1, 1)
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sigma = kind.noise_level(torch.linspace(0.01, 0.99, 64))

    def loss(denoiser):
        with torch.no_grad():
            return denoising_loss(denoiser, kind, clean, sigma, eps)

    before = loss(training.build(spec))
    for run in train(spec, images.first(4)):
        assert run.loss.isfinite()
    assert loss(run.denoiser) < 0.85 * before and loss(run.ema) < 0.95 * before


def test_the_loss_on_four_images_approaches_the_closed_form_optimum(images):
    """Theorem 1: nothing has a lower loss than the optimal denoiser; training comes near it."""
    pixels = data.to_unit(images.pixels[:4, :, ::8, ::8]).reshape(4, -1, 1, 1)
    four = data.Images(pixels, torch.zeros(4, dtype=torch.int64), "four")
    spec = Spec("four", "mlp", dict(channels=48, width=128, depth=2), "edm", images=4, batch=64,
                images_seen=64 * 2000, warmup=640, ema_half_life=3200, learning_rate=2e-3)
    kind, optimum = denoisers.framework("edm"), denoisers.OptimalDenoiser(pixels)
    eps = torch.randn(1024, 48, 1, 1, generator=torch.Generator().manual_seed(0))

    def loss(denoiser, sigma):
        sigmas = torch.full((1024,), sigma)
        with torch.no_grad():
            return denoising_loss(denoiser, kind, pixels.repeat(256, 1, 1, 1), sigmas, eps).item()

    for run in train(spec, four):
        pass
    for sigma in (0.3, 0.5, 1.0, 2.0):  # levels that training often sees
        best, ours = loss(lambda u, s, labels: optimum(u, s), sigma), loss(run.ema, sigma)
        before = loss(training.build(spec), sigma)
        assert best <= ours * (1 + 1e-4)
        assert ours - best < 0.1 * (before - best), (sigma, best, ours, before)


# --- precision ----------------------------------------------------------------------------------

def test_a_cpu_that_would_emulate_bf16_trains_in_float32_and_says_so(images, monkeypatch):
    half = replace(TINY, precision="bf16")
    straight = finish(TINY, images)
    use_cpu(monkeypatch, "AVX512")
    rounded = finish(half, images)
    assert not all(torch.equal(rounded[k], straight[k]) for k in straight)
    use_cpu(monkeypatch, "AVX2")
    with pytest.warns(UserWarning, match="would emulate bfloat16.*computing in float32"):
        assert_same(finish(half, images), straight)


@pytest.mark.parametrize("device, capability, there", [
    ("cpu", "AVX512", True), ("cpu", "SVE256", True), ("cpu", "AVX2", False),
    ("cpu", "DEFAULT", False), ("cuda", "AVX2", True), ("cuda", "AVX512", False)])
def test_bf16_where_the_device_has_it(monkeypatch, device, capability, there):
    """A GPU before Ampere emulates it, which torch calls supported unless it is asked."""
    use_cpu(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation or there)
    assert precision.has_bf16(device) == there
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        precision.bf16(device)
    name = "CPU" if device == "cpu" else "GPU"
    ours = [str(one.message) for one in told if "would emulate" in str(one.message)]
    assert len(ours) == (not there)  # torch warns, too, of a GPU that is not there
    assert all(f"this {name} would emulate bfloat16" in said for said in ours)


TORCH = torch.backends
SETTINGS = {"old": (TORCH.cuda.matmul, "allow_tf32", True),
            "old, convolutions": (TORCH.cudnn, "allow_tf32", False),
            "products": (TORCH.cuda.matmul, "fp32_precision", "tf32"),
            "convolutions": (TORCH.cudnn.conv, "fp32_precision", "ieee"),
            "cudnn": (TORCH.cudnn, "fp32_precision", "tf32"),
            "all": (TORCH, "fp32_precision", "tf32"), "none": (TORCH, "fp32_precision", "ieee")}


@pytest.fixture(params=SETTINGS)
def set_before(request):
    """What a user may have set before, by either way of torch."""
    places = TORCH, TORCH.cudnn, TORCH.cuda.matmul, TORCH.cudnn.conv, TORCH.cudnn.rnn
    before = [place.fp32_precision for place in places]
    where, name, value = SETTINGS[request.param]
    setattr(where, name, value)
    TORCH.cudnn.benchmark = True
    yield
    TORCH.cuda.matmul.allow_tf32, TORCH.cudnn.allow_tf32 = False, True
    TORCH.cudnn.benchmark = False
    for place, value in zip(places, before):
        place.fp32_precision = value


def test_exact_is_without_tf32_and_gives_back_what_was_set(set_before):
    def found():
        return (TORCH.cuda.matmul.fp32_precision, TORCH.cudnn.conv.fp32_precision,
                TORCH.cudnn.benchmark, TORCH.cudnn.deterministic, TORCH.fp32_precision)

    before, inside = found(), ("ieee", "ieee", False, True, TORCH.fp32_precision)
    assert before[2:4] == (True, False)
    with precision.exact():
        assert found() == inside
    assert found() == before
    decorated = precision.exact()(found)
    assert [decorated(), decorated()] == 2 * [inside]
    with pytest.raises(ZeroDivisionError):
        with precision.exact():
            1 / 0
    assert found() == before


# --- resume -------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stopped_run_ends_with_the_same_bits(images, tmp_path, monkeypatch, precision):
    use_cpu(monkeypatch, "AVX512")
    spec = replace(TINY, precision=precision)
    straight = finish(spec, images)
    for k, step in enumerate(random.Random(0).sample(range(1, 7), 2)):
        stop_at(step, spec, images, tmp_path / f"{k}")
        assert_same(finish(spec, images, tmp_path / f"{k}"), straight)


def test_twenty_kills_leave_the_same_bits(images, tmp_path):
    """Each process dies at a random step, most of them long after its last checkpoint."""
    spec, checkpoint = replace(TINY, images_seen=7 * 60), tmp_path / "checkpoint"
    dice = random.Random(20)
    for step in sorted(dice.sample(range(1, 60), 20)):
        saved = dice.random()
        for run in train(spec, images, checkpoint):
            if run.step == step - round(3 * saved):
                training.save_checkpoint(run, checkpoint)
            if run.step >= step:
                break
    assert_same(finish(spec, images, checkpoint), finish(spec, images))


def test_a_run_is_a_prefix_of_a_longer_one(images):
    longer = replace(TINY, images_seen=2 * TINY.images_seen)
    for run in train(longer, images):
        if run.step == TINY.steps:
            break
    assert_same(run.state_dict(), finish(TINY, images))


def test_a_run_stopped_at_every_step_ends_with_the_same_bits(images, tmp_path):
    for step in range(1, 7):
        run = stop_at(step, TINY, images, tmp_path / "checkpoint")
        assert run.step == step
    assert_same(finish(TINY, images, tmp_path / "checkpoint"), finish(TINY, images))


def test_a_finished_run_does_not_go_on(images, tmp_path):
    stop_at(7, TINY, images, tmp_path / "checkpoint")
    assert list(train(TINY, images, tmp_path / "checkpoint")) == []


def _train_and_save(spec, images, checkpoint):
    for run in train(spec, images, checkpoint):
        training.save_checkpoint(run, checkpoint)


def test_a_killed_process_goes_on_with_the_same_bits(images, tmp_path):
    spec, checkpoint = replace(TINY, images_seen=7 * 15), tmp_path / "checkpoint"
    worker = multiprocessing.get_context("fork").Process(target=_train_and_save,
                                                         args=(spec, images, checkpoint))
    worker.start()
    while not checkpoint.exists() and worker.is_alive():
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0, 0.3))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert checkpoint.exists()
    assert_same(finish(spec, images, checkpoint), finish(spec, images))


def test_a_full_disk_keeps_the_last_checkpoint(images, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    run = stop_at(2, TINY, images, checkpoint)
    left = checkpoint.read_bytes()
    run.advance()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        training.save_checkpoint(run, checkpoint)
    assert checkpoint.read_bytes() == left and list(tmp_path.iterdir()) == [checkpoint]


# --- refusals -----------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [dict(framework="vp"), dict(learning_rate=2e-3), dict(seed=1),
                                    dict(network_args=TINY.network_args | {"width": 12})])
def test_a_checkpoint_of_another_specification_is_refused(images, tmp_path, change):
    stop_at(2, TINY, images, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="another specification") as failure:
        next(train(replace(TINY, **change), images, tmp_path / "checkpoint"))
    assert str(tmp_path / "checkpoint") in str(failure.value) and "\n" not in str(failure.value)


def test_a_checkpoint_of_another_subset_is_refused(images, tmp_path):
    stop_at(2, TINY, images, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="subset"):
        next(train(TINY, data.load("bundled").half(1, 24), tmp_path / "checkpoint"))


damaged = pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-100]), lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:]),
    lambda path: torch.save({"step": 3}, path),
])


@damaged
def test_a_damaged_checkpoint_is_refused_and_kept(images, tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    stop_at(2, TINY, images, checkpoint)
    damage(checkpoint)
    left = checkpoint.read_bytes()
    with pytest.raises(UserError, match="is damaged") as failure:
        next(train(TINY, images, checkpoint))
    assert str(checkpoint) in str(failure.value) and checkpoint.read_bytes() == left


@damaged
def test_the_last_good_checkpoint_takes_over_and_says_so(images, tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    stop_at(2, TINY, images, checkpoint)
    stop_at(4, TINY, images, checkpoint)
    damage(checkpoint)
    with pytest.warns(UserWarning, match="is damaged.*going on from .*previous") as told:
        run = next(train(TINY, images, checkpoint))
    assert "move it away" not in str(told[0].message)  # which is the advice where nothing is left
    assert run.step == 3
    assert (tmp_path / "checkpoint.damaged").exists() and not checkpoint.exists()
    training.save_checkpoint(run, checkpoint)
    assert_same(finish(TINY, images, checkpoint), finish(TINY, images))
    assert next(train(TINY, images, training.previous(checkpoint))).step == 3


def test_a_lost_checkpoint_is_replaced_by_the_one_before(images, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    stop_at(2, TINY, images, checkpoint)
    stop_at(4, TINY, images, checkpoint)
    checkpoint.unlink()  # what a kill between the two renames leaves
    assert next(train(TINY, images, checkpoint)).step == 3


def test_weights_given_as_a_checkpoint_are_refused(images, tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="no checkpoint"):
        next(train(TINY, images, tmp_path / "weights.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_cuda_is_refused_where_there_is_none(images):
    with pytest.raises(UserError, match="device='cpu'"):
        next(train(TINY, images, device="cuda"))


def test_the_other_half_shares_no_image():
    everything = data.load("bundled")
    first, second = (replace(TINY, half=half).subset(everything) for half in (0, 1))
    assert len(first) == len(second) == 24
    assert not (first.pixels[:, None] == second.pixels[None]).flatten(2).all(2).any()
    with pytest.raises(UserError, match="choose 1 to 128"):
        replace(TINY, half=1, images=129).subset(everything)


def test_a_wrong_number_of_images_is_refused(images):
    with pytest.raises(UserError, match=r"spec.subset\(images\)"):
        next(train(TINY, data.load("bundled")))


@pytest.mark.parametrize("change, words", [
    (dict(framework="edn"), "did you mean 'edm'"), (dict(network="unett"), "did you mean 'unet'"),
    (dict(network_args={"widht": 8}), "did you mean 'width'"),
])
def test_unknown_names_are_refused(images, change, words):
    with pytest.raises(UserError, match=words):
        training.build(replace(TINY, **change))


# --- the specification --------------------------------------------------------------------------

def test_a_specification_survives_json():
    spec = replace(TINY, solver=Solver("ddim", 30, "log", 0.01, 50.0), seed=4, note="a note")
    again = Spec.from_json(spec.to_json())
    assert again.to_json() == spec.to_json() and again.solver == spec.solver
    assert replace(again, network_args=spec.network_args) == spec
    assert Spec.from_json(again.to_json()) == again


def test_a_newer_specification_can_be_read():
    text = TINY.to_json()[:-1] + ', "invented_later": 3}'
    assert Spec.from_json(text) == Spec.from_json(TINY.to_json())


# --- fine-tuning: a start, and a part of the parameters -----------------------------------------

TUNED = replace(TINY, name="tuned", start="base", trains="attention", images_seen=35)


@pytest.fixture(scope="module")
def start():
    """Weights to start from, every layer awake."""
    network, rng = training.build(TINY).network, torch.Generator().manual_seed(8)
    return {k: v + 0.1 * torch.randn(v.shape, generator=rng)
            for k, v in network.state_dict().items()}


def end_of(spec, images, start=None, checkpoint=None):
    for run in train(spec, images, checkpoint, start=start):
        pass
    return run


def test_fine_tuning_moves_what_it_names_and_leaves_its_start_elsewhere(images, start):
    run = end_of(TUNED, images, start)
    chosen = training.trained_names(run.denoiser.network)
    assert len(chosen) == 18 and sum(p.numel() for p in run._learning) < 1_200
    for network in (run.denoiser.network, run.ema.network):
        moved = {k for k, v in network.state_dict().items() if not torch.equal(v, start[k])}
        assert moved == set(chosen)


@pytest.mark.parametrize("trains", ["attention", "low-rank", "last"])
def test_a_killed_fine_tuning_goes_on_to_the_same_bits(images, start, tmp_path, trains):
    spec, path = replace(TUNED, trains=trains), tmp_path / "run.safetensors"
    straight = end_of(spec, images, start).state_dict()
    for run in train(spec, images, path, start=start):
        if run.step == 2:
            training.save_checkpoint(run, path)
            break
    assert_same(end_of(spec, images, start, path).state_dict(), straight)


def test_a_checkpoint_of_another_start_is_refused(images, start, tmp_path):
    path = tmp_path / "run.safetensors"
    training.save_checkpoint(end_of(TUNED, images, start), path)
    other = {k: v + 1 for k, v in start.items()}
    with pytest.raises(UserError, match="another specification, subset of images, labels or start"):
        end_of(TUNED, images, other, path)


def test_a_checkpoint_of_other_labels_is_refused_where_they_are_learned(images, tmp_path):
    spec = replace(TINY, network_args=TINY.network_args | {"num_classes": 10})
    path, other = tmp_path / "run.safetensors", replace(images, labels=9 - images.labels)
    training.save_checkpoint(end_of(spec, images, checkpoint=path), path)
    with pytest.raises(UserError, match="another specification, subset of images, labels or start"):
        end_of(spec, other, checkpoint=path)


def test_a_consistency_student_needs_a_solver_for_one(images, start):
    spec = replace(TUNED, framework="edm-consistency", objective="cd", solver=Solver())
    with pytest.raises(UserError, match="use the sampler 'consistency'"):
        end_of(spec, images, start)


def test_a_start_of_another_architecture_is_refused(images, start):
    wider = replace(TUNED, network_args=TUNED.network_args | {"width": 12})
    with pytest.raises(UserError, match="base belongs to another architecture than UNet"):
        end_of(wider, images, start)


@pytest.mark.parametrize("spec, given, words", [
    (TUNED, False, "give those weights too, as start"),
    (TINY, True, "does not say so: give its specification a name for them")])
def test_a_start_is_given_exactly_where_the_specification_names_one(images, start, spec, given,
                                                                    words):
    with pytest.raises(UserError, match=words):
        Training(spec, images, start=start if given else None)


def test_more_labels_than_classes_are_refused(images):
    few = replace(TINY, network_args=TINY.network_args | {"num_classes": 5})
    with pytest.raises(UserError, match="tiny has 5 classes but bundled-train.* labels 1 to 9"):
        Training(few, images)


class Conditional(nn.Module):
    """A network of one's own, whose specification does not tell its classes."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.shift = nn.Embedding(10, 3)

    def forward(self, x, noise_label, labels=None):
        return x + self.shift(labels)[:, :, None, None]


OTHERS = {"own": ("own", {}), "diffusers": ("diffusers_unet", dict(
    sample_size=32, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=11))}


@pytest.mark.parametrize("network, args", OTHERS.values(), ids=OTHERS)
def test_whether_a_network_is_conditional_is_asked_of_itself(images, monkeypatch, tmp_path, network,
                                                             args):
    monkeypatch.setitem(networks.ARCHITECTURES, "own", Conditional)
    spec, path = replace(TINY, network=network, network_args=args), tmp_path / "run.safetensors"
    stop_at(1, spec, images, path)
    assert next(train(spec, images, path)).step == 2
    others = replace(images, labels=images.labels.roll(1))
    with pytest.raises(UserError, match="another specification, subset of images, labels"):
        next(train(spec, others, path))
    with pytest.raises(UserError, match="has 10 classes but .* has labels 10 to 10"):
        Training(spec, replace(images, labels=images.labels * 0 + 10))


def test_only_a_network_that_drops_labels_has_a_null_class():
    args = OTHERS["diffusers"][1]
    assert not networks.build("diffusers_unet", **args).has_null_class
    network = networks.build("diffusers_unet", **args, label_dropout=1.0).train()
    assert network.has_null_class
    x, t, labels = torch.randn(2, 3, 32, 32), torch.ones(2), torch.tensor([3, 4])
    assert torch.equal(network(x, t, labels), network(x, t, None))
    assert not torch.equal(network.eval()(x, t, labels), network(x, t, None))


@pytest.mark.parametrize("network, args", [
    ("unet", TINY.network_args), ("dit", dict(patch=8, dim=16, depth=1, heads=2)),
    ("mlp", dict(channels=12)), OTHERS["diffusers"]])
def test_images_of_another_size_than_the_networks_are_refused(images, network, args):
    spec = replace(TINY, network=network, network_args=args)
    grey = replace(images, pixels=images.pixels[:, :1])
    with pytest.raises(UserError, match=r"takes images \[.*, but those of .* are \[.*: give it"):
        Training(spec, grey)
    if network in ("unet", "dit"):
        with pytest.raises(UserError, match=r"\[3, 32, 32\], but .* are \[3, 64, 64\]: give it"):
            Training(spec, replace(images, pixels=images.pixels.repeat(1, 1, 2, 2)))


def test_a_network_that_takes_no_labels_is_one_line(images, monkeypatch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x, t):
            return self.layer(x)

    monkeypatch.setitem(networks.ARCHITECTURES, "two", Two)
    with pytest.raises(UserError, match="this Two cannot be .*write forward.self, x, noise_label"):
        Training(replace(TINY, network="two", network_args={}), images)


def test_a_conditional_model_learns_from_the_labels(images):
    spec = replace(TINY, network_args=TINY.network_args | {"num_classes": 10, "label_dropout": 0.1})
    run = end_of(spec, images, None)
    other = end_of(spec, replace(images, labels=images.labels.roll(1)), None)
    moved = run.denoiser.network.embedding.label.weight
    assert not torch.equal(moved, other.denoiser.network.embedding.label.weight)
    assert not torch.equal(moved, training.build(spec).network.embedding.label.weight)


# --- torch.compile ------------------------------------------------------------------------------

compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))),
                              reason="no C++ compiler for torch.compile")


@compiler
def test_a_compiled_run_is_the_same_training_and_goes_on_from_its_checkpoint(images, tmp_path):
    small = {"dropout": 0.0, "channel_mult": (1,), "attention": ()}  # compiling is what takes long
    spec = replace(TINY, network_args=TINY.network_args | small)
    path = tmp_path / "run.safetensors"
    plain = finish(spec, images)
    for run in train(spec, images, compiled=True):
        if run.step == 3:
            training.save_checkpoint(run, path)
    assert run.denoiser.network._compiled_call_impl is not None  # torch compiled it
    compiled = run.state_dict()
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)
    resumed = finish(spec, images, path)  # without compiling: the checkpoint is the same kind
    for name, value in plain.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-4, rtol=1e-3)


def test_without_a_compiler_one_line_says_so(images, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="install g\\+\\+, or train without"):
        next(train(TINY, images, compiled=True))
