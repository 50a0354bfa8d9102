"""The models: torchvision's layout, deterministic, and with activations that neither explode nor die."""

from __future__ import annotations

import pytest
import torch
from lowbit.tools.models import (
    BERT_BASE,
    CATALOGUE,
    MINILM,
    Bert,
    BertConfig,
    VisionTransformer,
    ViTConfig,
    bert,
    conv_bn_relu_chain,
    digits_densenet,
    digits_mobilenet_v3,
    digits_resnet,
    linear_relu_chain,
    lstm_tagger,
    minilm,
    mobilenet_v2,
    mobilenet_v3_small,
    one_input_many_linears,
    residual_chain,
    resnet18,
    resnet50,
    vit_small,
)
from torch import nn

CHEAP = {
    "digits": (digits_resnet, (2, 1, 8, 8), (2, 10)),
    "digits-mobilenet": (digits_mobilenet_v3, (2, 1, 8, 8), (2, 10)),
    "digits-densenet": (digits_densenet, (2, 1, 8, 8), (2, 10)),
    "conv-bn-relu": (lambda **kw: conv_bn_relu_chain(60, **kw), (2, 4, 8, 8), (2, 4, 8, 8)),
    "linear-relu": (lambda **kw: linear_relu_chain(60, **kw), (2, 8), (2, 8)),
    "residual": (lambda **kw: residual_chain(60, **kw), (2, 4, 8, 8), (2, 4, 8, 8)),
    "fan-out": (lambda **kw: one_input_many_linears(60, **kw), (2, 8), (2, 480)),
}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# The number of parameters and of state-dict entries of torchvision's models, which its documentation gives.
@pytest.mark.parametrize(
    ("make", "parameters", "entries"), [(resnet18, 11_689_512, 122), (resnet50, 25_557_032, 320)]
)
def test_resnets_have_torchvisions_parameters(make, parameters: int, entries: int) -> None:
    model = make()
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == entries
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer4.1.bn2.weight",
        "fc.bias",
    } <= set(state)


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_each_block_calls_one_relu_more_than_once(make) -> None:
    block = make().layer1[0]
    assert [name for name, child in block.named_children() if isinstance(child, nn.ReLU)] == ["relu"]
    calls = []
    block.relu.register_forward_hook(lambda *_: calls.append(1))
    block(noise(1, 64, 8, 8))
    assert len(calls) == (2 if make is resnet18 else 3)


@torch.no_grad()
@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_activations_of_resnets_stay_in_range(make) -> None:
    model, spread = make(), {}
    for name, module in model.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            module.register_forward_hook(
                lambda _m, _i, out, name=name: spread.update({name: out.std().item()})
            )
    logits = model(noise(1, 3, 64, 64))
    assert logits.shape == (1, 1000)
    assert len(spread) == (8 if make is resnet18 else 16)
    assert all(0.1 < value < 10 for value in spread.values()), spread


@torch.no_grad()
@pytest.mark.parametrize(("make", "inputs", "outputs"), CHEAP.values(), ids=CHEAP)
def test_models_have_the_shapes_they_say(make, inputs, outputs) -> None:
    model = make()
    assert not model.training
    out = model(noise(*inputs))
    assert out.shape == outputs
    assert out.isfinite().all()
    assert 0 < out.std() < 10


@pytest.mark.parametrize(("make", "_inputs", "_outputs"), CHEAP.values(), ids=CHEAP)
def test_a_seed_decides_every_bit(make, _inputs, _outputs) -> None:
    torch.manual_seed(1)
    first = make(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = make(seed=3).state_dict(), make(seed=4).state_dict()
    assert_decided_by_seed(first, again, other)


def assert_decided_by_seed(first: dict, again: dict, other: dict) -> None:
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].is_floating_point()]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_models_grow_with_n() -> None:
    for make in (conv_bn_relu_chain, linear_relu_chain, residual_chain, one_input_many_linears):
        few, many = (sum(1 for m in make(n).modules() if not list(m.children())) for n in (3, 9))
        assert many == 3 * few


# Every encoder layer: query, key, value and output projection, the two linears, and two norms.
def encoder_parameters(config: BertConfig) -> int:
    width, wide = config.hidden_size, config.intermediate_size
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = 4 * (width * width + width) + (width * wide + wide) + (wide * width + width) + 2 * 2 * width
    return (tables + 2) * width + config.num_hidden_layers * layer


# The published numbers: torchvision's documentation for the MobileNets, timm's for ViT-S/16.
@pytest.mark.parametrize(
    ("make", "parameters", "names"),
    [
        (
            mobilenet_v2,
            3_504_872,
            {
                "features.0.0.weight",
                "features.1.conv.1.weight",
                "features.2.conv.1.1.running_var",
                "features.17.conv.3.weight",
                "features.18.1.num_batches_tracked",
                "classifier.1.bias",
            },
        ),
        (
            mobilenet_v3_small,
            2_542_856,
            {
                "features.0.1.running_mean",
                "features.1.block.1.fc1.bias",
                "features.4.block.2.fc2.weight",
                "features.11.block.3.1.weight",
                "features.12.0.weight",
                "classifier.0.weight",
                "classifier.3.bias",
            },
        ),
        (
            vit_small,
            22_050_664,
            {
                "cls_token",
                "pos_embed",
                "patch_embed.proj.weight",
                "blocks.0.attn.qkv.bias",
                "blocks.11.mlp.fc2.weight",
                "norm.weight",
                "head.bias",
            },
        ),
        (
            minilm,
            encoder_parameters(MINILM),
            {
                "embeddings.LayerNorm.weight",
                "embeddings.token_type_embeddings.weight",
                "encoder.layer.0.attention.self.query.weight",
                "encoder.layer.5.attention.output.LayerNorm.bias",
                "encoder.layer.5.intermediate.dense.weight",
                "encoder.layer.5.output.dense.weight",
            },
        ),
        (
            lstm_tagger,
            # Both directions: four gates of 256, from 128 inputs and 256 states, with two biases.
            10_000 * 128 + 2 * 4 * 256 * (128 + 256 + 2) + (2 * 256 + 1) * 17,
            {"embedding.weight", "lstm.weight_hh_l0_reverse", "linear.weight"},
        ),
    ],
)
def test_published_models_have_the_published_parameters(make, parameters: int, names: set[str]) -> None:
    model = make()
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert names <= set(model.state_dict())


def test_bert_base_has_the_published_parameters() -> None:
    with torch.device("meta"):  # where nothing is drawn
        found = sum(p.numel() for p in Bert(BERT_BASE).parameters())
    # The pooler that is left out is one linear of width 768.
    assert found == encoder_parameters(BERT_BASE) == 109_482_240 - (768 * 768 + 768)


def test_width_mult_keeps_channels_divisible() -> None:
    channels = {m.out_channels for m in mobilenet_v2(width_mult=0.35).modules() if isinstance(m, nn.Conv2d)}
    assert all(each % 8 == 0 for each in channels)
    assert sum(p.numel() for p in mobilenet_v2(width_mult=0.5).parameters()) == 1_968_680


@pytest.mark.parametrize("make", [mobilenet_v2, mobilenet_v3_small])
@torch.no_grad()
def test_activations_of_mobilenets_stay_in_range(make) -> None:
    model, spread = make(), []
    for module in model.features:
        module.register_forward_hook(lambda _m, _i, out: spread.append(out.std().item()))
    pictures = CATALOGUE["mobilenet_v2"].batches(1, 2, 0)[0]
    assert pictures.shape == (2, 3, 224, 224)
    assert model(pictures).shape == (2, 1000)
    assert len(spread) == len(model.features)
    assert all(0.1 < value < 10 for value in spread), spread


@torch.no_grad()
def test_a_mask_hides_padding() -> None:
    model = bert(SMALL_BERT)
    ids = token_ids(2, 9)
    other = ids.clone()
    other[:, 6:] = 0
    mask = torch.ones(2, 9).index_fill(1, torch.arange(6, 9), 0.0)
    assert torch.equal(model(ids, mask)[:, :6], model(other, mask)[:, :6])
    assert not torch.equal(model(ids)[:, :6], model(other)[:, :6])
    torch.testing.assert_close(model(ids, mask)[:, :6], model(ids[:, :6]))


@torch.no_grad()
def test_zero_init_residual_blocks_begin_as_shortcuts() -> None:
    model, x = digits_resnet(zero_init_residual=True), noise(2, 32, 8, 8)
    model.layer1.bn2.bias.zero_()
    assert torch.equal(model.layer1(x), x.relu())
    zeroed = [name for name, p in model.named_parameters() if name.endswith("bn2.weight") and not p.any()]
    assert len(zeroed) == 3


def test_settled_norms_keep_their_momentum() -> None:
    norms = [m for m in digits_mobilenet_v3().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum, norm.training) for norm in norms} == {(0.001, 0.01, False)}


SMALL_BERT = BertConfig(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=100
)


def small_bert(*, seed: int = 0) -> nn.Module:
    return bert(SMALL_BERT, seed=seed)


def small_tagger(*, seed: int = 0) -> nn.Module:
    return lstm_tagger(vocabulary=100, embedding=8, hidden=16, seed=seed)


def small_vit() -> nn.Module:
    return VisionTransformer(ViTConfig(image=32, dim=48, depth=2, heads=3)).eval()


def token_ids(*shape: int) -> torch.Tensor:
    return torch.randint(100, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [small_bert, small_tagger])
def test_a_seed_decides_every_bit_of_sequence_models(make) -> None:
    assert_decided_by_seed(make(seed=3).state_dict(), make(seed=3).state_dict(), make(seed=4).state_dict())


EXPORTED = {
    "mobilenet-v2": (lambda: mobilenet_v2(width_mult=0.35), noise(2, 3, 32, 32)),
    "mobilenet-v3": (digits_mobilenet_v3, noise(2, 1, 8, 8)),
    "densenet": (digits_densenet, noise(2, 1, 8, 8)),
    "vit": (small_vit, noise(2, 3, 32, 32)),
    "bert": (small_bert, token_ids(2, 16)),
    "lstm": (small_tagger, token_ids(2, 16)),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm._flat_weights")
@torch.no_grad()
@pytest.mark.parametrize(("make", "example"), EXPORTED.values(), ids=EXPORTED)
def test_models_export_with_any_batch(make, example) -> None:
    model = make()
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    five = torch.cat([example] * 3)[:5]
    assert torch.equal(exported(five), model(five))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm._flat_weights")
@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "bert", "lstm"])
def test_models_export_strictly_too(name: str) -> None:
    make, example = EXPORTED[name]
    model = make()
    exported = torch.export.export(model, (example,), strict=True).module()
    assert torch.equal(exported(example), model(example))


# What QAT begins with.
@pytest.mark.parametrize("name", ["mobilenet-v3", "densenet", "bert"])
def test_models_export_in_training_mode(name: str) -> None:
    make, example = EXPORTED[name]
    exported = torch.export.export(make().train(), (example,)).module()
    exported(example).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in exported.parameters())


def test_the_catalogue_gives_inputs_that_its_models_take() -> None:
    assert list(CATALOGUE) == [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "vit_small",
        "bert_base",
        "minilm",
        "lstm_tagger",
    ]
    for name, entry in CATALOGUE.items():
        first, second = entry.batches(2, 3, 0)
        assert not torch.equal(first, second)
        again = entry.batches(2, 3, 0)[0]
        assert torch.equal(first, again)
        image = name.startswith(("resnet", "mobilenet", "vit"))
        assert first.shape == ((3, 3, 224, 224) if image else (3, 128))
        assert first.dtype == (torch.float32 if image else torch.int64)
    with torch.no_grad():
        entry = CATALOGUE["lstm_tagger"]
        assert entry.make()(entry.batches(1, 2, 0)[0]).shape == (2, 128, 17)
