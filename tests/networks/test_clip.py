"""CLIP as it is run here."""

import warnings

import pytest
import torch

from open_kandinsky.networks.clip import Clip, LongTexts

START, END = 49406, 49407


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 10, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2}
    return Clip(dim=12, vision=vision, text=text, quick_gelu=True).eval()


def test_tokens_are_start_words_end_and_noughts(clip):
    token = clip.tokenize(["a red circle", ""])
    assert token.shape == (2, 10)
    assert token[0, [0, 4]].tolist() == [START, END]
    assert token[0, 5:].tolist() == [0] * 5
    assert token[1].tolist() == [START, END] + [0] * 8


@torch.no_grad()
def test_encode_text_is_open_clips_not_normalised(clip):
    captions = ["a red circle", "", "two"]
    text = clip.encode_text(captions)
    torch.testing.assert_close(text.emb, clip.model.encode_text(clip.tokenize(captions), normalize=False))
    assert (text.emb.norm(dim=1) - 1).abs().max() > 0.01


@torch.no_grad()
def test_states_have_been_through_the_final_norm(clip):
    """The official prior's training forgot it: a fresh norm gives each state mean 0 and variance 1."""
    tokens = clip.encode_text(["a red circle"]).tokens
    assert tokens.shape == (1, 10, 24)
    torch.testing.assert_close(tokens.mean(2), torch.zeros(1, 10), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(2, correction=0), torch.ones(1, 10), rtol=0, atol=0.05)


def test_mask_is_true_up_to_the_end_of_text(clip):
    mask = clip.encode_text(["a red circle", ""]).mask
    assert mask.sum(1).tolist() == [5, 2]
    assert mask[:, :2].all()
    assert (mask.int().diff(dim=1) <= 0).all()


def test_long_captions_are_counted_the_first_is_told_and_each_keeps_its_end(clip):
    long = "one two three four five six seven eight nine ten eleven"
    clip.long = LongTexts(8)
    with pytest.warns(UserWarning, match="longer than 8 tokens, its end is not read.*: 'one two three") as caught:
        token = clip.tokenize(["a red circle", long])
        clip.tokenize([f"{long} {i}" for i in range(5)])
    assert len(caught) == 1 and clip.long.count == 6
    assert token[1, 0] == START
    assert token[1, -1] == END
    assert token[1, 1:-1].tolist() == clip.tokenizer.encode(long)[:8]
    assert clip.encode_tokens(token).mask[1].all()


def test_of_a_caption_as_long_as_a_page_a_line_is_told(clip):
    clip.long = LongTexts(8)
    with pytest.warns(UserWarning) as caught:
        clip.tokenize(["a picture of a cat " * 500])
    assert len(str(caught[0].message)) < 160 and str(caught[0].message).endswith("a picture of a cat ...'")


def test_captions_that_just_fit_are_not_warned_of(clip):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token = clip.tokenize(["one two three four five six seven eight", "internationalisation of words"])
    assert token[0, -1] == END


@torch.no_grad()
def test_null_image_is_the_embedding_of_noughts(clip):
    assert clip.null_image().equal(clip.encode_image(torch.zeros(1, 3, 32, 32)))
    assert clip.null_image().any()


@torch.no_grad()
def test_null_text_is_the_empty_caption(clip):
    null = clip.null_text()
    assert null.emb.equal(clip.encode_text([""]).emb)
    assert null.mask.tolist() == [[True, True] + [False] * 8]


@torch.no_grad()
def test_a_caption_is_the_same_alone_as_in_a_batch(clip):
    together, alone = clip.encode_text(["a red circle", "two"]), clip.encode_text(["two"])
    torch.testing.assert_close(together.emb[1:], alone.emb)
    torch.testing.assert_close(together.tokens[1:], alone.tokens)


def test_gradients_flow_through_both_towers(clip):
    """It is trained too, in the stage of its own."""
    text = clip.encode_text(["a red circle"])
    (text.emb @ clip.encode_image(torch.randn(1, 3, 32, 32)).T).sum().backward()
    without = {name for name, p in clip.named_parameters() if p.grad is None}
    clip.zero_grad()
    assert without == {"model.logit_scale"}
