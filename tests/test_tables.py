"""A table in each of its forms."""

from __future__ import annotations

from cepdiff.tables import Table

TABLE = Table(
    [
        ["task_1", "50% score", "n", "P(X > Y)"],
        ["a & b", "12.0 ± 3.5", "3", "0.57 [0.30, 0.81]"],
        ["c|d", "-7.0 ± - *", "1 of 3", "0.50 [-, -]"],
        ["e", "-", "0 of 3", "-"],
    ],
    "a title",
    ["a note"],
    labels=1,
)


def test_text() -> None:
    assert TABLE.shown("text") == (
        "a title\n"
        "task_1   50% score       n           P(X > Y)\n"
        "a & b   12.0 ± 3.5       3  0.57 [0.30, 0.81]\n"
        "c|d     -7.0 ± - *  1 of 3        0.50 [-, -]\n"
        "e                -  0 of 3                  -\n"
        "a note"
    )


def test_markdown() -> None:
    assert TABLE.shown("markdown") == (
        "**a title**\n\n"
        "| task_1 | 50% score | n | P(X > Y) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a & b | 12.0 ± 3.5 | 3 | 0.57 [0.30, 0.81] |\n"
        "| c\\|d | -7.0 ± - * | 1 of 3 | 0.50 [-, -] |\n"
        "| e | - | 0 of 3 | - |\n\n"
        "a note"
    )


def test_csv_has_one_number_per_cell() -> None:
    assert TABLE.shown("csv") == (
        "# a title\n"
        "# a note\n"
        "task_1,50% score,50% score ±,50% score best,n,n of,P(X > Y),P(X > Y) low,P(X > Y) high\n"
        "a & b,12.0,3.5,,3,,0.57,0.30,0.81\n"
        "c|d,-7.0,,*,1,3,0.50,,\n"
        "e,,,,0,3,,,"
    )


def test_latex() -> None:
    assert TABLE.shown("latex") == (
        "% a title\n"
        "% a note\n"
        "\\begin{tabular}{lrrr}\n"
        "\\toprule\n"
        "task\\_1 & 50\\% score & n & P(X \\textgreater{} Y) \\\\\n"
        "\\midrule\n"
        "a \\& b & 12.0 $\\pm$ 3.5 & 3 & 0.57 [0.30, 0.81] \\\\\n"
        "c|d & $-$7.0 $\\pm$ -- * & 1 of 3 & 0.50 [--, --] \\\\\n"
        "e & -- & 0 of 3 & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}"
    )
