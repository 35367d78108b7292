"""The residuals of a fit as a function of one vector per problem, and their Jacobian.

Each trajectory is a problem of its own where all unknowns are individual; a shared unknown makes them one
problem.
"""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.numerics.curvature import prepare_forward_mode
from observatory.physics.assimilation.assimilation import Assimilation, Coordinates, Residuals
from observatory.physics.assimilation.shooting import Query, cut


class Problem:
    """Residuals (G, R) and Jacobian (G, R, P) of G problems with P unknowns each; priors are residuals too.

    The vector of a problem holds the shared unknowns, then for each trajectory its individual unknowns and
    the states at the beginning of its segments.

    Args:
        model: its noise and starting values are set (`begin`).
        query: all trajectories, in order.
        values: observations (B, T, F).

    Raises:
        ValueError: if trajectories are missing.
    """

    def __init__(self, model: Assimilation, query: Query, values: Tensor) -> None:
        if query.which.tolist() != list(range(model.systems)):
            raise ValueError(
                f"Gauss-Newton steps need all {model.systems} trajectories in order in each batch, "
                f"got {query.which.tolist()}"
            )
        self.model, self.query, self.values = model, query, values
        self.shared = [name for name, unknown in model.unknowns.items() if not unknown.individual]
        self.own = [name for name, unknown in model.unknowns.items() if unknown.individual]
        weights = self.pack(model.prior_weights())
        self.believed = (weights > 0).any(0)  # the coordinates with a prior, the same in all problems
        self.weights = weights[:, self.believed]

    def pack(self, at: Coordinates) -> Tensor:
        """The vectors, shape (G, P)."""
        own = torch.cat([at.z[name][:, None] for name in self.own] + [at.states.flatten(1)], 1)
        if not self.shared:
            return own
        return torch.cat([at.z[name].flatten() for name in self.shared] + [own.flatten()])[None]

    def unpack(self, x: Tensor) -> Coordinates:
        """The inverse of `pack`."""
        like, z = self.model.coordinates, {}
        if self.shared:
            sizes = [like.z[name].numel() for name in self.shared]
            *parts, rest = x[0].split([*sizes, x.shape[1] - sum(sizes)])
            z = {name: part.view_as(like.z[name]) for name, part in zip(self.shared, parts, strict=True)}
            x = rest.reshape(self.model.systems, -1)
        z |= dict(zip(self.own, x[:, : len(self.own)].unbind(1), strict=True))
        return Coordinates(z, x[:, len(self.own) :].reshape(like.states.shape))

    def residuals(self, x: Tensor) -> Tensor:
        """Shape (G, P) to (G, R)."""
        return self._with_priors(self._rows(self.model.residuals(self.query, self.values, self.unpack(x))), x)

    def _with_priors(self, rows: Tensor, x: Tensor) -> Tensor:
        return torch.cat([rows, self.weights * x[:, self.believed]], 1)

    def linearise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals and Jacobian: one direction for each unknown, and one for each component of a state.

        What a segment predicts depends on no state but its own, so that all segments are moved at once.
        """
        at = self.unpack(x)
        found, slopes = self._sensitivities(at)
        priors = torch.diag_embed(x.new_ones(x.shape))[:, self.believed] * self.weights[..., None]
        return self._with_priors(self._rows(found), x), torch.cat([self._assembled(slopes), priors], 1)

    def _sensitivities(self, at: Coordinates) -> tuple[Residuals, Residuals]:
        """Residuals and, in a last dimension, their derivatives along all directions: shared, own, parts."""
        prepare_forward_mode()
        directions = self._directions(at)

        def along(direction: Coordinates) -> tuple[Residuals, Residuals]:
            # each gap is measured from where the next segment began: what moves that is added in `_assembled`
            fixed = self.model.initial_states(at.states)

            def residuals(z: dict[str, Tensor], states: Tensor) -> Residuals:
                data, gaps = self.model.residuals(self.query, self.values, Coordinates(z, states))
                moved = self.model.initial_states(states) - fixed
                weight = self.model.matching**0.5 / self.model.sigma[:, None]
                return Residuals(data, gaps + weight * moved[:, 1:])

            return torch.func.jvp(  # type: ignore[return-value]
                residuals, (dict(at.z), at.states), (dict(direction.z), direction.states)
            )

        value, slope = torch.func.vmap(along, out_dims=(None, -1))(directions)  # type: ignore[arg-type]
        return Residuals(*value), Residuals(*slope)

    def _directions(self, at: Coordinates) -> Coordinates:
        numbers = [at.z[name].numel() if name in self.shared else 1 for name in (*self.shared, *self.own)]
        components = at.states.shape[-1]
        total = sum(numbers) + components
        z, row = {}, 0
        for name, number in zip((*self.shared, *self.own), numbers, strict=True):
            direction = at.z[name].new_zeros(total, *at.z[name].shape)
            if name in self.shared:
                direction.reshape(total, -1)[row : row + number] = torch.eye(number).to(direction)
            else:
                direction[row] = 1  # trajectories do not depend on one another
            z[name], row = direction, row + number
        states = at.states.new_zeros(total, *at.states.shape)
        states[row:] = torch.eye(components).to(states)[:, None, None, :]
        return Coordinates({name: z[name] for name in at.z}, states)

    def _assembled(self, slopes: Residuals) -> Tensor:
        model, (systems, segments, components) = self.model, self.model.states.shape
        parameters = slopes.data.shape[-1] - components
        # at which beginning each time hangs; the last time belongs to the last segment
        length = cut(self.values.shape[1], segments).shape[1] - 1
        hangs = (torch.arange(self.values.shape[1]) // length).clamp_max(segments - 1)
        on = torch.nn.functional.one_hot(hangs, segments).to(slopes.data)  # (T, J)
        data = torch.einsum("btfd,tj->btfjd", slopes.data[..., parameters:], on).flatten(3)
        left = torch.eye(segments - 1, segments).to(on)
        gaps = torch.einsum("bkcd,kj->bkcjd", slopes.gaps[..., parameters:], left)
        pull = model.matching**0.5 * model.state_unit / model.sigma  # of the next beginning on a gap
        right = torch.diag(torch.ones(segments - 1), 1)[: segments - 1].to(on)
        gaps = gaps - torch.einsum("bcd,kj->bkcjd", torch.diag_embed(pull), right)
        by_states = torch.cat([data.flatten(1, 2), gaps.flatten(3).flatten(1, 2)], 1)
        by_z = torch.cat([s[..., :parameters].flatten(1, 2) for s in slopes], 1)
        jacobian = torch.cat([by_z, by_states], -1)  # (B, R, shared + own + J D)
        if not self.shared:
            return jacobian
        together = parameters - len(self.own)
        shared, own = jacobian.split([together, jacobian.shape[-1] - together], -1)
        blocks = torch.zeros(*own.shape[:2], systems, own.shape[2]).to(own)
        every = torch.arange(systems)
        blocks[every, :, every] = own
        return torch.cat([shared.flatten(0, 1), blocks.flatten(2).flatten(0, 1)], -1)[None]

    def _rows(self, found: Residuals) -> Tensor:
        rows = torch.cat([part.flatten(1) for part in found], 1)
        return rows.flatten()[None] if self.shared else rows
