"""How far a stream runs ahead of training: a few blocks, however much memory there is."""

from functools import partial
from typing import Any

from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.operators.map_operator import MapOperator

from morphoray.pipelines.stream import quiet

# Ray Data itself bounds bytes alone: blocks of a few MB would run ahead by whole epochs. 2.60 has no public
# way to bound their number; the version is pinned, and tests/test_stream.py counts them.
READ_AN_ACTOR = 4
ENCODED_A_WORKER = 2


class Ahead(BackpressurePolicy):  # type: ignore[misc]
    """Lets a stream of tasks, actors and shards have a few blocks in work for each actor and each shard."""

    def __init__(self, actors: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._actors = actors
        quiet(self._data_context)  # here, since this is the process that runs the stream

    def can_add_input(self, operator: Any) -> bool:
        """Whether Ray Data may start one more task of `operator`."""
        if not isinstance(operator, MapOperator) or not operator.output_dependencies:
            return True
        (follower,) = operator.output_dependencies
        state, active = self._topology[follower], operator.num_active_tasks()
        waiting = state.total_enqueued_input_blocks()
        if isinstance(follower, MapOperator):
            return bool(active + waiting < READ_AN_ACTOR * self._actors)
        if not active and not waiting and self._starves(state):
            return True
        waiting += state.total_enqueued_output_blocks()
        return bool(active + waiting < self._actors + ENCODED_A_WORKER * follower.num_output_splits())

    def _starves(self, state: Any) -> bool:
        """Whether a worker has nothing: the others wait for it at every step, so it is served in any case."""
        splits = range(state.op.num_output_splits())
        return not all(state.output_queue.has_next(split) for split in splits)


def run_few_ahead(dataset: Any, actors: int) -> None:
    """Bound how many blocks of the dataset are in work; `actors`: in its second stage."""
    quiet(dataset.context)
    policies = [*ENABLED_BACKPRESSURE_POLICIES, partial(Ahead, actors)]
    dataset.context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
