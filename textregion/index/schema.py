"""What the tables of a region index hold: their columns, and what is said of the models that made them.

An index is a folder (or a URI) of three Lance tables: `regions`, one row a region; `images`, one row an image, which is
the journal; `state`, one row that says which versions of the two belong together.
"""

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from textregion import __version__
from textregion.config import MEMORY_OPTIONS, SegmenterConfig, fingerprint
from textregion.errors import InputError, needs
from textregion.pooling import PoolingRecipe

if TYPE_CHECKING:
    import pyarrow as pa

    from textregion.segmenter import TextRegionSegmenter

FORMAT = 1  # of the tables; another one is refused
META = b"textregion"  # key of the schema's metadata
TOKEN = "token"  # the column of the backbone that made the table; a second one's is token_NAME
PROBE = "a photo that nobody took"  # every model says something else of it
ALIKE = 0.995  # least cosine of the probe's embeddings by the same weights, in whatever precision
MACHINE = ("device", "dtype")  # settings that change only the last digits
KEY = "token_key_"  # a column of keys of a vision tower, whose name follows
DONE, UNREADABLE = "done", "unreadable"
IMAGE_COLUMNS = ("image", "image_hash", "stamp", "width", "height", "regions", "status", "reason")


@dataclass(frozen=True)
class Encoder:
    """What made a column of tokens.

    preset, options: what builds the segmenter again (paths of weights are the machine's matter and not among them).
    settings: all that decides its results, without device and precision; fingerprint: of them. width: D.
    probe: the embedding of PROBE, which tells other weights under the same name.
    """

    preset: str
    options: dict[str, Any]
    settings: dict[str, Any]
    fingerprint: str
    backbone: str
    recipe: str
    width: int
    logit_scale: float
    logit_bias: float
    probe: str

    @classmethod
    def of(cls, segmenter: "TextRegionSegmenter", preset: str, options: dict[str, Any]) -> "Encoder":
        """Of a segmenter that was built from a preset with these options."""
        settings = {key: value for key, value in segmenter.settings().items() if key not in MACHINE}
        config = settings["config"]
        settings["config"] = {name: value for name, value in config.items() if name not in MEMORY_OPTIONS}
        backbone = segmenter.backbone
        probe = segmenter.encode_text([PROBE])[0].float().cpu().numpy().astype(np.float16)
        return cls(
            preset,
            json.loads(json.dumps(options)),
            settings,
            fingerprint(settings),
            backbone.name,
            segmenter.config.recipe.name,
            backbone.width,
            float(backbone.logit_scale),
            float(backbone.logit_bias),
            base64.b64encode(probe.tobytes()).decode(),
        )

    @property
    def embedding(self) -> Float32[np.ndarray, " D"]:
        """The probe as numbers."""
        return np.frombuffer(base64.b64decode(self.probe), np.float16).astype(np.float32)

    def check_words(self, segmenter: "TextRegionSegmenter", where: str) -> None:
        """InputError when the segmenter's words are not comparable with this column's tokens."""
        found, there = segmenter.encode_text([PROBE])[0].float().cpu().numpy(), self.embedding
        if found.shape != there.shape or float(found @ there) < ALIKE * np.linalg.norm(there):
            here = segmenter.backbone.name
            raise InputError(
                f"{where} was made by {self.backbone} (preset {self.preset}) with other weights than {here} has here; "
                "give those, or make a new table"
            )

    def check_same(self, other: "Encoder", where: str) -> None:
        """InputError when images encoded by the other would not be comparable: it names what differs."""
        if other._flat() != self._flat():
            pairs = {**self._flat(), **{key: value for key, value in other._flat().items() if key not in self._flat()}}
            differ = [key for key in pairs if self._flat().get(key) != other._flat().get(key)]
            told = ", ".join(
                f"{key} {self._flat().get(key)} there, {other._flat().get(key)} here" for key in differ[:3]
            )
            raise InputError(f"{where} was made with other settings ({told}); leave them out, or make a new table")

    def _flat(self) -> dict[str, Any]:
        """All settings by name; an option that is younger than the table has its default there."""
        config = {name: value for name, value in asdict(SegmenterConfig()).items() if name not in MEMORY_OPTIONS}
        config |= self.settings["config"]
        config["recipe"] = asdict(PoolingRecipe(**config["recipe"]))
        flat = {"backbone": self.settings["backbone"], **json.loads(json.dumps(config))}
        return {**flat, **{f"masks.{key}": value for key, value in self.settings["masks"].items()}}


@dataclass(frozen=True)
class KeyRecord:
    """What a table says of a column of keys. name: of timm's tower; weights: hash of what it learned; width: C."""

    name: str
    weights: str
    width: int


@dataclass(frozen=True)
class Meta:
    """What the schema's metadata say. encoders, keys: by the name of the column they made."""

    encoders: dict[str, Encoder]
    format: int = FORMAT
    version: str = __version__
    keys: dict[str, KeyRecord] = field(default_factory=dict)

    def key_column(self, tower: str, where: str) -> str:
        """The column of a tower's keys. InputError when there is none."""
        found = [column for column, record in self.keys.items() if record.name == tower]
        if not found:
            there = ", ".join(record.name for record in self.keys.values()) or "no tower"
            raise InputError(
                f"{where} has keys of {there}, not of {tower}: textregion index --to {where} --add_keys {tower}"
            )
        return found[0]

    def pack(self) -> dict[bytes, bytes]:
        """As metadata of a schema."""
        return {META: json.dumps(asdict(self)).encode()}

    @classmethod
    def unpack(cls, metadata: dict[bytes, bytes] | None, where: str) -> "Meta":
        """From a schema's metadata; InputError when a table is none of ours, or of another format."""
        try:
            content = json.loads((metadata or {})[META])
            if content["format"] != FORMAT:
                raise InputError(f"{where} has format {content['format']}, expected {FORMAT}; index the images anew")
            encoders = {name: Encoder(**encoder) for name, encoder in content["encoders"].items()}
            if TOKEN not in encoders:
                raise KeyError(TOKEN)
            keys = {name: KeyRecord(**record) for name, record in content.get("keys", {}).items()}
            return cls(encoders, content["format"], str(content["version"]), keys)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{where} is not a region index (its metadata: {error!r}); index the images anew"
            ) from error


def arrow() -> Any:
    """pyarrow, once it is needed. InputError with the command that installs it."""
    with needs("the region index", layer="search", extra="search"):
        import pyarrow
    return pyarrow


def mask_type() -> "pa.DataType":
    """A COCO run-length code at the masks' own low resolution."""
    pa = arrow()
    return pa.struct([("height", pa.int32()), ("width", pa.int32()), ("counts", pa.binary())])


def region_schema(meta: Meta) -> "pa.Schema":
    """Columns of `regions`: box in pixels, xyxy, end-exclusive; area as share of the image; token of unit length."""
    pa = arrow()
    fields = [
        *(pa.field("image", pa.string()), pa.field("image_hash", pa.string()), pa.field("region", pa.int32())),
        *(pa.field("box", pa.list_(pa.float32(), 4)), pa.field("area", pa.float32()), pa.field("mask", mask_type())),
        *(pa.field("predicted_iou", pa.float32()), pa.field("stability", pa.float32())),
        pa.field(TOKEN, pa.list_(pa.float16(), meta.encoders[TOKEN].width)),
    ]
    return pa.schema(fields, metadata=meta.pack())


def image_schema() -> "pa.Schema":
    """Columns of `images`. stamp: size and time of change of the file, so that a rerun reads only what may differ."""
    pa = arrow()
    kinds = {"width": pa.int32(), "height": pa.int32(), "regions": pa.int32()}
    return pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in IMAGE_COLUMNS])


def token_array(tokens: Float[np.ndarray, "R D"]) -> "pa.FixedSizeListArray":
    """Vectors as a column of half-precision numbers."""
    pa = arrow()
    return pa.FixedSizeListArray.from_arrays(pa.array(tokens.astype(np.float16).ravel()), tokens.shape[1])


@dataclass(frozen=True)
class Regions:
    """The regions of one image as columns, and its row of the journal.

    rows: columns of `regions` by name, without image and image_hash; None for an image that has none. A plain object
    of numpy arrays and lists, for it travels between processes.
    """

    image: str
    image_hash: str
    stamp: str
    width: int = 0
    height: int = 0
    status: str = DONE
    reason: str = ""
    rows: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows.get("region", ()))
