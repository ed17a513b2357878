"""What does a packet say of its picture, before anything is decoded: is it shown, and do others refer to it?"""

from __future__ import annotations

from collections.abc import Iterator


def is_hidden(codec: str, packet: memoryview) -> bool:
    """Whether its picture is only there for others to refer to (RFC 6386, 9.1; VP9 bitstream specification, 6.2)."""
    if codec == "vp8":
        return not packet[0] & 0b0001_0000  # show_frame
    if (
        codec != "vp9" or packet[-1] & 0b1110_0000 == 0b1100_0000
    ):  # a superframe shows one of its pictures
        return False
    header = (
        packet[0] << 1 if packet[0] & 0b0011_0000 == 0b0011_0000 else packet[0]
    )  # profile 3 puts one more bit before
    return not header & 0b0000_1010  # show_existing_frame, show_frame


def is_disposable(packet: bytes, extradata: bytes | None) -> bool:
    """Whether no picture refers to that of an H.264 packet: the nal_ref_idc of all its slices is 0 (ITU-T H.264, 7.4.1).

    `extradata` is the stream's; it tells how the packet's units are told apart (ISO/IEC 14496-15, 5.3.3, or H.264, annex B).
    """
    heads = (
        _lengths(packet, (extradata[4] & 3) + 1)
        if extradata and extradata[0] == 1
        else _start_codes(packet)
    )
    slices = [head for head in heads if 1 <= head & 0b0001_1111 <= 5]
    return bool(slices) and not any(head & 0b0110_0000 for head in slices)


def _lengths(packet: bytes, size: int) -> Iterator[int]:
    """The first byte of each unit, where `size` bytes before it tell its length."""
    place = 0
    while place + size < len(packet):
        yield packet[place + size]
        place += size + int.from_bytes(packet[place : place + size], "big")


def _start_codes(packet: bytes) -> Iterator[int]:
    """The first byte of each unit, where 0 0 1 goes before it."""
    return (unit[0] for unit in packet.split(b"\0\0\1")[1:] if unit)
