# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Unconditional models: do they agree?
#
# *Section 2 and appendix A of "The Emergence of Reproducibility and Consistency in Diffusion
# Models" (ICML 2024).*
#
# The paper's finding: give the same noise to different diffusion models and run a deterministic
# sampler, and nearly the same image comes out, whatever the architecture, the framework or the
# training. This notebook asks the same of models that this project trained on CIFAR-10. Beside them
# stand three untrained models: closed forms computed from the data. They matter, because a network
# learns the mean and the covariance of the data first and is then close to the Gaussian closed
# form, so agreement alone proves less than it seems. What the models share beyond that is asked
# separately.
#
# The parameters below choose a profile (`smoke`, `laptop`, `gpu`, `paper`); a size of 0 keeps the
# profile's own.

# %% tags=["parameters"]
profile: str = "laptop"
descriptor: str = "cifar-copy"
noises: int = 0
live: int = 0
hyperplane: int = 0
device: str = ""

# %%
from itertools import combinations, product

from torch.nn.functional import normalize

from paper_utils import claims, data, descriptors, explore, models, plots, profiles, published
from paper_utils import rules, run, scores, tables

run.check_parameters()
sizes = profiles.get(profile, noises=noises, live=live, hyperplane=hyperplane)
device = device or sizes.device
output = plots.Output.of(profile, descriptor=descriptor, noises=noises, live=live,
                         hyperplane=hyperplane)
describe = descriptors.load(descriptor, device)
training = data.load(sizes.dataset)
held_out = data.load(sizes.dataset, "test")

# %% [markdown]
# ## The models
#
# U-Nets of four frameworks, a multistage U-Net, four transformers (U-ViT and three DiTs) and
# diffusers' own U-Net. They differ in network, diffusion process, noise levels and solver. (The
# small ones trained on a CPU, except the DiTs, share EDM's loss weight and EDM's prediction target,
# a mixture of image and noise that has unit variance at every noise level (*F-prediction* in the
# tables). So they learn in a fraction of the time, and agree more easily. The models of the
# `gpu` and `paper` profiles each have their own.) Some runs of one recipe differ only in the seed.
# Three more models make an image in one step: a progressively distilled student and two consistency
# models, one distilled and one trained (`06_distillation` has their teacher and all stages).
#
# The closed forms are the optimal denoiser of the training set (it can only copy), the Gaussian
# denoiser (it knows only the mean and the covariance of the data) and the equivariant local score
# of Kamb & Ganguli (it denoises every pixel from those patches of the training images that look
# like its surroundings). GANs and VAEs are the contrast: they take 128 numbers, a fixed projection
# of the same noise.
#
# On the `laptop` profile the weights and the images come from `zoo/`, one picture per model, its
# *sheet*. The first few images of every model are generated again here and compared with the sheet.

# %%
everything = models.unconditional(sizes, training, device)
images = models.all_samples(everything, sizes)
check = tables.check_sheets(everything, images, sizes.live)
output.table(check, "tab_sheets_generated_again")

# %% [markdown]
# Each column below is one noise. Read it downwards: where the paper is right, all rows from
# `ddpm-vp` to `ct` show the same thing. Then look at the row of the Gaussian denoiser: whatever it
# shows too needs no more than the mean and the covariance.

# %%
output.figure(plots.sample_grid(images, title="One noise per column, one model per row"),
              "fig_samples")

# %% [markdown]
# ## Reproducibility
#
# For two models and the same noises, **RP** is the share of noises whose two images are copies of
# each other according to a copy-detection descriptor; the **MAE score** is the share whose mean
# absolute pixel difference is under 15 of 255. RP does not see grain: the descriptor is trained to
# recognize an image under noise and blur, so two models may have an RP of 1.00 and an MAE score
# of .00. Every score of two models has a 95 % interval over noises (Wilson's; Newcombe's for
# differences; bootstrap for means) and a baseline, the same score with the noises shuffled. The
# many-step models are outlined. The paper's descriptor, SSCD, is made for larger pictures and must
# be downloaded. The project's own descriptor for 32×32 images takes its place here, under its own
# name; a table below gives RP under every available descriptor.

# %%
features = descriptors.features(describe, images)
copies = scores.copies(describe.threshold)
rp = scores.pairwise(features, copies)
mae = scores.pairwise(images, scores.close)
output.table(mae, "tab_mae_pairs")
output.table(rp, "tab_rp_pairs").head(3)

# %%
diffusion = [name for name, model in everything.items() if model.trained_diffusion]
many_steps = [name for name in diffusion if everything[name].evaluations > 1]
contrast = [name for name, model in everything.items() if model.family in ("GAN", "VAE")]
shown = [*diffusion, "gaussian", "local", "optimal"]
note = f"{sizes.noises} noises, descriptor {describe.name} > {describe.threshold:.2f}"
output.figure(plots.heatmaps({"RP": rp, "MAE score": mae}, shown, note=note,
                             groups={"many steps": many_steps}), "fig_rp_mae_heatmaps")

# %% [markdown]
# Is that more than what each of them shares with the Gaussian denoiser? Each point is a pair of
# many-step models; above the diagonal they agree more with each other than either does with it. The
# table gives the same by network family, because the paper says that the architecture does not
# matter. It asks one more question, which needs no threshold and has no ceiling: on how many noises
# are two models *nearer to each other* than either is to the Gaussian denoiser? (About 0 if they
# share nothing but that denoiser, a third if the three are equally far apart; more and less here:
# than half.)

# %%
compared = {name: scores.beside_control(scores.among(pairs, many_steps),
                                        scores.across(pairs, many_steps, ["gaussian"]))
            for name, pairs in {"RP": rp, "MAE score": mae}.items()}
title = f"Every two models, and each with the Gaussian denoiser; {sizes.noises} noises"
output.figure(plots.against_control(compared, "the Gaussian denoiser", title), "fig_beside_control")
of_many = {name: features[name] for name in many_steps}
nearer = scores.pairwise(of_many, scores.nearer_than(features["gaussian"]))
output.table(nearer, "tab_nearer_to_each_other")
compared["nearer to each other"] = nearer.assign(more=nearer.low > 1 / 2, less=nearer.high < 1 / 2)
output.table(tables.by_family(compared, {name: everything[name].family for name in many_steps}),
             "tab_agreement_by_family")

# %% [markdown]
# The intervals are over noises and do not cover what another training seed would change. Two
# recipes were trained with two seeds; this table gives RP of both seeds' models with every other
# model.

# %%
seeds = [(name, f"{name}-seed1") for name in diffusion if f"{name}-seed1" in diffusion]
output.table(tables.between_seeds(of_many, seeds, copies), "tab_rp_between_seeds")

# %% [markdown]
# ## What no Gaussian denoiser makes
#
# Change the sign of a noise, and the image of a Gaussian denoiser, or any other affine denoiser, is
# mirrored at the mean image. So take half the sum of a model's images of a noise and of its
# opposite, less the mean over noises. This *even part* of the map from noise to image holds nothing
# that a mean and a covariance could explain. It is a few hundredths of the variance. If models
# agree because they learned the same, and not only the same covariance, their even parts are alike
# too: the upper map has their cosine for every two models on the same noise (0 with shuffled
# noises).
#
# But pixels end at black and white, which bends every image in the same way. So there is one more
# control, the Gaussian denoiser's image limited to the range of pixels (the tanh of each pixel). It
# has an even part and no other knowledge; the lower map has what the models share without it. GANs
# and VAEs also have an even part, and so does the optimal denoiser, which copies the same training
# images.

# %%
limited = models.limited(everything["gaussian"])
asked = {name: everything[name] for name in [*diffusion, "optimal", *contrast]}
whole = tables.even_parts_of({limited.name: limited} | asked, sizes.opposites)
parts = tables.even_parts_of(asked, sizes.opposites, limited)
even, rest = (scores.pairwise(some, scores.cosine) for some in (whole, parts))
beside = {pair: list(product(pair, contrast)) for pair in combinations(many_steps, 2)}
gain = scores.gains(parts, beside, scores.cosine)  # over the pairs of either with a GAN or VAE
output.table(gain, "tab_even_parts_over_contrast")
output.table(tables.over("even part", {"whole": even, "without the limited Gaussian's": rest}),
             "tab_even_parts_alike")
maps = {"Cosine of even parts": even, "Without the limited Gaussian's": rest}
output.figure(plots.heatmaps(maps, [*diffusion, limited.name, "optimal", *contrast], 0.0,
                             f"mean over {sizes.opposites} noises and their opposites; "
                             "blank below: the part that is taken out of all",
                             {"many steps": many_steps}), "fig_even_parts")
output.table(tables.even_parts(asked | {"gaussian": everything["gaussian"], limited.name: limited},
                               sizes.opposites), "tab_even_parts", digits=3)

# %% [markdown]
# ## GANs and VAEs
#
# The same two scores for GANs and VAEs, beside the two many-step diffusion models that agree least
# by RP.

# %%
pairs = scores.among(rp, many_steps)
least = pairs.loc[pairs.score.idxmin(), ["model", "other"]].tolist()
output.figure(plots.heatmaps({"RP": rp, "MAE score": mae}, contrast + least, floor=0.0, note=note),
              "fig_contrast_heatmaps")

# %% [markdown]
# ## Do they copy?
#
# Models that all copy their training set would agree for a trivial reason. **GL** is the share of
# samples that copy no training image. Its baselines are held-out real images and closed forms that
# cannot copy: an image that is far from any photograph scores 1 whoever made it. NFE is the number
# of network evaluations per image. The Fréchet distance (FD) is taken in the descriptor's own
# feature space, so it compares rows of this table and nothing else. It also rewards copying, as the
# row of the optimal denoiser shows.

# %%
known = tables.features_of(describe, training)
real = tables.features_of(describe, held_out)
judged = features | {"held-out": real[:sizes.held_out]}
gl = tables.gl_table(judged, known, describe.threshold)
output.table(gl, "tab_gl")
rows = tables.model_table(everything, features, gl, real, describe.name)
output.table(rows, "tab_models")

# %% [markdown]
# ### Explore: the nearest training images
#
# In JupyterLab, pick a noise and see what every model makes of it, with the most similar training
# image according to the descriptor. (In a batch run, explorations are static pictures of their
# first state.)

# %%
explore.nearest(images, features, training.pixels, known, describe.threshold)

# %% [markdown]
# ## The noise hyperplane
#
# Three noises span a plane, and every point of it is a noise (rescaled to unit variance). Its
# colour tells which of the three corner images the model's image is most like; the paler, the less
# alike. Models that learned the same map from noise to image divide the plane alike. But so does
# anything smooth: the first map shows which corner each noise itself is nearest to, and the GANs
# and VAEs follow it too. So likeness here is weaker evidence than it looks. Where the colour is
# pale, the image is like none of the three, and which of them is the least unlike says little:
# there even seeds of one recipe differ. A model that jumps, as the optimal denoiser does between
# training images, breaks the pattern where the colours are full. (The local score is left out: it
# takes a second per image.)

# %%
planes = {name: models.hyperplane_samples(model, sizes.hyperplane)
          for name, model in everything.items() if name != "local"}
maps = {name: scores.hyperplane_map(*(descriptors.features(describe, part) for part in plane))
        for name, plane in planes.items()}
nearest = (normalize(part.flatten(1)) for part in models.hyperplane_noises(sizes.hyperplane))
maps = {rules.NEAREST: scores.hyperplane_map(*nearest)} | maps
points = f"{sizes.hyperplane} × {sizes.hyperplane} noises; full colour: cosine 1, white: 0"
output.figure(plots.hyperplane_maps(maps, points), "fig_hyperplane")

# %% [markdown]
# ### Explore: the noise hyperplane
#
# Move the point over the plane to see every model's image there, beside its map.

# %%
explore.hyperplane(planes, maps)

# %% [markdown]
# ## Does the conclusion depend on the descriptor?
#
# First, how good is each descriptor? Test images, each distorted in ten ways, must be found among
# the originals and 10,000 distractors (µAP: micro average precision, as the authors of SSCD define
# it). The first two rows have 1,000 originals, the others 100, since the two large networks are
# slow: compare only rows with the same number of queries. The distortions are of the kinds that the
# project's descriptor was trained to see through, so this is its home ground.
#
# Every threshold but SSCD's own is chosen by one rule, on images the descriptor was not trained on:
# five in a million pairs of different real images exceed it. How many test pairs exceed it is
# measured afterwards (near-duplicates, of which CIFAR-10 has some, count as errors). This table was
# measured once and is shipped.
#
# The next table is computed here: RP of all diffusion models, students included, under every
# descriptor, and of each with the Gaussian denoiser. RP depends on the threshold, so the table also
# asks a question without one: of all images of another model, is the one from the same noise the
# most similar (*same noise first*)? It has few noises and no intervals.

# %%
output.table(tables.copy_detection(), "tab_copy_detection", digits=3).T

# %%
some = {name: images[name][:16] for name in diffusion}
by_descriptor = tables.rp_by_descriptor(some, sizes.descriptors, device, images["gaussian"][:16])
output.table(by_descriptor, "tab_rp_by_descriptor")

# %% [markdown]
# For one descriptor, does the conclusion depend on the cosine from which two images count as
# copies? The first column has the descriptor's own threshold and others; the models are the
# many-step ones alone. *more* and *less*: how many pairs agree more with each other than either
# does with the Gaussian denoiser, and how many less, with non-overlapping intervals.

# %%
by_threshold = tables.rp_by_threshold(of_many, features["gaussian"], describe.threshold)
output.table(by_threshold, "tab_rp_by_threshold")

# %% [markdown]
# Where the descriptors differ, look at how well each recognizes an image under noise and blur
# (first table). One that fails there calls two images different that differ only in grain, and
# grain is what models of a small training budget differ in.
#
# ## The claims, and the paper's numbers beside ours
#
# Each verdict is computed by the rule beside it. A number of the paper agrees when it lies in our
# interval. Only MAE compares like with like: RP here uses another descriptor than the paper's.
# Which of our models stands for DDPMv4 and which for DDPMv6 is this project's guess; the source
# does not say how they differ. Where our number is higher, remember that models near the Gaussian
# denoiser agree for that reason; where it is lower, look first at the training budget in the table
# of models.

# %% tags=["nbval-ignore-output"]
numbers = published.beside_heat_maps(rp, mae)
output.table(numbers, "tab_paper_numbers")
output.figure(plots.beside_paper(numbers, "The paper's 42 numbers and ours"), "fig_paper_numbers")
winners = {name: winner for name, (winner, _) in maps.items()}
verdicts = rules.unconditional(rp, mae, diffusion, many_steps, contrast, rest, gain, gl,
                               winners)
claims.save(verdicts, "unconditional", output, device)
