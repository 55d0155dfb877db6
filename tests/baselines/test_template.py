"""The method in baselines/TEMPLATE.md works as it stands, and is as short as the page says."""

import re
from pathlib import Path

import torch
import zoo
from omegaconf import OmegaConf
from zoo import CLOSE

from d2o.engine.start import open_engine

PAGE = (Path(__file__).resolve().parents[2] / "baselines" / "TEMPLATE.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_the_template():
    code, config = block("python"), OmegaConf.create(block("yaml"))
    assert len(code.splitlines()) + len(config) <= 32
    names = {}
    exec(compile(code, "template", "exec"), names)
    method = names[config["_target_"].rsplit(".", 1)[1]]
    model, text, feed = zoo.build("llama_gqa"), zoo.prompt(70), zoo.prompt(8, 9)
    run = open_engine(model, method, 0.3)
    cache, first = run.prefill([text], len(feed))
    seen, ours = [], [first[0]]
    for token in feed:
        seen.append(zoo.visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    assert all(int(mask[0].sum()) == 21 + 1 for step in seen for mask in step)
    expected = zoo.Oracle(zoo.build("llama_gqa")).logits(text + feed, zoo.masks_of_run(len(text), seen))
    torch.testing.assert_close(torch.stack(ours), expected[len(text) - 1 :], **CLOSE)
