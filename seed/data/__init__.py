"""Image-text data: opening pictures, loading pairs in one schema, and files of codes and of questions."""

# The commands check their pictures before they import torch, so no module that is imported here may import it.
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
