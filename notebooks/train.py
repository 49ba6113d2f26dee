# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train one model
#
# One papermill run trains one model of section 2, from nothing or from where the last run stopped:
#
#     papermill notebooks/train.ipynb out.ipynb -p profile gpu -p model edm -p device cuda
#
# The profile decides the size and the budget (`smoke` seconds, `laptop` about ten minutes on two
# cores, `gpu` minutes on one large GPU, `paper` the authors' 50 million images). The weights go to
# the artifact store, where `01_unconditional` of the same profile finds them again (on the
# `laptop` profile it reads `zoo/` instead, which `python -m paper_utils.fleet` fills); a run that
# was killed goes on from its last checkpoint when it is started again with the same parameters.

# %% tags=["parameters"]
profile: str = "laptop"
model: str = "edm"
device: str = "cpu"

# %%
from paper_utils import data, errors, models, plots, profiles, run

run.check_parameters()
specs = profiles.specs(profile)
spec = specs[errors.choose(model, specs, "model")]
sizes = profiles.get(profile)
output = plots.Output.of(profile)
images = spec.subset(data.load(sizes.dataset))
print(f"{spec.name}: {spec.network}, {spec.framework}, {spec.images_seen:,} images seen")

# %% [markdown]
# The loss is the weighted denoising error of the framework, averaged over the batch; the curve is
# its running mean. Different frameworks weight noise levels differently, so their losses do not
# compare.

# %%
trained, losses = models.train(spec, images, device)
output.figure(plots.loss_curve(losses, spec), f"fig_loss_{spec.name}")

# %% [markdown]
# Images of the first noises of the bank, from the averaged weights. After a short training they
# look like blurred textures; agreement between models comes long before good looks.

# %%
samples = models.samples(trained, 12)
output.figure(plots.sample_grid({spec.name: samples}, title=f"{spec.images_seen:,} images seen"),
              f"fig_trained_{spec.name}")
