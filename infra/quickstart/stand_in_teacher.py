"""A small BERT made on the spot: a stand-in for a downloaded teacher such as bert-base-uncased.

Usage: `python infra/quickstart/stand_in_teacher.py TEXT_DIR OUT_DIR [--steps 1500]`

It is there so that everything can be tried without a download. It knows little English, and whoever has a network
names a real checkpoint instead.

`TEXT_DIR` holds `english-*.txt` and `heldout.txt` (`english.py` writes them). `OUT_DIR` becomes a Hugging Face folder
which `AutoModelForMaskedLM` and `AutoTokenizer` load. The masked-LM objective is BERT's (arXiv 1810.04805): 15 % of
the positions are guessed; of these 80 % show [MASK], 10 % a random token and 10 % the token itself.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast  # type: ignore[attr-defined]

VOCABULARY = 4000
SEQUENCE_LENGTH = 64
"""Tokens of a sequence, [CLS] and [SEP] included."""
BATCH_SEQUENCES = 16
PEAK_LEARNING_RATE = 2e-3
WARM_UP = 0.1
"""Share of the run in which the learning rate rises; then it falls linearly to zero."""
MASKING_RATE = 0.3
"""While training: small models learn faster from more masks (arXiv 2202.08005)."""
HELD_OUT_MASKING_RATE = 0.15
EMBEDDING_STD = 0.16
"""Of the starting word embeddings."""
CO_OCCURRENCE_WINDOW = 3
REPORT_STEPS = 200
HAS_FAST_BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
IGNORED = -100
"""The label of a position that is not guessed."""


def train_tokenizer(paths: list[Path]) -> BertTokenizerFast:
    """A lower-casing WordPiece tokenizer of the text's own vocabulary."""
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train([str(path) for path in paths], vocab_size=VOCABULARY, show_progress=False)
    return BertTokenizerFast(tokenizer_object=wordpiece._tokenizer, model_max_length=SEQUENCE_LENGTH)


def packed(tokenizer: BertTokenizerFast, paths: list[Path]) -> Tensor:
    """The text as sequences filled to the last token, [sequences, SEQUENCE_LENGTH]; [SEP] ends a document."""
    documents = [text for path in paths for text in path.read_text(encoding="utf-8").split("\n\n")]
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (*ids, tokenizer.sep_token_id)])
    inner = SEQUENCE_LENGTH - 2
    rows = stream[: len(stream) // inner * inner].view(-1, inner)
    rows = F.pad(rows, (1, 0), value=tokenizer.cls_token_id)
    return F.pad(rows, (0, 1), value=tokenizer.sep_token_id)


def mask(
    ids: Tensor, tokenizer: BertTokenizerFast, generator: torch.Generator, rate: float = MASKING_RATE
) -> tuple[Tensor, Tensor]:
    """BERT's masking: what the model sees, and the labels."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    guessed = (torch.rand(ids.shape, generator=generator) < rate) & ~special
    random = torch.randint(len(tokenizer), ids.shape, generator=generator)
    draw = torch.rand(ids.shape, generator=generator)
    shown = torch.where(draw < 0.8, tokenizer.mask_token_id, torch.where(draw < 0.9, random, ids))
    return torch.where(guessed, shown, ids), ids.masked_fill(~guessed, IGNORED)


def new_model(tokenizer: BertTokenizerFast) -> BertForMaskedLM:
    """Four layers, so that students of half of them make sense; no dropout, as no text is seen often."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=SEQUENCE_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


def start_from_co_occurrence(model: BertForMaskedLM, sequences: Tensor) -> None:
    """Word embeddings and output bias from counts of neighbours and of tokens: two minutes are too short to learn both.

    The embeddings are the leading singular vectors of the positive pointwise mutual information of tokens at most
    CO_OCCURRENCE_WINDOW places apart (Levy and Goldberg 2014, "Neural word embedding as implicit matrix
    factorization").
    """
    size = model.config.vocab_size
    stream = sequences[:, 1:-1].reshape(-1)
    pairs = torch.zeros(size * size)
    for distance in range(1, CO_OCCURRENCE_WINDOW + 1):
        pairs += torch.bincount(stream[:-distance] * size + stream[distance:], minlength=size * size)
    counts = pairs.view(size, size) + pairs.view(size, size).T
    totals = counts.sum(1) + 1
    information = (counts.clamp(min=1e-9) * totals.sum() / torch.outer(totals, totals)).log().clamp(min=0)
    vectors, values, _ = torch.svd_lowrank(information, q=model.config.hidden_size)
    embeddings = vectors * values.sqrt()
    log_frequency = (totals / totals.sum()).log()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(embeddings / embeddings.std() * EMBEDDING_STD)
        model.cls.predictions.bias.copy_(log_frequency - log_frequency.mean())


def guesses(model: BertForMaskedLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of the guessed positions alone: the head is a good part of a small model's work."""
    guessed = labels != IGNORED
    # bfloat16 is 1.7 times as fast as float32 on CPUs which have instructions for it.
    with torch.autocast("cpu", torch.bfloat16, enabled=HAS_FAST_BFLOAT16):
        hidden = model.bert(input_ids=ids).last_hidden_state[guessed]
        logits = model.cls(hidden)
    return logits.float(), labels[guessed]


def learning_rate(progress: float) -> float:
    """Linear warm-up and decay; `progress` is the share of the run that is done."""
    return PEAK_LEARNING_RATE * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def batches(sequences: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Without end, each epoch in another order."""
    while True:
        for rows in torch.randperm(len(sequences), generator=generator).split(BATCH_SEQUENCES):
            yield sequences[rows]


def train(model: BertForMaskedLM, tokenizer: BertTokenizerFast, sequences: Tensor, num_steps: int) -> None:
    """AdamW for a number of steps, not of seconds, so that a busy machine gets the same teacher."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), fused=True)
    start = time.monotonic()
    model.train()
    for step, ids in enumerate(islice(batches(sequences, generator), num_steps), start=1):
        optimizer.param_groups[0]["lr"] = learning_rate(step / num_steps)
        logits, targets = guesses(model, *mask(ids, tokenizer, generator))
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % REPORT_STEPS == 0:
            print(f"step {step}/{num_steps}: loss {loss.item():.2f}, {time.monotonic() - start:.0f} s", flush=True)


@torch.inference_mode()
def evaluate(model: BertForMaskedLM, tokenizer: BertTokenizerFast, sequences: Tensor) -> tuple[float, float]:
    """Masked-LM loss (nats a guessed token) and top-1 accuracy; the same positions are guessed each time."""
    generator = torch.Generator().manual_seed(1)
    loss, correct, guessed = 0.0, 0, 0
    model.eval()
    for batch in sequences.split(64):
        logits, targets = guesses(model, *mask(batch, tokenizer, generator, HELD_OUT_MASKING_RATE))
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(-1) == targets).sum())
        guessed += len(targets)
    return loss / guessed, correct / guessed


def make_teacher(text_dir: Path, out_dir: Path, num_steps: int) -> tuple[float, float]:
    """Trains and saves the stand-in; returns its held-out loss and accuracy."""
    torch.manual_seed(0)
    train_files = sorted(text_dir.glob("english-*.txt"))
    tokenizer = train_tokenizer(train_files)
    sequences = packed(tokenizer, train_files)
    model = new_model(tokenizer)
    start_from_co_occurrence(model, sequences)
    print(f"{sequences.numel()} tokens, {model.num_parameters()} parameters, {num_steps} steps", flush=True)
    train(model, tokenizer, sequences, num_steps)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return evaluate(model, tokenizer, packed(tokenizer, [text_dir / "heldout.txt"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a stand-in for a downloaded BERT teacher.")
    parser.add_argument("text_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    arguments = parser.parse_args()
    print("A stand-in for a downloaded teacher such as bert-base-uncased: small, and of little English.")
    loss, accuracy = make_teacher(arguments.text_dir, arguments.out_dir, arguments.steps)
    print(f"Stand-in teacher in {arguments.out_dir}: held-out loss {loss:.3f}, top-1 accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
