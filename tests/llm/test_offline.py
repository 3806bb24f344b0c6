"""Grammar, tokenizer and classifiers of the offline task."""

import torch as th
from transformers import AutoTokenizer

from srl.llm import offline
from srl.llm.offline import GARBLED, NEGATIVE, POSITIVE, OrderClassifier, WordClassifier


def test_reviews_depend_only_on_their_stream():
    assert offline.make_reviews(5, 0) == offline.make_reviews(9, 0)[:5]
    assert offline.make_reviews(5, 0) != offline.make_reviews(5, 1)
    labels = [review.label for review in offline.make_reviews(600, 2)]
    assert all(150 < labels.count(label) < 250 for label in range(3))


def test_tokenizer_covers_vocabulary_and_round_trips_text(tmp_path):
    made = offline.make_tokenizer()
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        for review in offline.make_reviews(300, 0):
            text = f"{review.prompt} {review.response}"
            tokens = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in tokens
            assert tokenizer.decode(tokens) == text
        assert tokenizer.padding_side == "left"


def test_pretraining_reduces_loss_and_is_reproducible():
    tokenizer = offline.make_tokenizer()
    models = [offline.pretrain(tokenizer, n_reviews=256, n_epochs=epochs) for epochs in (1, 6, 6)]
    tokens = th.tensor([tokenizer("this movie was very good and funny .")["input_ids"]])
    losses = [float(model(input_ids=tokens, labels=tokens).loss.detach()) for model in models]
    assert losses[1] == losses[2] < losses[0] - 0.3


def test_classifiers_separate_sentiments_and_judge_rejects_garbled_text():
    tokenizer = offline.make_tokenizer()
    for kind, garbled, n_steps in ((WordClassifier, False, 60), (OrderClassifier, True, 150)):
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            model = kind(len(tokenizer))
        offline.fit_classifier(model, tokenizer, 1, n_reviews=1500, n_steps=n_steps)
        score = offline.Positivity(model, tokenizer, "score")
        texts, labels = offline.labelled_texts(300, 5, garbled=garbled)
        scores = th.tensor(score(texts, texts))
        found = {label: float(scores[th.tensor(labels) == label].mean()) for label in set(labels)}
        assert found[POSITIVE] > 0.8
        assert found[NEGATIVE] < 0.2
        assert found.get(GARBLED, 0.0) < 0.3
        assert score([""], [""]) != []
