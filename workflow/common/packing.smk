# Which query batches share a job: by a stable hash of their names, so that none shifts another.
#
# Batches are the leaves of a binary tree over the bits of their hashes. A job is a batch (named by
# its file name) or a node of the tree (`+0110`: all batches whose hash begins with 0110), so what a
# job maps depends on its name and the list of batches alone.

import hashlib

NODE = "+"  # no file name of a batch begins with it


def bits(batch):
    """256 bits that depend on the name alone."""
    return f"{int(hashlib.sha256(batch.encode()).hexdigest(), 16):0256b}"


def members(job, batches):
    """The batches a job maps."""
    if not job.startswith(NODE):
        return [job]
    return [batch for batch in batches if bits(batch).startswith(job[len(NODE) :])]


def packed(batches, most, done, node=NODE):
    """Jobs that together map every batch once: at most `most` batches each, or as many as a job
    that is `done` mapped (job → number of batches, 0 if it is not). What is done stays as it was
    packed, whatever `most` is now."""
    inside = members(node, batches)
    if inside and done(node) and len(inside) <= max(most, done(node)):
        return [node]
    if len(inside) <= 1:
        return inside
    if len(inside) <= most and not any_done_below(node, inside, done):
        return [node]
    return [job for bit in "01" for job in packed(inside, most, done, node + bit)]


def any_done_below(node, inside, done):
    """Whether a single batch of a node, or a node between it and that batch, is done."""
    nodes = range(len(node), len(node) + 20)
    return any(
        done(batch) or any(done(NODE + bits(batch)[:n]) for n in nodes)
        for batch in inside
    )
