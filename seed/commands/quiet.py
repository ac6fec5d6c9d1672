"""Settings that keep libraries from printing what a user of the commands cannot act on."""

import os
import warnings


def hide_warnings() -> None:
    """
    Make libraries report only errors. Call this before they are imported, because they read these variables then.

    SEED's own modules tell the user what matters in errors and plain text, never in Python's warnings.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


def hide_progress_bars() -> None:
    """Hide the bars of loading weights and pipelines. Downloads from the Hub may take long and keep their bars."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    downloads_are_shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # this also hides the bars of downloads
    if downloads_are_shown:
        enable_progress_bars()
    diffusers_logging.disable_progress_bar()


__all__ = ["hide_progress_bars", "hide_warnings"]
