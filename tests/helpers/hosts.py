"""Tiny pretrained models with random weights, in folders as a hub has them."""

import json

import pytest
import torch

TEXTS = ["the cat sat on the mat .", "a dog barked loudly at the cats", "unbelievable , said the dog", "mats and dogs"]
WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "bark", "##ed", "loud", "##ly", "at", "##s", ".", ",", "said"]


def bert(folder, **changes):
    """A BERT of four layers, and a WordPiece tokenizer of few words."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *["##un", "##believ", "##able", "un", "and"]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **{**sizes, **changes})
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def byte_level(texts=TEXTS, vocab_size=300, **arguments):
    """A byte-level tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer(**arguments)
    trained.train_from_iterator(texts * 5, vocab_size, special_tokens=["<|endoftext|>"], show_progress=False)
    return trained


def byte_fallback(texts=TEXTS):
    """A tokenizer of the Llama kind: a mark for each space, one in front, and bytes for unknown characters."""
    tokenizers = pytest.importorskip("tokenizers")
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<unk>", *names], vocab_size=330, show_progress=False)
    trained.train_from_iterator(texts * 5, trainer)
    made = json.loads(trained.to_str())
    made["model"] |= {"byte_fallback": True, "unk_token": "<unk>"}
    made["added_tokens"] = made["added_tokens"][:1]  # no text is a byte's name
    return tokenizers.Tokenizer.from_str(json.dumps(made))


def neox(folder, tokenizer=None):
    """A causal language model of the Pythia kind, by default with a byte-level tokenizer; no token is for filling."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level() if tokenizer is None else tokenizer
    tokenizer.save(str(folder / "bpe.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bpe.json"), eos_token="<|endoftext|>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    return str(folder)


def dino(folder):
    """The paper's kind of vision model, DINOv2 with registers: 16 patches of images of 56 pixels."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        num_register_tokens=4,
        mlp_ratio=2,
    )
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, do_convert_rgb=True
    ).save_pretrained(folder)
    return str(folder)
