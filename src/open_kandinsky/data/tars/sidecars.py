"""img2dataset's side files: beside NNNNN.tar lies NNNNN.parquet, with a row for each sample that it asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.tars.opening import open_url
from open_kandinsky.data.tars.tally import Skipped

KEY = "key"
MISSING, BROKEN = "missing side file", "unreadable side file"


class Facts:
    """The rows of a side file by sample key; made into Python objects where they are asked for."""

    def __init__(self, columns: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.columns = columns
        self.rows = {str(key): row for row, key in enumerate(keys)}

    def of(self, key: str) -> dict[str, Any]:
        """A sample's row, without what is null there; empty where it has none. Folders in its name do not count."""
        row = self.rows.get(key.rpartition("/")[2])
        if row is None:
            return {}
        found = {name: column[row].as_py() for name, column in self.columns.items()}
        return {name: value for name, value in found.items() if value is not None}


NOTHING = Facts({}, [])


class NoSidecars:
    """The json of each sample says all that is known of it."""

    def facts(self, url: str, tally: Skipped) -> Facts:
        return NOTHING


class ParquetSidecars:
    """`columns` of each shard's parquet file: a score that was computed later need not be written into the tars.

    A file that is missing or broken is remarked in the tally, and its shard's samples come without it.
    """

    def __init__(self, *, columns: Sequence[str]) -> None:
        if not columns:
            raise UserError("columns=[] of the side files: name those that are wanted, or choose sidecars=none")
        self.columns = list(columns)

    def facts(self, url: str, tally: Skipped) -> Facts:
        """Raises PermissionError for a file that may not be read."""
        try:
            return self.read(beside(url))
        except PermissionError:
            raise
        except FileNotFoundError:
            tally.remark(MISSING, shard=url)
        except (OSError, ValueError):
            tally.remark(BROKEN, shard=url)
        return NOTHING

    def read(self, url: str) -> Facts:
        """Raises OSError, or ValueError where it is no parquet file or has no keys. A column may be absent."""
        from pyarrow import ArrowException, parquet  # only those who have side files need it

        try:
            with open_url(url) as file, parquet.ParquetFile(file) as source:
                held = [name for name in self.columns if name in source.schema_arrow.names]
                table = source.read(columns=[KEY, *held])
            return Facts({name: table.column(name) for name in held}, table.column(KEY).to_pylist())
        except (ArrowException, KeyError) as error:
            raise UserError(f"{url!r} is no side file of img2dataset's: {error}") from error


def beside(url: str) -> str:
    """The side file's address. FileNotFoundError for a shard that is not named *.tar, such as a command's."""
    if url.startswith("pipe:") or not url.endswith(".tar"):
        raise FileNotFoundError(f"no side file can lie beside {url!r}")
    return f"{url.removesuffix('.tar')}.parquet"
