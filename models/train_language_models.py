"""Trains the two embedded language models, GPT-2 and Gemma-2 in form, on the running Python's standard library.

    python models/train_language_models.py gpt2 --out models/gpt2-stdlib

Everything is seeded; the text is the standard library less the documents that the default split holds out, so the
loss is measured on files never trained on, beside a unigram and an interpolated bigram model of the same tokens. Writes
a Hugging Face folder (bfloat16 safetensors, tokenizer) and training.json.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harvest.text.split import is_held_out
from harvest.text.stdlib import stdlib_documents, stdlib_identity

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 96, 12, 4
HELD_OUT_FRACTION, SPLIT_SEED = 0.05, 0
SPECIAL = {"gpt2": ["<|endoftext|>"], "gemma2": ["<pad>", "<eos>", "<bos>"]}


def train_tokenizer(texts: list[str], special: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of ``VOCABULARY`` entries; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, family: str) -> PreTrainedTokenizerFast:
    """The tokenizer as Hugging Face loads it; Gemma's puts <bos> before every text, as the real one does."""
    if family == "gpt2":
        end = SPECIAL["gpt2"][0]
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=end, eos_token=end, model_max_length=CONTEXT
        )
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=CONTEXT
    )


def make_model(family: str, bos: int, eos: int) -> torch.nn.Module:
    """A freshly initialised model of the family."""
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            bos_token_id=bos,
            eos_token_id=eos,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=24,
        query_pre_attn_scalar=24,
        sliding_window=128,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


def pack(documents: list[list[int]], bos: int) -> torch.Tensor:
    """Documents one after another, BOS between, cut into contexts that each begin with BOS: (contexts, CONTEXT)."""
    stream = np.concatenate([np.asarray([*document, bos], dtype=np.int64) for document in documents])
    rows = len(stream) // (CONTEXT - 1)
    body = torch.from_numpy(stream[: rows * (CONTEXT - 1)]).reshape(rows, CONTEXT - 1)
    return torch.cat([torch.full((rows, 1), bos), body], dim=1)


def ngram_losses(train: torch.Tensor, held_out: torch.Tensor) -> dict[str, float]:
    """Held-out nats a token of a unigram and a bigram model, the latter interpolated at its best weight."""
    unigram = np.bincount(train[:, 1:].ravel(), minlength=VOCABULARY) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount((train[:, :-1] * VOCABULARY + train[:, 1:]).ravel().numpy(), minlength=VOCABULARY**2).reshape(
        VOCABULARY, VOCABULARY
    )
    bigram = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    before, after = held_out[:, :-1].ravel().numpy(), held_out[:, 1:].ravel().numpy()
    mixed = [
        float(-np.log(w * bigram[before, after] + (1 - w) * unigram[after]).mean()) for w in np.arange(0.5, 1.0, 0.05)
    ]
    return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": min(mixed)}


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, contexts: torch.Tensor) -> float:
    """Mean nats a predicted token."""
    losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in contexts.split(32)]
    return sum(losses) / len(contexts)


def batches(contexts: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless shuffled batches, a new order each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (
            contexts[index]
            for index in torch.randperm(len(contexts), generator=generator).split(size)
            if len(index) == size
        )


def fit(
    model: torch.nn.Module, train: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> list[dict[str, float]]:
    """AdamW with warm-up and a cosine to zero; returns the curve, a point every ``args.steps // 40`` steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    warm = max(1, args.steps // 40)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / (args.steps - warm)))),
    )
    curve, running, started = [], 0.0, time.monotonic()
    for step, batch in zip(range(1, args.steps + 1), batches(train, args.batch, args.seed), strict=False):
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % max(1, args.steps // 40) == 0 or step == args.steps:
            point = {
                "step": step,
                "train_loss": round(running, 4),
                "held_out_loss": round(held_out_loss(model, held_out[:128]), 4),
            }
            curve.append(point)
            print(json.dumps({**point, "seconds": round(time.monotonic() - started)}), flush=True)
    return curve


def _name_portable_class(path: Path) -> None:
    """transformers 5 writes a class name that 4.x, which other tools pin, cannot open."""
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["gpt2", "gemma2"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    texts = [text for _, text in stdlib_documents()]
    held_out_texts = [is_held_out(text.encode(), fraction=HELD_OUT_FRACTION, seed=SPLIT_SEED) for text in texts]
    tokenizer = train_tokenizer(
        [text for text, is_out in zip(texts, held_out_texts, strict=True) if not is_out], SPECIAL[args.family]
    )
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    hugging = wrap_tokenizer(tokenizer, args.family)
    bos = hugging.bos_token_id
    train = pack([ids for ids, is_out in zip(encoded, held_out_texts, strict=True) if not is_out], bos)
    held_out = pack([ids for ids, is_out in zip(encoded, held_out_texts, strict=True) if is_out], bos)
    baselines = ngram_losses(train, held_out)
    print(json.dumps({"train_tokens": train.numel(), "held_out_tokens": held_out.numel(), **baselines}), flush=True)

    model = make_model(args.family, bos, hugging.eos_token_id)
    curve = fit(model, train, held_out, args)
    model = model.to(torch.bfloat16)
    model.save_pretrained(args.out)
    hugging.save_pretrained(args.out)
    _name_portable_class(args.out / "tokenizer_config.json")
    record: dict[str, Any] = {
        "script": "models/train_language_models.py",
        "family": args.family,
        "seed": args.seed,
        "steps": args.steps,
        "batch_contexts": args.batch,
        "context": CONTEXT,
        "learning_rate": args.lr,
        "corpus": vars(stdlib_identity()),
        "held_out_fraction": HELD_OUT_FRACTION,
        "split_seed": SPLIT_SEED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": train.numel(),
        "held_out_tokens": held_out.numel(),
        "nats_per_token": {"held_out_bfloat16": round(held_out_loss(model, held_out), 4), **baselines},
        "torch": torch.__version__,
        "curve": curve,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
