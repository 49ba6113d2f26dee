# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here
#
# This is the companion to *The Emergence of Reproducibility and Consistency in Diffusion Models*
# (Zhang, Zhou, Lu, Guo, Wang, Shen, Qu; ICML 2024). The paper found that different diffusion
# models, given the same noise and a deterministic sampler, make nearly the same image. Each
# notebook regenerates one section. This one shows, in a few cells, the finding itself and the idea
# that all of them rest on.
#
# **Everything is a denoiser.** Whatever the framework, write the diffused image as *x(t) = s(t) (x₀
# + σ(t) ε)* and work with *u = x / s*. Then every model is one function *D(u; σ)* that estimates
# the clean image, and every deterministic sampler follows *du/dσ = (u − D(u; σ)) / σ* from the
# noise to an image.

# %% tags=["parameters"]
profile: str = "laptop"
noises: int = 0

# %%
from paper_utils import claims, data, denoisers, descriptors, models, noise, plots, profiles, run
from paper_utils import samplers, scores, zoo

run.check_parameters()
sizes = profiles.get(profile, noises=noises)
output = plots.Output.of(profile, noises=noises)
training = data.load(sizes.dataset)
bank = noise.NoiseBank()
print(f"{len(training)} training images, {bank.name}")

# %% [markdown]
# ## A noise that everybody shares
#
# Noise *k* of the bank is the same array on every machine, whatever the batch or the device. That
# gives "the same noise" a meaning. Each column below is one noise. The U-Net and the transformer
# share neither architecture nor framework nor solver; both were trained on 32,768 images of
# CIFAR-10, on a CPU (`unet-96-n32768` and `dit-n32768` of `02_two_regimes`). Below them are two
# untrained denoisers, both of all training images: the Gaussian denoiser, which knows only their
# mean and covariance, and the optimal denoiser, whose samples are training images (the paper's
# theorem). Last come a GAN and a VAE, which take 128 numbers, a fixed projection of the noise.

# %%
solver = samplers.Solver("heun", steps=18)
shared = bank[:noises or 12]
trained = {"U-Net": models.shipped("unet-96-n32768", zoo.REGIMES),
           "transformer": models.shipped("dit-n32768", zoo.REGIMES),
           "GAN": models.shipped("gan-32"), "VAE": models.shipped("vae-32")}
made = {name: model.generate(shared, name) for name, model in trained.items()}
closed = {"Gaussian denoiser": models.gaussian(training),
          "optimal denoiser": denoisers.OptimalDenoiser(training.pixels)}
made |= {name: samplers.sample(form, shared, solver) for name, form in closed.items()}
rows = {name: data.to_bytes(made[name]) for name in ("U-Net", "transformer", *closed, "GAN", "VAE")}
output.figure(plots.sample_grid(rows, columns=len(shared), title="One noise per column"),
              "fig_start_here")

# %% [markdown]
# ## A denoiser of your own
#
# A denoiser is any function of `u` and `sigma` that returns the clean image. Anything that can be
# written so joins the scores of this project. This one returns the mean image whatever it sees, so
# its sample from any noise is the mean image.
#
# - a network of `u` and one `sigma` per image, in single precision (the state is kept in double):
#   `lambda u, sigma: net(u.float(), sigma.float().expand(len(u)))`
# - a network `net(x, t, labels)` that predicts eps, v or x0 at the steps of a discrete schedule
#   (`t` is a float and lies between two steps where the noise level does):
#   `denoisers.Preconditioned(net, denoisers.discrete(alphas_cumprod, "epsilon")).eval()`, or with
#   `"v_prediction"`, `"sample"`
# - one class of a conditional one: `lambda u, sigma: net(u, sigma, torch.full((len(u),), 3))`
# - a diffusers pipeline of images: `denoisers.from_diffusers(pipeline)`
#
# `models.from_denoiser(name, denoiser, solver, version="1")` makes a model of it, whose samples are
# kept (give another version when it changes). Put it into `everything` in `01_unconditional`, with
# `output = plots.Output.of(profile, model="mine")` so that the figures land in a folder of their
# own, and it stands among the diffusion models in every figure and verdict. With
# `family="transformer"` or `"U-Net"` it also joins the families of `04_inverse_problems`.

# %%
mean = data.to_unit(training.pixels).mean(0)
constant = samplers.sample(lambda u, sigma: mean.to(u).expand_as(u), shared, solver)
print("largest distance from the mean image:", round((constant - mean).abs().max().item(), 4))
rows["mean image"] = data.to_bytes(constant)

# %% [markdown]
# ## Do they make the same image?
#
# **RP** is the share of noises whose two images are copies of each other according to a
# copy-detection descriptor; the **MAE score** is the share whose mean pixel difference is under 15
# of 255. With so few noises the scores are coarse. `02_two_regimes` has these models with 256
# noises and intervals. There U-Net and transformer agree with each other more than either does with
# the Gaussian denoiser, by both scores: they share what training taught them.

# %%
describe = descriptors.load("cifar-copy")
features = descriptors.features(describe, rows)
maps = {"RP": scores.pairwise(features, scores.copies(describe.threshold)),
        "MAE score": scores.pairwise(rows, scores.close)}
note = f"{len(shared)} noises, descriptor {describe.name} > {describe.threshold:.2f}"
output.figure(plots.heatmaps(maps, list(rows), 0.0, note), "fig_start_here_scores")

# %% [markdown]
# ## Where to go from here
#
# | notebook | shows | `smoke` | `laptop` | `gpu` | `paper` |
# |---|---|---|---|---|---|
# | `01_unconditional` | section 2: do models agree, and with what? | 20 s | 7 min | 11 h | 749 h |
# | `02_two_regimes` | section 3: memorization and generalization | 20 s | 9 min | 2 h | 2417 h |
# | `03_conditional` | appendix D: class-conditional models | 15 s | 30 s | 14 h | 567 h |
# | `04_inverse_problems` | appendix F: deterministic DPS | 20 s | 3 min | 9 h | 415 h |
# | `05_fine_tuning` | appendix G: fine-tuning some parameters | 10 s | 1 min | 1 h | 1648 h |
# | `06_distillation` | students of one or few steps | 15 s | 2 min | 9 h | 757 h |
# | `train` | trains, fine-tunes or distills one model | 10 s | 10 min | | |
#
# Every notebook takes the same `profile` parameter. The times of `smoke` and `laptop` were measured
# on two cores, two notebooks at a time: `smoke` trains tiny models on a few bundled images,
# `laptop` uses the models shipped in `zoo/`. `gpu` and `paper` train their own models. Their times
# are GPU-hours for the models, estimated from the networks and never measured (`make plan
# PROFILE=gpu` lists them by job). Notebooks share models, so the sum is less. To run one as a
# batch, use `papermill notebooks/01_unconditional.ipynb out.ipynb -p profile gpu`; to run all,
# `make report PROFILE=gpu`.
#
# Below are the results so far, from the last run of each notebook with this profile. The notebooks'
# tables have the rule behind each verdict and what was measured; `make report` makes a page of it
# all.

# %% tags=["nbval-ignore-output"]
claims.overview(plots.Output.of(profile).folder)
