"""The Python surface as a user of diffusers' pipelines meets it: what is shown, accepted, and refused in words."""

import inspect
import io
import pydoc
from importlib.resources import files

import numpy as np
import pytest
import torch
from fixtures.pictures import photo, refused, right_third
from PIL import Image

import open_kandinsky as ok
from open_kandinsky.generation.prompts import opened
from open_kandinsky.loading import load
from open_kandinsky.pipeline import Pipeline, Step
from open_kandinsky.pipeline.options import DEFAULTS

MODES = ("text_to_image", "variations", "mix", "interpolate", "image_to_image", "inpaint", "outpaint")
QUICK = {"steps": 2, "prior_steps": 2, "prior_scale": 1.0}


@pytest.fixture(scope="module")
def pipe(system):
    return load(system)


def test_load_is_a_function_at_every_call_whatever_was_imported_before(system):
    import open_kandinsky.generate  # noqa: F401
    from open_kandinsky import load as named

    assert named is ok.load is load and ok.Pipeline is Pipeline
    assert isinstance(ok.load(system), Pipeline) and isinstance(ok.load(system), Pipeline)


def test_the_package_has_a_version_and_says_that_it_is_typed():
    from importlib.metadata import version

    assert ok.__version__ == version("open-kandinsky")
    assert (files("open_kandinsky") / "py.typed").is_file()


@pytest.mark.parametrize("mode", MODES)
def test_help_names_every_option(mode):
    shown = set(inspect.signature(getattr(Pipeline, mode)).parameters)
    assert DEFAULTS.keys() <= shown and "options" not in shown
    text = pydoc.plain(pydoc.render_doc(getattr(Pipeline, mode)))
    assert "Options" not in text and "seeds" in text and "prior_scale" in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seed": 3}, "has no option 'seed'; did you mean 'seeds'?"),
        ({"num_inference_steps": 3}, "here it is steps="),
        ({"guidance_scale": 3}, "here it is scale="),
        ({"generator": torch.Generator()}, r"here it is seeds=\[...\], one for each picture"),
        ({"width": 32}, r"here it is size=\(width, height\)"),
        ({"xyzzy": 1}, "there are size, negative_prompt"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_the_one_that_does(pipe, given, told):
    with pytest.raises(TypeError, match=told):
        pipe.text_to_image("a red circle", **given)


@pytest.mark.parametrize("name", ["scale", "prior_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "4", True])
def test_a_scale_that_is_no_finite_number(pipe, name, value):
    refused(f"{name.removeprefix('prior_')}={value}: a finite number", pipe.text_to_image, "a", **{name: value})


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3", True])
def test_steps_that_cannot_be(pipe, steps):
    refused(f"steps={steps}: a whole number, at least 1", pipe.text_to_image, "a", steps=steps)


def test_a_number_is_a_square_and_one_seed_is_enough_for_one_picture(pipe):
    [image] = pipe("a red circle", size=24, seeds=7, **QUICK)
    [same] = pipe(["a red circle"], size=(24, 24), seeds=[7], **QUICK)
    assert image.size == (24, 24) and image.tobytes() == same.tobytes()
    refused("1 seeds for 2 images: seeds=7; give a list with one for each", pipe, ["a", "b"], seeds=7)
    refused("seeds: 'x' is no whole number", pipe, ["a"], seeds=["x"])


def test_a_string_is_one_prompt_everywhere(pipe):
    emb = pipe.text_to_embedding("a red circle", steps=2)
    assert torch.equal(emb, pipe.text_to_embedding(["a red circle"], steps=2)) and emb.shape == (1, 32)
    z = pipe.embedding_to_latent(emb, "a red circle", steps=2)
    assert torch.equal(z, pipe.embedding_to_latent(emb, ["a red circle"], steps=2))
    assert torch.equal(pipe.embedding_to_latent(emb, steps=2), pipe.embedding_to_latent(emb, [""], steps=2))


@pytest.mark.parametrize("image", ["cat.png", np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), None])
def test_what_is_no_picture_is_told_apart_by_name(pipe, image):
    for call in (
        lambda: pipe.variations(image),
        lambda: pipe.image_to_image("a", image),
        lambda: pipe.outpaint("a", image, left=8),
    ):
        refused(f"image: a PIL image is wanted, and this is a {type(image).__name__}; give PIL.Image", call)
    refused("mask: a PIL image is wanted", pipe.inpaint, "a", photo(), image)


# ---- one reader of pictures


def encoded(image, **options):
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return data.getvalue()


def transparent():
    """Red that nobody sees beside blue that everybody does."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (255, 0, 0, 0), (0, 0, 255, 255)
    return encoded(Image.fromarray(pixels))


def deep():
    """16 bits a pixel, most of it above 255."""
    return encoded(Image.fromarray((np.arange(32 * 32, dtype=np.uint16) * 64).reshape(32, 32)))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo((32, 24)), exif=exif)


@pytest.mark.parametrize("made", [transparent, deep, turned])
def test_python_reads_a_picture_as_the_command_line_does(pipe, tmp_path, made):
    path = tmp_path / "picture.png"
    path.write_bytes(made())
    python, command = Image.open(path), opened(str(path))
    torch.testing.assert_close(pipe.image_to_embedding([python]), pipe.image_to_embedding([command]))
    mask = right_third(command.size)
    for draw in (
        lambda image: pipe.variations(image, steps=2),
        lambda image: pipe.mix([image, "a"], [1, 1], **QUICK),
        lambda image: pipe.image_to_image("a", image, 0.5, **QUICK | {"steps": 4}),
        lambda image: pipe.inpaint("a", image, mask, **QUICK),
        lambda image: pipe.outpaint("a", image, left=8, **QUICK),
    ):
        assert draw(python)[0].tobytes() == draw(command)[0].tobytes()


# ---- callbacks, outputs, places


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms", "dpmpp_2m"])
def test_a_callback_sees_each_call_and_ends_with_what_is_drawn(pipe, sampler):
    seen: list[Step] = []
    options = QUICK | {"steps": 4, "sampler": sampler, "prior_sampler": "ddim", "prior_steps": 3}
    [z] = pipe("a red circle", callback=seen.append, output_type="latent", **options)
    prior, decoder = ([step for step in seen if step.part == part] for part in ("prior", "decoder"))
    assert [step.index for step in prior] == [1, 2, 3] and {step.total for step in prior} == {3}
    calls = 5 if sampler == "plms" else 4
    assert [step.index for step in decoder] == list(range(1, calls + 1)) and {step.total for step in decoder} == {calls}
    assert prior[0].x_0.shape == (1, 32) and decoder[0].x_0.shape == (1, *z.shape)
    if sampler in ("ddpm", "dpmpp_2m"):  # which end at x_0
        torch.testing.assert_close(decoder[-1].x_0[0], z)
    [plain] = pipe("a red circle", output_type="latent", **options)
    assert torch.equal(plain, z)


def test_a_callback_that_raises_ends_the_drawing_at_that_step(pipe):
    class Cancelled(Exception):
        pass

    seen = []

    def cancel(step):
        seen.append(step)
        if step.part == "decoder" and step.index == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        pipe("a red circle", callback=cancel, **QUICK | {"steps": 8})
    assert seen[-1].index == 2


def test_pictures_come_as_images_arrays_tensors_and_latents(pipe):
    [image], [array], [tensor], [z] = (
        pipe("a red circle", output_type=kind, **QUICK) for kind in ("pil", "np", "pt", "latent")
    )
    assert array.shape == (32, 32, 3) and tensor.shape == (3, 32, 32) and z.shape == (4, 8, 8)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), array) and 0 <= array.min() and array.max() <= 1
    assert np.array_equal(np.asarray(image), np.rint(array * 255).astype(np.uint8))
    refused("output_type='jpg': one of pil, np, pt, latent", pipe, "a", output_type="jpg")


def test_a_pipeline_says_what_it_is(pipe):
    text = repr(pipe)
    assert text.startswith("Pipeline of 32 px, on cpu in float32") and "DiffusionPrior" in text and "ddim" in text


def test_a_pipeline_moves_to_another_precision_and_draws_as_one_loaded_there(system):
    pipe = load(system).to(dtype=torch.float64)
    there = load(system, dtype=torch.float64)
    assert pipe.dtype == torch.float64 and pipe.decoder.alpha_bar.dtype == torch.float64
    [a], [b] = (each("a red circle", output_type="latent", **QUICK) for each in (pipe, there))
    torch.testing.assert_close(a, b)
    back = pipe.to("cpu", torch.float32)
    assert back is pipe and pipe("a red circle", **QUICK)[0].size == (32, 32)


def test_networks_that_take_turns_do_not_move(system):
    refused("load.source, device=..., dtype=.... anew", load(system, offload=True).to, "cpu")


def test_a_size_that_is_drawn_larger_is_said_once(system, caplog):
    pipe = load(system)
    for _ in range(2):
        assert pipe("a", size=33, **QUICK)[0].size == (33, 33)
        assert pipe("a", size=32, **QUICK)[0].size == (32, 32)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["size=33x33 is drawn as 40x40 and cropped: sides that are multiples of 8 are drawn as they are"]
