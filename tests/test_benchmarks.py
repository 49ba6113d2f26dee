"""The benchmark compares like with like; its numbers are no test's business."""

import contextlib
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import (distillation, inverse, measuring, sampling, similarity, store,
                        training)
from benchmarks.__main__ import PARTS, main, show
from benchmarks.measuring import Row, Size
from paper_utils.errors import UserError


def test_the_loop_is_the_definition():
    samples, images = similarity.unit_features(130, "a"), similarity.unit_features(7, "b")
    expected = [max(float(np.dot(x, y)) for y in images.numpy()) for x in samples.numpy()]
    found = similarity.mscore(samples.numpy(), images.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    torch.testing.assert_close(samples.norm(dim=1), torch.ones(130))


def test_works_take_turns():
    order = []
    first, second = measuring.in_turns(3, lambda: order.append("a"), lambda: order.append("b"))
    assert len(first) == len(second) == 3
    assert order.count("a") == order.count("b") == 3 and order[:4] in (list("abba"), list("baab"))


@pytest.mark.parametrize("slow, met", [(2, True), (3, False)])
def test_a_target_is_missed_when_three_rounds_in_four_are_beyond_it(slow, met):
    mine = slow * [1.2] + (4 - slow) * [1.0]
    assert measuring.within(mine, 4 * [1.0], 1.02) == met


def test_a_missed_target_is_said(capsys):
    show([Row("GL", "60x", ">= 50x", True), Row("ddim", "1.20", "<= 1.0", False)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("target >= 50x: met") and second.endswith("target <= 1.0: MISSED")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_its_rows(part, monkeypatch):
    """In this process alone; without a compiler and the matrix rate, which would take long."""
    for module in (inverse, sampling, similarity):
        monkeypatch.setattr(module, "alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(store, "readers", lambda *processes, count: contextlib.nullcontext(
        [types.SimpleNamespace(read=lambda way: None)] * len(processes)))
    monkeypatch.setattr(training.training.torch, "compile", lambda network, **_: network)
    rate = Row("training: share of the matrix rate", "1.00", "none", True)  # has its test below
    monkeypatch.setattr(training, "matrix_share", lambda *_: rate)
    spec = replace(training.diffusers_unet("cpu"), batch=2)
    monkeypatch.setattr(training, "diffusers_unet", lambda device: spec)
    tiny = Size(samples=128, images=16, slice=16, batch=1, steps=2, repeats=6, training=1,
                images_known=64, noises=1, guided=1, restored=1, restoring=2, distilled=1,
                distilling=1, stored=1)
    found = PARTS[part](tiny, "cpu")
    assert found and all(row.what and row.measured and row.target for row in found)


def test_a_part_that_fails_is_named_at_the_end_and_the_others_go_on(monkeypatch, capsys):
    def broken(size, device):
        raise ValueError("no such luck")

    monkeypatch.setattr("benchmarks.__main__.PARTS", {
        "first": broken, "second": lambda size, device: [Row("GL", "60x", "none", True)]})
    assert main([]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("GL  60x")
    assert printed.err == "error: first: ValueError: no such luck\n"


def test_the_readers_of_the_store_read_its_files_both_ways():
    with store.readers(2, count=2) as [two]:
        for way in store.WAYS:
            two.read(way)
        next(two.cache.rglob("*.safetensors")).write_bytes(b"damaged")
        with pytest.raises(UserError, match="is damaged"):
            two.read("by hand")


@pytest.mark.parametrize("slowness, met", [(1.09, True), (1.11, False)])
def test_the_store_is_judged_by_plain_reading(monkeypatch, slowness, met):
    monkeypatch.setattr(store, "in_turns", lambda *_: [[slowness] * 3, [1.0] * 3,
                                                          [0.2] * 3, [0.5] * 3])
    monkeypatch.setattr(store, "readers", lambda *_, count: contextlib.nullcontext((None, None)))
    eight, bare, one = store.rows(Size(stored=10))
    assert eight.met == met and f"{slowness}x" in eight.measured
    assert "against 320 MiB/s" in eight.measured and one.measured == "80 MiB/s" and one.met
    assert bare.measured.startswith(f"{slowness / 0.2:.2f}x the time") and bare.met


def test_memory_is_that_of_the_process_itself():
    """The child's peak is not hidden by its parent's: 2,048 x 2,048 similarities are 16 MiB."""
    ballast = torch.zeros(200_000_000)
    assert 12 * 2**20 < measuring.alone(similarity.memory, 2_100, 8_300) < 512 * 2**20
    del ballast


def test_deepinv_takes_the_steps_of_algorithm_1():
    pytest.importorskip("deepinv")
    both = inverse.Inpainting(2, 3)
    ours, theirs = both.ours, both.deepinv()
    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)
    network = both.denoiser.network
    assert measuring.evaluations(network, ours) == measuring.evaluations(network, theirs) == 3


def test_without_deepinv_a_row_says_so(monkeypatch):
    monkeypatch.setattr(inverse, "find_spec", lambda _: None)
    first, second = inverse.rows(Size(restored=1, restoring=1))
    assert first.met and "pip install deepinv" in first.measured
    assert second.what == "reconstruction of 1 images, 1 steps" and second.met


def test_the_matrix_rate_is_never_that_of_emulated_products(monkeypatch):
    """bfloat16 by emulation is a hundred times slower: minutes, and a share of nothing."""
    monkeypatch.setattr(training.precision, "has_bf16", lambda device: False)
    spec = training.diffusers_unet("cpu")
    row = training.matrix_share(spec, training.Ours(spec, "cpu"), 1.0, "cpu")
    assert row.what.endswith("float32 matrix rate") and "of 0 GFLOP/s" not in row.measured


def test_models_train_at_once_and_each_has_its_rate():
    first, second = training.concurrently(2, 1, "cpu")
    assert first > 0 and second > 0


@pytest.mark.parametrize("objective", ["progressive", "cd"])
def test_a_step_of_distillation_and_its_bound_are_three_evaluations(objective):
    ours = distillation.distilled(distillation.distillation_spec(objective, 2), "cpu")
    run, bare = ours.run, distillation.Bare(ours.run)
    denoisers = filter(None, (run.denoiser, run.objective.teacher, run.objective.target))
    found = [denoiser.network for denoiser in denoisers]
    assert [sum(measuring.evaluations(network, lambda: loop.steps(1)) for network in found)
            for loop in (ours, bare)] == [3, 3]
    assert all(p.grad is not None for p in run.denoiser.parameters())
    assert measuring.evaluations(run.denoiser.network, run.advance) == 1


@pytest.mark.parametrize("slowness, met", [(1.14, True), (1.16, False)])
def test_distillation_is_judged_by_its_overhead(monkeypatch, slowness, met):
    monkeypatch.setattr(distillation, "in_turns", lambda *_: [[slowness] * 3, [1.0] * 3])
    first, second, *rest = distillation.rows(Size(distilled=2, distilling=1), "cpu")
    assert first.met == second.met == met and f"{slowness}x" in first.measured
    assert "(progressive)" in first.what and "(cd)" in second.what
    assert rest[0].measured.startswith(f"{5 * 96_000 * slowness / 2 / 60:.1f} min on ")
    assert all(row.met and row.target == "none" and "of a CPU" in row.measured for row in rest)


def test_only_a_gpu_is_held_to_ten_minutes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    slow, fast = (distillation.halving("laptop", rate, "cuda") for rate in (799, 801))
    assert not slow.met and fast.met and "min on H200" in fast.measured
    assert distillation.halving("laptop", 799, "cpu").met
