"""Our implementation of ComfyUI's basic nodes with the same ids, so that the same workflow runs in both hosts."""

from typing import Any

from tops_workflow.core_nodes.composites import ImageCompositeMasked, MaskComposite
from tops_workflow.core_nodes.images import (
    ImageBatch,
    ImageCrop,
    ImageScale,
    LoadImage,
    LoadImageMask,
    PreviewImage,
    SaveImage,
)
from tops_workflow.core_nodes.masks import GrowMask, ImageToMask, InvertMask, MaskPreview, MaskToImage
from tops_workflow.core_nodes.values import (
    PreviewAny,
    PrimitiveBoolean,
    PrimitiveFloat,
    PrimitiveInt,
    PrimitiveString,
    PrimitiveStringMultiline,
    SaveText,
    StringConcatenate,
)
from tops_workflow.core_nodes.videos import CreateVideo, GetVideoComponents, LoadVideo, SaveVideo

_NODES: dict[str, tuple[type, str]] = {
    "LoadImage": (LoadImage, "Load Image"),
    "LoadImageMask": (LoadImageMask, "Load Image (as Mask)"),
    "PreviewImage": (PreviewImage, "Preview Image"),
    "SaveImage": (SaveImage, "Save Image"),
    "ImageBatch": (ImageBatch, "Batch Images"),
    "ImageScale": (ImageScale, "Upscale Image"),
    "ImageCrop": (ImageCrop, "Image Crop"),
    "MaskToImage": (MaskToImage, "Convert Mask to Image"),
    "ImageToMask": (ImageToMask, "Convert Image to Mask"),
    "InvertMask": (InvertMask, "Invert Mask"),
    "MaskPreview": (MaskPreview, "Preview Mask"),
    "GrowMask": (GrowMask, "Grow Mask"),
    "MaskComposite": (MaskComposite, "Combine Masks"),
    "ImageCompositeMasked": (ImageCompositeMasked, "Image Composite Masked"),
    "LoadVideo": (LoadVideo, "Load Video"),
    "CreateVideo": (CreateVideo, "Create Video"),
    "GetVideoComponents": (GetVideoComponents, "Get Video Components"),
    "SaveVideo": (SaveVideo, "Save Video"),
    "SaveText": (SaveText, "Save Text"),
    "PreviewAny": (PreviewAny, "Preview as Text"),
    "PrimitiveString": (PrimitiveString, "String"),
    "PrimitiveStringMultiline": (PrimitiveStringMultiline, "String (Multiline)"),
    "PrimitiveInt": (PrimitiveInt, "Int"),
    "PrimitiveFloat": (PrimitiveFloat, "Float"),
    "PrimitiveBoolean": (PrimitiveBoolean, "Boolean"),
    "StringConcatenate": (StringConcatenate, "Concatenate"),
}

CORE_NODES: dict[str, Any] = {node_id: node for node_id, (node, _) in _NODES.items()}
CORE_TITLES: dict[str, str] = {node_id: title for node_id, (_, title) in _NODES.items()}
