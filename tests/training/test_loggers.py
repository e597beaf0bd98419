"""Each logger against the files that it writes. No account, no network: wandb is offline throughout."""

import json
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from fixtures import coco
from fixtures.system import config, overrides
from fixtures.verbs import called

from open_kandinsky.config import compose
from open_kandinsky.core.failures import message
from open_kandinsky.train import train
from open_kandinsky.training import loggers

ROOT = Path(__file__).parents[2]
EACH = ["trainer.log_every_n_steps=1", "trainer.val_check_interval=2"]
PREVIEW = ["callbacks=preview_movq", "callbacks.preview.every=2", "callbacks.preview.count=3"]


@pytest.fixture
def wandb_folders(tmp_path, monkeypatch):
    """wandb keeps to this test's folder, and to itself."""
    for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb's own"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    yield
    import wandb

    wandb.finish()


def records(path):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = Path(path).read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return  # wandb's process is still writing it
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(record):
    """One row of history, nested keys joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


@pytest.mark.slow
def test_csv_needs_no_other_package(cached, tmp_path):
    """As on a machine without wandb and tensorboard: importing them fails."""
    given = overrides("prior", cached, f"run_dir='{tmp_path / 'run'}'", "logger=csv", *EACH)
    program = (
        "import sys\nfor name in ('wandb', 'tensorboard'): sys.modules[name] = None\n"
        "from open_kandinsky.config import compose\nfrom open_kandinsky.train import train\n"
        "train(compose.compose('train', sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *given]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 0, done.stderr
    assert "train/loss" in (tmp_path / "run" / "metrics.csv").read_text()


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_package_that_is_not_there_is_named_in_one_line(cached, tmp_path, monkeypatch, package):
    for where in ("training.loggers", "core.account"):
        monkeypatch.setattr(f"open_kandinsky.{where}.find_spec", lambda name: None)
    with pytest.raises(Exception) as refusal:
        train(config("prior", cached, f"run_dir='{tmp_path / 'run'}'", f"logger={package}"))
    assert message(refusal.value) == f"logger={package} needs: pip install open-kandinsky[{package}]"


def test_tensorboard_has_losses_and_pictures(cached, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config("movq", cached, f"run_dir='{tmp_path / 'run'}'", "logger=tensorboard", *EACH, *PREVIEW))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert [event.step for event in events.Images("preview")] == [2, 4]
    assert (events.Images("preview")[0].width, events.Images("preview")[0].height) == (3 * 34 + 2, 2 * 34 + 2)


def by_kind(found):
    kinds = {}
    for record in found:
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    return kinds


def steps_of_losses(found):
    rows = [history(record) for record in by_kind(found).get("history", [])]
    return [row["trainer/global_step"] for row in rows if "train/loss" in row]


def written(log, read, enough, seconds=30):
    """What is read of a log's records, once wandb's own process, which may still be writing, has written enough."""
    until = time.monotonic() + seconds
    while not enough(found := read(records(log))) and time.monotonic() < until:
        time.sleep(0.1)
    return found


LOGIN = "logger=wandb: this machine is not logged in: run `wandb login`, or logger.offline=true, which writes to"


@pytest.mark.usefixtures("wandb_folders")
class TestWithoutALogin:
    @pytest.fixture(autouse=True)
    def nobody(self, tmp_path, monkeypatch):
        """A person without an account; WANDB_MODE is what Lightning left of another test."""
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")

    def test_it_is_told_before_anything_is_trained(self, cached, tmp_path, capfd):
        given = overrides("prior_linear", cached, f"run_dir='{tmp_path / 'run'}'", "data.val_path=null", "logger=wandb")
        assert called("train", *given) == 2
        out, told = capfd.readouterr()
        assert out == "" and LOGIN in told and told.count("\n") == 1, told
        assert list((tmp_path / "run").iterdir()) == []

    @pytest.mark.slow
    def test_several_runs_in_one_process(self, tmp_path, monkeypatch):
        """Offline ones need no login, though one was asked for; and wandb says "no" while a run is open."""
        import wandb

        made = partial(loggers.wandb, project="a", name="b", save_dir=str(tmp_path), id=None)
        with pytest.raises(ValueError, match=LOGIN):
            made(offline=False)
        assert made(offline=True).experiment is wandb.run is not None
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setattr(wandb, "login", lambda prompt: wandb.run is None)
        made(offline=False)

    def test_an_evaluation_tells_it_before_anything_is_drawn(self, system, tmp_path, capfd):
        paths = {"weights": system, "coco": coco.make(tmp_path / "coco"), "out": tmp_path / "out"}
        given = [f"{name}='{path}'" for name, path in paths.items()]
        assert called("evaluate", *given, "protocol=smoke", "wandb=mine") == 2
        out, told = capfd.readouterr()
        assert out == "" and told.count("\n") == 1, told
        assert "wandb=mine: this machine is not logged in: run `wandb login`, or set WANDB_MODE=offline" in told
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("wandb_folders")
class TestWandb:
    @pytest.fixture
    def run(self, cached, tmp_path):
        """A run's folder, and what wandb wrote of it, by kind."""
        import wandb

        def run(part, folder, *more, least=()):
            """`least`: how many records of a kind there are, once wandb's own process has written them."""
            chosen = [f"run_dir='{tmp_path / folder}'", "logger=wandb", "logger.offline=true"]
            cfg = config(part, cached, *chosen, *EACH, *more)
            train(cfg)
            wandb.finish()
            (log,) = (tmp_path / folder / "wandb").glob("offline-run-*/*.wandb")
            kinds = written(log, by_kind, lambda kinds: all(len(kinds.get(kind, [])) >= n for kind, n in least))
            return cfg, log.parent, kinds

        return run

    def test_losses_config_and_system_figures(self, run):
        cfg, _, kinds = run("prior", "run", least=[("history", 4)])
        assert {record.run.display_name for record in kinds["run"]} == {cfg.run_dir}
        rows = [history(record) for record in kinds["history"]]
        assert len([row for row in rows if "train/loss" in row]) == 4
        assert any("val/cosine_prior" in row for row in rows)
        update = [item for record in kinds["config"] for item in record.config.update]
        logged = {item.key: json.loads(item.value_json) for item in update if item.key}
        assert {name: logged[name] for name in ("stage", "dims", "seed")} == {
            name: value for name, value in compose.plain(cfg).items() if name in ("stage", "dims", "seed")
        }
        figures = {item.key for record in kinds["stats"] for item in record.stats.item}
        assert any("cpu" in name for name in figures) and any("memory" in name for name in figures)

    def test_a_table_of_captions_and_pictures(self, run):
        _, folder, kinds = run("movq", "run", *PREVIEW, least=[("artifact", 1)])
        captions = (folder.parents[1] / "previews" / "captions.txt").read_text().splitlines()
        tables = [json.loads(path.read_text()) for path in folder.glob("files/media/table/preview/*.json")]
        assert len(tables) == 2
        for table in tables:
            assert table["columns"] == ["caption", "given", "made"]
            assert [row[0] for row in table["data"]] == captions and len(captions) == 3
        held = [entry.path for record in kinds["artifact"] for entry in record.artifact.manifest.contents]
        assert len([path for path in held if path.endswith(".png")]) >= 6
        assert len(list(folder.glob("files/media/images/preview/*.png"))) == 2  # the grid, a step of the slider each

    @pytest.mark.slow
    def test_a_second_run_in_one_process_is_a_run_of_its_own(self, run):
        one, other = run("prior", "one")[1], run("prior", "other")[1]
        assert one.name != other.name and one.parents[1] != other.parents[1]

    def test_a_resumed_run_goes_on_in_the_same_one(self, cached, tmp_path):
        """wandb's own name of it is in the checkpoint."""
        import wandb

        chosen = [f"run_dir='{tmp_path / 'run'}'", "logger=wandb", "logger.offline=true", "resume=auto", *EACH]
        for steps in (4, 8):
            train(config("prior", cached, *chosen, "stage.lr_schedule.steps=8", f"trainer.max_steps={steps}"))
            wandb.finish()
        logs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
        assert len(logs) == 2 and len({log.name for log in logs}) == 1
        assert written(logs[1], steps_of_losses, lambda steps: len(steps) == 4) == [4, 5, 6, 7]
