"""Dask clusters of processes of this machine, for tests that run beside one another."""

from distributed import LocalCluster


def local_cluster(num_workers: int, *, threads: int = 1) -> LocalCluster:
    """A cluster whose page is on a free port: without one it asks for 8787 all the same, and warns if that is taken."""
    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=threads,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    )
