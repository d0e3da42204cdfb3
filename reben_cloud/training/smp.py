"""Architectures of segmentation_models_pytorch, for maps: ``smp:DECODER:ENCODER``, such as ``smp:FPN:resnet34``.

Only their making is theirs; weights to begin with, freezing and all else go the ways of `Segmenter`.
"""

from __future__ import annotations

from types import ModuleType

from reben_cloud.errors import missing_extra
from reben_cloud.training.unet import Segmenter

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

_PREFIX = "smp:"
_TRIED_PX = 128
"""Of an image that every decoder takes: PAN's halves the coarsest features twice more."""


def is_smp(architecture: str) -> bool:
    """Whether the name of an architecture is one of segmentation_models_pytorch."""
    return architecture.startswith(_PREFIX)


def smp_version() -> str:
    """The release that is installed.

    Raises:
        MissingExtraError: If none is.
    """
    return str(_library().__version__)


def make_smp(architecture: str, *, in_chans: int, num_classes: int) -> SmpSegmenter:
    """A model with weights at random; nothing is downloaded.

    Args:
        architecture: ``smp:DECODER:ENCODER``; an encoder of timm's is written ``tu-NAME``, as they do.
        in_chans: Bands.
        num_classes: Logits of a pixel.

    Raises:
        MissingExtraError: If segmentation_models_pytorch is not installed.
        ValueError: If it has no such decoder or encoder, or the two do not fit each other.
    """
    smp = _library()
    decoder, _, encoder = architecture.removeprefix(_PREFIX).partition(":")
    known = {one.__name__: one for one in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if decoder not in known or not encoder:
        raise ValueError(
            f"architecture: {architecture!r} must be smp:DECODER:ENCODER, such as smp:FPN:resnet34; decoders of "
            f"segmentation_models_pytorch {smp.__version__} are {', '.join(sorted(known))}"
        )
    # Its images are of the size that its transformer was made for, unless it is told that they may be of others.
    options = {"dynamic_img_size": True} if decoder == "DPT" else {}
    try:
        made = known[decoder](
            encoder_name=encoder, encoder_weights=None, in_channels=in_chans, classes=num_classes, **options
        )
    except (KeyError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        cause = str(error.args[0] if error.args else error).split(", supported encoders")[0]
        raise ValueError(
            f"architecture: segmentation_models_pytorch {smp.__version__} cannot make {architecture}: {cause}; an "
            "encoder of timm's is written tu-NAME"
        ) from error
    model = SmpSegmenter(made)
    _freeze_unused(model, in_chans)
    return model


def _freeze_unused(model: SmpSegmenter, in_chans: int) -> None:
    """Take weights that no map depends on from learning: several processes would wait for their gradients.

    PSPNet stops at the third stage of an encoder, which may have all five.
    """
    was_training = model.training
    model.eval()
    model(torch.zeros(1, in_chans, _TRIED_PX, _TRIED_PX)).sum().backward()
    for weights in model.parameters():
        weights.requires_grad_(weights.grad is not None)
        weights.grad = None
    model.train(was_training)


def _library() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise missing_extra("segmentation_models_pytorch", "smp") from error
    module: ModuleType = segmentation_models_pytorch
    return module


class SmpSegmenter(Segmenter):
    """One of their models, for images of any size: they take those that are a multiple of the coarsest stride.

    An image is mirrored at its lower and right edges up to such a size (120 px to 128), and the map is cut to its own.

    Args:
        made: With the attributes that all of their models have.
    """

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.encoder = made.encoder  # type: ignore[assignment]
        self.decoder: nn.Module = made.decoder  # type: ignore[assignment]
        self.head = made.segmentation_head  # type: ignore[assignment]
        self._stride = int(made.encoder.output_stride)  # type: ignore[union-attr, arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel.

        Args:
            image: float32 (batch, band, y, x).

        Returns:
            float32 (batch, num_classes, y, x).
        """
        found = self.encoder(self._padded(image))
        # With DPT's come the tokens that are of no place.
        decoded = self.decoder(*found) if isinstance(found, tuple) else self.decoder(found)
        logits: Tensor = self.head(decoded)
        height, width = image.shape[-2:]
        return logits[..., :height, :width]

    def coarsest(self, image: Tensor) -> Tensor:
        """The encoder's coarsest features, (batch, channel, y, x)."""
        found = self.encoder(self._padded(image))
        features: Tensor = (found[0] if isinstance(found, tuple) else found)[-1]
        return features

    def _padded(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        below, right = -height % self._stride, -width % self._stride
        # Half a stride and less is too small to be mirrored: there the last pixels go on.
        mode = "reflect" if below < height and right < width else "replicate"
        return functional.pad(image, (0, right, 0, below), mode=mode) if below or right else image
