"""The same numbers on the device "toy" as on the CPU; a tensor left on the CPU fails there.

Run by test_accelerator.py, which compiles the device. Not checked: what depends on CUDA itself
(autocast, CUDA graphs, streams), and the statistics of batch norm, which torch writes into
arguments that it does not declare, so that the toy does not see it.
"""

import os
import types
from dataclasses import replace

import pytest
import torch

from paper_utils import errors, noise


if "TOY" not in os.environ:
    pytest.skip("run by test_accelerator.py, which compiles the device", allow_module_level=True)


def register() -> None:
    torch.ops.load_library(os.environ["TOY"])
    torch.utils.rename_privateuse1_backend("toy")
    module = types.ModuleType("torch.toy")
    module.is_available = module.is_initialized = lambda: True
    module.device_count, module.current_device = lambda: 1, lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module("toy", module)


class Stream(torch.Generator):
    """A generator of the CPU, since the toy has none, that knows where it should have been."""

    device_type = "cpu"


def stream(*key: object, device: str | torch.device = "cpu") -> Stream:
    made = Stream()
    made.device_type = torch.device(device).type
    made.manual_seed(noise.seed_of(*key))
    return made


def draws_where_its_stream_is(draw):
    def checked(*size, generator=None, device="cpu", **more):
        if isinstance(generator, Stream):  # torch would ask this of a real generator
            assert generator.device_type == torch.device(device).type
        return draw(*size, generator=generator, device=device, **more)
    return checked


register()
refuse_others = errors.check_device
errors.check_device = lambda device: device if device == "toy" else refuse_others(device)
noise.stream = stream
for name in ("rand", "randn", "randint", "randperm"):
    setattr(torch, name, draws_where_its_stream_is(getattr(torch, name)))

from paper_utils import augmentation, contrast, data, denoisers, descriptors  # noqa: E402
from paper_utils import inverse, models, operators, recipes, reconstructions  # noqa: E402
from paper_utils import regimes, samplers, training  # noqa: E402
from paper_utils.models import BANK  # noqa: E402
from paper_utils.samplers import Solver  # noqa: E402

SPECS = recipes.every_spec("smoke")
KINDS = [*recipes.specs("smoke"), "edm-cond", "uvit-cond", "progressive-4", "cd", "ct", "ict",
         "attention-n4", "last-n4", "low-rank-n4"]
TOLD = replace(SPECS["edm"], name="augmented", augmentation=0.5,
               network_args=SPECS["edm"].network_args | {"augment_dim": augmentation.LABELS})


def weights(spec: training.Spec) -> dict[str, torch.Tensor]:
    """Random weights of which none is 0, so that every layer shows in the answer."""
    denoiser, generator = training.build(spec), noise.stream("weights")
    return {key: value + 0.02 * torch.randn(value.shape, generator=generator)
            if value.is_floating_point() else value
            for key, value in denoiser.network.state_dict().items()}


def denoiser_of(spec: training.Spec, device: str) -> denoisers.Preconditioned:
    denoiser = training.build(spec).eval()
    denoiser.network.load_state_dict(weights(spec))
    return denoiser.to(device)


def close(toy: torch.Tensor, cpu: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(toy.cpu(), cpu, atol=tolerance, rtol=tolerance)


def on_the_toy(state: dict[str, torch.Tensor]) -> bool:
    """Whether all that a training goes on from is there, but for its step."""
    return all(value.device.type == "toy" for key, value in state.items()
               if not key.endswith("step"))


def watched(denoiser: denoisers.Denoiser, seen: list[str]) -> denoisers.Denoiser:
    """The denoiser, that notes on what devices it is asked."""
    def answer(u, sigma, labels=None):
        seen.append(u.device.type)
        return denoiser(u, sigma, *([] if labels is None else [labels]))
    return answer


def test_tensors_of_two_devices_do_not_mix():
    x = torch.ones(2, 3)
    for mixed in (lambda: x.to("toy") + x, lambda: x.to("toy") @ x.T,
                  lambda: torch.cat([x, x.to("toy")]), lambda: x[torch.zeros(2).long().to("toy")]):
        with pytest.raises(RuntimeError, match="device"):
            mixed()
    assert torch.equal((x.to("toy") + torch.tensor(1.0)).cpu(), x + 1)
    assert torch.equal(x.to("toy")[torch.tensor([1])].cpu(), x[1:])


@pytest.mark.parametrize("spec", [*(SPECS[name] for name in KINDS), TOLD], ids=lambda s: s.name)
def test_training_makes_the_weights_that_it_makes_on_the_cpu(spec, tmp_path):
    spec = replace(spec, batch=8, warmup=0, images_seen=24)
    images = spec.subset(data.load(spec.dataset or "bundled"))
    start = weights(SPECS[spec.start]) if spec.start else None
    path, states = tmp_path / "run.safetensors", {}
    for device in ("cpu", "toy"):
        run = training.Training(spec, images, device, start)
        for _ in range(2):
            run.advance()
        training.save_checkpoint(run, path)
        run.advance()
        states[device] = run.state_dict()
    assert on_the_toy(states["toy"])
    assert all(close(value, states["cpu"][key], 3e-4)
               for key, value in states["toy"].items() if not key.startswith("optimizer"))
    again = next(training.train(spec, images, path, "toy", start))
    assert all(torch.equal(value.cpu(), states["toy"][key].cpu())
               for key, value in again.state_dict().items())


def test_training_in_bf16_goes_through_autocast():
    """Which casts nothing on the toy."""
    spec = replace(SPECS["edm"], batch=8, precision="bf16")
    run = training.Training(spec, spec.subset(data.load("bundled")), "toy")
    run.advance()
    assert on_the_toy(run.state_dict()) and run.loss.isfinite()


@pytest.mark.parametrize("solver", [
    Solver("heun", 4), Solver("ddim", 4, "cosine"), Solver("dpm-solver-2", 3, "log"),
    Solver("dpm-solver-3", 3, "log"), Solver("dpm-solver++(2m)", 4), Solver("consistency", 2)],
    ids=str)
def test_every_solver(solver):
    spec, eps = replace(SPECS["ddpm-vp"], solver=solver), BANK[:2]
    toy, cpu = (models.diffusion(spec, denoiser_of(spec, device), "").generate(eps)
                for device in ("toy", "cpu"))
    assert close(toy, cpu, 1e-3)


def test_classes_and_guidance():
    spec, solver, labels = SPECS["edm-cond"], Solver("heun", 3), torch.tensor([3, 1])
    answers = []
    for device in ("toy", "cpu"):
        denoiser, eps = denoiser_of(spec, device), BANK[:2].to(device)
        guided = denoisers.guided(denoiser, 2.0)
        answers.append((samplers.every_class(denoiser, eps, solver, [0, 4]),
                        samplers.sample(guided, eps, solver, labels.to(device))))
    assert all(close(toy, cpu, 1e-3) for toy, cpu in zip(*answers))


def test_closed_forms_and_how_far_a_network_is_from_them():
    images, eps = data.load("bundled").first(20), BANK[:2]
    toy, cpu = (models.closed_forms(images, 64, device) for device in ("toy", "cpu"))
    for name in models.CLOSED_FORMS:
        assert close(toy[name].generate(eps), cpu[name].generate(eps), 1e-3), name
    assert toy["local"].denoiser().bag(3)[0].device.type == "toy"
    assert toy["optimal"].denoiser().pixels.device.type == "toy"
    measured = [regimes.denoiser_distances(
        {20: denoiser_of(SPECS["edm"], device)}, data.load("bundled"), {"some": images.pixels[:2]},
        types.SimpleNamespace(bag=64), device, [0.5, 5]) for device in ("toy", "cpu")]
    assert (measured[0].distance - measured[1].distance).abs().max() < 1e-4


@pytest.mark.parametrize("name, level", {
    "random-inpainting": 0.7, "box-inpainting": 16, "super-resolution": 4, "gaussian-blur": 1.5,
    "motion-blur": 9, "high-dynamic-range": 2}.items())
@pytest.mark.parametrize("ancestral", [None, 3])
def test_algorithm_1(name, level, ancestral):
    clean = data.to_unit(data.load("bundled").pixels[:2])
    guidance = inverse.Guidance(solver=Solver("dpm-solver-1", 4), ancestral=ancestral)
    operator, answers, seen = operators.Task(name, level).build(2), [], []
    measurement = operators.measure(clean, operator)
    for device in ("toy", "cpu"):
        denoiser = watched(denoiser_of(SPECS["edm"], device), seen)
        answers.append(inverse.reconstruct(denoiser, BANK[:2].to(device), measurement,
                                           operator, guidance))
    assert close(*answers, 1e-3) and answers[0].device.type == "toy"
    assert seen == 4 * ["toy"] + 4 * ["cpu"]


@pytest.mark.parametrize("name", ["optimal", "gaussian"])
def test_closed_forms_restore_on_their_device(name):
    images, answers, seen = data.load("bundled").first(4), [], []
    for device in ("toy", "cpu"):
        model = models.closed_forms(data.load("bundled").first(20), 64, device)[name]
        form = watched(model.denoiser(), seen)
        one = reconstructions.restoring(replace(model, denoiser=lambda: form),
                                        reconstructions.MAIN, images, 4)
        answers.append(one.generate(BANK[:4]))
    assert close(*answers, 1e-3) and seen == 4 * ["toy"] + 4 * ["cpu"]


@pytest.mark.parametrize("kind", contrast.KINDS)
def test_gans_and_vaes(kind):
    spec, images, states = contrast.Spec(kind, 8, 32, batch=16), data.load("bundled"), []
    for device in ("toy", "cpu"):
        *_, state = contrast.train(spec, images, None, device)
        states.append(state)
    assert on_the_toy(states[0])
    assert all(close(value, states[1][key], 1e-3) for key, value in states[0].items()
               if "adam" not in key and "running" not in key)
    network = contrast.trained(spec, states[1])
    assert close(contrast.sample(network.to("toy"), BANK[:2]),
                 contrast.sample(network.to("cpu"), BANK[:2]))


@pytest.mark.parametrize("name", ["cifar-copy", "pixels"])
def test_descriptors(name):
    images = data.load("bundled").pixels[:4]
    toy, cpu = (descriptors.features(descriptors.load(name, device), images)
                for device in ("toy", "cpu"))
    assert close(toy, cpu)
