"""Networks against independent oracles: published sizes, explicit arithmetic, released names."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paper_utils import networks
from paper_utils.errors import UserError
from paper_utils.networks import (DDPM, DDPMPP, NCSNPP, DiT, MultistageUNet, UNet, UViT, attend,
                                  build, count_parameters, released)

TINY = dict(image_size=16, width=8, channel_mult=(1, 2), blocks=1, attention=(8,))
TOKENS = dict(image_size=16, patch=4, dim=32, depth=2, heads=2)
MAKERS = {
    "ddpm": lambda **k: UNet(**DDPM | TINY | k),
    "ddpm++": lambda **k: UNet(**DDPMPP | TINY | k),
    "ncsn++": lambda **k: UNet(**NCSNPP | TINY | k),
    "patch": lambda **k: UNet(**DDPMPP | TINY | dict(patch=2, dropout=0.1) | k),
    "multistage": lambda **k: MultistageUNet(boundaries=(-0.5, 0.5), **TINY | k),
    "uvit": lambda **k: UViT(**TOKENS | k),
    "dit": lambda **k: DiT(**TOKENS | k),
}
every = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Every tensor that starts at zero made random, so that nothing is hidden by a zero layer."""
    for p in network.parameters():
        nn.init.normal_(p, std=0.1) if not p.any() else None
    return network


def batch(n: int = 6):
    return torch.randn(n, 3, 16, 16), torch.linspace(-1, 1, n)


# --- all networks

@every
@pytest.mark.parametrize("num_classes", [0, 3])
def test_output_is_shaped_like_the_input_and_depends_on_everything(name, num_classes):
    network, (x, t) = awake(MAKERS[name](num_classes=num_classes)).eval(), batch()
    y = network(x, t)
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
    assert not torch.allclose(network(x, t + 0.2), y, atol=1e-6)
    if num_classes:
        one, two = (network(x, t, torch.full((6,), c)) for c in (1, 2))
        assert not torch.allclose(one, two, atol=1e-6)
        assert torch.equal(network(x, t, torch.full((6,), 3)), y)  # the null class is None's


@every
def test_rows_are_independent(name):
    network, (x, t) = awake(MAKERS[name]()).eval(), batch()
    alone = torch.cat([network(x[i:i + 1], t[i:i + 1]) for i in range(len(x))])
    torch.testing.assert_close(network(x, t), alone, rtol=1e-4, atol=1e-5)


@every
def test_gradient_reaches_every_parameter(name):
    network, (x, t) = awake(MAKERS[name](num_classes=3)), batch()
    network(x, t, torch.arange(6) % 4).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "uvit"])
def test_zero_initialised_networks_start_at_zero(name):
    assert not MAKERS[name]()(*batch()).any()


@every
def test_bfloat16_channels_last_agrees_with_float32(name):
    network, (x, t) = awake(MAKERS[name]()).eval(), batch()
    exact = network(x, t)
    network = network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x.to(memory_format=torch.channels_last), t).float()
    assert (rough - exact).norm() < 0.03 * exact.norm()


@every
@pytest.mark.parametrize("dtype, error", [(torch.float16, 0.01), (torch.bfloat16, 0.05),
                                          (torch.float64, 1e-5)])
def test_a_network_runs_in_its_own_precision(name, dtype, error):
    network, (x, t) = awake(MAKERS[name](num_classes=3)).eval(), batch()
    labels = torch.arange(6) % 4
    exact = network(x, t, labels)
    rough = network.to(dtype)(x.to(dtype), t.to(dtype), labels)
    assert rough.dtype == dtype and (rough.float() - exact).norm() < error * exact.norm()


def test_a_perceptron_runs_in_its_own_precision():
    network, x = awake(build("mlp", channels=12)).eval(), torch.randn(6, 12, 1, 1)
    exact = network(x, x[:, 0, 0, 0])
    rough = network.half()(x.half(), x[:, 0, 0, 0].half())
    assert (rough.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("device, asks", [("cpu", True), ("meta", False)])
def test_the_input_of_a_norm_asks_for_a_gradient_on_a_cpu_alone(monkeypatch, device, asks):
    """What saves a CPU's kernel from a crash would break the graph of torch.compile on a GPU."""
    forward, seen = nn.GroupNorm.forward, []
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda self, x: seen.append(
        x.requires_grad) or forward(self, x))
    networks.group_norm(8).to(device)(torch.randn(1, 8, 2, 2, device=device))
    assert seen == [asks]


def test_dropout_is_drawn_in_training_alone():
    block = awake(networks.Block(8, 8, embedding=4, dropout=0.5))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    for mode, same in ((block.train, False), (block.eval, True)):
        mode()
        torch.manual_seed(1)
        first = block(x, emb)
        torch.manual_seed(2)
        assert torch.equal(block(x, emb), first) is same


def test_label_dropout_acts_only_in_training():
    network, (x, t) = awake(UNet(**TINY, num_classes=3, label_dropout=1.0)), batch()
    labels = torch.zeros(6, dtype=torch.long)
    assert torch.equal(network.train()(x, t, labels), network(x, t))
    assert not torch.equal(network.eval()(x, t, labels), network(x, t))


def test_published_sizes():
    """DDPM 35.7 M (Ho et al.), DDPM++ with 9 augmentation inputs 55.7 M (EDM), U-ViT-S 44 M."""
    with torch.device("meta"):
        assert count_parameters(UNet(**DDPM)) == 35_746_307
        assert count_parameters(UNet(**DDPMPP, augment_dim=9)) == 55_733_891
        assert round(count_parameters(UViT()) / 1e6) == 44
        assert round(count_parameters(DiT(channels=4, num_classes=1000)) / 1e6) == 33


# --- the pieces

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_is_torchs_multihead_attention(dtype, tolerance):
    oracle, x = nn.MultiheadAttention(24, 3, batch_first=True), torch.randn(2, 7, 24)
    nn.init.normal_(oracle.in_proj_bias)
    qkv = F.linear(x, oracle.in_proj_weight, oracle.in_proj_bias).to(dtype)
    ours = oracle.out_proj(attend(qkv, 3).float())
    torch.testing.assert_close(ours, oracle(x, x, x)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_and_is_adjoint(taps):
    down, up = networks.Resample("down", taps), networks.Resample("up", taps)
    x, y = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(down(torch.ones_like(x))[..., 1:3, 1:3], torch.ones(1, 2, 2, 2))
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum() / 4)


def test_patch_is_a_smaller_network_between_unshuffle_and_shuffle():
    outer, (x, t) = awake(MAKERS["patch"]()).eval(), batch()
    inner = UNet(**DDPMPP | TINY | dict(image_size=8, channels=12, attention=(8,)))
    inner.load_state_dict(outer.state_dict())
    blocks = x.unflatten(3, (8, 2)).unflatten(2, (8, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    y = inner.eval()(blocks, t).unflatten(1, (3, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    assert torch.equal(outer(x, t), y.flatten(4).flatten(2, 3))


def test_attention_resolutions_are_those_of_the_inner_image():
    def attending(**flags):
        encoder = UNet(**TINY | flags).encoder
        return [[block.attention for block in level] for level in encoder.blocks]

    assert attending(attention=(8,)) == [[False], [True]]
    assert attending(attention=(8,), patch=2) == [[True], [False]]


def test_dit_positions_are_the_papers_sines():
    dim, side = 16, 3
    ours = networks.sincos_positions(dim, side)[0]
    for place in range(side**2):
        row, column = divmod(place, side)
        angles = [[p / 10000 ** (4 * i / dim) for i in range(dim // 4)] for p in (column, row)]
        wanted = [f(a) for line in angles for f in (math.sin, math.cos) for a in line]
        torch.testing.assert_close(ours[place], torch.tensor(wanted))


def test_unpatchify_undoes_patches():
    x = torch.randn(2, 3, 8, 8)
    cut = [x[:, :, i:i + 4, j:j + 4].permute(0, 2, 3, 1).flatten(1) for i in (0, 4) for j in (0, 4)]
    assert torch.equal(networks.unpatchify(torch.stack(cut, 1), 4), x)


def test_uvit_joins_mirror_blocks():
    network, made, taken = UViT(**TOKENS | dict(depth=4)), [], []
    for first, last in zip(network.in_blocks, network.out_blocks):
        first.register_forward_hook(lambda m, i, out: made.append(out))
        last.register_forward_hook(lambda m, i, out: taken.append(i[1]))
    network(*batch())
    assert len(made) == 2 and all(a is b for a, b in zip(made, reversed(taken)))


# --- multi-stage

def test_multistage_rows_go_to_their_own_decoder():
    network = awake(MAKERS["multistage"]()).eval()
    x, _ = batch()
    t = torch.tensor([0.0, 0.9, -0.7, 0.5, 0.6, -0.5])  # a boundary ends its interval
    mixed = network(x, t)
    for k, rows in enumerate(([2, 5], [0, 3], [1, 4])):
        ran = []
        hooks = [d.register_forward_hook(lambda *_, j=j: ran.append(j))
                 for j, d in enumerate(network.decoders)]
        torch.testing.assert_close(mixed[rows], network(x[rows], t[rows]), rtol=1e-4, atol=1e-5)
        assert ran == [k]
        [hook.remove() for hook in hooks]


def test_multistage_with_equal_decoders_is_the_unet():
    stages, single = MAKERS["multistage"]().eval(), awake(UNet(**TINY)).eval()
    state = {k: v for k, v in single.state_dict().items() if not k.startswith("decoder.")}
    for k, v in single.decoder.state_dict().items():
        state |= {f"decoders.{stage}.{k}": v for stage in range(3)}
    stages.load_state_dict(state | {"boundaries": stages.boundaries})
    x, t = batch()
    torch.testing.assert_close(stages(x, t), single(x, t), rtol=1e-4, atol=1e-5)


# --- released checkpoints: EDM's tensors by their own names, and a walk over those names

def edm_shapes(size, width, mult, blocks, attention, noise_mult=1, residual=False, taps=2):
    """{name: shape} of a released SongUNet, by the naming rule of its constructor."""
    emb, noise, shapes = 4 * width, width * noise_mult, {}

    def layer(name, out, cin, kernel=None, bias=True):
        shapes[f"{name}.weight"] = (out, cin) if kernel is None else (out, cin, kernel, kernel)
        shapes.update({f"{name}.bias": (out,)} if bias else {})

    def norm(name, channels):
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def block(name, cin, out, attend=False, resample=False):
        norm(f"{name}.norm0", cin), layer(f"{name}.conv0", out, cin, 3)
        layer(f"{name}.affine", out, emb), norm(f"{name}.norm1", out)
        layer(f"{name}.conv1", out, out, 3)
        if cin != out or resample:
            layer(f"{name}.skip", out, cin, 1)
        for part in ("conv0", "skip") if resample else ():
            shapes[f"{name}.{part}.resample_filter"] = (1, 1, taps, taps)
        if attend:
            norm(f"{name}.norm2", out), layer(f"{name}.qkv", 3 * out, out, 1)
            layer(f"{name}.proj", out, out, 1)

    if residual:
        shapes["map_noise.freqs"] = (noise // 2,)
    layer("map_augment", noise, 9, bias=False)
    layer("map_layer0", emb, noise), layer("map_layer1", emb, emb)
    cout, aux, skips = width, 3, [width]
    for level, m in enumerate(mult):
        r = f"{size >> level}x{size >> level}"
        if level == 0:
            layer(f"enc.{r}_conv", width, 3, 3)
        else:
            block(f"enc.{r}_down", cout, cout, resample=True)
            skips.append(cout)
            if residual:
                layer(f"enc.{r}_aux_residual", cout, aux, 3)
                shapes[f"enc.{r}_aux_residual.resample_filter"] = (1, 1, taps, taps)
                aux = cout
        for i in range(blocks):
            block(f"enc.{r}_block{i}", cout, width * m, size >> level == attention)
            cout = width * m
            skips.append(cout)
    for level, m in reversed(list(enumerate(mult))):
        r = f"{size >> level}x{size >> level}"
        if level == len(mult) - 1:
            block(f"dec.{r}_in0", cout, cout, True), block(f"dec.{r}_in1", cout, cout)
        else:
            block(f"dec.{r}_up", cout, cout, resample=True)
        for i in range(blocks + 1):
            attend = i == blocks and size >> level == attention
            block(f"dec.{r}_block{i}", cout + skips.pop(), width * m, attend)
            cout = width * m
    norm(f"dec.{r}_aux_norm", cout), layer(f"dec.{r}_aux_conv", 3, cout, 3)
    return {f"model.{name}": shape for name, shape in shapes.items()}


def reference_norm(x):
    """Group norm without its affine part, as the released networks group channels."""
    g = x.unflatten(1, (min(32, x.shape[1] // 4), -1))
    v, m = torch.var_mean(g, (2, 3, 4), correction=0, keepdim=True)
    return ((g - m) / (v + 1e-6).sqrt()).flatten(1, 2)


def edm_reference(state, x, t, width, taps):
    """SongUNet's function of (x, t), computed from the released tensors by walking their names."""
    p = {k.removeprefix("model."): v.double() for k, v in state.items()}
    x, t, half = x.double(), t.double(), math.sqrt(0.5)
    f = torch.tensor(taps, dtype=torch.double)
    f = torch.outer(f, f)[None, None] / f.sum() ** 2
    pad = (len(taps) - 1) // 2

    def convolve(x, name, padding=None):
        w, b = p[f"{name}.weight"], p[f"{name}.bias"]
        return F.conv2d(x, w, b, padding=w.shape[-1] // 2 if padding is None else padding)

    def down(x, padding=pad):
        c = x.shape[1]
        return F.conv2d(x, f.repeat(c, 1, 1, 1), stride=2, groups=c, padding=padding)

    def up(x):
        c = x.shape[1]
        return F.conv_transpose2d(x, 4 * f.repeat(c, 1, 1, 1), stride=2, groups=c, padding=pad)

    def norm(x, name):
        w, b = p[f"{name}.weight"], p[f"{name}.bias"]
        return reference_norm(x) * w[:, None, None] + b[:, None, None]

    def block(x, name, sample):
        h = convolve(sample(F.silu(norm(x, f"{name}.norm0"))), f"{name}.conv0")
        h = h + (emb @ p[f"{name}.affine.weight"].T + p[f"{name}.affine.bias"])[:, :, None, None]
        h = convolve(F.silu(norm(h, f"{name}.norm1")), f"{name}.conv1")
        x = (h + (convolve(sample(x), f"{name}.skip") if f"{name}.skip.weight" in p else x)) * half
        if f"{name}.qkv.weight" in p:
            qkv = convolve(norm(x, f"{name}.norm2"), f"{name}.qkv")
            q, k, v = qkv.flatten(2).unflatten(1, (-1, 3)).unbind(2)  # interleaved by channel
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(k.shape[1]), -1)
            mixed = (v @ weights.transpose(1, 2)).reshape(x.shape)
            x = (x + convolve(mixed, f"{name}.proj")) * half
        return x

    if "map_noise.freqs" in p:
        angles = torch.outer(t, 2 * math.pi * p["map_noise.freqs"])
    else:
        angles = torch.outer(t, 10000 ** -torch.linspace(0, 1, width // 2, dtype=torch.double))
    emb = torch.cat([angles.sin(), angles.cos()], 1)  # the released code swaps cos and sin
    for name in ("map_layer0", "map_layer1"):
        emb = F.silu(emb @ p[f"{name}.weight"].T + p[f"{name}.bias"])
    skips, image, samplers = [], x, {"down": down, "up": up}
    layers = dict.fromkeys(".".join(k.split(".")[:2]) for k in p if k[:4] in ("enc.", "dec."))
    for name in layers:
        if name.endswith("_conv") and name.startswith("enc"):
            x = convolve(x, name)
        elif name.endswith("aux_residual"):
            x = image = (x + down(convolve(image, name, 1 + pad), 0)) * half
            skips.pop()
        elif name.endswith("aux_norm"):
            x = F.silu(norm(x, name))
        elif name.endswith("aux_conv"):
            return convolve(x, name)
        else:
            if name.startswith("dec") and "block" in name:
                x = torch.cat([x, skips.pop()], 1)
            x = block(x, name, samplers.get(name.split("_")[-1], lambda x: x))
        skips += [x] * name.startswith("enc")


EDM = {"ddpm++": (DDPMPP, {}), "ncsn++": (NCSNPP, dict(noise_mult=2, residual=True, taps=4))}


@pytest.mark.parametrize("family", EDM)
def test_released_edm_checkpoints_load_strictly(family):
    flags, extra = EDM[family]
    with torch.device("meta"):
        shapes = edm_shapes(32, 128, (2, 2, 2), 4, 16, **extra)
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        network = UNet(**flags, augment_dim=9)
    network.load_state_dict(released(state), strict=True, assign=True)
    stored = sum(v.numel() for k, v in state.items() if not k.endswith(("filter", "freqs")))
    assert count_parameters(network) == stored


@pytest.mark.parametrize("family", EDM)
def test_renamed_edm_weights_compute_the_released_function(family):
    flags, extra = EDM[family]
    shapes = edm_shapes(16, 16, (1, 2), 2, 8, **extra)
    state = {k: 0.3 * torch.randn(s) for k, s in shapes.items()}
    sizes = dict(image_size=16, width=16, channel_mult=(1, 2), blocks=2, attention=(8,))
    network = UNet(**flags | sizes, augment_dim=9).eval()
    network.load_state_dict(released(state))
    ours = network.state_dict()
    assert released(ours) is ours
    x, t = batch()
    wanted = edm_reference(state, x, t, 16, flags.get("taps", (1, 1)))
    ours = network.double()(x.double(), t)
    assert (ours - wanted).norm() < 1e-5 * wanted.norm()


def test_released_uvit_checkpoint_loads_strictly():
    dim, state = 512, {"pos_embed": (1, 257, 512), "patch_embed.proj.weight": (512, 3, 2, 2),
                       "patch_embed.proj.bias": (512,)}

    def layer(name, out, cin=None):
        state.update({f"{name}.weight": (out, cin) if cin else (out,), f"{name}.bias": (out,)})

    sides = [f"{side}_blocks.{i}" for side in ("in", "out") for i in range(6)]
    for name in ["mid_block", *sides]:
        layer(f"{name}.norm1", dim), layer(f"{name}.norm2", dim)
        state[f"{name}.attn.qkv.weight"] = (3 * dim, dim)
        layer(f"{name}.attn.proj", dim, dim)
        layer(f"{name}.mlp.fc1", 4 * dim, dim), layer(f"{name}.mlp.fc2", dim, 4 * dim)
        layer(f"{name}.skip_linear", dim, 2 * dim) if name.startswith("out") else None
    layer("norm", dim), layer("decoder_pred", 12, dim)
    state |= {"final_layer.weight": (3, 3, 3, 3), "final_layer.bias": (3,)}
    with torch.device("meta"):
        network = UViT(patch=2, dim=512, depth=12, heads=8)
        renamed = released({k: torch.empty(s) for k, s in state.items()})
    assert released(renamed) is renamed
    network.load_state_dict(renamed, strict=True, assign=True)
    wrapped = released({f"model.{k}": torch.empty(s, device="meta") for k, s in state.items()})
    assert wrapped.keys() == renamed.keys()


def test_attention_where_no_level_is_is_refused():
    with pytest.raises(UserError, match="attention at resolution 7.*give some of 32, 16, 8, or"):
        build("unet", width=32, attention=(16, 7))
    assert build("unet", width=32, attention=()) and build("unet", width=32, patch=4,
                                                           attention=(8, 4))


# --- by name

def test_build_makes_each_architecture():
    assert isinstance(build("unet", **TINY), UNet)
    assert isinstance(build("multistage", boundaries=(0.0,), **TINY), MultistageUNet)
    assert isinstance(build("uvit", **TOKENS), UViT) and isinstance(build("dit", **TOKENS), DiT)


def test_the_defaults_are_those_of_the_classes():
    flags = vars(networks.UNetFlags())
    assert networks.defaults("unet") == flags
    assert networks.defaults("multistage").keys() == {"boundaries", *flags}
    assert networks.defaults("dit")["dim"] == 384 and networks.defaults("uvit")["dim"] == 512


@pytest.mark.parametrize("source, given", [
    ("pass", {}), ("def __init__(self, **options): super().__init__()", {"width": 8}),
    ("def __init__(self, depth, *rest, width=4): super().__init__()", {"depth": 2, "width": 8})])
def test_a_class_of_ones_own_is_built_however_it_takes_its_arguments(monkeypatch, source, given):
    space = {"nn": torch.nn}
    exec(f"class Mine(nn.Module):\n    {source}", space)
    monkeypatch.setitem(networks.ARCHITECTURES, "mine", space["Mine"])
    assert isinstance(build("mine", **given), space["Mine"])
    if "depth" in given:
        assert set(networks.defaults("mine")) == {"depth", "width"}
        with pytest.raises(UserError, match="mine needs depth"):
            build("mine")
        with pytest.raises(UserError, match="did you mean 'width'"):
            build("mine", depth=2, widht=8)


def test_diffusers_network_takes_the_interface():
    pytest.importorskip("diffusers")
    network = build("diffusers_unet", sample_size=16, block_out_channels=(32,), layers_per_block=1,
                    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                    num_class_embeds=4)
    x, t = batch()
    y = network.eval()(x, t)
    assert y.shape == x.shape and torch.equal(network(x, t, torch.full((6,), 3)), y)


@pytest.mark.parametrize("call, told", [
    (lambda: build("unett"), "did you mean 'unet'"),
    (lambda: build("unet", widht=8), "did you mean 'width'"),
    (lambda: build("dit", pach=8), "did you mean 'patch'"),
    (lambda: UNet(embedding="forier"), "did you mean 'fourier'"),
    (lambda: UNet(image_size=30), "multiple of 4"),
    (lambda: UNet(patch=0), "patch=0 of a U-Net: give a whole number above 0"),
    (lambda: UNet(width="8"), "width='8' of a U-Net: give a whole number"),
    (lambda: UNet(width=0), "width=0"), (lambda: UNet(width=2), "give an even number from 4 up"),
    (lambda: UNet(width=33), "width=33 of a U-Net: give an even number"),
    (lambda: DiT(heads=0), "heads=0 of a transformer"), (lambda: UViT(patch=2.0), "patch=2.0 of"),
    (lambda: build("mlp", channels=0), "channels=0 of a perceptron"),
    (lambda: UViT(depth=3), "must be even"),
    (lambda: DiT(dim=100, heads=6), "must divide"),
    (lambda: MultistageUNet(boundaries=(1.0, 0.0)), "must increase"),
    (lambda: build("multistage", width=8), "multistage needs boundaries: give"),
    (lambda: build("mlp"), "mlp needs channels: give"),
])
def test_mistakes_are_told_in_one_line(call, told):
    with pytest.raises(UserError) as error:
        call()
    assert told in str(error.value) and "\n" not in str(error.value)


# --- embeddings ---------------------------------------------------------------------------------

def test_a_class_joins_the_embedding_as_in_edm():
    """A one-hot row scaled to unit variance over the classes; the null class adds nothing."""
    network = awake(UNet(**DDPMPP | TINY | dict(num_classes=4, label_dropout=0.1))).eval()
    embed, seen = network.embedding, []
    handle = embed.label.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    embed(torch.zeros(3), torch.tensor([1, 3, 4]), None)
    handle.remove()
    expected = torch.zeros(3, 4)
    expected[0, 1] = expected[1, 3] = 2.0
    assert torch.equal(seen[0], expected)


def test_fourier_frequencies_are_normal_with_a_scale_of_16():
    torch.manual_seed(0)
    freqs = UNet(**NCSNPP | TINY | dict(width=256)).embedding.freqs / (2 * torch.pi)
    assert freqs.std().item() == pytest.approx(16, rel=0.25)


@pytest.mark.parametrize("width", [34, 50, 100])
def test_a_width_that_does_not_divide_into_groups_is_one_line(width):
    with pytest.raises(UserError, match="channels does not divide into .* another width"):
        networks.build("unet", **DDPMPP | TINY | {"width": width})
