"""What a dashboard shows: calls of a core reduced to one bounded picture, live and from journals alike."""
