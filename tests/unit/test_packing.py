"""Which batches share a job, and jobs of several batches."""

import json

import pytest
from parts import CHECKS
from small import CPU

from atlasmap.bundle import save
from atlasmap.commands.mapping import QuerySettings, map_batches
from atlasmap.commands.running import Running
from atlasmap.errors import AtlasmapError
from atlasmap.files import sha256
from atlasmap.settings import SurgerySettings

NAMES = [f"donor {k}" for k in range(200)]


def packed(batches, most, done: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    """Job → its batches, when the jobs in `done` have mapped theirs."""
    found = CHECKS.packed(batches, most, lambda job: len((done or {}).get(job, [])))
    return {job: CHECKS.members(job, batches) for job in found}


@pytest.mark.parametrize("most", [1, 2, 7, 20, 199, 200, 10**6])
def test_every_batch_is_in_one_job_and_no_job_is_larger_than_asked(most):
    found = packed(NAMES, most)
    assert sorted(b for inside in found.values() for b in inside) == sorted(NAMES)
    assert max(map(len, found.values())) <= most
    if most == 1:
        assert sorted(found) == sorted(NAMES)
    assert len(found) <= max(1, 2.5 * 200 / most)


def test_a_new_batch_touches_one_job_alone():
    before = packed(NAMES[:-1], 20)
    after = packed(NAMES, 20, before)
    assert [job for job in after if after[job] != before.get(job)] == [
        job for job, inside in after.items() if NAMES[-1] in inside
    ]


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
def test_what_is_done_stays_packed_as_it_was(most):
    before = packed(NAMES, 20)
    assert packed(NAMES, most, before) == before
    singles = {name: [name] for name in NAMES[:50]}
    after = packed(NAMES, most, singles)
    assert set(singles) <= set(after)
    assert sorted(b for inside in after.values() for b in inside) == sorted(NAMES)


def test_half_done_under_another_size_is_kept_too():
    before = packed(NAMES, 20)
    done = {job: before[job] for job in list(before)[::2]}
    after = packed(NAMES, 5, done)
    assert set(done) <= set(after) and all(len(after[j]) <= 5 for j in after if j not in done)
    assert sorted(b for inside in after.values() for b in inside) == sorted(NAMES)
    # while these jobs run and their markers appear, nobody may come to another list
    for n in range(len(after)):
        now = done | {job: after[job] for job in list(after)[:n]}
        assert packed(NAMES, 5, now) == after


def test_a_job_that_is_done_does_not_grow_without_limit():
    before = packed(NAMES[:10], 20)
    assert list(before) == ["+"]
    assert list(packed(NAMES[:20], 20, before)) == ["+"]
    assert max(map(len, packed(NAMES, 20, before).values())) <= 20
    oversize = {"+": NAMES[:150]}
    assert list(packed(NAMES[:150], 20, oversize)) == ["+"]
    assert max(map(len, packed(NAMES[:151], 20, oversize).values())) <= 20


def test_no_batches_no_jobs():
    assert CHECKS.packed([], 5, lambda job: 0) == []


@pytest.fixture
def prepared(scanvi, queries, tmp_path):
    save(scanvi, tmp_path / "reference")
    for name, query in queries.items():
        query.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


SURGERY = SurgerySettings(max_epochs=3)
FILES = ("weights.safetensors", "settings.json", "history.csv", "golden.npz", "latent.h5ad")


def together(folder, *names, surgery=SURGERY):
    map_batches(
        *(folder / f"{name}.h5ad" for name in names), reference_bundle=folder / "reference",
        out=folder / "out", marker=folder / "marker.json", how=QuerySettings(surgery),
        running=Running(device="cpu"),
    )  # fmt: skip


def test_packed_or_alone_same_bits(prepared):
    together(prepared, "query0", "query1")
    assert json.loads((prepared / "marker.json").read_text()) == ["query0", "query1"]
    for name in ("query0", "query1"):
        map_batches(
            prepared / f"{name}.h5ad", reference_bundle=prepared / "reference",
            out=prepared / "alone", how=QuerySettings(SURGERY),
            running=Running(device="cpu"),
        )  # fmt: skip
        for file in FILES:
            paths = [prepared / where / name / file for where in ("out", "alone")]
            assert sha256(paths[0]) == sha256(paths[1]), file
        assert not (prepared / "out" / name / ".checkpoints").exists()


@pytest.mark.parametrize(
    "change", ["nothing", "settings", "latent altered", "weights missing", "reference", "query"]
)
def test_finished_batches_are_not_done_again_unless_something_changed(
    prepared, change, monkeypatch, queries
):
    together(prepared, "query0", "query1")
    surgery, mapped = SURGERY, []
    again = {"query0": True, "query1": True}
    if change == "settings":
        surgery = SurgerySettings(max_epochs=4)
    elif change == "reference":
        from atlasmap.bundle import load

        other = load(prepared / "reference", CPU)
        other.model.scvi.scale.weight.data.add_(1e-3)
        save(other, prepared / "reference")
    else:
        again["query1"] = False
    if change == "nothing":
        again["query0"] = False
    if change == "latent altered":
        (prepared / "out/query0/latent.h5ad").write_bytes(b"x")
    if change == "weights missing":
        (prepared / "out/query0/weights.safetensors").unlink()
    if change == "query":
        query = queries["query0"]
        query.X = query.X * 2
        query.write_h5ad(prepared / "query0.h5ad")
    import atlasmap.mapping.query

    original = atlasmap.mapping.query.map_query
    monkeypatch.setattr(
        atlasmap.mapping.query, "map_query",
        lambda r, q, *a: mapped.append(q.obs["batch"].iloc[0]) or original(r, q, *a),
    )  # fmt: skip
    together(prepared, "query0", "query1", surgery=surgery)
    assert mapped == [name for name, due in again.items() if due]


@pytest.mark.parametrize("file", ["settings.json", ".latent.h5ad.sha256", "registry.json"])
def test_a_folder_that_is_cut_short_is_made_again(prepared, file):
    together(prepared, "query0")
    before = sha256(prepared / "out/query0/settings.json")
    (prepared / "out/query0" / file).write_text("")
    (prepared / "out/query0/.checkpoints/x").mkdir(parents=True)
    together(prepared, "query0")
    assert sha256(prepared / "out/query0/settings.json") == before
    assert not (prepared / "out/query0/.checkpoints").exists()


def test_a_batch_too_large_for_memory_does_not_keep_the_others_from_it(prepared, monkeypatch):
    import atlasmap.mapping.query

    original = atlasmap.mapping.query.map_query

    def short_of_memory(reference, query, *args):
        if "query0" in set(query.obs["batch"]):
            raise MemoryError
        return original(reference, query, *args)

    monkeypatch.setattr(atlasmap.mapping.query, "map_query", short_of_memory)
    with pytest.raises(AtlasmapError) as error:
        together(prepared, "query0", "query1")
    assert error.value.kind == "host_memory"  # another attempt gets more
    assert (prepared / "out/query1/latent.h5ad").exists()


def test_one_bad_batch_does_not_take_the_others_with_it(prepared, queries):
    bad = queries["query0"]
    bad.obs["batch"] = "batch0"  # a reference batch
    bad.write_h5ad(prepared / "query0.h5ad")
    (prepared / "broken.h5ad").write_bytes(b"no file")
    with pytest.raises(AtlasmapError) as error:
        together(prepared, "broken", "query0", "query1")
    assert error.value.code == "BATCHES_FAILED"
    assert "1 mapped" in error.value.found
    assert "query0: QUERY_BATCH_IS_REFERENCE" in error.value.found
    assert "broken: OSError" in error.value.found and error.value.kind == "bug"
    assert (prepared / "out/query1/latent.h5ad").exists()
    assert not (prepared / "marker.json").exists()
