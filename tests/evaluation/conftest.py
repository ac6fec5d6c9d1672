"""A whole SEED repository, tiny and random, and a toy data set."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from makers.text_tokenizer import train_text_tokenizer
from tokenizers import pre_tokenizers
from toy_pictures import NAMES, toy_rows
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from seed.image_processing_seed import SeedImageProcessorPil
from seed.modeling_seed import SeedModel


@pytest.fixture
def toy_data(tmp_path):
    """A Parquet file of the toy pictures with a broken one in their midst."""
    rows = toy_rows()
    rows.insert(2, rows[0] | {"id": "broken", "image": {"bytes": b"no picture", "path": None}})
    path = tmp_path / "toy.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def make_image_tokenizer(tiny_seed_config):
    """A function that saves a tiny random image tokenizer, with its processors, to a folder."""

    def make(folder, **config):
        torch.manual_seed(0)
        model = SeedModel(tiny_seed_config(**config)).eval()
        with torch.no_grad():  # new weights put all texts, and all pictures, so near together that rounding ranks them
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter *= 8
        if model.config.use_code_branch:
            # Codes where the data is, so that pictures get different ones.
            with torch.no_grad():
                embeddings = model.get_causal_embeddings(torch.randn(16, 3, 28, 28))
                model.quantizer.initialize_from_data(model.encode_layer(embeddings))
        model.save_pretrained(folder)
        SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
        train_text_tokenizer(NAMES, 100).save_pretrained(folder)
        return model

    return make


@pytest.fixture
def seed_root(make_image_tokenizer, tmp_path):
    """A SEED repository with `image_tokenizer/` and `decoder/`."""
    root = tmp_path / "seed-toy"
    model = make_image_tokenizer(root / "image_tokenizer")
    width = model.config.generation_dim
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet), "<|startoftext|>", "<|endoftext|>"]
    text_config = CLIPTextConfig(
        vocab_size=len(symbols),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=len(symbols) - 2,
        eos_token_id=len(symbols) - 1,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=CLIPTokenizer(vocab={token: i for i, token in enumerate(symbols)}, merges=[], model_max_length=77),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=2,
            norm_num_groups=2,
        ),
        scheduler=DDIMScheduler(num_train_timesteps=20),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "decoder")
    return root
