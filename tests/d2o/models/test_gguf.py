"""GGUF files: a small one says what its model says and is unpacked once, broken and foreign ones are refused."""

import struct

import pytest
import torch
from transformers import AutoTokenizer

from d2o.errors import InputError
from d2o.models.header import read_header
from d2o.models.loading import fingerprint, load
from d2o.models.outline import dtype_of, outline
from d2o.models.random import random_llama
from d2o.models.unpack import read_header_of_model, unpacked

gguf = pytest.importorskip("gguf")
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def paired(weight, heads):
    """Rows as llama.cpp orders a head's: halves of a rotation side by side. `weight`: `[heads * D, hidden]`."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, source, facts=(), arch="llama", pre="smollm", tensors=()):
    """The random llama as a GGUF file, its matrices in Q8_0; `facts`: more pairs (method of the writer, arguments)."""
    writer, config = gguf.GGUFWriter(path, arch), source.model.config
    vocab = sorted(source.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([word for word, _ in vocab])
    writer.add_token_types([3 if word in ("<s>", "</s>", "<pad>") else 1 for word, _ in vocab])
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    for method, *arguments in facts:
        getattr(writer, method)(*arguments)
    for name, weight in source.model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if "attn_q" in name or "attn_k" in name:
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            weight = paired(weight, heads)
        data, kind = weight.numpy(), gguf.GGMLQuantizationType.F32
        if weight.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    for name in tensors:
        writer.add_tensor(name, torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def source():
    """A random llama whose weights are what Q8_0 makes of them."""
    made = random_llama(layers=2, hidden=64, heads=4, kv_heads=2, window=256)
    vocab = len(made.tokenizer)
    made.tokenizer.add_tokens(["ĊĊ"])  # the merge needs its word
    made.model.resize_token_embeddings(vocab + 1)
    eight = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), eight), eight).copy()))
    return made


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", source)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2O_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


def test_it_says_what_its_model_says(file, source):
    found = load(str(file))
    assert found.weights == "gguf Q8_0" and found.name == "small.gguf" and found.window == 256
    assert found.eos_ids == {1, 2}  # the end of a turn ends an answer too
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(found.model(ids).logits, source.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_its_tokenizer_has_the_template_and_splits_before_digits(file):
    tokenizer = load(str(file)).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "[user]Hi"
    assert tokenizer("a\n\n1").input_ids[0] == 0  # as add_bos_token says
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n1").input_ids[1:]) == ["a", "ĊĊ", "1"]
    assert tokenizer.decode(tokenizer("wörds 12", add_special_tokens=False).input_ids) == "wörds 12"


def test_it_is_unpacked_once_and_known_by_its_content(file, capsys):
    folder, node = unpacked(file), {"path": str(file)}
    before = (folder / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert unpacked(file) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not capsys.readouterr().err
    assert dtype_of(node, "auto", "cpu") == "float32" and outline(node).token_bytes == 2 * 2 * 2 * 16 * 4
    first = fingerprint(node)
    data = file.read_bytes()
    (copy := file.with_name("copy")).mkdir(exist_ok=True)
    (copy / file.name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fingerprint({"path": str(copy / file.name)}) != first


@pytest.mark.parametrize("cut", [4, 8, 24, 60, 0.3, 0.9, 0.999])
def test_a_torn_file_is_refused(file, tmp_path, cut):
    data, torn = file.read_bytes(), tmp_path / "cut.gguf"
    torn.write_bytes(data[: cut if isinstance(cut, int) else int(cut * len(data))])
    with pytest.raises(InputError, match="header is torn|header speaks of|no GGUF") as error:
        load(str(torn))
    assert "\n" not in str(error.value)


HEAD = b"GGUF" + struct.pack("<I", 3)
PAIR = struct.pack("<Q", 1) + b"a"  # a key


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "no GGUF"),
        (b"PK\x03\x04 something else", "no GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
        (HEAD + struct.pack("<QQ", 1 << 60, 0), "torn"),
        (HEAD + struct.pack("<QQ", 0, 1 << 60), "torn"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62) + b"a", "torn"),
        (HEAD + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<IIQ", 9, 0, 1 << 61), "torn"),
        (HEAD + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<IIQ", 9, 8, 1 << 61), "torn"),
        (HEAD + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<IIQ", 9, 9, 1 << 61) * 2000, "torn"),
        (HEAD + struct.pack("<QQ", 0, 1) + PAIR + struct.pack("<I", 77), "torn"),
        (HEAD + struct.pack("<QQ", 1, 0) + PAIR + struct.pack("<I", 9), "torn"),
        (HEAD + struct.pack("<QQ", 0, 0), "no tensors"),
    ],
    ids=range(13),
)
def test_a_foreign_header_is_refused(tmp_path, data, said):
    (file := tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_header(file)


@pytest.mark.parametrize(
    "how, said",
    [
        ({"facts": [("add_type", "adapter")]}, "no model, but: adapter"),
        ({"facts": [("add_uint16", "split.count", 2)]}, "one of 2 parts"),
        ({"facts": [("add_rope_scaling_type", gguf.RopeScalingType.YARN)]}, "scales its rotation .yarn."),
        ({"tensors": ["rope_freqs.weight"]}, "scales its rotation .rope_freqs."),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path, source, how, said):
    with pytest.raises(InputError, match=said):
        read_header_of_model(write_gguf(tmp_path / "x.gguf", source, **how))


@pytest.mark.parametrize(
    "arch, said", [("whisper9", "whisper9: .*not supported"), ("mamba", "mamba: not a decoder of attention")]
)
def test_another_family_is_refused(tmp_path, source, arch, said):
    with pytest.raises(InputError, match=said):
        load(str(write_gguf(tmp_path / "x.gguf", source, arch=arch)))
    assert not list(tmp_path.glob("**/*.new"))


def test_a_file_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is no file"):
        load(str(tmp_path / "x.gguf"))
    monkeypatch.setenv("D2O_DATA", str(tmp_path))
    with pytest.raises(InputError) as error:
        fingerprint({"path": str(tmp_path / "models" / "smollm2" / "x.gguf")})
    assert "prepare_model.py smollm2" in error.value.hint


def test_what_lies_beside_it_is_not_read(file, tmp_path, source):
    (copy := tmp_path / "small.gguf").write_bytes(file.read_bytes() + b"\0")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = unpacked(copy)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [0, source.tokenizer("a").input_ids[1]]
