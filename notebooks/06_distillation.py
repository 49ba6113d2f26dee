# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Distillation
#
# *Sections 2 and 4 of "The Emergence of Reproducibility and Consistency in Diffusion Models" (ICML
# 2024).*
#
# A student learns to do in one or a few steps what takes its teacher dozens. Does it still make the
# image that other diffusion models, which it never saw, make from the same noise? The paper has two
# students in its heat maps. A progressively distilled one agrees with every other model (RP .82 to
# .91). One of consistency training agrees less (.70 to .81), but most with the other student (.91).
#
# This project trained both, together with consistency distillation and improved consistency
# training, and keeps every stage. Two more questions: what do the few steps cost, and is the
# agreement an artefact of blur?

# %% tags=["parameters"]
profile: str = "laptop"
descriptor: str = "cifar-copy"
grid_noises: int = 0
live: int = 0
device: str = ""

# %%
from paper_utils import claims, data, descriptors, models, plots, profiles, published, rules, run
from paper_utils import scores, students, tables, zoo

run.check_parameters()
sizes = profiles.get(profile, grid_noises=grid_noises, live=live)
device = device or sizes.device
output = plots.Output.of(profile, descriptor=descriptor, grid_noises=grid_noises, live=live)
describe = descriptors.load(descriptor, device)
training, held_out = data.load(sizes.dataset), data.load(sizes.dataset, "test")

# %% [markdown]
# ## Teacher and students
#
# One U-Net is the teacher. **Progressive distillation** (Salimans & Ho 2022) repeatedly halves its
# DDIM steps: a student of n steps starts as a copy of the one of 2n steps and learns to land in one
# step where that one lands in two. **Consistency models** (Song et al. 2023) learn the same answer
# for all points of a trajectory: its end. `cd` follows the teacher's trajectories, `ct` learns from
# data alone, and `ict` does so with the schedule, loss and noise levels of Song & Dhariwal (2024),
# at a smaller scale and without their dropout and optimizer. With more than one step, a consistency
# model adds new noise between steps. Here that noise is computed from the starting noise, so that
# all three get the same.
#
# *images seen* counts a student's own training; those that have a teacher begin with its weights.
# Differences from their papers: `cd` and `ct` compare images by squared error (the papers' best use
# LPIPS, whose weights are a download), `ct` ends at 41 levels on `laptop` and keeps an averaged
# target network, which the later paper drops. Every model here was trained once. Intervals are over
# noises and do not cover what another seed would change.

# %%
found = models.distilled(sizes, training, device)
students.check(found)
made = students.runs(found, sizes)
runs = students.table_of_runs(made)
images = students.samples(made, sizes)
check = tables.check_sheets(found, students.sheets(found, sizes), sizes.live)
output.table(tables.what_models_are(found).merge(check, on="model"), "tab_distilled_models")

# %%
shown = [name for name in made if name in (students.TEACHER, "teacher, DDIM 1", *found)]
output.figure(plots.sample_grid({name: images[name] for name in shown},
                                title="One noise per column: down the stages"),
              "fig_distilled_samples")

# %% [markdown]
# ## With the teacher
#
# Agreement with the teacher's own samples (Heun, 18 steps) against the number of steps. `teacher,
# DDIM` is the undistilled teacher with as few steps. `teacher, DPM-Solver++` is the same with a
# second-order multistep solver, the better of the two from four steps on; the dashed line is the
# untrained Gaussian denoiser: agreement no higher than that says little.

# %%
gaussian = models.closed_form("gaussian", training)
images |= students.samples({gaussian.name: gaussian}, sizes)
features = descriptors.features(describe, images)
copies = scores.copies(describe.threshold)
note = f"{sizes.grid_noises} noises, descriptor {describe.name} > {describe.threshold:.2f}"
with_teacher = {"RP with the teacher": students.with_teacher(runs, features, copies),
                "MAE score with the teacher": students.with_teacher(runs, images, scores.close)}
output.table(with_teacher["RP with the teacher"], "tab_rp_with_teacher")
output.table(with_teacher["MAE score with the teacher"], "tab_mae_with_teacher")
levels = {label: {"Gaussian denoiser": scores.agreement(rows[gaussian.name],
                                                       rows[students.TEACHER], hits)[0].value}
          for (label, rows, hits) in zip(with_teacher, (features, images), (copies, scores.close))}
output.figure(plots.curves(with_teacher, "series", "steps", "steps", True,
                           f"Agreement with the teacher, {note}", levels=levels),
              "fig_with_teacher")

# %% [markdown]
# With more than one step, consistency models leave the teacher's image. But the teacher never got
# the new noise, and the paper's question is whether models agree that are given the same noise. So
# here the teacher gets it too: its image is noised again at the same levels with the same noise,
# and its own solver continues from there. The Gaussian denoiser is treated likewise. Curves are
# means over the three consistency models, except *teacher and Gaussian*: those two with each other.

# %%
again = {one.name: one for model in (found[students.TEACHER], gaussian)
         for one in students.restarted(model).values()}
restarted = students.samples(again, sizes)
noised, of_noised = images | restarted, features | descriptors.features(describe, restarted)
fresh = {"RP": students.with_fresh_noise(of_noised, copies),
         "MAE score": students.with_fresh_noise(noised, scores.close)}
fresh_pairs = students.fresh_pairs(of_noised, copies)
output.table(tables.over("steps", fresh_pairs), "tab_rp_fresh_pairs")
output.table(fresh["RP"], "tab_rp_fresh_noise")
output.table(fresh["MAE score"], "tab_mae_fresh_noise")
output.figure(plots.curves(fresh, "what", "steps", "steps", True,
                           f"Consistency models, all given the same fresh noise; {note}"),
              "fig_fresh_noise")

# %% [markdown]
# ## With models they never saw
#
# Models of section 2, of two families, trained apart from the teacher, and the Gaussian denoiser.
# Below, every stage of progressive distillation is compared with the teacher's own samples (*first
# teacher, Heun*), with the stage that was its teacher (*the stage before*), with the consistency
# models at one step (*other students*) and with the models of section 2. A group's curve is the
# mean over its models.

# %%
unseen = models.by_name(sizes.families, sizes, training, device)
strangers = unseen | {gaussian.name: gaussian}
other = {name: rows[:sizes.grid_noises] for name, rows in models.shipped_samples(
    strangers, zoo.FOLDER, max(sizes.noises, sizes.grid_noises), sizes.shipped).items()}
everyone = images | other
described = features | descriptors.features(describe, other)
groups = students.partners(found, unseen)
stages = {"RP": students.down_the_stages(runs, described, groups, copies),
          "MAE score": students.down_the_stages(runs, everyone, groups, scores.close)}
output.table(stages["RP"], "tab_rp_stages")
output.table(stages["MAE score"], "tab_mae_stages")
output.figure(plots.curves(stages, "partner", "steps", "steps of the progressive student", True,
                           f"Agreement of every stage, {note}",
                           colours=("U-Nets", "transformers")), "fig_stages")

# %%
one_step = [name for name in ("progressive-1", *students.CONSISTENT) if name in found]
names = [students.TEACHER, *one_step, *strangers]
rp = scores.pairwise({name: described[name] for name in names}, copies)
mae = scores.pairwise({name: everyone[name] for name in names}, scores.close)
output.table(rp, "tab_rp_students")
output.table(mae, "tab_mae_students")
nearer = scores.pairwise({name: described[name] for name in names if name != gaussian.name},
                         scores.nearer_than(features[gaussian.name]))
output.table(nearer, "tab_nearer_students")
output.figure(plots.heatmaps({"RP": rp, "MAE score": mae}, names,
                             note=f"{note}; outlined: students", groups={"students": one_step}),
              "fig_students_heatmaps")

# %% [markdown]
# Cosine of even parts on the same noise, of the teacher, its students and models of section 2. RP
# is near its ceiling here and the Gaussian denoiser shares it, so this asks for what that denoiser
# cannot make: the *even part* (see `01_unconditional`), the part of an image that stays when the
# noise changes sign, without what the range of pixels alone makes of a Gaussian image. It is about
# 0 with shuffled noises.

# %%
asked = {name: found[name] for name in [students.TEACHER, *one_step]} | unseen
parts = tables.even_parts_of(asked, sizes.opposites, models.limited(gaussian))
even = scores.pairwise(parts, scores.cosine)
gain = students.over_untaught(parts, scores.cosine)
output.table(even, "tab_even_parts_students")
output.table(gain, "tab_even_parts_over_untaught")
output.figure(plots.heatmaps({"Cosine of even parts": even}, [*parts], 0.0, groups={
    "students": one_step}, note=f"mean over {sizes.opposites} noises and their opposites; "
    "outlined: students"), "fig_even_parts_students")

# %% [markdown]
# ## The price
#
# Fréchet distance to held-out images in the descriptor's own features (it compares curves of this
# figure and nothing else; the same number of real images also has a distance above 0, the dashed
# line), sharpness (what a filter of one pixel takes away, over that of real images), and the time
# per image on this machine. A low distance alone does not mean good images, because the descriptor
# ignores grain: where sharpness is well above 1, the image is noisy.

# %% tags=["nbval-ignore-output"]
real = tables.features_of(describe, held_out)
photos = held_out.pixels[:sizes.held_out]
price = students.price(runs, made, images, features, photos, real)
output.table(price, "tab_price")
sharp = students.sharpness(images[gaussian.name]) / students.sharpness(photos)
print(f"sharpness of the Gaussian denoiser's images: {sharp:.2f}")
n, known = sizes.grid_noises, tables.features_of(describe, training)
panels = {label: price.assign(score=price[column]) for label, column in (
    (f"FD, {n} images", "FD"), ("sharpness", "sharpness"), ("ms per image", "ms per image"))}
levels = {f"FD, {n} images": {"real images": scores.frechet(known[:n], real)},
          "sharpness": {"real images": 1.0}}
output.figure(plots.curves(panels, "series", "evaluations", "network evaluations", True,
                           f"The price of few steps, descriptor {describe.name}",
                           log_y=["ms per image"], levels=levels), "fig_price")

# %% [markdown]
# ## Is it blur?
#
# The progressive student of one step blurs. Does it agree with models it never saw more than any
# equally blurred image would? A low-pass filter brings the teacher's own images to the same
# sharpness. The curve is the teacher through wider and wider filters; what of a student lies above
# it is not blur.

# %%
soft = students.by_sharpness(everyone, described, one_step, list(unseen), describe, photos, copies)
gains = students.beyond_blur(everyone, described, one_step, list(unseen), describe, copies)
output.table(soft, "tab_low_pass")
output.table(gains, "tab_beyond_blur")
output.figure(plots.curves({"RP with unseen models": soft}, "who", "sharpness",
                           "sharpness / that of real images", title=note), "fig_low_pass")

# %% [markdown]
# ## The claims, and the paper's numbers beside ours
#
# How many steps the paper's `Progressivev1` takes is not known here; ours takes one. The paper's
# numbers use another descriptor (SSCD) with its own threshold, so agreement of a number says that
# both are high or low, not more.

# %% tags=["nbval-ignore-output"]
numbers = published.beside_heat_maps(rp, mae)
with_student = numbers[["our model", "our other"]].isin(one_step).any(axis=1)
output.table(numbers[with_student & numbers.ours.notna()], "tab_paper_numbers_students")

# %% tags=["nbval-ignore-output"]
sharp = price.set_index("run").sharpness[[students.TEACHER, *one_step]].to_dict()
verdicts = rules.distillation(rp, mae, nearer, even, gain, list(unseen), fresh["RP"], fresh_pairs,
                              gains, sharp)
claims.save(verdicts, "distillation", output, device)
