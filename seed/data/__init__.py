"""Image-text data: opening pictures, one schema for pairs, and the emoji set's builder."""

from .images import InvalidImageError, list_images, load_image

__all__ = ["InvalidImageError", "list_images", "load_image"]
