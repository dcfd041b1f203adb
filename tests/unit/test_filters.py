"""obs_filter is a closed language: right masks, and nothing else is understood, or ever run."""

import time

import numpy as np
import pandas as pd
import pytest
from parts import read_sheet

from atlasmap.data.filters import parsed
from atlasmap.data.masks import kept
from atlasmap.errors import AtlasmapError

OBS = pd.DataFrame(
    {
        "batch": pd.Categorical(["a", "b", None, "a"]),
        "n": pd.array([1, 2, None, 4], dtype="Int64"),
        "age": [1.5, np.nan, 3.0, 0.0],
        "doublet": [True, False, True, False],
        "checked": pd.array([True, None, False, True], dtype="boolean"),
        "my col": list("wxyz"),
        "site": pd.Categorical([1, 2, None, 2]),
        "donor": ["1", "2", "3", "4"],
        "µg": [1, 2, 3, 4],
        "nothing": [None, None, None, None],
    }
)


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("batch == 'a'", "1001"), ('batch != "a"', "0110"), ("batch in ['a', 'c']", "1001"),
        ("batch not in ('a',)", "0110"), ("n >= 0", "1101"), ("n >= 2 & batch in ['a']", "0001"),
        ("n in [1, 4.0]", "1001"), ("n in []", "0000"), ("not doublet", "0101"),
        ("~doublet", "0101"),
        ("not (n > 1)", "1010"), ("~(n > 1)", "1010"), ("doublet | checked", "1011"),
        ("checked", "1001"), ("checked == True", "1001"), ("doublet == 1", "1010"),
        ("`my col` in ['w', 'x']", "1100"), ("site == 2", "0101"), ("isna(n)", "0010"),
        ("notna(n)", "1101"), ("batch.isna()", "0010"), ("batch.notna()", "1101"),
        ("`my col`.isna()", "0000"), ("0 < age <= 1.5", "1000"), ("age >= -1", "1011"),
        ("-1 < age", "1011"), ("age == n", "0000"), ("donor == '1'", "1000"), ("µg > 2", "0011"),
        ("batch == 'a' or batch == 'b' and not doublet", "1101"), ("nothing == 1", "0000"),
        ("nothing != 'a'", "1111"), ("donor in ['1', '# = & | `']", "1000"),
    ],
)  # fmt: skip
def test_a_filter_keeps_the_cells_that_it_says(text, mask):
    assert "".join(map(str, kept(OBS, text).astype(int))) == mask


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('@pd.compat.os.system("touch x") == 0', "@ has no meaning"),
        ("batch.to_csv('x') == None", "batch.to_csv('x') is a call"),
        ("@adata.write_h5ad('x')", "@ has no meaning"),
        ("9**9**9 == 1", "arithmetic"), ("n + 1 == 2", "arithmetic"),
        ("T-cell == 1", "`backticks`"),
        ("batch.str.repeat(1000000000) == 'x'", "a call"), ("batch.str == 'x'", "an attribute"),
        ("__import__('os')", "a call"), ("eval(n)", "a call"), ("isna(n, n)", "a call"),
        ("isna(batch.str)", "a call"), ("batch.isna(1)", "a call"), ("isna(*n)", "a call"),
        ("batch[0] == 'a'", "a place in a list"), ("f'{batch}' == 'a'", "an f-string"),
        ("(lambda: 1)() == 1", "a call"), ("[x for x in 'a'] == n", "an expression"),
        ("b'a' == batch", "a constant"), ("batch == None", "a constant"), ("n == 1j", "a constant"),
        ("n == ...", "a constant"), ("batch is None", "isna(column)"), ("batch = 'a'", "write =="),
        ("n := 1", "write =="), ("batch == ['a']", "`in`"), ("n in batch", "`in`"),
        ("1 == 1", "no column"), ("'batch' == 'a'", "no column"), ("True", "nothing"),
        ("n == 1; n", "; has no meaning"), ("n == 1 # x", "# has no meaning"), ("`n == 1", "` has"),
        ("batch ==", "cannot be read"), ("\0", "cannot be read"), ("n in [1, 'a']", "one list"),
        ("(" * 5000 + "n" + ")" * 5000 + " == 1", "nested"), ("not " * 20000 + "n", "nested"),
        ("n<" * 9000 + "1", "1000 times"), ("n == '" + "x" * 200_000 + "'", "longer"),
        ("batch in ['a' 'b']", "comma"), ("batch == '''a' & b'''", "no meaning"),
        ("1" + "<1" * 5000 + " and n == 1", "1000 times"),
        ("-n == 1", "an expression"), ("(n == 1) == (n == 1)", "an expression"),
    ],
)  # fmt: skip
def test_what_is_no_part_of_the_language_is_named_and_never_run(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(ValueError) as error:
        parsed(text)
    assert said in str(error.value)
    assert time.monotonic() - began < 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bach == 'a'", "did you mean batch"), ("donor == 1", "quote what is text"),
        ("n != 'a'", "n (number) is compared with 'a' (text)"), ("batch < 3", "is compared with"),
        ("doublet == 'True'", "true/false"), ("batch", "compare it with something"),
        ("n in ['1']", "quote what is text"), ("batch == n", "is compared with"),
    ],
)  # fmt: skip
def test_a_slip_that_would_keep_the_wrong_cells_is_refused(text, said):
    parsed(text)
    with pytest.raises(ValueError) as error:
        kept(OBS, text)
    assert said in str(error.value)


def test_names_that_look_alike_are_told_apart_in_backticks():
    obs = pd.DataFrame({"\N{MICRO SIGN}m": [1, 2], "\N{GREEK SMALL LETTER MU}m": [2, 1]})
    with pytest.raises(ValueError, match="look alike"):
        kept(obs, "\N{MICRO SIGN}m == 1")
    assert kept(obs, "`\N{MICRO SIGN}m` == 1").tolist() == [True, False]


def test_the_sheet_refuses_a_filter_before_any_file_is_read(tmp_path):
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text("id\tpath\trole\tobs_filter\na\tnone.h5ad\treference\tbatch = 'a'\n")
    with pytest.raises(AtlasmapError) as error:
        read_sheet(sheet)
    assert error.value.code == "FILTER_INVALID" and "write ==" in error.value.found
