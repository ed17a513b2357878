"""What does a packet tell of its picture before anything is decoded?

Is the picture shown, do other pictures refer to it, and is it the only picture of the packet?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_MPEG4_PICTURE: Final = b"\0\0\1\xb6"
_SHORTEST_MPEG4_PICTURE: Final = 20  # bytes; for FFmpeg, a picture of at most 19 bytes is empty


def is_hidden(codec: str, packet: memoryview) -> bool:
    """Whether a VP8 or VP9 picture is never shown, and only other pictures refer to it.

    RFC 6386, section 9.1; VP9 bitstream specification, section 6.2. False for other codecs.
    """
    if codec == "vp8":
        return not packet[0] & 0b0001_0000  # show_frame
    # A VP9 superframe, marked in the last byte, shows one of its pictures.
    if codec != "vp9" or packet[-1] & 0b1110_0000 == 0b1100_0000:
        return False
    # The header of profile 3 has one more bit before the flags.
    has_profile_3 = packet[0] & 0b0011_0000 == 0b0011_0000
    header = packet[0] << 1 if has_profile_3 else packet[0]
    return not header & 0b0000_1010  # show_existing_frame, show_frame


def is_one_mpeg4_picture(packet: bytes) -> bool:
    """Whether an MPEG-4 packet holds one picture that is shown (ISO/IEC 14496-2, section 6.2.5).

    In a packed bitstream some packets hold two pictures. For each of these packets a later packet
    holds only an empty picture. Some encoders write an empty picture where a frame repeats the
    frame before it.
    """
    return len(packet) >= _SHORTEST_MPEG4_PICTURE and packet.count(_MPEG4_PICTURE) == 1


def is_disposable(packet: bytes, extradata: bytes | None) -> bool:
    """Whether no picture refers to the picture of an H.264 packet.

    The nal_ref_idc of all its slices is then 0 (ITU-T H.264, section 7.4.1). `extradata` belongs
    to the stream; it tells how the units of a packet are told apart: by lengths
    (ISO/IEC 14496-15, section 5.3.3) or by start codes (H.264, annex B).
    """
    if extradata and extradata[0] == 1:
        first_bytes = _after_lengths(packet, (extradata[4] & 3) + 1)
    else:
        first_bytes = _after_start_codes(packet)
    slices = [byte for byte in first_bytes if 1 <= byte & 0b0001_1111 <= 5]
    return bool(slices) and not any(byte & 0b0110_0000 for byte in slices)


def _after_lengths(packet: bytes, size: int) -> Iterator[int]:
    """The first byte of each unit, where the `size` bytes before a unit tell its length."""
    position = 0
    while position + size < len(packet):
        yield packet[position + size]
        position += size + int.from_bytes(packet[position : position + size], "big")


def _after_start_codes(packet: bytes) -> Iterator[int]:
    """The first byte of each unit, where the bytes 0 0 1 go before a unit."""
    return (unit[0] for unit in packet.split(b"\0\0\1")[1:] if unit)
