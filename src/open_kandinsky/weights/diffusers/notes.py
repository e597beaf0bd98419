"""What whoever opens an exported folder has to know: which of diffusers' pipelines do, and what to do if none does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from open_kandinsky.weights.diffusers.config import IMAGE_TOKENS

KIND = {"TextImageCondition": "text_image_proj", "ImageCondition": "image_proj"}

HEAD = """# A Kandinsky-like system in diffusers' layout

Written by `open-kandinsky convert`, and read by it again. `prior/` is opened by

    diffusers.Kandinsky{version}PriorPipeline.from_pretrained("prior")
"""

STOCK = """
and `decoder/` by

    diffusers.DiffusionPipeline.from_pretrained("decoder")
"""

BY_HAND = """
No pipeline of diffusers' runs this decoder, for

{why}

Its U-Net, MoVQ and scheduler are diffusers' own all the same, and this draws a picture:

```python
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, Kandinsky{version}PriorPipeline, UNet2DConditionModel, VQModel
from safetensors.torch import load_file

prompt, steps, scale, side = "a red circle", {steps}, {scale}, {side}  # side: of a latent
prior = Kandinsky{version}PriorPipeline.from_pretrained("prior")
unet = UNet2DConditionModel.from_pretrained("decoder", subfolder="unet")
movq = VQModel.from_pretrained("decoder", subfolder="movq")
scheduler = DDIMScheduler.from_pretrained("decoder", subfolder="scheduler")

padded = prior.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    text = prior.text_encoder(padded.input_ids * padded.attention_mask)  # the decoder was trained with 0 as padding
    image_embeds = torch.cat(prior(prompt).to_tuple())  # of the prompt, and of nothing
{tokens}
    added = {{"image_embeds": image_embeds, "text_embeds": text.text_embeds}}

    scheduler.set_timesteps(steps)
    z = torch.randn(1, {channels}, side, side)
    for t in scheduler.timesteps:
        eps = unet(torch.cat([z, z]), t, tokens, added_cond_kwargs=added).sample[:, :{channels}]
        told, untold = eps.chunk(2)
        z = scheduler.step(untold + scale * (told - untold), t, z).prev_sample
    pixels = movq.decode(z, force_not_quantize=True).sample  # in [-1, 1]
```
"""

THEIR_TOKENS = "    tokens = text.last_hidden_state  # the U-Net itself puts the image's in front of them"
OUR_TOKENS = """\
    project = load_file("decoder/condition/diffusion_pytorch_model.safetensors")
    of_image, of_text = (
        F.linear(x, project[f"encoder_hid_proj.{{name}}.weight"], project[f"encoder_hid_proj.{{name}}.bias"])
        for x, name in ((image_embeds, "image_embeds"), (text.last_hidden_state, "text_proj"))
    )
    tokens = torch.cat([of_image.unflatten(1, ({count}, -1)), of_text], dim=1)"""


def has_their_projection(network: Mapping[str, Any]) -> bool:
    """Whether UNet2DConditionModel makes as many tokens of the image's embedding."""
    condition = network["condition"]
    return condition["image_tokens"] == IMAGE_TOKENS[kind(condition)]


def not_stock(network: Mapping[str, Any], has_text_encoder: bool) -> Iterator[str]:
    """Why none of diffusers' pipelines runs this decoder; nothing where one does."""
    condition = network["condition"]
    if not has_their_projection(network):
        theirs = IMAGE_TOKENS[kind(condition)]
        yield f"it makes {condition['image_tokens']} tokens of an image's embedding, UNet2DConditionModel {theirs}"
    if kind(condition) == "text_image_proj" and not has_text_encoder:
        yield "its captions are read by CLIP's text tower, in KandinskyPipeline by M-CLIP"
    if network["out_channels"] == network["latent_channels"]:
        yield "it predicts no variance, which the pipelines split off"


def kind(condition: Mapping[str, Any]) -> str:
    return KIND[condition["_target_"].rpartition(".")[2]]


def readme(reasons: Sequence[str], version: str, decoder: Mapping[str, Any], side: int) -> str:
    """`decoder` is its config; `side` that of a latent."""
    network, sampling = decoder["stage"]["network"], decoder["sampling"]
    head = HEAD.format(version=version)
    if not reasons:
        return head + STOCK
    tokens = THEIR_TOKENS
    if not has_their_projection(network):
        tokens = OUR_TOKENS.format(count=network["condition"]["image_tokens"])
    numbers = {"steps": sampling["steps"], "scale": sampling["scale"], "side": side}
    why = "\n".join(f"- {reason}" for reason in reasons)
    return head + BY_HAND.format(
        why=why, version=version, tokens=tokens, channels=network["latent_channels"], **numbers
    )
