"""How large the house is, and how far one has to walk in it: make house

Prints a table: modules, statements, class names that stand for several things, files of conf/, the CPU time of an
import and of a --help, and the distinct modules of ours whose functions run for one picture on three ways.
"""

import ast
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC, CONF = ROOT / "src" / "open_kandinsky", ROOT / "conf"


def modules() -> list[Path]:
    return sorted(file for file in SRC.rglob("*.py") if file.name != "__init__.py")


def lines(file: Path) -> int:
    return file.read_text(encoding="utf-8").count("\n")


def statements(file: Path) -> int:
    """Of the syntax tree, docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.stmt) and not is_text(node) for node in ast.walk(tree))


def templates() -> int:
    """Lines of templates that are not blank."""
    texts = [file.read_text(encoding="utf-8") for file in SRC.rglob("*.html")]
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def classes() -> Counter[str]:
    """How many modules define a class of each name."""
    found: Counter[str] = Counter()
    for file in modules():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found.update({node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)})
    return found


def cpu_seconds(*command: str) -> float:
    """Of a program, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def walked(way: Callable[[], object]) -> int:
    """The modules of ours in which a function was called, in any thread, while `way` ran."""
    seen: set[str] = set()

    def note(frame: object, event: str, _: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        is_ours = code.co_filename.startswith(str(SRC)) and code.co_filename.endswith(".py")  # and no template
        if event == "call" and code.co_name != "<module>" and is_ours:
            seen.add(code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        way()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return len(seen)


def ways(root: Path) -> Iterator[tuple[str, int]]:
    """From a tar to a training step, from a prompt to a picture, from a drawing to a Frechet distance."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fixtures.system import PARTS, config, untrained

    from open_kandinsky.config import compose
    from open_kandinsky.data.shapes.world import toy_world
    from open_kandinsky.data.shapes.write import write_coco, write_shapes
    from open_kandinsky.evaluate import evaluate
    from open_kandinsky.loading import load
    from open_kandinsky.train import train

    world = toy_world(size=32)
    write_shapes(root / "shapes", world=world, seed=0, images=24, val_images=8, per_shard=24)
    write_coco(root / "coco", world=world, images=40, seed=0)
    for part in PARTS:
        untrained(part, root)
    one = ["trainer.max_steps=1", "data.val_urls=null", "data.in_memory=false", "data.workers=0"]
    cfg = config("movq", root, f"run_dir='{root}/run'", *one)
    yield "from a tar to a training step", walked(lambda: train(cfg))
    pipe = load(root)
    yield "from a prompt to a picture", walked(lambda: pipe("a red circle", seeds=[0], steps=2, prior_steps=2))
    paths = [f"weights='{root}'", f"coco='{root}/coco'", f"out='{root}/out'", "steps=1", "limit=8", "accept_flat=true"]
    asked = compose.compose("evaluate", ["protocol=smoke", *paths])
    yield "from a drawing to a Frechet distance", walked(lambda: evaluate(asked))


def main() -> None:
    sizes = [lines(file) for file in modules()]
    several = {name: count for name, count in classes().items() if count > 1}
    rows = {
        "modules, without __init__": len(sizes),
        "of more than 400 lines; of less than 40": f"{sum(n > 400 for n in sizes)}; {sum(n < 40 for n in sizes)}",
        "lines; statements, and lines of templates": f"{sum(sizes)}; {sum(map(statements, modules())) + templates()}",
        "class names that several modules define": f"{len(several)}: {', '.join(sorted(several))}",
        "conf/: files; groups": f"{len(list(CONF.rglob('*.yaml')))}; {sum(p.is_dir() for p in CONF.iterdir())}",
        "import open_kandinsky, seconds of CPU": f"{cpu_seconds('-c', 'import open_kandinsky'):.2f}",
        "train --help, seconds of CPU": f"{cpu_seconds('-m', 'open_kandinsky.cli', 'train', '--help'):.2f}",
    }
    with tempfile.TemporaryDirectory() as folder:
        rows |= dict(ways(Path(folder)))
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))


if __name__ == "__main__":
    main()
