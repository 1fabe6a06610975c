"""Results: the store, the analysis, and the page. Imports no torch."""
