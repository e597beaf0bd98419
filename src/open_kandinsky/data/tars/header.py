"""The header of a tar's member: of an ordinary file, only what samples need is read; any other is tarfile's own."""

import re
import tarfile

NAME = 100  # bytes, before what FILE describes
FILE = re.compile(  # POSIX.1-1988 and GNU tar, as both of them and tarfile write it
    rb"(?:[0-7]{7}\0){3}"  # mode, owner, group
    rb"(?P<size>[0-7]{11})\0"
    rb"[0-7]{11}\0"  # time
    rb"(?P<checksum>[0-7]{6})\0 "
    rb"0"  # a file
    rb".{172}"  # link, magic, names of owner and group
    rb"(?:[0-7]{7}\0|\0{8}){2}"  # device
    rb"\0{155}"  # no more of the name
    rb".{12}",
    re.DOTALL,
)
BLANK = sum(b" " * 8) - sum(b"\0 ")  # the checksum counts its own place as blanks


class Header(tarfile.TarInfo):
    """tarfile reads 15 fields, 13 of which nobody asks for; how it reads them can be changed by inheritance only."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Name, size and type as tarfile finds them. Raises what tarfile raises."""
        file = FILE.fullmatch(buf, NAME)
        if file is None or sum(buf) - sum(file["checksum"]) + BLANK != int(file["checksum"], 8):
            return super().frombuf(buf, encoding, errors)
        info = cls(buf[:NAME].partition(b"\0")[0].decode(encoding, errors))
        info.size = int(file["size"], 8)
        return info
