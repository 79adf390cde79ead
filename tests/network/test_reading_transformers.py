"""Models of transformers with tiny random weights: what is found in them is true, and nothing of them changes."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.network.test_read_wirings import acted, randomized
from weightedit.network.layer import NeuronGroup
from weightedit.network.reading import wiring_of

transformers = pytest.importorskip("transformers")

WIDE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS = {"input_ids": torch.randint(40, (2, 7), generator=torch.Generator().manual_seed(0))}
PICTURES = {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


def gpt2():
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=4, **options)
    return transformers.GPT2LMHeadModel(config), TOKENS


def bert():
    return transformers.BertModel(transformers.BertConfig(**WIDE, **NO_DROPOUT, max_position_embeddings=32)), TOKENS


def llama():
    config = transformers.LlamaConfig(**WIDE, num_key_value_heads=2, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config), TOKENS


def vit():
    config = transformers.ViTConfig(**WIDE, **NO_DROPOUT, image_size=32, patch_size=16)
    return transformers.ViTForImageClassification(config), PICTURES


def t5():
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config), TOKENS | {"decoder_input_ids": TOKENS["input_ids"][:, :5]}


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config), PICTURES


MODELS = {make.__name__: make for make in (gpt2, bert, llama, vit, t5, resnet)}
HEADS = {  # sizes of the parts of a group of heads, and which of them may be permuted
    "gpt2": [(3, False), (4, True), (4, True)],
    "bert": [(4, True), (4, True)],
    "llama": [(2, True), (4, True)],
    "vit": [(4, True), (4, True)],
    "t5": [(4, True), (4, True)],
}
INTO_HEADS = ("c_attn.weight", "value.weight", "v_proj.weight", "Attention.v.weight")
UP = (
    "c_fc.weight",
    "intermediate.dense.weight",
    "up_proj.weight",
    "wi.weight",
    "fc1.weight",
    "layer.0.convolution.weight",
)


def in_float64(monkeypatch):
    """Llama takes its norms in float32, whatever it is in, and so its function only holds to that."""
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(norm, "forward", forward)


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_without_a_change_and_what_is_found_is_true(name, monkeypatch):
    in_float64(monkeypatch)
    torch.manual_seed(0)
    net, inputs = MODELS[name]()
    net = randomized(net)
    before, drawn, start = {k: t.clone() for k, t in net.state_dict().items()}, states(), time.monotonic()
    wiring = wiring_of(net)
    assert time.monotonic() - start < 20 and states() == drawn and not wiring.notes
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())

    params = {k: p.detach() for k, p in net.named_parameters()}
    matrices = {k: p.numel() for k, p in params.items() if sum(n > 1 for n in p.shape) > 1}
    assert sum(matrices[k] for k in matrices.keys() & wiring.by_name.keys()) >= 0.95 * sum(matrices.values())

    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def of(params):
        return functional_call(net, (params, {k: b.clone() for k, b in buffers.items()}), (), inputs)[0]

    out = of(params)
    for seed in range(2):
        moved = acted(wiring, params, seed)
        assert max(float((moved[k] - params[k]).abs().max()) for k in matrices) > 0.1
        assert float((of(moved) - out).abs().max()) < 1e-9 * float(out.abs().max())

    if name in ("bert", "vit"):  # which turn no queries
        for query in [k for k in params if k.endswith("query.weight")]:
            key = wiring.by_name[query.replace("query", "key")]
            found = wiring.sets[wiring.by_name[query].target]
            assert wiring.by_name[query].target == key.target and found.group == NeuronGroup(flip=True)

    ups = [wiring.sets[wiring.by_name[k].target] for k in params if k.endswith(UP)]
    assert len(ups) >= 2 and all(s.permutable and not s.parts for s in ups)
    for key in [k for k in params if k.endswith(INTO_HEADS)]:
        found = wiring.sets[wiring.by_name[key].target]
        assert [(part.size, part.permutable) for part in found.parts] == HEADS[name]
        assert found.parts[-2].order in found.parts[-1].within  # every head has an order of its own


def test_inputs_may_be_given_and_give_the_same():
    net, inputs = bert()
    assert wiring_of(net, inputs) == wiring_of(net)


def test_large_models_are_not_copied():
    """Nothing of the size of a parameter is allocated: a model of 5 GB, of meta tensors, is read like a small one."""
    with torch.device("meta"):
        config = transformers.LlamaConfig(
            num_hidden_layers=2, vocab_size=100, hidden_size=8192, intermediate_size=28672
        )
        net = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in net.parameters()) > 1e9
    wiring = wiring_of(net)
    assert not wiring.notes and isinstance(net, nn.Module)
    assert str(wiring.sets[wiring.by_name["model.layers.1.mlp.up_proj.weight"].target]) == "permutation + scale + flip"
