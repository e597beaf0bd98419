"""Folders of diffusers' Kandinsky 2.1 and 2.2 and of original files: read without diffusers, with its numbers."""

import json
import shutil
from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    KandinskyPipeline,
    KandinskyV22Pipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MultilingualCLIP
from fixtures import theirs
from transformers import AutoTokenizer

from open_kandinsky.config import compose
from open_kandinsky.convert import convert
from open_kandinsky.diffusion import samplers
from open_kandinsky.loading import load
from open_kandinsky.pipeline import Sampling
from open_kandinsky.weights.kandinsky21 import folder

CAPTIONS = ["a red circle", "a", ""]


@pytest.fixture(scope="module")
def of_21(tmp_path_factory):
    return theirs.write_kandinsky21(tmp_path_factory.mktemp("theirs") / "2.1")


@pytest.fixture(scope="module")
def of_22(tmp_path_factory):
    return theirs.write_kandinsky22(tmp_path_factory.mktemp("theirs") / "2.2")


@pytest.fixture(scope="module")
def pipe(of_21):
    return load(of_21)


@pytest.fixture
def copy(of_21, tmp_path):
    return shutil.copytree(of_21, tmp_path / "copy")


def assert_same(ours, reference, rel=1e-5):
    assert 1e-3 < float(reference.std()) < 1000
    assert float((ours - reference).abs().max() / reference.abs().max()) < rel


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_multilingual_encoder(pipe, of_21):
    reference = MultilingualCLIP.from_pretrained(of_21 / "decoder", subfolder="text_encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(of_21 / "decoder" / "tokenizer")
    padded = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    emb, tokens = reference(padded.input_ids, padded.attention_mask)
    text = pipe.text.encode_text(CAPTIONS)
    assert text.tokens.shape == (3, 77, 16) and text.mask.equal(padded.attention_mask.bool())
    assert_same(text.tokens, tokens)
    assert_same(text.emb, emb)
    assert pipe.text.null_text().emb.equal(text.emb[2:]) or torch.allclose(pipe.text.null_text().emb, text.emb[2:])


def test_a_caption_that_is_too_long_is_warned_of(pipe):
    with pytest.warns(UserWarning, match="longer than 77 tokens"):
        text = pipe.text.encode_text(["z" * 100])
    assert text.mask.all()


@torch.no_grad()
def test_a_step_of_either_unet(of_21, of_22, pipe):
    x_t, t, image_emb = draw(3, 4, 8, 8), torch.tensor([999, 500, 0]), draw(3, 32)
    text = pipe.text.encode_text(CAPTIONS)
    added = {"image_embeds": image_emb, "text_embeds": text.emb}
    for root, system in ((of_21, pipe), (of_22, load(of_22))):
        reference = UNet2DConditionModel.from_pretrained(root / "decoder", subfolder="unet")
        network = system.decoder.network
        context = network.context(image_emb, text.tokens, text.emb)
        assert_same(network(x_t, t, context), reference(x_t, t, text.tokens, added_cond_kwargs=added).sample)


def test_22_has_no_text_encoder(of_22):
    pipe = load(of_22)
    assert pipe.text is None
    assert pipe.size == 16 and pipe.decoder.sampling.clamp == 1 and pipe.decoder.sampling.sampler == "ddpm"


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def exported(request, of_21, of_22, tmp_path_factory):
    """What they wrote as a pipeline of ours, and what we wrote of it as one of theirs; in float64.

    A U-Net of random weights makes 1e-4 of float32's rounding in four steps.
    """
    source, kind = {"2.1": (of_21, KandinskyPipeline), "2.2": (of_22, KandinskyV22Pipeline)}[request.param]
    out = tmp_path_factory.mktemp("exported") / "out"
    convert(compose.compose("convert", [f"from='{source}'", f"to='{out}'", "layout=diffusers"]))
    reference = kind.from_pretrained(out / "decoder").to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    return load(source, dtype=torch.float64), reference


def spaced_ddpm(pipe, variance, steps):
    """diffusers' ancestral sampler on the original 2.1's grid, and not on its own."""
    scheduler = DDPMScheduler(
        **theirs.BETAS, variance_type=variance, clip_sample=pipe.decoder.sampling.clamp is not None
    )
    grid, walk = samplers.spaced(pipe.decoder.alpha_bar, steps).t.tolist(), scheduler.set_timesteps
    scheduler.set_timesteps = lambda _, device: walk(timesteps=grid, device=device)
    return scheduler


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("size", [(16, 16), (40, 24)], ids=str)
def test_exported_again_a_pipeline_runs_with_our_numbers(exported, sampler, size, monkeypatch):
    """From embedding, prompt and noises to pixels, in 20 guided steps: text encoder, U-Net, sampler and MoVQ."""
    pipe, reference = exported
    prompted, clamps = pipe.text is not None, pipe.decoder.sampling.clamp is not None
    if sampler == "ddim":
        scheduler = DDIMScheduler(**theirs.BETAS, clip_sample=clamps, set_alpha_to_one=False)
        scheduler.step = partial(scheduler.step, use_clipped_model_output=True)  # eps is that of the clamped x_0, here
    else:
        scheduler = spaced_ddpm(pipe, "learned_range" if prompted else "fixed_small", 20)
    reference.scheduler = theirs.in_float64(scheduler, pipe.decoder.alpha_bar)
    image_emb, noises = draw(1, 32).double(), draw(21, 1, *pipe.latent_shape(size)).double()
    feed = iter(noises[1:])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(feed))
    given = (["a red circle"] if prompted else []) + [image_emb, pipe.clip.null_image()]
    options = {"width": size[0], "height": size[1], "num_inference_steps": 20, "guidance_scale": 4.0}
    reached = reference(*given, latents=noises[0], output_type="pt", **options).images
    own = {"steps": 20, "scale": 4.0, "sampler": sampler, "x_T": noises[0], "noise": iter(noises[1:])}
    mine = pipe.embedding_to_latent(image_emb, ["a red circle"], size=size, **own)
    assert mine.dtype == torch.float64
    assert_same(pipe.movq.decode(mine), reached, rel=1e-8)


def test_22_exported_again_is_the_same_diffusion(of_22, tmp_path):
    """Ancestral, its variance unused."""
    out = convert(compose.compose("convert", [f"from='{of_22}'", f"to='{tmp_path}/out'", "layout=diffusers"]))
    for one in (of_22, out):
        decoder = load(one).decoder
        assert type(decoder.parameterisation).__name__ == "UnusedRange"
        assert decoder.sampling == Sampling(steps=50, scale=4.0, sampler="ddpm", clamp=1.0)
    assert type(KandinskyV22Pipeline.from_pretrained(out / "decoder").scheduler).__name__ == "DDPMScheduler"


def test_native_and_back_is_bit_exact(pipe, of_21, tmp_path):
    native = convert(compose.compose("convert", [f"from='{of_21}'", f"to='{tmp_path}/native'"]))
    back = load(native)
    pairs = [(pipe.clip, back.clip), (pipe.text, back.text), (pipe.movq, back.movq)]
    pairs += [(pipe.prior.network, back.prior.network), (pipe.decoder.network, back.decoder.network)]
    for network, other in pairs:
        state = other.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert back.text.encode_text(CAPTIONS).emb.equal(pipe.text.encode_text(CAPTIONS).emb)


def test_two_pipelines_by_name_bring_their_other_parts(of_21, pipe):
    other = load({"prior": of_21 / "prior", "decoder": of_21 / "decoder"})
    assert other.text is not None and other.size == pipe.size


def test_original_files(tmp_path):
    networks = theirs.write_originals(tmp_path)
    pipe = load(tmp_path)
    made = {"prior": pipe.prior.network, "decoder": pipe.decoder.network, "movq": pipe.movq}
    inpainting = load({"rest": tmp_path, "decoder": tmp_path / "inpainting_fp16.ckpt"})
    for name, network in (made | {"inpainting": inpainting.decoder.network}).items():
        state = networks[name].state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), name
    assert pipe.text.encode_text(CAPTIONS).emb.shape == (3, 32)
    assert (pipe.prior.sampling.sampler, pipe.prior.sampling.clamp) == ("ddpm", 10)
    assert float(pipe.decoder.alpha_bar[-1]) == pytest.approx(0.00157896, rel=1e-5)


@pytest.mark.slow
def test_a_training_checkpoint_of_movqgan(tmp_path, capsys):
    networks = theirs.write_originals(tmp_path)
    last = torch.load(tmp_path / "movq_final.ckpt", weights_only=True)
    averages = {folder.average_of(key): tensor + 1 for key, tensor in last.items()}
    whole = {"state_dict": {**last, **averages, "loss.logvar": torch.zeros(1)}, "global_step": 3}
    torch.save(whole, tmp_path / "movq_final.ckpt")
    assert torch.equal(load(tmp_path).movq.quant.bias, networks["movq"].quant.bias)
    out = convert(compose.compose("convert", [f"from='{tmp_path}'", f"to='{tmp_path}/out'", "weights_of=ema"]))
    assert torch.equal(load(out).movq.quant.bias, networks["movq"].quant.bias + 1)
    assert f"movq: left out by name: loss. (1), not averaged ({len(last)})" in capsys.readouterr().out


def refused(source, told):
    with pytest.raises(ValueError, match=told):
        load(source)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_system_of_two_versions(copy):
    edit(copy / "prior" / "prior" / "config.json", embedding_dim=48)
    refused(copy, "do not belong together: dims.clip is clip .* 32, prior .* 48, decoder .* 32")


def test_an_encoder_that_is_missing(copy):
    shutil.rmtree(copy / "decoder" / "text_encoder")
    refused(copy, "the decoder .* reads text states 16 wide, and CLIP's are 32 wide: its own text encoder is missing")


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        (
            "decoder/unet",
            {"resnet_time_scale_shift": "default"},
            "resnet_time_scale_shift is 'default'; only 'scale_shift'",
        ),
        ("decoder/unet", {"addition_embed_type": "image_hint"}, "conditioned by text_image_proj and image_hint"),
        ("decoder/unet", {"out_channels": 6}, "out_channels is 6; expected 4, or 8"),
        ("decoder/unet", {"attention_head_dim": 32, "cross_attention_dim": 64}, "dims.clip"),
        ("decoder/unet", {"layers_per_block": 2}, "keys missing"),
        ("decoder/movq", {"norm_type": "group"}, "norm_type is 'group'; only 'spatial'"),
        ("prior/prior", {"added_emb_type": None}, "added_emb_type is None; only 'prd'"),
        ("prior/text_encoder", {"hidden_act": "gelu"}, "projection_dim and hidden_act of text are"),
    ],
)
def test_networks_that_are_not_kandinskys(copy, file, values, told):
    edit(copy / file / "config.json", **values)
    refused(copy, told)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_schedule is 'scaled_linear'; known are 'linear'"),
        ({"trained_betas": [0.1]}, "trained_betas are given"),
        ({"_class_name": "HeunDiscreteScheduler"}, "HeunDiscreteScheduler is not known"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is true"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
    ],
)
def test_schedules_that_cannot_be_ours(copy, values, told):
    edit(copy / "decoder" / "scheduler" / "scheduler_config.json", **values)
    refused(copy, told)
