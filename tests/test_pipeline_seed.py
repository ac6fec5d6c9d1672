"""The pipeline: images or codes in, images out, equal to what stock Stable Diffusion draws from the same features."""

import copy
import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_repository import SIZE, make_seed_model, make_seed_pipeline, make_stable_diffusion, pictures

from seed import SeedImageProcessorPil, SeedModel, SeedPipeline, repository_seed
from seed.repository_seed import SeedRepository


@pytest.fixture(scope="module")
def pipeline():
    pipeline = make_seed_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def codes():
    return torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(3))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipeline, **inputs) -> np.ndarray:
    return pipeline(output_type="np", **({"generator": generators(0)[0]} | inputs)).images


def test_images_are_drawn_from_their_codes(pipeline):
    images = pictures(2)
    pixels = pipeline.image_processor(images, return_tensors="pt")["pixel_values"]
    codes = pipeline.image_tokenizer.get_image_tokens(pixels)
    output = pipeline(images, generator=generators(0)[0])
    assert torch.equal(output.codes, codes) and not torch.equal(codes[0], codes[1])
    assert [image.size for image in output.images] == [(SIZE, SIZE)] * 2
    from_codes = draw(pipeline, codes=codes)
    assert np.array_equal(np.asarray(output.images[0]), (from_codes[0] * 255).round().astype(np.uint8))
    drawn, same_codes = pipeline(codes=codes, generator=generators(0)[0], return_dict=False)
    assert drawn[0].size == (SIZE, SIZE) and torch.equal(same_codes, codes)


def test_stock_stable_diffusion_draws_the_same_from_our_embeddings(pipeline, codes):
    stock = StableDiffusionPipeline(
        vae=pipeline.vae,
        text_encoder=None,
        tokenizer=None,
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    embeds = pipeline.image_tokenizer.decode_image_tokens(codes).detach()
    empty = pipeline.image_tokenizer.empty_prompt_embeds.expand(len(codes), -1, -1)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}
    expected = stock(prompt_embeds=embeds, negative_prompt_embeds=empty, generator=generators(0)[0], **options).images
    ours = pipeline(codes=codes, generator=generators(0)[0], **options).images
    assert np.array_equal(ours, expected)
    assert not np.allclose(ours, draw(pipeline, codes=codes, num_inference_steps=3, guidance_scale=1.0), atol=1e-4)


def test_same_generator_same_drawing_and_a_list_makes_it_independent_of_the_batch(pipeline, codes):
    first = draw(pipeline, codes=codes)
    assert np.array_equal(first, draw(pipeline, codes=codes))
    assert not np.allclose(first, draw(pipeline, codes=codes, generator=generators(1)[0]), atol=1e-3)
    together = draw(pipeline, codes=codes, generator=generators(5, 6, 7))
    alone = draw(pipeline, codes=codes[1:2], generator=generators(6))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_prefix_lengths(pipeline, codes):
    changed = codes.clone()
    changed[:, 4:] = (changed[:, 4:] + 7) % 64
    of_four = draw(pipeline, codes=codes, prefix_length=4)
    assert np.array_equal(of_four, draw(pipeline, codes=changed, prefix_length=4))
    for lengths in (torch.tensor([4] * len(codes)), np.full(len(codes), 4)):
        embeds = pipeline.encode_codes(codes, lengths)
        torch.testing.assert_close(embeds, pipeline.encode_codes(codes, 4))
    with pytest.raises(TypeError, match="list"):
        pipeline.encode_codes(codes, [[4]] * len(codes))
    assert not np.allclose(of_four, draw(pipeline, codes=codes), atol=1e-4)
    # One per row is the same as one after the other.
    mixed = pipeline.encode_codes(codes, [8, 1, 8])
    for row, length in enumerate([8, 1, 8]):
        alone = pipeline.image_tokenizer.decode_image_tokens(codes[row : row + 1], length)
        torch.testing.assert_close(mixed[row], alone[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 prefix lengths for 3 rows"):
        pipeline.encode_codes(codes, [1, 2])
    with pytest.raises(ValueError, match="prefix_length is 33; expected 1 .. 32"):
        pipeline(codes=codes, prefix_length=33)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler(scheduler, codes):
    pipeline = make_seed_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    usual = draw(pipeline, codes=codes[:1])
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    drawn = draw(pipeline, codes=codes[:1])
    assert np.isfinite(drawn).all() and not np.allclose(drawn, usual, atol=1e-4)
    assert np.array_equal(drawn, draw(pipeline, codes=codes[:1]))


def test_sizes_counts_latents_callbacks(pipeline, codes):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        return tensors

    latents = torch.randn(6, 4, 16, 12, generator=generators(0)[0])
    images = pipeline(
        codes=codes,
        latents=latents,
        height=32,
        width=24,
        num_images_per_prompt=2,
        num_inference_steps=3,
        callback_on_step_end=callback,
        output_type="pil",
    ).images
    assert len(images) == 6 and images[0].size == (24, 32) and steps == [0, 1, 2]


def test_bad_inputs_say_what_to_do(pipeline, codes):
    with pytest.raises(ValueError, match="either images .* or codes"):
        pipeline()
    with pytest.raises(ValueError, match="either images .* or codes"):
        pipeline(pictures(1), codes=codes)
    with pytest.raises(ValueError, match=r"codes have shape \(3, 31\); expected \(batch, 32\)"):
        pipeline(codes=codes[:, :31])
    with pytest.raises(ValueError, match="Code 64 is out of range; this codebook has codes 0 .. 63"):
        pipeline(codes=codes.index_fill(1, torch.tensor(5), 64))
    with pytest.raises(TypeError, match="Codes have dtype torch.float32; expected integers"):
        pipeline(codes=codes.float())
    with pytest.raises(TypeError, match="Unknown argument 'seed'.*generator=torch.Generator"):
        pipeline(codes=codes, seed=3)
    with pytest.raises(TypeError, match="Unknown argument 'guidance_scales'"):
        pipeline(codes=codes, guidance_scales=3)
    for name in ("num_images_per_prompt", "num_inference_steps"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
            pipeline(codes=codes, **{name: 0})
    with pytest.raises(TypeError, match="prefix_length is True"):
        pipeline(codes=codes, prefix_length=True)
    assert torch.equal(pipeline.encode_codes(codes, np.int64(3)), pipeline.encode_codes(codes, 3))
    with pytest.raises(ValueError, match="values begin at -1; expected 0 .. 1"):
        pipeline.tokenize_images(torch.linspace(-1, 1, 3 * 28 * 28).reshape(3, 28, 28))
    with pytest.raises(ValueError, match="Incorrect image source.* Got nope.png"):
        pipeline.tokenize_images("nope.png")


def test_a_unet_of_another_width_is_refused():
    decoder, model = make_stable_diffusion(width=24), make_seed_model()
    with pytest.raises(ValueError, match="text features of width 24, .* generation embeddings have width 40"):
        SeedPipeline(model, decoder.unet, decoder.vae, decoder.scheduler, SeedImageProcessorPil())


def test_saves_and_loads_in_the_layout_of_the_house(seed_repository, codes):
    assert sorted(path.name for path in seed_repository.iterdir()) == [
        "decoder",
        "image_tokenizer",
        "processor_config.json",
    ]
    original, loaded = make_seed_pipeline(), SeedPipeline.from_pretrained(seed_repository)
    assert loaded.config.guidance_scale == 3.0 and loaded.config.num_inference_steps == 2
    assert type(loaded.scheduler) is type(original.scheduler) and loaded.text_encoder is None
    assert np.array_equal(draw(original, codes=codes), draw(loaded, codes=codes))
    images = pictures(2)
    assert torch.equal(original.tokenize_images(images), loaded.tokenize_images(images))
    assert SeedPipeline.from_pretrained(seed_repository, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_text_encoder_stands_in_for_a_missing_empty_prompt(tmp_path, codes):
    """A plain image tokenizer and a stock Stable Diffusion folder, named separately."""
    decoder, model = make_stable_diffusion(), make_seed_model()
    decoder.save_pretrained(tmp_path / "sd")
    model.save_pretrained(tmp_path / "tokenizer")
    SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match="pass decoder="):
        SeedPipeline.from_pretrained(tmp_path / "tokenizer")
    pipeline = SeedPipeline.from_pretrained(tmp_path / "tokenizer", decoder=tmp_path / "sd")
    ids = torch.tensor([[52] + [53] * 76])  # <|startoftext|> <|endoftext|> and its repetition up to 77
    expected = decoder.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(pipeline.encode_empty_prompt(), expected)
    with_encoder = draw(pipeline, codes=codes[:1])

    pipeline.text_encoder = pipeline.tokenizer = None
    with pytest.raises(ValueError, match="set_empty_prompt_embeds, or draw with guidance_scale=1"):
        draw(pipeline, codes=codes[:1])
    assert np.isfinite(draw(pipeline, codes=codes[:1], guidance_scale=1)).all()
    pipeline.image_tokenizer.set_empty_prompt_embeds(expected)
    np.testing.assert_allclose(draw(pipeline, codes=codes[:1]), with_encoder, atol=1e-5)
    # Saved, it has its text branch again, the features that it was given, and the text encoder.
    pipeline.save_pretrained(tmp_path / "saved")
    saved = SeedModel.from_pretrained(tmp_path / "saved" / "image_tokenizer")
    torch.testing.assert_close(saved.empty_prompt_embeds, expected)
    assert torch.equal(saved.text_projection.weight, model.text_projection.weight)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved" / "decoder")
    torch.testing.assert_close(stock.text_encoder(ids).last_hidden_state, expected)

    shared = SeedModel.from_pretrained(tmp_path / "tokenizer")
    other = SeedPipeline.from_pretrained(tmp_path / "tokenizer", decoder=tmp_path / "sd", image_tokenizer=shared)
    assert other.image_tokenizer is shared

    weights = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.weight"))
    del tensors[lost]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"text_encoder' lacks 1 tensors of CLIPTextModel, e.g. .*{lost}"):
        SeedPipeline.from_pretrained(tmp_path / "tokenizer", decoder=tmp_path / "sd")


@pytest.mark.parametrize("over_itself", [True, False], ids=["over itself", "elsewhere"])
def test_what_was_not_loaded_is_saved_too(seed_repository, tmp_path, over_itself):
    source = shutil.copytree(seed_repository, tmp_path / "source")
    make_stable_diffusion().save_pretrained(source / "decoder")
    target = source if over_itself else tmp_path / "target"
    before = shutil.copytree(source, tmp_path / "before")
    pipeline = SeedPipeline.from_pretrained(source)
    assert pipeline.text_encoder is None and not pipeline.image_tokenizer.config.use_text_branch
    with torch.no_grad():  # what is loaded, or put in its place, is saved as it is now
        pipeline.image_tokenizer.generation_projection.bias.add_(1)
        pipeline.vae = copy.deepcopy(pipeline.vae)
        pipeline.vae.quant_conv.bias.add_(1)
    pipeline.save_pretrained(target)

    files = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))  # noqa: E731
    assert files(target) == files(before)
    changed = {"image_tokenizer/model.safetensors": "generation_projection.bias"}
    changed["decoder/vae/diffusion_pytorch_model.safetensors"] = "quant_conv.bias"
    for path in (path.relative_to(before) for path in before.rglob("*.safetensors")):
        old, new = load_file(before / path), load_file(target / path)
        assert old.keys() == new.keys()
        differing = [name for name in old if not torch.equal(old[name], new[name])]
        assert differing == [name for name in [changed.get(path.as_posix())] if name]
    for name in ("tokenizer.json", "captions.txt"):
        assert (target / "image_tokenizer" / name).read_bytes() == (before / "image_tokenizer" / name).read_bytes()
    stock = StableDiffusionPipeline.from_pretrained(target / "decoder")
    assert stock.tokenizer("a dog").input_ids == make_stable_diffusion().tokenizer("a dog").input_ids


@pytest.mark.parametrize("first, second", [({"max_shard_size": "50KB"}, {}), ({}, {"max_shard_size": "50KB"})])
def test_a_save_in_other_shards_leaves_none_of_the_old(seed_repository, tmp_path, first, second):
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    pipeline.save_pretrained(tmp_path, **first)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.mul_(0.5)
    pipeline.save_pretrained(tmp_path, **second)
    sharded = bool(list((tmp_path / "decoder/unet").glob("*.index.json")))
    assert sharded == bool(second)
    assert (tmp_path / "decoder/unet/diffusion_pytorch_model.safetensors").exists() != sharded
    loaded = SeedPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_a_decoder_in_one_variant_is_loaded_and_saved_as_a_stock_one(seed_repository, tmp_path, codes):
    make_stable_diffusion().save_pretrained(tmp_path / "fp16", variant="fp16")
    drawn = [
        draw(SeedPipeline.from_pretrained(seed_repository, decoder=tmp_path / "fp16", **options), codes=codes[:1])
        for options in ({}, {"variant": "fp16"})
    ]
    assert np.array_equal(*drawn)
    for options in ({}, {"variant": "fp16"}):
        pipeline = SeedPipeline.from_pretrained(seed_repository, decoder=tmp_path / "fp16", **options)
        pipeline.save_pretrained(tmp_path / "saved")
        stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved/decoder")
        expected = make_stable_diffusion().text_encoder.state_dict()
        found = stock.text_encoder.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    make_stable_diffusion().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ValueError, match="pickled weights only .*may run code. Convert it"):
        SeedPipeline.from_pretrained(seed_repository, decoder=tmp_path / "pickled")


def test_another_image_tokenizer_is_saved_as_it_is(seed_repository, tmp_path):
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    pipeline.image_tokenizer = make_seed_model(use_text_branch=False)
    pipeline.save_pretrained(tmp_path)
    assert not SeedModel.from_pretrained(tmp_path / "image_tokenizer").config.use_text_branch
    assert not (tmp_path / "image_tokenizer" / "captions.txt").exists()


def test_a_save_that_fails_changes_nothing(seed_repository, tmp_path, monkeypatch):
    root = shutil.copytree(seed_repository, tmp_path / "root")
    pipeline = SeedPipeline.from_pretrained(root)
    with torch.no_grad():
        pipeline.image_tokenizer.generation_projection.bias.add_(1)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pipeline.vae, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        pipeline.save_pretrained(root)
    assert not (root / ".partial").exists()
    for path in seed_repository.rglob("*.*"):
        assert (root / path.relative_to(seed_repository)).read_bytes() == path.read_bytes()


def test_pointers_name_other_repositories(seed_repository, tmp_path):
    shutil.copytree(seed_repository / "image_tokenizer", tmp_path / "shared_tokenizer")
    shutil.copytree(seed_repository / "decoder", tmp_path / "shared_decoder")
    root = tmp_path / "root"
    root.mkdir()
    pointers = {"image_tokenizer": "../shared_tokenizer", "decoder": str(tmp_path / "shared_decoder")}
    (root / "processor_config.json").write_text(json.dumps(pointers))
    assert SeedRepository(root).image_tokenizer_folder().samefile(tmp_path / "shared_tokenizer")
    assert SeedRepository(root).decoder_folder().samefile(tmp_path / "shared_decoder")
    given = SeedRepository(seed_repository).decoder_folder(root)
    assert given.samefile(tmp_path / "shared_decoder"), "given a SEED repository"
    assert SeedPipeline.from_pretrained(root).image_tokenizer.config.codebook_size == 64


def test_tokenising_tells_accelerate_where_models_are_offloaded():
    """The hook stands for the one of `enable_model_cpu_offload`; it only counts, as there may be no accelerator."""
    pipeline, called = make_seed_pipeline(), []

    class Hook(ModelHook):
        execution_device = torch.device("cpu")

        def pre_forward(self, module, *args, **kwargs):
            called.append(module)
            return args, kwargs

    before = pipeline.tokenize_images(pictures(2))
    add_hook_to_module(pipeline.image_tokenizer, Hook())
    assert torch.equal(pipeline.tokenize_images(pictures(2)), before) and called == [pipeline.image_tokenizer]


def test_an_offloaded_image_tokenizer_gives_its_buffers_and_hash():
    """`enable_sequential_cpu_offload` leaves an image tokenizer like this, also its buffer, the empty prompt."""
    model = make_seed_model()
    pixels = torch.randn(2, 3, 28, 28)
    codes = model.get_image_tokens(pixels)
    model.set_empty_prompt_embeds(torch.randn(1, 77, 40))
    pipeline = make_seed_pipeline()
    pipeline.register_modules(image_tokenizer=model)
    embeds, digest = pipeline.encode_empty_prompt(), model.codes_hash()
    cpu_offload(model, "cpu", offload_buffers=True)
    assert model.empty_prompt_embeds.is_meta
    torch.testing.assert_close(pipeline.encode_empty_prompt(), embeds, rtol=0, atol=0)
    assert model.codes_hash() == digest
    assert torch.equal(model.get_image_tokens(pixels), codes)


def test_images_may_be_arrays(pipeline):
    image = pictures(1)[0]
    array = np.asarray(image)
    assert torch.equal(pipeline.tokenize_images(image), pipeline.tokenize_images([array]))
    assert torch.equal(pipeline.tokenize_images(image), pipeline.tokenize_images(Image.fromarray(array)))
    # diffusers' own kind of array: floats of 0 .. 1.
    scaled = np.float32(array) / 255
    assert torch.equal(pipeline.tokenize_images(image), pipeline.tokenize_images(scaled))
    assert torch.equal(pipeline.tokenize_images(image), pipeline.tokenize_images(torch.from_numpy(scaled)[None]))
    grey = image.convert("L")
    for given in (np.asarray(grey), torch.from_numpy(np.array(grey)), np.asarray(grey)[..., None]):
        assert torch.equal(pipeline.tokenize_images(grey), pipeline.tokenize_images([given]))


def test_what_diffusers_users_pass_is_taken(seed_repository, tmp_path, codes):
    half = SeedPipeline.from_pretrained(seed_repository, torch_dtype=torch.float16)
    assert half.unet.dtype == half.image_tokenizer.dtype == torch.float16
    half.save_pretrained(tmp_path / "half", variant="fp16")
    again = SeedPipeline.from_pretrained(tmp_path / "half", dtype="float32", variant="fp16")
    assert again.unet.dtype == again.vae.dtype == torch.float32
    assert SeedPipeline.from_pretrained(tmp_path / "half").unet.dtype == torch.float16  # there is no other variant
    with pytest.raises(OSError, match="incomplete or damaged"):
        SeedPipeline.from_pretrained(tmp_path / "half", variant="bf16")
    scheduler = EulerDiscreteScheduler()
    shared = SeedPipeline.from_pretrained(seed_repository, unet=half.unet, vae=half.vae, scheduler=scheduler)
    assert shared.unet is half.unet and shared.vae is half.vae and shared.scheduler is scheduler
    with pytest.raises(ValueError, match="dtype is 'float31'"):
        SeedPipeline.from_pretrained(seed_repository, dtype="float31")
    with pytest.raises(ValueError, match="safetensors only"):
        half.save_pretrained(tmp_path / "pickled", safe_serialization=False)


def test_the_decoders_own_class_of_vae_is_loaded(seed_repository, tmp_path):
    shutil.copytree(seed_repository, tmp_path / "repository")
    kind = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    shutil.rmtree(tmp_path / "repository" / "decoder" / "vae")
    kind.save_pretrained(tmp_path / "repository" / "decoder" / "vae")
    assert isinstance(SeedPipeline.from_pretrained(tmp_path / "repository").vae, AutoencoderTiny)


@pytest.mark.parametrize(
    "variant, kept",
    [
        (None, {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"}),
        ("fp16", {"unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"}),
        ("bf16", {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"}),
    ],
)
def test_only_the_weights_that_are_used_are_downloaded(monkeypatch, tmp_path, variant, kept):
    """The repository holds each model in six files, as Stable Diffusion's repositories do."""
    unet = [f"unet/diffusion_pytorch_model{kind}" for kind in ("", ".fp16", ".non_ema")]
    files = [f"{name}{suffix}" for name in unet for suffix in (".bin", ".safetensors")]
    files += ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"]
    files += ["text_encoder/pytorch_model.bin", "unet/config.json", "v1-5.ckpt", "model_index.json"]
    asked = {}

    def snapshot_download(name, allow_patterns, ignore_patterns=(), **options):
        asked.update(allow=allow_patterns, ignore=ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(repository_seed, "snapshot_download", snapshot_download)
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(repository_seed.HfApi, "repo_info", lambda api, name, **options: info)
    repository_seed.SeedRepository("org/sd").fetch(["model_index.json", "unet/*", "vae/*", "text_encoder/*"], variant)
    found = {
        file
        for file in files
        if any(fnmatch(file, pattern) for pattern in asked["allow"]) and file not in asked["ignore"]
    }
    # Pickled weights that have no others beside them are there to be named in the error.
    others = {"text_encoder/pytorch_model.bin", "unet/config.json", "model_index.json"}
    assert found == kept | others
