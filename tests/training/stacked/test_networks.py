"""The stacked network matches the members' networks."""

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from srl.envs import make_train_env
from srl.errors import UserError
from srl.training.run import make_model
from srl.training.stacked.networks import StackedPolicy, stacked_linear
from tests.small_runs import small_spec
from tests.training.stacked.small_envs import SMALL_ENVS

IMAGES = dict(policy="CnnPolicy")
KINDS = {
    "Discrete": ("sppo", "Small-v0", {}),
    "MultiDiscrete": ("sppo", "Dials-v0", {}),
    "equal MultiDiscrete": ("dsppo", "Levers-v0", {}),
    "MultiBinary": ("sppo", "Switches-v0", {}),
    "Box": ("ppo", "Levers-v0", {}),
    "Discrete observations": ("sppo", "Rooms-v0", {}),
    "two-dimensional observations": ("sppo", "Table-v0", {}),
    "images": ("sppo", "Frames-v0", IMAGES),
    "other layers": (
        "sppo",
        "Dials-v0",
        dict(policy_kwargs={"net_arch": {"pi": [], "vf": [20, 5]}, "activation_fn": "silu"}),
    ),
}


def models(kind, seeds=(1, 2, 3)):
    algo, env, overrides = KINDS[kind]
    made = []
    for seed in seeds:
        spec = small_spec(algo, SMALL_ENVS + env, seed, overrides=overrides)
        made.append(make_model(spec, make_train_env(spec.env_spec())))
    return made


def observations_of(model, n_members, n_rows):
    space = model.observation_space
    space.seed(0)
    samples = [[space.sample() for _ in range(n_rows)] for _ in range(n_members)]
    return th.stack([model.policy.obs_to_tensor(np.stack(rows))[0] for rows in samples])


@pytest.mark.parametrize("n_members", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("n", "n_in", "n_out"),
    [(1, 4, 64), (1, 17, 64), (4, 64, 1), (64, 64, 66), (64, 64, 1), (2, 3, 5), (32, 376, 64), (5, 512, 6)],
)
def test_stacked_linear_matches_linear_for_each_member(n_members, n, n_in, n_out):
    generator = th.Generator().manual_seed(0)
    shapes = [(n_members, n, n_in), (n_members, n_out, n_in), (n_members, n_out), (n_members, n, n_out)]
    x, weight, bias, direction = (th.randn(shape, generator=generator) for shape in shapes)
    stacked = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    ours = stacked_linear(*stacked)
    (ours * direction).sum().backward()
    for member in range(n_members):
        own = [tensor[member].clone().requires_grad_() for tensor in (x, weight, bias)]
        theirs = F.linear(*own)
        (theirs * direction[member]).sum().backward()
        th.testing.assert_close(ours[member], theirs)
        for together, alone in zip(stacked, own, strict=True):
            th.testing.assert_close(together.grad[member], alone.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_rows", [1, 3, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_values_and_log_probabilities_match_single_policies(kind, n_rows):
    members = models(kind)
    # Computed before stacking, which must not change parameters
    observations = observations_of(members[0], len(members), n_rows)
    expected = []
    for seed, (model, rows) in enumerate(zip(members, observations, strict=True)):
        th.manual_seed(seed)
        with th.no_grad():
            expected.append((*model.policy(rows), model.policy._predict(rows, deterministic=True)))
    policy = StackedPolicy([model.policy for model in members])
    draws = th.stack(
        [policy.draws(th.Generator().manual_seed(seed), 1, n_rows)[0] for seed in range(len(members))]
    )
    with th.no_grad():
        actions, values, outputs = policy.act(observations, draws)
        log_prob = policy.log_probs(outputs, actions.reshape(len(members), n_rows, -1))
        likeliest = policy.predict(observations, None)
        sampled = policy.predict(observations, draws)
        values_alone = policy.values(observations)
    assert values.shape == log_prob.shape == (len(members), n_rows)
    th.testing.assert_close(sampled, actions)
    th.testing.assert_close(values_alone, values)
    for member, (their_actions, their_values, their_log_prob, their_likeliest) in enumerate(expected):
        th.testing.assert_close(actions[member], their_actions, check_dtype=False)
        th.testing.assert_close(values[member], their_values.flatten())
        th.testing.assert_close(log_prob[member], their_log_prob)
        th.testing.assert_close(likeliest[member], their_likeliest, check_dtype=False)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluated_actions_and_gradients_match_single_policies(kind):
    members, others = models(kind), models(kind)
    observations = observations_of(members[0], len(members), 12)
    policy = StackedPolicy([model.policy for model in members])
    with th.no_grad():
        draws = th.stack([policy.draws(th.Generator().manual_seed(i), 1, 12)[0] for i in range(3)])
        actions = policy.act(observations, draws)[0].reshape(3, 12, -1).float()
    values, log_prob, entropy = policy.evaluate_actions(observations, actions)
    (values + 0.5 * log_prob + 0.3 * entropy).sum().backward()
    for member, model in enumerate(others):
        rows = actions[member].long().flatten() if model.action_space.shape == () else actions[member]
        theirs = model.policy.evaluate_actions(observations[member], rows)
        (theirs[0].flatten() + 0.5 * theirs[1] + 0.3 * theirs[2]).sum().backward()
        th.testing.assert_close(values[member], theirs[0].flatten())
        th.testing.assert_close(log_prob[member], theirs[1])
        th.testing.assert_close(entropy[member], theirs[2])
        for name, parameter in model.policy.named_parameters():
            th.testing.assert_close(
                policy.parameters[name].grad[member], parameter.grad, rtol=1e-3, atol=1e-4, msg=name
            )


@pytest.mark.parametrize("n_steps", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_several_steps_match_stepwise_draws(kind, n_steps):
    policy = StackedPolicy([model.policy for model in models(kind, seeds=(1,))])
    at_once, one_by_one = (th.Generator().manual_seed(5) for _ in range(2))
    together = policy.draws(at_once, n_steps, 3)
    alone = th.cat([policy.draws(one_by_one, 1, 3) for _ in range(n_steps)])
    assert th.equal(together, alone)
    assert th.equal(at_once.get_state(), one_by_one.get_state())


@pytest.mark.parametrize("kind", ["Discrete", "Box", "images"])
def test_stacking_does_not_change_member_parameters(kind):
    members, others = models(kind), models(kind)
    StackedPolicy([model.policy for model in members])
    for ours, theirs in zip(members, others, strict=True):
        states = [model.policy.state_dict() for model in (ours, theirs)]
        assert states[0].keys() == states[1].keys()
        assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_the_stack_trains_the_member_policies():
    members = models("Box")
    policy = StackedPolicy([model.policy for model in members])
    before = [{name: value.clone() for name, value in m.policy.state_dict().items()} for m in members]
    with th.no_grad():
        for parameter in policy.parameters.values():
            parameter[1] += 1.0
    for member, model in enumerate(members):
        for name, value in model.policy.state_dict().items():
            assert th.equal(value, before[member][name] + (member == 1)), name
    assert set(policy.parameters) == {name for name, _ in members[0].policy.named_parameters()}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [(dict(use_sde=True), "StateDependentNoiseDistribution"), (dict(policy="CnnPolicy"), "separate")],
)
def test_unstackable_policy_is_named_in_error(overrides, name):
    env, algo = ("Levers-v0", "ppo") if "use_sde" in overrides else ("Frames-v0", "sppo")
    if name == "separate":
        overrides = overrides | dict(policy_kwargs={"share_features_extractor": False})
    spec = small_spec(algo, SMALL_ENVS + env, overrides=overrides)
    model = make_model(spec, make_train_env(spec.env_spec()))
    with pytest.raises(UserError, match=f"cannot stack {name}.*--population off"):
        StackedPolicy([model.policy])
