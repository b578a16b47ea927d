"""Variables of Ray's daemons, by the number of nodes.

Every worker of a job registers with one process, the GCS on the head, and all at once:
with Ray's defaults its queue grows, workers miss their deadlines, and raylets end them.
What the environment already has wins. Pure: knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

ALWAYS = {
    # As many Python processes as a node has CPUs, which no actor of ours ever uses.
    "RAY_prestart_worker_first_driver": "0",
}
MANY_NODES = 64
MANY = {
    # Deadlines: a busy GCS answers late, and that is no reason to end a worker.
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    "RAY_gcs_server_request_timeout_seconds": "120",
    # Less talk: resources change when workers start and end, tasks are few.
    "RAY_raylet_report_resources_period_milliseconds": "500",
    "RAY_task_events_report_interval_ms": "5000",
    "RAY_num_workers_soft_limit": "16",
}
"""Above `MANY_NODES` nodes."""
VERY_MANY_NODES = 512
VERY_MANY = {
    # A node is ended after minutes of silence. Agents notice a lost one themselves.
    "RAY_health_check_period_ms": "10000",
    "RAY_health_check_timeout_ms": "30000",
    "RAY_health_check_failure_threshold": "6",
    "RAY_grpc_keepalive_time_ms": "60000",
    "RAY_grpc_keepalive_timeout_ms": "60000",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
}
"""Above `VERY_MANY_NODES` nodes, those of `MANY` beside them."""
THREADS = (
    "RAY_gcs_server_rpc_server_thread_num",
    "RAY_gcs_server_rpc_client_thread_num",
    "RAY_num_server_call_thread",
)
"""On the head, above `MANY_NODES` nodes: threads that answer."""
MOST_THREADS = 64


def settings(
    environ: Mapping[str, str], *, num_nodes: int, num_cpus: int, head: bool
) -> dict[str, str]:
    """Return the variables to add to the environment of `ray start`.

    Args:
        environ: the environment; a variable it has is not returned.
        num_nodes: nodes of the job.
        num_cpus: CPUs of this node.
        head: whether this is the head.
    """
    found = dict(ALWAYS)
    if num_nodes > MANY_NODES:
        found |= MANY
        if head:
            threads = max(4, min(MOST_THREADS, num_cpus // 2))
            found |= dict.fromkeys(THREADS, str(threads))
    if num_nodes > VERY_MANY_NODES:
        found |= VERY_MANY
    return {name: value for name, value in found.items() if name not in environ}
