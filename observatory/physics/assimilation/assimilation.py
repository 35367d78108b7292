"""Data assimilated into a mechanistic model: the module that the one loop trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from observatory.numerics.ode import VectorField, integrate, uniform_grid
from observatory.numerics.ode.integration import Gradient
from observatory.physics.assimilation.observability import warn_of_silent
from observatory.physics.assimilation.observations import checked, filled, position_of, spread_of
from observatory.physics.assimilation.shooting import Query, Shots, cut, joined
from observatory.physics.assimilation.unknowns import Unknown
from observatory.physics.assimilation.weak_start import weak_start

WALL = 1e10  # the loss where the solution is not finite: line searches turn round, and one NaN would end them


class Coordinates(NamedTuple):
    """Where a fit stands: all zero at its beginning."""

    z: Mapping[str, Tensor]  # of each unknown, (systems,) or the shape of the parameter
    states: Tensor  # of the states at the beginning of each segment, (systems, J, D)


class Residuals(NamedTuple):
    """What is left to explain, in units of the noise; ½ Σ r² is the loss."""

    data: Tensor  # prediction - observation, shape (B, T, F); 0 where nothing was observed
    gaps: Tensor  # √μ times the jumps between segments, shape (B, J-1, D)


class Assimilation(nn.Module):
    """Fit y' = f(t, y; θ) to observed components of trajectories, over θ and all initial states.

    L = (½ Σ ((y_f(t_k) - d_fk)/σ_f)² + ½ μ Σ (gaps between segments/σ)² + priors) / number of observations

    A batch is ((index, times), values) with values (B, T, F); NaN was not observed. `Fit` follows the
    gradient, and `LevenbergMarquardt` below `Iterate` takes Gauss-Newton steps where unknowns are few.

    Args:
        system: a module with `rhs(t, y)` for states (..., D) and `components`, the names of the D.
        unknowns: by name of the parameter; the others are known and stay. Default: all, without bounds.
        systems: number of trajectories; each has initial states of its own.
        segments: number J of segments in which a trajectory is shot; see `shooting`.
        step: largest step of the integration, in the unit of the times.
        method: see `integrate`.
        gradient: see `integrate`.
        observed: the components that were observed; default all.
        initial_state: where components that were not observed begin; default 0.
        noise: standard deviation of the noise of each observed component, in its unit.
        relative_noise: the same as a share of the standard deviation of each component in each trajectory;
            with neither the misfit is measured in these standard deviations.
        matching: μ, weight of the gaps.
        hidden_prior: standard deviation of a Gaussian prior on where components that were not observed begin,
            around `initial_state` and in its unit; default no prior.
        warm_start: begin θ at the weak-form regression (all components observed, f linear in the unknowns).

    Raises:
        ValueError: for names that the system does not have, and settings that do not fit together.
    """

    start_states: Tensor
    state_unit: Tensor
    sigma: Tensor
    matching: Tensor
    seen: Tensor

    def __init__(
        self,
        system: nn.Module,
        unknowns: dict[str, Unknown] | None = None,
        *,
        systems: int = 1,
        segments: int = 1,
        step: float = 0.01,
        method: str = "rk4",
        gradient: Gradient = "plain",
        observed: Sequence[str] | None = None,
        initial_state: Sequence[float] | None = None,
        noise: Sequence[float] | None = None,
        relative_noise: float | None = None,
        matching: float = 1.0,
        hidden_prior: float | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        self.system, self.field = system.requires_grad_(False), VectorField(system)
        self.systems, self.segments, self.step = systems, segments, step
        self.method, self.gradient = method, gradient
        self.components: tuple[str, ...] = tuple(getattr(system, "components", ()))
        self.observed = tuple(observed or self.components)
        self.columns = [position_of(name, self.components, "component") for name in self.observed]
        self.noise, self.relative_noise, self.warm_start = noise, relative_noise, warm_start
        self.hidden_prior = hidden_prior
        if not self.components or (initial_state and len(initial_state) != len(self.components)):
            raise ValueError(
                f"{type(system).__name__} has the components {self.components}, which must name every "
                f"number of a state, with initial_state={initial_state}"
            )
        if noise is not None and (relative_noise is not None or len(noise) != len(self.observed)):
            raise ValueError(
                f"noise={noise} for the observed {self.observed}, relative_noise={relative_noise}: "
                "give one number each, or the share"
            )
        self._introduce(unknowns)
        like = next(system.parameters())
        shape = (systems, segments, len(self.components))
        self.states = nn.Parameter(like.new_zeros(shape))
        self.register_buffer(
            "start_states", like.new_tensor(initial_state or [0.0] * shape[2]).expand(shape).clone()
        )
        self.register_buffer("state_unit", like.new_ones(systems, shape[2]))
        self.register_buffer("sigma", like.new_ones(systems, shape[2]))
        self.register_buffer("matching", like.new_tensor(matching))  # it changes during a fit
        self.register_buffer("seen", torch.zeros(systems, dtype=torch.bool))

    def _introduce(self, unknowns: Mapping[str, Unknown] | None) -> None:
        own = self.field.theta
        self.unknowns = dict(unknowns) if unknowns else {name: Unknown() for name in own}
        refused = set(self.unknowns) & set(getattr(self.system, "hard_thresholds", ()))
        if refused:
            raise ValueError(
                f"{', '.join(sorted(refused))}: the right-hand side jumps there, and a hard switch has no "
                "gradient; let the system switch by Heaviside('sigmoid', width), or leave it known"
            )
        self.z, self._keys = nn.ParameterDict(), {name: name.replace(".", "/") for name in self.unknowns}
        for name, unknown in self.unknowns.items():
            position_of(name, tuple(own), "parameter")
            if unknown.individual and own[name].ndim:
                raise ValueError(
                    f"{name} has shape {tuple(own[name].shape)}; only scalar parameters are individual"
                )
            start = unknown.begun(name, own[name])
            start = start.expand(self.systems).clone() if unknown.individual else start
            self.z[self._keys[name]] = nn.Parameter(torch.zeros_like(start))
            self.register_buffer(f"start_{self._keys[name].replace('/', '_')}", start)
            self.register_buffer(f"unit_{self._keys[name].replace('/', '_')}", unknown.unit(start))

    def _buffer(self, kind: str, name: str) -> Tensor:
        return self.get_buffer(f"{kind}_{name.replace('.', '_')}")

    @property
    def coordinates(self) -> Coordinates:
        """The live coordinates."""
        return Coordinates({name: self.z[key] for name, key in self._keys.items()}, self.states)

    def estimates(self, z: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """θ by name: shape (systems,) where individual, else that of the parameter."""
        z = self.coordinates.z if z is None else z
        return {
            name: unknown.value(z[name], self._buffer("start", name), self._buffer("unit", name))
            for name, unknown in self.unknowns.items()
        }

    def initial_states(self, states: Tensor | None = None) -> Tensor:
        """The states at the beginning of each segment, shape (systems, J, D)."""
        return self.start_states + self.state_unit[:, None] * (self.states if states is None else states)

    def prior_weights(self) -> Coordinates:
        """1 / standard deviation of the Gaussian prior on each coordinate around 0; 0 where there is none."""
        z = {
            name: torch.full_like(value, 1 / (self.unknowns[name].prior or math.inf))
            for name, value in self.coordinates.z.items()
        }
        states = torch.zeros_like(self.states)
        if self.hidden_prior is not None:
            hidden = [d for d in range(len(self.components)) if d not in self.columns]
            states[:, 0, hidden] = self.state_unit[:, hidden] / self.hidden_prior
        return Coordinates(z, states)

    def _prior(self, query: Query) -> Tensor:
        """Σ (coordinate / standard deviation)², of the individual ones of some trajectories."""
        weights, at = self.prior_weights(), self.coordinates
        total = (weights.states * at.states)[query.which].square().sum()
        for name, unknown in self.unknowns.items():
            missed = weights.z[name] * at.z[name]
            total = total + (missed[query.which] if unknown.individual else missed).square().sum()
        return total

    @torch.no_grad()
    def project(self) -> None:
        """Move coordinates back whose parameters have left bounds of the kind "project"."""
        for name, unknown in self.unknowns.items():
            z = self.z[self._keys[name]]
            z.copy_(unknown.projected(z, self._buffer("start", name), self._buffer("unit", name)))

    def at_bounds(self) -> list[str]:
        """Names of the parameters that have run into a bound."""
        return [
            name
            for name, theta in self.estimates().items()
            if self.unknowns[name].at_bound(theta, self._buffer("start", name)).any()
        ]

    def shoot(self, query: Query, at: Coordinates | None = None) -> Shots:
        """What the model predicts for some trajectories."""
        at = at or self.coordinates
        lanes = {
            # one value per trajectory, the same in all its segments
            name: value[query.which][:, None] if self.unknowns[name].individual else value
            for name, value in self.estimates(at.z).items()
        }
        points = query.times.shape[1]
        local = query.times[:, cut(points, self.segments).to(query.times.device)].movedim(
            -1, 0
        )  # (K+1, B, J)
        y = integrate(
            self.field,
            self.initial_states(at.states)[query.which],
            uniform_grid(local, self.step),
            lanes,
            method=self.method,
            gradient=self.gradient,
        )
        return joined(y, points)

    def forward(self, query: Any) -> Tensor:
        """Predicted observations for (index, times), shape (B, T, F)."""
        return self.shoot(Query(*query)).states[..., self.columns]

    def residuals(self, query: Query, values: Tensor, at: Coordinates | None = None) -> Residuals:
        """Misfits and gaps of some trajectories."""
        at = at or self.coordinates
        shots, sigma = self.shoot(query, at), self.sigma[query.which][:, None]
        misses = (shots.states[..., self.columns] - values) / sigma[..., self.columns]
        starts = self.initial_states(at.states)[query.which]
        data = torch.where(values.isnan(), 0.0, misses)
        return Residuals(data, self.matching**0.5 * (shots.ends - starts[:, 1:]) / sigma)

    def training_loss(self, batch: Any) -> Tensor:
        """L; at the first sight of data with a warning of unknowns on which they do not depend.

        Raises:
            ValueError: if the first solution is not finite, with the time and the component; later ones are
                walls for the optimizer.
        """
        query, values = self.begin(batch)
        with torch.no_grad():
            first = not self.seen[query.which].all()
        self.seen[query.which] = True
        self.project()
        data, gaps = self.residuals(query, values)
        observations = values.isfinite().sum()
        loss = (data.square().sum() + gaps.square().sum() + self._prior(query)) / (2 * observations)
        if torch.isfinite(loss):
            if first and loss.requires_grad:
                warn_of_silent(loss, self.coordinates.z)
            return loss
        if first:
            raise ValueError(self._where_it_broke(query))
        still = [torch.nan_to_num(p, 0, 0, 0).sum() for p in self.parameters() if p.requires_grad]
        return 0 * torch.stack(still).sum() + WALL

    def validation_metrics(self, batch: Any) -> dict[str, Tensor]:
        """χ² per observation, and the estimates; of individual ones and tensors the mean."""
        query, values = self.begin(batch)
        data, gaps = self.residuals(query, values)
        metrics = {"misfit": data.square().sum() / values.isfinite().sum()}
        if self.segments > 1:
            metrics["gap"] = gaps.abs().max() / self.matching**0.5
        return metrics | {name: value.mean() for name, value in self.estimates().items()}

    @torch.no_grad()
    def begin(self, batch: Any) -> tuple[Query, Tensor]:
        """At the first sight of a trajectory: its noise, its units, and where states and parameters begin."""
        query, values = checked(batch, self.observed, self.systems)
        new = ~self.seen[query.which]
        if new.any():
            index, d, columns = query.which[new], values[new], self.columns
            spread = spread_of(d)
            self.state_unit[index[:, None], columns] = spread
            sigma = spread if self.relative_noise is None else self.relative_noise * spread
            sigma = sigma if self.noise is None else sigma.new_tensor(self.noise).expand_as(sigma)
            level = (sigma / spread).mean(
                -1, keepdim=True
            )  # hidden components: as well known as the observed ones
            self.sigma[index] = level * self.state_unit[index]
            self.sigma[index[:, None], columns] = sigma
            first = cut(values.shape[1], self.segments)[:, 0].to(d.device)
            self.start_states[index[:, None], :, columns] = filled(d)[:, first].movedim(-1, 1)
            if self.warm_start:
                self._begin_parameters(Query(index, query.times[new]), d)
        return query, values

    def _begin_parameters(self, query: Query, values: Tensor) -> None:
        if self.columns != list(range(len(self.components))) or values.isnan().any():
            raise ValueError(
                "warm_start needs every component, in order and without gaps; observed: " + str(self.observed)
            )
        start = {name: self._buffer("start", name) for name in self.unknowns}
        own = {
            n: v[query.which] if self.unknowns[n].individual else v.expand(len(values)).clone()
            for n, v in start.items()
        }
        found, errors = weak_start(self.field, own, values, query.times)
        for name, unknown in self.unknowns.items():
            unit = self._buffer("unit", name)
            if unknown.individual:
                start[name][query.which] = unknown.inside(found[name], unit[query.which])
            else:
                weights = errors[name] ** -2
                start[name].copy_(unknown.inside((weights * found[name]).sum() / weights.sum(), unit))

    @torch.no_grad()
    def _where_it_broke(self, query: Query) -> str:
        wrong = ~self.shoot(query).states.isfinite()  # (B, T, D)
        if not wrong.any():
            return "the loss is not finite although the solution is: is the noise 0?"
        k = int(wrong.any(-1).any(0).nonzero()[0])
        b, d = wrong[:, k].nonzero()[0].tolist()
        return (
            f"{self.components[d]} of trajectory {int(query.which[b])} leaves the finite numbers at time "
            f"{float(query.times[b, k]):g}: take steps below step={self.step:g}, or other starting values"
        )
