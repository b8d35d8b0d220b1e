"""The report package shows finished and unfinished runs: as one HTML page, as CSV files and figures, on a terminal.

What is read from run directories:
    run_files     strict readers of JSON, JSON lines, CSV and YAML
    run_records   every run below some directories: config, status, summary and metrics of each
    seed_groups   runs that differ in their seed alone, with means and intervals over seeds; the best beta of a method

What the page shows (`run_report.write_report` writes it):
    run_facts, page_tables, plots, completion_view, token_view, pivotal_view   the contents of its sections, as data
    html_page     the HTML around these contents
    number_text   numbers as a person reads them

What `shiqrun inspect` shows on a terminal:
    terminal_tokens, terminal_credit
"""
