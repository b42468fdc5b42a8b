"""Results as data: tidy rows, where they came from, and how sure they are."""
