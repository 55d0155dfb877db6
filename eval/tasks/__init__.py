"""What is asked, one package or one file a task."""
