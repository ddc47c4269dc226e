"""What a report says and shows, part by part; `interp.reports` writes it."""
