"""What is compressed and how good it is: networks, data and measures of a task."""
