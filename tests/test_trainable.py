"""Partial training: what each way trains, what stays frozen, adapters by their definition."""

import pytest
import torch

from paper_utils import networks, trainable
from paper_utils.errors import UserError

UNET = dict(width=8, channel_mult=(1, 2), blocks=1, attention=(8,), patch=4)
TOKENS = dict(patch=8, dim=16, depth=2, heads=2)
ARCHITECTURES = {"unet": UNET, "multistage": UNET | {"boundaries": (1.0,)}, "uvit": TOKENS,
                 "dit": TOKENS}


def network(arch: str = "unet"):
    """Away from its initial weights: no layer is zero, so every gradient arrives."""
    torch.manual_seed(0)
    net = networks.build(arch, **ARCHITECTURES[arch])
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return net


def batch(n: int = 2):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=rng), torch.rand(n, generator=rng)


def learning(net) -> list[str]:
    return [name for name, p in net.named_parameters() if p.requires_grad]


# --- which parameters ---------------------------------------------------------------------------

@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_trains_all(arch):
    net = network(arch)
    assert trainable.restrict(net) == [name for name, _ in net.named_parameters()] == learning(net)


def test_attention_of_a_unet_is_its_norm_qkv_and_projection_and_nothing_else():
    net = network()
    names = trainable.restrict(net, "attention")
    blocks = [m for m in net.modules() if getattr(m, "attention", False) is True]
    mine = {p for block in blocks for layer in (block.norm2, block.qkv, block.proj)
            for p in layer.parameters()}
    # three attending blocks: the encoder's, the middle one, the last of the decoder's level
    assert len(blocks) == 3 and len(names) == 3 * 6 == len(mine)
    assert {p for p in net.parameters() if p.requires_grad} == mine
    widths = sorted(block.qkv.in_features for block in blocks)
    assert sum(p.numel() for p in mine) == sum(4 * w * w + 6 * w for w in widths)


@pytest.mark.parametrize("arch, blocks", [("uvit", 3), ("dit", 2)])
def test_attention_of_a_transformer_is_its_attention_layers(arch, blocks):
    names = trainable.restrict(network(arch), "attention")
    parameters = 3 if arch == "uvit" else 4  # U-ViT's qkv has no bias
    assert len(names) == blocks * parameters and all(".attn." in name for name in names)


@pytest.mark.parametrize("arch, inside, outside", [
    ("unet", "decoder.blocks.1.", "decoder.blocks.0."), ("unet", "decoder.head.1.", "decoder.up."),
    ("multistage", "decoders.1.blocks.1.", "decoders.1.blocks.0."),
    ("uvit", "out_blocks.0.", "mid_block."), ("dit", "blocks.1.", "blocks.0.")])
def test_the_last_blocks_are_those_before_the_output(arch, inside, outside):
    net = network(arch)
    names = trainable.restrict(net, "last")
    assert any(name.startswith(inside) for name in names)
    before = (outside, "encoder", "embedding", "patch_embed")
    assert not any(name.startswith(before) for name in names)
    output = [name for name, _ in net.named_parameters()
              if ".head." in name or name.startswith(("final", "decoder_pred"))]
    assert output and set(output) <= set(names)


def test_the_last_blocks_of_a_foreign_network_are_not_its_output_alone():
    parts = {name: torch.nn.Conv2d(3, 3, 1) for name in ("downs", "mid", "ups", "final_conv")}
    with pytest.raises(UserError, match="matches 'last': choose .*names made of .*ups, final_conv"):
        trainable.restrict(torch.nn.ModuleDict(parts), "last")


@pytest.mark.parametrize("trains, layers", [("attention", "attentions"), ("low-rank", "to_q"),
                                            ("last", "up_blocks.1.")])
def test_the_ways_know_the_u_net_of_diffusers(trains, layers):
    net = networks.build("diffusers_unet", sample_size=16, block_out_channels=(8, 8),
                         layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                         down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                         up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    names = trainable.restrict(net, trains)
    assert any(layers in name for name in names) and len(names) < len(list(net.parameters()))
    assert not any(name.startswith("unet.time_embedding") for name in names)


def test_a_regular_expression_chooses_by_name():
    assert trainable.restrict(network(), r"embedding\.layer0\.") == [
        "embedding.layer0.weight", "embedding.layer0.bias"]


@pytest.mark.parametrize("trains, words", [
    ("atention", "matches 'atention': choose all, attention, .*made of .*encoder.*qkv.*decoder"),
    ("(", "no regular expression.*attention, last, low-rank")])
def test_a_pattern_that_matches_nothing_says_what_there_is(trains, words):
    with pytest.raises(UserError, match=words) as failure:
        trainable.restrict(network(), trains)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("trains", ["attention", "low-rank"])
def test_layers_are_named_once_and_without_their_numbers(trains):
    found = trainable.layers(trainable.restrict(network(), trains))
    where = ("encoder.blocks.*.*", "decoder.in0", "decoder.blocks.*.*")
    what = ("norm2", "qkv", "proj") if trains == "attention" else ("qkv", "proj")
    assert found == [f"{block}.{layer}" for block in where for layer in what]


def test_no_attention_no_adapters():
    with pytest.raises(UserError, match="no attention for low-rank adapters"):
        trainable.restrict(networks.build("mlp", channels=4, width=8), "low-rank")


# --- what stays frozen --------------------------------------------------------------------------

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("trains", ["all", "attention", "last", "low-rank", "head|pred|final"])
def test_only_the_chosen_parameters_move(arch, trains, layout):
    """In channels_last this crashed the interpreter where only a norm's weight trained."""
    net = network(arch)
    chosen = set(trainable.restrict(net, trains))
    net = net.to(memory_format=layout)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # an adapter's first factor has no gradient while the second is zero
        x, label = batch()
        (net(x, label) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= chosen


# --- adapters -----------------------------------------------------------------------------------

def test_an_adapter_begins_as_nothing_and_is_w_plus_b_a():
    net, (x, label) = network(), batch()
    expected = net(x, label)
    names = trainable.restrict(net, "low-rank")
    assert torch.equal(net(x, label), expected)
    assert len(names) == 3 * 2 * 2 and all(name[-2:] in (".a", ".b") for name in names)
    layer = net.decoder.in0.qkv
    adapter, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    torch.nn.init.normal_(adapter.b)
    assert adapter.a.shape == (4, 16) and adapter.b.shape == (48, 4)
    torch.testing.assert_close(layer.weight, original + adapter.b @ adapter.a)
    assert torch.linalg.matrix_rank(layer.weight - original) == 4


@pytest.mark.parametrize("kind", [dict(device="meta"), dict(dtype=torch.float16)])
def test_adapters_lie_where_their_weights_do(kind):
    adapter = trainable.LowRank(torch.empty(8, 6, **kind))
    found = {(p.device.type, p.dtype) for p in adapter.parameters()}
    assert found == {(kind.get("device", "cpu"), kind.get("dtype", torch.float32))}


def test_adapters_are_those_of_peft():
    peft = pytest.importorskip("peft")
    mine, theirs, (x, label) = network(), network(), batch()
    trainable.restrict(mine, "low-rank")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["qkv", "proj"], bias="none")
    peft.inject_adapter_in_model(config, theirs)
    twins = {name: m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    for name, module in twins.items():
        adapter = mine.get_submodule(name).parametrizations.weight[0]
        assert module.lora_A["default"].weight.shape == adapter.a.shape
        torch.nn.init.normal_(adapter.b, std=0.1)
        module.lora_A["default"].weight.data.copy_(adapter.a)
        module.lora_B["default"].weight.data.copy_(adapter.b)
    assert len(twins) == 6
    torch.testing.assert_close(mine(x, label), theirs(x, label))
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in mine.parameters() if p.requires_grad)


class Foreign(torch.nn.Module):
    """Attention and a gated layer as diffusers' transformers name them, and a linear patch
    embedding."""

    def __init__(self, attends: bool = True):
        super().__init__()
        layer = lambda: torch.nn.Linear(8, 8)
        self.patch_embed = torch.nn.ModuleDict({"proj": layer()})
        self.ff = torch.nn.ModuleDict({"net": torch.nn.ModuleList(
            [torch.nn.ModuleDict({"proj": layer()}), layer()])})
        if attends:
            self.attn = torch.nn.ModuleDict({"qkv": layer(), "proj": layer()})
            self.attn1 = torch.nn.ModuleDict({
                "to_q": layer(), "to_k": layer(), "to_v": layer(),
                "to_out": torch.nn.ModuleList([layer(), torch.nn.Dropout(0.0)])})


def test_adapters_are_for_attention_alone():
    """`proj` is the name of other layers too."""
    names = trainable.restrict(Foreign(), "low-rank")
    assert trainable.layers(names) == ["attn.qkv", "attn.proj", "attn1.to_q", "attn1.to_k",
                                       "attn1.to_v", "attn1.to_out.*"]
    with pytest.raises(UserError, match="no attention for low-rank adapters"):
        trainable.restrict(Foreign(attends=False), "low-rank")


def test_adapters_that_are_there_go_on():
    """A second one would be left out by `merged`."""
    net = network()
    names = trainable.restrict(net, "low-rank")
    torch.nn.init.normal_(net.decoder.in0.qkv.parametrizations.weight[0].b)
    before = {name: p.clone() for name, p in net.named_parameters()}
    assert trainable.restrict(net, "low-rank") == names == learning(net)
    assert before.keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_merged_adapters_leave_a_plain_network_with_the_same_answer():
    net, (x, label) = network(), batch()
    trainable.restrict(net, "low-rank")
    for name, p in net.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(p, std=0.1)
    plain = network()
    state = trainable.merged(net.state_dict())
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x, label), net(x, label))
    assert all(trainable.merged(state)[name] is value for name, value in state.items())
