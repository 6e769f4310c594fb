"""SAM 3 asked with words: a labeller of its own beside region tokens, and which labels an image shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from cachetools import LRUCache
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.config import option
from textregion.devices import autocast, dtype_name, to_device
from textregion.errors import fraction
from textregion.images import ImageInput, load_image
from textregion.labels import LabelPrompts
from textregion.masks.base import Pixels, Size
from textregion.masks.hub import load_model, transformers_class
from textregion.runtime import Timer, enough_memory
from textregion.types import Segmentation

SAM3_CONCEPTS = "sam3-concepts"
LABELLERS = ("textregion", SAM3_CONCEPTS)  # what labels pixels by words: region tokens, or SAM 3 itself
REPOSITORY = "facebook/sam3"
WHAT = "the labeller sam3-concepts"
CONTEXT = 32  # positions of SAM 3's text tower
REMEMBERED_QUERIES = 2000  # 32 KB each
THRESHOLDS = ("score_thresh", "fallback_thresh")


@dataclass(frozen=True)
class ConceptAnswer:
    """What SAM 3 says of one query in one image, at its own resolution. presence: 0..1, whether it is there at all.

    scores: 0..1, of N possible instances, presence included. masks, semantic: logits of each instance and of the query
    as a whole.
    """

    presence: Float32[Tensor, ""]
    scores: Float32[Tensor, " N"]
    masks: Float32[Tensor, "N y x"]
    semantic: Float32[Tensor, "y x"]


@cache
def _word_pieces() -> Any:
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


def tokenize(queries: Sequence[str]) -> tuple[Int[Tensor, "Q n"], Bool[Tensor, "Q n"]]:
    """CLIP's word pieces as SAM 3 reads them, and which positions are words, start and end included."""
    ids = _word_pieces()(list(queries))
    ends = ids.argmax(1)  # the end of the text has the largest number
    return ids, torch.arange(ids.shape[1]) <= ends[:, None]


@dataclass(eq=False)
class ConceptLabeller:
    """Labels pixels by words with a Sam3Model of transformers, without region tokens; no training.

    The rule is SegEarth-OV3's (2512.08730), from its description. For a query q with presence p, instance scores s_i
    and the logits of instance masks m_i and of the semantic map m, both enlarged bilinearly to the image:

        P_q = p * max(max over i with s_i > score_thresh of s_i * sigmoid(m_i), sigmoid(m))

    where s_i = p * sigmoid(logit_i). A label has the largest P of its queries, a pixel the label with the largest, the
    first of equals; where that is below `fallback_thresh`, the first label.
    """

    model: nn.Module = field(repr=False)
    score_thresh: float = option(0.3, "0..1, instances that do not score above it are not looked at (t)")
    fallback_thresh: float = option(0.0, "0..1, pixels whose best label is below it get the first label (b); 0 is off")
    dtype: torch.dtype = option(torch.bfloat16, "autocast type on CUDA; a CPU always computes in float32")

    def __post_init__(self) -> None:
        for name in THRESHOLDS:
            fraction(name, getattr(self, name))
        self.model = self.model.eval().requires_grad_(False)
        side = self.model.config.vision_config.image_size
        size = {"height": side, "width": side}
        self._processor = transformers_class("Sam3ImageProcessor", WHAT)(size=size)
        self._words: LRUCache = LRUCache(REMEMBERED_QUERIES)
        self.timer = Timer(device=self.device)

    @classmethod
    def from_weights(
        cls, where: str | Path | None = None, root: str | Path | None = None, **options: Any
    ) -> "ConceptLabeller":
        """where: a folder in the hub's layout or the hub's "owner/name" (default facebook/sam3, gated).

        InputError: as of `masks.hub.load_model`.
        """
        return cls(load_model("Sam3Model", where or REPOSITORY, WHAT, root), **options)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "ConceptLabeller":
        """Move the model; returns self."""
        self.model.to(device)
        self._words.clear()
        self.timer.device = self.device
        return self

    def settings(self) -> dict[str, Any]:
        """All that decides the labels but image and words, as JSON has it, in the form of a segmenter's."""
        options = {name: getattr(self, name) for name in THRESHOLDS}
        dtype = "float32" if self.device.type == "cpu" else dtype_name(self.dtype)
        config = {"recipe": SAM3_CONCEPTS, **options}
        return {"backbone": SAM3_CONCEPTS, "device": self.device.type, "dtype": dtype, "config": config}

    @torch.inference_mode()
    def answers(self, image: Pixels, queries: Sequence[str]) -> Iterator[ConceptAnswer]:
        """What SAM 3 says of each query, one after the other; the image is encoded once.

        The model takes as many prompts as images, so that one image's features serve one query at a time.
        """
        with self.timer("encode"), autocast(self.device, self.dtype):
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
            seen = self.model.get_vision_features(to_device(pixels, self.device))
        for query in queries:
            with self.timer("concepts"), autocast(self.device, self.dtype):
                words, mask = self._encode(query)
                found = self.model(
                    vision_embeds=seen, text_embeds=SimpleNamespace(pooler_output=words), attention_mask=mask
                )
            presence = found.presence_logits[0, 0].float().sigmoid()
            scores = found.pred_logits[0].float().sigmoid() * presence
            yield ConceptAnswer(presence, scores, found.pred_masks[0].float(), found.semantic_seg[0, 0].float())

    def _encode(self, query: str) -> tuple[Float[Tensor, "1 n C"], Bool[Tensor, "1 n"]]:
        """A query's features, one a position, and which positions count; remembered."""
        if query not in self._words:
            ids, mask = (to_device(part, self.device) for part in tokenize([query]))
            self._words[query] = (self.model.get_text_features(ids, mask).pooler_output, mask)
        return self._words[query]

    def presence(self, image: ImageInput, queries: Sequence[str]) -> Float32[Tensor, " Q"]:
        """0..1 for each query: whether the image shows such a thing at all."""
        with enough_memory(self.device):
            return torch.stack([answer.presence for answer in self.answers(load_image(image), queries)])

    @torch.inference_mode()
    def segment(
        self,
        image: ImageInput,
        labels: "Sequence[str] | LabelPrompts",
        output_size: Size | None = None,
        return_probabilities: bool = False,
    ) -> Segmentation:
        """A label for every pixel. labels: words or phrases; synonyms of one label separated by ";".

        output_size: (H, W), default the image's own. The confidence is P; return_probabilities: keep every label's,
        (L, H, W). As there are no regions, `region_map` has each pixel's label, and -1 where `fallback_thresh` chose.
        Memory: three maps of the output's size, besides all labels' probabilities where they are asked for.
        """
        prompts, pixels = LabelPrompts.parse(labels), load_image(image)
        size = output_size or pixels.shape[:2]
        with enough_memory(self.device):
            best = torch.full(size, -1.0, device=self.device)
            label_map = torch.zeros(size, dtype=torch.long, device=self.device)
            shape = (len(prompts.names), *size) if return_probabilities else (0, 0, 0)
            every = torch.zeros(shape, device=self.device)
            for label, answer in zip(prompts.query_label, self.answers(pixels, prompts.queries), strict=True):
                with self.timer("postprocess"):
                    evidence = concept_evidence(answer, size, self.score_thresh)
                    label_map.masked_fill_(evidence > best, label)
                    best = torch.maximum(best, evidence)
                    if return_probabilities:
                        every[label] = torch.maximum(every[label], evidence)
            uncertain = best < self.fallback_thresh
            region_map = label_map.masked_fill(uncertain, -1)
            maps = (part.cpu().numpy() for part in (label_map.masked_fill(uncertain, 0), best, region_map))
            return Segmentation(*maps, prompts.names, every.cpu().numpy() if return_probabilities else None)


def concept_evidence(answer: ConceptAnswer, size: Size, score_thresh: float) -> Float32[Tensor, "H W"]:
    """P_q of `ConceptLabeller` at a size; one instance is enlarged at a time."""

    def enlarged(logits: Float32[Tensor, "y x"]) -> Float32[Tensor, "H W"]:
        return F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0].sigmoid()

    evidence = enlarged(answer.semantic)
    for i in (answer.scores > score_thresh).nonzero()[:, 0].tolist():
        evidence = torch.maximum(evidence, enlarged(answer.masks[i]) * answer.scores[i])
    return evidence * answer.presence


def labels_present(presence: Float32[Tensor, " Q"], prompts: LabelPrompts, threshold: float) -> list[int]:
    """Places of the labels that an image shows: one of their queries has a presence of at least `threshold`.

    The first label is always among them, as what has no other becomes it; where no label is there, all are.
    """
    found = (prompts.best_query(presence, 0) >= threshold).tolist()
    places = range(len(prompts.names))
    return [place for place in places if place == 0 or found[place]] if any(found) else list(places)
