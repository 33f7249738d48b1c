"""One kind of figure a file; :mod:`triune.reports.sections` is the table of which stands where."""
