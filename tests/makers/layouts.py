"""Pictures for other projects' folders, each of another colour."""

import io

from PIL import Image

from open_kandinsky.evaluation.external.pictures import NumberedPicture


def png(*colour):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, format="png")
    return data.getvalue()


def drawn(prompts, each):
    return [NumberedPicture(i, prompt, nth, png(i, nth, 0)) for i, prompt in enumerate(prompts) for nth in range(each)]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
