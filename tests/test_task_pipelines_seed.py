"""transformers' pipelines and SeedPipeline on a whole SEED-OPT repository: prompts, pictures and questions in."""

import contextlib
import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny_language import tiny_language_model, tiny_processor
from tiny_repository import SIZE, make_seed_pipeline, make_stable_diffusion, pictures
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    pipeline,
)

from seed import (
    SeedModel,
    SeedOPTConfig,
    SeedOPTForCausalLM,
    SeedPipeline,
    SeedProcessor,
    SeedTextToImagePipeline,
    repository_seed,
)
from seed.generation_seed import _seeded

PROMPTS = ["a red square", "a dog", "a small dog beside a big cat"]


@pytest.fixture(scope="module")
def drawing(language_repository):
    return pipeline("text-to-image", model=str(language_repository))


@pytest.fixture(scope="module")
def reading(language_repository):
    return pipeline("image-text-to-text", model=str(language_repository))


@pytest.fixture(scope="module")
def whole(language_repository):
    loaded = SeedPipeline.from_pretrained(language_repository, language_model=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def same(image, other) -> bool:
    """Equal up to the rounding that another batch size brings."""
    return np.abs(pixels(image) - pixels(other)).max() <= 1


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def written_codes(processor, model, prompt, **kwargs):
    """What the language model writes, by hand."""
    inputs = processor.drawing_prompts(prompt)
    ids = model.generate(**inputs, generation_mode="image", **kwargs)
    return processor.ids_to_codes(ids[:, inputs["input_ids"].shape[1] :][:, :32])


def test_auto_classes_load_the_repository(language_repository):
    assert isinstance(AutoConfig.from_pretrained(language_repository), SeedOPTConfig)
    assert isinstance(AutoProcessor.from_pretrained(language_repository), SeedProcessor)
    expected = tiny_language_model()
    ids = torch.tensor([[2, 10, 20, expected.config.boi_token_id, expected.config.first_code_token_id + 7]])
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(language_repository)
        assert isinstance(model, SeedOPTForCausalLM)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)


# SeedPipeline --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_drawn_from_the_codes_that_the_language_model_writes(whole):
    output = whole(prompt=PROMPTS[0], generator=generators(0)[0])
    assert torch.equal(output.codes, written_codes(whole.processor, whole.language_model, PROMPTS[0]))
    again = whole(codes=output.codes, generator=generators(0)[0]).images[0]
    assert np.array_equal(pixels(output.images[0]), pixels(again)) and again.size == (SIZE, SIZE)
    batch = whole(prompt=PROMPTS, generator=generators(0, 1, 2))
    assert len(batch.images) == 3 and torch.equal(batch.codes[:1], output.codes)
    # Without sampling the codes repeat, and the noise differs.
    twice = whole(prompt=PROMPTS[0], num_images_per_prompt=2, generator=generators(0, 1))
    assert torch.equal(twice.codes[0], twice.codes[1]) and not same(*twice.images) and same(twice.images[0], again)


def test_token_guidance_and_sampling(whole):
    plain = whole.generate_codes(PROMPTS[:2])
    guided = whole.generate_codes(PROMPTS[:2], token_guidance_scale=4.0)
    expected = written_codes(
        whole.processor,
        whole.language_model,
        PROMPTS[1],
        token_guidance_scale=4.0,
        unconditional_ids=whole.processor.unconditional_prompt(),
    )
    assert torch.equal(guided[1:], expected) and not torch.equal(guided, plain)
    state = torch.get_rng_state()
    sampled = whole.generate_codes(PROMPTS[0], 2, generator=generators(3)[0], do_sample=True)
    assert torch.equal(sampled, whole.generate_codes(PROMPTS[0], 2, generator=generators(3)[0], do_sample=True))
    assert not torch.equal(sampled[0], sampled[1]) and torch.equal(torch.get_rng_state(), state)
    together = whole.generate_codes(PROMPTS[:2], generator=generators(4, 5), do_sample=True)
    alone = whole.generate_codes(PROMPTS[1], generator=generators(5), do_sample=True)
    assert torch.equal(together[1:], alone)
    with pytest.raises(ValueError, match="1 generators for 2 drawings"):
        whole.generate_codes(PROMPTS[:2], generator=generators(4), do_sample=True)


def test_sampling_is_from_all_codes_whatever_the_checkpoint_says(whole):
    language_model = whole.language_model
    stored = copy.deepcopy(language_model.generation_config)
    try:
        language_model.generation_config.update(do_sample=True, top_p=0.01)
        drawn = [
            whole.generate_codes("a dog", token_temperature=5.0, generator=generators(seed)[0]) for seed in range(3)
        ]
        assert len({tuple(codes[0].tolist()) for codes in drawn}) == 3
        # The caller's own configuration stays as it is.
        own = GenerationConfig(do_sample=True, top_p=1e-6)
        drawn = [
            whole.generate_codes("a dog", token_temperature=5.0, generator=generators(seed)[0], generation_config=own)
            for seed in range(3)
        ]
        assert len({tuple(codes[0].tolist()) for codes in drawn}) == 1
    finally:
        language_model.generation_config = stored


def test_token_temperature(whole):
    greedy = whole.generate_codes(PROMPTS[0])
    assert torch.equal(whole.generate_codes(PROMPTS[0], token_temperature=0, generator=generators(6)[0]), greedy)
    sampled = whole.generate_codes(PROMPTS[0], token_temperature=1.5, generator=generators(6)[0])
    assert not torch.equal(sampled, greedy)
    assert torch.equal(whole.generate_codes(PROMPTS[0], token_temperature=0, return_dict_in_generate=True), greedy)
    same_again = {"generator": generators(6)[0], "token_temperature": 1.5}
    assert torch.equal(whole(prompt=PROMPTS[0], **same_again).codes, sampled)
    # By hand: torch's own generator, seeded as ours seeds it, and all of the codebook to choose from.
    torch.manual_seed(int(torch.randint(2**62, (), generator=generators(6)[0])))
    options = {"do_sample": True, "temperature": 1.5, "top_k": 0}
    assert torch.equal(written_codes(whole.processor, whole.language_model, PROMPTS[0], **options), sampled)
    # So do_sample alone, at the pipeline's temperature of 0, has all of it to choose from.
    torch.manual_seed(int(torch.randint(2**62, (), generator=generators(6)[0])))
    options = {"do_sample": True, "top_k": 0}
    expected = written_codes(whole.processor, whole.language_model, PROMPTS[0], **options)
    for options in ({"do_sample": True}, {"do_sample": True, "token_temperature": 0}):
        assert torch.equal(whole.generate_codes(PROMPTS[0], generator=generators(6)[0], **options), expected)
    # generate's own temperature is one, too, and overrules ours; so do do_sample and a generation_config.
    for options in ({"temperature": 1.5}, {"temperature": 1.5, "token_temperature": 0}):
        assert torch.equal(whole.generate_codes(PROMPTS[0], generator=generators(6)[0], **options), sampled)
    for options in ({"temperature": 0.0}, {"do_sample": False}):
        assert torch.equal(whole.generate_codes(PROMPTS[0], token_temperature=1.5, **options), greedy)
    config = copy.deepcopy(whole.language_model.generation_config)
    config.update(do_sample=True, temperature=1.5, top_k=0)
    own = {"generation_config": config, "generator": generators(6)[0]}
    assert torch.equal(whole.generate_codes(PROMPTS[0], **own), sampled)
    for refused in ({"token_temperature": -1.0}, {"generate_kwargs": {"temperature": -1.0}}):
        with pytest.raises(ValueError, match="The temperature is -1.0; expected 0"):
            whole(prompt=PROMPTS[0], **refused)


def test_sampling_leaves_every_global_generator_as_it_was(monkeypatch):
    """On an accelerator, seen from a machine without one: which devices are forked, and what is seeded."""
    forked, seeded = [], []
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setattr(torch, "manual_seed", seeded.append)

    @contextlib.contextmanager
    def fork_rng(devices, device_type):
        forked.append((list(devices), device_type))
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with _seeded(generators(0)[0], torch.device("cuda", 1)):  # the generator is the CPU's
        pass
    assert forked == [([0, 1], "cuda")] and len(seeded) == 1
    with _seeded(generators(0)[0], torch.device("cpu")):
        pass
    assert forked[1][0] == [] and len(seeded) == 1  # an idle GPU's generator is not touched


def test_pipeline_with_language_model_saves_and_loads(whole, tmp_path):
    whole.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings["processor_class"] == "SeedProcessor" and settings["guidance_scale"] == 3.0
    loaded = SeedPipeline.from_pretrained(tmp_path, language_model=True)
    loaded.set_progress_bar_config(disable=True)
    first, second = (one(prompt=PROMPTS[0], generator=generators(0)[0]) for one in (whole, loaded))
    assert torch.equal(first.codes, second.codes) and np.array_equal(pixels(first.images[0]), pixels(second.images[0]))
    without = SeedPipeline.from_pretrained(tmp_path)
    assert without.language_model is None
    with pytest.raises(ValueError, match="language_model=True"):
        without(prompt="a dog")
    with pytest.raises(ValueError, match="either images .* or a prompt"):
        without(prompt="a dog", codes=first.codes)
    # The pipeline without a language model, saved over it, leaves the processor's settings in place.
    without.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text()) == settings


def test_a_rounded_image_tokenizer_is_not_saved_beside_its_language_model(language_repository, tmp_path):
    root = shutil.copytree(language_repository, tmp_path / "root")
    rounded = SeedPipeline.from_pretrained(root, language_model=True, dtype=torch.float16)
    without = SeedPipeline.from_pretrained(root, dtype=torch.float16)
    task = SeedTextToImagePipeline(model=rounded.language_model, processor=rounded.processor)
    for pipe, folder in ((rounded, tmp_path / "new"), (without, root), (task, tmp_path / "new")):
        with pytest.raises(ValueError, match="in torch.float16, have the hash .*from_pretrained.*dtype='auto'"):
            pipe.save_pretrained(folder)
    assert not (tmp_path / "new").exists()
    without.save_pretrained(tmp_path / "drawing alone")
    SeedPipeline.from_pretrained(root, language_model=True).save_pretrained(tmp_path / "new")
    assert SeedProcessor.from_pretrained(tmp_path / "new").load_image_tokenizer().dtype == torch.float32


def test_parts_that_were_not_made_for_each_other(whole, seed_repository):
    parts = whole.components
    with pytest.raises(ValueError, match="come together"):
        SeedPipeline(**parts | {"processor": None})
    other = tiny_language_model()
    other.visual_embeddings.codebook.mul_(-1)
    with pytest.raises(ValueError, match="made for another codebook"):
        SeedPipeline(**parts | {"language_model": other})
    longer = tiny_language_model(vocab_size=500)
    longer.config.boi_token_id += 1
    with pytest.raises(ValueError, match="model's boi_token_id is .*, the processor's"):
        SeedPipeline(**parts | {"language_model": longer})
    retrained = tiny_language_model()
    retrained.config.image_tokenizer_hash = "0" * 64
    with pytest.raises(ValueError, match="trained with the image tokenizer 000000000000"):
        SeedTextToImagePipeline(model=retrained, processor=parts["processor"])
    with pytest.raises(ValueError, match="has no language model: its config.json is of type None"):
        SeedPipeline.from_pretrained(seed_repository, language_model=True)


# text-to-image -------------------------------------------------------------------------------------------------------


def test_text_to_image(drawing, whole):
    image = drawing(PROMPTS[0], seed=0, progress=False)
    expected = whole(prompt=PROMPTS[0], generator=generators(0)).images[0]
    assert isinstance(drawing, SeedTextToImagePipeline) and same(image, expected)
    options = {"num_images_per_prompt": 2, "seed": 0, "progress": False}
    one_by_one = drawing(PROMPTS, **options)
    assert [len(images) for images in one_by_one] == [2, 2, 2] and same(one_by_one[0][0], image)
    batched = drawing(PROMPTS, batch_size=2, **options)
    assert all(same(a, b) for one, two in zip(one_by_one, batched) for a, b in zip(one, two))
    assert not same(batched[0][0], batched[0][1])
    codes = drawing.drawer.generate_codes(PROMPTS[:2])
    assert not torch.equal(codes[0], codes[1])
    singles = drawing(PROMPTS[:2], batch_size=2, seed=0, progress=False)
    assert same(singles[1], batched[1][0])
    assert drawing(PROMPTS[0], height=32, width=24, generator=generators(0)[0], progress=False).size == (24, 32)
    varied = {"num_inference_steps": 3, "guidance_scale": 1.0, "token_guidance_scale": 3.0}
    sampled = drawing(PROMPTS[0], seed=0, progress=False, generate_kwargs={"do_sample": True, "top_k": 8}, **varied)
    assert not same(sampled, image)


def test_a_language_model_spread_over_devices_stays_where_it_is(language_repository, drawing, tmp_path):
    """accelerate refuses to move one that is partly offloaded, and would gather on one GPU one that is spread."""
    parts = ["embed_tokens", "embed_positions", "layers.0", "layers.1", "final_layer_norm"]
    places = {f"model.decoder.{part}": "disk" if part == "layers.1" else "cpu" for part in parts}
    places |= {"lm_head": "cpu", "visual_embeddings": "cpu", "visual_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        language_repository, device_map=places, offload_folder=str(tmp_path / "offloaded")
    )
    processor = AutoProcessor.from_pretrained(language_repository)
    spread = pipeline("text-to-image", model=model, processor=processor)
    assert same(spread("a dog", seed=0, progress=False), drawing("a dog", seed=0, progress=False))


def test_text_to_image_bad_input(drawing, whole, monkeypatch):
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        drawing("a dog", steps=3)
    with pytest.raises(TypeError, match="The prompt is a int"):
        drawing(3)
    with pytest.raises(ValueError, match="either seed or generator"):
        drawing("a dog", seed=1, generator=generators(0)[0])
    with pytest.raises(ValueError, match="exceeds the context"):
        drawing("a dog " * 300)
    several = {"num_beams": 2, "num_return_sequences": 2}
    for options in (several, {"generation_config": GenerationConfig(**several)}):
        with pytest.raises(ValueError, match="num_return_sequences is 2.*pass num_images_per_prompt"):
            drawing(["red", "blue"], generate_kwargs=options)
    homeless = SeedTextToImagePipeline(model=tiny_language_model(), processor=tiny_processor())
    with pytest.raises(ValueError, match="nothing to draw with: pass decoder="):
        homeless("a dog")
    # The drawer comes from the repository that the processor came from, by the same revision and cache.
    pinned = SeedProcessor.from_pretrained(drawing.model.name_or_path, revision="v1", cache_dir="cache")
    asked = {}
    monkeypatch.setattr(SeedPipeline, "from_pretrained", lambda name, **options: asked.update(options) or whole)
    assert SeedTextToImagePipeline(model=drawing.model, processor=pinned).drawer.vae is whole.vae
    assert (asked["revision"], asked["cache_dir"]) == ("v1", "cache")
    shared = SeedTextToImagePipeline(
        model=tiny_language_model(), processor=tiny_processor(), decoder=make_seed_pipeline()
    )
    assert same(shared("a dog", seed=0, progress=False), drawing("a dog", seed=0, progress=False))


def test_text_to_image_saves_and_pushes_a_whole_repository(language_repository, tmp_path, monkeypatch):
    source = shutil.copytree(language_repository, tmp_path / "source")
    make_stable_diffusion().save_pretrained(source / "decoder")
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    drawing = pipeline("text-to-image", model=str(source))
    with pytest.raises(ValueError, match="Save first, then push with pipe.push_to_hub"):
        drawing.save_pretrained(tmp_path / "saved", push_to_hub=True)
    drawing.save_pretrained(source)
    uploaded = tmp_path / "uploaded"

    class Hub:
        def create_repo(self, repo_id, private, token, exist_ok):
            return SimpleNamespace(repo_id=f"user/{repo_id}")

        def create_branch(self, repo_id, branch, **options):
            self.branch = branch

        def upload_folder(self, repo_id, folder_path, revision, **options):
            assert revision == self.branch
            shutil.copytree(folder_path, uploaded)
            return f"https://hub/{repo_id}/{revision}"

    monkeypatch.setattr(repository_seed, "HfApi", Hub)
    assert drawing.push_to_hub("mine", revision="v2") == "https://hub/user/mine/v2"
    for folder in (source, uploaded):
        assert files <= {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        assert SeedModel.from_pretrained(folder / "image_tokenizer").config.use_text_branch
        assert StableDiffusionPipeline.from_pretrained(folder / "decoder").text_encoder is not None
    image = drawing(PROMPTS[0], seed=0, progress=False)
    again = pipeline("text-to-image", model=str(uploaded))
    assert same(again(PROMPTS[0], seed=0, progress=False), image)
    # A whole pipeline to draw with says as well where it came from.
    shared = SeedTextToImagePipeline(
        model=drawing.model, processor=drawing.processor, decoder=SeedPipeline.from_pretrained(source)
    )
    shared.save_pretrained(tmp_path / "saved")
    assert SeedModel.from_pretrained(tmp_path / "saved" / "image_tokenizer").config.use_text_branch


# image-text-to-text and any-to-any -----------------------------------------------------------------------------------


def test_captions_and_answers(reading, whole):
    picture = pictures(1)[0]
    processor, model = whole.processor, whole.language_model
    codes = whole.tokenize_images(picture)

    def expected(prompts):
        ids = model.generate(**prompts, max_new_tokens=5, do_sample=False)
        return processor.tokenizer.decode(ids[0, prompts["input_ids"].shape[1] :], skip_special_tokens=True)

    options = {"max_new_tokens": 5, "return_full_text": False}
    asked = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    caption = reading(text=asked, **options)[0]["generated_text"]
    assert caption == expected(processor.caption_prompts(codes=codes))
    assert reading(images=picture, text="<image>A photo of", **options)[0]["generated_text"] == caption
    asked[0]["content"].append({"type": "text", "text": "What is it?"})
    answer = reading(text=asked, **options)[0]["generated_text"]
    assert answer == expected(processor.question_prompts("What is it?", codes=codes)) and answer != caption
    texts = ["<image>A photo of", "<image>Question: What is it? Short answer"]
    both = reading(images=[picture, picture], text=texts, **options)
    assert [result["generated_text"] for result in both] == [caption, answer]


def test_batches_of_transformers_own_pipelines_are_padded_on_the_left(reading, tmp_path, language_repository):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": pictures(1)[0]}, *words]}]
        for words in ([], [{"type": "text", "text": "Which colour is the circle beside the big dog?"}])
    ]
    options = {"max_new_tokens": 5, "return_full_text": False}
    alone = [reading(text=chat, **options)[0]["generated_text"] for chat in chats]
    together = reading(text=chats, batch_size=2, **options)
    assert [result[0]["generated_text"] for result in together] == alone and alone[0] != alone[1]
    # So it is in a repository whose tokenizer was saved with the text model's own setting.
    shutil.copytree(language_repository, tmp_path / "older")
    stored = tmp_path / "older" / "tokenizer_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"padding_side": "right"}))
    assert SeedProcessor.from_pretrained(tmp_path / "older").tokenizer.padding_side == "left"


def test_any_to_any(language_repository, whole):
    pytest.importorskip("torchvision")
    pipe = pipeline("any-to-any", model=str(language_repository))
    drawn = pipe(text="Generate an image a dog</s>", generation_mode="image", return_type=None)
    assert drawn[0]["generated_image"].size == (SIZE, SIZE)
    said = pipe(text="<image>A photo of", images=pictures(1)[0], max_new_tokens=5)
    assert said[0]["generated_text"].startswith("<image>A photo of")


def test_the_processor_draws_what_the_model_wrote(language_repository, whole):
    """What "any-to-any" asks of the processor, without torchvision."""
    processor = AutoProcessor.from_pretrained(language_repository)
    ids = whole.language_model.generate(**processor.drawing_prompts(PROMPTS[:2]), generation_mode="image")
    images = processor.post_process_multimodal_output(ids, generation_mode="image")
    assert [image.size for image in images] == [(SIZE, SIZE)] * 2
    seeded = processor.draw(processor.image_codes(ids), generator=generators(0, 1))
    expected = whole(prompt=PROMPTS[:2], generator=generators(0, 1)).images
    assert all(same(image, other) for image, other in zip(seeded, expected))
