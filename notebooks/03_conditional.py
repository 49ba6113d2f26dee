# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Conditional models
#
# *Section 4 and appendix D of "The Emergence of Reproducibility and Consistency in Diffusion
# Models" (ICML 2024).*
#
# The paper says that reproducibility carries over to conditional models. Two questions: do two
# class-conditional models make the same image from the same noise and the same class (**RP_cond**)?
# And does a conditional model, for one of its classes, make what an unconditional model makes from
# that noise (**RP_between**)? The definitions of the two scores are this project's. The paper's
# tables of them were not seen, so no number of the paper stands beside ours here.
#
# RP_between takes the best of ten images, and the best of ten may match by luck. So we also take
# the best of ten images that the same conditional model makes from *other* noises. As everywhere,
# there is an untrained control: here the Gaussian denoiser of each class.

# %% tags=["parameters"]
profile: str = "laptop"
descriptor: str = "cifar-copy"
class_noises: int = 0
live: int = 0
shown_noise: int = 0
imagenet: str = ""
device: str = ""

# %%
from paper_utils import claims, conditional, data, descriptors, models, plots, profiles, recipes
from paper_utils import rules, run, scores, tables, zoo

run.check_parameters()
sizes = profiles.get(profile, class_noises=class_noises, live=live)
device = device or sizes.device
output = plots.Output.of(profile, descriptor=descriptor, class_noises=class_noises, live=live,
                         shown_noise=shown_noise, imagenet=imagenet)
describe = descriptors.load(descriptor, device)
copies = scores.copies(describe.threshold)
training = data.load(sizes.dataset)
conditional.check_noise(shown_noise, sizes)
hub = conditional.from_hub(imagenet, sizes.imagenet, device)  # what is not there is told first

# %% [markdown]
# ## The models
#
# Four conditional models, each the twin of an unconditional one of section 2: the same network and
# training with a class label, a tenth of the labels dropped to allow guidance. On the `laptop`
# profile weights and images come from `zoo/conditional/`. The images of each model's first noise
# are generated again here, with every class, and compared.

# %%
found = conditional.trained(sizes, training, device)
twin = conditional.twins(found)
control = conditional.gaussian(training)
images = conditional.samples(found | {control.name: control}, sizes)
check = tables.check_sheets(found, images, min(sizes.live, 1))
plain_models = models.by_name(recipes.specs(profile), sizes, training, device)
about = tables.what_models_are(found | {name: plain_models[name] for name in twin.values()})
output.table(about.merge(check, on="model", how="left"), "tab_conditional_models")

# %%
closed = {"gaussian": models.closed_form("gaussian", training, device)}
unconditional = models.shipped_samples(plain_models | closed, zoo.FOLDER, sizes.class_noises,
                                       sizes.shipped)
row = {name: conditional.beside_twin(unconditional[twin[name]], images[name], shown_noise)
       for name in found}
output.figure(plots.sample_grid(row, columns=11, heads=["twin, no class", *data.CLASSES],
                                title=f"Noise {shown_noise}: unconditional twin, then each class"),
              "fig_classes")

# %% [markdown]
# Read a column downwards: same noise, same class, four models. Read a row: how much the class
# changes. Models of a small training budget have learned little more of a class than its colours;
# the layout comes from the noise.
#
# ## RP_cond
#
# RP_cond is averaged over all classes of a noise; the intervals resample noises. Beside it stand RP
# of the unconditional twins on the same noises and the difference of the two; below, the MAE score.
# The column *other class* is the same score with another class for the second model: how much of
# RP_cond comes from the noise and not from the class. The second table gives it for two images of
# one model: where it is high, the model makes little of its classes.

# %%
features = {name: conditional.features(describe, rows) for name, rows in images.items()}
plain = descriptors.features(describe, unconditional)
rp_cond = scores.pairwise(features, copies)
rp_cond["other class"] = conditional.other_class(rp_cond, features, copies)
rp_plain = scores.pairwise(plain, copies)
compared = [*twin.values(), "gaussian"]
rp_twins = scores.among(rp_plain, compared)
mae_cond = scores.pairwise(images, scores.close)
mae_twins = scores.among(scores.pairwise(unconditional, scores.close), compared)
output.table(rp_twins.assign(**{"MAE score": mae_twins.score}), "tab_rp_unconditional_twins")
output.table(rp_cond.assign(**{"MAE score": mae_cond.score}), "tab_rp_cond")

# %%
output.table(conditional.of_another_class(features, copies), "tab_another_class")

# %%
short = {f"{name}-cond": name for name in compared}
maps = {"RP_cond": rp_cond.replace(short), "RP, unconditional": rp_twins,
        "MAE_cond": mae_cond.replace(short), "MAE score, unconditional": mae_twins}
note = f"{sizes.class_noises} noises, 10 classes, {describe.name} > {describe.threshold:.2f}"
output.figure(plots.heatmaps(maps, compared, floor=0.0, note=note, columns=2), "fig_rp_cond")

# %%
ours = {name: features[name] for name in found}
gaps = conditional.carried_over(ours, plain, twin, copies)
output.table(gaps, "tab_rp_cond_against_twins")

# %% [markdown]
# ## RP_between
#
# Rows are the unconditional models of section 2, columns conditional ones. Right: one class instead
# of the best, averaged over all ten; what is left of RP_between there does not depend on finding
# the class. `tab_rp_between.csv` also has the maximum over as many samples from other noises
# (*random*).

# %%
between = conditional.between(plain, features, describe.threshold)
output.table(between, "tab_rp_between")
titles = {"RP_between": "score", "one class, mean of ten": "one class"}
output.figure(plots.rectangles(between, list(plain), list(features), titles, note),
              "fig_rp_between")

# %% [markdown]
# Which class is it? For each model: how often each class gives the image most like its
# unconditional twin's, and how often two models name the same class.

# %%
winners = conditional.winning_classes(plain, ours, twin, data.CLASSES)
output.table(winners, "tab_winning_classes")
output.figure(plots.shares(winners, "class", "model", 1 / len(data.CLASSES), "share of noises",
                           "Class most similar to the unconditional image, "
                           f"{sizes.class_noises} noises"),
              "fig_winning_classes")

# %%
same = conditional.same_winner(plain, ours, twin)
output.table(same, "tab_same_winning_class")

# %% [markdown]
# ## Guidance
#
# Classifier-free guidance at several weights: 1 is the conditional model, 0 the same network
# without a class. Noise *k* has class *k* modulo 10. The dashed line is the control: the Gaussian
# denoisers of the class and of all images, under guidance of the weight (0 to 2; beyond that, many
# of its pixels leave their range) that agrees most with whichever of the two models is nearer to
# it. That need not be the models' own weight, for they make less of a class than it does.

# %%
guided = conditional.guided_samples(found, {name: images[name] for name in found}, sizes)
again = {name: conditional.guided(model, 2.0) for name, model in found.items()}
tables.check_sheets(again, guided[2.0], min(sizes.live, 2))  # an error where they differ
described = descriptors.features(describe, guided)
guidance = conditional.over_guidance(described, copies)
output.table(guidance, "tab_rp_cond_guidance")
guided_control = conditional.guided_control(training, unconditional["gaussian"],
                                            images[control.name], sizes, device)
with_control = conditional.with_guided_gaussian(
    described, descriptors.features(describe, guided_control), copies)
output.table(with_control, "tab_guidance_with_gaussian")
beside = conditional.guidance_beside_control(guidance, with_control)
output.figure(plots.curves(beside, "what", "guidance", "guidance weight", columns=3,
                           ylabel="RP_cond", title="Under guidance, noises of one class each"),
              "fig_guidance")

# %%
first = next(iter(found))
rows = {f"weight {weight:g}": part[first] for weight, part in guided.items()}
output.figure(plots.sample_grid(rows, columns=10, heads=data.CLASSES,
                                title=f"{first}: every column another noise and class"),
              "fig_guidance_samples")

# %% [markdown]
# ## The claims

# %% tags=["nbval-ignore-output"]
networks = scores.among(rp_plain, plain_models)
verdicts = rules.conditional(rp_cond, mae_cond, gaps, networks, between, guidance, with_control,
                             control.name)
claims.save(verdicts, "conditional", output, device)

# %% [markdown]
# ## ImageNet
#
# Class-conditional DiT pipelines of diffusers join through the same interface, by hub name or
# folder (`-p imagenet facebook/DiT-XL-2-256`, several separated by commas; the `paper` profile has
# that one). They need a GPU and their download. Eight noises, ten classes each. For several
# pipelines whose noises have one shape there is also RP_cond, by the paper's own descriptor.

# %%
pictures = {name: models.samples(model, 8) for name, model in hub.items()}
if hub:
    rows = {name: part[0] for name, part in pictures.items()}
    output.figure(plots.sample_grid(rows, columns=10), "fig_imagenet")
if len(hub) > 1:
    sscd = descriptors.load("sscd", device)
    output.table(conditional.imagenet_rp(hub, pictures, sscd), "tab_rp_cond_imagenet")
