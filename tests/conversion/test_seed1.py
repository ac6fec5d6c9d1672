"""The released SEED-1 files, made small at random, convert exactly: every stage against an independent reference."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_seed1 import ReferenceSeed1
from safetensors import safe_open
from transformers import AutoTokenizer, BertTokenizer, Blip2VisionModel

from seed.commands.main import execute, make_parser
from seed.configuration_seed import SeedConfig
from seed.conversion import checkpoint_files, seed1
from seed.conversion.seed1 import convert_seed1
from seed.image_processing_seed import SeedImageProcessorPil
from seed.modeling_seed import SeedModel

HEADS = {"vision_heads": 4, "qformer_heads": 4, "decoder_heads": 6}
TOLERANCE = {"rtol": 0, "atol": 2e-4}


def inputs():
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(3, 3, 42, 42, generator=generator)
    input_ids = torch.randint(1, 50, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 5:] = 0
    mask[2, 1:] = 0
    return pixel_values, input_ids, mask


@pytest.fixture(scope="module")
def reference():
    return ReferenceSeed1().randomize(seed=1)


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    return reference.save(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "seed-1"
    convert_seed1(**files, output=output, **HEADS)
    return output


def our_stages(model, pixel_values, input_ids, mask):
    out = {}
    with torch.no_grad():
        out["vision_features"] = model.get_vision_features(pixel_values)
        out["causal_embeddings"] = model.get_causal_embeddings(pixel_values)
        out["encoded"] = model.encode_layer(out["causal_embeddings"])
        out["codes"] = model.get_image_tokens(pixel_values)
        out["decoded"] = model.decode_layer(model.quantizer.code_vectors(out["codes"]))
        out["reconstructed_causal_embeddings"] = model.reconstruct_causal_embeddings(out["codes"])
        out["generation_embeddings"] = model.decode_image_tokens(out["codes"])
        if model.config.use_text_branch:
            out["text_features"] = model.get_text_features(input_ids, mask)
            out["image_features"] = model.get_image_features(pixel_values)
            out["code_features"] = model.get_image_features(codes=out["codes"])
            out["matching"] = model.qformer(out["vision_features"], input_ids, mask)
    return out


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_every_stage_equals_the_reference(reference, converted, attn_implementation):
    model = SeedModel.from_pretrained(converted, attn_implementation=attn_implementation)
    expected, ours = reference.stages(*inputs()), our_stages(model, *inputs())

    assert expected.pop("margin") > 1e-4, "a near-tie would make the comparison of codes meaningless"
    assert len(expected["codes"].unique()) > 10, "one code everywhere would make it meaningless, too"
    assert torch.equal(ours["codes"], expected["codes"])
    assert ours.keys() == expected.keys()
    # What the padding positions hold is nobody's business.
    real = torch.cat([torch.ones(3, 32), inputs()[2]], dim=1).bool()
    ours["matching"], expected["matching"] = ours["matching"][real], expected["matching"][real]
    for stage, value in expected.items():
        torch.testing.assert_close(ours[stage], value, **TOLERANCE, msg=lambda text, stage=stage: f"{stage}: {text}")


def test_the_final_norm_has_the_released_epsilon(tmp_path):
    """1e-5, not the 1e-6 of transformers: seen on features of low variance."""
    reference = ReferenceSeed1().randomize(vision_scale=0.004)
    convert_seed1(**reference.save(tmp_path), output=tmp_path / "out", **HEADS)
    expected = reference.stages(*inputs())["causal_embeddings"]
    model = SeedModel.from_pretrained(tmp_path / "out")
    assert isinstance(model.vision_model, Blip2VisionModel)
    with torch.no_grad():
        torch.testing.assert_close(model.get_causal_embeddings(inputs()[0]), expected, **TOLERANCE)
        model.vision_model.post_layernorm.eps = 1e-6
        assert (model.get_causal_embeddings(inputs()[0]) - expected).abs().max() > 1e-2


def test_config_is_read_from_the_tensors(converted):
    config = SeedModel.from_pretrained(converted).config
    vision, qformer, reverse = config.vision_config, config.qformer_config, config.reverse_qformer_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size) == (42, 14, 64)
    assert (vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads) == (110, 3, 4)
    assert (qformer.num_queries, qformer.causal, qformer.hidden_size, qformer.num_hidden_layers) == (32, True, 48, 5)
    assert (qformer.intermediate_size, qformer.vocab_size, qformer.max_position_embeddings) == (80, 50, 40)
    assert (reverse.num_queries, reverse.causal, reverse.num_hidden_layers) == (77, False, 4)
    assert (config.codebook_size, config.code_dim, config.generation_dim, config.projection_dim) == (128, 8, 36, 20)
    assert (config.decoder_num_layers, config.decoder_num_heads, config.decoder_mlp_ratio) == (4, 6, 4.0)
    assert not config.has_empty_prompt_embeds


def test_released_sizes_give_the_default_config():
    """The whole released architecture, by names and shapes alone."""
    with torch.device("meta"):
        released = ReferenceSeed1(
            vision={"width": 1408, "heads": 16, "hidden": int(1408 * 4.3637), "depth": 39, "image_size": 224},
            width=768,
            heads=12,
            inner=3072,
            layers=12,
            positions=512,
            vocab=30523,
            projection=256,
            decoder_heads=12,
            codebook=8192,
            code_dim=32,
            generation=768,
        )
        model = SeedModel(SeedConfig())
    checkpoint = seed1.Seed1Checkpoint(released.state_dict(), ignored=[])
    assert seed1.seed1_config(checkpoint).to_dict() == SeedConfig().to_dict()
    for name, tensor in model.state_dict().items():
        assert checkpoint.build(name).shape == tensor.shape, name


def test_preprocessing_squashes_to_the_models_size(converted):
    processor = SeedImageProcessorPil.from_pretrained(converted)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    squashed = np.asarray(picture.resize((42, 42), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.tensor(((squashed - mean) / std).transpose(2, 0, 1), dtype=torch.float32)
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-5)


def test_card_names_the_licence(converted):
    card = (converted / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "BSD-3" in card
    assert "eva_vit_g.pth" in card
    assert "0.07" in card  # the temperature, which has no place in the model


def test_vision_model_inside_another_file_or_with_prefix(reference, files, converted, tmp_path):
    vision = reference.state("visual_encoder.")
    inside, prefixed = tmp_path / "inside.pth", tmp_path / "prefixed.pth"
    stage1 = torch.load(files["causal_qformer"], weights_only=True)
    torch.save({"model": stage1["model"] | vision}, inside)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in vision.items()}}, prefixed)  # of DDP
    convert_seed1(None, inside, files["seed_tokenizer"], tmp_path / "a", **HEADS)
    convert_seed1(prefixed, files["causal_qformer"], files["seed_tokenizer"], tmp_path / "b", **HEADS)
    expected = (converted / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == expected
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == expected

    with pytest.raises(ValueError, match="--vit"):
        convert_seed1(None, files["causal_qformer"], files["seed_tokenizer"], tmp_path / "c", **HEADS)


def test_without_text_parts_there_is_no_text_branch(tmp_path):
    reference = ReferenceSeed1(text=False).randomize()
    config = convert_seed1(**reference.save(tmp_path), output=tmp_path / "out", **HEADS)
    assert not config.use_text_branch
    model = SeedModel.from_pretrained(tmp_path / "out")
    expected = reference.stages(inputs()[0])
    assert expected.pop("margin") > 1e-4
    for stage, value in our_stages(model, *inputs()).items():
        torch.testing.assert_close(value, expected[stage], **TOLERANCE)
    with pytest.raises(ValueError, match="text branch"):
        model.get_text_features(inputs()[1])


def test_what_the_released_inference_class_saves_converts(tmp_path):
    """It has no reconstruction decoder (`pos_embed`, `blocks`), which only training and retrieval by codes use."""
    reference = ReferenceSeed1().randomize(seed=1)
    files = reference.save(tmp_path)
    edit(files, "seed_tokenizer", tmp_path, lambda content: [
        content.pop(name) for name in list(content) if name == "pos_embed" or name.startswith("blocks.")
    ])  # fmt: skip
    config = convert_seed1(**files, output=tmp_path / "out", **HEADS)
    assert not config.use_reconstruction_decoder
    model = SeedModel.from_pretrained(tmp_path / "out")
    expected, pixel_values = reference.stages(*inputs()), inputs()[0]
    assert torch.equal(model.get_image_tokens(pixel_values), expected["codes"])
    torch.testing.assert_close(
        model.decode_image_tokens(expected["codes"]), expected["generation_embeddings"], **TOLERANCE
    )
    torch.testing.assert_close(model.get_image_features(pixel_values), expected["image_features"], **TOLERANCE)
    with pytest.raises(ValueError, match="no reconstruction decoder"):
        model.get_image_features(codes=expected["codes"])
    assert "no reconstruction decoder" in (tmp_path / "out" / "README.md").read_text()


def test_the_fortieth_block_of_eva_is_left_out(tmp_path):
    """BLIP-2 and SEED run 39 blocks of a file that holds 40; other surplus has to be named."""
    reference = ReferenceSeed1(text=False, vision={"depth": 39}).randomize()
    config = convert_seed1(**reference.save(tmp_path, extra_blocks=1), output=tmp_path / "out", **HEADS)
    assert config.vision_config.num_hidden_layers == 39

    small = ReferenceSeed1(text=False).randomize()
    files = small.save(tmp_path, extra_blocks=1)
    config = convert_seed1(**files, output=tmp_path / "small", vision_layers=3, **HEADS)
    assert config.vision_config.num_hidden_layers == 3
    expected = small.stages(inputs()[0])["causal_embeddings"]
    with torch.no_grad():
        ours = SeedModel.from_pretrained(tmp_path / "small").get_causal_embeddings(inputs()[0])
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def edit(files, which, tmp_path, change):
    """A copy of one file with its state dict changed."""
    content = torch.load(files[which], weights_only=True)
    change(content.get("model", content))
    path = tmp_path / files[which].name
    torch.save(content, path)
    return files | {which: path}


def test_missing_unknown_and_misshapen_tensors_are_listed_together(files, tmp_path):
    def change(state):
        del state["Reverse_Qformer.bert.encoder.layer.1.output_query.dense.weight"]
        del state["decode_task_layer.2.bias"]
        state["mystery.weight"] = torch.zeros(3)
        state["pos_embed_text"] = torch.zeros(1, 16, 48)

    with pytest.raises(ValueError) as error:
        convert_seed1(**edit(files, "seed_tokenizer", tmp_path, change), output=tmp_path / "out", **HEADS)
    message = str(error.value)
    assert "2 missing:\n  Reverse_Qformer.bert.encoder.layer.1.output_query.dense.weight\n  decode_task" in message
    assert "1 of no known use:\n  mystery.weight" in message
    assert "pos_embed_text gives (1, 16, 48), generation_decoder.position_embeddings is (1, 32, 48)" in message
    assert os.listdir(tmp_path) == ["seed_tokenizer.pth"], "nothing may be written"


@pytest.mark.parametrize("name", ["query_tokens", "Qformer.bert.embeddings.word_embeddings.weight"])
def test_missing_tensor_that_gives_a_size(files, tmp_path, name):
    changed = edit(files, "causal_qformer", tmp_path, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=name):
        convert_seed1(**changed, output=tmp_path / "out", **HEADS)


@pytest.mark.parametrize("which", ["vit", "causal_qformer", "seed_tokenizer"])
def test_truncated_or_missing_file(files, tmp_path, which):
    broken = tmp_path / "broken.pth"
    with pytest.raises(FileNotFoundError, match="broken.pth"):
        convert_seed1(**files | {which: broken}, output=tmp_path / "out", **HEADS)
    whole = files[which].read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        broken.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"broken\.pth.*truncated"):
            convert_seed1(**files | {which: broken}, output=tmp_path / "out", **HEADS)
    assert os.listdir(tmp_path) == ["broken.pth"]


def test_pickled_code_is_refused(files, tmp_path):
    torch.save({"model": argparse.Namespace(a=1)}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="never executed"):
        convert_seed1(**files | {"vit": tmp_path / "code.pth"}, output=tmp_path / "out", **HEADS)


def bert_tokenizer(folder, words: int):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(words - 5))]
    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def test_the_text_tokenizer_is_saved_with_its_dec_token(files, reference, tmp_path):
    rows = reference.Qformer.bert.embeddings.word_embeddings.num_embeddings
    tokenizer, output = bert_tokenizer(tmp_path / "bert", rows - 1), tmp_path / "out"
    config = convert_seed1(**files, output=output, text_tokenizer=tokenizer, **HEADS)
    saved = AutoTokenizer.from_pretrained(output)
    assert len(saved) == config.qformer_config.vocab_size == rows
    assert saved("word3 [DEC]")["input_ids"] == [2, 8, rows - 1, 3]
    # As many rows as words: the text branch was trained without [DEC].
    plain = bert_tokenizer(tmp_path / "plain", rows)
    convert_seed1(**files, output=tmp_path / "without", text_tokenizer=plain, **HEADS)
    assert "[DEC]" not in AutoTokenizer.from_pretrained(tmp_path / "without").get_vocab()
    # One that has it already stays as it is; another vocabulary is refused before anything is written.
    convert_seed1(**files, output=tmp_path / "again", text_tokenizer=output, **HEADS)
    assert AutoTokenizer.from_pretrained(tmp_path / "again").get_vocab() == saved.get_vocab()
    with pytest.raises(ValueError, match=f"{rows - 2} entries.*{rows} rows"):
        convert_seed1(
            **files, output=tmp_path / "no", text_tokenizer=bert_tokenizer(tmp_path / "small", rows - 3), **HEADS
        )
    assert not (tmp_path / "no").exists()


def test_existing_output_is_kept_unless_overwritten(files, converted, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(converted, output)
    (output / "old.txt").touch()
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert_seed1(**files, output=output, **HEADS)
    assert (output / "old.txt").exists()
    convert_seed1(**files, output=output, overwrite=True, **HEADS)
    assert sorted(os.listdir(output)) == sorted(os.listdir(converted))
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["vision_heads", "qformer_heads", "decoder_heads", "vision_layers"])
def test_counts_below_one_are_refused(files, tmp_path, name):
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"{name} is {count}; expected 1 or more"):
            convert_seed1(**files, output=tmp_path / "out", **(HEADS | {name: count}))
    assert not (tmp_path / "out").exists()


def test_the_old_model_is_back_where_the_new_one_cannot_be_put(converted, tmp_path, monkeypatch):
    output = tmp_path / "out"
    shutil.copytree(converted, output)
    rename = Path.rename

    def failing(path, target):
        if ".partial-" in path.name:
            raise OSError("no space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space left"):
        with checkpoint_files.new_folder(output, overwrite=True) as folder:
            (folder / "config.json").touch()
    assert sorted(os.listdir(output)) == sorted(os.listdir(converted))
    assert os.listdir(tmp_path) == ["out"]


def test_only_a_seed_model_or_nothing_is_overwritten(files, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(FileExistsError, match="out' holds something else than a SEED model"):
        convert_seed1(**files, output=output, overwrite=True, **HEADS)
    assert os.listdir(output) == ["config.json"]
    (output / "config.json").unlink()
    convert_seed1(**files, output=output, overwrite=True, **HEADS)
    assert (output / "model.safetensors").exists()


def test_overwriting_does_not_delete_what_is_converted(files, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text('{"model_type": "seed"}')
    downloaded = {name: shutil.copy(file, output / file.name) for name, file in files.items()}
    (tmp_path / "link").symlink_to(output)
    before = sorted(os.listdir(output))
    for inputs in (downloaded, files | {"vit": tmp_path / "link" / files["vit"].name}):
        with pytest.raises(ValueError, match="eva_vit_g.pth' lies in the output .*choose another output"):
            convert_seed1(**inputs, output=output, overwrite=True, **HEADS)
    with pytest.raises(ValueError, match="out' lies in the output"):
        convert_seed1(**files, output=output, text_tokenizer=output, overwrite=True, **HEADS)
    assert sorted(os.listdir(output)) == before


def test_wrong_head_count(files, tmp_path):
    with pytest.raises(ValueError, match="7"):
        convert_seed1(**files, output=tmp_path / "out", **HEADS | {"qformer_heads": 7})


def test_half_precision_files_and_output(reference, files, tmp_path):
    """A float16 ViT, as released, is held exactly by float32; other dtypes on request."""

    def halve(state):
        for name in state:
            state[name] = state[name].half()

    half = edit(files, "vit", tmp_path, halve)
    convert_seed1(**half, output=tmp_path / "float32", **HEADS)
    convert_seed1(**half, output=tmp_path / "bfloat16", dtype=torch.bfloat16, **HEADS)
    name = "blocks.1.mlp.fc2.weight"
    source = torch.load(half["vit"], weights_only=True)[name]
    for folder, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = SeedModel.from_pretrained(tmp_path / folder)
        assert model.dtype == dtype
        weights = dict(model.named_parameters())
        assert torch.equal(weights["vision_model.encoder.layers.1.mlp.fc2.weight"], source.to(dtype))
        assert all(weight.dtype == dtype for weight in weights.values())


def test_large_models_are_written_in_shards(files, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "MAX_SHARD_SIZE", "200KB")
    convert_seed1(**files, output=tmp_path / "out", **HEADS)
    shards = [name for name in os.listdir(tmp_path / "out") if name.endswith(".safetensors")]
    assert len(shards) > 3
    with safe_open(converted / "model.safetensors", "pt") as whole:
        sharded = SeedModel.from_pretrained(tmp_path / "out").state_dict()
        assert sharded.keys() == set(whole.keys())
        assert all(torch.equal(sharded[name], whole.get_tensor(name)) for name in sharded)


MEASURE = """
import sys, torch
from seed.conversion.seed1 import convert_seed1

def peak():  # anonymous memory at its peak is not recorded by the kernel, all resident memory is
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

folder = sys.argv[1]
files = [f"{folder}/{name}.pth" for name in ("eva_vit_g", "causal_qformer", "seed_tokenizer")]
before = peak()
convert_seed1(*files, f"{folder}/out", vision_heads=4, qformer_heads=4, decoder_heads=6)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_memory_stays_within_the_output_and_one_tensor(tmp_path):
    reference = ReferenceSeed1(vocab=400_000, codebook=1_000_000, inner=40_000).randomize()
    reference.save(tmp_path)
    largest = max(tensor.nbytes for tensor in reference.state_dict().values()) / 2**20
    del reference
    run = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    growth = float(run.stdout.split()[-1])
    output = (tmp_path / "out" / "model.safetensors").stat().st_size / 2**20
    print(f"output {output:.0f} MiB, largest tensor {largest:.0f} MiB, peak over the start {growth:.0f} MiB")
    assert output > 250
    assert growth < output + largest


def test_command_line(files, tmp_path, capsys):
    command = ["convert", "seed1", "--vit", str(files["vit"]), "--causal-qformer", str(files["causal_qformer"])]
    command += ["--seed-tokenizer", str(files["seed_tokenizer"]), "--output", str(tmp_path / "out")]
    defaults = make_parser().parse_args(command)
    assert (defaults.vision_heads, defaults.qformer_heads, defaults.decoder_heads) == (16, 12, 12)
    args = make_parser().parse_args([*command, "--vision-heads", "4", "--qformer-heads", "4", "--decoder-heads", "6"])
    execute(args)
    assert "32 codes of 128" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["SeedModel"]
