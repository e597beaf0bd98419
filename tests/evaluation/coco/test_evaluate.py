"""The whole of `evaluate` under COCO's protocols, on a small set of COCO's shape and random weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import coco as maker
from fixtures.evaluators import inception_state
from hydra.errors import InstantiationException
from PIL import Image

from open_kandinsky.config import compose
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluate import evaluate, take_device
from open_kandinsky.evaluation import samples
from open_kandinsky.evaluation.captions import OnePerImage
from open_kandinsky.evaluation.comparison import compare
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.samples import SampleBlock
from open_kandinsky.loading import load
from open_kandinsky.metrics.clip_score import clip_score
from open_kandinsky.metrics.evaluators import Inception, clean, pytorch_fid
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.weights import published

ROOT = Path(__file__).parents[3]
N = 12
FID = ("also=[coco30k_clean]", "metrics=[fid,precision_recall,clip_score_own_clip]")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return maker.make(tmp_path_factory.mktemp("coco") / "coco", n_images=16)


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators")
    torch.save(inception_state(), folder / published.INCEPTION.file)
    return folder


@pytest.fixture(scope="module")
def asked(system, coco, evaluators):
    """What is typed, but for `out`."""
    paths = {"weights": system, "coco": coco, "evaluator_weights": evaluators}
    return [
        *(f"{key}='{path}'" for key, path in paths.items()),
        "accept_unknown_weights=true",
        "protocol=coco30k_default",
        f"protocol.captions.n={N}",
        "metrics=[is,clip_score_own_clip,frechet_distance_own_clip]",
        "block=5",
    ]


def run(asked, out, *more):
    told = evaluate(compose.compose("evaluate", [*asked, f"out='{out}'", *more]))
    return json.loads((out / "metrics.json").read_text()), told


def refused(told, asked, out, *more):
    with pytest.raises(ValueError, match=told):
        run(asked, out, *more)


@pytest.fixture(scope="module")
def done(asked, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return out, *run(asked, out, *FID)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_pictures(done, coco, system):
    """Drawn, prepared, and scored once more by hand."""
    _, found, _ = done
    captions = OnePerImage(n=N, seed=0)(Coco.open(coco))
    texts = [caption.text for caption in captions]
    pipe = load(system)
    drawn = [
        image for i in range(0, N, 5) for image in pipe.text_to_image(texts[i : i + 5], seeds=range(i, min(i + 5, N)))
    ]
    prepare = Preparation(crop="centre", filter="bicubic", size=256, jpeg_before=None, jpeg_after=None)
    real = [Coco.open(coco).picture(image.id) for image in Coco.open(coco).images]
    for name, path in {"coco30k_default": pytorch_fid, "coco30k_clean": clean}.items():
        network = Inception(state=inception_state(), input_path=path)
        sets = [torch.cat([network(pixels(prepare(image))).pool for image in images]) for images in (real, drawn)]
        numbers = found["metrics"] if name == found["protocol"] else found["also"][name]
        assert numbers["unverified_fid_small_n"] == pytest.approx(frechet_distance(*sets), rel=1e-4)
    own = clip_score(pipe.image_to_embedding(drawn), pipe.clip.encode_text(texts).emb)
    assert found["metrics"]["clip_score_own_clip"] == pytest.approx(float(own.mean()), rel=1e-5)


def pixels(image):
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .reshape(1, *image.size[::-1], 3)
        .permute(0, 3, 1, 2)
    )


@pytest.mark.slow
def test_pictures_do_not_depend_on_which_process_has_how_many_threads(asked, tmp_path):
    """A folder is gone on with by as many threads as it was begun with: the same bits as from one process."""
    first, _ = run(asked, tmp_path / "out", "limit=5")
    torch.set_num_threads(2)
    try:
        shared, _ = run(asked, tmp_path / "out")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    alone, _ = run(asked, tmp_path / "alone")
    assert shared["images_sha256"] == alone["images_sha256"] != first["images_sha256"]
    assert shared["metrics"] == alone["metrics"]


@pytest.mark.slow
def test_what_was_measured_is_said(done):
    out, found, told = done
    assert found["n"] == N and found["n_real"] == 16 and found["seeds"] == [0, N - 1]
    assert {"images_sha256", "captions_sha256", "coco_sha256", "weights_sha256", "versions"} <= found.keys()
    assert found["drawn_with"]["steps"] == 3
    assert any("is not val2014" in caveat for caveat in found["warnings"])
    assert any("not the published file" in caveat for caveat in found["warnings"])
    assert any("1 from CMYK" in caveat for caveat in found["warnings"])
    assert told.startswith(f"coco30k_default, {N} pictures against 16: unverified_fid_small_n")
    page = (out / "report.html").read_text()
    assert "coco30k_clean" in page and not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.slow
def test_again_it_does_no_work(done, asked):
    out, found, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again, _ = run(asked, out, *FID)
    assert again == found and before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_beginning_is_the_same_pictures(done, asked, tmp_path):
    """limit=N scores the first N, and what is drawn for them need not be drawn again."""
    out, found, _ = done
    shutil.copytree(out / "pictures", tmp_path / "out" / "pictures")
    first, _ = run(asked, tmp_path / "out", "limit=7", "metrics=[clip_score_own_clip]")
    alone, _ = run(asked, tmp_path / "alone", "limit=7", "metrics=[clip_score_own_clip]")
    assert first["images_sha256"] == alone["images_sha256"] != found["images_sha256"]
    assert first["metrics"] == alone["metrics"] and first["n"] == 7
    assert len(list((tmp_path / "alone" / "pictures").glob("*.tar"))) == 2
    for block in (SampleBlock(0, 0, 5), SampleBlock(1, 5, 10)):
        pair = [samples.read_block(folder / "pictures", block) for folder in (out, tmp_path / "alone")]
        assert [image.tobytes() for image in pair[0]] == [image.tobytes() for image in pair[1]]


@pytest.mark.slow
def test_real_moments_stand_for_real_pictures(done, asked, tmp_path):
    out, found, _ = done
    shutil.copytree(out / "pictures", tmp_path / "pictures")
    fid = "metrics=[fid]"
    again, _ = run(asked, tmp_path, fid, f"real_stats='{out}/stats/coco30k_default.npz'")
    name = "unverified_fid_small_n"
    assert again["metrics"][name] == pytest.approx(found["metrics"][name], rel=1e-6)
    refused("of .*clean.*, where this protocol", asked, tmp_path, fid, f"real_stats='{out}/stats/coco30k_clean.npz'")
    refused(
        "which precision_recall needs",
        asked,
        tmp_path,
        "metrics=[precision_recall]",
        f"real_stats='{out}/stats/coco30k_default.npz'",
    )


@pytest.mark.slow
def test_features_of_other_weights_are_other_features(done, asked, tmp_path):
    shutil.copytree(done[0] / "pictures", tmp_path / "out" / "pictures")
    found, _ = run(asked, tmp_path / "out")
    state = inception_state()
    state["Conv2d_1a_3x3.conv.weight"] *= 1.1
    torch.save(state, tmp_path / published.INCEPTION.file)
    other, _ = run(asked, tmp_path / "out", f"evaluator_weights='{tmp_path}'")
    assert other["metrics"]["unverified_is"] != found["metrics"]["unverified_is"]
    assert other["metrics"]["clip_score_own_clip"] == found["metrics"]["clip_score_own_clip"]
    back, _ = run(asked, tmp_path / "out")
    assert back["metrics"] == found["metrics"]


@pytest.mark.slow
def test_a_picture_that_was_replaced_is_noticed(done, asked, tmp_path, coco):
    shutil.copytree(done[0] / "pictures", tmp_path / "out" / "pictures")
    metrics = "metrics=[frechet_distance_own_clip]"
    found, _ = run(asked, tmp_path / "out", metrics)
    shutil.copytree(coco, tmp_path / "coco")
    first = sorted((tmp_path / "coco" / "val2014").iterdir())[0]
    with Image.open(first) as image:
        Image.new("RGB", image.size, "red").save(first)
    elsewhere = [f"coco='{tmp_path}/coco'" if given.startswith("coco=") else given for given in asked]
    other, _ = run(elsewhere, tmp_path / "out", metrics)
    assert other["metrics"] != found["metrics"]
    assert other["images_sha256"] == found["images_sha256"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["limit=0"], "limit=0: from 1 to the 12 captions"),
        (["device=gpu"], "device=gpu: no such device"),
        (["metrics=[fdi]"], "no score is called 'fdi'"),
        (["coco=null"], "coco=null: give the folder"),
        (["seed=4294967290"], "seeds are from 0 to 2\\^32"),
        (["priors=[prior,prior_linear]"], "scores one system a run"),
        (["accept_unknown_weights=false"], "SHA-256 is .*, and not that of the Inception of 2015"),
        (["protocol.captions.n=17"], "n=17: .* has 16 images with captions"),
        (["protocol.captions_sha256=abc"], "these are other captions than the published ones"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(asked, system, tmp_path, more, told):
    if "linear" in more[0]:
        shutil.copytree(system, tmp_path / "system")
        shutil.copytree(system / "prior", tmp_path / "system" / "prior_linear")
        more = [*more, f"weights='{tmp_path}/system'"]
    refused(told, asked, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_request_on_the_same_folder_is_refused(done, asked, tmp_path):
    refused("holds pictures of another request: seed was 0, now 5. Choose another out", asked, done[0], "seed=5")
    refused("block was 5, now 4", asked, done[0], "block=4")


def test_options_that_a_protocol_does_not_read_are_refused(asked, shapes, tmp_path):
    more = ["protocol=shapes", f"protocol.shapes='{shapes}/shapes'", "protocol.captions=1"]
    refused("this protocol does not read coco", asked[:2], tmp_path / "out", *more)


@pytest.mark.parametrize(("local", "seen", "own"), [("3", 8, [3]), ("3", 1, [0]), (None, 8, [])])
def test_each_process_has_a_gpu_of_those_that_it_sees(monkeypatch, local, seen, own):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("SLURM_LOCALID", local)
    for device in ("cuda", "cuda:1", "cpu"):
        take_device(device)
    assert taken == own


def test_a_choice_that_there_is_not(asked, tmp_path):
    with pytest.raises(InstantiationException, match="reference=evry: no such choice; did you mean 'every'"):
        run(asked, tmp_path / "out", "protocol.reference=evry")


@pytest.mark.slow
def test_flat_pictures_are_refused(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "flat", lambda image: True)
    refused("12 of 12 pictures have a single colour", asked, tmp_path, "metrics=[clip_score_own_clip]")
    found, _ = run(asked, tmp_path, "metrics=[clip_score_own_clip]", "accept_flat=true")
    assert any("single colour" in caveat for caveat in found["warnings"])


@pytest.mark.slow
def test_a_lost_block_is_drawn_again_and_a_changed_one_told(done, asked, tmp_path):
    out, found, _ = done
    shutil.copytree(out / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "000001.json").unlink()
    again, _ = run(asked, tmp_path, "metrics=[clip_score_own_clip]")
    assert again["images_sha256"] == found["images_sha256"]
    shutil.rmtree(tmp_path / "features")
    (tmp_path / "pictures" / "000001.tar").write_bytes(b"cut")
    refused("000001.tar: not the file that was written", asked, tmp_path, "metrics=[clip_score_own_clip]")


def test_one_noise_for_all_is_said(asked, tmp_path):
    found, _ = run(asked, tmp_path, "metrics=[clip_score_own_clip]", "protocol.seeds=one_for_all")
    assert found["seeds"] == [0, 0] and any("one noise" in caveat for caveat in found["warnings"])


@pytest.mark.slow
def test_runs_are_compared_on_one_page(asked, tmp_path):
    for scale in (1, 3):
        out = tmp_path / f"scale-{scale}"
        run(
            asked,
            out,
            "metrics=[frechet_distance_own_clip,clip_score_own_clip]",
            f"scale={scale}",
            f"table='{tmp_path}'",
        )
    assert len(list(tmp_path.rglob("features/real-*"))) == 1, "real pictures were looked at once for each run"
    numbers = tmp_path / "scale-3" / "metrics.json"
    found = json.loads(numbers.read_text())
    numbers.write_text(json.dumps(found | {"metrics": {"fid": 8.7654, "clip_score_vit_l_14": 0.2468}}))
    page = compare(tmp_path).read_text()
    quantised = ", quantised latents" if found["drawn_with"]["quantised_latents"] else ""
    row = re.search(f"Kandinsky, diffusion prior{quantised}<.*?</tr>", page)
    assert row and "8.765" in row[0] and "0.2468" in row[0] and "scale-3" in row[0]
    assert all(text in page for text in ("scale-1", "scale-3", "<svg", "Kandinsky, linear prior", "8.03"))
    assert "In all of them: protocol coco30k_default, pictures 12, prior diffusion, prior_scale 1.0, steps 3" in page


def make(*arguments):
    """The Makefile's target, by the Python that runs the tests."""
    venv = Path(sys.prefix)
    command = ["make", "-o", f"{venv}/.setup", *arguments, f"VENV={venv}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_make_eval_coco(asked, system, coco, tmp_path):
    args = " ".join(["protocol.captions.n=6", "block=3"])
    ended = make(
        "eval-coco", "PROTOCOL=smoke", f"WEIGHTS={system}", f"COCO={coco}", f"OUT={tmp_path}/out", f"ARGS={args}"
    )
    assert ended.returncode == 0, ended.stderr
    assert "smoke, 6 pictures against 6: frechet_distance_own_clip" in ended.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == 6


def test_make_eval_coco_alone_says_what_it_needs():
    ended = make("eval-coco")
    assert ended.returncode == 2
    assert all(text in ended.stderr for text in ("WEIGHTS", "COCO", "make coco", "PROTOCOL=smoke"))
