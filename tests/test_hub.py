"""The hub: released pipelines join the models, and what cannot be had or does not fit is said."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from paper_utils import denoisers, hub, models
from paper_utils.errors import UserError


def test_of_the_hub_what_cannot_be_had_is_said_and_left_out(capsys, monkeypatch):
    def load(source, device):
        if source == "gone":
            raise UserError("no pipeline at 'gone': check the network")
        return source

    assert hub.available(["a", "gone", "b"], load) == ["a", "b"]
    assert capsys.readouterr().out == "left out: no pipeline at 'gone': check the network\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA GPU"):
        hub.available(["a"], load, "cuda")


def test_a_released_pipeline_joins_the_models_by_the_path_of_the_hub(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(sample_size=32, block_out_channels=(8, 16), layers_per_block=1,
                       norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
                       up_block_types=("UpBlock2D", "UpBlock2D"))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm-tiny")
    model = hub.ddpm(str(tmp_path / "ddpm-tiny"))
    assert model.name == "ddpm-tiny" and model.trained_diffusion and model.evaluations == 50
    assert model.generate(models.BANK[:1]).shape == (1, 3, 32, 32)
    itself = hub.ddpm(DDPMPipeline(unet, DDPMScheduler()))
    assert itself.name == "DDPMPipeline" and itself.identity == model.identity
    shutil.copytree(tmp_path / "ddpm-tiny", tmp_path / "elsewhere")
    assert model.identity == hub.ddpm(str(tmp_path / "elsewhere")).identity
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "ddpm-tiny")
    other = hub.ddpm(str(tmp_path / "ddpm-tiny"))
    assert model.identity != other.identity
    assert (model.framework, other.framework) == ("VP, discrete", "VP, discrete, v-prediction")


def test_whatever_a_library_raises_on_the_way_to_the_hub_is_said(capsys, monkeypatch):
    """As httpx does where a proxy refuses, which is no OSError."""
    from diffusers import DDPMPipeline

    def refused(*_, **__):
        raise RuntimeError("403 Forbidden\nfrom a proxy")

    monkeypatch.setattr(DDPMPipeline, "from_pretrained", refused)
    assert hub.available(["google/ddpm-cifar10-32"], hub.ddpm) == []
    assert "left out: no diffusers pipeline with safetensors at 'google/ddpm-cifar10-32' (403 " in (
        capsys.readouterr().out)


def test_a_pipeline_of_other_images_or_another_process_is_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, ScoreSdeVeScheduler, UNet2DModel

    blocks = dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
                  down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    large = DDPMPipeline(UNet2DModel(sample_size=64, **blocks), DDPMScheduler())
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match="large makes images of 64 x 64 pixels.*give a"):
        hub.ddpm(str(tmp_path / "large"))
    odd = SimpleNamespace(unet=UNet2DModel(sample_size=32, **blocks),
                          scheduler=ScoreSdeVeScheduler())
    with pytest.raises(UserError, match="ScoreSdeVeScheduler has no alphas_cumprod: give"):
        denoisers.from_diffusers(odd)
