"""What files and arrays mean: each case knows its right value, so that a wrong result in silence is a failure."""

import io
import json
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from eval.data import check_label_maps
from tests.fuzz.case import EITHER, REFUSED, WORKS, Case
from tests.fuzz.mutations import HOSTILE_VALUES, pick
from textregion.boxes import read_boxes
from textregion.cli.jobs import read_labels_file
from textregion.images import load_image
from textregion.labels import split_labels
from textregion.masks import read_masks
from textregion.storage import write_atomically
from textregion.types import RegionMasks

Check = Callable[[], None]
Array = np.ndarray
SIZES = ((23, 31), (40, 26), (18, 60))  # of images, (H, W): no two sides alike, no two aspects
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All of them; their files are written when they run."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from exif_blocks(random)
    yield from modes(random)
    yield from mask_containers(folder / "masks", random)
    yield from broken_annotations(folder / "coco", random)
    yield from box_layouts(folder / "boxes", random)
    yield from benchmark_maps(folder / "maps", random)
    yield from label_texts(folder / "labels", random)


def case(kind: str, name: str, check: Check, expected: Sequence[str] = (WORKS,)) -> Case:
    """A check that needs no segmenter."""
    return Case(f"meaning: {kind}", f"{kind}, {name}", None, lambda _: check(), tuple(expected))


# ---------------------------------------------------------------------- EXIF and modes

FIELD_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
POINTERS = (34665, 34853, 40965)  # to the EXIF, GPS and interoperability directories
ORIENTATION = 274


def exif_block(random: np.random.Generator, orientation: int | None) -> bytes:
    """Four directories of tags drawn at random, of all types and counts; the first states the orientation."""
    order = pick(random, "<>")
    directories = [
        [(int(random.integers(65536)), *_field(random)) for _ in range(random.integers(0, 9))] for _ in range(4)
    ]
    directories = [[entry for entry in entries if entry[0] != ORIENTATION] for entries in directories]
    if orientation is not None:
        directories[0].insert(int(random.integers(len(directories[0]) + 1)), (ORIENTATION, 3, 1, None))
    if random.random() < 0.5:  # a directory of a thumbnail turned otherwise says nothing of the picture
        directories[1].append((ORIENTATION, 3, 1, struct.pack(order + "H", 1 + int(random.integers(8)))))
    sizes = [2 + 12 * (len(entries) + 3 * (number == 0)) + 4 for number, entries in enumerate(directories)]
    starts = [8 + sum(sizes[:number]) for number in range(4)]
    data, made = bytearray(), bytearray(struct.pack(order + "HL", 42, 8))
    for number, entries in enumerate(directories):
        pointers = (
            [(POINTERS[n], 4, 1, struct.pack(order + "L", starts[n + 1])) for n in range(3)] if number == 0 else []
        )
        made += struct.pack(order + "H", len(entries) + len(pointers))
        for tag, kind, count, value in [*entries, *pointers]:
            value = struct.pack(order + "H", orientation) if value is None else value
            if len(value) > 4:
                place, data = 8 + sum(sizes) + len(data), data + value
                value = struct.pack(order + "L", place)
            made += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")[:4]
        made += struct.pack(order + "L", 0)
    return b"Exif\0\0" + (b"II" if order == "<" else b"MM") + bytes(made) + bytes(data)


def _field(random: np.random.Generator) -> tuple[int, int, bytes]:
    """(type, count, bytes); one in ten has a type that there is not, or a count that lies."""
    kind, count = int(random.integers(1, 13)), int(random.integers(0, 9))
    value = random.bytes(FIELD_SIZES[kind] * count)
    if random.random() < 0.1:
        kind, count = int(random.integers(65536)), int(random.integers(2**32))
    return kind, count, value


def exif_blocks(random: np.random.Generator) -> Iterator[Case]:
    """The picture is turned as the orientation says, 1 to 8, and else not, whatever else the block holds."""
    for number in range(480):
        picture = Image.fromarray(random.integers(0, 256, (7, 5, 3), dtype=np.uint8))
        orientation = pick(random, (None, *range(1, 9), *range(1, 9), 0, 9, 255, 65535))
        form = pick(random, ("PNG", "JPEG", "WEBP"))
        options = {"lossless": True} if form == "WEBP" else {}
        block = exif_block(random, orientation)

        def check(picture=picture, orientation=orientation, form=form, options=options, block=block) -> None:
            stored = Image.fromarray(load_image(encoded(picture, form, **options)))
            right = stored.transpose(TURNED[orientation]) if orientation in TURNED else stored
            np.testing.assert_array_equal(load_image(encoded(picture, form, exif=block, **options)), np.asarray(right))

        yield case("EXIF", f"{number}: {orientation} in {form}", check)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def modes(random: np.random.Generator) -> Iterator[Case]:
    """Every mode of PIL: grey by its stated scale, colours as Pillow has them, transparency over white."""
    shape = (6, 9)
    for number in range(12):
        byte = random.integers(0, 256, shape, dtype=np.uint8)
        colour = random.integers(0, 256, (*shape, 4), dtype=np.uint8)
        alpha, deep = colour[..., 3:] / 255, random.integers(0, 65536, shape).astype(np.uint16)
        over = np.rint(colour[..., :3] * alpha + 255 * (1 - alpha))
        rgb, rgba = Image.fromarray(colour[..., :3].copy()), Image.fromarray(colour)
        fraction = random.random(shape).astype(np.float32)
        fraction.flat[0], fraction.flat[1] = 1, 0.25
        pictures = {
            "1": (Image.fromarray(byte > 99), np.where(byte > 99, 255, 0)),
            "L": (Image.fromarray(byte), byte),
            "RGB": (rgb, colour[..., :3]),
            "RGBA": (rgba, over),
            "LA": (rgba.convert("LA"), None),
            "P": (rgb.quantize(7), np.asarray(rgb.quantize(7).convert("RGB"))),
            "I;16": (Image.fromarray(deep), np.rint(deep * (255 / 65535))),
            "I;16B": (Image.fromarray(deep.astype(">u2")), np.rint(deep * (255 / 65535))),
            "I, 8 bits": (Image.fromarray(byte.astype(np.int32)), byte),
            "I, 16 bits": (Image.fromarray(deep.astype(np.int32)), np.rint(deep * (255 / 65535))),
            "F, fractions": (Image.fromarray(fraction), np.rint(fraction.astype(np.float64) * 255)),
            "F, 8 bits": (Image.fromarray(byte.astype(np.float32)), byte),
            "F, 16 bits": (Image.fromarray(deep.astype(np.float32)), np.rint(deep * (255 / 65535))),
        }
        pictures |= {
            m: (rgb.convert(m), np.asarray(rgb.convert(m).convert("RGB"))) for m in ("CMYK", "YCbCr", "HSV", "RGBX")
        }
        pictures["LAB"] = (Image.merge("LAB", rgb.split()), np.asarray(Image.merge("LAB", rgb.split()).convert("RGB")))
        grey, opacity = (np.asarray(band).astype(float) for band in pictures["LA"][0].split())
        pictures["LA"] = (pictures["LA"][0], np.rint(grey * opacity / 255 + 255 - opacity))
        pictures["RGBa"] = (rgba.convert("RGBa"), over)
        for name, (image, right) in pictures.items():

            def check(image=image, right=right) -> None:
                right = np.repeat(right[..., None], 3, 2) if right.ndim == 2 else right
                np.testing.assert_allclose(
                    load_image(image).astype(int), right, atol=2 if "A" in image.mode.upper() else 1
                )

            yield case("modes", f"{name} {number}", check)
        wrong = {
            "I huge": deep.astype(np.int32) * 9,
            "I negative": -1 - byte.astype(np.int32),
            "F NaN": fraction * np.nan,
        }
        wrong |= {
            "F infinite": fraction + np.float32(np.inf),
            "F large fractions": fraction * 999,
            "F negative": -fraction,
        }
        for name, values in wrong.items():
            yield case("modes", f"{name} {number}", lambda v=values: load_image(Image.fromarray(v)), (REFUSED,))


# ---------------------------------------------------------------------- masks

DTYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i2")


def same_masks(masks: RegionMasks, right: Array) -> None:
    """The regions at the image's size are the right ones, in this order."""
    found = masks.binary().numpy()
    assert found.shape == right.shape, f"{found.shape} instead of {right.shape}"
    assert (found == right).all(), f"{(found != right).mean():.3f} of the pixels differ"


def in_container(folder: Path, container: str, array: Array, size: tuple[int, int]) -> RegionMasks:
    """Masks of an image of a size from an array in a file of a kind."""
    path = folder / f"a.{container}"
    if container == "array":
        return RegionMasks.from_array(array, size)
    buffer = io.BytesIO()
    if container == "npy":
        np.save(buffer, array)
    elif container == "npz":
        np.savez(buffer, masks=array, other=np.zeros(3))
    elif container == "png":
        Image.fromarray(array).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
    return read_masks(path, size, "a.jpg")


def mask_containers(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """Containers x types x orders of the axes x sizes."""
    for size in SIZES:
        for dtype in DTYPES:
            hard = random.random((int(random.integers(2, 5)), *size)) > 0.5
            stack = hard.astype(dtype)
            orders = {"R H W": (stack, True), "H W R": (np.moveaxis(stack, 0, 2), True)}
            orders |= {"R W H": (stack.transpose(0, 2, 1), False), "W H R": (stack.transpose(2, 1, 0), False)}
            orders |= {"H R W": (stack.transpose(1, 0, 2), False), "W R H": (stack.transpose(2, 0, 1), False)}
            orders |= {"columns first in memory": (np.asfortranarray(stack), True)}
            orders |= {"W H": (stack[0].T, False), "1 R H W": (stack[None], False)}
            orders |= {"reversed in memory": (np.ascontiguousarray(stack[:, ::-1])[:, ::-1], True)}
            for order, (array, fine) in orders.items():
                for container in ("array", "npy", "npz"):

                    def check(array=array, container=container, hard=hard, size=size, fine=fine) -> None:
                        masks = in_container(folder, container, array, size)
                        assert fine, f"taken as {masks.soft.shape}"
                        same_masks(masks, hard)

                    name = f"{container} {dtype} {order} of {size}"
                    yield case("masks", name, check, (WORKS if fine else REFUSED,))
            yield from planes(folder, size, dtype, random)
        yield from coded(folder, size, random)


def planes(folder: Path, size: tuple[int, int], dtype: str, random: np.random.Generator) -> Iterator[Case]:
    """(H, W): one mask where there is only 0 and white, else a region per value; of floats one soft mask, or none."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    values = {"0 1": [0, 1], "0 255": [0, 255], "0 65535": [0, 65535], "labels": [0, 1, 2, 7], "1 2": [1, 2]}
    values |= {"0 254": [0, 254], "255 0 1": [0, 1, 255], "negative": [-1, 0, 3], "high": [0, 300, 40_000], "one": [1]}
    for name, labels in values.items():
        if dtype == "?" and name != "0 1":
            continue
        if info and not info.min <= min(labels) <= max(labels) <= info.max:
            continue
        if np.dtype(dtype).itemsize == 2 and info is None and max(labels) > 2048:  # no whole numbers of half precision
            continue
        plane = random.choice(labels, size)
        plane.flat[: len(labels)] = labels
        white = set(labels) <= {0, 1} or set(labels) in ({0, 255}, {0, 65535})
        if info or dtype == "?":
            right = (plane != 0)[None] if white else np.stack([plane == label for label in sorted(labels)])
        else:
            several = len([label for label in labels if label > 0]) > 1
            right = None if several else (plane > 0.5)[None]
        for container in ("array", "npy", "npz", *(("png",) if dtype in ("?", "u1", "u2") else ())):

            def check(plane=plane, container=container, right=right) -> None:
                masks = in_container(folder, container, plane.astype(dtype), size)
                assert right is not None, f"taken as {masks.soft.shape}"
                same_masks(masks, right)

            expected = (REFUSED if right is None else WORKS,)
            yield case("masks", f"{container} plane {dtype} {name} of {size}", check, expected)


def coded(folder: Path, size: tuple[int, int], random: np.random.Generator) -> Iterator[Case]:
    """safetensors, and COCO's three codings of the same masks, of this size and of twice it."""
    for number in range(12):
        hard = random.random((3, *size)) > 0.5

        def saved(hard=hard) -> None:
            RegionMasks.from_array(hard, size).save(folder / "a.safetensors")
            same_masks(read_masks(folder / "a.safetensors", size), hard)

        def runs(hard=hard, number=number) -> None:
            large = np.repeat(np.repeat(hard, 2, 1), 2, 2) if number % 3 == 2 else hard
            codes = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in large]
            if number % 3 == 0:
                shapes = [{"size": code["size"], "counts": code["counts"].decode()} for code in codes]
            else:
                shapes = [{"size": [*mask.shape], "counts": run_lengths(mask)} for mask in large]
            write_atomically(folder / "a.json", json.dumps(shapes).encode())
            same_masks(read_masks(folder / "a.json", size, "a.jpg"), hard)

        yield case("masks", f"safetensors {number} of {size}", saved)
        yield case("masks", f"COCO {number} of {size}", runs)
        other = SIZES[(SIZES.index(size) + 1) % 3]
        for name, check in {"safetensors": saved, "COCO": runs}.items():
            ending = {"safetensors": "safetensors", "COCO": "json"}[name]

            def foreign(check=check, ending=ending, other=other) -> None:
                check()
                read_masks(folder / f"a.{ending}", other, "a.jpg")

            yield case("masks", f"{name} {number} of {size} for {other}", foreign, (REFUSED,))


def run_lengths(mask: Array) -> list[int]:
    """Column by column, outside first."""
    lengths, inside = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != inside:
            lengths.append(0)
            inside = not inside
        lengths[-1] += 1
    return lengths


# ---------------------------------------------------------------------- COCO files with one field broken

NAMES = ("cam1/0006.jpg", "cam1/0007.jpg", "cam2/0007.jpg")
IDS = (6, 7, 8)
MISSING = object()
SAME_ID = {"text": str, "float": float, "text of a float": lambda n: f"{n}.0", "zeros": lambda n: f"00{n}"}
Box = tuple[int, int, int, int]


def whole_file() -> tuple[dict, dict[int, list[Box]]]:
    """(three images with three rectangles each, as COCO has them; the rectangles xyxy by image id): no two alike."""
    rows, right = [], {number: [] for number in IDS}
    for number in range(9):
        x, y, width, height = 1 + 2 * number, 1 + number, 5 + number % 3, 4 + number // 3
        box, image = (x, y, x + width, y + height), IDS[number % 3]
        right[image].append(box)
        mask = np.zeros((23, 31), bool)
        mask[y : y + height, x : x + width] = True
        polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        shape = polygon if number % 2 else {"size": [23, 31], "counts": run_lengths(mask)}
        row = {"id": 100 + number, "image_id": image, "category_id": 1, "bbox": [x, y, width, height], "iscrowd": 0}
        rows.append({**row, "area": width * height, "score": 0.5 + number / 100, "segmentation": shape})
    listed = [{"id": n, "file_name": name, "height": 23, "width": 31} for n, name in zip(IDS, NAMES, strict=True)]
    return {"images": listed, "annotations": rows}, right


def broken_annotations(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """One field of one row set to each hostile value, or left out, for masks and for boxes, asked for each image.

    Right is a refusal, or the image's own rectangles: all whose rows are whole, never another image's.
    """
    fields = {"annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")}
    fields["images"] = ("id", "file_name", "height", "width")
    values = {f"value {number}": value for number, value in enumerate(HOSTILE_VALUES)} | {"missing": MISSING}
    for part, keys in fields.items():
        for key in keys:
            for name, value in values.items():
                place = int(random.integers(9 if part == "annotations" else 3))
                content, right = whole_file()
                row = content[part][place]
                if value is MISSING:
                    del row[key]
                else:
                    row[key] = value
                if key == "file_name" and isinstance(value, str) and value:
                    content["images"][place]["file_name"] = f"elsewhere/{value}.png"  # text is a name, of any image
                owner = IDS[place % 3]
                doubtful = right[owner][place // 3] if part == "annotations" else None
                for kind in ("masks", "boxes"):
                    named = key == "file_name" and isinstance(value, str) and value
                    asked = pick(random, [n for n in range(3) if not named or n != place])
                    used = key in ("image_id", {"masks": "segmentation", "boxes": "bbox"}[kind])
                    harmless = part == "annotations" and not used and not (kind == "boxes" and key == "score")
                    check = asking(folder, kind, content, asked, right[IDS[asked]], doubtful if used else None, part)
                    expected = (WORKS,) if harmless else EITHER
                    yield case("COCO, a broken field", f"{kind} {part} {key} {name} of {NAMES[asked]}", check, expected)
    for name, write in SAME_ID.items():
        for part, key in (("annotations", "image_id"), ("images", "id")):
            for kind in ("masks", "boxes"):
                for asked in range(3):
                    content, right = whole_file()
                    for row in content[part]:
                        row[key] = write(row[key])
                    check = asking(folder, kind, content, asked, right[IDS[asked]], None, part)
                    yield case("COCO, ids", f"{kind} {part} {key} as {name} of {NAMES[asked]}", check)
    for kind in ("masks", "boxes"):
        for asked in range(3):
            content, right = whole_file()
            twice, astray = deepcopy(content), deepcopy(content)
            twice["images"].append({**twice["images"][asked], "id": 99})
            astray["images"] = [row for row in astray["images"] if row["id"] != IDS[asked]]
            check = asking(folder, kind, twice, asked, right[IDS[asked]], None, "images")
            yield case("COCO, ids", f"{kind} one name under two ids, {NAMES[asked]}", check, (REFUSED,))
            if asked < 2:  # the others then share their folder, which may differ
                check = asking(folder, kind, astray, asked, [], None, "annotations")
                yield case("COCO, ids", f"{kind} not listed, {NAMES[asked]}", check, (REFUSED,))
            same = deepcopy(content)
            same["images"][asked]["id"] = same["images"][(asked + 1) % 3]["id"]
            check = asking(folder, kind, same, asked, [], None, "images")
            yield case("COCO, ids", f"{kind} two images of one id, {NAMES[asked]}", check, (REFUSED,))


def asking(
    folder: Path, kind: str, content: dict, asked: int, right: list[Box], doubtful: Box | None, part: str
) -> Check:
    """That the rectangles of an image are the right ones, with or without the doubtful one."""

    def check() -> None:
        write_atomically(folder / "a.json", json.dumps(content).encode())
        path = f"photos/{NAMES[asked]}"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if kind == "boxes":
                boxes = read_boxes(folder / "a.json").of(path).boxes.tolist()
                found = [tuple(round(side) for side in box) for box in boxes]
            else:
                found = [rectangle(mask) for mask in read_masks(folder / "a.json", (23, 31), path).binary().numpy()]
        own = [box for box in found if box != doubtful]
        if not found and told and part == "images":  # no annotation has the id that the image is listed with
            return
        strange = [box for box in own if box not in right]
        # A broken shape may still be one, but then a shape of its own row: at most one of its own kind
        assert len(strange) <= int(doubtful in right), f"{strange} are not of this image"
        assert [box for box in own if box in right] == [box for box in right if box != doubtful], (
            f"{found}, not {right}"
        )

    return check


def rectangle(mask: Array) -> Box:
    """xyxy of a mask, which must be filled."""
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(xs) else (0, 0, 0, 0)
    assert len(xs) == (box[2] - box[0]) * (box[3] - box[1]), "no rectangle"
    return box


# ---------------------------------------------------------------------- boxes, benchmark maps, labels


def box_layouts(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """Boxes drawn at random in every layout, written in every way that there is."""
    for number in range(40):
        corners = random.integers(0, 50, (2, int(random.integers(1, 4)), 2)) * 0.5
        far = corners + random.integers(1, 40, corners.shape) * 0.5
        boxes = np.concatenate([corners, far], 2)  # (2 images, n, 4)
        scores = random.integers(0, 101, boxes.shape[:2]) / 100
        xywh = boxes.copy()
        xywh[..., 2:] -= xywh[..., :2]
        rows = [
            {"image_id": 7 + i, "bbox": box.tolist(), "score": float(score)}
            for i in range(2)
            for box, score in zip(xywh[i], scores[i], strict=True)
        ]
        random.shuffle(rows := rows[:])
        listed = [{"id": 7, "file_name": "a/x.jpg"}, {"id": 8, "file_name": "b/x.jpg"}]
        by_name = {row["file_name"]: row["id"] for row in listed}
        named = [
            {**{k: v for k, v in row.items() if k != "image_id"}, "file_name": n}
            for row in rows
            for n in by_name
            if by_name[n] == row["image_id"]
        ]
        detections = {
            str(7 + i): {"boxes": boxes[i].tolist(), "scores": scores[i].tolist(), "labels": [1] * len(boxes[i])}
            for i in range(2)
        }
        lines = [",".join(map(str, [*box, score])) for box, score in zip(boxes[0], scores[0], strict=True)]
        layouts = {
            "COCO": ({"images": listed, "annotations": rows}, "c/a/x.jpg", "b/x.jpg"),
            "COCO of Windows": (
                {
                    "images": [{**r, "file_name": r["file_name"].replace("/", "\\")} for r in listed],
                    "annotations": rows,
                },
                "a/x.jpg",
                "b/x.jpg",
            ),
            "results by id": (rows, 7, "8"),
            "results by name": (named, "a/x.jpg", "b/x.jpg"),
            "detections": (detections, 7, "0008.jpg"),
            "detections by name": ({f"{i}.jpg": detections[str(7 + i)] for i in range(2)}, "p/0.jpg", "1.jpg"),
            "list": (boxes[0].tolist(), "any.jpg", None),
            "CSV": ("x1,y1,x2,y2,score\n" + "\n".join(lines), "any.jpg", None),
            "CSV of Windows": ("\ufeff" + "\r\n".join(["# boxes", *lines, ""]), "any.jpg", None),
            "words": ("\n".join(line.replace(",", " ") for line in lines), "any.jpg", None),
            "semicolons": ("\n".join(line.replace(",", ";") for line in lines), "any.jpg", None),
        }
        order = {i: [row for row in rows if row["image_id"] == 7 + i] for i in range(2)}
        for name, (content, *asked) in layouts.items():

            def check(content=content, asked=asked, name=name, boxes=boxes, scores=scores, order=order) -> None:
                text = content if isinstance(content, str) else json.dumps(content)
                path = folder / ("a.csv" if isinstance(content, str) else "a.json")
                write_atomically(path, text.encode())
                file = read_boxes(path)
                for i, image in enumerate(asked):
                    if image is None:
                        continue
                    found = file.of(image)
                    right, certain = boxes[i], scores[i]
                    if "COCO" in name or "results" in name:  # in the order of the file
                        x, y, w, h = np.array([row["bbox"] for row in order[i]]).T
                        right, certain = np.stack([x, y, x + w, y + h], 1), [row["score"] for row in order[i]]
                    np.testing.assert_array_equal(found.boxes, right.astype(np.float32))
                    if found.scores is not None:
                        np.testing.assert_array_equal(found.scores, np.float32(certain))
                    assert (found.scores is None) == (name == "list")

            yield case("boxes", f"{name} {number}", check)


def benchmark_maps(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """Label maps of 8 and 16 bits: labels beyond the classes and maps of nothing are refused, others taken."""
    for number in range(90):
        deep = bool(number % 2)
        classes = int(pick(random, (2, 21, 150, 300 if deep else 59)))
        beyond = int(pick(random, (classes, classes + 7, 254 if classes < 250 else 299 + classes, *((65535,) * deep))))
        kind = pick(random, ("fine", "beyond", "ignored"))
        values = random.integers(0, classes, (9, 11))
        values = np.where(values == 255, 0, values) if kind != "ignored" else np.full((9, 11), 255)
        values.flat[3] = beyond if kind == "beyond" and beyond != 255 else values.flat[3]
        fine = not ((values != 255) & (values >= classes)).any() and (values != 255).any()

        def check(values=values, deep=deep, classes=classes) -> None:
            data = encoded(Image.fromarray(values.astype(np.uint16 if deep else np.uint8)), "PNG")
            write_atomically(folder / "a.png", data)
            check_label_maps([{"seg_map_path": str(folder / "a.png")}], [f"class {n}" for n in range(classes)])

        name = f"{number}: {kind}, {classes} classes, {16 if deep else 8} bits"
        yield case("benchmark maps", name, check, (WORKS if fine else REFUSED,))


def label_texts(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """--labels with quotes and commas; label files with marks, line ends, comments and blank lines."""
    words = (
        "red star",
        "sky",
        'the "big" one',
        "red, round star",
        "a; b",
        "ŝtelo",
        "犬",
        "it's",
        "5,5",
        '"',
        "x,",
        "50 %",
    )
    for number in range(160):
        labels = [pick(random, words) for _ in range(random.integers(1, 6))]
        space = [" " * int(random.integers(3)) for _ in labels]
        parts = [
            f'"{label.replace(chr(34), chr(34) * 2)}"'
            if "," in label or '"' in label or random.random() < 0.3
            else label
            for label in labels
        ]
        text = pick(random, (",", ",", ", ", "\n")).join(s + part + s for s, part in zip(space, parts, strict=True))
        text += pick(random, ("", "", ",", " "))

        def split(text=text, labels=labels) -> None:
            assert split_labels(text) == [label.strip(" ;") for label in labels], f"{text!r}: {split_labels(text)}"

        yield case("labels", f"--labels {number}", split)
        end = pick(random, ("\n", "\r\n", "\r"))
        noise = [pick(random, ("", " ", "# no")) for _ in labels]
        lines = end.join(f"{extra}{end}{s}{label}{s}" for extra, s, label in zip(noise, space, labels, strict=True))
        data = pick(random, ("", "\ufeff")) + lines + pick(random, ("", end))

        def listed(data=data, labels=labels) -> None:
            write_atomically(folder / "a.txt", data.encode())
            assert read_labels_file(folder / "a.txt") == labels, read_labels_file(folder / "a.txt")

        yield case("labels", f"label file {number}", listed)
