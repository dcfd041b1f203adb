"""Jobs on a cluster: Slurm's commands, partitions, classified failures, preflight checks."""
