"""The training loop of the bundled model: steps, checkpoints, checks, what a worker shares with the others."""

import csv
import datetime
import os
import pathlib
import random
import time
import types

from omegaconf import OmegaConf

ROOT = pathlib.Path(__file__).resolve().parents[2]


def phase_at(phases, step: int):
    """The phase a step belongs to, and how far into it the step is (0 to 1); phases follow each other, `steps` each."""
    for phase in phases:
        if step < phase.steps:
            break
        step -= phase.steps
    return phase, step / phase.steps


def rate(cfg, phase, done: float, step: int) -> float:
    """Share of the full learning rate: linear from the phase's first to its second, after a linear warm-up."""
    first, last = phase.rate
    return min(1.0, (step + 1) / cfg.warmup) * (first + (last - first) * done)


def load(path: pathlib.Path, model, opts) -> tuple[int, int]:
    """Take up a checkpoint if there is one: (steps done, tokens seen)."""
    import torch

    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimisers"], strict=True):
        opt.load_state_dict(saved)
    return state["step"], state["tokens"]


def save(path: pathlib.Path, state: dict) -> None:
    """Write a checkpoint beside its place, then put it there whole."""
    import torch

    from eval.cells.files import beside

    with beside(path) as new:
        torch.save(state, new)


def worker(index: int, cfg, meeting: str, first: int) -> None:
    """Worker `index` + `first` of cfg.workers, which meet in the folder `meeting`."""
    import torch
    import torch.distributed as dist

    rank = index + first
    torch.set_num_threads(1)
    if cfg.workers > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=cfg.workers,
                                timeout=datetime.timedelta(hours=12))
    train(cfg, rank)
    if cfg.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def train(cfg, rank: int) -> None:
    """One worker's part, from the checkpoint where there is one to the last step or the end of the time."""
    from tokenizers import Tokenizer

    from eval.tasks.mini.tokens import Encoder
    from scripts.train.tiny_data import batch
    from scripts.train.tiny_model import new_model, optimisers

    out = pathlib.Path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(ROOT / cfg.tokenizer / "tokenizer.json"))
    enc = Encoder(tokenizer)
    special = specials(tokenizer)
    model = new_model(cfg, tokenizer.get_vocab_size(), *special[:2])
    opts = optimisers(cfg, model)
    step, seen = load(out / "checkpoint.pt", model, opts)
    run = start_wandb(cfg) if rank == 0 else None
    phases = [types.SimpleNamespace(**p) for p in OmegaConf.to_container(cfg.phases, resolve=True)]
    started, total, stop = time.time(), sum(p.steps for p in phases), False
    while step < total and not stop:
        phase, done = phase_at(phases, step)
        length = random.Random(f"length:{cfg.seed}:{step}").choices(phase.lengths, phase.shares)[0]
        rows = max(1, phase.tokens // length // cfg.workers)
        t0 = time.time()
        data = batch(enc, cfg.seed, step, range(rank * rows, (rank + 1) * rows), length, special, phase)
        loss, right = learn(cfg, model, opts, data, rate(cfg, phase, done, step))
        step += 1
        seen += rows * length * cfg.workers
        if rank == 0 and step % cfg.log_every == 0:
            note(out / "train.csv", run, {"step": step, "tokens": seen, "length": length,
                 "loss": round(loss.item(), 4), "right": round(right.item(), 4),
                 "step_s": round(time.time() - t0, 3), "spent_s": round(time.time() - started, 1)})
        if step % cfg.save_every == 0 or step == total:
            stop = agreed(cfg, cfg.max_minutes is not None and time.time() - started > 60 * cfg.max_minutes)
            if rank == 0:
                save(out / "checkpoint.pt", {"model": model.state_dict(), "step": step, "tokens": seen,
                                             "optimisers": [o.state_dict() for o in opts]})
        if step % cfg.eval_every == 0 or step == total:
            scores = check(cfg, model, enc, phase, rank)
            if rank == 0:
                for name, value in scores.items():
                    note(out / "eval.csv", run, {"step": step, "tokens": seen, "cell": name, "accuracy": value})
                model.save_pretrained(out / "model")
    if run is not None:
        run.finish()


def specials(tokenizer) -> tuple[int, int, frozenset[int], frozenset[int]]:
    """Ids of <s> and </s>, of what ends a sentence, and of what ends a name."""
    from eval.tasks.mini.grammar import syllables

    ids = tokenizer.token_to_id
    return ids("<s>"), ids("</s>"), frozenset(map(ids, (".", "\n"))), frozenset(map(ids, syllables()[1]))


def learn(cfg, model, opts, data, share: float):
    """One step on `data` (tiny_data.batch) at a share of the learning rates: (loss [], share of right tokens [])."""
    import torch

    from scripts.train.tiny_model import loss_of

    loss, right = loss_of(model, *map(torch.from_numpy, data), cfg.bf16)
    loss.backward()
    average_gradients(model, cfg.workers)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt, lr in zip(opts, (cfg.lr_matrix, cfg.lr_rest), strict=True):
        for group in opt.param_groups:
            group["lr"] = lr * share
        opt.step()
        opt.zero_grad(set_to_none=True)
    return loss, right


def average_gradients(model, workers: int) -> None:
    """Give every worker the mean of all workers' gradients, in one message."""
    import torch

    if workers == 1:
        return
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for g, part in zip(grads, flat.div_(workers).split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def agreed(cfg, stop: bool) -> bool:
    """Whether worker 0's clock says to stop: every worker ends at the same step."""
    import torch

    if cfg.workers == 1:
        return stop
    flag = torch.tensor([int(stop)])
    torch.distributed.broadcast(flag, 0)
    return bool(flag.item())


def check(cfg, model, enc, phase, rank: int) -> dict[str, float]:
    """Accuracy on held-out rows, the cells shared out over the workers."""
    import torch

    from scripts.train.tiny_eval import accuracies

    mine = accuracies(model, enc, phase.eval_lengths, cfg.eval_rows, cfg.bf16, cfg.eval_cells[rank :: cfg.workers])
    if cfg.workers == 1:
        return mine
    parts: list[dict] = [{} for _ in range(cfg.workers)]
    torch.distributed.all_gather_object(parts, mine)
    return {name: value for part in parts for name, value in part.items()}


def note(path: pathlib.Path, run, row: dict) -> None:
    """Append a row to a CSV file, print it, and mirror it to W&B."""
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    if run is not None:
        step = row["step"]
        run.log({row["cell"]: row["accuracy"]} if "cell" in row else row, step=step)


def start_wandb(cfg):
    """A run of W&B; None where no project is named."""
    if not cfg.wandb:
        return None
    import wandb

    return wandb.init(project=cfg.wandb, config=OmegaConf.to_container(cfg), mode=cfg.wandb_mode)
