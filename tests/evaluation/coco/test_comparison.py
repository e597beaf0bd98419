"""The page of several runs, as a browser lays it out."""

import json
import re
import shutil
import subprocess

import pytest

from open_kandinsky.evaluation.comparison import compare

METRICS = {
    **{"fid": 12.345, "fid_floor": 2.1, "kid": 0.0123, "kid_std": 0.001, "is": 23.45, "is_std": 0.4},
    **{"precision": 0.512, "recall": 0.43, "clip_score_vit_l_14": 0.2612, "clip_score_vit_b_32": 0.3123},
}
ASKED = {"prior_scale": 4.0, "steps": 50, "sampler": "ddim", "quantised_latents": False}
MEASURE = """<script>
document.title = [...document.querySelectorAll(".scroll")].map((t) => `${t.scrollWidth}/${t.clientWidth}`).join(" ");
</script>"""


def browser():
    return shutil.which("chromium") or shutil.which("chromium-browser") or pytest.skip("needs chromium")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 1600])
def test_no_column_is_cut(tmp_path, width):
    for prior in ("prior", "prior_linear", "prior_residual"):
        for scale in (2, 4, 8):
            run = {"protocol": "coco30k_default", "n": 30000, "prior": prior, "metrics": METRICS}
            (tmp_path / f"{prior}-{scale}").mkdir()
            told = json.dumps(run | {"drawn_with": ASKED | {"scale": scale}})
            (tmp_path / f"{prior}-{scale}" / "metrics.json").write_text(told)
    page = compare(tmp_path)
    (tmp_path / "measured.html").write_text(page.read_text() + MEASURE)
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'browser'}", (tmp_path / "measured.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    sizes = re.findall(r"(\d+)/(\d+)", re.search(r"<title>(.*?)</title>", dom)[1])
    assert len(sizes) == 2 and all(int(held) <= int(shown) for held, shown in sizes), sizes
