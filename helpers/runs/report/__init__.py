"""Pages of HTML to read or to send: of one run (page.py), and of several side by side (comparison.py).

Python prepares tables and figures; `templates/` has the words and their order, style.css the looks.

    write_report(open_run("latest"))                                     # into its report.html
    write_comparison([open_run("a"), open_run("b")], Path("c.html"))
"""
