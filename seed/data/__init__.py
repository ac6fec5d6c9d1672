"""Image-text data: opening pictures, one schema for pairs, codes and questions."""

from .image_text import SkipReport, iter_valid, load_image_text
from .image_text_sources import SchemaError
from .images import InvalidImageError, list_images, load_image

__all__ = [
    "InvalidImageError",
    "SchemaError",
    "SkipReport",
    "iter_valid",
    "list_images",
    "load_image",
    "load_image_text",
]
