"""The experience store keeps every sampled trajectory on disk and leases it to one optimiser step.

`parquet` converts trajectories, `shards` appends them as Parquet files named in INDEX, `leases` records in LEASES which
step got which, and `queue` joins both into a first-in, first-out queue.

Why INDEX and LEASES are no SQLite database (measured with 64 trajectories a step): in WAL mode a lease took 0.5 ms
instead of the journal's 4 ms, but 20 ms in the rollback mode, the only one that works on the network file systems of
clusters; all three are small beside an optimiser step. The trajectories would stay in Parquet files, because these are
a data set by themselves, so what a kill leaves between both stores would still need repair. And since existing run
directories hold INDEX and LEASES, the code that reads them would stay as well.
"""
