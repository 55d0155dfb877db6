"""Write the tokenizer of the model `tiny`: `python scripts/train/tiny_tokenizer.py models/tiny`.

Unigram with byte fallback: one token for a word of the grammar with its space, two for a name, bytes for the rest. The
pieces are listed, not trained, and a space is never added, so the tokens of a context and of a question put together
are the tokens of the prompt.
"""

import pathlib
import string
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from eval.tasks.mini.grammar import STARTERS, syllables, words
from scripts.command import read, run


def pieces() -> list[tuple[str, float]]:
    """(piece, score): fewer pieces always win, so every multi-letter piece costs less than two of anything."""
    first, second = syllables()
    long = [f"▁{w}" for w in words() if len(w) > 1] + [f"▁{s}" for s in first] + list(second)
    long.append("▁)")
    long += [w for w in STARTERS if len(w) > 1] + [f"▁{w}" for w in words() if len(w) == 1]
    short = ["▁", "\n", *string.ascii_lowercase, *string.digits, *string.punctuation]
    special = [(s, 0.0) for s in ("<unk>", "<s>", "</s>")] + [(f"<0x{b:02X}>", 0.0) for b in range(256)]
    return special + [(p, -10.0) for p in dict.fromkeys(long)] + [(p, -11.0) for p in short]


def tokenizer():
    """Unigram with byte fallback over `pieces`; <s> stands before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    out = Tokenizer(models.Unigram(pieces(), unk_id=0, byte_fallback=True))
    out.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("\n"), "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
    ])
    out.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    out.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return out


def save(folder: str) -> int:
    """Write tokenizer.json and tokenizer_config.json into `folder`; returns the vocabulary's size."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        model_max_length=4096, clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return len(fast)


def main(given: list[str]) -> None:
    """Write the tokenizer and print the size of its vocabulary."""
    print(save(read(given, {"folder": "models/tiny"}, places=("folder",)).folder))


if __name__ == "__main__":
    run(main, __doc__)
