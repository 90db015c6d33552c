"""The hostile messages of this folder, built by hand: nothing of matu is used."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import zstandard

RUN, PRINT = bytes.fromhex("ab" * 16), bytes.fromhex("cd" * 32)
D, FEATURES = 600, 3
"""The receiver expects tasks a and b of 2 and 3 classes: vector [600], masks [2, 600], rescalers [2], two heads."""


def header(
    *, magic: bytes = b"MATU", form: int = 2, kind: int = 1, number: int = 7, run: bytes = RUN, printed: bytes = PRINT,
    method: bytes = b"matu", site: bytes = b"north", tasks: tuple[bytes, ...] = (b"a", b"b"), count: int | None = None,
    lists: tuple[bytes, ...] = (), samples: tuple[int, ...] = (5, 6), metrics: bytes = b"\x00",
) -> bytes:  # fmt: skip
    def text(data: bytes) -> bytes:
        return bytes([len(data)]) + data

    return b"".join([
        struct.pack("<4sBBI16s32s", magic, form, kind, number, run, printed), text(method), text(site),
        struct.pack("<H", len(tasks) if count is None else count), *map(text, tasks),
        bytes([bool(lists)]), *map(text, lists),
        bytes([bool(samples)]), *(struct.pack("<I", n) for n in samples), metrics,
    ])  # fmt: skip


def part(code: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BI", code, len(data) if length is None else length) + data


def stream(form: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BI", form, len(data) if length is None else length) + data


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


VECTOR = part(0, floats(*([0.5] * D)))
MASKS = part(0, b"\xff" * (2 * D // 8))
RESCALERS = part(0, floats(1, 1))
HEADS = part(0, floats(*([0.0] * 2 * (FEATURES + 1)))) + part(0, floats(*([0.0] * 3 * (FEATURES + 1))))
STEPS = stream(0, bytes(3))  # three blocks, all of the largest step


def message(
    head: bytes | None = None, *, vector: bytes = VECTOR, masks: bytes = MASKS, rescalers: bytes = RESCALERS,
    heads: bytes = HEADS, count: int = 5, more: bytes = b"",
) -> bytes:  # fmt: skip
    body = (header() if head is None else head) + struct.pack("<H", count) + vector + masks + rescalers + heads + more
    return body + hashlib.blake2b(body, digest_size=16).digest()


def quantised(codes: bytes, *, pairs: int = 1, blocks: int = 1, largest: float = 1, factor: float = 0) -> bytes:
    return part(2, struct.pack("<BBff", pairs, blocks, largest, factor) + STEPS + codes)


def resigned(data: bytes) -> bytes:
    return data + hashlib.blake2b(data, digest_size=16).digest()


BOMB = zstd(bytes(1 << 26))  # 64 MB of zeros in 6 kB
LIAR = bytearray(zstd(bytes(1 << 20)))  # says that it holds another size than it does
LIAR[LIAR.index(struct.pack("<I", 1 << 20)) : 9] = struct.pack("<I", D // 2)

ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "checksum"),
    "noise": (hashlib.shake_256(b"noise").digest(2000), "checksum"),
    "pickle": (b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "checksum"),
    "pickle_with_checksum": (resigned(b"\x80\x04\x95" + bytes(80)), "begins with"),
    "cut_off": (message()[:-40], "checksum"),
    "one_bit_changed": (bytes([*message()[:400], message()[400] ^ 4, *message()[401:]]), "checksum"),
    "trailing_bytes": (message(more=b"\x00\x00"), "2 bytes too many"),
    "format_of_the_future": (message(header(form=3)), "format 3"),
    "format_one": (message(header(form=1)), "format 1"),
    "kind_of_its_own": (message(header(kind=9)), "kind 9"),
    "downlink_as_update": (message(header(kind=0)), "kind 'train'"),
    "another_run": (message(header(run=bytes(16))), "run '0000"),
    "replay_of_an_earlier_round": (message(header(number=6)), "round 6"),
    "round_zero": (message(header(number=0)), "round 0"),
    "another_adapter": (message(header(printed=bytes(32))), "fingerprint '0000"),
    "another_method": (message(header(method=b"fedavg")), "method 'fedavg'"),
    "in_another_sites_name": (message(header(site=b"south")), "site 'south'"),
    "foreign_task": (message(header(tasks=(b"a", b"c"))), r"tasks \('a', 'c'\)"),
    "task_twice": (message(header(tasks=(b"a", b"a"))), "distinct"),
    "tasks_turned_round": (message(header(tasks=(b"b", b"a"))), r"tasks \('b', 'a'\)"),
    "tasks_without_end": (message(header(count=65535)), "65535 tasks"),
    "names_without_end": (message(header(tasks=tuple(b"\x07%d" % i for i in range(4096)), samples=())), "printable"),
    "more_tasks_declared_than_there": (message(header(count=900)), "bytes expected|UTF-8|printable|distinct"),
    "no_tasks": (message(header(tasks=(), samples=())), "0 tasks"),
    "control_characters_in_a_name": (message(header(site=b"a\x1b[2J")), "printable"),
    "name_that_is_no_text": (message(header(site=b"\xff\xfe")), "UTF-8"),
    "surrogates_in_a_name": (message(header(site=b"\xed\xa0\x80")), "UTF-8"),
    "no_samples": (message(header(samples=())), "no sample counts"),
    "zero_samples": (message(header(samples=(0, 5))), "samples"),
    "metric_nan": (message(header(metrics=b"\x01\x04loss" + struct.pack("<d", float("nan")))), "finite"),
    "metrics_without_end": (
        message(header(metrics=b"\xff" + b"\x01a" + bytes(8))),
        "bytes expected|distinct|UTF-8|printable",
    ),
    "parts_without_end": (message(count=65535), "bytes expected"),
    "one_part_less": (message(heads=b"", count=3), "3 parts, expected 5"),
    "one_part_more": (message(more=part(0, b""), count=6), "6 parts, expected 5"),
    "part_longer_than_the_message": (message(vector=part(0, b"", 0xFFFFFFFF)), "4294967295 bytes expected"),
    "vector_too_short": (message(vector=part(0, floats(*([0.5] * (D - 1))))), "2400 bytes expected"),
    "vector_too_long": (message(vector=part(0, floats(*([0.5] * (D + 1))))), "4 bytes too many"),
    "vector_nan": (message(vector=part(0, floats(float("nan"), *([0.5] * (D - 1))))), "an entry is nan"),
    "vector_infinite": (message(vector=part(0, floats(float("-inf"), *([0.5] * (D - 1))))), "an entry is -inf"),
    "vector_infinite_in_bfloat16": (message(vector=part(1, b"\x80\x7f" * D)), "an entry is inf"),
    "vector_absurd": (message(vector=part(0, floats(3e38, *([0.5] * (D - 1))))), "'vector' goes from 0.5 to 3e"),
    "vector_absurd_with_its_rescaler": (
        message(vector=part(0, floats(*([2.0**25] * D))), rescalers=part(0, floats(1, 2.0**20))),
        "times rescalers up to",
    ),
    "vector_of_unknown_code": (message(vector=part(77, b"")), "code 77"),
    "vector_says_it_is_masks": (message(vector=part(4, b"\xff" * 75)), "code 4"),
    "steps_nan": (message(vector=quantised(stream(0, bytes(D // 2)), largest=float("nan"))), "step nan"),
    "steps_negative": (message(vector=quantised(stream(0, bytes(D // 2)), largest=-1)), "step -1"),
    "steps_that_overflow": (
        message(vector=quantised(stream(0, b"\x7f" * D), pairs=0, largest=3e38)),
        "an entry is inf",
    ),
    "steps_missing": (message(vector=part(2, struct.pack("<BBff", 1, 1, 1, 0) + stream(0, b"\0"))), "1 bytes in a"),
    "flags_of_its_own": (message(vector=quantised(stream(0, bytes(D // 2)), pairs=3)), "flags 3"),
    "factor_without_a_change": (message(vector=quantised(stream(0, bytes(D // 2)), factor=5)), "factor 5"),
    "change_factor_infinite": (
        message(vector=part(3, struct.pack("<BBff", 1, 1, 1, float("inf")) + STEPS + stream(0, bytes(D // 2)))),
        "factor inf",
    ),
    "change_that_overflows": (
        message(vector=part(3, struct.pack("<BBff", 0, 1, 3e38, 1) + STEPS + stream(0, b"\x7f" * D))),
        "an entry is inf",
    ),
    "far_numbers_missing": (message(vector=quantised(stream(0, b"\x88" * (D // 2)))), "5 bytes expected"),
    "far_numbers_that_are_near": (
        message(vector=quantised(stream(0, b"\x88" * (D // 2)) + stream(0, b"\x07" * D))),
        "7 or less among the far",
    ),
    "far_numbers_too_many": (
        message(vector=quantised(stream(0, b"\x88" * (D // 2)) + stream(0, b"\x70" * (D + 1)))),
        "601 bytes in a stream",
    ),
    "bomb": (message(vector=quantised(stream(1, BOMB))), "67108864 bytes, expected 300 to 300"),
    "bomb_in_the_masks": (message(masks=part(1, stream(1, BOMB))), "67108864 bytes"),
    "bomb_in_the_gaps": (message(masks=part(1, stream(2, BOMB))), "67108864 bytes"),
    "frame_of_unknown_size": (
        message(vector=quantised(stream(1, zstd(bytes(1 << 20), write_content_size=False)))),
        "expected 300 to 300",
    ),
    "frame_that_lies_about_its_size": (message(vector=quantised(stream(1, bytes(LIAR)))), "cannot be read"),
    "frame_with_junk_behind": (
        message(vector=quantised(stream(1, zstd(bytes(300)) + b"J" * 5000))),
        "bytes for 300 in a compressed stream",
    ),
    "frame_with_another_behind": (message(vector=quantised(stream(1, zstd(bytes(300)) * 2))), "cannot be read"),
    "frame_cut_off": (message(vector=quantised(stream(1, zstd(bytes(300))[:-3]))), "cannot be read"),
    "skippable_frame": (
        message(vector=quantised(stream(1, b"\x50\x2a\x4d\x18" + struct.pack("<I", 0xFFFFFFF0)))),
        "no Zstandard",
    ),
    "stream_of_unknown_form": (message(vector=quantised(stream(9, bytes(300)))), "form 9"),
    "stream_longer_than_its_part": (message(vector=quantised(stream(0, bytes(9), 0x7FFFFFFF))), "2147483647 bytes"),
    "masks_too_short": (message(masks=part(0, b"\xff" * 149)), "150 bytes expected"),
    "masks_too_long": (message(masks=part(0, b"\xff" * 151)), "1 bytes too many"),
    "masks_of_unknown_form": (message(masks=part(8, b"")), "form 8"),
    "byte_behind_the_masks": (message(masks=part(1, stream(0, b"\xff" * 75) * 2 + b"\x01")), "1 bytes too many"),
    "mask_padding_set": (
        message(vector=part(0, floats(0, *([0.5] * (D - 1)))), masks=part(1, stream(0, b"\xff" * 75) * 2)),
        "padding",
    ),
    "empty_frame_with_junk_behind": (
        message(masks=part(1, stream(2, zstd(b"") + b"J" * 5000) + stream(2, b""))),
        "of 0 bytes, expected 1 to 601",
    ),
    "empty_frame": (message(masks=part(1, stream(2, zstd(b"")) + stream(2, b""))), "of 0 bytes, expected 1 to 601"),
    "empty_skippable_frame": (
        message(masks=part(1, stream(2, b"\x50\x2a\x4d\x18\0\0\0\0" + b"J" * 90) + stream(2, b""))),
        "no Zstandard",
    ),
    "number_minus_128": (message(vector=quantised(stream(0, b"\x80" * D), pairs=0)), "is -128"),
    "metric_that_overflows_sums": (
        message(header(metrics=b"\x01\x04loss" + struct.pack("<d", 1.7e308))),
        "finite numbers up to 9.007e",
    ),
    "fewer_images_than_none": (message(header(metrics=b"\x01\x06images" + struct.pack("<d", -6e9))), "-6e.09 images"),
    "mask_bit_past_the_end": (
        message(masks=part(1, stream(2, zstd(b"\xff\xff\xff\x10")) + stream(0, b"\xff" * 75))),
        "a bit at",
    ),
    "mask_gap_without_end": (message(masks=part(1, stream(2, zstd(b"\x01\xff")) * 2)), "without an end"),
    "rescaler_negative": (message(rescalers=part(0, floats(1, -1e-9))), "rescalers"),
    "rescaler_nan": (message(rescalers=part(0, floats(1, float("nan")))), "an entry is nan"),
    "rescaler_absurd": (message(rescalers=part(0, floats(1, 1e30))), "rescalers"),
    "rescalers_quantised": (
        message(rescalers=part(2, struct.pack("<BBff", 1, 1, 1, 0) + stream(0, b"\0") + stream(0, b"\x11"))),
        "always",
    ),
    "head_nan": (message(heads=part(0, floats(*([float("nan")] * 8))) + part(0, bytes(48))), "part 'head/a'"),
    "heads_swapped": (message(heads=part(0, bytes(48)) + part(0, bytes(32))), "part 'head/a'"),
}


def write(folder: Path) -> None:
    for old in folder.glob("*.bin"):
        old.unlink()
    for name, (data, _) in ATTACKS.items():
        (folder / f"{name}.bin").write_bytes(data)


if __name__ == "__main__":
    write(Path(__file__).parent)
