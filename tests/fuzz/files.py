"""Files besides images and masks: saved tokens, weights, YAML of images and labels, label lists."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_bytes

from tests.fuzz.case import EARLIER, EITHER, FAST, OUTPUT, REFUSED, WORKS, Case
from textregion.storage import load_tensors, save_tensors, write_atomically
from textregion.tiny.models import SAM2_CONFIG, SAM2_WEIGHTS
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionMasks, RegionTokens
from TextRegionSegmenter import TextRegionSegmenter


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases of damaged files."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "scene.png"
    Image.fromarray(draw_scene(3, 64).image).save(image)
    yield from saved_tokens(folder, random)
    yield from weights(folder, image)
    yield from queries(folder, image)
    yield from label_lists(folder, image)


def loading(kind: type, path: Path) -> Callable[[TextRegionSegmenter], object]:
    """Load a saved result and use it."""

    def run(segmenter: TextRegionSegmenter) -> None:
        loaded = kind.load(path)
        if isinstance(loaded, RegionTokens):
            segmenter.segment(loaded, ["sky", "grass"])

    return run


def saved_tokens(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """`RegionTokens.load` of files cut short, changed, or with something missing, added or of another shape."""
    segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator="slic", resize_method="resize", device="cpu")
    right = folder / "tokens.safetensors"
    segmenter.encode_image(draw_scene(3, 64).image).save(right)
    yield Case("tokens", "load right", None, loading(RegionTokens, right), (WORKS,))
    yield Case("tokens", "load masks from tokens", None, loading(RegionMasks, right), (REFUSED,))
    data = right.read_bytes()
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.99):
        write_atomically(path := folder / f"cut_{share}.safetensors", data[: int(share * len(data))])
        yield Case("tokens", f"load cut {share}", None, loading(RegionTokens, path), (REFUSED,))
    header = int.from_bytes(data[:8], "little")
    for number in range(24):
        changed = bytearray(data)
        changed[random.integers(0, header + 8)] = random.integers(256)
        write_atomically(path := folder / f"changed_{number}.safetensors", bytes(changed))
        yield Case("tokens", f"load changed {number}", None, loading(RegionTokens, path))
    yield from rewritten_tokens(folder, right)


def rewritten_tokens(folder: Path, right: Path) -> Iterator[Case]:
    """Well-formed safetensors files whose content does not fit together."""
    tensors, meta = load_tensors(right, "RegionTokens")
    meta["kind"] = "RegionTokens"
    count = len(tensors["tokens"])
    changes = {f"without {name}": ({name: None}, {}) for name in tensors if name not in ("patch_scores", "dense")}
    changes |= {f"meta without {name}": ({}, {name: None}) for name in meta if name != "kind"}
    changes |= {
        "fewer tokens": ({"tokens": tensors["tokens"][1:]}, {}),
        "flat tokens": ({"tokens": tensors["tokens"][0]}, {}),
    }
    changes |= {
        "NaN tokens": ({"tokens": tensors["tokens"] * torch.nan}, {}),
        "NaN masks": ({"masks.soft": torch.full((count, 4, 4), torch.nan)}, {}),
    }
    changes |= {
        "text tokens": ({"tokens": tensors["tokens"].to(torch.uint8)}, {}),
        "group far": ({"masks.group": tensors["masks.group"] + 9}, {}),
    }
    changes |= {
        "group negative": ({"masks.group": tensors["masks.group"] - 9}, {}),
        "boxes": ({"masks.boxes": tensors["masks.boxes"][:, :2]}, {}),
    }
    changes |= {
        "source_index": ({"source_index": tensors["source_index"][:, None]}, {}),
        "more": ({"more": torch.zeros(3)}, {}),
        "dense": ({"dense": torch.zeros(3)}, {}),
    }
    changes |= {
        "grid text": ({}, {"grid": "ab"}),
        "grid number": ({}, {"grid": 3}),
        "size zero": ({}, {"image_size": [0, 9]}),
    }
    changes |= {
        "size huge": ({}, {"image_size": [10**9, 10**9]}),
        "size text": ({}, {"image_size": ["a", "b"]}),
        "hard text": ({}, {"hard": "x"}),
    }
    changes |= {
        "mask_size negative": ({}, {"mask_size": [-4, 4]}),
        "scale text": ({}, {"logit_scale": "x"}),
        "scale null": ({}, {"logit_scale": None}),
    }
    changes |= {
        "group floats": ({"masks.group": tensors["masks.group"].float()}, {}),
        "one more meta": ({}, {"surprise": 1}),
    }
    for name, (new_tensors, new_meta) in changes.items():
        path = folder / f"{name.replace(' ', '_')}.tokens.safetensors"
        new = {key: value for key, value in (tensors | new_tensors).items() if value is not None}
        save_tensors(
            path,
            new,
            {key: value for key, value in (meta | new_meta).items() if value is not None or key == "logit_scale"},
        )
        expected = EITHER if "without" in name else (REFUSED,)  # what is missing may have a default
        yield Case("tokens", f"load {name}", None, loading(RegionTokens, path), expected)
    for name, text in {"no JSON": "{", "list": "[]", "number": "3", "null": "null"}.items():
        path = folder / f"meta_{name.replace(' ', '_')}.safetensors"
        write_atomically(path, save_bytes({"a": torch.zeros(1)}, metadata={"textregion": text}))
        yield Case("tokens", f"load meta {name}", None, loading(RegionTokens, path), (REFUSED,))
    for name in ("", ".", "/dev/zero", "x" * 300, "nul\0", str(folder)):
        yield Case("tokens", f"load {name[:20]!r}", None, loading(RegionTokens, Path(name)), (REFUSED,))


class Harmful:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def weights(folder: Path, image: Path) -> Iterator[Case]:
    """--sam2_checkpoint with damaged or foreign files."""
    data = SAM2_WEIGHTS.read_bytes()
    state = {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(3, 3)}
    files = {
        "cut.safetensors": data[:5000],
        "almost.safetensors": data[:-100],
        "empty.pt": b"",
        "text.pt": b"hello" * 99,
    }
    files |= {"pickle.pt": pickle.dumps(Harmful()), "cut_text.safetensors": b"{}" * 99, "list.pt": pickle.dumps([1, 2])}
    for name, content in files.items():
        write_atomically(folder / name, content)
    torch.save({"model": Harmful()}, folder / "code.pt")
    torch.save({"model": state}, folder / "other.pt")
    torch.save([1, 2], folder / "list2.pt")
    torch.save({"model": {}}, folder / "none.pt")
    cut = (folder / "other.pt").read_bytes()
    write_atomically(folder / "cut.pt", cut[: len(cut) // 2])
    base = ("--preset", "tiny", "--device", "cpu", "--image", str(image), "--labels", "sky", "--output", EARLIER)
    names = [*files, "code.pt", "other.pt", "list2.pt", "none.pt", "cut.pt", "absent.pt", "x" * 300, "nul\0", ""]
    for name in names:
        path = str(folder / name) if name else ""
        for model in ((), ("--model_cfg", str(SAM2_CONFIG))):
            command = (*base, "--sam2_checkpoint", path, *model)
            yield Case("weights", f"--sam2_checkpoint {name[:30]!r} {len(model)}", command, None, (REFUSED,))
    for name, text in {
        "words": "a b",
        "list": "[1]",
        "target": "model:\n  _target_: os.system\n  command: exit",
        "empty": "",
        "binary": "\0",
    }.items():
        write_atomically(path := folder / f"model_{name}.yaml", text.encode())
        command = (*base, "--model_cfg", str(path), "--sam2_checkpoint", str(SAM2_WEIGHTS))
        yield Case("weights", f"--model_cfg {name}", command, None, (REFUSED,))
    for flag in ("--clip_checkpoint", "--clip_download_root"):
        for name in ("other.pt", "absent", "/dev/zero", "x" * 300):
            command = (*base[:-1], OUTPUT, flag, str(folder / name), "--masks", "slic")
            yield Case("weights", f"{flag} {name[:30]}", command, None, EITHER)


def queries(folder: Path, image: Path) -> Iterator[Case]:
    """--image_query_cfg: wrong YAML, bombs, wrong types."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    right = {"list": f"{image}: [sky, grass]", "text": f"{image}: sky, grass", "beside": "scene.png: [sky]"}
    wrong = {
        "empty": "",
        "words": "a b c",
        "open": "[1, 2",
        "number": "3",
        "list of words": "- a\n- b",
        "null": f"{image}:",
    }
    wrong |= {
        "numbers": f"{image}: [1, 2]",
        "no labels": f"{image}: []",
        "blank": f"{image}: ['  ']",
        "nested": f"{image}: [[sky]]",
    }
    wrong |= {
        "bomb": bomb,
        "python": "!!python/object/apply:os.system ['exit 1']",
        "tabs": "\ta: [b]",
        "absent": "nowhere.png: [sky]",
    }
    wrong |= {
        "merge": "<<: 3",
        "date": "2001-01-01: [sky]",
        "deep": "[" * 5000,
        "anchors": "a: &x [*x]",
        "set": f"{image}: !!set {{sky}}",
    }
    wrong |= {
        "list key": "? [a, b]\n: [sky]",
        "control": f'{image}: ["a\\x07b"]',
        "empty text": f"{image}: ''",
        "only commas": f"{image}: ',,'",
    }
    for expected, group in ((WORKS, right), (REFUSED, wrong)):
        for name, text in group.items():
            write_atomically(path := folder / f"{name.replace(' ', '_')}.yaml", text.encode())
            command = (*FAST, "--image_query_cfg", str(path), "--output", OUTPUT)
            yield Case("YAML", f"--image_query_cfg {name}", command, None, (expected,))
    for name, content in {"utf16": "a: [b]".encode("utf-16"), "bytes": b"\xff\xff", "zeros": bytes(99)}.items():
        write_atomically(path := folder / f"{name}.yaml", content)
        yield Case(
            "YAML",
            f"--image_query_cfg {name}",
            (*FAST, "--image_query_cfg", str(path), "--output", EARLIER),
            None,
            (REFUSED,),
        )
    for name in ("absent.yaml", "", "/dev/zero", "x" * 300, str(folder), "nul\0"):
        yield Case(
            "YAML",
            f"--image_query_cfg {name[-20:]!r}",
            (*FAST, "--image_query_cfg", name, "--output", EARLIER),
            None,
            (REFUSED,),
        )


def label_lists(folder: Path, image: Path) -> Iterator[Case]:
    """--labels_file of every sort."""
    right = {
        "plain": b"sky\ngrass\n",
        "windows": b"sky\r\ngrass\r\n",
        "mark": b"\xef\xbb\xbfsky\n",
        "blank lines": b"\n\nsky\n\n",
    }
    wrong = {
        "empty": b"",
        "blank": b"\n \n",
        "bytes": b"\xff\xfe\x00",
        "zeros": bytes(99),
        "control": b"a\x1bb\n",
        "comments": b"# a\n",
    }
    for expected, group in ((WORKS, right), (REFUSED, wrong)):
        for name, content in group.items():
            write_atomically(path := folder / f"{name.replace(' ', '_')}.txt", content)
            command = (*FAST, "--image", str(image), "--labels_file", str(path), "--output", OUTPUT)
            yield Case("label lists", f"--labels_file {name}", command, None, (expected,))
    for name in ("absent.txt", "", "/dev/zero", "x" * 300, str(folder), "nul\0"):
        command = (*FAST, "--image", str(image), "--labels_file", name, "--output", EARLIER)
        yield Case("label lists", f"--labels_file {name[-20:]!r}", command, None, (REFUSED,))
