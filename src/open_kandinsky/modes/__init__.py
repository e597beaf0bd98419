"""The modes of `generate`: what each reads of a request, the pictures that this asks for, and how they are drawn."""

from open_kandinsky.modes import drawing, editing
from open_kandinsky.modes.request import Asked, Mode

TEXTS = ("prompts", "prompts_file")
DECODER = ("negative_decoder_prompt", "steps", "scale", "sampler")
PRIOR = ("prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
ALL, SIZED = PRIOR + DECODER, ("size", *DECODER)

MODES = {
    "text_to_image": Mode(
        needs="prompts or prompts_file",
        sources=TEXTS,
        options=PRIOR + SIZED,
        asked=drawing.asked_texts,
        draw=drawing.draw_texts,
    ),
    "variations": Mode(
        needs="images",
        sources=("images",),
        options=SIZED,
        asked=drawing.asked_variations,
        draw=drawing.draw_variations,
    ),
    "mix": Mode(
        needs="parts and part_weights",
        sources=("parts", "part_weights"),
        options=PRIOR + SIZED,
        asked=drawing.asked_mix,
        draw=drawing.draw_mix,
    ),
    "interpolate": Mode(
        needs="between",
        sources=("between",),
        options=PRIOR + SIZED,
        asked=drawing.asked_between,
        draw=drawing.draw_between,
    ),
    "image_to_image": Mode(
        needs="images, and prompts or prompts_file",
        sources=(*TEXTS, "images"),
        options=("strength", *ALL),
        asked=editing.asked_images,
        draw=editing.draw_images,
    ),
    "inpaint": Mode(
        needs="images, masks, and prompts or prompts_file",
        sources=(*TEXTS, "images", "masks"),
        options=ALL,
        asked=editing.asked_inpainting,
        draw=editing.draw_inpainting,
    ),
    "outpaint": Mode(
        needs="images, margins, and prompts or prompts_file",
        sources=(*TEXTS, "images", "margins"),
        options=ALL,
        asked=editing.asked_outpainting,
        draw=editing.draw_outpainting,
    ),
}

__all__ = ["MODES", "Asked", "Mode"]
