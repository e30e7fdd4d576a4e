"""The dashboard: one page and one stream of what it shows, of an engine or of what a run left behind."""
