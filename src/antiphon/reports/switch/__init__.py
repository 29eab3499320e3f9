"""The report of `antiphon reproduce switch`: results, tables, plots and a page, from records."""
