"""How far a stream runs ahead of training: a few blocks, however much memory there is."""

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
WAITING = 2


class Ahead(BackpressurePolicy):  # type: ignore[misc]
    """An operator gets no more input while WAITING blocks for each of its consumers wait behind it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        quiet(self._data_context)  # here, since this is the process that runs the stream

    def can_add_input(self, operator: Any) -> bool:
        """Whether Ray Data may start one more task of `operator`."""
        followers = operator.output_dependencies
        if not isinstance(operator, MapOperator) or not followers:
            return True
        (follower,) = followers
        state = self._topology[follower]
        waiting = state.total_enqueued_input_blocks() + operator.num_active_tasks()
        if isinstance(follower, MapOperator):
            return bool(waiting < WAITING * max(1, follower.num_active_tasks()))
        # Workers wait for each other at every step: one that starves is served however much another has.
        waiting += state.total_enqueued_output_blocks()
        return bool(waiting < WAITING * follower.num_output_splits() or state.num_waiting_consumers)


def run_few_ahead(dataset: Any) -> None:
    """Bound how many blocks of the dataset are made before they are asked for."""
    policies = [*ENABLED_BACKPRESSURE_POLICIES, Ahead]
    dataset.context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
