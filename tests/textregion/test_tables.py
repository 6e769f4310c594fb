from textregion.tables import markdown_table, text_table


def test_columns_are_as_wide_as_their_longest_cell():
    assert text_table(["name", "n"], [["a", "12"], ["longer", ""]]) == "name    n\na       12\nlonger"
    assert text_table(["name"], []) == "name"


def test_cells_cannot_break_a_markdown_table():
    lines = markdown_table(["a", "b"], [["x|y", "two\nlines "], [1.5, ""]])
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | two lines |", "| 1.5 |  |"]
