from leaderboard.ui.methods_tab import formula_lines
from quant_engine.methods import METHODS


def test_each_equation_of_a_formula_has_a_line_and_cases_stay_together():
    assert formula_lines(r"a = b,\quad c = d") == ["a = b", "c = d"]
    cases = r"x = \begin{cases} 1 \quad & a \\ 0,\quad & b \end{cases}"
    assert formula_lines(cases + r",\quad y = 2") == [cases, "y = 2"]
    for method in METHODS.values():
        lines = formula_lines(method.card.formula)
        assert all(line and line.count("{") == line.count("}") for line in lines)
