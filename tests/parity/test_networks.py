"""Our networks against diffusers', of the same random weights: the networks and the weight maps at once.

Every weight is drawn anew, norms and zero-initialised layers included, so that nothing hides behind a 0 or a 1.
"""

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, VQModel

from open_kandinsky.networks import condition
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.networks.prior import DiffusionPrior
from open_kandinsky.networks.unet import UNet
from open_kandinsky.weights import diffusers

# In float64, float32 is left in one place on both sides: the sinusoid of t, alike to the bit.
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-10}


def redrawn(network):
    """All weights at random, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    for name, p in network.named_parameters():
        gain = 1.0 if p.ndim == 1 else p[0].numel() ** -0.5
        draw = gain * torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.2 * draw if "norm" in name and name.endswith("weight") and p.ndim == 1 else draw
    return network.eval()


def loaded(ours, rules, theirs):
    ours.load_state_dict(diffusers.from_diffusers(rules, ours.state_dict(), theirs.state_dict()))
    return ours.eval()


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert 0.01 < float(theirs.std()) < 1000
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < PRECISIONS[ours.dtype]


# image_dim, text length, layers, heads, width of a head, batch. Theirs has one width for image and text.
PRIORS = [(6, 5, 1, 1, 16, 1), (10, 7, 3, 3, 8, 3), (33, 77, 2, 2, 64, 2)]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("size", PRIORS)
@torch.no_grad()
def test_prior(size, dtype):
    dim, length, layers, heads, head, b = size
    theirs = redrawn(
        PriorTransformer(
            num_attention_heads=heads,
            attention_head_dim=head,
            num_layers=layers,
            embedding_dim=dim,
            num_embeddings=length,
        )
    ).to(dtype)
    sizes = {"image_dim": dim, "text_dim": dim, "text_width": dim, "text_length": length, "layers": layers}
    ours = DiffusionPrior(**sizes, width=heads * head, heads=heads).to(dtype)
    loaded(ours, diffusers.prior(layers=layers), theirs)

    x_t, text_emb, text_tokens = draw(b, dim).to(dtype), draw(b, dim).to(dtype) * 2, draw(b, length, dim).to(dtype)
    words = torch.linspace(2, length, b).long() if b > 1 else torch.tensor([3])  # the rest of a caption is padding
    mask = torch.arange(length) < words[:, None]
    t = torch.linspace(999, 0, b).long()
    reference = theirs(x_t, t, text_emb, text_tokens, mask).predicted_image_embedding
    mine = ours(x_t, t, ours.prefix(text_tokens, text_emb, mask))
    assert_same(mine, reference)
    assert_same(ours.standardise.inverse(mine), theirs.post_process_latents(reference))


COMMON = {
    "out_channels": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}


def unets(version, *, levels, blocks, attention_levels, channels, head, in_channels, context):
    widths = [channels * (i + 1) for i in range(levels)]
    attend = [i in attention_levels for i in range(levels)]
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attend]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attend[::-1]]
    of_21 = {"encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image", "encoder_hid_dim": 20}
    of_22 = {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image", "encoder_hid_dim": 14}
    theirs = UNet2DConditionModel(
        in_channels=in_channels,
        layers_per_block=blocks,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=head,
        cross_attention_dim=context,
        **COMMON,
        **(of_21 if version == "2.1" else of_22),
    )
    emb = 4 * channels
    if version == "2.1":  # theirs has the context's width for the image's and the pooled text's
        of_text = {"text_width": 20, "text_dim": context, "image_tokens": 10}
        conditioning = condition.TextImageCondition(image_dim=context, **of_text, context=context, emb=emb)
    else:
        conditioning = condition.ImageCondition(image_dim=14, image_tokens=32, context=context, emb=emb)
    ours = UNet(
        condition=conditioning,
        in_channels=in_channels,
        out_channels=8,
        latent_channels=4,
        channels=channels,
        multipliers=range(1, levels + 1),
        blocks=blocks,
        attention_levels=attention_levels,
        head_channels=head,
        context=context,
        emb=emb,
    )
    return ours, redrawn(theirs)


UNETS = {
    "as published, narrow": {
        "levels": 4,
        "blocks": 3,
        "attention_levels": [1, 2, 3],
        "channels": 32,
        "head": 16,
        "in_channels": 4,
    },
    "shallow": {"levels": 2, "blocks": 1, "attention_levels": [1], "channels": 96, "head": 32, "in_channels": 9},
    "attention everywhere": {
        "levels": 3,
        "blocks": 2,
        "attention_levels": [0, 1, 2],
        "channels": 32,
        "head": 32,
        "in_channels": 4,
    },
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("version", ["2.1", "2.2"])
@torch.no_grad()
def test_unet(version, name, dtype):
    """Three latents, not square, each at a time of its own."""
    b, context, size = 3, 24, UNETS[name]
    ours, theirs = unets(version, context=context, **size)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    loaded(ours, diffusers.unet(levels=size["levels"], blocks=size["blocks"]), theirs)

    x_t, t = draw(b, size["in_channels"], 16, 8).to(dtype), torch.tensor([0, 500, 999])
    image_emb = draw(b, context if version == "2.1" else 14).to(dtype)
    tokens, text_emb = draw(b, 7, 20).to(dtype), draw(b, context).flip(0).to(dtype)
    added = {"image_embeds": image_emb}
    if version == "2.1":
        added["text_embeds"] = text_emb
    reference = theirs(x_t, t, tokens if version == "2.1" else None, added_cond_kwargs=added).sample
    assert_same(ours(x_t, t, ours.context(image_emb, tokens, text_emb)), reference)


MOVQS = {
    "as published, narrow": {"multipliers": [1, 2, 2, 4], "blocks": 2, "attention_levels": [3]},
    "shallow": {"multipliers": [1, 2], "blocks": 1, "attention_levels": [1]},
    "attention in front": {"multipliers": [1, 2, 1], "blocks": 3, "attention_levels": [0]},
}


def movqs(size, quantise_latents):
    attend = [i in size["attention_levels"] for i in range(len(size["multipliers"]))]
    theirs = VQModel(
        down_block_types=["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attend],
        up_block_types=["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attend[::-1]],
        block_out_channels=[32 * m for m in size["multipliers"]],
        layers_per_block=size["blocks"],
        latent_channels=4,
        num_vq_embeddings=64,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    ours = MoVQ(channels=32, **size, latent_channels=4, codes=64, beta=0.25, quantise_latents=quantise_latents)
    structure = {"blocks": size["blocks"], "attention_levels": size["attention_levels"]}
    return ours, redrawn(theirs), diffusers.movq(levels=len(attend), **structure)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("name", MOVQS)
@torch.no_grad()
def test_movq(name, quantise, dtype):
    """Theirs never quantises in `encode`, and in `decode` unless told not to."""
    ours, theirs, rules = movqs(MOVQS[name], quantise)
    ours, theirs = loaded(ours.to(dtype), rules, theirs.to(dtype)), theirs.to(dtype)
    pixels = draw(2, 3, 32, 16).tanh().to(dtype)
    z = theirs.encode(pixels).latents
    z_q = theirs.quantize(z)[0]
    assert_same(ours.encode(pixels), z_q if quantise else z)
    assert_same(ours.decode(z), theirs.decode(z, force_not_quantize=not quantise).sample)
    index = theirs.quantize(z)[2][2].view(ours.codebook.nearest(z).shape)
    assert ours.codebook.nearest(z).equal(index)
