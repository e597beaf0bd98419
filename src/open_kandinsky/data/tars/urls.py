"""From what a person writes (a folder, a pattern, a brace range, a list) to the shards it means."""

import glob
from pathlib import Path

from braceexpand import braceexpand

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.data.tars.opening import REMOTE, filesystem, listed


def shard_urls(urls: str | list[str], *, allow_pipe: bool = False) -> list[str]:
    """Every shard that `urls` names: a folder (its *.tar, sorted), a glob, a brace range, an address, or a list.

    An address is anything that fsspec knows (s3://, gs://, https:// ...); one with wildcards, or of a folder (`/` at
    its end), is looked up there, any other is taken as it is. Raises ValueError, saying what was found instead, where
    nothing is there, or a package is missing. `pipe:` addresses run shell commands: refused unless `allow_pipe`.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    if not given or not all(given):
        raise UserError(f"no shards named: urls={urls!r}; give a folder of .tar files, a pattern or a list")
    return [shard for url in given for shard in expand(str(url), allow_pipe)]


def expand(url: str, allow_pipe: bool) -> list[str]:
    """The shards of one entry."""
    if url.startswith("pipe:"):
        return [piped(url, allow_pipe)]
    expanded = list(braceexpand(url)) if "{" in url and not Path(url).exists() else [url]
    return [shard for one in expanded for shard in (remote(one) if REMOTE.match(one) else local(one))]


def piped(url: str, allow_pipe: bool) -> str:
    """The address itself, where running its command was allowed."""
    if not allow_pipe:
        raise UserError(f"{url!r} would run a shell command; set allow_pipe=true if you trust where it comes from")
    return url


def remote(url: str) -> list[str]:
    """Files behind a protocol: of a folder, of a glob, or the one file, which is not looked for yet."""
    filesystem(url)
    if not (found := listed(url)):
        raise UserError(f"no shard at {url!r}: the listing there has no such file")
    return found


def local(url: str) -> list[str]:
    """Files on this machine: of a folder, of a glob, or the one file."""
    path = Path(url).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return sorted(str(shard) for shard in path.glob("*.tar")) or refuse_folder(path)
    return sorted(glob.glob(str(path))) or refuse_missing(path)


def refuse_folder(path: Path) -> list[str]:
    """The folder is there and holds no shard: name what it holds."""
    held = sorted(child.name for child in path.iterdir())
    below = sorted({str(tar.parent) for tar in path.glob("*/*.tar")})
    found = f"it holds {', '.join(held[:5])}{' ...' if len(held) > 5 else ''}" if held else "it is empty"
    remedy = f"did you mean {below[0]!r}?" if below else "write shards with img2dataset (output_format=webdataset)"
    raise UserError(f"no .tar file in the folder {str(path)!r}: {found}; {remedy}")


def refuse_missing(path: Path) -> list[str]:
    """Nothing has that name: name the nearest that exists."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    missing = path.absolute().relative_to(parent).parts[0]
    near = nearest(missing, [child.name for child in parent.iterdir()])
    found = f"did you mean {str(parent / near)!r}?" if near else f"{str(parent)!r} has no such name"
    raise UserError(f"no shard at {str(path)!r}: {found}")
