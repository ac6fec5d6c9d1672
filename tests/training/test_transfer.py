"""A language model moved to another image tokenizer, whose codes are those of its own under other names."""

import copy

import pytest
import torch
from run_example import run_script
from tiny_language import make_language_repository, tiny_language_model
from tiny_repository import make_seed_model
from transformers import AutoModelForCausalLM

from seed import SeedModel, SeedProcessor
from seed.data.codes import CodesMetadata
from seed.training.language_examples import write_views
from seed.training.transfer import transfer_codes

FIRST_CODE = 332  # after the words of `tiny_language`, <img> and </img>


@pytest.fixture
def renamed():
    """An image tokenizer, one that calls code k `names[k]`, and `names`."""
    tokenizer = make_seed_model()
    other, names = copy.deepcopy(tokenizer), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other.quantizer.codebook.weight[names] = tokenizer.quantizer.codebook.weight
    return tokenizer, other, names


def codes_of_pictures() -> torch.LongTensor:
    return torch.randint(64, (40, 32), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("code_embeddings", [False, True])
def test_renamed_codes_are_read_and_written_as_before(renamed, code_embeddings):
    tokenizer, other, names = renamed
    model = tiny_language_model(code_embeddings).eval()
    if code_embeddings:
        torch.nn.init.normal_(model.visual_embeddings.codes.weight)
    old = codes_of_pictures()
    prompt = torch.tensor([[5, FIRST_CODE - 2]] * 40)
    expected = model(torch.cat([prompt, old + FIRST_CODE], dim=1)).logits
    assert transfer_codes(model, other, old, names[old]) == 0
    found = model(torch.cat([prompt, names[old] + FIRST_CODE], dim=1)).logits
    torch.testing.assert_close(found[..., :FIRST_CODE], expected[..., :FIRST_CODE], atol=1e-3, rtol=1e-4)
    codes = found[..., FIRST_CODE:][..., names]
    torch.testing.assert_close(codes, expected[..., FIRST_CODE:], atol=1e-3, rtol=1e-4)
    assert model.config.image_tokenizer_hash == other.codes_hash()


def test_a_code_is_the_mean_of_those_whose_places_it_takes(renamed):
    tokenizer, other, _ = renamed
    model = tiny_language_model().eval()
    before = model.visual_embeddings(2 + torch.arange(64)), model.visual_head.weight.clone()
    old = torch.arange(64)[:, None].expand(-1, 32)
    new = old // 4  # 16 codes for four old ones each; 48 for none
    assert transfer_codes(model, other, old, new) == 48
    embedded = model.visual_embeddings(2 + torch.arange(64))
    for after, rows in ((embedded, before[0]), (model.visual_head.weight[2:], before[1][2:])):
        torch.testing.assert_close(after[:16], rows.view(16, 4, -1).mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after[16:], rows.mean(0).expand(48, -1), atol=1e-4, rtol=1e-4)
    assert torch.equal(model.visual_head.weight[:2], before[1][:2])


def test_what_does_not_fit_is_refused(renamed):
    tokenizer, other, _ = renamed
    with pytest.raises(ValueError, match=r"The old codes are \(40, 32\), the new ones \(39, 32\)"):
        transfer_codes(tiny_language_model(), other, codes_of_pictures(), codes_of_pictures()[:39])
    model = tiny_language_model()
    model.config.codebook_size = 128
    with pytest.raises(ValueError, match="has 32 codes of 64, the language model 32 of 128"):
        transfer_codes(model, other, codes_of_pictures(), codes_of_pictures())


def test_the_script_makes_a_repository(renamed, tmp_path):
    tokenizer, other, names = renamed
    make_language_repository(tmp_path / "seed")
    old_hash = SeedModel.from_pretrained(tmp_path / "seed" / "image_tokenizer").codes_hash()
    make_language_repository(tmp_path / "other")
    other.save_pretrained(tmp_path / "other" / "image_tokenizer")
    codes, captions = codes_of_pictures()[:, None], [["a dog"]] * 40
    for name, rows, made_by in (("old", codes, old_hash), ("new", names[codes], other.codes_hash())):
        metadata = CodesMetadata(made_by, "none", "float32", codebook_size=64, num_codes=32)
        write_views(tmp_path / f"{name}.parquet", rows, captions, metadata)
    command = ["--model", tmp_path / "seed", "--image-tokenizer", tmp_path / "other", "--output", tmp_path / "out"]
    files = ["--old-codes", tmp_path / "old.parquet", "--new-codes", tmp_path / "new.parquet"]
    run_script("transfer_language.py", *command, *files)
    model, processor = (loader.from_pretrained(tmp_path / "out") for loader in (AutoModelForCausalLM, SeedProcessor))
    processor.check_language_model(model)
    assert processor.load_image_tokenizer().codes_hash() == model.config.image_tokenizer_hash == other.codes_hash()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "seed")
    prompts = [SeedProcessor.from_pretrained(tmp_path / "seed").caption_prompts(codes=codes[0])["input_ids"]]
    prompts.append(processor.caption_prompts(codes=names[codes[0]])["input_ids"])
    with torch.no_grad():
        old, new = (one(ids).logits[:, -1, :FIRST_CODE] for one, ids in zip((before.eval(), model.eval()), prompts))
    torch.testing.assert_close(new, old, atol=1e-3, rtol=1e-4)
    assert not list(tmp_path.glob("out/.*"))
    with pytest.raises(ValueError, match="is the folder of the model"):
        run_script("transfer_language.py", *command[:-1], tmp_path / "seed", *files)
    with pytest.raises(ValueError, match="new.parquet: .* made these codes; the old image tokenizer"):
        run_script("transfer_language.py", *command, "--old-codes", files[3], "--new-codes", files[1])
