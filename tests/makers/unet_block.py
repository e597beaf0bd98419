"""A block of the decoder's U-Net at the widths of 2.1, and its gradients on a device."""

import torch

from open_kandinsky.networks.attention import KV, ContextAttention
from open_kandinsky.networks.blocks import FilmBlock, Upsample
from open_kandinsky.networks.unet import UNetBlock
from open_kandinsky.stages.parallel import Compiled

EMB, CONTEXT, LENGTH, HEAD = 1536, 768, 87, 64


def block(c_in, width, upsamples):
    """No weight is zero, and none makes values large."""
    torch.manual_seed(0)
    up = FilmBlock(channels_in=width, channels_out=width, emb=EMB, resample=Upsample()) if upsamples else None
    attention = ContextAttention(channels=width, head_channels=HEAD, context=CONTEXT)
    made = UNetBlock(FilmBlock(channels_in=c_in, channels_out=width, emb=EMB), attention, up)
    for name, parameter in made.named_parameters():
        parameter.data.copy_(0.03 * torch.randn(parameter.shape) + float("norm" in name and name.endswith("weight")))
    return made


def gradients(c_in, width, side, upsamples, n, device, engine, mixed):
    """Of inputs and parameters, by name. `mixed`: in bfloat16 by autocast and in channels_last, as a GPU trains."""
    torch.backends.cudnn.allow_tf32 = False
    made = block(c_in, width, upsamples).to(device)
    shapes = [(n, c_in, side, side), (n, EMB), *[(n, width // HEAD, LENGTH, HEAD)] * 2]
    inputs = [torch.randn(shape).to(device) for shape in shapes]
    if mixed:
        made.to(memory_format=torch.channels_last)
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    if engine == "compile":
        Compiled(backend="inductor", dynamic=False)(made, 1)
    x, emb, *kv = [each.requires_grad_() for each in inputs]
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
        out = made.forward(x, emb, KV(*kv))
    out.backward(torch.randn(out.shape).to(out))
    named = dict(made.named_parameters()) | dict(zip(("x", "emb", "k", "v"), inputs, strict=True))
    return {name: value.grad.cpu().contiguous() for name, value in named.items() if value.grad is not None}
