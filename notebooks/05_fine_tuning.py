# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning
#
# *Section 4 and appendix G of "The Emergence of Reproducibility and Consistency in Diffusion
# Models" (ICML 2024).*
#
# Pre-train on one dataset, fine-tune on the first N images of another. What happens to
# reproducibility (**RP**) and to copying (**GL**) when only some of the parameters may learn? As
# far as this project recalls (the source was not seen), the paper finds that fine-tuning attention
# alone on few images lowers RP and raises GL, compared with training from scratch.
#
# As far as this project recalls, the paper pre-trains on CIFAR-100. The models shipped for the
# `laptop` profile were made where it could not be had: they learned the first five classes of
# CIFAR-10 (airplane, automobile, bird, cat, deer) and were fine-tuned on the other five. The title
# of every figure says which.

# %% tags=["parameters"]
profile: str = "laptop"
descriptor: str = "cifar-copy"
pretraining: str = ""
transfer_noises: int = 0
live: int = 0
device: str = ""

# %%
from paper_utils import claims, data, descriptors, fine_tuning, models, plots, profiles, recipes
from paper_utils import rules, run, scores, tables

run.check_parameters()
sizes = profiles.get(profile, transfer_noises=transfer_noises, live=live)
device = device or sizes.device
study = recipes.transfer(profile, pretraining)
output = plots.Output.of(profile, descriptor=descriptor, pretraining=pretraining,
                         transfer_noises=transfer_noises, live=live)
describe = descriptors.load(descriptor, device)
copies = scores.copies(describe.threshold)
target = data.load(study.target)
which = f"pre-trained on {data.title(study.base)}, fine-tuned on {data.title(study.target)}"
print(which)

# %% [markdown]
# ## The models
#
# One U-Net, pre-trained twice from different seeds. Every fine-tuning has the same budget; what
# differs is which parameters learn: all, attention (its norm, query, key, value and output layers),
# the last blocks (the finest level of the decoder with the output layer), or adapters of rank 4
# beside the frozen attention layers (LoRA). `scratch` is trained from random initialization with
# the same budget. Some models are sampled again here and compared with their sheets.

# %%
found = fine_tuning.trained(sizes, pretraining, device)
grid = fine_tuning.grid(found)
images = fine_tuning.samples(found, sizes)
again = fine_tuning.spot_checks(found, sizes.live)
tables.check_sheets(again, images, 1)  # an error where they differ
output.table(fine_tuning.ways(found, grid), "tab_fine_tuning_ways")

# %%
fewest, most = grid.images.min(), grid.images.max()
rows = {f"{way}, N = {n:,}" if way != "base" else way: part for n in (fewest, most)
        for way, part in fine_tuning.examples(grid, images, n).items()}
output.figure(plots.sample_grid(rows, columns=10, title=f"One noise per column; {which}"),
              "fig_fine_tuning_samples")

# %% [markdown]
# ## RP and GL against the number of fine-tuning images
#
# RP and MAE score compare two runs of the same way of fine-tuning, one from each pre-trained
# network (for `scratch`, from two random initializations). GL is of the first run, against the
# images it was fine-tuned on; its baseline is held-out images of the same classes (in the table).

# %%
features = descriptors.features(describe, images)
known = fine_tuning.known_features(describe, study.target)
real = fine_tuning.known_features(describe, study.target, "test")[:sizes.held_out]
rp = fine_tuning.reproducibility(grid, features, copies)
gl = fine_tuning.generalization(grid, features, known, real, describe.threshold)
mae = fine_tuning.reproducibility(grid, images, scores.close)
output.table(rp, "tab_fine_tuning_rp")
output.table(mae, "tab_fine_tuning_mae")
output.table(gl, "tab_fine_tuning_gl")

# %%
note = f"{sizes.transfer_noises} noises, descriptor {describe.name} > {describe.threshold:.2f}"
panels = {"RP, different starts": rp[rp.pair == fine_tuning.OTHER],
          "MAE score, different starts": mae[mae.pair == fine_tuning.OTHER],
          "GL": fine_tuning.beside_held_out(gl)}
output.figure(plots.scores_against(panels, "way", title=f"{which}; {note}",
                                   labels=dict(zip(panels, ("RP", "MAE score", "GL"))),
                                   xlabel="fine-tuning images"), "fig_fine_tuning")

# %% [markdown]
# ## Does the shared start explain it?
#
# Two fine-tunings of one pre-trained network (they differ in training noise and order) against two
# of different ones. The table has the difference, on the same noises.

# %%
gain = fine_tuning.shared_start(grid, features, copies)
output.table(gain, "tab_shared_start")

# %%
both = {way: rp[rp.way == way] for way in recipes.WAYS if way != "scratch"}
output.figure(plots.scores_against(both, "pair", labels=dict.fromkeys(both, "RP"), columns=2,
                                   title=f"{which}; {note}", xlabel="fine-tuning images"),
              "fig_shared_start")

# %% [markdown]
# ## What do they agree with?
#
# First, with the first pre-trained network, from which the first run of every way but `scratch`
# started: this shows how little fine-tuning changed. `scratch`, which did not start there, is the
# baseline: where it agrees too, RP does not tell staying from moving.
# `tab_fine_tuning_with_base.csv` also has the mean difference of the pixels, which does.
#
# Second, with the Gaussian denoiser of all images of the five classes, which is not trained.
# Agreement no higher than this says little, and RP with it is near 1. So
# `tab_fine_tuning_nearer.csv` asks without a threshold: are two runs nearer to each other than
# either is to it (see `01_unconditional`)? Are the two pre-trained networks before any
# fine-tuning? And how far do these two agree with each other, and the first of them with that
# denoiser of classes it never saw?
#
# Every way was run once per start. Intervals are over noises and do not cover what another seed
# would change.

# %%
bases = fine_tuning.agreement_of_bases(features, copies)
by_pixels = fine_tuning.agreement_of_bases(images, scores.close)
print(f"the two pre-trained networks: RP {bases}, MAE score {by_pixels}")
control = models.samples(models.closed_form("gaussian", target), sizes.transfer_noises)
formed = descriptors.features(describe, control)
alike = scores.proportion(copies(features["base"], formed))
print(f"the first and the Gaussian denoiser: RP {alike}")
first = grid[grid.run == ""]
with_start = fine_tuning.against(first, features, features["base"], copies)
gaussian = fine_tuning.against(grid, features, formed, copies)
output.table(with_start.assign(distance=fine_tuning.distances(first, images, images["base"])),
             "tab_fine_tuning_with_base")
output.table(gaussian, "tab_fine_tuning_with_gaussian")
than_formed = scores.nearer_than(formed)
nearer = fine_tuning.reproducibility(grid, features, than_formed)
bases_nearer = fine_tuning.agreement_of_bases(features, than_formed)
output.table(nearer, "tab_fine_tuning_nearer")
panels = {"With the pre-trained network": with_start,
          "With the Gaussian denoiser": gaussian[gaussian.run == ""]}
output.figure(plots.scores_against(panels, "way", labels=dict.fromkeys(panels, "RP"),
                                   title=f"{which}; {note}", xlabel="fine-tuning images"),
              "fig_fine_tuning_against")

# %% [markdown]
# Third, what the Gaussian denoiser cannot make: the cosine of the *even parts* on the same noise
# (see `01_unconditional`: the part of an image that stays when the noise changes sign, without what
# the range of pixels alone makes of a Gaussian image), of runs on the most images, from the same
# start and from different ones, and of each first run with the network it started from. If
# fine-tuning teaches two networks the same, two runs from different starts share more of it than
# the two pre-trained networks do.

# %%
most = grid[grid.images == grid.images.max()]
limited = models.limited(models.closed_form("gaussian", target))
parts = tables.even_parts_of({name: found[name] for name in [*fine_tuning.BASES, *most.model]},
                             sizes.opposites, limited)
even = fine_tuning.reproducibility(most, parts, scores.cosine)
bases_even = fine_tuning.agreement_of_bases(parts, scores.cosine)
kept = fine_tuning.against(most[most.run == ""], parts, parts["base"], scores.cosine)
even_gain = fine_tuning.over_bases(most, parts, scores.cosine)
output.table(even_gain, "tab_even_parts_over_bases")
output.table(tables.over("with", {"another run": even, "the pre-trained network": kept}),
             "tab_even_parts_fine_tuning")
print(f"the two pre-trained networks: cosine of even parts {bases_even}")

# %% [markdown]
# ## The claims

# %% tags=["nbval-ignore-output"]
verdicts = rules.fine_tuning(rp, gl, gain, with_start, bases, gaussian, nearer, bases_nearer,
                             even, even_gain, bases_even)
claims.save(verdicts, "fine_tuning", output, device)
