"""Task files and the models, texts and rewards that they load from local folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch as th
from transformers import AutoConfig, AutoModelForSequenceClassification

from srl.config.files import configs_dir
from srl.config.language_models import LanguageModelHyperparams, RewardModel, TextData
from srl.errors import UserError
from srl.llm.spec import make_llm_spec, task_names
from srl.llm.tasks import ClassifierReward, Files, TextRows, load_task, options
from tests.llm.project import TASK, make_project
from tests.llm.tiny import TOKENIZER


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture
def task_file(project, tmp_path, monkeypatch):
    """Write a variant of the task file."""
    monkeypatch.syspath_prepend(str(project))

    def write(*replacements: tuple[str, str]) -> str:
        text = TASK
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "task.yml").write_text(text)
        return str(tmp_path / "task.yml")

    return write


@pytest.mark.parametrize("name", ["offline", "imdb", "tldr"])
@pytest.mark.parametrize("algo", ["ppo", "sppo", "grpo", "sgrpo"])
def test_shipped_tasks_are_complete(name, algo):
    spec = make_llm_spec(name, algo, 3, device="cpu")
    hyperparams = options(spec)
    assert (spec.env, spec.algo, spec.seed) == (name, f"llm-{algo}", 3)
    assert spec == type(spec)(**spec.model_dump(mode="json"))
    if "s" in algo[0]:
        assert (hyperparams.alpha, hyperparams.beta) == (0.5, 0.2 if name == "tldr" else 0.4)
    else:
        assert (hyperparams.alpha, hyperparams.beta) == (1.0, 0.0)


def test_imdb_task_has_published_hyperparameters():
    assert set(task_names()) == {path.stem for path in (configs_dir() / "llm").glob("*.yml")}
    spec = make_llm_spec("imdb", "sppo", 42, device="cpu")
    h = options(spec)
    assert spec.n_timesteps == 60 * h.n_rollouts == 60 * 112
    assert (h.gamma, h.gae_lambda, h.vf_coef, h.target_coef, h.kl_coef) == (0.99, 0.95, 0.5, 0.1, 0.001)
    assert (h.learning_rate, h.clip_range, h.clip_range_vf, h.max_grad_norm) == (5e-6, 0.2, 0.2, 1.0)
    assert (h.batch_size, h.n_epochs, h.max_prompt_length, h.max_new_tokens, h.top_k) == (28, 5, 64, 48, 50)


def test_models_texts_and_rewards_load_from_local_folder(project, task_file):
    spec = make_llm_spec(task_file(), "sppo", 0, device="cpu")
    task = load_task(spec, project / "files")
    assert len(task.train_rows) == 40
    assert len(task.eval_rows) == 6
    assert set(task.train_rows[0]) == {"prompt", "response"}
    prompts, responses = ["the movie is", "this plot was"], ["very good .", "bad ."]
    model = AutoModelForSequenceClassification.from_pretrained(project / "files" / "classifier")
    for prompt, response, score in zip(prompts, responses, task.reward(prompts, responses), strict=True):
        tokens = th.tensor([TOKENIZER(prompt + response)["input_ids"]])
        assert score == pytest.approx(float(model(tokens).logits.softmax(-1)[0, 1]), rel=1e-4)
    # Evaluation prompts are the same for all seeds
    other = load_task(make_llm_spec(task_file(), "ppo", 7, device="cpu"), project / "files")
    assert list(task.eval_rows) == list(other.eval_rows)


def test_reward_class_can_be_given_by_name_or_number(project):
    reward = RewardModel(path="classifier", label="positive", with_prompt=False)
    by_name, by_number = (
        ClassifierReward(one, Files(project / "files"), "cpu")
        for one in (reward, reward.model_copy(update={"label": 1}))
    )
    assert by_name(["a"], ["very good ."]) == by_number(["b"], ["very good ."])


def test_code_of_a_model_is_not_executed(project, task_file, tmp_path, monkeypatch):
    folder = tmp_path / "files" / "owner" / "policy"
    shutil.copytree(project / "files" / "policy", folder)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    # transformers would ask whether to execute it
    monkeypatch.setattr("builtins.input", lambda question: "y")
    spec = make_llm_spec(task_file(), "sppo", 0, device="cpu")
    with pytest.raises(UserError, match=r"policy: cannot be loaded: The repository .* contains custom code"):
        load_task(spec, tmp_path / "files")
    assert not (tmp_path / "executed").exists()


def test_class_of_a_classifier_with_one_output_is_rejected(project, tmp_path):
    config = AutoConfig.from_pretrained(project / "files" / "classifier", num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    TOKENIZER.save_pretrained(tmp_path / "classifier")
    with pytest.raises(UserError, match=r"has one output, which is the score\. Leave reward\.label out"):
        ClassifierReward(RewardModel(path="classifier", label=0), Files(tmp_path), "cpu")


def test_texts_without_references_are_split_into_prompt_and_response():
    data = TextData(path="x", prompt="text", response="text")
    texts = [{"text": "the movie was very good .", "label": 1}]
    (row,) = TextRows(texts, data, TOKENIZER, 3)
    assert row == {"prompt": "the movie was", "response": "very good .", "label": 1}


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("owner/policy", "owner/nothing"), "contains neither owner/nothing nor nothing"),
        (("prompt: prompt", "prompt: question"), "train: has no column 'question', only prompt, response"),
        (("label: 1", "label: 2"), "has no class 2. Its classes: negative, positive"),
        (("label: 1", "label: neutral"), "has no class 'neutral'"),
        ((", label: 1", ""), "has 2 classes; name the one to reward"),
        (("n_rollouts: 16", "n_rollouts: 64"), "has 40 rows; 64 are needed"),
        (("path: owner/classifier, label: 1", "function: 'my_rewards:none'"), "none: cannot be imported"),
        (("path: owner/classifier, label: 1", "function: my_rewards"), "Write module:name"),
        (("path: owner/classifier, label: 1", "function: 'my_rewards:nothing'"), "nothing returned nan"),
        (("path: owner/classifier, label: 1", "function: 'my_rewards:few'"), "1 scores for 2 responses"),
        (("path: owner/classifier, label: 1", "function: 'my_rewards:failing'"), "failing failed: KeyError"),
        (("path: owner/classifier, label: 1", "function: 'broken_rewards:a'"), "ZeroDivisionError"),
        (("owner/policy", "owner/cut"), "cut: cannot be loaded"),
        (("owner/texts", "owner/broken"), "broken: cannot be loaded"),
        (("owner/texts", "owner/numbers"), "row 0 of column 'prompt' is 1, not a text"),
        (("owner/texts", "owner/nulls"), "row 1 of column 'prompt' is None, not a text"),
        (("owner/texts", "owner/empty"), "row 1 of column 'prompt' is empty"),
        (("max_new_tokens: 8", "max_new_tokens: 40"), "has 48 positions, fewer than the 56"),
        (("owner/policy}", "owner/policy, lora: {target_modules: [q_proj]}}"), "lora: .*q_proj.* not found"),
        (("owner/policy}", "owner/policy, pad_token: null, tokenizer: no_padding}"), "has no padding token"),
    ],
)
def test_loading_error_names_invalid_entry(project, task_file, replacement, message):
    without = project / "files" / "no_padding"
    if not without.exists():
        tokenizer = type(TOKENIZER).from_pretrained(project / "files" / "policy")
        tokenizer.pad_token = None
        tokenizer.save_pretrained(without)
    spec = make_llm_spec(task_file(replacement), "sppo", 0, device="cpu", trust=True)
    with pytest.raises(UserError, match=message):
        load_task(spec, project / "files")


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("n_epochs: 1", "n_epoch: 1"), "line 11, key hyperparams.n_epoch: there is no"),
        (("batch_size: 8", "batch_size: 7"), "n_rollouts=16 is not a multiple of batch_size=7"),
        (("owner/policy}", "owner/policy, load_in_4bit: true}"), "load_in_4bit needs lora"),
        (("path: owner/classifier, label: 1", "label: 1"), "give either path or function"),
        (("grpo: &grpo", "gppo: &grpo"), "key algorithms.gppo: is none of ppo, sppo, grpo, sgrpo"),
        (("path: owner/classifier, label: 1", "function: 'a:b'"), "only with --trust-config"),
    ],
)
def test_task_file_error_names_line_and_key(task_file, replacement, message):
    with pytest.raises(UserError, match=message):
        make_llm_spec(task_file(replacement), "sppo", 0, device="cpu")


def test_offline_task_has_enough_prompts():
    spec = make_llm_spec("offline", "sppo", 0, device="cpu", overrides={"n_rollouts": 2800})
    with pytest.raises(UserError, match="has 2000 rows; 2800 are needed"):
        load_task(spec)


@pytest.mark.parametrize(
    ("algo", "key", "value"),
    [
        ("grpo", "gamma", 0.9),
        ("sgrpo", "vf_coef", 1.0),
        ("grpo", "min_new_tokens", 2),
        ("sppo", "num_generations", 4),
        ("ppo", "loss_type", "grpo"),
    ],
)
def test_hyperparameter_without_effect_on_algorithm_is_rejected(algo, key, value):
    values = {key: value} | ({"target_coef": 0.0} if "grpo" in algo else {})
    with pytest.raises(UserError, match=f"{key}: has no effect"):
        make_llm_spec("offline", algo, 0, overrides=values)


def test_unknown_task_and_algorithm_errors_list_known_names():
    with pytest.raises(UserError, match=r"no such task\. Known: imdb, offline, tldr, or a file"):
        make_llm_spec("ofline", "sppo", 0)
    with pytest.raises(UserError, match=r"no algorithm 'spo'\. Known: ppo, sppo, grpo, sgrpo"):
        make_llm_spec("offline", "spo", 0)
    with pytest.raises(UserError, match="no such folder"):
        Files(Path("/nowhere/at/all"))
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        Files(None).find("./nowhere")


def test_spec_omits_environment_hyperparameters():
    hyperparams = options(make_llm_spec("offline", "sppo", 0)).model_dump()
    assert not {"policy", "n_envs", "normalize", "frame_stack", "n_steps", "use_sde"} & set(hyperparams)
    assert LanguageModelHyperparams(**hyperparams) == options(make_llm_spec("offline", "sppo", 0))
