"""Tables and files of a run against the numbers that h5py reads."""

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from blocked import BANNED, run_without
from fake_run import blocks_of, layout, write_run
from headdynamics.analysis.__main__ import main
from headdynamics.analysis.load import load_run

from headdynamics.schema import RunFileError

MAIN = "import sys; from headdynamics.analysis.__main__ import main; sys.exit(main(sys.argv[1:]))"
DRAW = np.random.default_rng(0)


@pytest.fixture
def run_file(path):
    blocks = blocks_of(DRAW.lognormal(size=(5, 6)), 0.3)
    delta = DRAW.normal(size=(5, 6))
    delta[1, 2] = np.nan
    return write_run(
        path, blocks, layout(2, 3), optional=("ablation/one", "online/", "transfer/"), ablation__one__delta=delta,
        snapshots__status=["ok", "=cmd|' /C calc'!A1", "ok", "ok", "-1+2"], online__update=[10, 20],
    )  # fmt: skip


def test_one_dataset_with_named_axes_survives_netcdf(run_file, tmp_path):
    data = load_run(run_file).to_xarray()
    with h5py.File(run_file) as file:
        blocks, delta = file["importance/blocks"][:], file["ablation/one/delta"][:]
        fields = {name.replace("/", "_") for name in ("curve/score", "online/mean", "transfer/score")}
    assert np.array_equal(data["importance_blocks"].sel(snapshot=600).values, blocks[1])
    second = data["ablation_one_delta"].where(data["layer"] == 1, drop=True)
    assert np.array_equal(second.values, delta[:, 3:], equal_nan=True)
    assert data["epoch"].dims == data["status"].dims == ("snapshot",) and fields <= set(data.data_vars)
    data.to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as back:
        assert back.identical(data) and back.attrs["greater_is_better"] == 1
    load_run(run_file).select(np.array([], int)).to_xarray().to_netcdf(tmp_path / "none.nc")


def test_each_table_has_a_row_an_observation(run_file):
    run = load_run(run_file)
    with h5py.File(run_file) as file:
        score, online = file["curve/score"][:], file["online/mean"][:]
    curve = run.to_dataframe("curve").set_index(["update", "order", "fraction"])
    assert len(curve) == score.size and curve.loc[(900, "random-2", 0.5), "score"] == score[2, 2, 5]
    rows = {name: len(run.to_dataframe(name)) for name in ("blocks", "online", "snapshots", "heads", "transfer")}
    assert rows == {"blocks": 300, "online": online.size, "snapshots": 5, "heads": 6, "transfer": 55}
    with pytest.raises(RunFileError, match="no table 'knee'; it holds heads, snapshots, importance, curve"):
        run.to_dataframe("knee")


def test_csv_gives_back_the_same_numbers_and_no_formula(run_file, tmp_path, capsys):
    assert main(["export", str(run_file), "--what", "all", "--csv", "-o", f"{tmp_path}/new/"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 8 and f"{tmp_path}/new/run-transfer.csv" in paths
    read = {one: pd.read_csv(f"{tmp_path}/new/run-{one}.csv", float_precision="round_trip") for one in
            ("importance", "ablation_one", "snapshots")}  # fmt: skip
    with h5py.File(run_file) as file:
        assert np.array_equal(read["importance"]["mean"], file["importance/mean"][:].ravel().astype(float))
        assert np.array_equal(read["ablation_one"]["delta"], file["ablation/one/delta"][:].ravel(), equal_nan=True)
        assert np.array_equal(read["snapshots"]["score"], file["snapshots/score"][:])
    assert read["snapshots"]["status"].tolist()[1::3] == ["'=cmd|' /C calc'!A1", "'-1+2"]


def test_parquet(run_file, tmp_path):
    assert main(["export", str(run_file), "--parquet", "-o", str(tmp_path / "a.parquet")]) == 0
    back = pd.read_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(back, load_run(run_file).to_dataframe())
    assert back.attrs["metric"] == "accuracy" and back["mean"].dtype == "float32"


def test_one_line_where_a_library_is_missing_and_no_torch(run_file, tmp_path):
    done = run_without(("pyarrow",), MAIN, "export", run_file, "--parquet")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install pyarrow" in done.stderr
    done = run_without(BANNED, MAIN, "export", run_file, "--csv", "-o", tmp_path / "a.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'a.csv'}\n", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "one of the arguments --csv --parquet is required"),
        (["--csv", "-o", "a.txt"], "a.txt should end in .csv"),
        (["--csv", "--what", "all", "-o", "a.csv"], "name a folder"),
        (["--csv", "--what", "knee"], "no table 'knee'; it holds heads"),
        (["--csv", "-o", "no/such/a.csv"], "no/such"),
    ],
)
def test_errors_are_one_line(run_file, capsys, options, words):
    assert main(["export", str(run_file), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
