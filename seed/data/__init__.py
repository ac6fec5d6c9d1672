"""Image-text data: opening pictures, one schema for pairs, codes and questions."""

# The commands check their pictures before they import torch, so nothing that is imported here may need it.
from .image_text import SkipReport, iter_valid, load_image_text
from .image_text_sources import SchemaError
from .images import InvalidImageError, list_images, load_image, shipped_pictures

__all__ = [
    "InvalidImageError",
    "SchemaError",
    "SkipReport",
    "iter_valid",
    "list_images",
    "load_image",
    "load_image_text",
    "shipped_pictures",
]
