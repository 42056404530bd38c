"""Hugging Face models through Saccade: equal results, refusals, and nothing left behind."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, cases, largest_error, run, token_ids

import saccade
from saccade.adapters.huggingface import attach, attention_sites, detach, is_attached
from saccade.adapters.observation import observe
from saccade.errors import ArgumentError, MaskError, MissingExtraError, UnsupportedModelError

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are faster on one thread, above all when another process has the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model_of(name: str):
    return BY_NAME[name].build()


def tiny_llama():
    return BY_NAME["Llama"].build()


# ---------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
    ("architecture", "case"),
    [pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}") for pair in cases()],
)
def test_equal_to_eager_on_valid_tokens(architecture: Architecture, case: str):
    model = model_of(architecture.name)
    inputs, valid = architecture.inputs(case)
    expected = run(model, inputs, valid)
    with attach(model):
        found = run(model, inputs, valid)
    assert largest_error(found, expected) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_attentions_are_lazy_patterns(architecture: Architecture):
    """``output_attentions=True`` gives one pattern for each site, in order; dense they are what eager gives."""
    model = model_of(architecture.name)
    inputs, _ = architecture.inputs("single")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True)
        with attach(model):
            found = model(**inputs, output_attentions=True)
            assert "attentions" not in model(**inputs)
    names = [name for name in expected if "attentions" in name and expected[name]]
    towers = {"CLIP": 0, "Gemma 3, pictures": 2}  # whose patterns transformers leaves out, or in part
    assert sum(len(expected[name]) for name in names) == towers.get(architecture.name, _sites(architecture))
    for name in names:
        assert len(found[name]) == len(expected[name])
        for pattern, weights in zip(found[name], expected[name], strict=True):
            assert isinstance(pattern, saccade.Pattern)
            assert pattern.shape == weights.shape
            assert largest_error([pattern.dense()], [weights]) < 1e-5


def _sites(architecture: Architecture) -> int:
    return len(attention_sites(model_of(architecture.name)))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_every_attention_module_is_seen(architecture: Architecture):
    model = model_of(architecture.name)
    inputs, valid = architecture.inputs("single")
    with observe(model, [saccade.statistics.LogSumExp()]) as observation:
        run(model, inputs, valid)
    assert len(observation.sites) == _sites(architecture) >= 2
    assert set(observation.sites) == set(attention_sites(model))


def generate(model, cache: str, *, padded: bool) -> torch.Tensor:
    ids = token_ids(2, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    if cache != "default":
        options["cache_implementation"] = cache
    return model.generate(ids, attention_mask=mask, **options)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("kind", ["default", "static"])
@pytest.mark.parametrize("name", [a.name for a in ARCHITECTURES if a.generates])
def test_generate_gives_the_same_tokens(name: str, kind: str, padded: bool):
    model = model_of(name)
    expected = generate(model, kind, padded=padded)
    assert expected.shape[1] >= 8
    with attach(model):
        assert torch.equal(generate(model, kind, padded=padded), expected)


def test_beam_search_gives_the_same_tokens():
    model = tiny_llama()
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    expected = model.generate(token_ids(2, 7), **options)
    with attach(model):
        assert torch.equal(model.generate(token_ids(2, 7), **options), expected)


@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_a_4d_mask_given_by_the_user(kind: str):
    model = tiny_llama()
    visible = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(4)) < 0.5
    visible |= torch.eye(12, dtype=torch.bool)
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    ids = token_ids(2, 12)
    with torch.no_grad():
        expected = model(ids, attention_mask=added).logits
        with attach(model):
            found = model(ids, attention_mask=visible if kind == "boolean" else added).logits
    assert (found - expected).abs().max() < 1e-5


def test_gradients_equal_eager():
    model = tiny_llama()

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(token_ids(1, 12), labels=token_ids(1, 12)).loss.backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    expected = gradient()
    with attach(model):
        assert (gradient() - expected).abs().max() < 1e-5


def test_bfloat16():
    model = tiny_llama().bfloat16()
    with torch.no_grad():
        expected = model(token_ids(1, 12)).logits
        with attach(model):
            found = model(token_ids(1, 12)).logits
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1


# ---------------------------------------------------------------------------------- attach, detach


def implementations(model) -> list[str]:
    return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


def registered() -> tuple[dict, dict]:
    """What is registered by others: our name stays, for copies of attached models."""
    interfaces = (transformers.AttentionInterface, transformers.AttentionMaskInterface)
    return tuple({k: v for k, v in i._global_mapping.items() if k != "saccade"} for i in interfaces)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", ["Llama", "T5", "CLIP"])
def test_detach_leaves_nothing_behind(name: str):
    model = BY_NAME[name].build()
    before, mappings, methods = implementations(model), registered(), dict(vars(model))
    attach(model)
    assert is_attached(model)
    assert set(implementations(model)) == {"saccade"}
    detach(model)
    assert not is_attached(model)
    assert implementations(model) == before
    assert registered() == mappings
    assert hooks_of(model) == 0
    assert vars(model) == methods


def test_mixed_implementations_are_restored():
    model = BY_NAME["CLIP"].build()
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    before = implementations(model)
    assert {"sdpa", "eager"} <= set(before)
    with attach(model):
        assert set(implementations(model)) == {"saccade"}
    assert implementations(model) == before


def test_the_context_detaches_after_an_error():
    model, mappings = tiny_llama(), registered()
    with pytest.raises(RuntimeError, match="boom"), attach(model):
        raise RuntimeError("boom")
    assert not is_attached(model)
    assert registered() == mappings


def test_attaching_twice_changes_nothing():
    model = tiny_llama()
    with attach(model) as outer:
        with attach(model) as inner:
            assert (outer.fresh, inner.fresh) == (True, False)
            assert inner.sites == outer.sites
        assert is_attached(model)
    assert not is_attached(model)
    detach(model)  # and neither does detaching twice
    assert set(implementations(model)) == {"eager"}


def test_registration_stays_for_other_models():
    first, second = tiny_llama(), tiny_llama()
    attach(first)
    with attach(second):
        pass
    assert first(token_ids(1, 4)).logits.isfinite().all()
    detach(first)


def test_a_copy_of_an_attached_model_is_attached_by_itself():
    model, ids = tiny_llama(), token_ids(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        attach(model)
        copied = copy.deepcopy(model)
        detach(model)
        assert is_attached(copied)
        assert torch.equal(model(ids).logits, expected)
        assert (copied(ids).logits - expected).abs().max() < 1e-5
        with observe(copied, [saccade.statistics.Entropy()]) as observation:
            copied(ids)
        assert len(observation.calls) == 2
        assert is_attached(copied)
        detach(copied)
        assert torch.equal(copied(ids).logits, expected)
    assert set(implementations(copied)) == {"eager"}
    assert hooks_of(copied) == hooks_of(model) == 0
    assert vars(copied).keys() == vars(model).keys()


def test_the_first_forward_of_a_copy_leaves_the_original_alone():
    model = tiny_llama()
    with attach(model):
        hooks = hooks_of(model)
        copied = copy.deepcopy(model)
        copied(token_ids(1, 4))
        assert (hooks_of(copied), hooks_of(model)) == (0, hooks)


def test_a_model_built_from_an_attached_configuration_runs_after_detach():
    model = tiny_llama()
    with attach(model):
        other = type(model)(copy.deepcopy(model.config)).eval()
        other.load_state_dict(model.state_dict())
    ids = token_ids(1, 6)
    assert (other(ids).logits - model(ids).logits).abs().max() < 1e-5


def unregister() -> None:
    for interface in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        interface._global_mapping.pop("saccade", None)


@pytest.mark.parametrize("ran", [False, True])
def test_an_attached_model_can_be_saved_whole(tmp_path, ran: bool):
    model, ids = tiny_llama(), token_ids(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        with attach(model):
            if ran:
                model(ids)
            torch.save(model, tmp_path / "model.pt")
        unregister()  # as in a new process
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        assert is_attached(loaded)
        assert (loaded(ids).logits - expected).abs().max() < 1e-5
        assert hooks_of(loaded) == 0
        detach(loaded)
        assert torch.equal(loaded(ids).logits, expected)


def test_the_last_context_detaches():
    model = tiny_llama()
    first, second = attach(model), attach(model)
    with first:
        pass
    assert is_attached(model)
    with first:  # left before: counts no more
        pass
    assert is_attached(model)
    with second:
        pass
    assert not is_attached(model)


def test_a_context_left_late_does_not_detach_a_later_one():
    model = tiny_llama()
    with attach(model):
        detach(model)
        attach(model)
    assert is_attached(model)
    detach(model)


def test_the_meta_device():
    model, ids = tiny_llama().to("meta"), torch.zeros(1, 5, dtype=torch.long, device="meta")
    with attach(model):
        logits = model(ids).logits
    assert (logits.shape, logits.device.type) == ((1, 5, 99), "meta")


def test_counting_hooks_go_after_the_first_forward():
    model = tiny_llama()
    with attach(model):
        assert hooks_of(model) > 0
        model(token_ids(1, 4))
        assert hooks_of(model) == 0


# ---------------------------------------------------------------------------------- refusals

_SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

UNSUPPORTED = {
    "BloomForCausalLM": (
        "BloomConfig",
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "FalconForCausalLM": ("FalconConfig", _SMALL),
    "GPTJForCausalLM": ("GPTJConfig", _GPT | {"rotary_dim": 4}),
    "GPTNeoForCausalLM": (
        "GPTNeoConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    ),
    "CodeGenForCausalLM": ("CodeGenConfig", _GPT | {"rotary_dim": 4}),
    "MptForCausalLM": ("MptConfig", {"vocab_size": 99, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "MPNetModel": ("MPNetConfig", _SMALL | {"intermediate_size": 48}),
    "DebertaV2Model": ("DebertaV2Config", _SMALL | {"intermediate_size": 48}),
    "RoFormerModel": ("RoFormerConfig", _SMALL | {"intermediate_size": 48, "embedding_size": 32}),
    "XLNetModel": ("XLNetConfig", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4}),
    "LongformerModel": (
        "LongformerConfig",
        _SMALL | {"intermediate_size": 48, "attention_window": 4},
    ),
    # Mixed: text goes through the interface, the vision model's pooling head does not.
    "SiglipModel": (
        "SiglipConfig",
        {
            "text_config": _SMALL | {"intermediate_size": 48},
            "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
            | {"intermediate_size": 48, "image_size": 16, "patch_size": 8},
        },
    ),
    # Its results depend on the implementation's name.
    "DeepseekV32ForCausalLM": (
        "DeepseekV32Config",
        _SMALL
        | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 48},
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_refused_by_name_and_unharmed(kind: str):
    config, options = UNSUPPORTED[kind]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    runs = kind not in {"SiglipModel", "DeepseekV32ForCausalLM"}  # too slow, or needs pictures
    before, mappings = implementations(model), registered()
    expected = model(token_ids(1, 8))[0] if runs else None
    with pytest.raises(UnsupportedModelError, match=f"{kind} is not supported"):
        attach(model)
    assert implementations(model) == before
    assert registered() == mappings
    assert hooks_of(model) == 0
    if expected is not None:
        assert torch.equal(model(token_ids(1, 8))[0], expected)


def test_a_model_whose_calls_do_not_arrive_fails_in_its_first_forward():
    model = tiny_llama()
    ids = token_ids(1, 8)
    expected = model(ids).logits
    attention = model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)  # looks nothing up
    attach(model)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.self_attn ran and no"):
        model(ids)
    assert not is_attached(model)
    assert hooks_of(model) == 0
    del attention.forward
    assert torch.equal(model(ids).logits, expected)


def test_a_configuration_that_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = tiny_llama()
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="still has 'eager'"):
        attach(model)
    assert not is_attached(model)


def test_no_hugging_face_model():
    with pytest.raises(UnsupportedModelError, match=r"Linear is no .*saccade\.sdpa\(\)"):
        attach(torch.nn.Linear(2, 2))


def test_transformers_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'saccade\[hf\]'"):
        attach(torch.nn.Linear(2, 2))


def test_importing_the_adapters_imports_no_transformers():
    code = "import sys, saccade.adapters.observation; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dropout_in_training_is_refused():
    config = copy.deepcopy(tiny_llama().config)
    config.attention_dropout = 0.1
    model = transformers.LlamaForCausalLM(config).train()
    with attach(model):
        with pytest.raises(ArgumentError, match=r"dropout 0\.1.*model\.eval\(\)"):
            model(token_ids(1, 4))
        model.eval()(token_ids(1, 4))


def test_a_model_that_computes_with_its_mask_is_refused():
    with attach(tiny_llama()):
        mask = transformers.AttentionMaskInterface._global_mapping["saccade"](1, 4, 4)
    with pytest.raises(UnsupportedModelError, match="computes with its attention mask"):
        torch.where(mask, 1.0, 0.0)


@pytest.mark.parametrize("name", ["indices", "block_indices", "cache", "sinks"])
def test_arguments_that_change_the_pattern_are_refused(name: str):
    from saccade.adapters.huggingface import attend

    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(UnsupportedModelError, match=name):
        attend(torch.nn.Identity(), q, q, q, None, **{name: torch.zeros(1)})


def test_integer_masks_are_refused():
    from saccade.adapters.huggingface import attend

    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(MaskError, match=r"torch\.int64"):
        attend(torch.nn.Identity(), q, q, q, torch.ones(1, 1, 2, 2, dtype=torch.int64))


def test_without_a_mask_causality_is_upper_left():
    """A static cache's prefill: 3 queries at the first of 5 keys."""
    from saccade.adapters.huggingface import attend

    module = torch.nn.Identity()
    q, k = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 5, 4)
    v = torch.arange(5.0)[None, None, :, None]
    for given, expected in ((True, [0.0, 0.5, 1.0]), (False, [2.0, 2.0, 2.0])):
        out, _ = attend(module, q, k, v, None, is_causal=given)
        assert out.flatten().tolist() == pytest.approx(expected)
    module.is_causal = False
    assert attend(module, q, k, v, None)[0].flatten().tolist() == pytest.approx([2.0] * 3)
    assert attend(module, q[:, :, :1], k, v, None, is_causal=True)[0].item() == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore")
def test_autocast():
    model = tiny_llama()
    ids = token_ids(1, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with attach(model):
            found = model(ids).logits
    assert (found - expected).abs().max() < 0.1
