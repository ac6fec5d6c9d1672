"""
transformers' task pipelines for SEED.

"text-to-image" is made here. "image-text-to-text" (captions and answers) and "any-to-any" are transformers' own: they
find SEED's language models and processor by the Auto classes.
"""

import contextlib
from pathlib import Path

import torch
from transformers import Pipeline

from .files_seed import replacing
from .pipeline_seed import SETTINGS, SeedPipeline
from .repository_seed import push_folder


class SeedTextToImagePipeline(Pipeline):
    """
    The pipeline of `pipeline("text-to-image", model=...)`, which takes words and returns PIL images.

    The language model writes codes, and the repository's Stable Diffusion decoder draws them. The [`SeedPipeline`] that
    does this work is `pipe.drawer`, which is loaded with the first drawing.

    Args:
        decoder: a Stable Diffusion 1.x folder or Hub id to use instead of the one that the repository names, or a
            whole [`SeedPipeline`] to share.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, *args, decoder: str | Path | SeedPipeline | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("This pipeline needs a SeedProcessor: pass processor=, or name a repository as model=.")
        self.processor.check_language_model(self.model)
        self._decoder = decoder
        self._drawer: SeedPipeline | None = None

    @property
    def drawer(self) -> SeedPipeline:
        """The [`SeedPipeline`] that draws. Its scheduler and other parts may be changed."""
        if self._drawer is None:
            drawer = self._decoder if isinstance(self._decoder, SeedPipeline) else self._load_drawer()
            # The language model is left out of the move, because it may be spread over several devices.
            drawer = _exchange(drawer, language_model=None, processor=None).to(self.device)
            self._drawer = _exchange(drawer, language_model=self.model, processor=self.processor)
        return self._drawer

    def _load_drawer(self) -> SeedPipeline:
        repository = self.processor.repository
        name = repository.name if repository else self.model.name_or_path
        if not name:
            raise ValueError(
                "This pipeline's parts come from no repository, so it has nothing to draw with: pass decoder=, a "
                "SeedPipeline."
            )
        options = repository.hub_options if repository else {}
        return SeedPipeline.from_pretrained(name, decoder=self._decoder, dtype=self.model.dtype, **options)

    def __call__(self, inputs: str | list[str], **kwargs):
        """
        Draw prompts.

        Args:
            inputs: a caption, or a list, dataset or generator of them; "" draws unconditionally.
            num_images_per_prompt: the number of drawings per caption (1 by default).
            num_inference_steps, guidance_scale: the steps and the guidance of diffusion; the repository's settings by
                default.
            token_guidance_scale, token_temperature: the guidance and the temperature at which the language model
                writes codes; the repository's settings by default.
            seed: makes drawings repeatable, and independent of the batch they are made in: image k of any caption
                starts from `seed + k`.
            generator: a `torch.Generator` instead of `seed`, or for a single caption a list with one per image.
            height, width: the size of the drawings in pixels.
            progress: show the progress bar of diffusion (True by default).
            generate_kwargs: arguments of the language model's `generate`, such as `{"do_sample": True, "top_k": 50}`.
            batch_size: the number of captions that are drawn at once (1 by default).

        Returns:
            A PIL image per caption, or a list of them where `num_images_per_prompt` is more than 1.
        """
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        num_images_per_prompt: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        token_guidance_scale: float | None = None,
        token_temperature: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: bool | None = None,
        generate_kwargs: dict | None = None,
    ) -> tuple[dict, dict, dict]:
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        if "seed" in given and "generator" in given:
            raise ValueError("Pass either seed or generator, not both.")
        single = {"single": num_images_per_prompt == 1} if num_images_per_prompt is not None else {}
        return {}, given, single

    def preprocess(self, prompt: str) -> dict[str, str]:
        if not isinstance(prompt, str):
            raise TypeError(f"The prompt is a {type(prompt).__name__}; expected a text or a list of texts.")
        return {"prompt": prompt}

    def _forward(
        self,
        model_inputs: dict,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        progress: bool = True,
        **drawing,
    ) -> dict[str, list]:
        prompts = model_inputs["prompt"]
        batched = not isinstance(prompts, str)
        count = len(prompts) if batched else 1
        if seed is not None:
            drawing["generator"] = [
                torch.Generator().manual_seed(seed + image)
                for _ in range(count)
                for image in range(num_images_per_prompt)
            ]
        self.drawer.set_progress_bar_config(disable=not progress)
        images = self.drawer(prompt=prompts, num_images_per_prompt=num_images_per_prompt, **drawing).images
        if not batched:
            return {"images": images}
        return {"images": [images[row * num_images_per_prompt :][:num_images_per_prompt] for row in range(count)]}

    def postprocess(self, model_outputs: dict[str, list], single: bool = True):
        return model_outputs["images"][0] if single else model_outputs["images"]

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """
        Save a whole repository: language model, processor, image tokenizer, decoder, and the code of all of them.

        So `pipeline("text-to-image", model=save_directory, trust_remote_code=True)` works without this package.

        Args:
            kwargs: arguments of the language model's `save_pretrained` (`max_shard_size`).

        Raises:
            ValueError: the language model was trained with another image tokenizer, or one of other precision;
                `push_to_hub` is asked for.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Save first, then push with pipe.push_to_hub(repo_id).")
        root = Path(save_directory)
        self.drawer.check_image_tokenizer_hash(root)
        with _naming_code(self.model, self.processor):
            with replacing(root) as partial:
                super().save_pretrained(partial, **kwargs)
            self.processor.save_pretrained(root)
        _exchange(self.drawer, language_model=None, processor=None).save_pretrained(root)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload SeedTextToImagePipeline", **options) -> str:
        """
        Upload what `save_pretrained` saves, a whole repository.

        Args:
            options: `commit_description`, `private`, `token`, `revision` and `create_pr`, as in transformers.

        Returns:
            The address of the commit.
        """
        return push_folder(self.save_pretrained, repo_id, commit_message=commit_message, **options)


def _exchange(drawer: SeedPipeline, **parts) -> SeedPipeline:
    """Return a pipeline of the same repository and parts, except those that are given."""
    settings = {name: drawer.config[name] for name in SETTINGS}
    other = SeedPipeline(**drawer.components | parts, **settings)
    other._source = drawer._source
    return other


@contextlib.contextmanager
def _naming_code(model, processor):
    """Let the configurations name the files of their classes while they are saved, for `trust_remote_code` to load."""

    def reference(part) -> str:
        cls = part if isinstance(part, type) else type(part)
        return f"{cls.__module__.split('.')[-1]}.{cls.__name__}"

    autos = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    auto_maps = [
        (model.config, {"AutoConfig": reference(model.config)} | dict.fromkeys(autos, reference(model))),
        (processor, {"AutoProcessor": reference(processor)}),
        (processor.image_processor, {"AutoImageProcessor": reference(processor.image_processor)}),
    ]
    before = [part.__dict__.get("auto_map") for part, _ in auto_maps]
    for part, auto_map in auto_maps:
        part.auto_map = auto_map
    try:
        yield
    finally:
        for (part, _), earlier in zip(auto_maps, before):
            if earlier is None:
                del part.auto_map
            else:
                part.auto_map = earlier
        model.config.__dict__.pop("custom_pipelines", None)


__all__ = ["SeedTextToImagePipeline"]
