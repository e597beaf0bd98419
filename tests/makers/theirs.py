"""diffusers' Kandinsky 2.1 and 2.2, and original 2.1 files, of a few random weights, as they lie on disk."""

import string

import torch
from diffusers import DDIMScheduler, DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    XLMRobertaTokenizer,
)

from open_kandinsky.networks.condition import TextImageCondition
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.networks.prior import DiffusionPrior
from open_kandinsky.networks.unet import UNet
from open_kandinsky.weights import kandinsky21
from open_kandinsky.weights.diffusers.export import write_tokenizer
from open_kandinsky.weights.keymap import KeyMap

DIM, LENGTH = 32, 77
SMALL = {"hidden_size": DIM, "intermediate_size": 2 * DIM, "num_attention_heads": 2, "num_hidden_layers": 1}
TEXT = {**SMALL, "projection_dim": DIM, "bos_token_id": 49406, "eos_token_id": 49407}
VISION = {**SMALL, "projection_dim": DIM, "image_size": 32, "patch_size": 16}
MCLIP = {**SMALL, "hidden_size": 16, "transformerDimSize": 16, "imageDimSize": DIM, "vocab_size": 60}
MCLIP |= {"max_position_embeddings": 90, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
PRIOR_SCHEDULER = {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 10.0}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "steps_offset": 1}


def redrawn(network):
    """All weights at random and always the same, those that begin at 0 or 1 included."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        gain = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        draw = gain * torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + draw if "norm" in name.lower() and name.endswith("weight") and draw.ndim == 1 else draw
    return network.eval()


def write_prior(folder):
    """prior/ of either version."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": DIM}
    redrawn(PriorTransformer(**sizes, num_embeddings=LENGTH)).save_pretrained(folder / "prior")
    redrawn(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT))).save_pretrained(folder / "text_encoder")
    redrawn(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))).save_pretrained(folder / "image_encoder")
    UnCLIPScheduler(**PRIOR_SCHEDULER).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", LENGTH)


def unet(**condition):
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=16,
        cross_attention_dim=DIM,
        **condition,
    )


def write_movq(folder):
    down, up = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4, "vq_embed_dim": 4}
    movq = VQModel(down_block_types=down, up_block_types=up, num_vq_embeddings=16, norm_type="spatial", **sizes)
    redrawn(movq).save_pretrained(folder / "movq")


def write_text_encoder(folder, tokenizer):
    redrawn(MultilingualCLIP(MCLIPConfig(**MCLIP))).save_pretrained(folder)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [("▁", -2.0), *((letter, -3.0) for letter in string.ascii_lowercase), ("▁a", -1.5), ("▁red", -1.0)]
    XLMRobertaTokenizer(vocab=[*((word, 0.0) for word in special), *letters]).save_pretrained(tokenizer)


def write_kandinsky21(root):
    write_prior(root / "prior")
    decoder = root / "decoder"
    condition = {"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 16, "addition_embed_type": "text_image"}
    redrawn(unet(**condition)).save_pretrained(decoder / "unet")
    write_movq(decoder)
    write_text_encoder(decoder / "text_encoder", decoder / "tokenizer")
    DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False).save_pretrained(decoder / "scheduler")
    return root


def write_kandinsky22(root):
    write_prior(root / "prior")
    condition = {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": DIM, "addition_embed_type": "image"}
    redrawn(unet(**condition)).save_pretrained(root / "decoder" / "unet")
    write_movq(root / "decoder")
    del (betas := dict(BETAS))["steps_offset"]
    DDPMScheduler(**betas).save_pretrained(root / "decoder" / "scheduler")
    return root


def original_networks():
    """Heads have 64 channels, as the official ones, of which files say nothing."""
    sizes = {"image_dim": DIM, "text_dim": DIM, "text_width": DIM, "text_length": LENGTH}
    condition = {"image_dim": DIM, "text_width": 16, "text_dim": DIM, "image_tokens": 10, "context": DIM, "emb": 64}
    body = {"out_channels": 8, "latent_channels": 4, "channels": 64, "multipliers": [1, 2], "blocks": 1, "emb": 64}
    body |= {"attention_levels": [1], "head_channels": 64, "context": DIM}
    movq = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "latent_channels": 4}
    return {
        "prior": redrawn(DiffusionPrior(**sizes, width=128, layers=2, heads=2)),
        "decoder": redrawn(UNet(condition=TextImageCondition(**condition), in_channels=4, **body)),
        "inpainting": redrawn(UNet(condition=TextImageCondition(**condition), in_channels=9, **body)),
        "movq": redrawn(MoVQ(**movq, codes=16, beta=0.25, quantise_latents=False)),
    }


def write_originals(root):
    """Returns the networks of ours that they are of."""
    networks = original_networks()
    networks["prior"].standardise.set(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    of_unet = kandinsky21.unet(levels=2, blocks=1, attention_levels=[1], head_channels=64)
    rules = {"prior": kandinsky21.prior(layers=2, head_channels=64), "decoder": of_unet, "inpainting": of_unet}
    rules |= {"movq": kandinsky21.movq(levels=2, blocks=1, attention_levels=[1])}
    theirs = {name: KeyMap(rules[name], n.state_dict()).to_theirs(n.state_dict()) for name, n in networks.items()}
    statistics = tuple(theirs["prior"].pop(name) for name in kandinsky21.STATISTICS)
    root.mkdir(parents=True, exist_ok=True)
    torch.save(statistics, root / "ViT-L-14_stats.th")
    torch.save(theirs["movq"], root / "movq_final.ckpt")
    for name in ("prior", "decoder", "inpainting"):
        torch.save(theirs[name], root / f"{name}_fp16.ckpt")
    write_text_encoder(root / "text_encoder", root / "text_encoder")
    towers = {"text_config": {**TEXT, "vocab_size": 49408}, "vision_config": VISION}
    redrawn(CLIPModel(CLIPConfig(**towers, projection_dim=DIM))).save_pretrained(root / "clip")
    return networks


def in_float64(scheduler, alpha_bar):
    """With our tables: theirs are of float32."""
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    scheduler.alphas_cumprod, scheduler.alphas = alpha_bar, alpha_bar / before
    scheduler.betas, scheduler.one = 1 - scheduler.alphas, alpha_bar.new_tensor(1.0)
    scheduler.final_alpha_cumprod = alpha_bar[0]
    return scheduler
