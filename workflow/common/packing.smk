# Assign query batches to jobs by a stable hash of their names: a new batch does not move others.
#
# Batches are the leaves of a binary tree over the bits of their hashes. A job is a batch (named by
# its file name) or a node of the tree (`+0110`: all batches whose hash begins with 0110). The
# batches of a job thus depend only on its name and the list of batches.

import hashlib

NODE = "+"  # no file name of a batch begins with it


def bits(batch):
    """Returns 256 bits (as text) that depend only on the batch's name."""
    return f"{int(hashlib.sha256(batch.encode()).hexdigest(), 16):0256b}"


def members(job, batches):
    """Returns the batches that a job maps."""
    if not job.startswith(NODE):
        return [job]
    return [batch for batch in batches if bits(batch).startswith(job[len(NODE) :])]


def packed(batches, most, done, node=NODE):
    """Returns jobs that together map every batch once, with at most `most` batches each.

    `done`: job → number of batches that it has mapped, 0 if it has not run. Finished jobs are kept,
    even if `most` is smaller now.
    """
    inside = members(node, batches)
    if inside and done(node) and len(inside) <= max(most, done(node)):
        return [node]
    if len(inside) <= 1:
        return inside
    if len(inside) <= most and not any_done_below(node, inside, done):
        return [node]
    return [job for bit in "01" for job in packed(inside, most, done, node + bit)]


def any_done_below(node, inside, done):
    """Returns whether any job below a node is done: a batch, or a node of the tree."""
    nodes = range(len(node), len(node) + 20)
    return any(
        done(batch) or any(done(NODE + bits(batch)[:n]) for n in nodes)
        for batch in inside
    )
