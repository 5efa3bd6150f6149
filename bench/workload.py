"""What is measured: a random BART of a given shape, and documents of an exact number of tokens."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

from bench import CACHE
from bench.heads import HEADS, Contexts, Head, marginal_entropy, sharpen
from ragserve.checkpoint import MANIFEST_NAME, Manifest, RagSettings, hash_files

QUESTION = "who painted the ceiling of the old chapel?"
TITLE = "the old chapel"
SHORT_QUESTION, SHORT_TITLE = "who?", "a"
LONG_TOKENS = 100  # of a context with the long question
WEIGHTS = "calm"  # names the recipe below in the cache
ENTROPY_NAME = "entropy.json"
EMBEDDING_SCALE = 6.0  # of a token's vector, and so of the logits
SHARPNESS = 1.5  # of the attention's queries and keys
SPECIAL_TOKENS = 2  # <s> and </s> around a context


@dataclass(frozen=True)
class Shape:
    """Size of a BART."""

    name: str
    vocab: int
    width: int
    layers: int
    heads: int
    feed_forward: int


SHAPES = {
    "bart-large": Shape("bart-large", 50265, 1024, 12, 16, 4096),
    "small": Shape("small", 2000, 128, 2, 4, 256),
}


@dataclass(frozen=True)
class Workload:
    """Documents of `document_tokens` tokens each, context included, and exactly `new_tokens` generated.

    Other seeds give other documents.
    """

    n_docs: int = 5
    document_tokens: int = 160
    new_tokens: int = 20
    padded_tokens: int = 300  # what transformers' retriever pads every context to
    seed: int = 0

    @property
    def question(self) -> str:
        """A shorter one for short contexts."""
        return QUESTION if self.document_tokens >= LONG_TOKENS else SHORT_QUESTION

    @property
    def title(self) -> str:
        """Of all documents."""
        return TITLE if self.document_tokens >= LONG_TOKENS else SHORT_TITLE

    @property
    def length(self) -> int:
        """As Hugging Face counts: the decoder start token included."""
        return self.new_tokens + 1

    def texts(self) -> list[str]:
        """One text for each document. The tokenizer has no merges: a token for each character."""
        around = len(f"{self.title} /  // {self.question}") + SPECIAL_TOKENS
        rng = random.Random(self.seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        return ["".join(rng.choices(letters, k=self.document_tokens - around)) for _ in range(self.n_docs)]

    def contexts(self) -> list[str]:
        """What the generator reads for each document."""
        return [f"{self.title} / {text} // {self.question}" for text in self.texts()]

    def log_priors(self) -> list[float]:
        """Of the documents, best first."""
        return torch.log_softmax(-0.5 * torch.arange(self.n_docs, dtype=torch.float32), 0).tolist()


def tokenizer(vocab_size: int) -> BartTokenizer:
    """Byte-level, BART's special ids, no merges, filled up to `vocab_size` with tokens no text reaches."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    names += [f"w{index:06d}" for index in range(vocab_size - len(names) - 1)] + ["<mask>"]
    return BartTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[], model_max_length=1024)


def randomize(model: BartForConditionalGeneration) -> None:
    """Weights with which the documents decide what is generated.

    With the usual small weights every document gives the same beams, and RAG-sequence has next to nothing to rescore.
    With much larger ones float32's rounding decides: transformers itself then gives other tokens in float64. With these
    log-probabilities in float32 and float64 differ by 2e-5.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        sharp = name.endswith(("q_proj.weight", "k_proj.weight"))
        with torch.no_grad():
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
            elif "embed" in name or "shared" in name:
                parameter.copy_(noise / parameter.shape[1] ** 0.5 * EMBEDDING_SCALE)
            else:
                gain = SHARPNESS if sharp else 1.0
                parameter.copy_(gain * (noise - noise.mean(1, keepdim=True)) / parameter.shape[1] ** 0.5)


def model_directory(shape: Shape, head: Head = HEADS[0]) -> Path:
    """A ragserve model directory with random weights, built once and kept in the cache."""
    directory = CACHE.resolve() / "-".join([shape.name, WEIGHTS, *([] if head == HEADS[0] else [head])])
    if (directory / MANIFEST_NAME).is_file():
        return directory
    config = BartConfig(
        vocab_size=shape.vocab,
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.feed_forward,
        decoder_ffn_dim=shape.feed_forward,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config).eval()
    randomize(model)
    tokens = tokenizer(shape.vocab)
    if head != HEADS[0]:
        keep_entropy(directory, sharpen(model, measured_on(tokens)))
    model.save_pretrained(directory / "generator")
    tokens.save_pretrained(directory / "generator")
    manifest = Manifest(kind="pair", rag=RagSettings(), files=hash_files(directory))
    (directory / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return directory


def measured_on(tokens: BartTokenizer) -> Contexts:
    """The standard workload, for the entropy."""
    workload = Workload()
    ids = [tokens(context)["input_ids"] for context in workload.contexts()]
    return Contexts(ids, workload.log_priors(), workload.new_tokens)


def keep_entropy(directory: Path, nats: float) -> None:
    """Beside the model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ENTROPY_NAME).write_text(json.dumps({"marginal_entropy_nats": nats}) + "\n", encoding="utf-8")


def entropy_of(directory: Path) -> float:
    """Nats of the marginal on the standard workload, mean over its steps; measured where they are not kept yet."""
    if not (directory / ENTROPY_NAME).is_file():
        part = directory / "generator"
        model = BartForConditionalGeneration.from_pretrained(part, dtype=torch.float32).eval()
        keep_entropy(directory, marginal_entropy(model, measured_on(BartTokenizer.from_pretrained(part))))
    return float(json.loads((directory / ENTROPY_NAME).read_text(encoding="utf-8"))["marginal_entropy_nats"])
