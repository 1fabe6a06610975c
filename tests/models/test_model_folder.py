"""A model folder that says something wrong: it answers as transformers does, or ends in one sentence.

Folders are spoiled in one place at a time: every field of config.json, every tensor, every file.
"""

import io
import json
import logging
import shutil

import pytest
import sentencepiece
import torch
from models import tiny_chat
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    SiglipVisionConfig,
)

from quant_engine import folders
from quant_engine.models import check
from quant_engine.models.catalog import fingerprint, model_card
from quant_engine.models.decode import answer as answer_steps
from quant_engine.models.decode import answer_text, prompt_inputs
from quant_engine.models.load import check_pictures, load_dense
from quant_engine.spec import UserError

TEXT = "The cat sat on the mat and looked at the moon."
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PICTURE = Image.new("RGB", (60, 40), "red")
MISSING = object()
WRONG = [MISSING, None, "7", -1, 0, 7, {}]
KINDS = ["llama", "llava"]


@pytest.fixture(autouse=True)
def quiet():
    """transformers reports on every folder that is spoiled here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(request, tiny_models, tmp_path):
    return shutil.copytree(tiny_models / request.param, tmp_path / request.param)


def edit(path, **fields):
    content = json.loads(path.read_text())
    for name, value in fields.items():
        content.pop(name, None) if value is MISSING else content.update({name: value})
    path.write_text(json.dumps(content))


def store(folder, tensors, metadata=True):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} if metadata else None)


def load(folder, dtype="float32"):
    return load_dense(model_card(str(folder)), None, dtype, "cpu")


def judge(folder):
    """Whether the folder is refused in a sentence; if not, its logits must be those of transformers."""
    try:
        loaded = load(folder)
        inputs = {"input_ids": loaded.tokenizer(TEXT, return_tensors="pt").input_ids}
        if loaded.card.pictures:
            inputs = prompt_inputs(loaded, PICTURE, TEXT)
    except UserError as refusal:
        text = str(refusal)
        assert "\n" not in text
        assert text.endswith((".", "?")), text
        assert len(text) < 600, text
        return True
    cls = LlavaNextForConditionalGeneration if loaded.card.pictures else LlamaForCausalLM
    reference = cls.from_pretrained(folder, dtype=torch.float32).eval()
    if not loaded.card.pictures:
        inputs = {"input_ids": AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids}
    with torch.inference_mode():
        ours, theirs = loaded.model(**inputs).logits, reference(**inputs, return_dict=True).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
    return False


def fields(config, path=()):
    for name, value in config.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from fields(value, (*path, name))


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_every_field_of_the_configuration_wrong_or_missing(folder):
    whole = json.loads((folder / "config.json").read_text())
    refused = []
    for path in fields(whole):
        for wrong in WRONG if folder.name == "llama" else (MISSING, None, "7", 7):
            config = json.loads(json.dumps(whole))
            part = config
            for name in path[:-1]:
                part = part[name]
            part[path[-1]] = wrong
            if wrong is MISSING:
                del part[path[-1]]
            (folder / "config.json").write_text(json.dumps(config))
            refused.append(judge(folder))
    assert len(refused) > 150
    assert 0.5 < sum(refused) / len(refused) < 0.95


SPOILED = (
    *("embed_tokens", "lm_head", "norm", "language_model.layers.0.self_attn.q_proj", "model.layers.0."),
    *("image_newline", "projector.linear_1", "class_embedding", "encoder.layers.0.self_attn.q_proj"),
)
"""Parts of the names of the tensors that are spoiled: each of a text model's first layer, some of LLaVA-NeXT's."""


def spoilings(name, tensor):
    """The tensors that stand in a tensor's place, by what was done to it."""
    other = tensor.flatten()[:-1] if tensor.dim() == 1 else tensor.T if len(set(tensor.shape)) > 1 else tensor[:-1]
    nan, infinite = tensor.clone(), tensor.clone()
    nan.view(-1)[-1], infinite.view(-1)[0] = torch.nan, -torch.inf
    return {
        "missing": {},
        "renamed": {f"{name}s": tensor},
        "prefixed": {f"module.{name}": tensor},
        "with a scale": {name: tensor, f"{name}_scale": tensor.flatten()[:1].clone()},
        "reshaped": {name: other.contiguous()},
        "flattened": {name: tensor.flatten()},
        "int8": {name: (tensor * 10).to(torch.int8)},
        "float8": {name: tensor.to(torch.float8_e4m3fn)},
        "bfloat16": {name: tensor.bfloat16()},
        "float64": {name: tensor.double()},
        "nan": {name: nan},
        "infinite": {name: infinite},
    }


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_every_tensor_missing_renamed_reshaped_cast_or_not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if not any(part in name for part in SPOILED):
            continue
        rest = {other: value for other, value in tensors.items() if other != name}
        for what, instead in spoilings(name, tensor).items():
            if what == "flattened" and tensor.dim() == 1:
                continue
            store(folder, rest | instead)
            assert judge(folder) == (what not in ("bfloat16", "float64")), (name, what)


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_every_file_missing_empty_cut_off_a_pointer_or_not_what_it_should_be(folder):
    answers = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for what, instead in {
            "missing": None,
            "empty": b"",
            "cut off": content[: len(content) // 2],
            "a pointer": POINTER,
            "an empty object": b"{}",
            "a list": b"[]",
            "no text": bytes(range(128, 256)),
            "with a mark": b"\xef\xbb\xbf" + content,
        }.items():
            path.unlink() if instead is None else path.write_bytes(instead)
            answers[path.name, what] = judge(folder)
            path.write_bytes(content)
    assert all(refused for (_, what), refused in answers.items() if what == "a pointer")
    assert all(refused for (name, _), refused in answers.items() if name == "model.safetensors")
    assert all(refused for (name, what), refused in answers.items() if name == "config.json" and what != "with a mark")
    assert all(answers["tokenizer.json", what] for what in ("missing", "empty", "cut off", "an empty object"))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "gptq, 4 bits"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors, float-quantized"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8, e4m3"),
        ("gptq", "quantization_config"),
    ],
)
def test_a_folder_that_is_quantized_already_is_refused_by_the_name_of_its_format(folder, quantization, words):
    edit(folder / "config.json", quantization_config=quantization)
    with pytest.raises(UserError, match=f"is quantized already \\({words}.*give the unquantized model"):
        model_card(str(folder))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize("suffix", ["qweight", "weight_packed", "weight_scale_inv", "weight.absmax", "SCB"])
def test_packed_tensors_are_refused_though_the_configuration_is_silent(folder, suffix):
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.0.mlp.up_proj.{suffix}"] = torch.zeros(4, 4)
    store(folder, tensors)
    with pytest.raises(UserError, match=f"quantized already .*{suffix}"):
        model_card(str(folder))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_wrapper_s_prefix_is_named(folder, prefix):
    store(folder, {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()})
    with pytest.raises(UserError, match=f"prefix '{prefix}', as in {prefix}.*save the model without its wrapper"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_what_has_no_place_in_the_model_is_named_with_its_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    store(folder, tensors | {"score.weight": torch.zeros(3, 32)})
    with pytest.raises(UserError, match=r"hold score.weight \[3, 32\]"):
        load(folder)
    store(folder, tensors | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(3, 32)})
    with pytest.raises(UserError, match="hold adapters"):
        load(folder)
    edit(folder / "config.json", num_hidden_layers=1)
    store(folder, tensors)
    with pytest.raises(UserError, match=r"hold model.layers.1.\S+ \[\d+(, \d+)?\], which the model of its config.json"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_both_shapes_of_a_misshapen_tensor_are_named(folder):
    edit(folder / "config.json", vocab_size=300)
    with pytest.raises(UserError, match=r"embed_tokens.weight in .* is \[260, 32\], and .* should be \[300, 32\]"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_what_older_releases_stored_is_passed_over_and_metadata_are_not_needed(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    store(folder, tensors, metadata=False)
    assert "rotary_emb.inv_freq" not in load(folder).model.state_dict()


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_one_whole_file_goes_before_an_index_left_over_from_another_save(folder):
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00002.safetensors")
    (folder / check.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert not judge(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_shards_are_read_by_their_index_and_a_missing_shard_is_not_on_this_machine(folder):
    load(folder).model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    files = check.weight_files(folder)
    assert len(files) > 2
    assert not judge(folder)
    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=f"not all on this machine: 1 of {len(files)} files .*{files[1]}"):
        model_card(str(folder))
    (folder / check.INDEX).unlink()
    with pytest.raises(UserError, match=rf"neither model.safetensors nor .*it holds {files[0]}"):
        model_card(str(folder))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize("says_tied", [True, False])
@pytest.mark.parametrize("holds", ["both, different", "both, equal", "embedding", "head"])
def test_tied_and_untied_heads_are_those_of_transformers_also_against_the_configuration(folder, says_tied, holds):
    edit(folder / "config.json", tie_word_embeddings=says_tied)
    tensors = load_file(folder / "model.safetensors")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if holds == "both, equal":
        tensors[head] = tensors[embedding].clone()
    elif holds != "both, different":
        del tensors[head if holds == "embedding" else embedding]
    store(folder, tensors)
    assert judge(folder) == (not says_tied and holds in ("embedding", "head"))
    if says_tied:
        model = load(folder).model
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == (holds != "both, different")


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_value_that_is_not_finite_is_named_and_so_is_one_too_large_for_the_type(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 5] = 7e4
    store(folder, tensors)
    load(folder)
    with pytest.raises(UserError, match=f"{name} in .* values up to 70000, too large for float16: compute in bfloat16"):
        load(folder, "float16")
    tensors[name][3, 5] = torch.nan
    store(folder, tensors)
    with pytest.raises(UserError, match=rf"{name} in .*model.safetensors has values that are not finite"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_tensors_without_values_are_those_of_transformers(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "mlp" in name]:
        tensors[name] = tensors[name][:, :0].contiguous() if "down" in name else tensors[name][:0].contiguous()
    store(folder, tensors)
    edit(folder / "config.json", intermediate_size=0)
    assert not judge(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_tokens_beyond_the_embedding_are_said_but_for_a_padding_token(folder):
    words = AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": "<pad>"})
    words.save_pretrained(folder)
    edit(folder / "config.json", pad_token_id=words.pad_token_id)
    assert answer_text(load(folder), None, "Hello", 4) is not None
    words.add_tokens(["<more>"])
    words.save_pretrained(folder)
    with pytest.raises(UserError, match="tokens up to number 261, and the model's embedding has 260 rows"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads and 3 for keys and values"),
        ({"num_attention_heads": 5, "head_dim": MISSING}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "32"}, "hidden_size is '32', and should be of type int"),
        ({"hidden_act": "silo"}, "there is no 'silo', which hidden_act says"),
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 1e4}}, "rope_type 'su'; those that are known are: def"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}},
            "factor '2' .* where a number",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_theta '1e4' .* a number"),
        ({"num_hidden_layers": 0}, "(no decoder block|no place for)"),
        ({"model_type": "mixtral"}, "holds a 'mixtral' model"),
        ({"model_type": ["llama"]}, "only llama and llava_next"),
    ],
)
def test_settings_that_transformers_would_refuse_or_misread_are_one_sentence(folder, settings, words):
    edit(folder / "config.json", **settings)
    with pytest.raises(UserError, match=words):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    ],
)
def test_scaled_rotary_positions_are_those_of_transformers(folder, rope):
    edit(folder / "config.json", rope_parameters=rope)
    assert not judge(folder)
    edit(folder / "config.json", rope_parameters=MISSING, rope_scaling=rope, rope_theta=rope["rope_theta"])
    assert not judge(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_outputs_that_a_configuration_asks_for_don_t_change_an_answer(folder):
    expected = answer_text(load(folder), None, "Hello", 8)
    edit(folder / "config.json", return_dict=False, output_hidden_states=True, output_attentions=True, use_cache=False)
    assert answer_text(load(folder), None, "Hello", 8) == expected


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_an_answer_ends_where_generation_config_says(folder):
    tokens = [step.token for step in answer_steps(load(folder), None, "Hello", 8)]
    end = next(token for token in tokens if token != tokens[0])
    edit(folder / "generation_config.json", eos_token_id=[2, end])
    assert [step.token for step in answer_steps(load(folder), None, "Hello", 8)] == tokens[: tokens.index(end) + 1]
    edit(folder / "generation_config.json", eos_token_id={"a": 1})
    with pytest.raises(UserError, match=r"eos_token_id .* where a number or a list of numbers belongs"):
        load(folder)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_any_file_that_an_answer_hangs_on_is_part_of_a_folder_s_revision(folder):
    seen = {fingerprint(model_card(str(folder)))}
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        path = folder / name
        path.write_text(path.read_text() + " ")
        seen.add(fingerprint(model_card(str(folder))))
    assert len(seen) == 5


def test_an_adapter_folder_and_a_folder_without_weights_are_said_as_such(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter and no model"):
        model_card(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"neither model.safetensors nor .*: its weights are not on this machine"):
        model_card(str(tmp_path))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_transformers_warns_of_a_model_that_is_read_and_not_before_a_sentence(folder):
    logging.disable(logging.NOTSET)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("transformers").addHandler(handler)
    try:
        edit(folder / "config.json", rope_parameters={"rope_type": "linear", "factor": "x"})
        with pytest.raises(UserError, match="has factor 'x' among its rotary settings"):
            load(folder)
        assert not log.getvalue()
        edit(folder / "config.json", rope_parameters={"rope_type": "linear", "factor": 0.5})
        load(folder)
        assert "factor field must be" in log.getvalue()
    finally:
        logging.getLogger("transformers").removeHandler(handler)


# Tokenizers


def test_a_tokenizer_of_sentencepiece_alone_is_read(tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
        )
    )
    model.save_pretrained(tmp_path / "sp")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folders.ASSETS / "text" / "calibration.txt"),
        model_prefix=str(tmp_path / "sp" / "tokenizer"),
        vocab_size=400,
        byte_fallback=True,
        model_type="bpe",
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "sp" / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load(tmp_path / "sp")
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "sp" / "tokenizer.model"))
    assert loaded.tokenizer(TEXT)["input_ids"] == [1, *pieces.encode(TEXT)]
    assert not judge(tmp_path / "sp")
    (tmp_path / "sp" / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: put the model's tokenizer.json or tokenizer.model there"):
        load(tmp_path / "sp")


# Pictures


def answer(folder):
    return answer_text(load(folder), PICTURE, "What is it?", 8)


def older_processor(folder, stated):
    """The folder's processor in two files, as it was saved until 2024; `stated` is the second one's content."""
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(whole["image_processor"]))
    (folder / "processor_config.json").unlink()
    if stated is not None:
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaNextProcessor"} | stated))


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
@pytest.mark.parametrize(
    "stated",
    [
        None,
        {},
        {"image_token": "<image>", "patch_size": 14, "vision_feature_select_strategy": "default"},
        {"num_additional_image_tokens": 1},
    ],
)
def test_what_an_older_processor_does_not_say_is_filled_in_from_the_configuration(folder, stated):
    expected = answer(folder)
    older_processor(folder, stated)
    assert answer(folder) == expected


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
def test_without_a_picture_processor_texts_are_answered_and_pictures_refused_in_a_sentence(folder):
    expected = answer_text(load(folder), None, "What is it?", 8)
    (folder / "processor_config.json").unlink()
    loaded = load(folder)
    assert answer_text(loaded, None, "What is it?", 8) == expected
    with pytest.raises(UserError, match="does not say how pictures are prepared: put the model's preprocessor_config"):
        prompt_inputs(loaded, PICTURE, "What is it?")
    with pytest.raises(UserError, match="does not say how pictures are prepared"):
        check_pictures(model_card(str(folder)), None)


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 7}, "image tokens of a picture, and the model"),
        ({"num_additional_image_tokens": 0}, "image tokens of a picture, and the model"),
        ({"vision_feature_select_strategy": "full"}, "image tokens of a picture, and the model"),
        ({"image_token": "<picture>"}, "image token '<picture>' .* is .* tokens to the tokenizer"),
        (
            {"image_token": "</s>"},
            "image token '</s>' .* is number 2 to the tokenizer, and the model looks for number 3",
        ),
        ({"patch_size": "14"}, "can't be used"),
    ],
)
def test_image_tokens_that_are_not_the_model_s_features_are_said_before_any_work(folder, settings, words):
    edit(folder / "processor_config.json", **settings)
    with pytest.raises(UserError, match=words):
        check_pictures(model_card(str(folder)), None)


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}, "tiles of 56 by 56 pixels"),
        ({"image_grid_pinpoints": [[28, 112]]}, "tiles of 28 by 28 pixels of a picture, and the model reads"),
        ({"image_mean": [0.5]}, "can't be used"),
        ({"resample": 99}, "can't be used"),
    ],
)
def test_a_picture_processor_of_another_model_is_said_before_any_work(folder, settings, words):
    path = folder / "processor_config.json"
    edit(path, image_processor=json.loads(path.read_text())["image_processor"] | settings)
    with pytest.raises(UserError, match=words):
        check_pictures(model_card(str(folder)), None)


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_token_index": 5}, "the model looks for number 5"),
        ({"image_token_index": 400}, "the model looks for number 400 among the 260 rows"),
        ({"vision_feature_select_strategy": "full"}, "does not go with a clip_vision_model"),
        ({"vision_feature_layer": 7}, "vision_feature_layer 7, and its vision tower has 3 layers"),
    ],
)
def test_a_configuration_that_contradicts_the_processor_is_said_before_any_work(folder, settings, words):
    edit(folder / "config.json", **settings)
    with pytest.raises(UserError, match=words):
        check_pictures(model_card(str(folder)), None)


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template: put the model's chat_template.jinja there"),
        ("{% for m in messages %}{{ 'USER: ' + m['content'] }}{% endfor %}", "chat_template.jinja can't be used"),
        ("{{ raise_exception('A system message is required') }}", "can't be used.*A system message is required"),
        ("{% for m in messages %}", "chat_template.jinja can't be used"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not put one picture and the question into the text"),
    ],
)
def test_a_chat_template_that_can_t_ask_about_pictures_is_one_sentence(folder, template, words):
    path = folder / "chat_template.jinja"
    path.unlink() if template is None else path.write_text(template)
    with pytest.raises(UserError, match=words):
        answer(folder)
    with pytest.raises(UserError, match=words):
        check_pictures(model_card(str(folder)), None)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_text_model_without_a_template_continues_and_with_a_broken_one_says_so(folder):
    (folder / "chat_template.jinja").unlink()
    loaded = load(folder)
    assert prompt_inputs(loaded, None, "Hello")["input_ids"].shape[1] == len("Hello")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content.missing.deeper }}")
    with pytest.raises(UserError, match=r"chat_template.jinja can't be used for a question"):
        prompt_inputs(load(folder), None, "Hello")


def test_a_vision_tower_without_a_class_token_gets_the_number_of_tokens_that_it_makes(tmp_path):
    tiny = tiny_chat.llava_next()
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = LlavaNextConfig(
        text_config=tiny.model.config.text_config,
        vision_config=vision,
        image_token_index=3,
        image_grid_pinpoints=[[28, 56], [56, 28]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    LlavaNextForConditionalGeneration(config).save_pretrained(tmp_path)
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    processor = LlavaNextProcessor(image_processor, tiny.tokenizer, chat_template=tiny_chat.PICTURE_TEMPLATE)
    processor.save_pretrained(tmp_path)
    edit(tmp_path / "processor_config.json", num_additional_image_tokens=MISSING)
    assert not judge(tmp_path)


def test_mistral_inside_llava_next_and_biases_are_those_of_transformers(tmp_path, tiny_models):
    tiny = tiny_chat.llava_next()
    text = tiny.model.config.text_config.to_dict() | {"model_type": "mistral", "sliding_window": 64}
    config = LlavaNextConfig.from_dict(tiny.model.config.to_dict() | {"text_config": text})
    torch.manual_seed(0)
    LlavaNextForConditionalGeneration(config).save_pretrained(tmp_path / "mistral")
    tiny.processor.save_pretrained(tmp_path / "mistral")
    assert load(tmp_path / "mistral").model.config.text_config.model_type == "mistral"
    assert not judge(tmp_path / "mistral")

    text = LlamaConfig.from_pretrained(tiny_models / "llama", attention_bias=True, mlp_bias=True)
    model = LlamaForCausalLM(text)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "biases")
    tiny.tokenizer.save_pretrained(tmp_path / "biases")
    assert not judge(tmp_path / "biases")


def test_pictures_of_any_shape_make_as_many_tokens_as_features(tiny_models):
    loaded = load(tiny_models / "llava")
    sides = (1, 2, 7, 28, 29, 56, 100, 211, 840)
    sizes = [(width, height) for width in sides for height in sides if max(width, height) <= 30 * min(width, height)]
    for size in sizes:
        inputs = loaded.processor(images=Image.new("RGB", size), text="<image>", return_tensors="pt")
        with torch.inference_mode():
            pixels, shape = inputs["pixel_values"], inputs["image_sizes"]
            features = loaded.model.model.get_image_features(pixels, shape).pooler_output[0]
        assert len(features) == (inputs["input_ids"] == 3).sum(), size
    assert len(sizes) > 40


def test_loaded_says_why_pictures_can_t_be_asked(tiny_models):
    loaded = load(tiny_models / "llama")
    with pytest.raises(UserError, match="is a text model: ask without a picture"):
        prompt_inputs(loaded, PICTURE, "What?")
