"""Hostile files made of whole ones: bytes, JSON, YAML, zip archives, PNG, numpy and safetensors files, pickles."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DEEP = 100_000  # levels
BOMB = 300_000_000  # bytes that a few hundred kilobytes unpack to


def pick(random: Random, options: Sequence):
    """One of them (numpy's own `choice` would make an array of them)."""
    return options[int(random.integers(len(options)))]


# ---------------------------------------------------------------------- bytes


def damage(data: bytes, random: Random) -> bytes:
    """One to four of: cut off, bits turned, bytes and numbers overwritten, parts left out, repeated, moved, zeroed."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        if len(changed) < 2:
            return bytes(changed)
        pick(random, DAMAGES)(changed, random)
    return bytes(changed)


def _place(changed: bytearray, random: Random) -> int:
    """Half of them in the first hundred bytes, where the headers are."""
    return int(random.integers(min(len(changed), 100) if random.random() < 0.5 else len(changed)))


def _cut(changed: bytearray, random: Random) -> None:
    del changed[_place(changed, random) :]


def _turn_bit(changed: bytearray, random: Random) -> None:
    changed[_place(changed, random)] ^= 1 << int(random.integers(8))


def _overwrite(changed: bytearray, random: Random) -> None:
    changed[_place(changed, random)] = int(random.integers(256))


def _number(changed: bytearray, random: Random) -> None:
    layout = pick(random, ("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(layout)
    place, number = _place(changed, random), pick(random, NUMBERS) % 2 ** (8 * size)
    changed[place : place + size] = struct.pack(layout, number)


def _part(changed: bytearray, random: Random) -> slice:
    start = _place(changed, random)
    return slice(start, start + int(random.integers(1, 65)))


def _leave_out(changed: bytearray, random: Random) -> None:
    del changed[_part(changed, random)]


def _repeat(changed: bytearray, random: Random) -> None:
    part = _part(changed, random)
    changed[part] = bytes(changed[part]) * int(random.integers(2, 50))


def _move(changed: bytearray, random: Random) -> None:
    taken = bytes(changed[part := _part(changed, random)])
    del changed[part]
    place = int(random.integers(len(changed) + 1))
    changed[place:place] = taken


def _fill(changed: bytearray, random: Random) -> None:
    part = _part(changed, random)
    changed[part] = pick(random, (b"\0", b"\xff")) * len(changed[part])


def _append(changed: bytearray, random: Random) -> None:
    changed.extend(random.bytes(int(random.integers(1, 100))))


DAMAGES = (_cut, _turn_bit, _overwrite, _number, _leave_out, _repeat, _move, _fill, _append)


def sizes(size: tuple[int, int]) -> Mutation:
    """Of images of a size (H, W): wherever one of the two sides seems to be written, another number; then `damage`."""

    def change(data: bytes, random: Random) -> bytes:
        changed = bytearray(data)
        layouts = [layout for layout in ("<H", ">H", "<I", ">I") for _ in size]
        for layout, side in zip(layouts, size * 4, strict=True):
            written, place = struct.pack(layout, side), -1
            while (place := changed.find(written, place + 1)) >= 0:
                if random.random() < 0.3:
                    claimed = pick(random, (*NUMBERS, 9000, 10_000, 16_383, 16_384, 30_000)) % 2 ** (8 * len(written))
                    changed[place : place + len(written)] = struct.pack(layout, claimed)
        return bytes(changed) if random.random() < 0.8 else damage(bytes(changed), random)

    return change


# ---------------------------------------------------------------------- PNG


def png(data: bytes, random: Random) -> bytes:
    """Chunks changed with their checksums made right again, so that what they say is believed."""
    chunks = list(_chunks(data))
    pixels = dict(chunks)[b"IDAT"]
    if random.random() < 0.2:  # a size that fits none of the pixels
        sides = pick(random, ((9999, 9999), (50_000, 2000), (1, 100_000_000), (2**31 - 1, 1), (12_000, 9000), (0, 9)))
        chunks[0] = (b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:])
    for _ in range(int(random.integers(1, 4))):
        number = int(random.integers(len(chunks)))
        name, content = chunks[number]
        way = int(random.integers(5))
        if way == 0:
            chunks.insert(int(random.integers(len(chunks) + 1)), (name, content))
        elif way == 1 and len(chunks) > 1:
            del chunks[number]
        elif way == 2 and name == b"IDAT" and content == pixels:
            chunks[number] = (name, zlib.compress(damage(zlib.decompress(content), random)))
        elif way == 3:
            chunks.insert(1, (pick(random, (b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"acTL", b"PLTE")), content))
        elif content:
            chunks[number] = (name, damage(content, random))
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return data[:8] + b"".join(parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


# ---------------------------------------------------------------------- JSON and YAML

HOSTILE_VALUES = (
    *(None, True, False, 0, -1, 1.5, 1e308, -1e308, 10**400, -(10**400), 2**31, 2**63, 2**64, 10**12, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", "a", "7", "-1", "1e999", "nan", "x" * 100_000, "\ud800", "\0"),
    *(
        "é",
        "../../etc/passwd",
        "/dev/zero",
        "\u202e",
        [],
        {},
        [[]],
        [None],
        {"": None},
        [[[[[[1]]]]]],
        {"a": {"b": []}},
    ),
    *([1] * 5000, [[1, 2]] * 3000, {"counts": "", "size": [1, 1]}, {"counts": [-1], "size": [2**31, 2**31]}),
)


def json_text(data: bytes, random: Random) -> bytes:
    """JSON with some values, keys or parts changed; now and then the text itself."""
    way = random.random()
    if way < 0.15:
        return damage(data, random)
    if way < 0.2:
        return nested(data, random)
    content = json.loads(data)
    for _ in range(int(random.integers(1, 4))):
        content = changed_value(content, random)
    text = json.dumps(content, ensure_ascii=bool(random.random() < 0.5))
    if way < 0.25:
        text = text.replace('"', pick(random, ("'", '""', "\\")), int(random.integers(1, 4)))
    return pick(random, (b"", b"", b"", b"\xef\xbb\xbf")) + text.encode("utf-8", "surrogatepass")


def json_lines(data: bytes, random: Random) -> bytes:
    """Lines of JSON, one or two of which are changed."""
    lines = data.split(b"\n")
    for number in random.permutation(len(lines))[: int(random.integers(1, 3))]:
        if lines[number]:
            lines[number] = json_text(lines[number], random).replace(b"\n", b" ")
    return b"\n".join(lines)


def changed_value(content: object, random: Random) -> object:
    """JSON's content with one value somewhere in it replaced, left out, doubled, wrapped or renamed."""
    if not isinstance(content, (list, dict)) or not content or random.random() < 0.15:
        way = random.random()
        return [content] if way < 0.1 else {"a": content} if way < 0.2 else pick(random, HOSTILE_VALUES)
    changed = dict(enumerate(content)) if isinstance(content, list) else dict(content)
    key, way = pick(random, list(changed)), random.random()
    if way < 0.08:
        del changed[key]
    elif way < 0.16 and isinstance(content, list):
        changed[len(content)] = changed[key]
    elif way < 0.2 and isinstance(content, dict):
        changed[str(pick(random, HOSTILE_VALUES))] = changed.pop(key)
    elif way < 0.22 and isinstance(content, list):
        return content * int(random.integers(2, 200))
    else:
        changed[key] = changed_value(changed[key], random)
    return list(changed.values()) if isinstance(content, list) else changed


def nested(data: bytes, random: Random) -> bytes:
    """Deep lists or mappings, bare or in place of a value."""
    opening, closing = pick(random, ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
    levels = pick(random, (100, 900, 3000, DEEP))
    deep = opening * levels + b"1" + closing * levels * int(random.random() < 0.7)
    place = data.rfind(pick(random, (b"[", b":", b"{")))
    return deep if random.random() < 0.5 or place < 0 else data[: place + 1] + deep + data[place + 1 :]


def yaml_text(data: bytes, random: Random) -> bytes:
    """YAML with some scalars changed, aliases and merge keys that stand for millions, tags, or deep nesting."""
    way = random.random()
    if way < 0.15:
        return damage(data, random)
    if way < 0.25:
        return nested(data, random)
    if way < 0.35:
        return yaml_bomb(random) + data
    lines = data.decode().splitlines()
    for _ in range(int(random.integers(1, 4))):
        number = int(random.integers(len(lines)))
        key, colon, value = lines[number].partition(": ")
        way = int(random.integers(6))
        if way == 0:
            lines.insert(number, lines[number])
        elif way == 1 and len(lines) > 1:
            del lines[number]
        elif way == 2:
            lines[number] = "  " * int(random.integers(3)) + lines[number]
        else:
            replaced = key + ": " if colon else key[: len(key) - len(key.lstrip())]
            lines[number] = replaced + (pick(random, YAML_SCALARS) if way < 5 else value[::-1])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


YAML_SCALARS = (
    *("", "~", "true", "-1", "0", "1000000", "99999999999999999999", ".nan", ".inf", "1e400", "0x" + "f" * 300, "[]"),
    *("{}", "a", "'", '"', "[1, 2", "{a: 1", "&a [*a]", "*missing", "!!python/object/apply:os.system ['exit 1']"),
    *("!!binary ab", "!!timestamp now", "!!set {a}", "!!omap [a: 1]", "!!float x", "!!int 1:99:99", "2001-99-99", "|"),
    *(">-", "? a", "- b", "%YAML 9", "---", "...", "@a", "`a`", "\t", "<<: 3", "<<: [1]", "${a.b}", "${oc.env:HOME}"),
    *("os.system", "torch.load", "sam2.build_sam.build_sam2", "sam2.modeling.sam2_base.SAM2Base", "1_000", "1:30"),
    *("[1, 2, 3, 4]", "[-1, 0]", "[1.5]", "[a, b]", "{_target_: os.system, command: exit}", "x" * 10_000, "\x85"),
)


def yaml_bomb(random: Random) -> bytes:
    """Few bytes that stand for many values: aliases of aliases, or merge keys."""
    levels, width = int(random.integers(3, 12)), int(random.integers(2, 12))
    first, item = ("a0: &a0 {x: 1}", "<<: [{}]") if random.random() < 0.5 else ("a0: &a0 [x, x]", "[{}]")
    wrapped = "{{{}}}" if item.startswith("<<") else "{}"
    rows = [f"a{n}: &a{n} " + wrapped.format(item.format(", ".join([f"*a{n - 1}"] * width))) for n in range(1, levels)]
    return "\n".join([first, *rows, ""]).encode()


def text(data: bytes, random: Random) -> bytes:
    """Text with damage, or with some words or lines changed."""
    if random.random() < 0.3:
        return damage(data, random)
    separator = pick(random, (b"\n", b",", b" "))
    words = data.split(separator)
    for _ in range(int(random.integers(1, 4))):
        word = str(pick(random, HOSTILE_VALUES)).encode("utf-8", "surrogatepass")
        words.insert(int(random.integers(len(words) + 1)), word)
        if random.random() < 0.5:
            del words[int(random.integers(len(words)))]
    joined = separator.join(words) * int(pick(random, (1, 1, 1, 300)))
    return joined.replace(b"\n", pick(random, (b"\n", b"\n", b"\r\n", b"\r", b"\x0b", b"\0")))


# ---------------------------------------------------------------------- zip archives

METHODS = (0, 1, 6, 8, 9, 12, 14, 93, 95, 98, 99, 65535)
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def archive(content: Mutation) -> Mutation:
    """Of zip archives: entries with lies in their headers, members of other content, missing, doubled, or bombs.

    content: how a member's bytes are changed.
    """

    def change(data: bytes, random: Random) -> bytes:
        way = random.random()
        if way < 0.2:
            return damage(data, random)
        if way < 0.45:
            return _lie(data, random)
        with zipfile.ZipFile(io.BytesIO(data)) as whole:
            members = [(info.filename, whole.read(info)) for info in whole.infolist()]
        number = _largest_first(members, random)
        name, held = members[number]
        if way < 0.5:
            del members[number]
        elif way < 0.55:
            members.append((name, held))
        elif way < 0.6:
            odd = ("/" + name, "../" + name, name.upper(), name + "\0", "x" * 300, "é")
            members[number] = (pick(random, odd), held)
        elif way < 0.62:
            return _with_bomb(members, number)
        else:
            members[number] = (name, content(held, random))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", pick(random, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
            for member, held in members:
                made.writestr(zipfile.ZipInfo(member), held)
        return packed.getvalue()

    return change


def _largest_first(members: list[tuple[str, bytes]], random: Random) -> int:
    """Mostly a member that says what the others mean (a pickle), else any."""
    told = [number for number, (name, _) in enumerate(members) if name.endswith((".pkl", ".npy"))]
    return pick(random, told if told and random.random() < 0.7 else range(len(members)))


def _lie(data: bytes, random: Random) -> bytes:
    """Flags (encrypted), methods, sizes and offsets of one entry overwritten, in one or both of its headers."""
    changed = bytearray(data)
    places = [at for at in range(len(data) - 4) if data[at : at + 4] == CENTRAL]
    at = pick(random, places)
    (local,) = struct.unpack_from("<I", data, at + 42)
    field = int(random.integers(5))
    both = random.random() < 0.7
    for start, shift in ((at, 2), (local, 0)) if both else ((at, 2),):
        if field == 0:
            struct.pack_into("<H", changed, start + shift + 6, pick(random, (1, 0x2041, 0x0800, 8, 0xFFFF)))
        elif field == 1:
            struct.pack_into("<H", changed, start + shift + 8, pick(random, METHODS))
        elif field == 2:
            struct.pack_into("<I", changed, start + shift + 22, pick(random, NUMBERS) % 2**32)
        elif field == 3:
            struct.pack_into("<I", changed, start + shift + 18, pick(random, NUMBERS) % 2**32)
        elif start == at:
            struct.pack_into("<I", changed, at + 42, int(random.integers(2 * len(data))))
    return bytes(changed)


def _with_bomb(members: list[tuple[str, bytes]], number: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as made:
        for index, (name, held) in enumerate(members):
            if index != number:
                made.writestr(name, held)
    name = members[number][0].encode()
    return _append_entry(packed.getvalue(), name, zeros(), BOMB, zlib.crc32(b""))


@cache
def zeros() -> bytes:
    """BOMB zeros, deflated."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(deflate.compress(bytes(1 << 20)) for _ in range(BOMB >> 20)) + deflate.flush()


def _append_entry(data: bytes, name: bytes, packed: bytes, size: int, checksum: int) -> bytes:
    """A zip archive with one more deflated entry."""
    end = data.rfind(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<HII", data, end + 10)
    directory, place = data[start:end], start
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, checksum, len(packed), size, len(name), 0)
    local = LOCAL + fields + name + packed
    central = CENTRAL + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, place) + name
    whole = directory + central
    ending = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count + 1, count + 1, len(whole), place + len(local), 0)
    return data[:start] + local + whole + ending


# ---------------------------------------------------------------------- numpy, safetensors, pickles

TYPES = ("|b1", "<f4", ">f8", "<g16", "<f16", "<c16", "|O", "|S9", "<U9", "<M8[s]", "|V8", "<i8", "|u1", "<f2", "3<f4")
SHAPES = ("(3, 47, 61)", "()", "(-1,)", "(-3, -47, 61)", "(99999, 99999, 99999)", "(2**62,)", "3", "(0, 5)", "(1,)*64")
SHAPES += ("(1.5,)", "('a',)", "(47, 61)", "(1e9,)", "(True, 61)", f"({10**30},)", "(8, 0x10000000, 1)", "None", "[3]")


def npy(data: bytes, random: Random) -> bytes:
    """Headers that claim other types and shapes, or are no dict; else damage."""
    if random.random() < 0.4:
        return damage(data, random)
    version, wide = (data[6], data[6] > 1)
    length = struct.unpack_from("<I" if wide else "<H", data, 8)[0]
    content = data[(12 if wide else 10) + length :]
    header = (
        f"{{'descr': {pick(random, TYPES)!r}, 'fortran_order': {pick(random, ('True', 'False', '3', 'None'))}, "
        f"'shape': {pick(random, SHAPES)}, }}"
    )
    if random.random() < 0.2:
        odd = ("(" * 5000, "{" * 300, "-" * 9000, "[]", "{'descr': '|b1'}")
        odd += ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",)
        header = pick(random, (*odd, "__import__('os')", "{**{}}", "'" + "x" * 60_000 + "'", "\0"))
    told = (header + "\n").encode("latin-1", "replace")
    version = pick(random, (1, 2, 3, version, 4, 255))
    size = struct.pack("<I", len(told)) if version > 1 else struct.pack("<H", min(len(told), 65535))
    return b"\x93NUMPY" + bytes([version, pick(random, (0, 0, 0, 1))]) + size + told + content


def safetensors(data: bytes, random: Random) -> bytes:
    """Headers with other types, shapes, offsets, lengths and metadata; else damage."""
    way = random.random()
    length = int.from_bytes(data[:8], "little")
    header, content = data[8 : 8 + length], data[8 + length :]
    if way < 0.25:
        return damage(data, random)
    if way < 0.3:
        return struct.pack("<Q", pick(random, NUMBERS)) + header + content
    if way < 0.35:
        header = nested(header, random)
    elif way < 0.65:
        told = json.loads(header)
        meta = told.get("__metadata__") or {}
        if "textregion" in meta:
            meta["textregion"] = json_text(meta["textregion"].encode(), random).decode("utf-8", "replace")
        else:
            told["__metadata__"] = {"a": "b" * 100_000}
        header = json.dumps(told).encode()
    else:
        header = json_text(header, random)
    return struct.pack("<Q", len(header)) + header + content


OPCODES = (
    *(b"(", b")", b"t", b"l", b"]", b"}", b"e", b"u", b"s", b"a", b"0", b"2", b".", b"R", b"b", b"Q", b"\x81", b"N"),
    *(b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\xff", b"q\xff", b"h\xff", b"p99999999999\n", b"g1\n", b"\x94" * 500, b"B"),
    *(b"\x8b\xff\xff\xff\x7f1", b"\x8a\xff", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8e"),
    *(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x96\xff\xff\xff\xff\xff\0\0\0", b"(l" * 5000, b"]" * 9000, b"\x88"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch\nFloatStorage\n"),
    *(b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R"),
    *(b"K\xff", b"J\xff\xff\xff\xff", b"I99999999999999999999\n", b"F1e999\n", b"Vabc\n", b"\x80\xff", b"K\0\x85"),
    *(b"c__torch__.A\nB\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"M\xff\xff", b"\x86", b"\x87", b"J\0\0\0\x80"),
)


def pickled(data: bytes, random: Random) -> bytes:
    """Operations put into a pickle; else damage."""
    if random.random() < 0.4:
        return damage(data, random)
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(2, max(len(changed), 3)))
        changed[place : place + int(random.integers(0, 4))] = pick(random, OPCODES)
    return bytes(changed)
