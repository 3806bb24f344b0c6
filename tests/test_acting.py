"""Acting in NumPy matches the policy, and members of populations act like single policies."""

import copy
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import MlpExtractor

from srl import SPPO
from srl.acting import NumpyActor, can_act_in_numpy
from srl.policies import ActorCriticPolicy
from srl.training.stacked.networks import StackedPolicy
from tests.test_algorithms import RandomEnv

SPACES = {
    "MultiDiscrete": spaces.MultiDiscrete([11] * 6),
    "unequal MultiDiscrete": spaces.MultiDiscrete([2, 5, 3]),
    "Discrete": spaces.Discrete(5),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-1.0, 1.0, (3,)),
}
N_MEMBERS = 33


def make_policy(kind, seed=0, **kwargs):
    beta = 0.0 if kind == "Box" else 1.0
    model = SPPO(
        "MlpPolicy", RandomEnv(SPACES[kind]), seed=seed, device="cpu", n_steps=8, batch_size=8, beta=beta,
        policy_kwargs=kwargs,
    )  # fmt: skip
    with th.no_grad():
        model.policy.action_net.weight *= 50
    return model.policy


def draws_of(policy, n_members, n_rows):
    stack = StackedPolicy([copy.deepcopy(policy)])
    generators = (th.Generator().manual_seed(seed) for seed in range(n_members))
    return np.stack([stack.draws(generator, 1, n_rows)[0].numpy() for generator in generators])


@pytest.mark.parametrize("kwargs", [{}, dict(net_arch=dict(pi=[5], vf=[24, 8]), activation_fn=th.nn.ReLU)])
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("kind", SPACES)
def test_member_acts_identically_in_populations_of_any_size(kind, n_rows, kwargs):
    policy = make_policy(kind, **kwargs)
    assert can_act_in_numpy(policy)
    generator = th.Generator().manual_seed(0)
    parameters = {
        name: value.detach() + 0.1 * th.randn(N_MEMBERS, *value.shape, generator=generator)
        for name, value in policy.named_parameters()
    }
    observations = np.random.default_rng(0).normal(size=(N_MEMBERS, n_rows, 4)).astype(np.float32)
    draws = draws_of(policy, N_MEMBERS, n_rows)

    def act(first, end):
        members = slice(first, end)
        actor = NumpyActor(policy, {name: value[members].clone() for name, value in parameters.items()})
        return *actor.act(observations[members], draws[members]), actor.values(observations[members])

    alone = [act(member, member + 1) for member in range(N_MEMBERS)]
    alone = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    for size in (2, 3, 4, 8, 16, 17, 32, 33):
        for ours, theirs in zip(act(0, size), alone, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs[:size])


@pytest.mark.parametrize("kind", SPACES)
def test_actions_and_log_probabilities_match_pytorch(kind):
    policy = make_policy(kind)
    observations = np.random.default_rng(0).normal(size=(1, 50, 4)).astype(np.float32)
    draws = draws_of(policy, 1, 50)
    actor = NumpyActor(policy, {name: value[None] for name, value in policy.named_parameters()})
    actions, values, log_probs = actor.act(observations, draws)
    rows = th.as_tensor(observations[0])
    with th.no_grad():
        theirs = policy.get_distribution(rows).choose(th.as_tensor(draws[0]))
        their_values, their_log_probs, _ = policy.evaluate_actions(rows, theirs)
    th.testing.assert_close(th.as_tensor(actions[0]), theirs, check_dtype=False)
    th.testing.assert_close(th.as_tensor(values[0]), their_values.flatten())
    th.testing.assert_close(th.as_tensor(log_probs[0]), their_log_probs, rtol=1e-5, atol=1e-5)
    assert np.array_equal(actor.values(observations), values)


@pytest.mark.parametrize("kind", SPACES)
def test_numpy_and_pytorch_acting_have_the_same_shapes_and_draws(kind):
    policy = make_policy(kind)
    rows = th.as_tensor(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    given = []
    for numpy_acting in (True, False):
        policy.numpy_acting = numpy_acting
        th.manual_seed(0)
        with th.no_grad():
            given.append((*policy(rows), policy.predict_values(rows)))
    for ours, theirs in zip(*given, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if kind != "MultiBinary":  # PyTorch draws these differently
            th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_numpy_acting_is_limited_to_multidiscrete_or_compiled_updates():
    for kind, space in SPACES.items():
        kwargs = dict(n_steps=8, batch_size=8, beta=0.0, device="cpu")
        plain = SPPO("MlpPolicy", RandomEnv(space), **kwargs)
        assert plain.policy.numpy_acting == ("MultiDiscrete" in kind)
        assert SPPO("MlpPolicy", RandomEnv(space), compile_update=True, **kwargs).policy.numpy_acting


def test_actor_uses_current_parameters():
    policy = make_policy("MultiDiscrete")
    rows = th.zeros(1, 4)
    with th.no_grad():
        policy.predict_values(rows)
        other = copy.deepcopy(policy)
        policy.value_net.bias += 1.0
        for parameter in other.parameters():
            parameter.data = parameter.data.clone()
        other.value_net.bias += 2.0
        values = [float(each.predict_values(rows)) for each in (policy, other)]
        assert values[1] - values[0] == pytest.approx(1.0)
        policy.load_state_dict(other.state_dict())
        assert float(policy.predict_values(rows)) == values[1]
    # PyTorch computes values with gradients
    assert policy.predict_values(rows).requires_grad


class Masked(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi).clone()
        logits[:, 0] = -1e8
        return self.action_dist.proba_distribution(action_logits=logits)


class Scaled(ActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(obs * 0.1, features_extractor)


class Residual(MlpExtractor):
    def forward_actor(self, features):
        return 5 * self.policy_net(features)


class WithResidual(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Residual(self.features_dim, net_arch=[8], activation_fn=th.nn.Tanh)


class OwnExtractor(th.nn.Module):
    latent_dim_pi = latent_dim_vf = 4

    def forward(self, features):
        return features, features

    def forward_actor(self, features):
        return features

    def forward_critic(self, features):
        return features


class WithOwnExtractor(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OwnExtractor()


class TwoLayers(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_net = th.nn.Sequential(th.nn.Linear(64, 8), th.nn.Linear(8, 6))


class WeightNorm(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        th.nn.utils.weight_norm(self.mlp_extractor.policy_net[0])
        self.mlp_extractor.policy_net[0].weight_g.data *= 3


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("cls", [Masked, Scaled, WithResidual, WithOwnExtractor, TwoLayers, WeightNorm])
def test_policy_with_own_code_acts_with_it(cls):
    env = RandomEnv(spaces.MultiDiscrete([3, 3]))
    policy = SPPO(cls, env, n_steps=8, batch_size=8, seed=0, device="cpu").policy
    rows = th.randn(50, 4)
    with th.no_grad():
        actions, values, log_probs = policy(rows)
        their_values, their_log_probs, _ = policy.evaluate_actions(rows, actions)
    th.testing.assert_close(values, their_values)
    th.testing.assert_close(log_probs, their_log_probs)
    assert cls is not Masked or (actions[:, 0] > 0).all()


def test_actor_uses_parameters_that_replace_others():
    policy = make_policy("MultiDiscrete")
    rows = th.randn(50, 4)
    with th.no_grad():
        policy(rows)
        policy.action_net.weight = th.nn.Parameter(-policy.action_net.weight)
        policy.set_training_mode(False)
        actions, _, log_probs = policy(rows)
        th.testing.assert_close(log_probs, policy.evaluate_actions(rows, actions)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_box_actions_have_the_shape_of_their_space(shape):
    policy = SPPO("MlpPolicy", RandomEnv(spaces.Box(-1, 1, shape)), beta=0.0, device="cpu").policy
    policy.numpy_acting = True
    with th.no_grad():
        assert policy(th.zeros(5, 4))[0].shape == (5, *shape)


def test_policy_can_be_pickled_after_acting():
    policy = make_policy("MultiDiscrete")
    rows = th.zeros(3, 4)
    with th.no_grad():
        policy(rows)
        loaded = pickle.loads(pickle.dumps(policy))
        assert loaded.predict_values(rows).equal(policy.predict_values(rows))


@pytest.mark.parametrize(
    "kwargs", [dict(activation_fn=th.nn.SiLU), dict(features_extractor_class=th.nn.Identity)]
)
def test_unsupported_networks_act_in_pytorch(kwargs):
    if "features_extractor_class" in kwargs:
        policy = make_policy("MultiDiscrete")
        policy.features_extractor = th.nn.Flatten()
    else:
        policy = make_policy("MultiDiscrete", **kwargs)
    assert not can_act_in_numpy(policy)
    with th.no_grad():
        actions, _, _ = policy(th.zeros(2, 4))
    assert actions.shape == (2, 6)
