"""Hugging Face folders: classifiers, class names, tokenizers and image processors, and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_folders
from petm.cli.inputs import inputs_of
from petm.data.fields import Fields
from petm.errors import ModelError
from petm.grading.provenance import InputOrigin
from petm.models.hf_classifier import load_classifier, read_classes
from petm.models.hf_processors import ImageProcessor, load_processor
from petm.models.hf_tokenizer import Tokenizer, padding_id
from petm.models.loading import call_model, load_model

pytestmark = pytest.mark.usefixtures("no_network")

TEXTS = ["Who was Galileo ?", "How far is Denver ?", "Who met Mozart in Rome , and who did not ?"]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def text_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        return hf_folders.save(folder, hf_folders.bert(), hf_folders.word_tokenizer())
    return hf_folders.save(folder, hf_folders.gpt2(), hf_folders.byte_tokenizer())


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.save(tmp_path_factory.mktemp("bert"), hf_folders.bert(), hf_folders.word_tokenizer())


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.save(tmp_path_factory.mktemp("vit"), hf_folders.vit(), hf_folders.image_processor())


@pytest.fixture
def copied(bert_folder: Path, tmp_path: Path) -> Path:
    """The BERT folder, to be spoiled."""
    return Path(shutil.copytree(bert_folder, tmp_path / "copied"))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_text_classifier_answers_a_padded_batch_as_it_answers_each_text(text_folder: Path) -> None:
    before = files_of(text_folder)
    model = load_model(f"hf:{text_folder}")
    tokenizer = load_processor(text_folder)
    assert isinstance(tokenizer, Tokenizer)
    assert not model.training
    encoded = tokenizer.encode(TEXTS, None)["input_ids"]
    padding, longest = tokenizer.padding["input_ids"], max(map(len, encoded))
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits
        apart = torch.cat([model(input_ids=torch.tensor([row])).logits for row in encoded])
    torch.testing.assert_close(together, apart)
    assert files_of(text_folder) == before


def test_weights_are_those_of_the_folder_and_keep_their_precision(bert_folder: Path, tmp_path: Path) -> None:
    expected = hf_folders.bert().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_classifier(bert_folder).state_dict().items())
    half = hf_folders.save(tmp_path, hf_folders.bert().to(torch.bfloat16))
    assert {value.dtype for value in load_classifier(half).parameters()} == {torch.bfloat16}


def test_class_names(bert_folder: Path, tmp_path: Path) -> None:
    assert read_classes(bert_folder) == (3, hf_folders.KINDS)
    many = [f"class {number}" for number in range(12)]  # 10 comes behind 9, not behind 1
    assert read_classes(hf_folders.save(tmp_path / "many", hf_folders.bert(many))) == (len(many), tuple(many))
    unnamed = hf_folders.save(tmp_path / "unnamed", hf_folders.bert(["LABEL_0", "LABEL_1"]))
    assert read_classes(unnamed) == (2, ())


def test_the_tokenizer_adds_its_tokens_and_cuts_between_them(bert_folder: Path) -> None:
    tokenizer = load_processor(bert_folder)
    assert isinstance(tokenizer, Tokenizer)
    words = hf_folders.word_tokenizer().get_vocab()
    expected = [2, *(words[word] for word in ("Who", "was", "Galileo", "?")), 3]
    assert tokenizer.encode(TEXTS[:1], None)["input_ids"] == [expected]
    assert tokenizer.encode(TEXTS[:1], 4)["input_ids"] == [[*expected[:3], 3]]
    assert (tokenizer.maximum, tokenizer.padding["input_ids"], tokenizer.pads_left) == (40, 0, False)


def test_the_most_tokens_are_the_lesser_of_tokenizer_and_model(tmp_path: Path) -> None:
    shorter = hf_folders.word_tokenizer(model_max_length=16, padding_side="left")
    tokenizer = load_processor(hf_folders.save(tmp_path / "shorter", hf_folders.bert(), shorter))
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.maximum, tokenizer.pads_left) == (16, True)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("roberta", {}),
        ("roberta-prelayernorm", {}),
        ("xmod", {"languages": ["en_XX"], "default_language": "en_XX"}),
        ("ibert", {}),
        ("esm", {"position_embedding_type": "absolute"}),
        ("longformer", {"attention_window": [4]}),
        ("lilt", {}),
    ],
)
def test_models_that_count_positions_from_the_padding_id_take_fewer_tokens(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    words = {"vocab_size": 64, "max_position_embeddings": 22, "pad_token_id": 1, "num_labels": 3}
    config = AutoConfig.for_model(kind, **sizes, **words, **settings)
    made = AutoModelForSequenceClassification.from_config(config)
    folder = hf_folders.save(tmp_path, made, hf_folders.word_tokenizer())
    tokenizer, model = load_processor(folder), load_classifier(folder)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.maximum == 20
    assert tokenizer.padding["input_ids"] == 1, "the model looks for this id, whatever the tokenizer says"
    assert model(input_ids=torch.full((1, 20), 5)).logits.shape == (1, 3)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 21), 5))
    with pytest.raises(ModelError, match=r"^model: cannot take .* no text has more tokens than the model takes"):
        call_model(model, Fields({"input_ids": torch.full((1, 21), 5)}))


def test_a_config_may_know_no_token_that_pads_or_ends() -> None:
    tokenizer = hf_folders.word_tokenizer()
    assert padding_id(SimpleNamespace(), tokenizer) == 0
    assert padding_id(SimpleNamespace(pad_token_id=None, eos_token_id=4), None) == 4
    assert padding_id(SimpleNamespace(), None) is None


def test_answers_as_a_tuple(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path, hf_folders.bert())
    x = Fields({"input_ids": torch.tensor([[2, 7, 3], [2, 9, 3]])})
    with torch.no_grad():
        expected = call_model(load_classifier(folder), x)
        change(folder / "config.json", return_dict=False, output_hidden_states=True)
        model = load_classifier(folder)
        assert isinstance(model(**x), tuple)
        assert torch.equal(call_model(model, x), expected)


def test_gpt2_pads_with_the_token_that_ends_a_text(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path, hf_folders.gpt2(), hf_folders.byte_tokenizer())
    assert load_classifier(folder).config.pad_token_id == 0
    tokenizer = load_processor(folder)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.padding["input_ids"], tokenizer.maximum) == (0, 64)
    change(folder / "config.json", pad_token_id=7)
    assert load_classifier(folder).config.pad_token_id == 7
    tokenizer = load_processor(folder)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.padding["input_ids"] == 7


def test_no_token_can_pad(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path, hf_folders.gpt2(), hf_folders.byte_tokenizer())
    change(folder / "config.json", eos_token_id=None)
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match=r"expected a token that pads or ends a text in .*, got none"):
        load_processor(folder)


@pytest.mark.parametrize("mode", ["RGB", "L", "F"])
def test_the_image_processor_normalises_as_its_settings_say(vit_folder: Path, mode: str) -> None:
    processor = load_processor(vit_folder)
    assert isinstance(processor, ImageProcessor)
    assert (processor.shape, processor.value_range) == ((3, 16, 16), (-1.0, 1.0))
    grey = Image.new(mode, (30, 20), {"RGB": (51, 51, 51), "L": 51, "F": 0.2}[mode])
    expected = np.full((3, 16, 16), 2 * 0.2 - 1)
    np.testing.assert_allclose(processor.prepare(grey), expected, atol=1e-6)
    again = pickle.loads(pickle.dumps(processor))  # as it gets to the workers of a data loader
    np.testing.assert_allclose(again.prepare(grey), expected, atol=1e-6)


def test_the_image_processor_of_a_grey_model(tmp_path: Path) -> None:
    grey = hf_folders.image_processor(image_mean=[0.25], image_std=[0.5])
    processor = load_processor(hf_folders.save(tmp_path, hf_folders.vit(channels=1), grey))
    assert isinstance(processor, ImageProcessor)
    assert (processor.shape, processor.value_range) == ((1, 16, 16), (-0.5, 1.5))
    assert processor.prepare(Image.new("RGB", (5, 5), (255, 255, 255))).max() == 1.5


def test_an_image_processor_without_a_fixed_size(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path, hf_folders.vit(), hf_folders.image_processor(do_resize=False))
    with pytest.raises(
        ModelError, match=r"images of one size .* got \(3, 64, 64\) from a square and \(3, 40, 96\) from"
    ):
        load_processor(folder)


def test_an_image_processor_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected an image processor \(preprocessor_config.json\) in .*, got none"):
        load_processor(hf_folders.save(tmp_path, hf_folders.vit()))


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in held.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def config(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **entries)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (shutil.rmtree, "expected the folder of a Hugging Face model, got .*copied, which does not exist"),
    (without("config.json"), "expected config.json in .*copied, got none. Name a folder that save_pretrained wrote"),
    (without("model.safetensors"), r"expected weights as \*.safetensors in .*copied, got none"),
    (pickled, r"expected weights as \*.safetensors in .*copied, got pytorch_model.bin.*nothing is loaded through pick"),
    (cut, "expected a model that transformers can read in .*copied, got: ValueError: .* bytes where its tensors"),
    (headless, "expected the weights of the whole classifier .* got others: classifier.bias is missing in the file; c"),
    (config(**hf_folders.labels("ab")), r"classifier.bias is \(3,\) in the file and \(2,\) in the model; classifier.w"),
    (
        config(architectures=["BertModel"]),
        "expected an image, sequence or audio classifier in .*, got BertModel in its conf",
    ),
    (
        config(architectures=None, model_type="perceiver"),
        "expected an image, sequence or .*, got no architecture in its",
    ),
    (config(problem_type="regression"), "one of at least two classes in .*, got regression. petm grades classes only"),
    (config(**hf_folders.labels("a")), "one of at least two classes in .*, got a single output"),
    (config(model_type="unheard-of"), "expected a model that transformers can read in .*copied, got: ValueError: "),
    (lambda folder: (folder / "config.json").write_text("[1]") and None, "expected a JSON object in .*, got list"),
    (lambda folder: (folder / "config.json").write_text("{") and None, "expected a JSON object in .*, got: Expecting"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_folders_that_hold_no_classifier(
    copied: Path, spoil: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"hf:{copied}")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", ""), "the library's own report is not shown"


def test_a_tokenizer_is_missing_or_broken(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"expected a model that transformers can read in .*copied, got: "):
        load_processor(copied)
    without("tokenizer.json")(copied)
    with pytest.raises(ModelError, match=r"expected a tokenizer in .*, got none. Write it with tokenizer.save_pretra"):
        load_processor(copied)


def test_a_tokenizer_without_tokens_for_a_text_is_refused(copied: Path) -> None:
    """Transformers reads that of a Qwen2 folder by Qwen2's class, which finds no words of its own in one by words."""
    change(copied / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ModelError, match=r"expected a tokenizer with tokens for .*, got none of a Qwen2Tokenizer"):
        load_processor(copied)


CODE = """
import torch
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("name", ["OwnForSequenceClassification", "OwnJudge"])
def test_code_of_its_own_is_run_only_when_trusted(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (copied / "own.py").write_text(CODE.replace("OwnForSequenceClassification", name))
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": f"own.{name}"}
    change(copied / "config.json", auto_map=places, model_type="own", architectures=[name])
    message = r"expected a model of transformers' own in .*copied, got one with code of its own.*--trust-remote-code"
    for load in (load_classifier, load_processor, read_classes):
        with pytest.raises(ModelError, match=message):
            load(copied)
    assert not (tmp_path / "modules").exists()
    model = load_model(f"hf:{copied}", trust_remote_code=True)
    assert type(model).__name__ == name
    assert read_classes(copied, trust_remote_code=True) == (3, hf_folders.KINDS)


def test_a_config_without_architectures_is_read_by_the_kind_of_its_model(copied: Path, vit_folder: Path) -> None:
    whole = load_model(f"hf:{copied}").state_dict()
    change(copied / "config.json", architectures=None)
    model = load_model(f"hf:{copied}")
    assert type(model).__name__ == "BertForSequenceClassification"
    assert all(torch.equal(weight, whole[name]) for name, weight in model.state_dict().items())
    assert isinstance(load_processor(copied), Tokenizer)
    images = Path(shutil.copytree(vit_folder, copied / "vit"))
    change(images / "config.json", architectures=[])
    assert isinstance(load_processor(images), ImageProcessor)
    assert type(load_model(f"hf:{images}")).__name__ == "ViTForImageClassification"
    model.bert.save_pretrained(copied)  # type: ignore[operator, union-attr]
    change(copied / "config.json", architectures=None)
    with pytest.raises(ModelError, match=r"classifier.weight is missing in the file"):
        load_model(f"hf:{copied}")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "preprocessor_config.json"])
def test_code_of_a_processor_is_refused(bert_folder: Path, vit_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(bert_folder if name.startswith("tok") else vit_folder, tmp_path / "copied"))
    change(folder / name, auto_map={"AutoTokenizer": ["own.Own", None], "AutoImageProcessor": "own.Own"})
    with pytest.raises(ModelError, match=r"got one with code of its own"):
        load_processor(folder)


def test_weights_of_another_file_and_arguments(bert_folder: Path, tmp_path: Path) -> None:
    from petm.models.loading import save_weights

    model = load_model(f"hf:{bert_folder}")
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(3)
    save_weights(model, tmp_path / "w.safetensors")
    other = load_model(f"hf:{bert_folder}", tmp_path / "w.safetensors")
    assert other.get_parameter("classifier.bias").tolist() == [3, 3, 3]
    with pytest.raises(ModelError, match=r"arguments: expected .*hf:.*, got {'width': 2}"):
        load_model(f"hf:{bert_folder}", arguments={"width": 2})


def test_a_classifier_of_sound_takes_what_its_feature_extractor_makes(tmp_path: Path) -> None:
    from experiments.breadth_models import model_of

    for kind, shape in (("wav2vec2", (2, 800)), ("audio-spectrogram-transformer", (2, 64, 16))):
        made = model_of(kind, "AudioClassification")
        hf_folders.save(tmp_path / kind, made)
        model, x = load_model(f"hf:{tmp_path / kind}"), torch.randn(*shape)
        assert type(model) is type(made)
        with torch.no_grad():
            assert torch.equal(call_model(model, x), made(x).logits)
        assert inputs_of(f"hf:{tmp_path / kind}", arrays=True) == (InputOrigin(), None)
