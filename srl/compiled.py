"""The update of SA2C and SPPO as one pure function, compiled.

The function takes the parameters, the optimizer's state, a rollout, the rows of a minibatch and the
coefficients of the loss, and returns the new parameters, the new state and the figures to log. Its loss is
the algorithm's own. The compiled code writes the new values into the tensors of SB3's policy and optimizer,
which therefore save, load and continue training as without compilation.

The same machine code updates a model alone and as a member of a population, so that its result does not
depend on other members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import nn
from torch.func import functional_call

from srl.compilation import Compiled, compiled
from srl.distributions import BatchedMultiCategoricalDistribution
from srl.errors import NotCompiled
from srl.optimizers import OPTIMIZERS, State, clip_by_norm
from srl.updates import UpdateResult, UpdateStatistics, figures_of

if TYPE_CHECKING:
    from srl.symmetric import SymmetricLossMixin


def whole_rollout(buffer: RolloutBuffer) -> RolloutBufferSamples:
    """All samples of a rollout buffer, in the order whose permutations ``get`` takes.

    :param buffer: SB3's buffer, filled or not.
    :return: Tensors with ``N = buffer_size * n_envs`` rows, which may share the buffer's memory.
    :raises NotCompiled: If the buffer's class overrides how minibatches are made.
    """
    for name in ("get", "_get_samples", "to_torch", "swap_and_flatten"):
        sb3 = [getattr(cls, name) for cls in (RolloutBuffer, DictRolloutBuffer)]
        if getattr(type(buffer), name) not in sb3:
            raise NotCompiled(f"{type(buffer).__name__} makes minibatches in its own way")

    def rows(array: np.ndarray) -> th.Tensor:
        flat = array if buffer.generator_ready else buffer.swap_and_flatten(array)
        # Policies convert observations of float64 to float32
        flat = flat.astype(np.float32) if flat.dtype == np.float64 else flat
        return th.as_tensor(flat, device=buffer.device)

    observations: Any = buffer.observations
    if isinstance(observations, dict):
        observations = {key: rows(array) for key, array in observations.items()}
    else:
        observations = rows(observations)
    columns = (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
    return RolloutBufferSamples(
        observations, rows(buffer.actions).float(), *(rows(column).flatten() for column in columns)
    )


class CompiledUpdate:
    """The compiled update of a model, for rollouts of one shape.

    :param model: An algorithm with its policy and optimizer.
    :param rollout: A rollout of that shape; its values do not matter.
    :param batch_size: Rows of a minibatch. A last minibatch of fewer rows is not compiled.
    :param others: Updates of other models. If one differs only in coefficients, its code is shared.
    :raises NotCompiled: If the update of this model cannot be compiled here.
    """

    def __init__(
        self,
        model: SymmetricLossMixin,
        rollout: RolloutBufferSamples,
        batch_size: int,
        others: Sequence[CompiledUpdate] = (),
    ):
        self._model = model
        self._batch_size = batch_size
        self._shapes = _shapes(rollout)
        self._key = _key(model, rollout, batch_size)
        _check(model)
        optimizer = model.policy.optimizer
        self._rule = OPTIMIZERS[type(optimizer)]
        names = {parameter: name for name, parameter in model.policy.named_parameters()}
        parameters = optimizer.param_groups[0]["params"]
        #: Names of the policy's parameters.
        self._names = [names[parameter] for parameter in parameters]
        state = self._states()[0]
        #: Names of tensors and of numbers in the optimizer's state of a parameter.
        self._state_names = [name for name, value in state.items() if isinstance(value, th.Tensor)]
        self._counters = [name for name in state if name not in self._state_names]
        observations = rollout.observations
        self._observation_names = sorted(observations) if isinstance(observations, dict) else None
        self._no_flips = th.zeros(batch_size, dtype=th.bool, device=model.device)
        #: Names of the figures that the function returns, set by the trace.
        self._figure_names: list[str] = []
        like = next((other for other in others if other._key[1:] == self._key[1:]), None)
        if like is None:
            rows = th.arange(batch_size, device=model.device)
            arguments = [*self._arguments(rollout), *self._coefficients(1), rows, self._no_flips]
            with _traceable(model.policy):
                self._compiled = compiled(self._write, arguments)
        else:
            self._compiled = Compiled(like._compiled.run)
            self._figure_names = like._figure_names

    @property
    def compile_seconds(self) -> float:
        """Seconds of compilation; 0 if the code was in the cache."""
        return self._compiled.seconds

    def fits(self, rollout: RolloutBufferSamples, batch_size: int) -> bool:
        """Whether the compiled code fits the current options of the model and a rollout."""
        return self._key == _key(self._model, rollout, batch_size)

    def run(
        self, rollout: RolloutBufferSamples, permutation: Callable[[int], np.ndarray], n_epochs: int = 1
    ) -> UpdateResult:
        """Update the model.

        :param rollout: The rollout, ``N`` rows.
        :param permutation: Returns the order of ``N`` rows for an epoch.
        :param n_epochs: Passes over the rollout.
        :return: The result of the update.
        """
        # Compiled code does not check its arguments
        if self._shapes != _shapes(rollout):
            raise ValueError("This update was compiled for rollouts of another shape.")
        arguments = self._arguments(rollout)
        figures: list[th.Tensor] = []
        n_samples, epoch, n_before, stopped = 0, 0, 0, False
        while epoch < n_epochs and not stopped:
            epoch += 1
            n_before = len(figures)
            order = th.as_tensor(permutation(len(rollout.returns)), device=self._model.device)
            minibatches = list(th.split(order, self._batch_size))
            rest = minibatches.pop() if len(order) % self._batch_size else None
            stopped = self._compiled_steps(arguments, minibatches, figures)
            n_samples += (len(figures) - n_before) * self._batch_size
            if rest is not None and not stopped:
                stopped = self._uncompiled_step(rollout, rest, figures)
                n_samples += len(rest)
        statistics = UpdateStatistics()
        statistics.add_rows(self._figure_names, figures, n_samples)
        return UpdateResult(statistics, epoch, len(figures) - n_before, stopped)

    def _compiled_steps(
        self, arguments: Sequence[th.Tensor], minibatches: Sequence[th.Tensor], figures: list[th.Tensor]
    ) -> bool:
        """Gradient steps on minibatches; returns whether the limit on the KL divergence stopped them."""
        model, n_steps, stopped = self._model, 0, False
        for rows, coefficients in zip(minibatches, self._coefficients(len(minibatches)), strict=True):
            flips = model._flip_mask(len(rows))
            flips = self._no_flips if flips is None else flips
            figures.extend(self._compiled.run([*arguments, coefficients, rows, flips]))
            stopped = self._exceeds_kl_limit(figures[-1])
            if stopped:
                break
            n_steps += 1
        for state in model.policy.optimizer.state.values():
            for name in self._counters:
                state[name] += n_steps
        return stopped

    def _uncompiled_step(
        self, rollout: RolloutBufferSamples, rows: th.Tensor, figures: list[th.Tensor]
    ) -> bool:
        """The gradient step on a minibatch of another size; the result is that of :meth:`_compiled_steps`."""
        model = self._model
        minibatch = _take(rollout, rows)
        losses, prepared = model._losses(
            model._evaluate(minibatch), minibatch, model._flip_mask(len(rows)), model._coefficients()
        )
        figures.append(_row(figures_of(losses, prepared)))
        stopped = self._exceeds_kl_limit(figures[-1])
        if not stopped:
            model._optimize(losses.loss)
        return stopped

    def _exceeds_kl_limit(self, figures: th.Tensor) -> bool:
        limit = self._model._kl_limit
        return limit is not None and figures[self._figure_names.index("approx_kl")].item() > limit

    def _arguments(self, rollout: RolloutBufferSamples) -> list[th.Tensor]:
        """The arguments of the function that all minibatches share."""
        return [
            *self._model.policy.optimizer.param_groups[0]["params"],
            *(state[name] for state in self._states() for name in self._state_names),
            *(tensor.contiguous() for tensor in _tensors(rollout)),
        ]

    def _states(self) -> list[dict[str, Any]]:
        """The optimizer's state of each parameter, initialized if it is empty."""
        optimizer = self._model.policy.optimizer
        parameters = optimizer.param_groups[0]["params"]
        for parameter in parameters:
            if not optimizer.state[parameter]:
                optimizer.state[parameter].update(self._rule.new_state(parameter))
        return [optimizer.state[parameter] for parameter in parameters]

    def _coefficients(self, n_steps: int) -> Sequence[th.Tensor]:
        """The numbers for the next steps: those of the optimizer and those of the loss."""
        model, optimizer = self._model, self._model.policy.optimizer
        (group,) = optimizer.param_groups
        done = int(optimizer.state[group["params"][0]].get("step", 0))
        of_loss = (model.max_grad_norm, *model._coefficients().values())
        rows = [(*self._rule.numbers(done + step, group), *of_loss) for step in range(1, n_steps + 1)]
        return th.tensor(rows, dtype=th.float64, device=model.device).unbind()

    def _write(self, *arguments: th.Tensor) -> list[th.Tensor]:
        """The function to compile: :meth:`_update`, whose results it writes into its arguments."""
        n, n_states = len(self._names), len(self._state_names)
        parameters, rest = arguments[:n], arguments[n:]
        states = [dict(zip(self._state_names, rest[index * n_states :], strict=False)) for index in range(n)]
        *samples, coefficients, rows, flips = rest[n * n_states :]
        minibatch = _take(self._rollout(samples), rows)
        new_parameters, new_states, figures = self._update(
            parameters, states, coefficients.unbind(), minibatch, flips
        )
        for old, new in zip(parameters, new_parameters, strict=True):
            old.copy_(new)
        for state, new_state in zip(states, new_states, strict=True):
            for name, new in new_state.items():
                state[name].copy_(new)
        return [figures]

    def _update(
        self,
        parameters: Sequence[th.Tensor],
        states: Sequence[State],
        coefficients: Sequence[th.Tensor],
        minibatch: RolloutBufferSamples,
        flips: th.Tensor,
    ) -> tuple[list[th.Tensor], list[State], th.Tensor]:
        """One gradient step as a pure function.

        :param parameters: The policy's parameters, in the order of its optimizer.
        :param states: The optimizer's state of each.
        :param coefficients: The entries of a row of :meth:`_coefficients`.
        :param minibatch: Samples.
        :param flips: Mask of the advantages that change sign.
        :return: The new parameters, the new states and the figures to log.
        """
        model, options = self._model, self._model.policy.optimizer.param_groups[0]
        names = list(model._coefficients())
        max_grad_norm, *of_loss = coefficients[-1 - len(names) :]
        numbers = coefficients[: -1 - len(names)]
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with th.enable_grad():
            losses, prepared = functional_call(
                _Losses(model),
                {f"policy.{name}": leaf for name, leaf in zip(self._names, leaves, strict=True)},
                (minibatch, flips, dict(zip(names, of_loss, strict=True))),
                # A features extractor with two names in the policy is one module, and restored only once
                tie_weights=False,
            )
            gradients = clip_by_norm(th.autograd.grad(losses.loss, leaves), max_grad_norm)
        figures = figures_of(losses, prepared)
        self._figure_names = list(figures)
        new_parameters, new_states = [], []
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            new_parameter, new_state = self._rule.step(parameter, gradient, state, numbers, options)
            if model._kl_limit is not None:
                is_over = figures["approx_kl"] > model._kl_limit
                new_parameter = th.where(is_over, parameter, new_parameter)
                new_state = {name: th.where(is_over, state[name], new) for name, new in new_state.items()}
            new_parameters.append(new_parameter)
            new_states.append(new_state)
        return new_parameters, new_states, _row(figures)

    def _rollout(self, tensors: Sequence[th.Tensor]) -> RolloutBufferSamples:
        """The inverse of :func:`_tensors`."""
        *observations, actions, values, log_probs, advantages, returns = tensors
        names = self._observation_names
        return RolloutBufferSamples(
            observations[0] if names is None else dict(zip(names, observations, strict=True)),  # type: ignore[arg-type]
            *(actions, values, log_probs, advantages, returns),
        )


class _Losses(nn.Module):
    """An algorithm's losses as a module, whose parameters ``functional_call`` replaces."""

    def __init__(self, model: SymmetricLossMixin):
        super().__init__()
        self.policy = model.policy
        self._model = model

    def forward(self, minibatch: RolloutBufferSamples, *arguments: Any) -> Any:
        return self._model._losses(self._model._evaluate(minibatch), minibatch, *arguments)


@contextmanager
def _traceable(policy: ActorCriticPolicy) -> Iterator[None]:
    """A context in which a policy is in training mode and its forward passes do not change it."""
    distribution, action_net, mode = policy.action_dist, policy.action_net, policy.training
    policy.set_training_mode(True)
    # A forward pass sets its attributes, during a trace to tensors without values
    policy.action_dist = copy.copy(distribution)
    if isinstance(distribution, BatchedMultiCategoricalDistribution) and type(action_net) is nn.Linear:
        # That distribution has the rows last, and machine code is faster with one layout
        vars(action_net)["forward"] = lambda x: th.addmm(
            action_net.bias.unsqueeze(1), action_net.weight, x.t()
        ).t()
    try:
        yield
    finally:
        vars(action_net).pop("forward", None)
        policy.action_dist = distribution
        policy.set_training_mode(mode)


def _row(figures: dict[str, th.Tensor]) -> th.Tensor:
    return th.stack([figure.float() for figure in figures.values()])


def _tensors(rollout: RolloutBufferSamples) -> list[th.Tensor]:
    observations: Any = rollout.observations
    if isinstance(observations, dict):
        return [*(observations[name] for name in sorted(observations)), *rollout[1:]]
    return list(rollout)


def _shapes(rollout: RolloutBufferSamples) -> list[tuple[th.Size, th.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in _tensors(rollout)]


def _take(rollout: RolloutBufferSamples, rows: th.Tensor) -> RolloutBufferSamples:
    observations: Any = rollout.observations
    if isinstance(observations, dict):
        taken: Any = {name: values.index_select(0, rows) for name, values in observations.items()}
    else:
        taken = observations.index_select(0, rows)
    return RolloutBufferSamples(taken, *(values.index_select(0, rows) for values in rollout[1:]))


def _key(model: SymmetricLossMixin, rollout: RolloutBufferSamples, batch_size: int) -> tuple[Any, ...]:
    """Everything that the trace depends on and that may change during training."""
    group = model.policy.optimizer.param_groups[0]
    options = {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
    is_trained = tuple(parameter.requires_grad for parameter in group["params"])
    trace = model._trace_options(), _shapes(rollout), batch_size, is_trained
    return id(model.policy.optimizer), repr(options), *trace


def _check(model: SymmetricLossMixin) -> None:
    """Check that an update changes only parameters and the optimizer's state.

    :raises NotCompiled: If it changes more, or the optimizer is not supported.
    """
    policy, optimizer = model.policy, model.policy.optimizer
    name = type(optimizer).__name__
    if type(optimizer) not in OPTIMIZERS or len(optimizer.param_groups) > 1:
        raise NotCompiled(f"the optimizer {name} cannot be compiled")
    (group,) = optimizer.param_groups
    if set(map(id, group["params"])) != set(map(id, policy.parameters())):
        raise NotCompiled(f"the optimizer has other parameters than {type(policy).__name__}")
    if not all(parameter.requires_grad for parameter in policy.parameters()):
        raise NotCompiled(f"{type(policy).__name__} has parameters that are not trained")
    off = OPTIMIZERS[type(optimizer)].not_compiled
    options = [option for option in off if group.get(option)]
    if options:
        raise NotCompiled(f"the optimizer {name} with {options[0]}={group[options[0]]} cannot be compiled")
    slots = [list(module.parameters(recurse=False)) for module in policy.modules()]
    if sum(map(len, slots)) > len(list(policy.parameters())):
        raise NotCompiled(f"{type(policy).__name__} has parameters that modules share")
    if model.use_sde:
        raise NotCompiled("gSDE cannot be compiled")
    if any(True for _ in policy.buffers()):
        raise NotCompiled(f"{type(policy).__name__} has buffers, which an update may change")
