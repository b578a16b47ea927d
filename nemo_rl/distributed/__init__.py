"""Processes and batches: virtual clusters, worker groups, batched data."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchedDataDict": "nemo_rl.distributed.batched_data_dict",
        "LocalCluster": "nemo_rl.distributed.local",
        "RankInfo": "nemo_rl.distributed.rank",
        "RayVirtualCluster": "nemo_rl.distributed.virtual_cluster",
        "RayWorkerGroup": "nemo_rl.distributed.worker_groups",
        "VirtualCluster": "nemo_rl.distributed.interfaces",
        "WorkerGroup": "nemo_rl.distributed.interfaces",
    },
)
