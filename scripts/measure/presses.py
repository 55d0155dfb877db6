"""What kvpress keeps and answers, as its users run it: its pipeline, in an environment of its own, one prompt a line.

    PYTHON scripts/measure/presses.py MODEL_DIR < jobs.jsonl > answers.jsonl

PYTHON has kvpress and the transformers that its pin admits; nothing of this project is imported. A job is {id, press,
args, inner, context, question, ratio, new}; an answer adds context_ids, question_ids, kept (positions, `[L][Hkv][n]`)
and the text.
"""

import json
import sys

import torch


def main() -> None:
    """Answer the jobs that come in, in their order."""
    import kvpress
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, models = sys.argv[1], {}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in sys.stdin:
        job = json.loads(line)
        attention = "eager" if job["press"] == "ObservedAttentionPress" else "sdpa"
        if attention not in models:
            models[attention] = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation=attention
            )
        pipe = pipeline("kv-press-text-generation", model=models[attention], tokenizer=tokenizer)
        print(json.dumps(job | answer(pipe, make(kvpress, job), job)), flush=True)


def make(kvpress, job: dict):
    """The press of a job, which removes the share `ratio` of a context."""
    kind = getattr(kvpress, job["press"])
    if job["inner"]:
        return kind(getattr(kvpress, job["inner"])(compression_ratio=job["ratio"]), **job["args"])
    return kind(compression_ratio=job["ratio"], **job["args"])


def answer(pipe, press, job: dict) -> dict:
    """The pipeline's answer to one prompt, and what its press kept."""
    kept, compress = [], press.compress

    def watched(module, hidden_states, keys, values, attentions, kwargs):
        module.masked_key_indices = None
        left = compress(module, hidden_states, keys, values, attentions, kwargs)
        kept.append(found(keys, left[0], getattr(module, "masked_key_indices", None)))
        return left

    object.__setattr__(press, "compress", watched)
    parts = pipe.preprocess(job["context"], [job["question"]], "", 1 << 30)
    with torch.inference_mode():
        text = pipe(job["context"], question=job["question"], press=press, max_new_tokens=job["new"])["answer"]
    for module in pipe.model.modules():
        if hasattr(module, "masked_key_indices"):
            module.masked_key_indices = None
    ids = {"context_ids": parts["context_ids"][0].tolist(), "question_ids": parts["questions_ids"][0][0].tolist()}
    settings = {key: value for key, value in vars(press).items() if isinstance(value, int | float | str | bool)}
    return ids | {"kept": kept, "text": text, "settings": settings}


def found(keys: torch.Tensor, left: torch.Tensor, masked) -> list[list[int]]:
    """Positions per KV head of the keys `left [1, Hkv, n, D]` among `keys [1, Hkv, T, D]`, less those that are masked
    in attention (heads, positions) in place of being removed."""
    per_head = []
    for head in range(keys.shape[1]):
        places = {row.tobytes(): at for at, row in enumerate(keys[0, head].numpy())}
        per_head.append({places[row.tobytes()] for row in left[0, head].numpy()})
    if masked is not None:
        for head, at in zip(masked[1].tolist(), masked[2].tolist(), strict=True):
            per_head[head].discard(at)
    return [sorted(positions) for positions in per_head]


if __name__ == "__main__":
    main()
