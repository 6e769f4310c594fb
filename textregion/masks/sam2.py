"""Automatic masks of SAM 2.1, by a model of the `sam2` package (method 9)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from textregion.config import option
from textregion.devices import autocast
from textregion.errors import one_of
from textregion.masks.base import Pixels, Size, register_mask_source
from textregion.masks.click_decoder import SharedImageDecoder
from textregion.masks.clicks import NOTHING_FILTERED, ClickMaskGenerator, Decoded, ImageFeatures, limited
from textregion.runtime import compile_backend

DECODERS = ("shared", "sam2")
UPSCALED_AT_ONCE = 1  # prompts, on a CPU: their maps stay near its caches


@register_mask_source("sam2", needs="a SAM 2 model of the sam2 package")
@dataclass(eq=False)
class Sam2MaskGenerator(ClickMaskGenerator):
    """Proposes regions with a SAM 2 model of the `sam2` package."""

    decoder: str = option(
        "shared",
        "shared: the mask decoder's function with what all clicks share computed once, about twice as fast; sam2: the "
        "package's own, for models that are built otherwise. Equal up to rounding",
        choices=DECODERS,
    )
    compile: bool | str = option(
        False,
        "torch.compile of image encoder and, with decoder sam2, mask decoder, for the shapes they meet; the first "
        "image then takes minutes. Rounding changes with it, so in some images other masks survive: leave it off to "
        "reproduce benchmarks. True, False, or a torch.compile backend by name",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("decoder", self.decoder, DECODERS)
        self._shared = SharedImageDecoder(self.model) if self.decoder == "shared" else None
        wanted, self.compile = self.compile, ""
        self.compile_model(wanted)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "Sam2MaskGenerator":
        """Four clicks, nothing filtered."""
        return cls(sam2, 2, **NOTHING_FILTERED)

    def compile_model(self, compile: bool | str) -> None:
        """Compile image encoder and sam2's mask decoder in place, unless False; see the option of that name."""
        backend = compile_backend(compile)
        if backend is not None:
            self.compile = backend
            for module in (self.model.image_encoder, self.model.sam_mask_decoder):
                module.compile(backend=backend, dynamic=False)

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the model sees."""
        return self.model.image_size

    @property
    def low_res_side(self) -> int:
        """Side of the masks that the decoder gives."""
        return 4 * self.model.image_size // self.model.backbone_stride

    def encode(self, image: Pixels) -> ImageFeatures:
        """The image squashed to SAM 2's input (bilinear, no antialias), normalised, encoded (method 9.1)."""
        with autocast(self.device, self.dtype):
            *high_resolution, embedding = self.model.forward_image(self.pixels(image))["backbone_fpn"]
            if self.model.directly_add_no_mem_embed:
                embedding = embedding + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        return ImageFeatures(embedding, high_resolution)

    def answering(self, features: ImageFeatures) -> Callable[[Tensor, Tensor, bool], Decoded]:
        """The prompt encoder and one of the two decoders."""
        ask = self._ask_package if self._shared is None else self._ask_shared(features, self._shared)

        def answer(points: Tensor, labels: Tensor, multimask_output: bool) -> Decoded:
            prompts = self.model.sam_prompt_encoder((points, labels), None, None)
            return ask(features, prompts, multimask_output)

        return answer

    def _ask_shared(self, features: ImageFeatures, decoder: SharedImageDecoder) -> Callable[..., Decoded]:
        """`SharedImageDecoder` for all prompts on one image."""
        with autocast(self.device, self.dtype):
            image = decoder.image(features.embedding, features.high_resolution)
        at_once = UPSCALED_AT_ONCE if self.device.type == "cpu" else self.points_per_batch

        def ask(_features: ImageFeatures, prompts: tuple[Tensor, Tensor], multimask_output: bool) -> Decoded:
            attended = decoder.attend(image, prompts[0])

            def logits(chosen: Int[Tensor, " k"]) -> Float[Tensor, "k M h w"]:
                parts = chosen.split(at_once)
                masks = (decoder.masks(image, attended.take(part), multimask_output) for part in parts)
                return torch.cat([limited(part) for part in masks])

            tokens = decoder.mask_tokens(attended, multimask_output)
            return Decoded(decoder.predicted_iou(attended, multimask_output).float(), tokens.float(), logits)

        return ask

    def _ask_package(self, features: ImageFeatures, prompts: tuple[Tensor, Tensor], multimask_output: bool) -> Decoded:
        """The package's own decoder."""
        masks, predicted_iou, tokens, _ = self.model.sam_mask_decoder(
            image_embeddings=features.embedding,
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[0],
            dense_prompt_embeddings=prompts[1],
            multimask_output=multimask_output,
            repeat_image=True,
            high_res_features=features.high_resolution,
        )
        return Decoded(predicted_iou.float(), tokens.float(), limited(masks).__getitem__)
