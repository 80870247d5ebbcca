import h5py
import numpy as np
import pytest
import xarray as xr
from blocked import BANNED, run_without
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.load import load_run

from headdynamics.schema import RunFileError

HEADS = layout(2, 3)


def write(path, **options):
    return write_run(path, blocks_of(np.tile(np.arange(1.0, 7), (5, 1)), 0.1), HEADS, **options)


def test_everything_comes_back_with_named_axes(path):
    run = load_run(write(path, optional=("online/", "ablation/", "transfer/")))
    assert run.importance["blocks"].dims == ("snapshot", "block", "head")
    assert run.curve["score"].sel(order="random-2", fraction=0.5).shape == (5,)
    assert run.snapshots["epoch"].sel(snapshot=600).item() == 2.0
    assert run.heads["kind"].values.tolist() == ["encoder"] * 6
    assert run.online["mean"].dims == ("window", "head") and run.ablation_one["delta"].shape == (5, 6)
    assert run.transfer["score"].dims == ("snapshot", "fraction")
    assert run.attrs["greater_is_better"] is True and run.signature["hash"] == "abc123"


def test_optional_groups_may_be_missing(path):
    run = load_run(write(path))
    assert run.ablation_one is run.ablation_all_but_one is run.online is run.transfer is None


def test_to_dataframe_has_a_row_per_snapshot_and_head(path):
    table = load_run(write(path)).to_dataframe()
    assert len(table) == 30
    row = table.iloc[8]
    assert (row["update"], row["epoch"], row["layer"], row["number"], row["head"]) == (600, 2.0, 0, 2, 2)


def test_failed_snapshots_are_counted_and_not_usable(path):
    run = load_run(write(path, snapshots__status=["ok", "out of memory", "ok", "ok", "x"]))
    assert run.failures == [(600, "out of memory"), (1500, "x")]
    assert run.usable().snapshots["update"].values.tolist() == [300, 900, 1200]
    assert run.usable().curve.sizes["snapshot"] == 3 and run.usable().heads.sizes["head"] == 6


def test_xarray_opens_a_group_by_itself_with_named_axes(path):
    with xr.open_dataset(write(path), engine="h5netcdf", group="importance") as data:
        assert data["mean"].dims == ("snapshot", "head") and data["blocks"].dims == ("snapshot", "block", "head")


def test_the_file_is_closed_and_may_be_replaced(path):
    run = load_run(write(path))
    with h5py.File(path, "r+"):
        pass
    path.unlink()
    assert float(run.snapshots["score"].sum()) > 0


def test_the_blocker_of_these_tests_blocks():
    assert "No module named 'torch'" in run_without(BANNED, "import torch").stderr


def test_public_name_loads_without_torch(path):
    done = run_without(BANNED, "import sys, headdynamics; print(headdynamics.load_run(sys.argv[1]).path)", write(path))
    assert done.stdout.strip() == str(path), done.stderr


def refused(path, *words):
    with pytest.raises(RunFileError) as info:
        load_run(path)
    message = str(info.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message
    return message


def test_missing_file_folder_and_other_formats(path, tmp_path):
    refused(path, "does not exist")
    refused(tmp_path, "folder")
    path.write_bytes(b"")
    refused(path, "not an HDF5 file")
    path.write_text("epoch,score\n")
    refused(path, "not an HDF5 file")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated(path, part):
    whole = write(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(path, "damaged or cut short")


def test_every_byte_range_overwritten_gives_an_answer_or_a_clear_error(path):
    whole = write(path).read_bytes()
    for start in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
        try:
            load_run(path)
        except RunFileError:
            pass


def test_another_schema_names_both_versions(path):
    refused(write(path, attrs={"schema": 2}), "schema 2", "schema 1")


def test_hdf5_of_someone_else(path):
    with h5py.File(path, "w") as file:
        file["x"] = 1
    refused(path, "not a headdynamics run file")


def test_missing_attribute_group_dataset_and_scale(path):
    for what, words in [
        ("attr", "attribute model"),
        ("curve", "group /curve"),
        ("importance/blocks", "dataset /importance/blocks"),
        ("fraction", "dataset /fraction"),
    ]:
        write(path)
        with h5py.File(path, "r+") as file:
            if what == "attr":
                del file.attrs["model"]
            else:
                del file[what]
        refused(path, words)


def test_wrong_shape_dtype_and_order(path):
    write(path)
    with h5py.File(path, "r+") as file:
        file["importance/mean"].resize((4, 6))
    refused(path, "/importance/mean has shape [4, 6]", "[5, 6]")
    with h5py.File(write(path), "r+") as file:
        del file["snapshots/score"]
        file["snapshots/score"] = ["a"] * 5
    refused(path, "/snapshots/score holds", "float64")
    refused(write(path, snapshots__update=[1, 3, 2, 4, 5], snapshot=[1, 3, 2, 4, 5]), "does not grow")


def test_signature_that_is_not_json_is_empty(path):
    assert load_run(write(path, attrs={"signature": "{"})).signature == {}
