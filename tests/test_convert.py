"""A small random system out and in again: diffusers' own classes open what is written, and give the same numbers."""

import re
import shutil
import subprocess

import pytest
import torch
from diffusers import KandinskyPriorPipeline, PriorTransformer, UNet2DConditionModel, VQModel
from fixtures.system import PARTS, config, untrained
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from open_kandinsky.config import compose
from open_kandinsky.convert import convert
from open_kandinsky.loading import load
from open_kandinsky.train import train
from open_kandinsky.weights import store

DIFFUSERS = "layout=diffusers"
CAPTIONS = ["a red circle", "two green squares on a blue ground"]


def converted(source, out, *more):
    each = [f"{part}: '{path}'" for part, path in source.items()] if isinstance(source, dict) else []
    typed = f"{{{', '.join(each)}}}" if each else f"'{source}'"
    return convert(compose.compose("convert", [f"from={typed}", f"to='{out}'", *more]))


@pytest.fixture(scope="module")
def exported(system, tmp_path_factory):
    return converted(system, tmp_path_factory.mktemp("exported") / "out", "layout=diffusers")


@pytest.fixture(scope="module")
def pipe(system):
    return load(system)


def assert_same(ours, theirs):
    assert float(theirs.std()) > 1e-3
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def networks(pipe):
    return {"clip": pipe.clip, "movq": pipe.movq, "prior": pipe.prior.network, "decoder": pipe.decoder.network}


def assert_bit_equal(a, b):
    for part, network in networks(a).items():
        state, other = network.state_dict(), networks(b)[part].state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state), part


@torch.no_grad()
def test_diffusers_opens_the_prior_and_gives_the_same_step(pipe, exported):
    theirs = PriorTransformer.from_pretrained(exported / "prior", subfolder="prior")
    network, text = pipe.prior.network, pipe.clip.encode_text(CAPTIONS)
    x_t, t = draw(2, 32), torch.tensor([999, 3])
    mine = network(x_t, t, network.prefix(*text))
    assert_same(mine, theirs(x_t, t, text.emb, text.tokens, text.mask).predicted_image_embedding)


@torch.no_grad()
def test_diffusers_opens_movq(pipe, exported):
    theirs, z = VQModel.from_pretrained(exported / "decoder", subfolder="movq"), draw(2, 4, 8, 8)
    assert_same(pipe.movq.decode(z), theirs.decode(z, force_not_quantize=True).sample)


@torch.no_grad()
def test_transformers_opens_both_towers(pipe, exported):
    text = CLIPTextModelWithProjection.from_pretrained(exported / "prior", subfolder="text_encoder")
    token = pipe.clip.tokenize(CAPTIONS)
    ours, theirs = pipe.clip.encode_tokens(token), text(token)
    assert_same(ours.tokens, theirs.last_hidden_state)
    assert_same(ours.emb, theirs.text_embeds)
    vision = CLIPVisionModelWithProjection.from_pretrained(exported / "prior", subfolder="image_encoder")
    pixels = draw(2, 3, 32, 32)
    assert_same(pipe.clip.encode_image(pixels), vision(pixels).image_embeds)


@torch.no_grad()
def test_the_pipeline_of_the_prior_runs_with_our_numbers(pipe, exported, monkeypatch):
    """The same first noise and noises: tokenizer, schedule, guidance and statistics at once."""
    theirs = KandinskyPriorPipeline.from_pretrained(exported / "prior")
    theirs.set_progress_bar_config(disable=True)
    alpha_bar = pipe.prior.alpha_bar  # theirs is float32, 5e-4 off at the cosine's end: rounding, no other method
    theirs.scheduler.alphas_cumprod, before = alpha_bar, torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    theirs.scheduler.alphas = alpha_bar / before
    theirs.scheduler.betas = 1 - theirs.scheduler.alphas
    noises = torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(1))
    feed = iter(noises[1:])
    monkeypatch.setattr("diffusers.schedulers.scheduling_unclip.randn_tensor", lambda *_, **__: next(feed))
    reached = theirs(CAPTIONS, latents=noises[0], num_inference_steps=5, guidance_scale=4.0).image_embeds
    mine = pipe.text_to_embedding(CAPTIONS, steps=5, scale=4.0, x_T=noises[0], noise=iter(noises[1:]))
    assert_same(mine, reached)


@torch.no_grad()
def test_the_readme_draws_with_our_numbers(pipe, exported, monkeypatch):
    """What the README tells to do where no pipeline runs the decoder, done."""
    monkeypatch.chdir(exported)
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    z, image_emb = draw(1, 4, 8, 8), draw(1, 32)
    monkeypatch.setattr(KandinskyPriorPipeline, "__call__", lambda self, prompt: Embeddings(image_emb, pipe))
    assert "z = torch.randn(1, 4, side, side)" in code
    scope = {"first": z}
    exec(code.replace("torch.randn(1, 4, side, side)", "first"), scope)
    sampling = {"steps": scope["steps"], "scale": scope["scale"], "sampler": "ddim"}
    mine = pipe.embedding_to_latent(image_emb, ["a red circle"], x_T=z, noise=iter(()), **sampling)
    assert scope["side"] == 8 and scope["pixels"].shape == (1, 3, 32, 32)
    assert_same(mine, scope["z"])


class Embeddings:
    def __init__(self, image_emb, pipe):
        self.both = image_emb, pipe.clip.null_image()

    def to_tuple(self):
        return self.both


def test_there_and_back_is_bit_exact(pipe, exported, tmp_path):
    """Ours -> diffusers' -> ours -> diffusers'."""
    back = load(exported)
    assert_bit_equal(pipe, back)
    assert torch.equal(back.prior.alpha_bar, pipe.prior.alpha_bar)
    assert torch.equal(back.decoder.alpha_bar, pipe.decoder.alpha_bar)
    assert back.size == pipe.size
    assert (back.prior.sampling, back.decoder.sampling) == (pipe.prior.sampling, pipe.decoder.sampling)
    again = converted(exported, tmp_path / "again", "layout=diffusers")
    for file in exported.rglob("*.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(exported)).read_bytes(), file


def test_the_sampling_that_diffusers_has_no_place_for_is_told(system, tmp_path, capsys):
    converted(system, tmp_path / "out", DIFFUSERS)
    told = capsys.readouterr().out
    assert "prior: drawn by default in 25 steps at scale 1.0; diffusers has to be told so" in told
    assert "decoder: drawn by default in 3 steps at scale 2.0" in told


def test_native_there_and_back_with_its_sums(pipe, exported, tmp_path):
    """diffusers' -> native, which `sha256sum -c` finds whole."""
    native = converted(exported, tmp_path / "native")
    assert_bit_equal(pipe, load(native))
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=native, capture_output=True, text=True, check=True)
    assert checked.stdout.count(": OK") == 2 * len(PARTS)


def test_in_half_precision_statistics_stay_float32(system, tmp_path):
    native = converted(system, tmp_path / "native", "dtype=bfloat16")
    state = load_file(native / "prior" / "weights.safetensors")
    assert state["out.weight"].dtype == torch.bfloat16 and state["standardise.std"].dtype == torch.float32
    assert next(load(native).movq.parameters()).dtype == torch.float32


@torch.no_grad()
@pytest.mark.slow
def test_standardised_latents_go_into_movq(system, tmp_path):
    """The quickstart's decoder models (z - mean) / std: diffusers' MoVQ decodes and encodes just that."""
    copy = shutil.copytree(system, tmp_path / "copy")
    state = load_file(copy / "decoder" / "weights.safetensors")
    mean, std = torch.tensor([0.3, -1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 3.0, 0.2])
    save_file(state | {"standardise.mean": mean, "standardise.std": std}, copy / "decoder" / "weights.safetensors")
    pipe, out = load(copy), converted(copy, tmp_path / "out", "layout=diffusers")
    theirs, x = VQModel.from_pretrained(out / "decoder", subfolder="movq"), draw(1, 4, 8, 8)
    mean, std = (s.reshape(1, 4, 1, 1) for s in (mean, std))
    assert_same(pipe.movq.decode(x * std + mean), theirs.decode(x, force_not_quantize=True).sample)
    pixels = draw(1, 3, 32, 32).tanh()
    assert_same((pipe.movq.encode(pixels) - mean) / std, theirs.encode(pixels).latents)
    assert float(load(out).decoder.network.standardise.std.max()) == 1


def refused(told, source, out, *more):
    with pytest.raises(ValueError, match=told):
        converted(source, out, *more)


def test_nothing_is_overwritten(system, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused("there is something already, and nothing is overwritten", system, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_choices_that_there_are_not(system, tmp_path):
    refused("layout=diffuser: no such choice; did you mean 'diffusers'", system, tmp_path / "out", "layout=diffuser")
    refused("dtype=float23: no such choice; did you mean 'float32'", system, tmp_path / "out", "dtype=float23")
    refused("weights_of=rew: no such choice; did you mean 'raw'", system, tmp_path / "out", "weights_of=rew")
    refused("weights_of=ema: .* holds one set of weights", system, tmp_path / "out", "weights_of=ema")


@pytest.mark.slow
def test_of_a_checkpoint_the_weights_or_their_average(system, cached, tmp_path):
    run = train(config("decoder", cached, f"run_dir='{tmp_path}/run'", "data.val_path=null", "callbacks.ema.decay=0.5"))
    last = run / "checkpoints" / "last.ckpt"
    source = {"rest": system, "decoder": last}
    kept = torch.load(last, weights_only=True)["state_dict"]
    expected = {
        "raw": {key.removeprefix("network."): x for key, x in kept.items()},
        "ema": load_file(run / store.WEIGHTS),
    }
    expected["usual"] = expected["ema"]
    for name, state in expected.items():
        made = load_file(converted(source, tmp_path / name, f"weights_of={name}") / "decoder" / store.WEIGHTS)
        assert made.keys() == state.keys() and all(made[key].equal(state[key]) for key in state), name
    assert not all(expected["raw"][key].equal(x) for key, x in expected["ema"].items())
    with pytest.raises(ValueError, match="last.ckpt: not the prior"):
        load({"rest": system, "prior": last})


@pytest.mark.slow
def test_a_checkpoint_without_an_average(system, cached, tmp_path):
    run = train(config("decoder", cached, f"run_dir='{tmp_path}/run'", "data.val_path=null", "~callbacks.ema"))
    source = {"rest": system, "decoder": run / "checkpoints" / "last.ckpt"}
    refused("weights_of=ema, but its run kept no average", source, tmp_path / "out", "weights_of=ema")
    converted(source, tmp_path / "out")


def test_a_prior_that_diffusers_has_not(system, tmp_path):
    other = untrained("prior_linear", tmp_path)
    source = {"rest": system, "prior": other}
    refused("LinearPrior: diffusers has no such network", source, tmp_path / "out", "layout=diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["prior_linear"]


def test_what_is_refused_halfway_leaves_nothing(system, tmp_path):
    copy = shutil.copytree(system, tmp_path / "copy")
    path = copy / "decoder" / "config.yaml"
    path.write_text(
        path.read_text().replace("schedule.linear", "schedule.cosine").replace("beta_min: 0.00085", "s: 0.1")
    )
    refused(
        "the decoder's schedule is .*cosine; diffusers' Kandinsky has a linear one", copy, tmp_path / "out", DIFFUSERS
    )
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_weights_beyond_half_precision_are_refused(system, tmp_path):
    copy = shutil.copytree(system, tmp_path / "copy")
    state = load_file(copy / "movq" / "weights.safetensors")
    state["quant.bias"][0] = 1e6
    save_file(state, copy / "movq" / "weights.safetensors")
    refused(
        "'quant.bias' holds what is no number .* too great for torch.float16", copy, tmp_path / "o", "dtype=float16"
    )
    state["quant.bias"][0] = float("nan")
    save_file(state, copy / "movq" / "weights.safetensors")
    refused("'quant.bias' holds what is no number .* damaged", copy, tmp_path / "out")


@torch.no_grad()
def test_diffusers_opens_the_unet_and_gives_the_same_step(pipe, exported):
    """Tokens of the condition are made outside of it: theirs makes ten of an image's embedding, and no other number."""
    theirs = UNet2DConditionModel.from_pretrained(exported / "decoder", subfolder="unet")
    network, text = pipe.decoder.network, pipe.clip.encode_text(CAPTIONS)
    x_t, t, image_emb = draw(2, 4, 8, 8), torch.tensor([999, 3]), draw(2, 32)
    tokens, _ = network.condition(image_emb, text.tokens, text.emb)
    added = {"image_embeds": image_emb, "text_embeds": text.emb}
    reference = theirs(x_t, t, tokens, added_cond_kwargs=added).sample
    assert_same(network(x_t, t, network.context(image_emb, text.tokens, text.emb)), reference)
