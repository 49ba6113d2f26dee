"""How well a descriptor finds copies: a benchmark on CIFAR-10 images no descriptor here has seen.

Queries are distorted copies of test images, each distortion at one fixed strength; references are
the originals among distractors. Distractors are half test images, half the last 5,000 training
images, which are held out of the training of the project's own descriptor. `python -m
paper_utils.copy_detection` writes the table.

The threshold rule, the same for every descriptor: the cosine that a given share (5e-6) of all
pairs of held-out training images exceeds. The share of test pairs that exceeds it is then measured.
Near-duplicates, of which CIFAR-10 has many, count as false here, so both shares are upper bounds:
of the 62 pairs above cifar-copy's threshold all but about five look like one photograph.
"""

import io
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from paper_utils import data, descriptors, files, noise
from paper_utils.errors import UserError, exit_code, positive
from paper_utils.precision import bf16

HELD_OUT = 5_000  # the last training images: never trained on by cifar-copy, so fit to calibrate on
FALSE_POSITIVES = 5e-6
BLOCK = 1 << 22  # pairs whose ranks are counted at a time
PIECE = 50       # images whose features are one artifact

# --- distortions: uint8 [B, 3, H, W] and a generator -> the same shape, as float in 0..255 --------


def flip(images: Tensor, g: torch.Generator) -> Tensor:
    return images.flip(3).float()


def affine(images: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Rotate (radians, [B]), scale the viewed window (zoom, [B]), move it ([B, 2], half widths)."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1),
                         torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def shift(images: Tensor, g: torch.Generator) -> Tensor:
    """By 2 to 6 pixels of 32 along both axes, border repeated."""
    n = len(images)
    size = draw((n, 2), g, 2, 6).round() / 16 * draw((n, 2), g, -1, 1).sign()
    return affine(images, torch.zeros(n), torch.ones(n), size)


def crop(images: Tensor, g: torch.Generator) -> Tensor:
    """A window of 40 to 70 % of the area anywhere in the image, enlarged to the full size."""
    zoom = draw((len(images),), g, 0.4, 0.7).sqrt()
    return affine(images, torch.zeros(len(images)), zoom,
                  draw((len(images), 2), g, -1, 1) * (1 - zoom)[:, None])


def rotation(images: Tensor, g: torch.Generator) -> Tensor:
    """By 10 to 25 degrees either way."""
    n = len(images)
    angle = draw((n,), g, 10, 25).deg2rad() * draw((n,), g, -1, 1).sign()
    return affine(images, angle, torch.ones(n), torch.zeros(n, 2))


def white_noise(images: Tensor, g: torch.Generator) -> Tensor:
    """Gaussian, standard deviation 20 of 255."""
    return images + 20 * torch.randn(images.shape, generator=g)


def blur(images: Tensor, g: torch.Generator) -> Tensor:
    """Gaussian, standard deviation 1.2 pixels, border reflected."""
    return transforms.gaussian_blur(images.float(), 9, 1.2)


def colour(images: Tensor, g: torch.Generator) -> Tensor:
    """Gain 0.7 to 1.3 for each channel, contrast 0.6 to 1.4 about the mean, offset up to 25."""
    n = len(images)
    gained = images * draw((n, 3, 1, 1), g, 0.7, 1.3)
    mean = gained.mean((1, 2, 3), keepdim=True)
    contrast = mean + (gained - mean) * draw((n, 1, 1, 1), g, 0.6, 1.4)
    return contrast + draw((n, 1, 1, 1), g, -25, 25)


def grey(images: Tensor, g: torch.Generator) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand(images.shape)


def jpeg(images: Tensor, g: torch.Generator) -> Tensor:
    """Pillow's JPEG, quality 20, chroma at half resolution."""
    return torch.stack([_through_jpeg(image) for image in images]).float()


def _through_jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=20)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def patch(images: Tensor, g: torch.Generator) -> Tensor:
    """A square of 12 x 12 pixels of one random colour, anywhere."""
    changed = images.float()
    corners = torch.randint(0, images.shape[-1] - 11, (len(images), 2), generator=g)
    for image, (y, x) in zip(changed, corners.tolist()):
        image[:, y:y + 12, x:x + 12] = draw((3, 1, 1), g, 0, 255)
    return changed


def draw(shape: tuple[int, ...], g: torch.Generator, low: float, high: float) -> Tensor:
    """Uniform draws between low and high."""
    return low + (high - low) * torch.rand(shape, generator=g)


DISTORTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": flip, "shift": shift, "crop": crop, "rotation": rotation, "noise": white_noise,
    "blur": blur, "colour": colour, "grey": grey, "jpeg": jpeg, "patch": patch}


def distort(images: Tensor, name: str) -> Tensor:
    """Copies under the named distortion, uint8; every hundred images draw from a stream of their
    own, so that more images do not change the first ones."""
    changed = [DISTORTIONS[name](rows, noise.stream("copy-detection", name, k))
               for k, rows in enumerate(images.split(100))]
    return torch.cat(changed).round().clamp(0, 255).to(torch.uint8)


# --- measures -----------------------------------------------------------------------------------

def micro_average_precision(scores: Tensor, is_match: Tensor, total: int) -> float:
    """µAP of DISC21 and SSCD: average precision over all (query, reference) pairs pooled.

    scores, is_match (bool): same shape, one entry a pair; total: the number of true pairs, found
    or not, which recall is counted against. Of equal scores the false pairs come first, as in the
    authors' evaluation: a tie earns nothing.
    """
    return float(_precisions(scores, is_match).sum() / total)


def recall_at_precision(scores: Tensor, is_match: Tensor, total: int,
                        precision: float = 0.9) -> float:
    """The largest recall at which precision is still at least `precision` (SSCD: R@P90)."""
    enough = (_precisions(scores, is_match) >= precision).nonzero()
    return (int(enough.max()) + 1) / total if len(enough) else 0.0


def _precisions(scores: Tensor, is_match: Tensor) -> Tensor:
    """Precision at each true pair, in descending order of its score; float64 [true pairs]."""
    matches = scores[is_match].sort().values
    beaten = torch.zeros(len(matches) + 1, dtype=torch.int64)  # [k]: false pairs beating k matches
    for some, true in zip(scores.flatten().split(BLOCK), is_match.flatten().split(BLOCK)):
        beats = torch.searchsorted(matches, some[~true], right=True)
        beaten += torch.bincount(beats, minlength=len(beaten))
    above = beaten.flip(0).cumsum(0)[:-1]
    found = torch.arange(1, len(matches) + 1)
    return found.double() / (found + above)


def pair_similarities(features: Tensor) -> Tensor:
    """Cosines of all unordered pairs of rows, [N, D] -> [N (N - 1) / 2]."""
    cosines = features @ features.T
    return cosines[torch.ones_like(cosines, dtype=torch.bool).triu(1)]


def threshold_at(similarities: Tensor, share: float) -> float:
    """The smallest of `similarities` that at most `share` of them exceed (strictly)."""
    count = len(similarities)
    return similarities.kthvalue(max(1, count - int(share * count))).values.item()


# --- the benchmark ------------------------------------------------------------------------------

def split_images(n_queries: int, n_distractors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sources and test distractors from the test set, the other distractors from the held-out ones.

    Raises UserError when there are not that many.
    """
    half = n_distractors // 2
    if not 2 <= half <= HELD_OUT or not 1 <= n_queries <= HELD_OUT:
        raise UserError(f"{n_queries} queries and {n_distractors} distractors: choose 4 to "
                        f"{2 * HELD_OUT} distractors, 1 to {HELD_OUT} queries")
    test = data.load("cifar10", "test").pixels
    held_out = data.load("cifar10", "train").pixels[-HELD_OUT:]
    return test[:n_queries], test[HELD_OUT:][:half], held_out[:half]


def measure(embed: Callable[[Tensor], Tensor], sources: Tensor, distractors: Tensor,
            held_out: Tensor) -> dict:
    """One descriptor's row. embed: images uint8 [N, 3, H, W] -> unit rows [N, D]."""
    originals, others, calibration = map(embed, (sources, distractors, held_out))
    references = torch.cat([originals, others, calibration])
    copies = {name: embed(distort(sources, name)) for name in DISTORTIONS}
    threshold = threshold_at(pair_similarities(calibration), FALSE_POSITIVES)
    test = torch.cat([originals, others])
    nearest = descriptors.max_similarity(originals, torch.cat([others, calibration]))
    return (retrieval(copies, originals, references)
            | {"threshold": threshold,
               "recall at threshold": recall_above(copies, originals, threshold),
               "test pairs above": share_above(pair_similarities(test), threshold),
               "test images with one above": share_above(nearest, threshold)})


def retrieval(copies: dict[str, Tensor], originals: Tensor, references: Tensor) -> dict:
    """µAP and R@P90 over all queries, µAP of each distortion alone; query i's match is row i."""
    scores = torch.stack([c @ references.T for c in copies.values()])
    match = torch.eye(len(originals), len(references), dtype=torch.bool).expand(scores.shape)
    total = len(copies) * len(originals)
    each = {name: micro_average_precision(s, m, len(originals))
            for name, s, m in zip(copies, scores, match)}
    return {"µAP": micro_average_precision(scores, match, total),
            "recall at P90": recall_at_precision(scores, match, total)} | each


def recall_above(copies: dict[str, Tensor], originals: Tensor, threshold: float) -> float:
    """Share of all copies whose cosine with their original exceeds the threshold."""
    cosines = torch.cat([descriptors.similarity(c, originals) for c in copies.values()])
    return share_above(cosines, threshold)


def share_above(similarities: Tensor, threshold: float) -> float:
    return (similarities > threshold).double().mean().item()


def run_benchmark(names: Iterable[str | descriptors.Descriptor], n_queries: int = 1_000,
                  n_distractors: int = 10_000, half: bool = False):
    """A pandas.DataFrame, a row per descriptor: µAP, recall, thresholds, false positives, speed.

    names: also descriptors of your own. n_queries test images in ten distortions each, among
    n_distractors. half: bfloat16 inside the networks, where the CPU has it. Raises UserError for
    unknown descriptors and sizes, and where two have one name.
    """
    import pandas as pd

    loaded = [descriptors.load(name) for name in names]  # all, before the first is measured
    if len({descriptor.name for descriptor in loaded}) < len(loaded):
        raise UserError("two descriptors have one name: give each row of the table its own")
    parts = split_images(n_queries, n_distractors)
    rows = {}
    for descriptor in loaded:
        embed = partial(kept_features, descriptor, half)
        rows[descriptor.name] = {
            "queries": n_queries * len(DISTORTIONS), "references": sum(map(len, parts)),
            **measure(embed, *parts),
            "images per core second": images_per_second(descriptor, parts[0])}
    return pd.DataFrame(rows).T.rename_axis("descriptor")


def kept_features(descriptor: descriptors.Descriptor, half: bool, images: Tensor) -> Tensor:
    """descriptors.features of uint8 [N, 3, H, W]; an artifact a piece, so a killed run goes on."""
    from paper_utils import tables  # with pandas, which training the descriptor does without

    parts = (data.Images(rows, torch.zeros(len(rows)).long(), "") for rows in images.split(PIECE))
    with bf16("cpu", half):
        return torch.cat([tables.features_of(descriptor, part) for part in parts])


def images_per_second(descriptor: descriptors.Descriptor, images: Tensor) -> float:
    """Images per second of one core's time, float32, after a warm-up call."""
    some = images[:128]
    descriptor(some[:descriptor.batch])
    start = time.process_time()
    descriptors.features(descriptor, some)
    return len(some) / (time.process_time() - start)


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the table as CSV and print it."""
    parser = ArgumentParser(prog="python -m paper_utils.copy_detection", description=main.__doc__)
    parser.add_argument("names", nargs="*", default=["cifar-copy", "pixels"], metavar="descriptor",
                        help=f"any of {', '.join(descriptors.NAMES)}")
    parser.add_argument("--queries", type=positive(int), default=1_000,
                        help="test images (x 10 distortions)")
    parser.add_argument("--distractors", type=positive(int), default=10_000)
    parser.add_argument("--out", type=Path, default=Path("tab_copy_detection.csv"))
    parser.add_argument("--half", action="store_true",
                        help="bfloat16 inside the networks, where the CPU has it")
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _measure(asked))


def _measure(asked: Namespace) -> None:
    files.check_target(asked.out)
    table = run_benchmark(asked.names, asked.queries, asked.distractors, asked.half)
    files.replace_file(asked.out, table.to_csv().encode())
    print(table.T.to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    sys.exit(main())
