"""Locret against the reference tensors of its official code: scores, cached keys, tokens; labels, loss, gradient."""

import functools

import pytest
import torch
from golden import Case

from baselines.locret import checkpoint
from baselines.locret.cache import Locret
from baselines.locret.labels import Recorder, labelled
from baselines.locret.loss import SMOOTHING, regression, smoothness, top_overlap
from d2o.engine.generation import generate
from d2o.engine.rotary import find_rotation
from d2o.engine.start import open_engine

CLOSE = {"atol": 1e-4, "rtol": 0}


def heads_of(case: Case, folder):
    """The case's heads as a file, taken out of its weights."""
    names = [name for name in case.given if ".fc1." in name or ".fc2." in name]
    torch.save({name: case.given.pop(name) for name in names}, folder / "heads.bin")
    return str(folder / "heads.bin")


@pytest.mark.parametrize("number", [1, 2])
def test_chunked_prefill(shared, tmp_path, number):
    case = Case.read(shared / "golden" / f"locret__chunked_prefill__{number}")
    settings, expected = case.settings, case.expected
    heads, ids = heads_of(case, tmp_path), case.given.pop("input_ids").tolist()
    method = functools.partial(
        Locret, heads, chunk=settings["chunk_size"], stabilizers=settings["stabilizers"], local=settings["local_len"],
        budget_accounting="nominal",
    )  # fmt: skip
    run = open_engine(case.llama(), method, settings["budget"])
    new, kept = settings["max_new_tokens"], settings["budget"]
    cache, logits = run.prefill([ids], reserve=new)
    tail = settings["local_len"]
    turn = find_rotation(run)
    for index, layer in enumerate(cache.layers):
        positions = layer.positions[0, :, :kept]
        assert torch.equal(positions.long(), expected["kept_positions"][index])
        assert (layer.positions[0, :, kept : kept + tail] == torch.arange(len(ids) - tail, len(ids))).all()
        torch.testing.assert_close(layer.scores[0, :, :kept], expected["kept_scores"][index], **CLOSE)
        first_seen = expected["new_token_scores"][index].gather(1, positions.long())
        torch.testing.assert_close(layer.scores[0, :, :kept], first_seen, **CLOSE)
        torch.testing.assert_close(layer.values[0, :, :kept], expected["values"][index], **CLOSE)
        # ours are rotated to be `seen - held` positions ahead of their slot
        ahead = len(ids) - (kept + tail)
        keys = turn(expected["keys_pre_rope"][index], (torch.arange(kept) + ahead).expand(positions.shape))
        torch.testing.assert_close(layer.keys[0, :, :kept], keys, **CLOSE)
        assert layer.most <= kept + max(settings["chunk_size"], tail)
    for step in range(new):
        torch.testing.assert_close(logits[0], expected["logits"][step], **CLOSE)
        assert int(logits.argmax()) == expected["tokens"][step]
        logits = run.step(cache, logits.argmax(-1))
    assert generate(run, [ids], new)[0].tokens == expected["tokens"].tolist()


@pytest.mark.parametrize("number", [1, 2])
def test_kept_after_every_chunk(shared, tmp_path, number, monkeypatch):
    case = Case.read(shared / "golden" / f"locret__chunked_prefill__{number}")
    settings, trace = case.settings, []
    heads, ids = heads_of(case, tmp_path), case.given.pop("input_ids").tolist()
    cut = Locret._cut

    def watched(layer, ends, feed):
        cut(layer, ends, feed)
        trace.append((layer.index, layer.positions[0, :, : layer.held[0]].long()))

    monkeypatch.setattr(Locret, "_cut", watched)
    method = functools.partial(
        Locret, heads, chunk=settings["chunk_size"], stabilizers=settings["stabilizers"], local=settings["local_len"],
        budget_accounting="nominal",
    )  # fmt: skip
    open_engine(case.llama(), method, settings["budget"], chunk=7).prefill([ids])
    steps = case.expected["kept_positions_per_chunk"]
    assert len(trace) == steps.shape[0] * steps.shape[1]
    for i, (layer, positions) in enumerate(trace):
        wanted = steps[i // steps.shape[1], layer]
        wanted = wanted[:, : int((wanted[0] >= 0).sum())]
        assert torch.equal(positions, wanted)


def test_the_published_names_are_read(shared, tmp_path):
    case = Case.read(shared / "golden" / "locret__chunked_prefill__1")
    weight = case.given["model.layers.1.self_attn.fc1.weight"].clone()
    assert torch.equal(checkpoint.read(heads_of(case, tmp_path))[1].fc1.weight, weight)


def test_labels_and_loss(shared):
    case = Case.read(shared / "golden" / "locret__labels_and_loss__1")
    sizes, expected = case.sizes, case.expected
    scores, ids = case.given.pop("scores").requires_grad_(), case.given.pop("input_ids").tolist()
    for name in [name for name in case.given if ".fc" in name]:
        case.given.pop(name)
    for chunk in (case.settings["prefill_chunk"], None):
        lessons = labelled(open_engine(case.llama(), Recorder, 1, chunk=chunk), ids[: sizes["nq"]], ids[sizes["nq"] :])
        labels = torch.stack([lesson.labels for lesson in lessons])
        torch.testing.assert_close(labels, expected["labels"], **CLOSE)
        case.model["rope_theta"] = 10000.0
    near = torch.stack([regression(*layer) for layer in zip(scores, labels, strict=True)]).mean()
    smooth = torch.stack([smoothness(layer) for layer in scores]).sum()
    loss = near + SMOOTHING * smooth
    loss.backward()
    overlap = torch.stack([top_overlap(*layer) for layer in zip(scores.detach(), labels, strict=True)]).mean()
    found = {"regression_loss": near, "smoothing_loss": smooth, "loss": loss, "top10_accuracy": overlap}
    for name, value in found.items():
        torch.testing.assert_close(value.detach().view(1), expected[name], **CLOSE)
    torch.testing.assert_close(scores.grad, expected["grad_scores"], atol=1e-6, rtol=0)
