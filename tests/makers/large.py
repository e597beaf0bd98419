"""Pictures that are too large to decode, in little memory."""

import struct
import zlib


def png_header(width, height, depth=8, colour=2):
    """A PNG's beginning."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)


def png_without_pixels(width, height):
    """What could not be known without decoding is not there."""
    return png_header(width, height) + chunk(b"IDAT", b"\0\0\0\0")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def one_bit_png(width, height):
    """A real image of any size, in little memory."""
    squeeze, row = zlib.compressobj(1), bytes(1 + -(-width // 8))
    body = b"".join(squeeze.compress(row * 100) for _ in range(height // 100)) + squeeze.flush()
    return png_header(width, height, 1, 0) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
