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
# notebook regenerates one section; all of them rest on one idea, shown below in a few cells.
#
# **Everything is a denoiser.** Whatever the framework, write the diffused image as *x(t) = s(t)
# (x₀ + σ(t) ε)* and work with *u = x / s*. Then every model is one function *D(u; σ)* that
# estimates the clean image, and every deterministic sampler follows *du/dσ = (u − D(u; σ)) / σ*
# from the noise to an image.

# %% tags=["parameters"]
profile: str = "laptop"
noises: int = 0

# %%
from paper_utils import claims, data, denoisers, models, noise, plots, profiles, run, samplers

run.check_parameters()
sizes = profiles.get(profile)
output = plots.Output.of(profile, noises=noises)
training = data.load(sizes.dataset)
bank = noise.NoiseBank()
print(f"{len(training)} training images, {bank.name}")

# %% [markdown]
# ## A noise that everybody shares
#
# Noise *k* of the bank is the same array on every machine, whatever the batch or the device. That
# is what makes "the same noise" mean something. Here are two denoisers nobody trained: the optimal
# denoiser of the training set, whose samples are training images (the paper's theorem), and the
# Gaussian denoiser, which knows the mean and the covariance of the data and nothing else. Both
# start from the same noises and use the same solver.

# %%
optimal = denoisers.OptimalDenoiser(training.pixels)
gaussian = models.gaussian(training)
solver = samplers.Solver("heun", steps=18)
shared = bank[:noises or 12]
rows = {"optimal": data.to_bytes(samplers.sample(optimal, shared, solver)),
        "gaussian": data.to_bytes(samplers.sample(gaussian, shared, solver))}
output.figure(plots.sample_grid(rows, columns=len(shared), title="Two closed-form denoisers"),
              "fig_start_here")

# %% [markdown]
# ## A denoiser of your own
#
# A denoiser is any function of `u` and `sigma`. Anything that can be written so joins every table
# of this project, a network of yours or a diffusers pipeline (`denoisers.from_diffusers`)
# included. This one answers with the mean image, whatever it sees; its sample is the mean image
# from any noise. (The state *u* is kept in double precision: a network in single precision joins
# as `lambda u, sigma: network(u.float(), sigma.float())`.)

# %%
mean = data.to_unit(training.pixels).mean(0)
constant = samplers.sample(lambda u, sigma: mean.to(u).expand_as(u), bank[:2], solver)
print("largest distance from the mean image:", round((constant - mean).abs().max().item(), 4))

# %% [markdown]
# ## Where to go from here
#
# | notebook | shows | `smoke` | `laptop` | `gpu` | `paper` |
# |---|---|---|---|---|---|
# | `01_unconditional` | section 2: do models agree, and with what? | 20 s | 5 min | 11 h | 749 h |
# | `02_two_regimes` | section 3: memorization and generalization | 20 s | 4 min | 2 h | 2417 h |
# | `03_conditional` | appendix D: class-conditional models | 15 s | 30 s | 13 h | 554 h |
# | `04_inverse_problems` | appendix F: deterministic DPS | 20 s | 2 min | 9 h | 415 h |
# | `05_fine_tuning` | appendix G: fine-tuning some parameters | 10 s | 30 s | 1 h | 1648 h |
# | `06_distillation` | students of one or few steps | 15 s | 1 min | 9 h | 757 h |
# | `train` | trains, fine-tunes or distills one model | 10 s | 10 min | | |
#
# Every notebook takes the same `profile` parameter. `smoke` and `laptop` were measured on two
# cores: `smoke` trains tiny models on a few bundled images, `laptop` uses the models shipped in
# `zoo/`. `gpu` and `paper` train their own; theirs are GPU-hours for the models, estimated from the
# networks and never measured (`make plan PROFILE=gpu` has them by job), and notebooks share
# models, so the sum is less. Batches run by `papermill notebooks/01_unconditional.ipynb out.ipynb
# -p profile gpu`, or all of them by `make report PROFILE=gpu`.
#
# The results so far, from the last run of each notebook with this profile. Its tables have the rule
# behind each verdict and what was measured; `make report` makes a page of it all.

# %% tags=["nbval-ignore-output"]
claims.overview(plots.Output.of(profile).folder)
