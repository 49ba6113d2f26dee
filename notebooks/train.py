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
# One papermill run trains one model, unconditional (section 2) or conditional (appendix D), from
# nothing or from where the last run stopped:
#
#     papermill notebooks/train.ipynb out.ipynb -p profile gpu -p model edm-cond
#
# The profile decides the size, the budget and, where none is given, the device. `smoke` takes
# seconds, `laptop` about ten minutes on two cores, `gpu` minutes on one large GPU. `paper` mostly
# trains on 50 million images, the budget of the paper's section 3. *Images seen* counts every time
# an image is shown; `-p images_seen` sets another budget, `-p seed` another seed, `-p images` how
# many of the training images there are. (Another learning rate, batch or network: README, *Your own
# models*.) A run that was killed continues from its last checkpoint when it is started again with
# the same parameters.
#
# The weights go to the artifact store (`artifacts` in the cache); the last cell names the file.
# There `01_unconditional` of the same profile finds the models of its recipes. On the `laptop`
# profile it reads `zoo/` instead, which is filled by `python -m paper_utils.fleet train` and `add`.
#
# To fine-tune, give the weights to start from (a safetensors file of `zoo/` or of an earlier
# training), what to train (`all`, `attention`, `last`, `low-rank` or a regular expression on the
# names of parameters), the dataset and how many of its images:
#
#     papermill notebooks/train.ipynb out.ipynb -p model edm -p start zoo/edm.safetensors \
#         -p trains attention -p dataset cifar10:5-9 -p images 64
#
# A distilled student (`06_distillation`) starts from its teacher in the same way, in whose network
# and framework it begins:
#
#     papermill notebooks/train.ipynb out.ipynb -p model cd \
#         -p start zoo/distillation/teacher.safetensors

# %% tags=["parameters"]
profile: str = "laptop"
model: str = "edm"
start: str = ""
trains: str = "all"
dataset: str = ""
images: int = 0
images_seen: int = 0
seed: int = 0
device: str = ""

# %%
from paper_utils import data, errors, models, plots, profiles, recipes, run

run.check_parameters()
specs = (recipes.specs(profile) | recipes.conditional_specs(profile)
         | recipes.distillation_specs(profile))
spec = recipes.variant(specs[errors.choose(model, specs, "model")], start, trains, dataset, images,
                       images_seen, seed)
output = plots.Output.of(profile, model=model, start=start, trains=trains, dataset=dataset,
                         images=images, images_seen=images_seen, seed=seed)
sizes = profiles.get(profile)
device = device or sizes.device
subset = spec.subset(data.load(spec.dataset or sizes.dataset))
spec = models.student_of(spec, start) if start else spec
weights = models.weights_of(start, spec) if start else None
print(f"{spec.name}: {spec.network}, {spec.framework}, {spec.images_seen:,} images seen")

# %% [markdown]
# The loss is the weighted denoising error of the framework (for a student, the distance to where
# its objective wants it), averaged over the batch; the curve is its running mean. Different
# frameworks weight noise levels differently, so their losses cannot be compared.

# %%
trained, losses = models.train(spec, subset, device, weights)
output.figure(plots.loss_curve(losses, spec), f"fig_loss_{spec.name}")

# %% [markdown]
# Images from the first noises of the bank, by the averaged weights. After a short training they
# look like blurred textures; models agree long before their images look good.

# %%
samples = models.samples(trained, 12)
rows = models.rows_to_show(trained, samples)
output.figure(plots.sample_grid(rows, title=f"{spec.images_seen:,} images seen"),
              f"fig_trained_{spec.name}")

# %% [markdown]
# The weights in the artifact store, for `-p start` of another run or for `models.weights_of`:

# %% tags=["nbval-ignore-output"]
print(models.kept_at(trained).name)
