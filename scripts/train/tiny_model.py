"""The model `tiny`, how it starts, what it learns from and by which optimisers."""


def new_model(cfg, vocab: int, bos: int, eos: int):
    """The model at its start, drawn by cfg.seed; `vocab`: size of the vocabulary, `bos` and `eos`: ids."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.train.tiny_attention import register

    torch.manual_seed(cfg.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, bos_token_id=bos, eos_token_id=eos, tie_word_embeddings=True, attn_implementation=register(),
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta}, **cfg.model,
    ))
    if cfg.start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(cfg.start, dtype=torch.float32).state_dict())
    elif cfg.look_back:
        look_back(model)
    return model


def look_back(model) -> None:
    """Start head h of the first layer as one that attends to the token h + 1 places before.

    Where the heads that look one place back must be found first, matching a name takes several million tokens more to
    appear. One dimension of every embedding starts as a constant; through it query and key hold the same vector s, the
    query turned back by h + 1 places: the logit of a token d places before is the sum of s_i^2 cos(f_i (d - h - 1)).
    """
    import torch

    config, layer = model.config, model.model.layers[0].self_attn
    half = config.head_dim // 2
    frequency = model.model.rotary_emb.inv_freq
    wanted = torch.zeros(half)
    wanted[:4] = torch.tensor([8.0, 5.0, 4.0, 3.0])  # share of each frequency in the logit, the fastest first
    with torch.no_grad():
        spread = config.initializer_range
        model.model.embed_tokens.weight[:, 0] = 3 * spread
        constant = 3 / (1 + 8 / config.hidden_size) ** 0.5  # what the norm makes of it
        s = (wanted * config.head_dim**0.5).sqrt() / constant
        for head in range(config.num_attention_heads):
            turned = frequency * (head + 1)
            rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
            layer.q_proj.weight[rows, 0] = torch.cat([s * turned.cos(), -s * turned.sin()])
        for head in range(config.num_key_value_heads):
            rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
            layer.k_proj.weight[rows, 0] = torch.cat([s, torch.zeros(half)])


def optimisers(cfg, model):
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    import torch

    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=cfg.lr_matrix, momentum=0.95, weight_decay=cfg.weight_decay,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=cfg.lr_rest, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model, tokens, where, weights, bf16: bool):
    """Mean cross entropy over the learnt tokens and how many of them are guessed right; the head runs on those only."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=tokens, position_ids=where, use_cache=False).last_hidden_state
        picked = weights[:, 1:]
        logits = model.lm_head(hidden[:, :-1][picked])
    target = tokens[:, 1:][picked]
    return torch.nn.functional.cross_entropy(logits.float(), target), (logits.argmax(-1) == target).float().mean()
