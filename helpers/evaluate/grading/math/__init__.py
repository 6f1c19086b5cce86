"""Mathematics: finding a final answer in free text (`final_answer`), comparing it by value (`equality`), and
checking the equations on the way (`equations`, `reasoning`). Below them lie readers of numbers, units, and
LaTeX.
"""
