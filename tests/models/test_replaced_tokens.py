from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

from cram_composer.config.schema.objective import ReplacedTokenConfig
from cram_composer.evaluation.model_source import find_model
from cram_composer.models.export import export_model, exported_form, verify_export
from cram_composer.models.flops import flops_per_token
from cram_composer.models.replaced_tokens import ReplacedTokenDetector, generator_config, replace_tokens, sample
from cram_composer.models.training_model import ReplacedTokenTrainingModel
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_config, training_batch

EMBEDDINGS = ("shared", "gdes", "separate")
NATIVE = {"positions": "rotary"}


def tiny_detector(changes: dict | None = None, **objective) -> ReplacedTokenDetector:
    torch.manual_seed(0)
    settings = {"generator_width": 0.5, **objective}
    return ReplacedTokenDetector(tiny_config(**(changes or {})), ReplacedTokenConfig(**settings))


def detector_batch(rows: int = 4, kept: bool = False, **sizes) -> dict[str, torch.Tensor]:
    batch = training_batch(rows, **sizes)
    generator = torch.Generator().manual_seed(2)
    batch["draws"] = torch.rand(batch["labels"].shape, generator=generator)
    if kept:
        batch["kept"] = (torch.rand(batch["labels"].shape, generator=generator) < 0.5) & (batch["labels"] >= 0)
    return batch


def test_samples_are_the_inverse_of_the_running_sum():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 63, 64, 65, 1000):
        logits = 3.0 * torch.randn(200, size, generator=generator)
        draws = torch.rand(200, generator=generator)
        for temperature in (1.0, 0.5):
            sums = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
            expected = (sums <= draws.double()[:, None] * sums[:, -1:]).sum(-1)
            assert torch.equal(sample(logits, draws, temperature), expected)


def test_samples_have_the_probabilities_of_the_softmax():
    logits = torch.tensor([2.0, -torch.inf, 0.0, 1.0, -1.0])
    draws = (torch.arange(100_000) + 0.5) / 100_000  # evenly spaced
    shares = torch.bincount(sample(logits.expand(len(draws), -1), draws), minlength=5) / len(draws)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=2e-5, rtol=0)
    extremes = torch.tensor([0.0, torch.finfo(torch.float32).tiny, 1.0 - 2.0**-24])
    assert sample(logits.expand(3, -1), extremes).tolist() == [0, 0, 4]


@pytest.mark.parametrize("kept", [False, True])
def test_rows_are_those_of_a_plain_loop(kept: bool):
    batch = detector_batch(rows=6, kept=kept)
    samples = torch.randint(40, batch["labels"].shape, generator=torch.Generator().manual_seed(3))
    samples[1] = batch["labels"][1]  # a generator that is right replaces nothing
    rows = replace_tokens(batch["input_ids"], batch["masked_positions"], batch["labels"], samples, batch.get("kept"))
    expected = batch["input_ids"].clone()
    replaced, judged = torch.zeros_like(expected, dtype=torch.bool), torch.ones_like(expected, dtype=torch.bool)
    slots = [(row, slot) for row in range(6) for slot in range(5) if batch["labels"][row, slot] != -100]
    assert len(slots) == 29  # one is unused
    for row, slot in slots:
        column = batch["masked_positions"][row, slot]
        if kept and batch["kept"][row, slot]:
            judged[row, column] = False
            continue
        expected[row, column] = samples[row, slot]
        replaced[row, column] = samples[row, slot] != batch["labels"][row, slot]
    assert torch.equal(rows.input_ids, expected)
    assert torch.equal(rows.replaced, replaced) and torch.equal(rows.judged, judged)
    assert not rows.replaced[1].any() and (kept or rows.judged.all()) and (not kept or not rows.judged.all())


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_losses_are_those_of_both_networks_alone(embeddings: str):
    model, batch = tiny_detector(embeddings=embeddings, corrective_masks=0.3).train(), detector_batch(kept=True)
    found = model(**batch)
    masked_lm = {name: batch[name] for name in ("input_ids", "masked_positions", "labels")}
    alone = model.generator(**masked_lm)
    torch.testing.assert_close(found.generator_loss, alone.loss)
    samples = sample(alone.logits.flatten(0, 1), batch["draws"].flatten()).view_as(batch["labels"])
    rows = replace_tokens(*masked_lm.values(), samples, batch["kept"])
    encoder = model.trained_encoder()  # which has the sum of both embeddings in the place of the disentangled one
    hidden = encoder.encoder(rows.input_ids).last_hidden_state
    logits = model.detector.out(F.gelu(model.detector.dense(hidden)))[..., 0][rows.judged]
    expected = F.binary_cross_entropy_with_logits(logits, rows.replaced[rows.judged].float())
    torch.testing.assert_close(found.detection["loss"], expected)
    corrective = encoder(rows.input_ids, masked_positions=batch["masked_positions"], labels=batch["labels"])
    torch.testing.assert_close(found.corrective_loss, corrective.loss)
    torch.testing.assert_close(found.loss, alone.loss + 50.0 * expected + corrective.loss)
    taken = logits > 0
    real = rows.replaced[rows.judged]
    counts = [int(found.detection[name]) for name in ("judged", "replaced", "detected", "false_alarms")]
    assert counts == [int(t.sum()) for t in (rows.judged, real, taken & real, taken & ~real)]


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_the_detector_trains_the_generators_embedding_only_if_it_is_shared(embeddings: str):
    def gradients(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        model = tiny_detector(embeddings=embeddings, detection_weight=weight).train()
        model(**detector_batch()).loss.backward()
        own, theirs = model.encoder.embeddings.word_embeddings, model.generator.encoder.embeddings.word_embeddings
        return own.weight.grad, theirs.weight.grad

    (own, theirs), (own_alone, theirs_alone) = gradients(50.0), gradients(0.0)
    assert torch.equal(theirs, theirs_alone) == (embeddings != "shared")
    assert own.any() and not torch.equal(own, own_alone)
    if embeddings == "gdes":  # the encoder's own part gets the gradient that a whole embedding would get
        assert not own_alone.any()
        model, plain = (tiny_detector(embeddings=kind).train() for kind in ("gdes", "separate"))
        plain.generator = model.generator
        plain.sampler._generator = (model.generator,)
        state = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "detector."))}
        state["encoder.embeddings.word_embeddings.weight"] = (
            model.generator.encoder.embeddings.word_embeddings.weight.detach().clone()
        )
        plain.load_state_dict(state, strict=False)
        for network in (model, plain):
            network.zero_grad()
            network(**detector_batch()).loss.backward()
        whole = plain.encoder.embeddings.word_embeddings.weight.grad
        torch.testing.assert_close(model.encoder.embeddings.word_embeddings.weight.grad, whole)


def test_disentangled_embeddings_start_equal_and_part():
    model = tiny_detector(embeddings="gdes", corrective_masks=0.2).train()
    own, theirs = model.encoder.embeddings.word_embeddings, model.generator.encoder.embeddings.word_embeddings
    ids = torch.arange(40)
    assert torch.equal(own(ids), theirs(ids)) and not own.weight.any()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**detector_batch(kept=True)).loss.backward()
        optimizer.step()
    assert own.weight.any()
    encoder = model.trained_encoder()
    torch.testing.assert_close(encoder.get_input_embeddings().weight, own.weight + theirs.weight)
    assert encoder.head.decoder.weight is encoder.get_input_embeddings().weight


def test_parts_of_a_batch_have_the_losses_of_the_whole():
    model, batch = tiny_detector().train(), detector_batch(rows=4)
    batch["labels"][0, -1] = 7  # every row has five labels
    batch["masked_positions"][0, -1] = next(c for c in range(16) if c not in batch["masked_positions"][0, :-1])
    whole = model(**batch)
    parts = [model(**{name: tensor[i : i + 2] for name, tensor in batch.items()}) for i in (0, 2)]
    torch.testing.assert_close(whole.loss, (parts[0].loss + parts[1].loss) / 2)
    for name in ("replaced", "detected", "false_alarms"):
        assert whole.detection[name] == parts[0].detection[name] + parts[1].detection[name]


def test_padding_is_not_judged():
    model, batch = tiny_detector().train(), detector_batch()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][2, 10:] = 0
    assert int(model(**batch).detection["judged"]) == 4 * 16 - 6


@pytest.mark.parametrize(
    ("sizes", "objective", "expected"),
    [
        ((128, 2, 512, 4), {}, (32, 1, 128, 4)),
        ((256, 4, 1024, 12), {"generator_layers": 3}, (64, 1, 256, 3)),
        ((768, 12, 3072, 12), {"generator_width": 0.5}, (384, 6, 1536, 12)),
        ((768, 12, 3072, 12), {"generator_width": 1.0}, (768, 12, 3072, 12)),
        ((768, 12, 2560, 16), {"generator_width": 1 / 3}, (256, 4, 854, 16)),
        ((16, 2, 32, 2), {"generator_width": 0.01}, (8, 1, 16, 2)),
        ((20, 2, 32, 2), {"generator_width": 0.9}, (16, 1, 26, 2)),
    ],
)
def test_the_generator_is_a_smaller_encoder(sizes, objective, expected):
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    changes = dict(zip(names, sizes, strict=True)) | {"stack": "elc", "value_embeddings": 1}
    config = generator_config(tiny_config(**changes), ReplacedTokenConfig(**objective))
    assert tuple(getattr(config, name) for name in names) == expected
    assert (config.stack, config.value_embeddings, config.embedding_size) == ("plain", 0, sizes[0])


@pytest.mark.parametrize("corrective", [None, 0.2])
@pytest.mark.parametrize("changes", [{}, {"embedding_size": 8}, {"head_transform": True}])
def test_the_count_of_operations_equals_torchs(changes, corrective):
    model, batch = tiny_detector(changes, corrective_masks=corrective).train(), detector_batch(rows=2, masked=4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert flops_per_token(model, 16, 4) == pytest.approx(counter.get_total_flops() / (2 * 16))


def test_training_lowers_both_losses():
    torch.manual_seed(0)
    model = ReplacedTokenTrainingModel(tiny_detector(temperature=20.0).train())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rows = (torch.arange(64)[:, None] % 30 + 5).expand(-1, 16)  # all tokens of a row are equal
    history = []
    for _ in range(300):
        positions = torch.rand(64, 16).argsort(dim=1)[:, :4]
        labels = rows.gather(1, positions)
        batch = {"masked_positions": positions, "labels": labels, "draws": torch.rand(64, 4)}
        outputs = model(batch | {"input_ids": rows.scatter(1, positions, 4)})
        losses = model.loss(outputs, batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert set(history[0]) == {"total", "generator", "detector", "detected"}
    assert history[-1]["generator"] < 0.7 * history[0]["generator"]
    assert history[-1]["detector"] < 0.3 * history[0]["detector"] and history[-1]["detected"] > 0.6


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize(("changes", "kind"), [(NATIVE, "ModernBertModel"), ({"qk_norm": True}, "CramBertModel")])
def test_the_encoder_is_exported_with_its_generator_beside_it(embeddings, changes, kind, tmp_path, capsys):
    model = tiny_detector({"vocab_size": VOCAB_SIZE, **changes}, embeddings=embeddings)
    form = exported_form(model)
    assert type(form).__name__ == kind
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    folder = export_model(
        form, tokenizer, tmp_path / "export", "a card", generator=exported_form(model.trained_generator())
    )
    assert verify_export(folder, model) <= 1e-5
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = torch.arange(5, VOCAB_SIZE)[None]
    expected = model.eval().encoder(inputs).last_hidden_state
    torch.testing.assert_close(encoder(inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=3)
    generator = AutoModelForMaskedLM.from_pretrained(folder / "generator", trust_remote_code=True)
    assert type(generator).__name__ == kind.replace("Model", "ForMaskedLM")
    fill = pipeline("fill-mask", model=str(folder / "generator"), trust_remote_code=True)
    assert len(fill("the river [MASK] into the sea.")) == 5
    torch.testing.assert_close(generator.eval()(inputs).logits, model.generator(inputs).logits, atol=1e-5, rtol=1e-5)
    source = find_model(str(folder))
    assert source.load_classifier(2, 0.1).config.num_labels == 2
    masked_lm = source.masked_lm_source().load_masked_lm(0)
    assert "its generator is used" in capsys.readouterr().err
    assert masked_lm.config.hidden_size == model.generator.config.hidden_size


def test_with_a_corrective_head_the_export_fills_masks_itself(tmp_path, capsys):
    model = tiny_detector({"vocab_size": VOCAB_SIZE, **NATIVE}, corrective_masks=0.2).eval()
    form = exported_form(model)
    assert type(form).__name__ == "ModernBertForMaskedLM"
    folder = export_model(form, save_tokenizer(tmp_path / "tokenizer"), tmp_path / "export", "a card")
    assert verify_export(folder, model) <= 1e-5 and not (folder / "generator").exists()
    batch = detector_batch(rows=2, kept=True, length=12, vocab_size=VOCAB_SIZE)
    loaded = find_model(str(folder)).masked_lm_source().load_masked_lm(0)
    assert capsys.readouterr().err == ""
    logits = loaded(batch["input_ids"]).logits
    at = batch["masked_positions"][..., None].expand(-1, -1, VOCAB_SIZE)
    torch.testing.assert_close(model(**batch).logits, logits.gather(1, at), atol=1e-5, rtol=1e-5)
