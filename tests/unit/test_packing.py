"""Which batches share a job, and jobs of several batches."""

import json

import pytest
from conftest import CPU

from atlasmap.bundle import save
from atlasmap.commands.mapping import operate, operate_batches
from atlasmap.errors import AtlasmapError
from atlasmap.files import sha256
from atlasmap.packing import jobs, members
from atlasmap.settings import SurgerySettings

NAMES = [f"donor {k}" for k in range(200)]
NOTHING = frozenset().__contains__


def packed(batches, most, done=NOTHING) -> dict[str, list[str]]:
    return {job: members(job, batches) for job in jobs(batches, most, done)}


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
    after = packed(NAMES, 20, set(before).__contains__)
    assert [job for job in after if after[job] != before.get(job)] == [
        job for job, inside in after.items() if NAMES[-1] in inside
    ]


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
def test_what_is_done_stays_packed_as_it_was(most):
    before = packed(NAMES, 20)
    assert packed(NAMES, most, set(before).__contains__) == before
    singles = set(NAMES[:50])
    after = packed(NAMES, most, singles.__contains__)
    assert singles <= set(after)
    assert sorted(b for inside in after.values() for b in inside) == sorted(NAMES)


def test_half_done_under_another_size_is_kept_too():
    before = packed(NAMES, 20)
    done = set(list(before)[::2])
    after = packed(NAMES, 5, done.__contains__)
    assert done <= set(after) and all(len(after[j]) <= 5 for j in after if j not in done)
    assert sorted(b for inside in after.values() for b in inside) == sorted(NAMES)
    # while these jobs run and their markers appear, nobody may come to another list
    for n in range(len(after)):
        now = done | set(list(after)[:n])
        assert packed(NAMES, 5, now.__contains__) == after


def test_no_batches_no_jobs():
    assert jobs([], 5, NOTHING) == []


@pytest.fixture
def prepared(scanvi, queries, tmp_path):
    save(scanvi, tmp_path / "reference")
    for name, query in queries.items():
        query.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


SURGERY = SurgerySettings(max_epochs=3)
FILES = ("weights.safetensors", "settings.json", "history.csv", "golden.npz", "latent.h5ad")


def together(folder, *names, surgery=SURGERY):
    operate_batches(
        *(folder / f"{name}.h5ad" for name in names), reference_bundle=folder / "reference",
        out=folder / "out", marker=folder / "marker.json", surgery=surgery, device="cpu",
    )  # fmt: skip


def test_packed_or_alone_same_bits(prepared):
    together(prepared, "query0", "query1")
    assert json.loads((prepared / "marker.json").read_text()) == ["query0", "query1"]
    for name in ("query0", "query1"):
        operate(
            prepared / f"{name}.h5ad", reference_bundle=prepared / "reference",
            out=prepared / "alone" / name, surgery=SURGERY, device="cpu",
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
    import atlasmap.mapping

    original = atlasmap.mapping.map_query
    monkeypatch.setattr(
        atlasmap.mapping, "map_query",
        lambda r, q, *a: mapped.append(q.obs["batch"].iloc[0]) or original(r, q, *a),
    )  # fmt: skip
    together(prepared, "query0", "query1", surgery=surgery)
    assert mapped == [name for name, due in again.items() if due]


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
    assert "broken: OSError" in error.value.found
    assert (prepared / "out/query1/latent.h5ad").exists()
    assert not (prepared / "marker.json").exists()
